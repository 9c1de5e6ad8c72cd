"""Who holds when and why, message by message, without ROS."""

import dataclasses
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.runtime.runner import Sampling
from diffusion_policy_ros.runtime.supervisor import Supervisor, beyond_limits

MS = 1_000_000
PERIOD = 50 * MS
CONTRACT = Contract.from_text("""
name: one_pose
rate_hz: 20
anchor: a
observations:
  a: {topic: /a, type: geometry_msgs/msg/PoseStamped, field: pose.position}
  b: {topic: /b, type: geometry_msgs/msg/PoseStamped, field: pose.position, max_age_s: 0.1}
action:
  fields: [{name: translation, kind: delta_position, state: a}]
  record: next_state
  limits: {translation: 0.05}
""")


def pose(stamp_ns, x=0.0):
    """A PoseStamped by its attributes."""
    stamp = SimpleNamespace(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    point = SimpleNamespace(x=x, y=0.0, z=0.0)
    return SimpleNamespace(
        header=SimpleNamespace(stamp=stamp), pose=SimpleNamespace(position=point)
    )


class Network:
    """An engine that answers at once, or when it is let, or with what it is told."""

    def __init__(self):
        self.go = threading.Event()
        self.go.set()
        self.begun = threading.Event()
        self.value = 0.0

    def sample(self, observation, **_):
        self.begun.set()
        self.go.wait(10)
        return torch.full((1, 16, 3), self.value)


class Robot:
    """Messages at 20 Hz into a supervisor, and all that it publishes."""

    def __init__(self):
        self.network, self.published, self.changes = Network(), [], []
        self.came = threading.Condition()
        self.now = 1_000 * MS
        sampling = Sampling(1, "ddim", replan_steps=1, n_action_steps=8)
        self.pilot = Supervisor(
            self.network, CONTRACT, 2, sampling, self.publish, lambda: self.now, self.change
        )
        self.pilot.start(self.now)

    def publish(self, chunk):
        with self.came:
            self.published.append(chunk)
            self.came.notify_all()

    def change(self):
        self.changes.append(self.pilot.state)

    def tick(self, x=0.0, topics=("/b", "/a"), shift=0):
        self.now += PERIOD
        for topic in topics:
            self.pilot.push(topic, pose(self.now + shift, x), self.now)

    def chunks(self, count):
        """Wait until so many were published, holds included."""
        with self.came:
            assert self.came.wait_for(lambda: len(self.published) >= count, 10)
        return self.published

    @property
    def is_holding(self):
        return len(self.published[-1].actions) == 0


@pytest.fixture
def robot():
    """One that runs: a hold at the start, then a chunk."""
    robot = Robot()
    robot.tick()
    robot.chunks(2)
    yield robot
    robot.network.go.set()
    robot.pilot.stop()


def test_it_starts_with_a_hold_and_runs_with_the_first_chunk(robot):
    """A hold comes first, the chunk has its frame's time, and both changes are told."""
    hold, chunk = robot.published
    assert len(hold.actions) == 0 and hold.actions.shape == (0, 3)
    assert chunk.stamp_ns == 1_050 * MS and chunk.actions.shape == (8, 3)
    assert robot.changes == ["holding: waiting for fresh messages", "running"]


def test_a_refused_frame_holds_in_the_same_call_and_only_once(robot):
    """NaN: the hold is published by the call that brought the message; later ones add none."""
    for _ in range(3):
        robot.tick(x=float("nan"))
        assert robot.is_holding and len(robot.published) == 3
    assert "a (/a): not finite" in robot.pilot.state and robot.pilot.refused == 3
    robot.tick()
    robot.chunks(4)
    assert not robot.is_holding and robot.pilot.state == "running"
    assert "not finite" in robot.pilot.last_hold


def test_a_stream_that_stops_is_named_with_its_age(robot):
    """Frames are made until it is older than the contract allows, then refused by name."""
    for _ in range(3):
        robot.tick(topics=("/a",))
        robot.pilot.poll(robot.now + 10 * MS)
    assert robot.is_holding
    assert "b (/b): newest message is 0.150 s old, the contract allows 0.1 s" in robot.pilot.state


def test_an_anchor_that_stops_is_named_with_its_age(robot):
    """No frame for 1.5 periods and the time to settle."""
    assert robot.pilot.limit_ns == 85 * MS
    robot.pilot.overdue(robot.now + 85 * MS)
    assert robot.is_holding
    assert robot.pilot.state == "holding: a (/a): no message for 0.085 s"


def test_an_anchor_that_stands_still_is_told_from_one_that_is_silent(robot):
    """A camera that repeats one image is alive, and of no use."""
    for _ in range(3):
        robot.pilot.push("/a", pose(1_050 * MS), robot.now)
        robot.now += PERIOD
    robot.pilot.overdue(robot.now)
    assert "messages come, but their stamps made no frame for 0.150 s" in robot.pilot.state


def test_stamps_that_run_backwards_hold_and_start_anew(robot):
    """The hold comes before the chunk that follows from the new time."""
    robot.tick(shift=-(10**9))
    robot.chunks(4)
    assert len(robot.published[2].actions) == 0
    assert robot.published[3].stamp_ns == robot.now - 10**9
    assert "backwards" in robot.pilot.last_hold


def test_no_chunk_that_was_begun_before_a_hold_comes_after_it(robot):
    """What the network was computing when the fault came is dropped."""
    robot.network.go.clear()
    robot.network.begun.clear()
    robot.tick()
    assert robot.network.begun.wait(10)
    robot.tick(x=float("nan"))
    robot.network.go.set()
    robot.tick()
    chunk = robot.chunks(4)[3]
    assert len(robot.published[2].actions) == 0 and chunk.stamp_ns == robot.now


def test_an_output_that_is_not_finite_holds_until_one_is(robot):
    """The inference's fault is a hold like any other."""
    robot.network.value = float("nan")
    robot.tick()
    robot.chunks(3)
    assert robot.is_holding
    assert robot.pilot.state == "holding: policy: the network's output is not finite"
    robot.network.value = 0.1
    robot.tick()
    robot.chunks(4)
    assert robot.pilot.state == "running" and robot.pilot.clamped == 8


def test_told_to_hold_it_does_until_told_otherwise(robot):
    """Whatever comes, frames or faults; then the next frame makes a chunk."""
    robot.pilot.set_hold(True)
    robot.tick()
    robot.tick(x=float("nan"))
    assert len(robot.published) == 3 and robot.pilot.state == "holding: told to hold"
    robot.pilot.set_hold(False)
    assert robot.is_holding
    robot.tick()
    robot.chunks(4)
    assert robot.pilot.state == "running"


def test_reset_forgets_the_window(robot):
    """The next frame begins a new one."""
    robot.pilot.reset(robot.now)
    assert robot.is_holding and robot.pilot.history.window() is None
    robot.tick()
    assert robot.pilot.history.frames[-1].first
    robot.chunks(4)


def test_stop_says_hold_even_if_it_held_before(robot):
    """The last word is a hold, and nothing follows it."""
    robot.pilot.reset(robot.now)
    assert robot.pilot.stop() and len(robot.published) == 4 and robot.is_holding
    robot.tick()
    assert len(robot.published) == 4 and robot.pilot.state == "inactive"


@pytest.mark.parametrize(
    "stamp, words",
    [
        (lambda now: 0, "b (/b): its stamp is zero; let its driver fill header.stamp"),
        (lambda now: now + 3_600_000 * MS, "b (/b): its stamp is 3600.000 s ahead"),
    ],
)
def test_a_stamp_that_cannot_be_holds_until_the_topic_has_another(robot, stamp, words):
    """No frame goes without it in between, although the message before is young enough."""
    robot.now += PERIOD
    robot.pilot.push("/b", pose(stamp(robot.now)), robot.now)
    robot.pilot.push("/a", pose(robot.now), robot.now)
    robot.pilot.poll(robot.now + 10 * MS)
    assert len(robot.published) == 3 and robot.is_holding and words in robot.pilot.state
    robot.tick()
    robot.chunks(4)
    assert robot.pilot.state == "running" and robot.published[3].stamp_ns == robot.now


def test_without_a_clock_it_says_so(robot):
    """Simulated time is waited for, and nobody tells it."""
    robot.pilot.now_ns = lambda: 0
    robot.tick()
    assert "b (/b): the node has no time yet; publish /clock" in robot.pilot.state


def test_a_clock_that_lags_a_little_is_none_of_its_business(robot):
    """Half a second: simulated time comes in steps, and clocks differ."""
    robot.tick(shift=500 * MS)
    robot.chunks(4)  # a hold for what seems a gap of 500 ms, and the chunk
    assert robot.pilot.state == "running"


def test_it_says_hold_when_no_chunk_has_come_in_time(robot):
    """One frame after the last action; the inference goes on, but what it finds is too late."""
    robot.network.go.clear()
    for _ in range(8):
        robot.tick()
    assert len(robot.published) == 2, "the chunk in hand lasts so long"
    robot.tick()
    assert robot.is_holding and robot.pilot.holds == 2
    assert "policy: no chunk for 0.450 s, and one lasts 0.400 s" in robot.pilot.state
    robot.network.go.set()
    robot.chunks(4)
    assert robot.published[3].stamp_ns == robot.now and robot.pilot.late == 1
    assert robot.pilot.state == "running"


def test_chunks_that_end_before_the_next_is_begun_name_the_cure(robot):
    """The setting is to blame, however quick the inference."""
    whole = dataclasses.replace(robot.pilot.runner.sampling, replan_steps=8)
    robot.pilot.runner.sampling = whole
    robot.network.go.clear()
    for _ in range(9):
        robot.tick()
    assert robot.pilot.state.endswith("lasts 0.400 s; set replan_steps to 4")
    robot.network.go.set()


def test_barred_it_holds_whatever_comes(robot):
    """And says why, until it is not barred any more."""
    robot.pilot.bar("two clocks")
    robot.tick()
    robot.tick(x=float("nan"))
    assert len(robot.published) == 3 and robot.pilot.state == "holding: two clocks"
    robot.pilot.bar("")
    robot.tick()
    robot.chunks(4)
    assert robot.pilot.state == "running"


def test_rates_and_ages_follow_arrivals(robot):
    """Twenty a second while they come, and fewer the longer none does."""
    for _ in range(20):
        robot.tick()
    arrivals = robot.pilot.arrivals["/a"]
    assert arrivals.count == 21 and arrivals.delay_s == 0.0
    assert arrivals.rate_hz(robot.now) == pytest.approx(20)
    assert arrivals.rate_hz(robot.now + 1_050 * MS) == pytest.approx(10)
    assert arrivals.age_s(robot.now + 30 * MS) == 0.03


def test_actions_beyond_the_limits_are_counted():
    """Each action once, however much it exceeds."""
    actions = np.array([[0.05, 0, 0], [0.04, 0.04, 0], [0, 0, -9]])
    assert beyond_limits(actions, CONTRACT) == 2


def test_stop_need_not_wait_for_an_inference_that_stalls(robot):
    """It holds at once; what comes of the inference later is published neither then nor later."""
    robot.network.go.clear()
    robot.network.begun.clear()
    robot.tick()
    assert robot.network.begun.wait(10)
    count = len(robot.published)
    assert not robot.pilot.stop(timeout_s=0.0)
    assert robot.is_holding and len(robot.published) == count + 1
    robot.pilot.start(robot.now)
    robot.network.go.set()
    robot.tick()
    robot.chunks(count + 3)
    assert robot.published[-1].stamp_ns == robot.now
    assert len(robot.published) == count + 3
