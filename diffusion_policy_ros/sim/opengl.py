"""Choose how MuJoCo renders, before MuJoCo is imported; the only place that imports it.

MuJoCo reads `MUJOCO_GL` once, at import, and its import fails outright where that library does not
work. So the libraries are tried here first: EGL, else OSMesa (at half the speed), else rendering
is disabled and everything but the cameras works. A `MUJOCO_GL` set by the user is respected.
"""

from __future__ import annotations

import ctypes
import os
import sys

from diffusion_policy_ros.errors import UserError

_EGL_PLATFORM_DEVICE = 0x313F
_MAX_DEVICES = 16
CURE = (
    "install Debian's libegl1 and libgl1-mesa-dri (or libosmesa6), "
    "or use the simulator without cameras"
)


def egl_works() -> bool:
    """Whether some EGL device gives a display, asked of the C library itself.

    PyOpenGL cannot be asked: once it has loaded one platform it cannot change to the other.
    """
    try:
        egl = ctypes.CDLL("libEGL.so.1")
        find = egl.eglGetProcAddress
        find.restype, find.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
        query = find(b"eglQueryDevicesEXT")
        display = find(b"eglGetPlatformDisplayEXT")
    except (OSError, AttributeError):
        return False
    return bool(query and display) and _any_device_initializes(egl, query, display)


def _any_device_initializes(egl: ctypes.CDLL, query: int, display: int) -> bool:
    pointer, count = ctypes.c_void_p, ctypes.c_int(0)
    query_devices = ctypes.CFUNCTYPE(
        ctypes.c_uint, ctypes.c_int, ctypes.POINTER(pointer), ctypes.POINTER(ctypes.c_int)
    )(query)
    get_display = ctypes.CFUNCTYPE(pointer, ctypes.c_uint, pointer, pointer)(display)
    egl.eglInitialize.argtypes = [pointer, pointer, pointer]
    devices = (pointer * _MAX_DEVICES)()
    if not query_devices(_MAX_DEVICES, devices, ctypes.byref(count)):
        return False
    displays = [get_display(_EGL_PLATFORM_DEVICE, d, None) for d in devices[: count.value]]
    return any(d and egl.eglInitialize(d, None, None) for d in displays)


def osmesa_works() -> bool:
    """Whether the OSMesa library can be loaded."""
    for name in ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so"):
        try:
            ctypes.CDLL(name)
            return True
        except OSError:
            continue
    return False


def choose_backend() -> str:
    """The value for ``MUJOCO_GL``: the user's own, ``egl``, ``osmesa`` or ``disable``."""
    if os.environ.get("MUJOCO_GL"):
        return os.environ["MUJOCO_GL"].lower()
    if "mujoco" in sys.modules:  # too late: this is what it has chosen
        return "glfw"
    if not sys.platform.startswith("linux"):
        return "glfw"
    if egl_works():
        return "egl"
    return "osmesa" if osmesa_works() else "disable"


def cannot_render(reason: str) -> UserError:
    """The error of a machine without OpenGL.

    Args:
        reason: what was found.
    """
    return UserError(f"cannot render the cameras: {reason}", "simulator", CURE)


BACKEND = choose_backend()
os.environ["MUJOCO_GL"] = BACKEND

try:
    import mujoco
except ModuleNotFoundError as error:
    raise UserError(
        f"Python module {error.name} is missing",
        "simulator",
        "pip install 'diffusion_policy_ros[sim]'",
    ) from None
except (ImportError, AttributeError, RuntimeError) as error:  # a backend the user forced, broken
    raise cannot_render(f"MUJOCO_GL={BACKEND} failed ({error})") from None

__all__ = ["BACKEND", "cannot_render", "choose_backend", "mujoco"]
