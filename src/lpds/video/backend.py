"""Drawing without a screen: which of OpenGL's backends works on this machine.

MuJoCo settles its backend when it is imported, and one that is broken may take the process with it. Each is therefore
tried in a process of its own, and the first that draws is put into the environment before MuJoCo is imported here.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Mapping

CANDIDATES: Mapping[str, tuple[str, ...]] = {"linux": ("egl", "osmesa"), "darwin": ("cgl",), "win32": ("glfw",)}
"""By ``sys.platform``, those of MuJoCo's that need no window, in the order they are tried; Windows has none but GLFW's."""
SPELT = {"egl": "EGL", "osmesa": "OSMesa", "cgl": "CGL", "glfw": "GLFW"}
PACKAGES = "libosmesa6 libegl1 libgl1 libglx-mesa0 libgl1-mesa-dri libegl-mesa0 libgles2 libglfw3 libopengl0"
TRIAL = """
import mujoco
model = mujoco.MjModel.from_xml_string('<mujoco><worldbody><geom size="1"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 16, 16) as renderer:
    renderer.update_scene(data)
    print("drawn", renderer.render().shape)
"""


def choose_backend() -> str | None:
    """Set ``MUJOCO_GL`` to what works: the caller's own choice if there is one, else the platform's, on Linux EGL, then OSMesa.

    Returns:
        The backend, or ``None`` if none works; the variable is then left alone.
    """
    own = os.environ.get("MUJOCO_GL", "").lower().strip()
    for name in (own,) if own else _candidates():
        if _draws(name):
            os.environ["MUJOCO_GL"] = name
            return name
    return None


def no_backend() -> str:
    """The line for a machine that cannot draw, and on Linux what to install."""
    own = os.environ.get("MUJOCO_GL")
    names = [SPELT[name] for name in _candidates()]
    none = f"neither {' nor '.join(names)} works" if len(names) > 1 else f"{names[0]} does not work"
    tried = f"MUJOCO_GL={own} does not work" if own else none
    install = f"; on Debian or Ubuntu: apt-get install {PACKAGES}" if sys.platform.startswith("linux") else ""
    return f"MuJoCo cannot draw without a screen here ({tried}){install}"


def _candidates() -> tuple[str, ...]:
    """What there is to try on this platform; another's MuJoCo takes GLFW alone."""
    return CANDIDATES.get(sys.platform, ("glfw",))


@functools.cache
def _draws(name: str) -> bool:
    """Whether a small scene comes out in a fresh process."""
    environment = {**os.environ, "MUJOCO_GL": name}
    try:
        done = subprocess.run(
            [sys.executable, "-c", TRIAL], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return "drawn" in done.stdout  # the exit code may be spoiled by what a driver does on leaving
