"""The frame rule, case by case, on messages that are made by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.observe.history import Frame, History, Refused, Reset

MS = 1_000_000
TEXT = """
name: two_poses
rate_hz: 20
anchor: a
settle_s: 0.01
observations:
  a: {topic: /a, type: geometry_msgs/msg/PoseStamped, field: pose.position}
  b: {topic: /b, type: geometry_msgs/msg/PoseStamped, field: pose.position, max_age_s: 0.1}
action:
  fields: [{name: translation, kind: delta_position, state: a}]
  record: next_state
"""
CONTRACT = Contract.from_text(TEXT)


def pose(stamp_ns, x=0.0):
    """A PoseStamped by its attributes."""
    point, turn = SimpleNamespace(x=x, y=0.0, z=0.0), SimpleNamespace(x=0.0, y=0.0, z=0.0, w=1.0)
    stamp = SimpleNamespace(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return SimpleNamespace(
        header=SimpleNamespace(stamp=stamp, frame_id="base"),
        pose=SimpleNamespace(position=point, orientation=turn),
    )


class Robot:
    """Feeds a history and keeps what comes out of it."""

    def __init__(self, n_obs_steps=2):
        self.history = History(CONTRACT, n_obs_steps)
        self.events = []

    def send(self, topic, stamp_ms, x=0.0, arrival_ms=None):
        arrival = round((stamp_ms if arrival_ms is None else arrival_ms) * MS)
        events = self.history.push(topic, pose(round(stamp_ms * MS), x), arrival)
        self.events += events
        return events

    @property
    def times(self):
        return [event.time_ns / MS for event in self.events if isinstance(event, Frame)]


def test_a_frame_closes_when_every_stream_has_shown_its_time():
    """The last stream to arrive closes the frame; nothing waits for settle_s then."""
    robot = Robot()
    assert robot.send("/a", 100) == []
    (frame,) = robot.send("/b", 100)
    assert frame.time_ns == 100 * MS and frame.ages_ns == {"a": 0, "b": 0} and frame.first


def test_a_slow_stream_gives_its_newest_message_after_settling():
    """A frame waits settle_s, then takes what is there, and says how old it is."""
    robot = Robot()
    robot.send("/b", 60, x=6.0)
    robot.send("/a", 100)
    assert robot.history.poll(109 * MS) == []
    (frame,) = robot.history.poll(110 * MS)
    assert frame.arrays["b"][0] == 6.0 and frame.ages_ns["b"] == 40 * MS


def test_a_message_newer_than_the_frame_is_not_used():
    """Only stamps at or before the frame's time count, even when newer ones have arrived."""
    robot = Robot()
    for stamp in (80, 95, 120):
        robot.send("/b", stamp, x=stamp, arrival_ms=90)
    (frame,) = robot.send("/a", 100, arrival_ms=91)
    assert frame.arrays["b"][0] == 95


def test_a_stale_stream_refuses_the_frame_by_name_and_age():
    """Nothing is zero-filled and nothing stale is used."""
    robot = Robot()
    robot.send("/b", 0)
    robot.send("/a", 150)
    (refused,) = robot.history.poll(160 * MS)
    assert isinstance(refused, Refused) and refused.key == "b" and "0.150 s old" in refused.reason
    assert robot.history.window() is None


def test_a_stream_that_never_came_refuses_the_frame():
    """A missing stream is named."""
    robot = Robot()
    robot.send("/a", 150)
    (refused,) = robot.history.poll(160 * MS)
    assert refused.key == "b" and "no message" in refused.reason


def test_nan_refuses_the_frame_and_the_next_one_recovers():
    """A broken value never reaches the policy, and the window starts anew behind it."""
    robot = Robot()
    for i, x in enumerate((1.0, float("nan"), 3.0)):
        robot.send("/b", 50 * i, x=x)
        robot.send("/a", 50 * i)
    kinds = [type(event) for event in robot.events]
    assert kinds == [Frame, Refused, Frame]
    assert "not finite" in robot.events[1].reason
    assert robot.events[2].first and robot.history.window()["b"][:, 0].tolist() == [3.0, 3.0]


def test_equal_stamps_are_dropped_as_duplicates():
    """A message that is delivered twice makes no second frame."""
    robot = Robot()
    for _ in range(3):
        robot.send("/a", 100)
        robot.send("/b", 100)
    assert robot.times == [100]


def test_a_stamp_far_back_resets_history():
    """Simulated time restarted or a bag was looped: say so and start anew."""
    robot = Robot()
    for stamp in (1000, 1050, 0, 50):
        robot.send("/b", stamp, x=stamp)
        robot.send("/a", stamp)
    assert robot.times == [1000, 1050, 0, 50]
    resets = [event for event in robot.events if isinstance(event, Reset)]
    assert "backwards" in resets[0].reason
    assert robot.history.window()["b"][:, 0].tolist() == [0, 50]


def test_a_gap_starts_the_window_anew():
    """After one and a half frames without a frame, the window repeats the first new one."""
    robot = Robot()
    for stamp in (0, 50, 200):
        robot.send("/b", stamp, x=stamp)
        robot.send("/a", stamp)
    assert robot.events[-1].first
    assert robot.history.window()["b"][:, 0].tolist() == [200, 200]


def test_a_window_that_is_not_full_repeats_its_first_frame():
    """As in training, where windows at an episode's start are padded by repetition."""
    robot = Robot(n_obs_steps=3)
    robot.send("/b", 0, x=7.0)
    robot.send("/a", 0)
    assert robot.history.window()["b"][:, 0].tolist() == [7.0, 7.0, 7.0]


@pytest.mark.parametrize("camera_hz", [15, 19.5, 19.9, 20, 20.1, 20.5, 25, 30, 60, 120])
def test_frames_come_at_the_rate_whatever_the_camera_does(camera_hz):
    """Faster cameras are thinned to the rate; ones just off the rate lose no frame."""
    robot = Robot()
    n = 400
    for i in range(n):
        robot.send("/b", i * 1000 / camera_hz)
        robot.send("/a", i * 1000 / camera_hz)
    rate = (len(robot.times) - 1) / (robot.times[-1] - robot.times[0]) * 1000
    expected = camera_hz if abs(camera_hz - 20) < 1 or camera_hz < 20 else 20
    assert rate == pytest.approx(expected, rel=0.02)
    if camera_hz not in (
        15,
        25,
    ):  # 25 into 20 leaves out every fifth image: choose a rate that divides the camera's
        assert max(np.diff(robot.times)) <= 75


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-12, 12), min_size=20, max_size=60), st.integers(0, 2**31))
def test_jitter_within_a_quarter_period_loses_no_frame(jitter, seed):
    """Each message of a jittery camera at the contract's rate becomes a frame."""
    robot = Robot()
    stamps = [1000 + 50 * i + j / 2 for i, j in enumerate(jitter)]
    for stamp in stamps:
        robot.send("/b", stamp)
        robot.send("/a", stamp)
    assert robot.times == stamps


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["/a", "/b"]), st.integers(0, 400)), max_size=60))
def test_windows_depend_on_messages_and_their_order_alone(messages):
    """The same messages in the same order give the same events, whenever they arrive."""
    runs = []
    for shift in (0, 10**9):
        robot = Robot()
        for arrival, (topic, stamp) in enumerate(messages):
            robot.send(topic, stamp, x=float(stamp), arrival_ms=arrival * 3 + shift)
        runs.append(
            [(type(e).__name__, e.time_ns, getattr(e, "reason", None)) for e in robot.events]
        )
    assert runs[0] == runs[1]
    times = [time for kind, time, _ in runs[0] if kind == "Frame"]
    assert len(set(times)) == len(times) or any(kind == "Reset" for kind, _, _ in runs[0])


def test_a_measurement_counts_when_it_was_taken_not_when_it_was_stamped():
    """Stamps that are late by the contract's latency give the frames of true stamps, moved."""
    late = Contract.from_text(
        TEXT.replace("position}", "position, observation_latency_s: 0.03}", 1).replace(
            "max_age_s: 0.1", "max_age_s: 0.1, observation_latency_s: 0.02"
        )
    )
    told = []
    for contract, a_ms, b_ms in ((CONTRACT, 0, 0), (late, 30, 20)):
        history, frames = History(contract, 2), []
        for i in range(20):
            for topic, ms in (("/a", 50 * i + a_ms), ("/b", 50 * i - 7 + b_ms)):
                message = pose(1000 * MS + ms * MS, float(i))
                frames += history.push(topic, message, arrival_ns=50 * i * MS)
        frames += history.poll(10**10)
        told.append([(f.time_ns, f.ages_ns, f.arrays["b"].tolist()) for f in frames])
    assert told[0] == told[1] and len(told[0]) == 20
