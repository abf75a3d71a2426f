"""Pictures of a robosuite model without a screen."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from lpds.envs.robosuite import NO_RENDERING, rendering_backend
from lpds.errors import LpdsError, one_line


def check_drawing() -> None:
    """Refuse early where nothing can be drawn.

    Raises:
        LpdsError: this machine has no OpenGL, or MUJOCO_GL says so.
    """
    with rendering_backend() as backend:
        if backend == NO_RENDERING:
            raise _no_drawing(ImportError("there is no OpenGL"))


def _no_drawing(reason: Exception) -> LpdsError:
    from lpds.video.backend import PACKAGES

    return LpdsError(
        f"frames cannot be drawn ({one_line(reason)}): on Debian or Ubuntu: apt-get install {PACKAGES}, "
        "then set MUJOCO_GL to egl or osmesa"
    )


class Pictures:
    """What the cameras of a model see, at one size."""

    def __init__(self, sim: Any, height: int, width: int) -> None:
        """Open a drawing context.

        Args:
            sim: robosuite's, compiled; it may be reset, not compiled anew.
            height: H, pixels.
            width: W, pixels.

        Raises:
            LpdsError: there is no OpenGL to draw with.
        """
        from gymnasium.envs.mujoco.mujoco_rendering import OffScreenViewer

        check_drawing()  # first, since a viewer half made complains when it is freed
        model = sim.model._model
        model.vis.global_.offheight = max(model.vis.global_.offheight, height)
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, width)
        try:
            with warnings.catch_warnings(), rendering_backend():
                warnings.simplefilter("ignore")  # of a window system that is not there
                self._viewer: Any = OffScreenViewer(model, sim.data._data, width, height)
        except Exception as error:
            raise _no_drawing(error) from error
        self._viewer.vopt.geomgroup[0] = 0  # collision shapes
        self._ids = sim.model.camera_name2id

    def draw(self, camera: str) -> npt.NDArray[np.uint8]:
        """An RGB frame [H, W, 3], upright, from a camera of the model."""
        self._viewer.make_context_current()
        return np.asarray(self._viewer.render("rgb_array", camera_id=self._ids(camera)), np.uint8)

    def close(self) -> None:
        """Free the context."""
        self._viewer.make_context_current()
        self._viewer.con.free()
        self._viewer.close()
