"""What Gymnasium's MuJoCo environments need to be filmed well: a camera that follows, a light scene, a clean end."""

from __future__ import annotations

from typing import Any

import gymnasium

SHADOW_PIXELS = 1024


def prepare(env: gymnasium.Env[Any, Any]) -> None:
    """Set up an environment that has not drawn yet; one that is not Gymnasium's MuJoCo is left alone.

    The model's own camera ``track`` is taken where it has one: Gymnasium 1.4 looks at the origin instead, and what walks
    leaves the picture. No antialiasing (pictures are scaled down anyway) and a coarse shadow make drawing without a
    graphics card four times as fast.
    """
    renderer, model = _renderer(env), getattr(env.unwrapped, "model", None)
    if renderer is None or model is None:
        return
    model.vis.quality.offsamples = 0
    model.vis.quality.shadowsize = min(model.vis.quality.shadowsize, SHADOW_PIXELS)
    cameras = [model.camera(index).name for index in range(model.ncam)]
    if "track" in cameras:
        renderer.camera_id = cameras.index("track")


def release(env: gymnasium.Env[Any, Any]) -> None:
    """Close an environment, and before that free what it holds on the graphics card.

    Left to the garbage collector, these are freed in whatever context is current by then, and the next film is black.
    """
    for viewer in getattr(_renderer(env), "_viewers", {}).values():
        if hasattr(viewer, "con") and hasattr(viewer, "make_context_current"):
            viewer.make_context_current()
            viewer.con.free()
    env.close()


def _renderer(env: gymnasium.Env[Any, Any]) -> Any:
    return getattr(env.unwrapped, "mujoco_renderer", None)
