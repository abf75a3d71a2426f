"""How good the latent critic's slope is: one step along it against one along the true slope through the decoder.

    lpds steer hopper --seed 10 --eval-seed 1000 --steps 30000 --eval-every 0 --out runs/distillation/hopper
    python benchmarks/distillation.py runs/distillation/hopper --out results/distillation/hopper.json

Takes a run folder with its checkpoint (a diffusion decoder). At 256 states of its replay and 32 noises each, the slope of
Q^W in w, averaged over the noises, is compared with that of Q^A(s, Phi(s, w)), differentiated through the sampler. (Only
here: LP-DS itself never does that.) ``gain`` is what Q^A(s, Phi(s, eps + step)) rises by, on average over noises and
states, for a step of length 0.5 along a slope. Then Q^W is distilled further against the same Q^A in other ways, 2,000
updates each, to see what limits it. Q is in the scaled units of the run.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lpds.checkpoint import CheckpointStore
from lpds.commands.terminal import guarded
from lpds.config import LPDSSettings, RunSettings
from lpds.decoders.diffusion import DiffusionDecoder
from lpds.fields import from_json
from lpds.files import write_json
from lpds.methods.lpds import LPDS
from lpds.methods.state import adam
from lpds.nn import EnsembleMLP
from lpds.replay import Replay
from lpds.session import build_learner
from lpds.zoo import load_decoder

STATES, NOISES, STEP, UPDATES, BATCH = 256, 32, 0.5, 2000, 256


class Bench:
    """A checkpoint's learner and replay, and the states and noises at which slopes are compared."""

    def __init__(self, run: Path) -> None:
        config = json.loads((run / "config.json").read_text())
        decoder = load_decoder(config["decoder"]["reference"])
        if not isinstance(decoder, DiffusionDecoder):
            raise SystemExit("the slope through the decoder is taken for diffusion decoders only")
        self.decoder = decoder
        settings = from_json(RunSettings, config["run"])
        self.settings = from_json(LPDSSettings, config["settings"])
        torch.set_num_threads(settings.threads)
        learner, _ = build_learner(settings, "lpds", self.settings, decoder, torch.device("cpu"))
        if not isinstance(learner, LPDS):
            raise SystemExit("not a run of lpds")
        self.learner = learner
        store = CheckpointStore(run / "checkpoint")
        tensors, facts = store.load()
        learner.load_tensors({k.removeprefix("method."): v for k, v in tensors.items() if k.startswith("method.")})
        lanes = settings.num_envs
        self.replay = Replay(decoder.spec, settings.steps + lanes, self.settings.kept_noises, lanes, torch.device("cpu"))
        store.load_replay(facts, self.replay)
        self.generator = torch.Generator().manual_seed(7)
        rows = torch.randint(len(self.replay), (STATES,), generator=self.generator)
        self.raw = self.replay.everything("obs")[rows]
        self.obs = learner.online.scaling(self.raw)
        self.eps = torch.randn(STATES, NOISES, decoder.spec.latent_size, generator=self.generator)

    def value_through_decoder(self, w: Tensor) -> Tensor:
        """min_i Q^A_i(s, Phi(s, w)) [STATES], differentiable in w."""
        decoder = self.decoder
        chunk = decoder.denoise_plain(decoder.normaliser.observation(self.raw), w.unflatten(1, decoder.spec.latent_shape))
        action = decoder.normaliser.action(chunk[:, : decoder.spec.action_shape[0]]).flatten(1)
        return self.learner._value(self.learner.q_action, self.obs, action).amin(0)

    def latent_value(self, critic: EnsembleMLP, w: Tensor) -> Tensor:
        """min_i Q^W_i(s, w) [STATES]."""
        out: Tensor = critic(torch.cat([self.obs, w], 1)).squeeze(-1).amin(0)
        return out

    def slopes(self, critic: EnsembleMLP | None, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Slope [STATES, NOISES, D] and value [STATES, NOISES] at eps + shift; ``None`` goes through the decoder."""
        slopes, values = [], []
        for column in range(NOISES):
            w = (self.eps[:, column] + shift).requires_grad_()
            value = self.value_through_decoder(w) if critic is None else self.latent_value(critic, w)
            slopes.append(torch.autograd.grad(value.sum(), w)[0])
            values.append(value.detach())
        return torch.stack(slopes, 1), torch.stack(values, 1)

    def compare(self, critic: EnsembleMLP, shift: Tensor) -> dict[str, float]:
        """Figures of one critic at one shift."""
        true_slope, true_value = self.slopes(None, shift)
        slope, value = self.slopes(critic, shift)

        def gain(along: Tensor) -> Tensor:
            step = shift + STEP * F.normalize(along.mean(1), dim=1)
            with torch.no_grad():
                moved = [self.value_through_decoder(self.eps[:, column] + step) for column in range(NOISES)]
            return torch.stack(moved, 1).mean(1) - true_value.mean(1)

        a, b = (x - x.mean(1, keepdim=True) for x in (true_value, value))
        rise = gain(slope)
        return {
            "cosine_of_mean_slopes": float(F.cosine_similarity(true_slope.mean(1), slope.mean(1), dim=1).mean()),
            "correlation_inside_states": float((a * b).sum() / (a.norm() * b.norm())),
            "states_that_rise": float((rise > 0).float().mean()),
            "gain": float(rise.mean()),
            "gain_along_true_slope": float(gain(true_slope).mean()),
            "value_of_less_noise": float((self.eps * slope).sum(2).mean()),
            "value_of_less_noise_true": float((self.eps * true_slope).sum(2).mean()),
        }

    def distilled(self, noises: int, weight: float, *, fresh: bool = False) -> EnsembleMLP:
        """Q^W distilled on: ``noises`` a state, differences inside a state weighted, kept pairs or fresh ones."""
        learner, c, d = self.learner, self.settings, self.decoder.spec.latent_size
        generator = torch.Generator().manual_seed(3)
        critic = EnsembleMLP(c.critics, self.obs.shape[1] + d, 1, c.width, c.depth, generator, c.activation)
        critic.load_state_dict(learner.q_latent.state_dict())
        optimiser = adam(critic, c.lr)
        for _ in range(UPDATES):
            batch = self.replay.sample(BATCH, generator, noises)
            eps, action = batch.base_noise.flatten(0, 1), batch.base_action.flatten(0, 1)
            if fresh:
                eps = torch.randn(BATCH * noises, d, generator=generator)
                with torch.no_grad():
                    action = learner._decode(batch.obs.repeat_interleave(noises, 0), eps)
            obs = learner.online.scaling(batch.obs).repeat_interleave(noises, 0)
            with torch.no_grad():
                target = learner._value(learner.q_action, obs, action)
            error = (critic(torch.cat([obs, eps], 1)).squeeze(-1) - target).unflatten(1, (BATCH, noises))
            level = error.mean(2, keepdim=True)
            loss = (level.square() + weight * (error - level).square()).sum(0).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        return critic


def main() -> None:
    """Compare and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    bench = Bench(arguments.run)
    base = torch.zeros(STATES, bench.decoder.spec.latent_size)
    with torch.no_grad():
        shift = bench.learner.online(bench.raw)
    cases = {
        "as trained, at the base noise": lambda: bench.compare(bench.learner.q_latent, base),
        "as trained, at the steered noise": lambda: bench.compare(bench.learner.q_latent, shift),
        "2 kept noises a state": lambda: bench.compare(bench.distilled(2, 1.0), base),
        "4 kept noises": lambda: bench.compare(bench.distilled(4, 1.0), base),
        "4 kept, differences inside a state x100": lambda: bench.compare(bench.distilled(4, 100.0), base),
        "4 fresh noises": lambda: bench.compare(bench.distilled(4, 1.0, fresh=True), base),
    }
    rows = {}
    for name, case in cases.items():
        rows[name] = case()
        print(f"{name:<42}" + "  ".join(f"{key} {value:.3f}" for key, value in rows[name].items()), flush=True)
    facts = {"format_version": 1, "run": str(arguments.run), "updates": UPDATES, "states": STATES, "noises": NOISES}
    write_json(arguments.out, {**facts, "rows": rows})


if __name__ == "__main__":
    sys.exit(guarded(Path(__file__).stem, main))
