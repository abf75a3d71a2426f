"""The four Adroit tasks of gymnasium-robotics: a 24-joint hand with a pen, a hammer, a door, a ball (extra ``adroit``).

Dense rewards; success is what the environment itself says of every step (``info["success"]``). An episode goes on after
success, to its horizon: 100 steps for Pen, 200 for the others, as in D4RL (Rajeswaran et al. 2018, arXiv 1709.10087).
The dense rewards of Hammer, Door and Relocate are those of gymnasium-robotics 1.2.1 and later, which differ from earlier
releases of the same ``-v1`` ids: compare returns within one version only; success does not depend on it.
"""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from typing import Any

import gymnasium
from gymnasium.utils import RecordConstructorArgs

from lpds.errors import LpdsError

SUCCESS_KEY = "success"
"""Where a step's ``info`` says it."""


def make_pen(render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """Turn a pen to a wanted orientation; 45 observations, 24 actions."""
    return _make("Pen", 100, render_mode)


def make_hammer(render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """Drive a nail into a board; 46 observations, 26 actions."""
    return _make("Hammer", 200, render_mode)


def make_door(render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """Undo a latch and open a door; 39 observations, 28 actions."""
    return _make("Door", 200, render_mode)


def make_relocate(render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """Carry a ball to a place in the air; 39 observations, 30 actions."""
    return _make("Relocate", 200, render_mode)


def _make(task: str, horizon: int, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    try:
        with redirect_stderr(io.StringIO()):  # it prints a notice about its versions whenever it is imported
            import gymnasium_robotics
    except ModuleNotFoundError as error:
        if error.name != "gymnasium_robotics":  # installed, and broken: what it lacks is not the extra
            raise
        raise LpdsError("Adroit needs gymnasium-robotics: pip install 'lpds[adroit]'") from None
    name = f"AdroitHand{task}-v1"
    if name not in gymnasium.registry:
        gymnasium.register_envs(gymnasium_robotics)
    return _SaysSuccess(gymnasium.make(name, max_episode_steps=horizon, render_mode=render_mode))


class _SaysSuccess(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Refuses a step that does not say whether the task is done: a release that called it otherwise would count none."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        """Wrap; the spec tells how, so that Gymnasium can make it again."""
        RecordConstructorArgs.__init__(self)
        super().__init__(env)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment's own."""
        found = self.env.step(action)
        if SUCCESS_KEY not in found[4]:
            raise LpdsError(f"the environment's info has no {SUCCESS_KEY!r}, only {', '.join(found[4]) or 'nothing'}")
        return found
