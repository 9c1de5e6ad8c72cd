"""Pictures of the scene, and where a point of the world lies in them.

An OpenGL context belongs to the thread that made it: render from one thread only. The contexts are
made at the first picture, not before.
"""

from __future__ import annotations

import numpy as np

from diffusion_policy_ros.errors import UserError, did_you_mean
from diffusion_policy_ros.sim import opengl
from diffusion_policy_ros.sim.opengl import mujoco

# The scene's own settings are coarse, for 84x84 pixels: every facet is paid for in software.
_SMALL = 128
_ROUND = {"numslices": 32, "numstacks": 16}
_SHADOWS = {"shadowsize": 4096, "offsamples": 4}


class Cameras:
    """Render the named cameras of a scene.

    Args:
        model: compiled scene.
        data: its state; rendered as it is at the time of each call.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        if opengl.BACKEND in ("disable", "disabled", "off", "false", "0"):
            raise opengl.cannot_render("neither EGL nor OSMesa works here")
        self._model, self._data = model, data
        self._renderers: dict[tuple[int, int, bool], mujoco.Renderer] = {}

    def render(self, camera: str, height: int, width: int, shadows: bool = False) -> np.ndarray:
        """One picture.

        Args:
            camera: `agentview`, `robot0_eye_in_hand` or `overview`.
            height: pixels, at most 960.
            width: pixels, at most 1280.
            shadows: cast shadows and smooth edges; for pictures people look at: tens of
                milliseconds.

        Returns:
            (height, width, 3) uint8 RGB, top row first.
        """
        camera_id(self._model, camera)
        renderer = self._renderer(height, width, shadows)
        renderer.update_scene(self._data, camera=camera)
        return renderer.render()

    def _renderer(self, height: int, width: int, shadows: bool) -> mujoco.Renderer:
        key = (height, width, shadows)
        if key not in self._renderers:
            self._renderers[key] = self._make_renderer(*key)
        return self._renderers[key]

    def _make_renderer(self, height: int, width: int, shadows: bool) -> mujoco.Renderer:
        """A context takes these settings from the model when it is made, and never again."""
        settings = dict(_SHADOWS) if shadows else {}
        settings |= _ROUND if height > _SMALL else {}
        quality = self._model.vis.quality
        before = {name: getattr(quality, name) for name in settings}
        for name, value in settings.items():
            setattr(quality, name, value)
        try:
            return mujoco.Renderer(self._model, height, width)
        except (RuntimeError, ImportError, AttributeError, mujoco.FatalError) as error:
            raise opengl.cannot_render(f"MUJOCO_GL={opengl.BACKEND} gave '{error}'") from error
        finally:
            for name, value in before.items():
                setattr(quality, name, value)

    def close(self) -> None:
        """Free the OpenGL contexts."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()


def camera_id(model: mujoco.MjModel, camera: str) -> int:
    """The number of a camera; a `UserError` lists the names when there is none."""
    names = [model.camera(i).name for i in range(model.ncam)]
    if camera not in names:
        raise UserError(f"no camera '{camera}'", "simulator", did_you_mean(camera, names))
    return names.index(camera)


def project(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    points: np.ndarray,
    camera: str,
    height: int,
    width: int,
) -> np.ndarray:
    """Pixel coordinates of points, as the camera stands now.

    Args:
        model: compiled scene.
        data: its state.
        points: (..., 3) in the base frame, metres.
        camera: name.
        height: of the picture, pixels.
        width: of the picture, pixels.

    Returns:
        (..., 2) column and row, fractional, pixel centres at integers; NaN behind the camera.
        Points may lie outside the picture.
    """
    index = camera_id(model, camera)
    local = (np.asarray(points, float) - data.cam_xpos[index]) @ data.cam_xmat[index].reshape(3, 3)
    depth = np.where(local[..., 2] < -1e-6, -local[..., 2], np.nan)
    focal = 0.5 * height / np.tan(0.5 * np.deg2rad(model.cam_fovy[index]))
    column = 0.5 * (width - 1) + focal * local[..., 0] / depth
    row = 0.5 * (height - 1) - focal * local[..., 1] / depth
    return np.stack([column, row], axis=-1)
