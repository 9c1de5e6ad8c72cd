"""What a replay's pictures show."""

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs matplotlib: pip install -e '.[plot]'")

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.replay.reading import Replayed
from diffusion_policy_ros.report import replay_plots
from diffusion_policy_ros.runtime.tail import Chunk

CONTRACT = Contract.load("mini_lift")
PERIOD, FRAMES = CONTRACT.period_ns, 80


@pytest.fixture
def recording():
    """Four seconds in which the policy is most wrong at second one, then at second three."""
    chunks, done = {}, np.zeros((FRAMES, 7))
    for frame in range(0, FRAMES, 4):
        wrong = {20: 0.03, 24: 0.02, 60: 0.01}.get(frame, 0.001)
        actions = np.zeros((8, 7))
        actions[:, 0] = wrong
        chunks[frame] = Chunk(frame * PERIOD, actions, PERIOD)
    times = [frame * PERIOD for frame in range(FRAMES)]
    made = Replayed("made", times, [0] * FRAMES, {}, done, "made", chunks)
    made.pictures = {frame: np.full((4, 6, 3), frame, np.uint8) for frame in chunks}
    return made


def test_pictures_are_of_the_worst_moments_not_of_one_moment_several_times(recording):
    """The largest error first, and none within the same second."""
    ranked = sorted(replay_plots._ranked([recording], CONTRACT, 4), key=lambda entry: -entry[0])
    chosen = [frame for _, _, frame in replay_plots._apart(ranked)]
    assert chosen[:2] == [20, 60] and 24 not in chosen
    png = replay_plots.pictures([recording], CONTRACT, 4)
    assert png is not None and png.startswith(b"\x89PNG")


def test_a_robot_without_cameras_has_no_pictures(recording):
    """Nothing is drawn, and nothing fails."""
    recording.pictures = {}
    assert replay_plots.pictures([recording], CONTRACT, 4) is None


def test_a_chunk_is_drawn_up_to_the_next_one_and_its_tail_apart(recording):
    """Steps that a newer chunk replaces are not counted as executed; breaks lie between chunks."""
    seconds = np.array(recording.times_ns) / 1e9
    times, values, steps = replay_plots._chunk_lines(recording, seconds, parity=0)
    assert len(times) == len(values) == len(steps) == 10 * 9
    assert steps[:9].tolist() == [0, 1, 2, 3] + [np.inf] * 5
    assert np.isnan(values[8]).all() and np.isfinite(values[:8]).all()
