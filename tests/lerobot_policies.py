"""Tiny random policies in LeRobot's own saved format."""

from __future__ import annotations

import contextlib
import importlib.util
import io

import numpy as np
import torch

from lpds.decoders.lerobot.folder import import_lerobot

if importlib.util.find_spec("lerobot") is not None:
    import_lerobot("diffusion")  # before anything else imports lerobot, which may overlook transformers
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


def diffusion(folder, *, image=False, size=32, stats=None, **changes):
    """A DiffusionPolicy; state and environment state, or state and one camera (of 64 pixels or more, to see anything)."""
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

    torch.manual_seed(0)
    inputs = {STATE: feature("STATE", 4)}
    inputs |= {CAMERA: feature("VISUAL", 3, size, size)} if image else {ENVIRONMENT: feature("ENV", 5)}
    settings = {
        "down_dims": (16, 32),
        "diffusion_step_embed_dim": 16,
        "n_groups": 4,
        "horizon": 8,
        "n_action_steps": 4,
        "noise_scheduler_type": "DDIM",
        "num_inference_steps": 5,
        "spatial_softmax_num_keypoints": 8,
        "pretrained_backbone_weights": None,
        "use_group_norm": True,
        "crop_shape": (size - 4, size - 4) if image else None,
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


WIDTHS = {"width": 64, "depth": 2, "mlp_dim": 128, "num_heads": 2, "num_kv_heads": 1, "head_dim": 32}


def shrink(patch, kind, vision=32, **sizes):
    """Make pi0, pi05 or SmolVLA tiny: their sizes are written into their constructors, so these are replaced."""
    module = importlib.import_module(f"lerobot.policies.{kind}.modeling_{kind}")
    if kind == "smolvla":
        return _shrink_smolvla(patch)
    patch.setattr(module, "get_gemma_config", lambda variant: module.GemmaConfig(**WIDTHS | sizes))
    names = ("PaliGemmaForConditionalGeneration", "GemmaForCausalLM")
    if not hasattr(module, names[1]):
        names = ("PaliGemmaForConditionalGenerationWithPiGemma", "PiGemmaForCausalLM")
    whole, expert = (getattr(module, name) for name in names)

    def make_whole(config):
        seen = config.vision_config
        seen.hidden_size, seen.num_hidden_layers, seen.num_attention_heads, seen.intermediate_size = vision, 2, 2, 2 * vision
        seen.projection_dim = config.projection_dim = config.text_config.hidden_size
        config.text_config.vocab_size = config.vocab_size = config._vocab_size = 256
        config.image_token_index = config.image_token_id = 255
        return whole(config)

    def make_expert(config):
        config.vocab_size, config.pad_token_id = 16, 0
        return expert(config)

    patch.setattr(module, names[0], make_whole)
    patch.setattr(module, names[1], make_expert)
    return None


def _shrink_smolvla(patch):
    from transformers import SmolVLMConfig

    module = importlib.import_module("lerobot.policies.smolvla.smolvlm_with_expert")
    text = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "vocab_size": 128}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0}
    seen = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    seen |= {"image_size": 64, "patch_size": 16}
    tokenizer = type("Tokenizer", (), {"fake_image_token_id": 1, "global_image_token_id": 2})()
    made = {
        "AutoConfig": SmolVLMConfig(text_config=text, vision_config=seen, scale_factor=2, image_token_id=5, pad_token_id=0),
        "AutoProcessor": type("Processor", (), {"tokenizer": tokenizer})(),
    }
    for name, value in made.items():
        opener = staticmethod(lambda *_, value=value, **__: value)
        patch.setattr(module, name, type(name, (), {"from_pretrained": opener}))


def words_tokenizer(folder):
    """A tokenizer of single words, as a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "lift", "drop", "the", "cube", "Task:", "State:", "Action:", *map(str, range(200))]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    return folder


def flow(folder, patch, kind, tokenizer, size=56, camera=CAMERA, **changes):
    """A tiny pi0, pi05 or SmolVLA with a 7-dimensional arm and one camera; it has to be opened under the same patch."""
    names = {"pi0": "PI0", "pi05": "PI05", "smolvla": "SmolVLA"}
    settings = {"chunk_size": 10, "n_action_steps": 6, "device": "cpu", "tokenizer_max_length": 60}
    if kind == "smolvla":
        size = 64
        settings |= {"load_vlm_weights": False, "num_vlm_layers": 4, "resize_imgs_with_padding": (64, 64), "num_steps": 4}
        settings |= {"pad_language_to": "max_length"}
    else:
        settings |= {"num_inference_steps": 4, "image_resolution": (size, size), "dtype": "float32"}
    config_module = importlib.import_module(f"lerobot.policies.{kind}.configuration_{kind}")
    module = importlib.import_module(f"lerobot.policies.{kind}.modeling_{kind}")
    torch.manual_seed(0)
    config = getattr(config_module, f"{names[kind]}Config")(
        input_features={STATE: feature("STATE", 8), camera: feature("VISUAL", 3, size, size)},
        output_features={"action": feature("ACTION", 7)},
        **settings | changes,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        policy = getattr(module, f"{names[kind]}Policy")(config).eval()
    make = importlib.import_module("lerobot.processor.tokenizer_processor")
    with patch.context() as inner:  # the saved name is the published one, which cannot be fetched here
        inner.setattr(make, "AutoTokenizer", type("Auto", (), {"from_pretrained": staticmethod(lambda name: object())}))
        save(folder, policy, kind)
    return policy, folder


def tokens(rows, length=60, seed=3):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(length).expand(rows, -1) < 9
    return {TOKENS: torch.randint(3, 100, (rows, length), generator=generator) * mask, MASK: mask}
