"""Who holds when and why, message by message, without ROS."""

import dataclasses

import numpy as np
import pytest
from pose_robot import CONTRACT, MS, PERIOD, Robot, pose

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.runtime.counts import beyond_limits
from diffusion_policy_ros.runtime.provenance import read_provenance


@pytest.fixture
def robot():
    """One that runs: a hold at the start, then a chunk."""
    robot = Robot()
    robot.tick()
    assert len(robot.published) == 2
    return robot


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
    assert "a (/a): not finite" in robot.loop.state and robot.loop.counts.refused == 3
    robot.tick()
    assert len(robot.published) == 4
    assert not robot.is_holding and robot.loop.state == "running"
    assert "not finite" in robot.loop.last_hold


def test_a_stream_that_stops_is_named_with_its_age(robot):
    """Frames are made until it is older than the contract allows, then refused by name."""
    for _ in range(3):
        robot.tick(topics=("/a",))
        robot.loop.poll(robot.now + 10 * MS)
    assert robot.is_holding
    assert "b (/b): newest message is 0.150 s old, the contract allows 0.1 s" in robot.loop.state


def test_an_anchor_that_stops_is_named_with_its_age(robot):
    """No frame for 1.5 periods and the time to settle."""
    assert robot.loop.frame_timeout_ns == 85 * MS
    robot.loop.overdue(robot.now + 85 * MS)
    assert robot.is_holding
    assert robot.loop.state == "holding: a (/a): no message for 0.085 s"


def test_a_frame_tells_the_time_as_well_as_a_clock_that_comes_after_it(robot):
    """Else the next /clock, if it overtakes its frame, would be two periods after the last one."""
    robot.tick(shift=PERIOD)
    assert robot.loop.frame_time_ns == robot.now + PERIOD and not robot.is_holding


def test_an_anchor_that_stands_still_is_told_from_one_that_is_silent(robot):
    """A camera that repeats one image is alive, and of no use."""
    for _ in range(3):
        robot.loop.push("/a", pose(1_050 * MS), robot.now)
        robot.now += PERIOD
    robot.loop.overdue(robot.now)
    assert "messages come, but their stamps made no frame for 0.150 s" in robot.loop.state


def test_stamps_that_run_backwards_hold_and_start_anew(robot):
    """The hold comes before the chunk that follows from the new time."""
    robot.tick(shift=-(10**9))
    assert len(robot.published) == 4
    assert len(robot.published[2].actions) == 0
    assert robot.published[3].stamp_ns == robot.now - 10**9
    assert "backwards" in robot.loop.last_hold


def test_no_chunk_that_was_begun_before_a_hold_comes_after_it(robot):
    """What the network was computing when the fault came is dropped."""
    robot.stalls = True
    robot.tick()
    robot.tick(x=float("nan"))
    robot.finish()
    robot.tick()
    hold, chunk = robot.published[2:]
    assert len(hold.actions) == 0 and chunk.stamp_ns == robot.now


def test_an_output_that_is_not_finite_holds_until_one_is(robot):
    """The inference's fault is a hold like any other."""
    robot.network.value = float("nan")
    robot.tick()
    assert len(robot.published) == 3
    assert robot.is_holding
    assert robot.loop.state == "holding: policy: the network's output is not finite"
    robot.network.value = 0.1
    robot.tick()
    assert len(robot.published) == 4
    assert robot.loop.state == "running" and robot.loop.counts.clamped == 8


def test_what_could_not_be_taken_holds_until_frames_return(robot):
    """Once, by name, and counted; an inactive loop does not care."""
    before = len(robot.published)
    for _ in range(2):
        assert robot.loop.refuse("/a", "/a: ZeroDivisionError()", robot.now)
    assert robot.loop.state == "holding: /a: ZeroDivisionError()"
    assert len(robot.published) == before + 1 and robot.loop.counts.refused == 2
    robot.tick()
    assert robot.loop.state == "running"
    robot.loop.stop()
    assert robot.loop.refuse("/a", "too late", robot.now) == []


def test_told_to_hold_it_does_until_told_otherwise(robot):
    """Whatever comes, frames or faults; then the next frame makes a chunk."""
    robot.loop.set_hold(True)
    robot.tick()
    robot.tick(x=float("nan"))
    assert len(robot.published) == 3 and robot.loop.state == "holding: told to hold"
    robot.loop.set_hold(False)
    assert robot.is_holding
    robot.tick()
    assert len(robot.published) == 4
    assert robot.loop.state == "running"


def test_reset_forgets_the_window(robot):
    """The next frame begins a new one."""
    robot.loop.reset(robot.now)
    assert robot.is_holding and robot.loop.history.window() is None
    robot.tick()
    assert robot.loop.history.frames[-1].first
    assert len(robot.published) == 4


def test_stop_says_hold_even_if_it_held_before(robot):
    """The last word is a hold, and nothing follows it."""
    robot.loop.reset(robot.now)
    robot.loop.stop()
    assert len(robot.published) == 4 and robot.is_holding
    robot.tick()
    assert len(robot.published) == 4 and robot.loop.state == "inactive"


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
    robot.loop.push("/b", pose(stamp(robot.now)), robot.now)
    robot.loop.push("/a", pose(robot.now), robot.now)
    robot.loop.poll(robot.now + 10 * MS)
    assert len(robot.published) == 3 and robot.is_holding and words in robot.loop.state
    robot.tick()
    assert len(robot.published) == 4
    assert robot.loop.state == "running" and robot.published[3].stamp_ns == robot.now


def test_without_a_clock_it_says_so(robot):
    """Simulated time is waited for, and nobody tells it."""
    robot.loop.now_ns = lambda: 0
    robot.tick()
    assert "b (/b): the node has no time yet; publish /clock" in robot.loop.state


def test_a_clock_that_lags_a_little_is_none_of_its_business(robot):
    """Half a second: simulated time comes in steps, and clocks differ."""
    robot.tick(shift=500 * MS)
    assert len(robot.published) == 4, "a hold for what seems a gap of 500 ms, and the chunk"
    assert robot.loop.state == "running"


def test_it_says_hold_when_no_chunk_has_come_in_time(robot):
    """One frame after the last action; the inference goes on, but what it finds is too late."""
    robot.stalls = True
    for _ in range(8):
        robot.tick()
    assert len(robot.published) == 2, "the chunk in hand lasts so long"
    robot.tick()
    assert robot.is_holding and robot.loop.counts.holds == 2
    assert "policy: no chunk for 0.450 s, and one lasts 0.400 s" in robot.loop.state
    robot.finish()
    assert len(robot.published) == 4
    assert robot.published[3].stamp_ns == robot.now and robot.loop.counts.late == 1
    assert robot.loop.state == "running"


def test_chunks_that_end_before_the_next_is_begun_name_the_cure(robot):
    """The setting is to blame, however quick the inference."""
    whole = dataclasses.replace(robot.loop.sampling, replan_steps=8)
    robot.loop.sampling = whole
    robot.stalls = True
    for _ in range(9):
        robot.tick()
    assert robot.loop.state.endswith("lasts 0.400 s; set replan_steps to 4")


def test_inhibited_it_holds_whatever_comes(robot):
    """And says why, until it is not barred any more."""
    robot.loop.inhibit("two clocks")
    robot.tick()
    robot.tick(x=float("nan"))
    assert len(robot.published) == 3 and robot.loop.state == "holding: two clocks"
    robot.loop.inhibit("")
    robot.tick()
    assert len(robot.published) == 4
    assert robot.loop.state == "running"


def test_rates_and_ages_follow_arrivals(robot):
    """Twenty a second while they come, and fewer the longer none does."""
    for _ in range(20):
        robot.tick()
    arrivals = robot.loop.arrivals["/a"]
    assert arrivals.count == 21 and arrivals.delay_s == 0.0
    assert arrivals.rate_hz(robot.now) == pytest.approx(20)
    assert arrivals.rate_hz(robot.now + 1_050 * MS) == pytest.approx(10)
    assert arrivals.age_s(robot.now + 30 * MS) == 0.03


JOINTS = """
name: joints
rate_hz: 20
anchor: q
observations:
  q: {topic: /q, type: sensor_msgs/msg/JointState, names: [a, b]}
  p: {topic: /p, type: geometry_msgs/msg/PoseStamped, field: pose.position}
action:
  fields:
    - {name: arm, kind: joint_position, size: 2, state: q}
    - {name: tool, kind: position, state: p}
  record: next_state
  limits:
    {joint_min: [-1, -2], joint_max: [1, 2], workspace_min: [0, 0, 0], workspace_max: [1, 1, 1]}
"""


@pytest.mark.parametrize(
    "contract, actions, beyond",
    [
        (CONTRACT, [[0.05, 0, 0], [0.04, 0.04, 0], [0, 0, -9]], 2),
        (Contract.from_text(JOINTS), [[1, 2, 0, 0, 1], [1.1, 0, 0, 0, 0], [0, -2.1, 0, 0, 0]], 2),
        (Contract.from_text(JOINTS), [[0, 0, 0, 0, 1.1], [0, 0, -0.1, 0, 0], [9, 9, 9, 9, 9]], 3),
    ],
    ids=["deltas", "joints", "workspace"],
)
def test_actions_beyond_the_limits_are_counted(contract, actions, beyond):
    """Each action once, however much it exceeds, of whatever kind."""
    assert beyond_limits(np.array(actions, dtype=float), contract) == beyond


def test_what_is_sampled_over_a_stop_and_a_start_comes_to_nothing(robot):
    """Stop holds at once; of the inference that went on nothing is published, then or later."""
    robot.stalls = True
    robot.tick()
    count = len(robot.published)
    robot.loop.stop()
    assert robot.is_holding and len(robot.published) == count + 1
    robot.loop.start(robot.now)
    robot.finish()
    assert len(robot.published) == count + 2 and robot.is_holding
    robot.tick()
    assert robot.published[-1].stamp_ns == robot.now and len(robot.published) == count + 3


def test_told_to_hold_it_holds_over_a_stop_and_a_start(robot):
    """Also when it was told while it was inactive; a start is nobody's release."""
    robot.loop.set_hold(True)
    robot.loop.stop()
    assert robot.loop.state == "inactive; told to hold"
    robot.loop.start(robot.now)
    robot.tick()
    assert robot.is_holding and robot.loop.state == "holding: told to hold"
    robot.loop.stop()
    count = len(robot.published)
    robot.loop.set_hold(False)
    assert robot.loop.state == "inactive"
    robot.loop.set_hold(True)
    assert robot.loop.state == "inactive; told to hold"
    assert len(robot.published) == count, "there is nobody to be told"
    robot.loop.start(robot.now)
    robot.tick()
    assert robot.loop.state == "holding: told to hold"
    robot.loop.set_hold(False)
    robot.tick()
    assert robot.loop.state == "running"


def test_supply_is_watched_anew_after_a_hold(robot):
    """How long what was sent before it lasted is of no account then."""
    robot.loop.reset(robot.now)
    robot.now += 100 * PERIOD
    robot.stalls = True
    robot.tick()
    robot.finish()
    assert robot.loop.counts.holds == 2 and robot.loop.state == "running"
    robot.loop.reset(robot.now)
    robot.now += 100 * PERIOD
    robot.stalls = True
    for _ in range(9):
        robot.tick()
    assert robot.loop.state == "holding: reset; waiting for fresh messages"
    robot.tick()
    assert "no chunk for 0.450 s" in robot.loop.state, "nine frames after the first"


def test_each_reason_to_hold_is_told_once_however_its_numbers_count(robot):
    """Robots' names have digits, too: those are no amounts."""
    robot.changes.clear()
    for number in (1, 1, 2):
        for age in (0.1, 0.2):
            robot.loop.hold(f"pose{number} (/arm{number}/pose): no message for {age} s")
    assert [change.split(" (")[0] for change in robot.changes] == [
        "holding: pose1",
        "holding: pose2",
    ]


@pytest.mark.parametrize("calls", ["chunk", "hold"])
def test_what_cannot_be_published_is_named_and_the_next_is_tried(robot, calls):
    """Whoever publishes raises: the loop holds, says so, and goes on with the next frame."""

    def publish(chunk):
        if bool(len(chunk.actions)) == (calls == "chunk"):
            raise RuntimeError("no memory left")
        robot.published.append(chunk)

    robot.loop.publish = publish
    robot.tick(x=0.0 if calls == "chunk" else float("nan"))
    assert "published: RuntimeError('no memory left')" in robot.loop.state
    assert robot.loop.counts.failures == (calls == "chunk")
    robot.loop.publish = robot.published.append
    robot.tick()
    assert robot.loop.state == "running" and robot.published[-1].stamp_ns == robot.now


def test_observations_that_come_too_late_are_named(robot):
    """Older than a chunk lasts: every action is past before it is there, however quick all is."""
    robot.tick(shift=-400 * MS)
    assert "backwards" in robot.loop.last_hold and robot.loop.state == "running"
    robot.loop.reset(robot.now)
    robot.tick(shift=-10_000 * MS)
    assert robot.loop.state == (
        "running, on what is past: a (/a) is 10.000 s old when it comes; "
        "b (/b) is 10.000 s old when it comes; a chunk lasts 0.400 s"
    )
    robot.loop.reset(robot.now)
    robot.tick()
    assert robot.loop.state == "running"


EARLY = CONTRACT.text.replace("state: a}", "state: a, actuation_latency_s: 0.21}")


def test_actions_that_are_sent_early_are_not_changed_any_more():
    """A chunk two frames late, sent 0.16 s early: six of the one before it are fixed, not two."""
    robot = Robot(Contract.from_text(EARLY), chunk_join="rtc")
    assert robot.loop.contract.sent_early_ns(robot.loop.contract.action.fields[0]) == 160 * MS
    for _ in range(4):
        robot.stalls = True
        robot.tick()
        robot.now += 2 * PERIOD
        robot.stalls = False
        robot.infer()
        assert robot.loop.delay_frames == 6
    weights = robot.network.follows[-1].weights.tolist()
    first, known = 1, 13
    assert weights[: first + 6] == [1.0] * (first + 6), "what is sent before it can be there"
    assert 0 < weights[first + 6] < 1 and weights[known:] == [0.0] * (16 - known)


def test_replan_steps_frames_lie_between_inferences():
    """With replan_steps 4, every fourth frame is sampled from; after a hold, the next one."""
    robot = Robot(replan_steps=4)
    stamps = []
    for _ in range(9):
        robot.tick()
        stamps.append(robot.now)
    chunks = [chunk.stamp_ns for chunk in robot.published[1:]]
    assert chunks == [stamps[0], stamps[4], stamps[8]]
    robot.loop.reset(robot.now)
    robot.tick()
    assert robot.published[-1].stamp_ns == robot.now


def test_settings_change_from_the_next_chunk_on(robot):
    """A chunk is sampled with one set of settings, whole, and its noise tells which."""
    robot.loop.sampling = dataclasses.replace(robot.loop.sampling, num_inference_steps=7)
    robot.loop.seed(3)
    robot.tick()
    before, after = (read_provenance(str(robot.loop.provenance))[i] for i in (0, -1))
    assert (before.num_inference_steps, before.noise_seed) == (1, 7)
    assert (after.num_inference_steps, after.noise_seed) == (7, 3)


@pytest.mark.parametrize("join", ["rtc", "temporal_ensemble"])
def test_nothing_joins_what_was_before_a_hold(join):
    """Neither a chunk that was published nor one that was in the making then."""
    robot = Robot(chunk_join=join)
    robot.network.value = 1.0
    robot.tick()
    robot.stalls = True
    robot.tick()
    robot.loop.reset(robot.now)
    robot.finish()
    robot.network.value = 0.0
    robot.tick()
    assert robot.network.follows[-1] is None
    assert (robot.published[-1].actions == 0).all(), "an average would be more"


def test_the_delay_to_reckon_with_is_the_measured_one(robot):
    """From frame to publication, the median of late, in whole frames; clocks may disagree."""
    assert robot.loop.delay_frames == 0
    for late in (2.3, 2.4, 7.0, 7.0):
        robot.stalls = True
        robot.tick()
        came = robot.now
        robot.now += round(late * PERIOD)
        robot.finish()
        robot.now = came
    assert robot.loop.delay_frames == 3
    for _ in range(5):
        robot.tick(shift=500 * MS)
    assert robot.loop.delay_frames == 0


def test_a_chunk_after_the_last_one_ran_out_is_a_deadline_miss():
    """Counted by the clock that frames are stamped by."""
    robot = Robot(replan_steps=8)
    for _ in range(8):
        robot.tick()
    robot.stalls = True
    robot.tick()
    robot.now += PERIOD
    robot.finish()
    assert robot.loop.counts.deadline_misses == 1


def test_an_inference_that_raises_is_named_and_survived(robot):
    """The reason comes out, and the next window is tried."""
    robot.network.value = RuntimeError("out of memory")
    robot.tick()
    assert robot.loop.state == "holding: policy: inference raised RuntimeError('out of memory')"
    assert robot.loop.counts.failures == 1
    robot.network.value = 0.0
    robot.tick()
    assert robot.loop.state == "running"
