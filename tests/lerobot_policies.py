"""Tiny random policies in LeRobot's own saved format."""

from __future__ import annotations

import contextlib
import importlib
import io

import numpy as np
import torch

STATE, ENVIRONMENT, CAMERA = "observation.state", "observation.environment_state", "observation.images.cam"
TOKENS, MASK = "observation.language.tokens", "observation.language.attention_mask"


def feature(kind, *shape):
    types = importlib.import_module("lerobot.configs.types")
    return types.PolicyFeature(getattr(types.FeatureType, kind), shape)


def statistics(features, seed=0):
    """Every statistic that any normalisation asks for."""
    rng = np.random.default_rng(seed)
    out = {}
    for key, entry in features.items():
        shape = (3, 1, 1) if len(entry.shape) == 3 else entry.shape
        centre, spread = rng.normal(size=shape), rng.uniform(0.5, 2.0, size=shape)
        values = {"mean": centre, "std": spread, "min": centre - 2 * spread, "max": centre + 2 * spread}
        values |= {"q01": values["min"], "q99": values["max"], "q10": centre - spread, "q90": centre + spread}
        out[key] = {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}
    return out


def save(folder, policy, kind, stats=None):
    """The policy with both processors."""
    config = policy.config
    features = {**config.input_features, **config.output_features}
    module = importlib.import_module(f"lerobot.policies.{kind}.processor_{kind}")
    with contextlib.redirect_stdout(io.StringIO()):
        policy.save_pretrained(folder)
        make = getattr(module, f"make_{kind}_pre_post_processors")
        for pipeline in make(config, statistics(features) if stats is None else stats):
            pipeline.save_pretrained(folder)
    return folder


def diffusion(folder, *, image=False, stats=None, **changes):
    """A DiffusionPolicy; state and environment state, or state and one camera."""
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

    torch.manual_seed(0)
    inputs = {STATE: feature("STATE", 4)}
    inputs |= {CAMERA: feature("VISUAL", 3, 32, 32)} if image else {ENVIRONMENT: feature("ENV", 5)}
    settings = {
        "down_dims": (16, 32),
        "diffusion_step_embed_dim": 16,
        "n_groups": 4,
        "horizon": 8,
        "n_action_steps": 4,
        "noise_scheduler_type": "DDIM",
        "num_inference_steps": 5,
        "spatial_softmax_num_keypoints": 8,
        "crop_shape": (28, 28) if image else None,
        "device": "cpu",
    }
    config = DiffusionConfig(input_features=inputs, output_features={"action": feature("ACTION", 3)}, **settings | changes)
    policy = DiffusionPolicy(config).eval()
    return policy, save(folder, policy, "diffusion", stats)


def observation(policy, rows=6, seed=1, history=None):
    """Raw observations with the history axis that the policy asks for."""
    generator = torch.Generator().manual_seed(seed)
    frames = policy.config.n_obs_steps if history is None else history
    lead = (rows, frames) if frames > 1 else (rows,)
    return {
        key: torch.rand(*lead, *entry.shape, generator=generator)
        if len(entry.shape) == 3
        else torch.randn(*lead, *entry.shape, generator=generator)
        for key, entry in policy.config.input_features.items()
    }
