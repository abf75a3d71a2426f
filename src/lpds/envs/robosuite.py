"""RoboMimic's tasks in robosuite 1.4.1: Lift, Can, Square and Transport, on low-dimensional observations (extra ``robosuite``).

Panda arms under OSC_POSE at 20 Hz, sparse reward 0 or 1, as RoboMimic (Mandlekar et al. 2021, arXiv 2108.03298) recorded its
demonstrations and as DPPO and DSRL run them. The observation puts ``robot0_eef_pos``, ``robot0_eef_quat``,
``robot0_gripper_qpos`` (the same of ``robot1``) and then ``object`` (robosuite's ``object-state``) end to end: the order of
``low_dim_keys`` in DPPO's ``env/gym_utils/wrapper/robomimic_lowdim.py`` and its configurations ("same order of preprocessed
observations"), which DSRL shares. (diffusion_policy puts ``object`` first.) An episode goes on after success, to its horizon.

robosuite 1.4.1 takes no seed and draws from NumPy's global generator. Here that generator is set from the reset's seed and put
back afterwards, so an episode depends on its seed alone. The compiled model is kept between episodes (``hard_reset=False``, as
DPPO does; a reset then takes milliseconds instead of half a second); what compiling draws, which is the size of Lift's cube,
is drawn from a fixed seed and is therefore the same in every environment.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from lpds.envs.substeps import one_pass_a_substep
from lpds.errors import LpdsError, one_line

FloatArray = npt.NDArray[np.float32]

TOO_NEW = (3, 10)
"""MuJoCo from here on lacks what robosuite 1.4 reads (``MjData.qM``)."""
VERSION = "1.4.1"
"""Of robosuite. 1.4.0 has no Transport; 1.5 has other controllers and other observations."""
CONTROL_HZ = 20
MODEL_SEED = 0
"""Of what is drawn while a model is compiled."""
FRAME = (256, 256)
"""Height and width of a rendered frame."""
NO_RENDERING = "disabled"


@dataclass(frozen=True)
class RobosuiteTask:
    """One task of robosuite, as RoboMimic sets it up."""

    name: str
    """Class of robosuite."""
    horizon: int
    arms: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)


LIFT = RobosuiteTask("Lift", 300)
CAN = RobosuiteTask("PickPlaceCan", 300)
SQUARE = RobosuiteTask("NutAssemblySquare", 400)
TRANSPORT = RobosuiteTask("TwoArmTransport", 800, arms=2, options={"env_configuration": "single-arm-opposed"})


def make_lift(render_mode: str | None = None, **options: Any) -> RobosuiteEnv:
    """Lift a cube from the table; 19 observations, 7 actions, 300 steps."""
    return RobosuiteEnv(LIFT, render_mode=render_mode, **options)


def make_can(render_mode: str | None = None, **options: Any) -> RobosuiteEnv:
    """Put a can from one bin into its place in another; 23 observations, 7 actions, 300 steps."""
    return RobosuiteEnv(CAN, render_mode=render_mode, **options)


def make_square(render_mode: str | None = None, **options: Any) -> RobosuiteEnv:
    """Put a square nut on a square peg; 23 observations, 7 actions, 400 steps."""
    return RobosuiteEnv(SQUARE, render_mode=render_mode, **options)


def make_transport(render_mode: str | None = None, **options: Any) -> RobosuiteEnv:
    """Fetch a hammer out of a lidded bin and hand it over to the other arm's bin; 59 observations, 14 actions, 800 steps."""
    return RobosuiteEnv(TRANSPORT, render_mode=render_mode, **options)


class RobosuiteEnv(gymnasium.Env[FloatArray, FloatArray]):
    """One robosuite task as a Gymnasium environment; ``info["success"]`` says at every step what the task itself says.

    ``suite`` is robosuite's own environment, and ``parts`` what it observed last, by its own names.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012 - as Gymnasium declares it

    def __init__(
        self,
        task: RobosuiteTask,
        *,
        horizon: int | None = None,
        end_at_success: bool = False,
        render_mode: str | None = None,
        camera: str = "agentview",
    ) -> None:
        """Compile the model.

        Args:
            task: which one.
            horizon: steps until truncation; the task's own by default.
            end_at_success: terminate at the first successful step.
            render_mode: ``"rgb_array"`` for :meth:`render`; nothing is rendered without.
            camera: a camera of the model, for :meth:`render`.

        Raises:
            LpdsError: robosuite is missing or of another version, or the render mode is unknown.
        """
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise LpdsError(f"render_mode must be None or 'rgb_array', not {render_mode!r}")
        suite = import_robosuite()
        self.task, self.horizon, self.end_at_success = task, task.horizon if horizon is None else horizon, end_at_success
        self.render_mode, self._camera = render_mode, camera
        with global_draws(MODEL_SEED), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.suite: Any = suite.make(
                task.name,
                robots=["Panda"] * task.arms,
                controller_configs=suite.load_controller_config(default_controller="OSC_POSE"),
                has_renderer=False,
                has_offscreen_renderer=False,
                use_camera_obs=False,
                control_freq=CONTROL_HZ,
                ignore_done=True,
                hard_reset=False,
                **task.options,
            )
        arms = (f"robot{arm}_{what}" for arm in range(task.arms) for what in ("eef_pos", "eef_quat", "gripper_qpos"))
        self._keys = (*arms, "object-state")
        for name, observable in self.suite._observables.items():
            if name not in self._keys and observable.modality != "object":
                observable.set_enabled(False)  # computed 25 times a step for nothing
                observable.set_active(False)
        with global_draws(MODEL_SEED):
            self.parts: dict[str, npt.NDArray[np.float64]] = self.suite.reset()
        low, high = self.suite.action_spec
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, self._observation().shape, np.float32)
        self.action_space = gymnasium.spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
        self._steps = 0
        self._pictures: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[FloatArray, dict[str, Any]]:
        """Place the objects and the arm; the same seed places them the same, whatever was done before."""
        super().reset(seed=seed)
        with global_draws(seed % 2**32 if seed is not None else int(self.np_random.integers(2**32))):
            self.parts = self.suite.reset()
        self._steps = 0
        return self._observation(), {"success": self._success()}

    def step(self, action: FloatArray) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        """Act for a twentieth of a second."""
        with one_pass_a_substep(self.suite.sim):
            self.parts, reward, _, _ = self.suite.step(np.asarray(action, np.float64))
        self._steps += 1
        success = self._success()
        over, cut = self.end_at_success and success, self._steps >= self.horizon
        return self._observation(), float(reward), over, cut, {"success": success}

    def render(self) -> npt.NDArray[np.uint8] | None:
        """An RGB frame [H, W, 3], or None without ``render_mode="rgb_array"``.

        Raises:
            LpdsError: there is no OpenGL to draw with.
        """
        if self.render_mode is None:
            return None
        if self._pictures is None:
            from lpds.envs.pictures import Pictures

            self._pictures = Pictures(self.suite.sim, *FRAME)
        frame: npt.NDArray[np.uint8] = self._pictures.draw(self._camera)
        return frame

    def close(self) -> None:
        """Free the model and the renderer."""
        if self._pictures is not None:
            self._pictures.close()
            self._pictures = None
        self.suite.close()

    def _observation(self) -> FloatArray:
        return np.concatenate([self.parts[key] for key in self._keys]).astype(np.float32)

    def _success(self) -> bool:
        return bool(self.suite._check_success())


@contextmanager
def global_draws(seed: int) -> Iterator[None]:
    """Let NumPy's global generator start from a seed, and put it back as it was."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


def import_robosuite(versions: Sequence[str] = (VERSION,), extra: str = "robosuite") -> Any:
    """Import robosuite quietly, on machines with any OpenGL or none.

    Its import insists on EGL whatever MUJOCO_GL says, warns of a missing file of settings and needs OpenCV's window library;
    state-only use needs none of it.

    Args:
        versions: which will do.
        extra: what installs one of them.

    Returns:
        The module.

    Raises:
        LpdsError: it is missing, of another version, or does not import.
    """
    spec = importlib.util.find_spec("robosuite")
    wanted = f"these tasks need robosuite {' or '.join(versions)}"
    if spec is None:
        raise LpdsError(f"{wanted}: pip install 'lpds[{extra}]'")
    found = importlib.metadata.version("robosuite")
    if found not in versions:
        raise LpdsError(f"{wanted}, not {found}: pip install 'lpds[{extra}]'")
    check_mujoco(importlib.metadata.version("mujoco"), found)
    if "robosuite" in sys.modules:
        return sys.modules["robosuite"]
    places = [Path(place) for place in spec.submodule_search_locations or ()]
    stand_ins: dict[str, types.ModuleType] = {}
    if not any((place / "macros_private.py").is_file() for place in places):
        # the user's own settings, without which it warns; only here can it be told to leave MUJOCO_GL alone
        stand_ins["robosuite.macros_private"] = types.ModuleType("robosuite.macros_private")
        stand_ins["robosuite.macros_private"].MUJOCO_GPU_RENDERING = False  # type: ignore[attr-defined]
    if found == "1.4.0":
        _preset_macros(places[0])
    with warnings.catch_warnings(), rendering_backend():
        warnings.simplefilter("ignore")
        try:
            importlib.import_module("cv2")
        except ImportError:  # it opens windows, which nothing here asks for, and fails where there is no libGL
            stand_ins["cv2"] = types.ModuleType("cv2")
        sys.modules |= stand_ins
        try:
            return importlib.import_module("robosuite")
        except Exception as error:
            raise LpdsError(f"robosuite {found} does not import: {one_line(error)}") from error
        finally:
            for name in stand_ins:
                sys.modules.pop(name, None)


def check_mujoco(version: str, suite: str) -> None:
    """Refuse a MuJoCo that the suite's controllers fail with, in the middle of a step and with another word for it."""
    if tuple(int(part) for part in version.split(".")[:2]) >= TOO_NEW:
        wanted = ".".join(map(str, TOO_NEW))
        raise LpdsError(f"robosuite {suite} does not work with MuJoCo {version}: pip install 'mujoco<{wanted}'")


def _preset_macros(place: Path) -> None:
    """Robosuite 1.4.0 reads its user's settings too late: load its defaults, leave MUJOCO_GL alone and keep no log file."""
    spec = importlib.util.spec_from_file_location("robosuite.macros", place / "macros.py")
    if spec is None or spec.loader is None:
        raise LpdsError(f"robosuite 1.4.0 in {place} has no macros.py")
    macros = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(macros)
    macros.MUJOCO_GPU_RENDERING, macros.FILE_LOGGING_LEVEL = False, None  # type: ignore[attr-defined]
    sys.modules["robosuite.macros"] = macros


@contextmanager
def rendering_backend() -> Iterator[str]:
    """Set MUJOCO_GL to what this machine has, for as long as the context lasts; a value of the user's stays."""
    given = os.environ.get("MUJOCO_GL")
    backend = given or _available_backend()
    os.environ["MUJOCO_GL"] = backend
    try:
        yield backend
    finally:
        if given is None:
            del os.environ["MUJOCO_GL"]
        else:
            os.environ["MUJOCO_GL"] = given


def _available_backend() -> str:
    if sys.platform != "linux":
        return "glfw"
    for backend, library in (("egl", "libEGL.so.1"), ("osmesa", "libOSMesa.so.8"), ("osmesa", "libOSMesa.so")):
        try:
            ctypes.CDLL(library)
        except OSError:
            continue
        return backend
    return NO_RENDERING
