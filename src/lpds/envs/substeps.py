"""robosuite's control step with one pass of MuJoCo's pipeline a substep in place of three.

``MujocoEnv.step`` of robosuite 1.4 calls ``sim.forward()``, then the controller, which calls it again, then
``sim.step()``, which begins with it once more: three times the same kinematics, contacts and constraints of one state, 25
times a control step. MuJoCo splits its step where a controller wants to read: ``mj_step1`` computes what depends on
position and velocity alone, ``mj_step2`` what depends on the control, and integrates. The trajectory is the same to the
bit, since ``mj_forward`` leaves no trace in what it computes next (its warm start is written by the integrator). Only
forces of the state before the step are not there while the controller runs: robosuite keeps them in
``robot.recent_ee_forcetorques``, which no controller, reward or observation reads.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SPLITS = ("mjINT_EULER", "mjINT_IMPLICIT", "mjINT_IMPLICITFAST")
"""Integrators that ``mj_step2`` has; it takes Runge-Kutta for Euler."""


@contextmanager
def one_pass_a_substep(sim: Any) -> Iterator[None]:
    """Let ``sim.forward`` and ``sim.step`` share their work while a control step is on.

    Args:
        sim: robosuite's ``MjSim``. In between its state may be changed by ``sim.step`` alone.
    """
    mujoco = importlib.import_module("mujoco")
    model, data = sim.model._model, sim.data._data
    if model.opt.integrator not in {int(getattr(mujoco.mjtIntegrator, name)) for name in _SPLITS}:
        yield
        return
    known = False

    def forward() -> None:
        nonlocal known
        if not known:
            mujoco.mj_step1(model, data)
            known = True

    def step(with_udd: bool = True) -> None:
        nonlocal known
        forward()
        mujoco.mj_step2(model, data)
        known = False

    sim.forward, sim.step = forward, step
    try:
        yield
    finally:
        del sim.forward, sim.step
