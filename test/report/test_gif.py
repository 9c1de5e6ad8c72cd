"""A rollout as a GIF."""

import numpy as np
from PIL import Image

from diffusion_policy_ros.report.gif import NEAR, RolloutGif


def picture(grey: int) -> np.ndarray:
    """A grey picture, 60 rows by 80 columns."""
    return np.full((60, 80, 3), grey, np.uint8)


def test_every_picture_is_there_for_its_time(tmp_path):
    """As many frames as were added, in their size, shown for the period."""
    gif = RolloutGif(tmp_path / "new" / "rollout.gif", period_ms=120)
    for i in range(5):
        gif.add(picture(40 * i), np.empty((0, 2)), f"{i}")
    with Image.open(gif.save()) as saved:
        assert (saved.n_frames, saved.size, saved.info["duration"]) == (5, (80, 60), 120)
        assert saved.info["loop"] == 0
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["rollout.gif"]


def test_the_chunk_is_drawn_where_it_leads(tmp_path):
    """Its first point has the near colour; what lies behind the camera is left out."""
    gif = RolloutGif(tmp_path / "rollout.gif")
    gif.add(picture(128), np.array([[20.0, 30.0], [40.0, 30.0], [np.nan, np.nan]]))
    with Image.open(gif.save()) as saved:
        pixels = np.asarray(saved.convert("RGB")).astype(int)
    assert np.abs(pixels[30, 20] - NEAR).max() < 24
    assert (np.abs(pixels[30, 30] - 128).max() > 24) and (np.abs(pixels[5, 5] - 128).max() < 8)


def test_nothing_is_written_without_a_picture(tmp_path):
    """An empty rollout leaves no file."""
    assert RolloutGif(tmp_path / "rollout.gif").save() is None
    assert not list(tmp_path.iterdir())
