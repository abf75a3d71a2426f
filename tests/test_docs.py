"""Every snippet of docs/your-policy.md, docs/large-decoders.md and docs/lerobot.md does what it says, with budgets cut."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

import lpds
from lpds.cli import _parser, main
from lpds.decoder_flags import shared_words
from lpds.grid import grid_cells

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "your-policy.md").read_text()
LARGE = (DOCS / "large-decoders.md").read_text()
LEROBOT = (DOCS / "lerobot.md").read_text()
SMALL = {
    "warmup_steps": 64,
    "warmup_fits": 2,
    "width": 16,
    "batch_size": 8,
    "num_envs": 1,
    "eval_every": 0,
    "final_episodes": 2,
}
MODEL = """
import torch

class my_model:
    mix = torch.linspace(-1, 1, 11 * 12).view(11, 12).sin()

    @classmethod
    def sample(cls, obs, initial_noise):
        return torch.tanh(0.1 * obs @ cls.mix + 0.3 * initial_noise.flatten(1)).view(-1, 4, 3)

"""


def snippets(heading, page=PAGE):
    """(language, text) of the fenced blocks below a heading."""
    section = page.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```(\w*)\n(.*?)```", section, flags=re.DOTALL)


def run_commands(text):
    """The page's commands with smaller budgets."""
    for line in text.strip().splitlines():
        words = shlex.split(line)[1:]
        if words[0] == "steer":
            words[words.index("--steps") + 1] = "128"
            words += ["--quiet", *(part for key, value in SMALL.items() for part in (f"--{key.replace('_', '-')}", str(value)))]
        if words[0] == "eval":
            words += ["--episodes", "2"]
        assert main(words) == 0, line


@pytest.fixture
def page(tmp_path, monkeypatch, request):
    """An empty folder to be in, with the page's my_policy.py in it and its module forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_policy.py").write_text(MODEL + snippets("A function of your own")[0][1])
    monkeypatch.delitem(sys.modules, "my_policy", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("my_policy", None)


def test_a_function_of_your_own(page, capsys):
    (_, _), (_, commands), (language, python) = snippets("A function of your own")
    run_commands(commands)
    printed = capsys.readouterr().out
    assert "fit to be steered" in printed
    assert "paired difference" in printed
    assert language == "python"
    names = {"lpds": lpds, "obs": np.random.default_rng(0).normal(size=(5, 11)).astype(np.float32)}
    exec(python, names)
    assert names["actions"].shape == (5, 4, 3)


def test_a_dppo_checkpoint(page, golden):
    for name in ("state_3000.pt", "normalization.npz"):
        shutil.copy(golden("dppo_hopper") / name, page / name)
    ((_, commands),) = snippets("A DPPO or DSRL checkpoint")
    run_commands(commands)
    assert (page / "runs" / "dppo" / "report.html").is_file()


class Pusher(gymnasium.Env):
    """As many numbers as the tiny LeRobot policy takes: a state of 4, an environment state of 5, actions of 3."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (9,), np.float32)
    action_space = gymnasium.spaces.Box(-10.0, 10.0, (3,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.np_random.normal(size=9).astype(np.float32), {}

    def step(self, action):
        self.steps += 1
        return self.np_random.normal(size=9).astype(np.float32), 0.0, False, self.steps >= 20, {}


@pytest.mark.parametrize(
    ("text", "heading", "out"), [(PAGE, "A policy that LeRobot saved", "lerobot"), (LEROBOT, "Steering", "mine")]
)
def test_a_policy_that_lerobot_saved(page, monkeypatch, text, heading, out):
    pytest.importorskip("lerobot", reason="lerobot is not installed")
    import lerobot_policies

    lerobot_policies.diffusion(page / "outputs" / "last")
    steer = lpds.steer
    monkeypatch.setattr(lpds, "steer", lambda **settings: steer(**settings | SMALL | {"steps": 128}))
    ((_, python),) = snippets(heading, text)
    names = {"lpds": lpds, "make_my_env": Pusher}
    exec(python.replace("lerobot:PATH", "lerobot:outputs/last"), names)
    assert lpds.load_policy(f"runs/{out}").decoder.fingerprint == names["decoder"].fingerprint


class Several(Pusher):
    """The same numbers by the policy's names."""

    observation_space = gymnasium.spaces.Dict(
        {
            "observation.state": gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32),
            "observation.environment_state": gymnasium.spaces.Box(-np.inf, np.inf, (5,), np.float32),
        }
    )

    def reset(self, **given):
        obs, info = super().reset(**given)
        return self._split(obs), info

    def step(self, action):
        obs, *others = super().step(action)
        return self._split(obs), *others

    def _split(self, obs):
        return {"observation.state": obs[:4], "observation.environment_state": obs[4:]}


@pytest.mark.parametrize("text", [PAGE, LEROBOT])
def test_the_wrapping_that_the_pages_give_shows_a_policy_what_a_dict_shows_it(page, monkeypatch, text):
    """Frames of several vectors: flat as documented, in Gymnasium's order of the keys, and as a dict, the same actions."""
    pytest.importorskip("lerobot", reason="lerobot is not installed")
    import lerobot_policies

    lerobot_policies.diffusion(page / "outputs" / "last")
    monkeypatch.setattr(lpds, "steer", lambda **settings: None)
    heading = "A policy that LeRobot saved" if text is PAGE else "Steering"
    ((_, python),) = snippets(heading, text)
    names = {"lpds": lpds, "make_my_env": Several}
    exec(python.replace("lerobot:PATH", "lerobot:outputs/last"), names)
    stacked = gymnasium.wrappers.FrameStackObservation(Several(), 2)
    order = sorted(Several.observation_space)  # as Gymnasium flattens them
    steps = {"ddim_steps": names["decoder"].options["ddim_steps"]}
    flat = lpds.load_decoder("lerobot:outputs/last", **steps, flat=True, flat_order=order)
    whole = lpds.load_decoder("lerobot:outputs/last", **steps)
    made, w = names["env"](), torch.randn(1, *whole.spec.latent_shape, generator=torch.Generator().manual_seed(0))
    seen = []
    for env in (made, stacked):
        env.reset(seed=0)
        seen.append(env.step(np.zeros(3, np.float32))[0])
    wanted = whole({key: torch.from_numpy(value)[None] for key, value in seen[1].items()}, w)
    assert torch.equal(flat(torch.from_numpy(seen[0])[None], w), wanted)


def test_the_first_lines_of_the_lerobot_page(page):
    pytest.importorskip("lerobot", reason="lerobot is not installed")
    import lerobot_policies

    folder = "outputs/train/pusht/checkpoints/last"
    lerobot_policies.diffusion(page / folder)
    (python,) = re.findall(r"```python\n(.*?)```", LEROBOT.split("\n## ")[0], flags=re.DOTALL)
    names = {"state": torch.zeros(6, 2, 4), "points": torch.zeros(6, 2, 5), "w": torch.zeros(6, 8, 3)}
    exec(python, names)
    assert names["actions"].shape == (6, 4, 3)


class Watched(gymnasium.Env):
    """One camera and a state, by the names of whoever watches."""

    action_space = gymnasium.spaces.Box(-10.0, 10.0, (7,), np.float32)

    def __init__(self, picture, state, size, numbers):
        box = gymnasium.spaces.Box
        self.observation_space = gymnasium.spaces.Dict(
            {picture: box(0, 255, (size, size, 3), np.uint8), state: box(-np.inf, np.inf, (numbers,), np.float32)}
        )
        self._keys = (picture, state)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps = 0
        return self._observation(), {}

    def step(self, action):
        self.steps += 1
        return self._observation(), float(action[0]), False, self.steps >= 16, {}

    def _observation(self):
        picture, state = (self.observation_space[key] for key in self._keys)
        return dict(
            zip(self._keys, (picture.sample(), self.np_random.normal(size=state.shape).astype(np.float32)), strict=True)
        )


class Model:
    """A large policy in small: pools the picture's blocks, and adds what is left to the noise."""

    @staticmethod
    def encode(obs):
        light = obs["picture"].float().mean(-1) / 255.0
        return {"pooled": torch.nn.functional.avg_pool2d(light.unsqueeze(1), 8).flatten(1), "state": obs["state"]}

    @staticmethod
    def sample(encoded, initial_noise):
        return torch.tanh(initial_noise + encoded["pooled"][:, :1, None] + encoded["state"].unsqueeze(1))


def cut(monkeypatch):
    steer = lpds.steer
    monkeypatch.setattr(lpds, "steer", lambda **settings: steer(**settings | SMALL | {"steps": 128, "quiet": True}))


def test_a_large_policy_of_your_own(page, monkeypatch):
    cut(monkeypatch)
    (_, make), (_, use) = snippets("A policy of your own", LARGE)

    def env():
        return Watched("picture", "state", 64, 7)

    names = {"my_model": Model, "make_my_env": env}
    exec(make, names)
    names["obs"] = lpds.make_env(env, 3, 8).reset()[0]
    exec(use, names)
    assert names["actions"].shape == (3, 8, 7)
    assert names["policy"].policy.form == "lowrank"


def test_a_large_policy_that_lerobot_saved(page, monkeypatch):
    pytest.importorskip("lerobot", reason="lerobot is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    import lerobot_policies

    from lpds.decoders.lerobot.folder import import_lerobot

    import_lerobot("pi0")
    cut(monkeypatch)
    ((_, python),) = snippets("A policy that LeRobot saved", LARGE)
    tokenizer = lerobot_policies.words_tokenizer(page / "tokenizer")
    load = lpds.load_decoder
    monkeypatch.setattr(lpds, "load_decoder", lambda path, **options: load(path, tokenizer=tokenizer, **options))
    with pytest.MonkeyPatch.context() as patch:
        lerobot_policies.shrink(patch, "pi0")
        lerobot_policies.flow(page / "outputs" / "pi0", patch, "pi0", tokenizer)
        camera, state = lerobot_policies.CAMERA, lerobot_policies.STATE
        exec(python, {"lpds": lpds, "make_my_env": lambda: Watched(camera, state, 56, 8)})
    assert (page / "runs" / "pi0" / "policy" / "policy.json").is_file()


def test_the_memory_line_of_the_page():
    from lpds.replay import Replay
    from lpds.types import LatentSpec

    replay = Replay(LatentSpec((544,), (50, 32), (20, 7)), 50_004, 4, 4, torch.device("cpu"), kept_next=2, expected=2_504)
    assert snippets("Memory", LARGE)[0][1].strip() == replay.describe_memory()


def test_a_policy_that_lives_elsewhere(page):
    (_, serve), (_, steer) = snippets("A policy that lives elsewhere")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "lpds", *shlex.split(serve.replace("8765", port))[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert port in process.stdout.readline()
            run_commands(steer.replace("8765", port))
            there = lpds.load_decoder(f"remote:ws://127.0.0.1:{port}")
            here = lpds.load_decoder("python:my_policy.py:decoder")
            obs, w = torch.randn(3, 11), torch.randn(3, 4, 3)
            assert torch.equal(there(obs, w), here(obs, w))
            there.close()
        finally:
            process.terminate()


def test_links_between_pages_lead_somewhere():
    for path in [*DOCS.glob("*.md"), DOCS.parent / "README.md", *(DOCS.parent / "results").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_an_expert_of_your_own(tmp_path, monkeypatch):
    """The page's table of arrays stood in no file of the repository."""
    from lpds.pretrain.experts import load_actor
    from lpds.pretrain.recipes import DATA

    page = (DOCS / "manipulation.md").read_text().split("### Expert actors\n")[1]
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experts").mkdir()
    draw = np.random.default_rng(0).normal
    layers = [(draw(size=(rows, columns)), draw(size=rows)) for rows, columns in ((64, 45), (64, 64), (24, 64))]
    exec(code, {"layers": layers})
    obs = draw(size=45)
    action = load_actor(Path("experts/adroit_pen.npz"), sampled=False)(obs, np.random.default_rng(0))
    hidden = np.tanh(layers[1][0] @ np.tanh(layers[0][0] @ obs + layers[0][1]) + layers[1][1])
    np.testing.assert_allclose(action, layers[2][0] @ hidden + layers[2][1], rtol=1e-5)
    asked = {f"{source.expert}.npz" for recipe in DATA.values() for source in recipe.sources}
    assert {name for name in asked if f"`{name}`" not in page} == set()


def test_every_grid_that_a_page_asks_for_is_one():
    """A variant without a name stood in a command of the README, and nobody had run it."""
    found = 0
    for path in [DOCS.parent / "README.md", *DOCS.glob("*.md"), *(DOCS.parent / "results").glob("*.md")]:
        for command in re.findall(r"^lpds bench (?:[^\n\\]|\\\n)*|(?<=`)lpds bench [^`]*(?=`)", path.read_text(), re.MULTILINE):
            words = shlex.split(command.replace("\\\n", " "))[1:]
            if "..." in words or "learner" in words:
                continue
            arguments = _parser(words).parse_args(words)
            cells = grid_cells(arguments.what, arguments.methods, arguments.seeds, arguments.steps, shared_words(arguments))
            assert cells, command
            found += 1
    assert found >= 8
