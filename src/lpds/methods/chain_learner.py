"""What the methods that train the denoising chain share: who acts, what they start from, and what is saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from lpds.chain_config import ChainSettings
from lpds.fields import of_a_file
from lpds.methods.chain import ChainPolicy, DecoderChain, untrained
from lpds.methods.learner import Learner
from lpds.nn import copies
from lpds.types import Decoder

P = TypeVar("P", bound=ChainPolicy)


class ChainLearner(Learner[P]):
    """The chain's weights, which a subclass trains, and the rewards' multiplier."""

    name: ClassVar[str]
    """The method's, for messages."""
    settings_kind: ClassVar[type[ChainSettings]]
    acting: ClassVar[tuple[str, ...]] = ("sampling_std",)
    """Settings of what acts."""
    fits_frozen = False
    sampling: P
    """What collects: ``policy`` with the deviations of learning."""

    def __init__(self, settings: ChainSettings, decoder: Decoder, device: torch.device) -> None:
        """Copy the decoder's network.

        Args:
            settings: the method's.
            decoder: of diffusion; frozen, its network is copied.
            device: of everything.

        Raises:
            LpdsError: a decoder without a denoising chain.
        """
        super().__init__()
        self.settings, self.chain = settings, self.make_chain(settings, decoder, device)
        self.reward_scale = torch.ones((), device=device)
        self.state.modules = {"net": self.chain.net}
        self.state.scalars = {"reward_scale": self.reward_scale}

    @classmethod
    def make_chain(cls, settings: Any, decoder: Decoder, device: torch.device) -> DecoderChain:
        """The decoder's chain, all of whose steps are trained."""
        return DecoderChain(decoder, cls.name, device, min_std=settings.sampling_std)

    @property
    def start(self) -> ChainPolicy:
        """The chain as the decoder has it."""
        return untrained(self.chain, self.name)

    @property
    def behaviour(self) -> P:
        """The same chain with the deviations of learning."""
        return self.sampling

    def calibrate(self, obs: Tensor, action: Tensor, reward_scale: float) -> None:
        """Fix the rewards' multiplier; inputs are in the decoder's units already."""
        self.reward_scale.fill_(reward_scale)

    def policy_tensors(self) -> dict[str, Tensor]:
        """The trained network."""
        return copies(self.chain.net)

    def policy_settings(self) -> dict[str, Any]:
        """What :meth:`open_policy` needs beside the weights."""
        return asdict(self.settings)

    @classmethod
    def open_policy(cls, decoder: Decoder, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ChainPolicy:
        """Build the chain of a saved policy."""
        c = of_a_file(cls.settings_kind, settings, cls.acting)
        return ChainPolicy(cls.open_chain(c, decoder, tensors), cls.name, evaluation=True)

    @classmethod
    def open_chain(cls, settings: ChainSettings, decoder: Decoder, net: Mapping[str, Tensor]) -> DecoderChain:
        """A chain of saved weights, which nothing trains any more."""
        chain = cls.make_chain(settings, decoder, torch.device("cpu"))
        chain.net.load_state_dict(dict(net))
        chain.net.requires_grad_(False)
        return chain
