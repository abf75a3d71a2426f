"""Public DPPO / DSRL checkpoints: every number against that project's own, and the Square form against a written-out one."""

from __future__ import annotations

import hashlib
import math
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import lpds
from lpds import load_decoder
from lpds.decoders.base import MinMaxNormaliser
from lpds.decoders.diffusion import cosine_alphas_cumprod, ddim_times
from lpds.decoders.network import sinusoid
from lpds.remarks import of_decoder

TASKS = {
    "dppo_hopper": {"file": "state_3000.pt", "steps": 5, "activation": "relu", "shape": ((11,), (4, 3))},
    "dppo_can": {"file": "state_5000.pt", "steps": 8, "activation": "mish", "shape": ((23,), (4, 7))},
}


class Reference:
    """One folder of reference numbers, and how its checkpoint is opened."""

    def __init__(self, name: str, folder: Path, scratch: Path) -> None:
        facts = TASKS[name]
        self.n: int = facts["steps"]
        self.obs_shape, self.chunk_shape = facts["shape"]
        self.checkpoint = folder / facts["file"]
        self.normalization = folder / "normalization.npz"
        self.activation: str = facts["activation"]
        self.io = load_file(folder / "io.safetensors")
        self.schedule = load_file(folder / "schedule.safetensors")
        # with these ranges normalised and environment units are the same
        self.identity = scratch / "identity.npz"
        obs, action = self.obs_shape[0], self.chunk_shape[1]
        ranges = {"obs_min": -np.ones(obs), "obs_max": np.full(obs, 1 - 1e-6)}
        np.savez(self.identity, **ranges, action_min=-np.ones(action), action_max=np.ones(action))

    def open(self, **changes):
        options = {
            "normalization": self.normalization,
            "ddim_steps": self.n,
            "denoising_steps": 20,
            "activation": self.activation,
            **changes,
        }
        return load_decoder(f"dppo:{options.pop('path', self.checkpoint)}", **options)

    def flat(self, name: str) -> torch.Tensor:
        return self.io[name].flatten(-2)


@pytest.fixture(scope="module", params=list(TASKS))
def ref(request, golden, tmp_path_factory):
    return Reference(request.param, golden(request.param), tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def hopper(golden, tmp_path_factory):
    return Reference("dppo_hopper", golden("dppo_hopper"), tmp_path_factory.mktemp("hopper"))


def close(found, expected, tolerance):
    torch.testing.assert_close(found.double(), expected.double(), atol=tolerance, rtol=0)


# --- reference numbers ----------------------------------------------------------------------------------------------


def test_raw_observations_decode_to_the_reference_actions(ref):
    close(ref.open()(ref.io["api_obs"], ref.io["noise"]), ref.io[f"ddim{ref.n}_api_action"], 2e-5)


def test_short_decode_in_normalised_units(ref):
    decoder = ref.open(normalization=ref.identity)
    close(decoder(ref.io["state"], ref.io["noise"]), ref.io[f"ddim{ref.n}_action"], 2e-5)
    close(decoder(ref.io["state"], ref.io["noise"]), ref.io[f"ddim{ref.n}_action_f64"], 2e-5)


def test_long_decode_in_normalised_units(ref):
    decoder = ref.open(normalization=ref.identity, ddim_steps=20)
    close(decoder(ref.io["state"], ref.io["noise"]), ref.io["ddim20_action"], 1e-4)


def test_wide_noise_meets_the_same_clip(ref):
    """Three times the noise: a missing clip, or one in the wrong place, shows at once."""
    decoder = ref.open(normalization=ref.identity)
    expected = ref.io[f"ddim{ref.n}_wide_action"]
    close(decoder(ref.io["state"][:16], ref.io["wide_noise"]), expected, 2e-5)
    assert float((expected.abs() == 1).float().mean()) > 0


def test_specification_is_read_from_the_files(ref):
    spec = ref.open().spec
    assert (spec.obs_shape, spec.latent_shape, spec.action_shape) == (ref.obs_shape, ref.chunk_shape, ref.chunk_shape)


def test_normalisation_of_observations_and_actions(ref):
    normaliser = ref.open().normaliser
    # in float64: one coordinate of the second file is constant but for 1e-6, which the normaliser magnifies to order 1
    double = MinMaxNormaliser(**{name: value.double() for name, value in normaliser.tensors().items()})
    close(double.observation(ref.io["raw_obs"]), ref.io["normalised_obs"], 2e-6)
    unnormalised = normaliser.action(ref.io[f"ddim{ref.n}_action"])
    close(unnormalised, ref.io[f"ddim{ref.n}_action_unnormalised"], 1e-6)


def test_schedule_arrays(ref):
    decoder = ref.open()
    abar = cosine_alphas_cumprod(20)
    close(abar, ref.schedule["alphas_cumprod"], 1e-7)
    previous = torch.cat([torch.ones(1), abar[:-1]])
    close(previous, ref.schedule["alphas_cumprod_prev"], 1e-7)
    close(1 - abar / previous, ref.schedule["betas"], 1e-6)
    for n in (ref.n, 20):
        times = ddim_times(20, n)
        assert times == sorted(ref.schedule[f"ddim{n}_t"].tolist(), reverse=True)
        # the arrays may run up or down; as a set of (alpha, alpha of the next) pairs they are the sampler's
        alphas = [float(abar[t]) for t in times]
        found = sorted(zip(alphas, [*alphas[1:], 1.0], strict=True))
        stored = zip(ref.schedule[f"ddim{n}_alpha"].tolist(), ref.schedule[f"ddim{n}_alpha_prev"].tolist(), strict=True)
        np.testing.assert_allclose(found, sorted(stored), atol=1e-7)
    assert decoder.times == ddim_times(20, ref.n)
    close(decoder.alphas_cumprod, ref.schedule["alphas_cumprod"], 1e-7)


def test_schedule_for_a_hundred_steps(golden):
    stored = load_file(golden("dppo_pretrain_loss") / "schedule.safetensors")
    for steps in (20, 100):
        close(cosine_alphas_cumprod(steps), stored[f"K{steps}_alphas_cumprod"], 1e-7)


def test_time_embedding(ref):
    t = torch.arange(20)
    close(sinusoid(t, 16), ref.io["time_embedding_sinusoid"], 2e-6)
    with torch.no_grad():
        close(ref.open().net.embed_time(t), ref.io["time_embedding_mlp"], 5e-6)


def test_one_network_call_at_mixed_times(ref):
    """One call of the averaged network; the raw weights answer differently, and are not used."""
    with torch.no_grad():
        eps = ref.open().net(ref.flat("probe_x"), ref.io["probe_t"], ref.io["state"])
    close(eps, ref.flat("probe_eps_ema"), 1e-5)
    assert float((eps - ref.flat("probe_eps_model")).abs().max()) > 0.05


def test_input_of_the_network_is_chunk_then_time_then_state(ref):
    net, row = ref.open().net, ref.io[f"ddim{ref.n}_step0_mlp_input"]
    chunk = ref.flat("noise")
    t = ref.schedule[f"ddim{ref.n}_t"].max().expand(64)
    with torch.no_grad():
        close(torch.cat([chunk, net.embed_time(t), ref.io["state"]], dim=1), row, 5e-6)
        h = row
        for layer in net.mlp_mean.layers:
            h = layer(h)
    close(h, ref.flat(f"ddim{ref.n}_eps")[0], 1e-5)


def test_every_step_of_the_short_decode(ref):
    """eps, clean estimate and next x of each step, each from the reference's own x of that step."""
    decoder = ref.open()
    xs, state = ref.flat(f"ddim{ref.n}_x"), ref.io["state"]
    following = [*(float(decoder.alphas_cumprod[t]) for t in decoder.times[1:]), 1.0]
    with torch.no_grad():
        for index, t in enumerate(decoder.times):
            x, a, b = xs[index], float(decoder.alphas_cumprod[t]), following[index]
            eps = decoder.net(x, torch.full((64,), t), state)
            close(eps, ref.flat(f"ddim{ref.n}_eps")[index], 2e-5)
            x0 = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
            close(x0, ref.flat(f"ddim{ref.n}_x0_unclipped")[index], 1e-4)
            x0 = x0.clamp(-1, 1)
            close(math.sqrt(b) * x0 + math.sqrt(1 - b) * (x - math.sqrt(a) * x0) / math.sqrt(1 - a), xs[index + 1], 5e-5)


def test_committed_numbers_are_those_beside_the_repository(golden_outside):
    if golden_outside is None:
        pytest.skip("no folder of reference numbers beside the repository; set LPDS_GOLDEN")
    committed = Path(__file__).parent / "golden"
    files = [path for path in committed.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 6e6
    for path in files:
        original = golden_outside / path.relative_to(committed)
        assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(original.read_bytes()).digest(), path.name


# --- which weights --------------------------------------------------------------------------------------------------


@pytest.fixture
def content(hopper):
    """What the Hopper checkpoint holds, to be changed and written again."""
    return torch.load(hopper.checkpoint, weights_only=True)


def written(content, folder: Path, name: str = "state.pt") -> Path:
    torch.save(content, folder / name)
    return folder / name


def test_the_averaged_weights_alone_decide(hopper, content, tmp_path):
    before = hopper.open().fingerprint
    content["model"] = {key: value + 1 for key, value in content["model"].items()}
    assert hopper.open(path=written(content, tmp_path)).fingerprint == before
    content["ema"]["network.mlp_mean.layers.2.bias"][0] += 1e-3
    assert hopper.open(path=written(content, tmp_path, "other.pt")).fingerprint != before


def test_raw_weights_serve_where_there_are_no_averaged_ones(hopper, content, tmp_path):
    del content["ema"]
    decoder = hopper.open(path=written(content, tmp_path))
    with torch.no_grad():
        eps = decoder.net(hopper.flat("probe_x"), hopper.io["probe_t"], hopper.io["state"])
    close(eps, hopper.flat("probe_eps_model"), 1e-5)


def test_a_fine_tuned_file_gives_its_frozen_copy(hopper, content, tmp_path):
    """``actor.`` is the frozen copy; ``actor_ft.``, ``network.``, ``critic.`` and ``ema`` beside it are not the policy."""
    policy = {key.removeprefix("network."): value for key, value in content["ema"].items()}
    raw = {key.removeprefix("network."): value for key, value in content["model"].items()}
    model = {
        **{f"network.{key}": value for key, value in raw.items()},
        **{f"actor.{key}": value for key, value in policy.items()},
        **{f"actor_ft.{key}": value + 0.1 for key, value in policy.items()},
        "critic.Q1.moduleList.0.linear_1.weight": torch.zeros(3, 3),
    }
    for extra in ({}, {"ema": content["model"]}):
        decoder = hopper.open(path=written({"epoch": 1, "model": model, **extra}, tmp_path))
        assert decoder.fingerprint == hopper.open().fingerprint
        (found,) = (one for one in lpds.check(decoder, samples=16).findings if one.name == "weights")
        assert found.verdict == "warning"
        assert "actor_ft.*, which was fine-tuned since, is not used" in str(found.figure)
        (line,) = of_decoder(decoder)
        assert line.startswith(f"WARNING: decoder {decoder.name!r} has of its checkpoint actor.*")
        close(decoder(hopper.io["api_obs"], hopper.io["noise"]), hopper.io["ddim5_api_action"], 2e-5)


def test_a_file_that_nobody_fine_tuned_gets_no_warning(hopper, content, tmp_path):
    policy = {key.removeprefix("network."): value for key, value in content["ema"].items()}
    same = {f"{part}.{key}": value for part in ("actor", "actor_ft") for key, value in policy.items()}
    for decoder in (hopper.open(), hopper.open(path=written({"epoch": 1, "model": same}, tmp_path))):
        assert of_decoder(decoder) == []
        assert not [one for one in lpds.check(decoder, samples=16).findings if one.name == "weights"]


@pytest.mark.parametrize("part", ["obs", "action"])
def test_ranges_that_are_interchanged_are_refused(hopper, tmp_path, refused, part):
    arrays = dict(np.load(hopper.identity))
    arrays[f"{part}_min"], arrays[f"{part}_max"] = arrays[f"{part}_max"], arrays[f"{part}_min"]
    np.savez(tmp_path / "n.npz", **arrays)
    with refused(f"{part}_min is above {part}_max"):
        hopper.open(normalization=tmp_path / "n.npz")


def test_only_the_used_weights_must_be_finite(hopper, content, tmp_path):
    content["model"]["network.mlp_mean.layers.0.bias"][:] = math.nan
    assert hopper.open(path=written(content, tmp_path)).fingerprint == hopper.open().fingerprint


def test_fingerprint_is_of_the_contents_not_of_the_place(hopper, tmp_path):
    moved = shutil.copy(hopper.checkpoint, tmp_path / "elsewhere.pt")
    before = hopper.open().fingerprint
    assert hopper.open(path=moved).fingerprint == before
    assert hopper.open(ddim_steps=4).fingerprint != before
    assert hopper.open(denoising_steps=25).fingerprint != before
    assert hopper.open(activation="mish").fingerprint != before
    assert hopper.open(normalization=hopper.identity).fingerprint != before


def test_the_head_of_the_chunk_may_be_executed(hopper):
    part = hopper.open(execute=2)
    assert part.spec.latent_shape == (4, 3)
    assert part.spec.action_shape == (2, 3)
    close(part(hopper.io["api_obs"], hopper.io["noise"]), hopper.io["ddim5_api_action"][:, :2], 2e-5)


# --- the Square form, which has no reference file -------------------------------------------------------------------

OBS, ACTIONS, HORIZON, TIME, WIDTH = 23, 7, 4, 32, 1024


def square_weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """cond_mlp [512, 64], time 32, 3x1024, in DPPO's names; scaled so that clean estimates are mostly inside the clip."""

    def linear(name: str, fan_in: int, fan_out: int) -> dict[str, np.ndarray]:
        weight = rng.standard_normal((fan_out, fan_in)) / math.sqrt(fan_in)
        return {f"{name}.weight": weight, f"{name}.bias": 0.1 * rng.standard_normal(fan_out)}

    chunk = HORIZON * ACTIONS
    weights = {
        **linear("time_embedding.1", TIME, 2 * TIME),
        **linear("time_embedding.3", 2 * TIME, TIME),
        **linear("cond_mlp.moduleList.0.linear_1", OBS, 512),
        **linear("cond_mlp.moduleList.1.linear_1", 512, 64),
        **linear("mlp_mean.layers.0", chunk + TIME + 64, WIDTH),
        **linear("mlp_mean.layers.1.l1", WIDTH, WIDTH),
        **linear("mlp_mean.layers.1.l2", WIDTH, WIDTH),
        **linear("mlp_mean.layers.2", WIDTH, chunk),
    }
    out = weights["mlp_mean.layers.2.weight"]
    out *= 0.15
    out += 0.9 * np.linalg.pinv(weights["mlp_mean.layers.0.weight"][:, :chunk])
    return {key: value.astype(np.float32) for key, value in weights.items()}


def decode_square(weights: dict[str, np.ndarray], obs: np.ndarray, noise: np.ndarray, ranges: dict[str, np.ndarray]):
    """The whole decoder, line by line in float64; actions, and the share of clean estimates that met the clip."""

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ weights[f"{name}.weight"].astype(np.float64).T + weights[f"{name}.bias"]

    def mish(x: np.ndarray) -> np.ndarray:
        return x * np.tanh(np.logaddexp(0, x))

    i = np.arange(101)
    f = np.cos((i / 100 + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.clip(1 - f[1:] / f[:-1], 0, 0.999).astype(np.float32)
    abar = np.cumprod(1 - betas, dtype=np.float32).astype(np.float64)
    state = 2 * ((obs - ranges["obs_min"]) / (ranges["obs_max"] - ranges["obs_min"] + 1e-6) - 0.5)
    cond = linear("cond_mlp.moduleList.1.linear_1", mish(linear("cond_mlp.moduleList.0.linear_1", state)))
    frequency = np.exp(-np.arange(TIME // 2) * np.log(10000) / (TIME // 2 - 1))
    x = noise.reshape(len(noise), -1).astype(np.float64)
    clipped = []
    times = [84, 72, 60, 48, 36, 24, 12, 0]
    for t, t_next in zip(times, [*times[1:], None], strict=True):
        wave = np.concatenate([np.sin(t * frequency), np.cos(t * frequency)])
        time = linear("time_embedding.3", mish(linear("time_embedding.1", wave)))
        h = linear("mlp_mean.layers.0", np.concatenate([x, np.tile(time, (len(x), 1)), cond], axis=1))
        h = h + linear("mlp_mean.layers.1.l2", mish(linear("mlp_mean.layers.1.l1", mish(h))))
        eps = linear("mlp_mean.layers.2", h)
        a, a_next = abar[t], 1.0 if t_next is None else abar[t_next]
        x0 = (x - np.sqrt(1 - a) * eps) / np.sqrt(a)
        clipped.append(np.abs(x0) > 1)
        x0 = np.clip(x0, -1, 1)
        eps = (x - np.sqrt(a) * x0) / np.sqrt(1 - a)
        x = np.sqrt(a_next) * x0 + np.sqrt(1 - a_next) * eps
    chunk = x.reshape(len(noise), HORIZON, ACTIONS)
    action = (chunk + 1) / 2 * (ranges["action_max"] - ranges["action_min"]) + ranges["action_min"]
    return action, np.stack(clipped).mean((1, 2))


def test_square_form(tmp_path):
    rng = np.random.default_rng(5)
    weights = square_weights(rng)
    named = {f"network.{key}": torch.from_numpy(value) for key, value in weights.items()}
    torch.save({"epoch": 8000, "model": {key: value + 1 for key, value in named.items()}, "ema": named}, tmp_path / "square.pt")
    ranges = {
        "obs_min": -1 - rng.random(OBS),
        "obs_max": 1 + rng.random(OBS),
        "action_min": -0.5 - rng.random(ACTIONS),
        "action_max": 0.5 + rng.random(ACTIONS),
    }
    ranges["obs_max"][4] = ranges["obs_min"][4] = 0.25  # a constant coordinate exercises the 1e-6
    np.savez(tmp_path / "normalization.npz", **ranges)
    decoder = load_decoder(
        f"dppo:{tmp_path}/square.pt",
        normalization=tmp_path / "normalization.npz",
        ddim_steps=8,
        denoising_steps=100,
        activation="mish",
    )
    assert decoder.spec.obs_shape == (OBS,)
    assert decoder.spec.latent_shape == decoder.spec.action_shape == (HORIZON, ACTIONS)
    assert decoder.net.shape.cond_sizes == (512, 64)
    assert decoder.net.shape.time_size == TIME
    assert decoder.times == [84, 72, 60, 48, 36, 24, 12, 0]
    obs = rng.uniform(-1, 1, (32, OBS)).astype(np.float32)
    obs[:, 4] = 0.25
    noise = rng.standard_normal((32, HORIZON, ACTIONS)).astype(np.float32)
    expected, clipped = decode_square(weights, obs, noise, ranges)
    assert 0.01 < clipped.mean() < 0.6, "the clip must act, and leave something to compare"
    found = decoder(torch.from_numpy(obs), torch.from_numpy(noise)).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=0)


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [1.0, 0.5, -0.1, math.nan])
def test_a_stochastic_sampler_is_refused(hopper, refused, eta):
    with refused(f"eta {eta}", "stochastic", "eta 0"):
        hopper.open(eta=eta)


def test_a_missing_normaliser_is_refused(hopper, refused, tmp_path):
    with refused("normalization=PATH", "obs_min"):
        hopper.open(normalization=None)
    with refused(str(tmp_path / "none.npz"), "does not exist"):
        hopper.open(normalization=tmp_path / "none.npz")


def test_a_missing_checkpoint_is_refused(hopper, refused, tmp_path):
    with refused(str(tmp_path / "state_1.pt"), "does not exist"):
        hopper.open(path=tmp_path / "state_1.pt")


@pytest.mark.parametrize("keep", [0, 1, 100, 10_000, 2_000_000, -1, -200])
def test_a_truncated_checkpoint_is_refused(hopper, refused, tmp_path, keep):
    (tmp_path / "short.pt").write_bytes(hopper.checkpoint.read_bytes()[:keep])
    with refused(str(tmp_path / "short.pt"), "cannot be read"):
        hopper.open(path=tmp_path / "short.pt")


@pytest.mark.parametrize(
    "garbage", [b"not a checkpoint\n" * 50, b"\x80\x04garbage\n.", b"PK\x03\x04" + bytes(400), bytes(4096)]
)
def test_garbage_in_place_of_a_checkpoint_is_refused(hopper, refused, tmp_path, garbage):
    (tmp_path / "garbage.pt").write_bytes(garbage)
    with refused(str(tmp_path / "garbage.pt"), "cannot be read"):
        hopper.open(path=tmp_path / "garbage.pt")


class Trap:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_checkpoint_is_never_run(hopper, refused, tmp_path, legacy):
    evil, proof = tmp_path / "evil.pt", tmp_path / "proof"
    if legacy:
        evil.write_bytes(pickle.dumps({"model": Trap(proof)}, protocol=2))
    else:
        torch.save({"model": Trap(proof)}, evil)
    with refused(str(evil), "cannot be read"):
        hopper.open(path=evil)
    assert not proof.exists()


@pytest.mark.parametrize(
    "content",
    [[1, 2], {}, {"weights": {}}, {"ema": {}}, {"model": {}}, {"ema": 3}, {"ema": None}, {"model": [1]}, {"ema": {"a": 1}}],
)
def test_files_of_another_kind_are_refused(hopper, refused, tmp_path, content):
    with refused("state.pt"):
        hopper.open(path=written(content, tmp_path))


def test_weights_of_another_network_are_refused(hopper, refused, tmp_path, content):
    image = {"network.backbone.vit.pos_embed": torch.zeros(2), "network.mlp_mean.layers.0.weight": torch.zeros(4, 4)}
    with refused("no weight 'mlp_mean.layers.1.weight'", "residual MLP"):
        hopper.open(path=written({"ema": image}, tmp_path))
    content["ema"]["network.extra.weight"] = torch.zeros(2)
    with refused("state.pt", "extra.weight"):
        hopper.open(path=written(content, tmp_path))
    del content["ema"]["network.extra.weight"], content["ema"]["network.mlp_mean.layers.1.l2.bias"]
    with refused("state.pt", "mlp_mean.layers.1.l2.bias"):
        hopper.open(path=written(content, tmp_path))


def test_weights_that_are_not_finite_are_refused(hopper, refused, tmp_path, content):
    content["ema"]["network.mlp_mean.layers.1.l1.weight"][5, :7] = math.nan
    content["ema"]["network.mlp_mean.layers.1.l1.weight"][6, 0] = -math.inf
    with refused("state.pt", "8 of 262144", "'mlp_mean.layers.1.l1.weight'"):
        hopper.open(path=written(content, tmp_path))


def ranges_of(hopper) -> dict[str, np.ndarray]:
    with np.load(hopper.normalization) as arrays:
        return dict(arrays)


def test_broken_normalisers_are_refused(hopper, refused, tmp_path):
    path = tmp_path / "n.npz"
    whole = hopper.normalization.read_bytes()
    for content in (b"", b"text", whole[:20], whole[: len(whole) // 2], whole[:-30]):
        path.write_bytes(content)
        with refused(str(path), "cannot be read"):
            hopper.open(normalization=path)
    np.save(tmp_path / "n.npy", np.zeros(3))
    with refused("n.npy", "cannot be read"):
        hopper.open(normalization=tmp_path / "n.npy")
    ranges = ranges_of(hopper)
    np.savez(path, **{**ranges, "obs_min": np.array([{}], dtype=object)})
    with refused(str(path), "cannot be read"):
        hopper.open(normalization=path)


def test_normalisers_without_or_with_bad_ranges_are_refused(hopper, refused, tmp_path):
    path, ranges = tmp_path / "n.npz", ranges_of(hopper)
    np.savez(path, **{key: value for key, value in ranges.items() if key != "action_max"})
    with refused(str(path), "lacks action_max", "obs_min"):
        hopper.open(normalization=path)
    np.savez(path, **{**ranges, "obs_max": np.full(11, np.nan)})
    with refused(str(path), "'obs_max'", "NaN"):
        hopper.open(normalization=path)


@pytest.mark.parametrize(
    "changes",
    [
        {"obs_min": np.zeros(17), "obs_max": np.ones(17)},
        {"action_min": np.zeros(5), "action_max": np.ones(5)},
        {"obs_max": np.ones(10)},
        {"action_max": np.ones(2)},
    ],
    ids=["observations", "actions", "uneven observations", "uneven actions"],
)
def test_a_normaliser_of_another_size_is_refused(hopper, refused, tmp_path, changes):
    np.savez(tmp_path / "n.npz", **{**ranges_of(hopper), **changes})
    with refused("n.npz"):
        hopper.open(normalization=tmp_path / "n.npz")


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("ddim_steps", 0, "1 .. 20"),
        ("ddim_steps", 21, "1 .. 20"),
        ("activation", "gelu", "mish, relu"),
        ("execute", 5, "1 .. 4"),
        ("execute", 0, "1 .. 4"),
        ("nonsense", 3, "unexpected keyword argument"),
    ],
)
def test_bad_options_are_refused(hopper, refused, option, value, words):
    with refused(option, words):
        hopper.open(**{option: value})
