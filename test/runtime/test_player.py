"""The player: what it plays, when it may, and what ends it."""

import dataclasses

import numpy as np
import pytest
from robots import ALL_KINDS, HALF_POSE, MS, PERIOD, TWO_ARMS, home
from scipy.spatial.transform import Rotation

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.runtime.player import Player
from diffusion_policy_ros.runtime.tail import Chunk

TEXT = Contract.load("mini_lift_state").text
PLAIN = Contract.from_text(TEXT.replace(", lead: 0.05", ""))
LIMITS = (
    "lead: 0.05, lead_rotation: 0.4, velocity: 0.2, acceleration: 2, angular_velocity: 1,"
    " angular_acceleration: 8, jump: 0.08, observation_timeout_s: 0.2"
)
LIMITED = Contract.from_text(TEXT.replace("lead: 0.05", LIMITS))
JOINTS = Contract.from_text("""
name: arm
rate_hz: 20
anchor: joints
observations:
  joints: {topic: /joint_states, type: sensor_msgs/msg/JointState, names: [a, b]}
action:
  fields: [{name: arm, kind: joint_position, size: 2, state: joints}]
  record: next_state
  limits: {joint_min: [-1.5, -1.5], joint_max: [1.5, 1.5], joint_velocity: [1.5],
           joint_acceleration: [8], joint_lead: [0.4]}
""")
HOME = {
    "robot0_eef_pos": np.array([0.0, 0.0, 0.2]),
    "robot0_eef_quat": np.array([0.0, 0.0, 0.0, 1.0]),
}
HOLD = Chunk(0, np.zeros((0, 7)), PERIOD)


def released(contract, rate_hz=100, now_ms=0, **how):
    """A player that has been told to play."""
    player = Player(contract, rate_hz, **how)
    assert player.release(now_ms * MS) == ""
    return player


def moves(*xs):
    """Actions that move along x by so many mm each."""
    return np.array([[x / 1000, 0, 0, 0, 0, 0, -1.0] for x in xs])


def chunk(stamp_ms, *xs):
    """A chunk of moves along x, in mm, 50 ms apart."""
    return Chunk(stamp_ms * MS, moves(*xs), PERIOD)


def absolute(contract):
    """The same robot, told positions."""
    return Contract.from_text(contract.text.replace("delta_position", "position"))


def to(*xs, z=0.2):
    """Actions of a robot that is told positions: x in mm."""
    actions = moves(*xs)
    actions[:, 2] = z
    return actions


def streamed(player, times_ms, measured=HOME):
    """The commanded x at these times, mm."""
    return [player.tick(round(t * MS), measured)["translation"][0] * 1000 for t in times_ms]


def seen(player, t_ms, measured, late_ms=0):
    """A tick of a robot whose measurements are stamped."""
    stamps = dict.fromkeys(measured, (t_ms - late_ms) * MS)
    return player.tick(t_ms * MS, measured, stamps)


def at(x, y=0.0, z=0.2):
    """Measured there."""
    return {**HOME, "robot0_eef_pos": np.array([x, y, z])}


def playing(contract=LIMITED, speed=5.0):
    """A player in mid motion at 200 ms, with an arm that follows exactly, and where it is."""
    player = released(contract)
    player.offer(chunk(0, *[speed] * 30), 0)
    where = HOME
    for t in range(0, 210, 10):
        told = seen(player, t, where)
        where = at(*told["translation"]) if told else where
    assert player.state == "playing"
    return player, where


# ------------------------------------------------------------------------------- the stream


def test_at_each_actions_time_the_stream_is_where_the_action_leads():
    """100 Hz passes through what 20 Hz is told, in straight lines."""
    player = released(PLAIN)
    player.offer(chunk(1000, 1, 5, 10, 2))
    xs = streamed(player, range(1000, 1210, 10))
    assert xs[0:20:5] == pytest.approx([1, 6, 16, 18], abs=1e-12)
    assert xs[:6] == pytest.approx([1, 2, 3, 4, 5, 6])
    assert xs[15:] == pytest.approx([18] * 6)
    assert player.why == "past the last action"


def test_ticks_between_the_actions_times_lie_on_the_same_lines():
    """A player that ticks at odd times draws the same path."""
    player = released(PLAIN)
    player.offer(chunk(1000, 1, 5, 10, 2))
    xs = streamed(player, [1000, 1033, 1066, 1099])
    assert xs == pytest.approx([1, 1 + 5 * 0.66, 6 + 10 * 0.32, 6 + 10 * 0.98])


def test_without_interpolation_an_action_is_told_once_at_its_time():
    """Asking more often than the frame rate integrates nothing twice."""
    player = released(PLAIN, interpolate=False)
    player.offer(chunk(1000, 1, 10, 40))
    xs = streamed(player, (1000, 1010, 1049, 1050, 1099, 1100))
    assert xs == pytest.approx([1, 1, 1, 11, 11, 51])


def test_what_is_late_is_dropped_by_time():
    """A chunk that arrives 100 ms late starts with its third action; the rest was never due."""
    player = released(PLAIN, interpolate=False)
    player.offer(chunk(1000, 1, 2, 4, 8))
    assert streamed(player, [1100, 1150]) == pytest.approx([4, 12])
    player.offer(chunk(1150, 1, 1, 1, 1, 1))
    streamed(player, [1300])
    assert player.dropped == 2


def test_a_newer_chunk_replaces_the_tail_and_no_time_runs_twice():
    """An action of a time that the old chunk has executed is not executed again."""
    player = released(PLAIN, interpolate=False)
    player.offer(chunk(1000, 1, 1, 1, 1))
    assert streamed(player, (1000, 1050)) == pytest.approx([1, 2])
    player.offer(chunk(1050, 10, 10, 10))
    assert streamed(player, (1060, 1100, 1150)) == pytest.approx([2, 12, 22])


def test_a_chunk_that_has_not_begun_yet_does_not_end_the_one_before():
    """It may be stamped up to an action ahead, also one after another: the motion goes on."""
    player = released(PLAIN)
    player.offer(chunk(1000, *[5] * 8))
    told = streamed(player, range(1000, 1110, 10))
    for now_ms in (1110, 1120):
        assert player.offer(chunk(1150, *[5] * 8), now_ms * MS) == ""
        told += streamed(player, [now_ms])
    told += streamed(player, range(1130, 1300, 10))
    assert np.diff(told) == pytest.approx(np.ones(len(told) - 1)), "mm a tick"


def test_what_a_late_tick_missed_is_caught_up_smoothly():
    """An executor that stalls for 0.4 s makes no jump, even without any limit of velocity."""
    player = released(absolute(PLAIN))
    player.offer(Chunk(0, to(*range(0, 150, 5)), PERIOD))  # 1 mm in each 10 ms
    times = [*range(0, 300, 10), *range(690, 1000, 10)]
    xs = streamed(player, times)
    assert np.diff(xs).max() < 4, "of 40 mm that were missed"
    assert xs[times.index(900) :] == pytest.approx([t / 10 for t in range(900, 1000, 10)])
    assert player.late_ticks == 1


def test_turns_are_interpolated_on_the_shortest_way():
    """Half the time, half the angle."""
    player = released(PLAIN)
    actions = moves(0, 0)
    actions[1, 5] = 0.2
    player.offer(Chunk(1000 * MS, actions, PERIOD))
    angles = [player.tick(t * MS, HOME)["rotation"] for t in (1000, 1025, 1050)]
    turned = [Rotation.from_quat(q).as_rotvec()[2] for q in angles]
    assert turned == pytest.approx([0, 0.1, 0.2])


def test_rotations_multiply_from_the_left_on_their_way_too():
    """A turn about the base's z axis turns a tilted tool about the base's z axis, tick by tick."""
    player, tilted = released(LIMITED), Rotation.from_euler("x", 90, degrees=True)
    actions = moves(*[0] * 10)
    actions[:, 5] = 0.03
    player.offer(Chunk(0, actions, PERIOD))
    where = {**HOME, "robot0_eef_quat": tilted.as_quat()}
    before = tilted
    for t in range(0, 450, 10):
        told = Rotation.from_quat(player.tick(t * MS, where)["rotation"])
        step, before = (told * before.inv()).as_rotvec(), told
        assert np.abs(step[:2]).max() < 1e-12 and step[2] >= 0
    assert (told * tilted.inv()).as_rotvec()[2] > 0.2


def test_a_chunk_in_mid_way_bends_the_way_and_does_not_break_it():
    """From where the robot was told to be, to the new chunk's next action in the time left."""
    player = released(PLAIN)
    player.offer(chunk(1000, 0, 10, 10))
    assert streamed(player, [1000, 1010, 1020]) == pytest.approx([0, 2, 4])
    player.offer(chunk(1000, 0, 22, 10))
    assert streamed(player, [1030, 1040, 1050]) == pytest.approx([10, 16, 22])


def test_a_hold_between_two_actions_stays_there():
    """Neither back to the last action nor on to the next; what follows integrates from there."""
    player = released(PLAIN)
    player.offer(chunk(1000, 0, 10, 10))
    assert streamed(player, [1000, 1010, 1020])[-1] == pytest.approx(4)
    player.offer(dataclasses.replace(HOLD, stamp_ns=1020 * MS))
    assert streamed(player, [1030]) == pytest.approx([4])
    assert (player.state, player.why) == ("holding", "told to hold")
    player.offer(chunk(1050, 1, 1))
    assert streamed(player, [1050]) == pytest.approx([5])


def test_each_field_is_sent_as_early_as_it_takes_to_take_effect():
    """A gripper that needs 100 ms is told 100 ms before the arm."""
    text = TEXT.replace("kind: binary", "kind: binary, actuation_latency_s: 0.1")
    player = released(Contract.from_text(text))
    actions = moves(1, 1, 1, 1)
    actions[:, 6] = [-1, -1, 1, -1]
    player.offer(Chunk(1000 * MS, actions, PERIOD))
    told = [player.tick(t * MS, HOME) for t in (1000, 1050, 1100)]
    assert [float(point["gripper"][0]) for point in told] == [1, -1, -1]
    assert [round(p["translation"][0] * 1000, 6) for p in told] == [1, 2, 3]


@pytest.mark.parametrize("latency_ms", [0, 50, 120])
def test_a_robot_with_latency_repeats_what_it_was_shown_in_time(latency_ms):
    """States one frame later, sent early: the robot is where it was, when it was."""
    text = absolute(PLAIN).text.replace(
        "record: {topic: /eef_command, type: trajectory_msgs/msg/JointTrajectory, shape: [7]}",
        "record: next_state",
    )
    text = text.replace("kind: binary", "kind: binary, state: robot0_gripper_qpos, threshold: 0.1")
    text = text.replace("state: robot0_eef_pos", "state: robot0_eef_pos, actuation_latency_s: L")
    contract = Contract.from_text(text.replace("L}", f"{latency_ms / 1000}}}"))
    shown = np.arange(41) * 2.0  # mm, at each frame
    player = released(contract, now_ms=-1000)
    player.offer(Chunk(0, to(*shown[1:]), PERIOD))
    told = {}
    for t in range(-200, 1000, 10):
        point = player.tick(t * MS, HOME)
        told[t] = point["translation"][0] * 1000
    done = [told[t - max(latency_ms, 50)] for t in range(200, 1000, 50)]
    assert done == pytest.approx(shown[4:20])


# ------------------------------------------------------------------------------------- limits


def test_a_hold_brakes_within_the_acceleration():
    """It does not stop dead, and stays when it is at rest."""
    player, where = playing()
    player.offer(HOLD)
    xs = [where["robot0_eef_pos"][0]]
    for t in range(210, 600, 10):
        told = seen(player, t, where)
        where = at(*told["translation"])
        xs.append(told["translation"][0])
    steps = np.diff(xs)
    assert steps[0] > 5e-4 and steps[-1] == 0 and player.at_rest
    assert (np.abs(np.diff(steps)) <= 2 * 0.01**2 * (1 + 1e-6)).all()


def test_limits_are_never_overshot_and_the_end_is_reached():
    """A chunk that ends at full speed ends where it says, from below."""
    player = released(LIMITED)
    player.offer(chunk(0, *[9] * 10))
    where, xs = HOME, []
    for i in range(140):
        where = at(*player.tick(i * 10 * MS, where)["translation"])
        xs.append(where["robot0_eef_pos"][0] * 1000)
        if i == 40:
            player.offer(chunk(400, *[9] * 2, *[0] * 20))
    assert max(xs) <= 90 + 1e-6 and xs[-1] == pytest.approx(90, abs=1e-6)
    assert player.clamped["translation.acceleration"] > 0


def test_a_velocity_limit_holds_back_and_nothing_is_piled_up():
    """1 m/s is asked for, 0.2 m/s is done; when the asking ends, so does the motion."""
    player = released(LIMITED)
    where, xs = HOME, []
    for i in range(200):
        if i % 20 == 0:
            player.offer(Chunk(i * 10 * MS, moves(*([50] if i < 100 else [0]) * 8), PERIOD))
        where = at(*player.tick(i * 10 * MS, where)["translation"])
        xs.append(where["robot0_eef_pos"][0])
    steps = np.diff(xs)
    assert steps.max() == pytest.approx(0.002)
    assert player.clamped["translation.velocity"] > 50
    assert xs[-1] < xs[100] + 0.0215 and steps[-50:].max() == 0


def test_a_turn_beside_the_edge_of_its_range_is_within_the_acceleration():
    """A new chunk leads aside where the edge is near: it brakes in time for both."""
    text = (
        absolute(LIMITED)
        .text.replace("jump: 0.08", "jump: 1")
        .replace("lead: 0.05, lead_", "lead_")
    )
    contract = Contract.from_text(text.replace("workspace_max: [0.3", "workspace_max: [0.1"))
    for turn_ms in range(400, 700, 20):
        player, where, points = released(contract), HOME, []
        player.offer(Chunk(0, to(*np.arange(0, 200, 10)), PERIOD))
        for t in range(0, 900, 10):
            if t == turn_ms:
                aside = to(*[200] * 12)
                aside[:, 1] = np.arange(1, 13) * 0.01
                player.offer(Chunk(t * MS, aside, PERIOD))
            where = at(*player.tick(t * MS, where)["translation"])
            points.append(where["robot0_eef_pos"])
        velocities = np.diff(points, axis=0) / 0.01
        changes = np.linalg.norm(np.diff(velocities, axis=0), axis=1) / 0.01
        assert changes.max() <= 2 * (1 + 1e-6) and np.max(points, axis=0)[0] <= 0.1


@pytest.mark.parametrize(("tick_ms", "factor"), [(10, 0.2), (100, 1.0), (4, 1.0)])
def test_limits_are_of_time_and_the_stream_keeps_up_at_any_rate(tick_ms, factor):
    """A slow simulation is not driven faster, and a coarse clock does not leave it behind."""
    player = released(absolute(LIMITED))
    player.offer(Chunk(0, to(*np.arange(0, 80, 5) * 1.0), PERIOD))  # 0.1 m/s
    step_ms = tick_ms * factor
    where, told, times = HOME, [], np.arange(0, 700, step_ms)
    for t in times:
        told.append(player.tick(round(t * MS), where)["translation"][0])
        where = at(told[-1])
    assert np.diff(told).max() <= 0.2 * step_ms / 1000 * (1 + 1e-9)
    late = told[-1] - 0.1 * times[-1] / 1000
    assert abs(late) < 0.004, "it is where the chunk says"


def test_the_lead_shortens_steps_and_makes_none():
    """An arm that is stuck stops the set-point at the lead; one that sags moves it nowhere."""
    player = released(LIMITED)
    player.offer(chunk(0, *[9] * 18))
    xs = [player.tick(t * MS, HOME)["translation"][0] for t in range(0, 900, 10)]
    assert max(xs) <= 0.05 + 1e-9 and xs[-1] > 0.045
    assert player.clamped["translation.lead"] > 0
    sagging = [
        player.tick((900 + t) * MS, at(-t / 1000))["translation"][0] for t in range(0, 50, 10)
    ]
    assert set(sagging) == {xs[-1]}


def test_an_arm_that_is_behind_by_more_than_the_lead_is_waited_for():
    """Steps that lead farther are not taken; those back to it are."""
    contract = absolute(Contract.from_text(TEXT.replace("lead: 0.05", "lead: 0.05, velocity: 1")))
    player = released(contract)
    player.offer(Chunk(0, to(*[40] * 20), PERIOD))
    player.tick(0, HOME)
    ahead = [player.tick(t * MS, HOME)["translation"][0] for t in range(10, 100, 10)]
    player.offer(Chunk(100 * MS, to(*[60] * 20), PERIOD))
    behind = [player.tick(t * MS, at(-0.03))["translation"][0] for t in range(100, 200, 10)]
    assert max(behind) <= max(ahead)
    player.offer(Chunk(200 * MS, to(*[0] * 20), PERIOD))
    back = [player.tick(t * MS, at(-0.03))["translation"][0] for t in range(200, 400, 10)]
    assert back[-1] == pytest.approx(0, abs=1e-9)


def test_joints_lead_within_their_limit_each():
    """A stuck joint stops, the other goes on."""
    player = released(JOINTS)
    player.offer(Chunk(0, np.tile([1.0, 1.0], (20, 1)), PERIOD))
    where = np.zeros(2)
    for t in range(0, 900, 10):
        told = player.tick(t * MS, {"joints": where})["arm"]
        where = np.array([0.0, told[1]])
    assert told == pytest.approx([0.4, 1.0], abs=1e-6)


def test_speed_scale_slows_the_first_motion():
    """A tenth of the limit; where there is none, of 0.25 m/s; and it may be changed on the way."""
    for contract, top in ((LIMITED, 0.2), (PLAIN, 0.25)):
        player = released(contract)
        player.speed_scale = 0.1
        player.offer(chunk(0, *[40] * 18))
        where, xs = HOME, [0.0]
        for t in range(0, 800, 10):
            player.speed_scale = 0.1 if t < 400 else 0.5
            where = at(*player.tick(t * MS, where)["translation"])
            xs.append(where["robot0_eef_pos"][0])
        steps = np.diff(xs)
        assert steps[:40].max() == pytest.approx(0.1 * top * 0.01)
        assert steps[40:].max() == pytest.approx(0.5 * top * 0.01)


def test_limits_may_be_tightened_while_it_moves():
    """And the range holds even where one could not brake any more."""
    player, where = playing()
    x = where["robot0_eef_pos"][0]
    near = {"translation.min": (-0.3, -0.3, 0.0), "translation.max": (x + 1e-3, 0.3, 0.45)}
    changes = {**near, "translation.acceleration": 0.01}
    action = player.contract.action.tightened(changes)
    player.contract = dataclasses.replace(player.contract, action=action)
    xs = [seen(player, t, where)["translation"][0] for t in range(210, 400, 10)]
    assert max(xs) <= x + 1e-3 + 1e-12


def test_the_way_ahead_is_within_the_limits_and_changes_nothing():
    """For trajectories of several points: the stream as it will be if nothing new comes."""
    player, _ = playing()
    before, count = player.set_point["translation"], dict(player.clamped)
    ahead = [point["translation"][0] for point in player.ahead(5, 10 * MS)]
    assert player.set_point["translation"] is before and dict(player.clamped) == count
    later = [seen(player, 210 + t, at(*before))["translation"][0] for t in range(0, 50, 10)]
    assert ahead == pytest.approx(later)
    player.stop("told to")
    braking = np.diff([point["translation"][0] for point in player.ahead(40, 10 * MS)])
    assert braking[-1] == 0 and (np.diff(braking) <= 1e-12).all()


# ---------------------------------------------------------------------------------- authority


def test_nothing_is_told_before_it_is_released_and_a_chunk_may_begin():
    """It starts stopped; it anchors where the robot is when the first chunk has come."""
    player = Player(LIMITED, 100)
    assert (player.state, player.quiet) == ("stopped", True)
    assert "not released" in player.offer(chunk(0, 1, 1))
    assert all(seen(player, t, HOME) is None for t in range(0, 50, 10))
    assert player.release(50 * MS) == ""
    assert all(seen(player, t, at(t / 1e5)) is None for t in range(50, 100, 10))
    assert (player.state, player.why) == ("holding", "no chunk yet")
    player.offer(chunk(100, *[0] * 9), 100 * MS)
    told = seen(player, 100, at(0.001, 0.05))
    assert told["translation"].tolist() == [0.001, 0.05, 0.2]
    assert player.state == "playing"


def test_release_is_refused_while_it_plays_and_while_it_brakes():
    """Neither lets the set-point jump by the lag."""
    player, where = playing()
    assert player.release(200 * MS) == "it is playing"
    player.stop("told to")
    assert "coming to rest" in player.release(200 * MS)
    for t in range(210, 500, 10):
        told = seen(player, t, where)
    assert player.release(500 * MS) == ""
    assert seen(player, 500, at(0.5))["translation"] is told["translation"], "until a chunk comes"
    ahead = player.ahead(5, 10 * MS)
    assert all(point["translation"] is told["translation"] for point in ahead), "so does the way"


def test_a_stop_stays_and_what_follows_begins_where_the_robot_is():
    """Chunks from before the release do not count."""
    player, where = playing()
    player.stop("~/stop was called")
    assert "~/stop was called" in player.offer(chunk(200, 9, 9), 200 * MS)
    for t in range(210, 500, 10):
        stays = seen(player, t, where)["translation"]
    assert (player.state, player.why) == ("stopped", "~/stop was called")
    player.release(500 * MS)
    assert player.offer(chunk(450, 9, 9, 9, 9), 500 * MS) == "from before this run"
    assert player.offer(chunk(500, 0, 0, 0, 0), 500 * MS) == ""
    moved = at(0.1, 0.1)
    assert seen(player, 510, moved)["translation"] is stays, "one measurement is none"
    assert seen(player, 520, moved)["translation"].tolist() == [0.1, 0.1, 0.2]


@pytest.mark.parametrize("how", ["let go", "hand over"])
def test_whoever_resets_the_arm_is_not_fought(how):
    """After it has come to rest it says so once, and then nothing, until it is released again."""
    player, where = playing()
    if how == "let go":
        player.stop("told to", keep=False)
    else:
        player.hand_over()
    told = [seen(player, t, where) for t in range(210, 600, 10)]
    quiet = told.index(None)
    assert quiet > 2 and not any(told[quiet:])
    xs = [point["translation"][0] for point in told[:quiet]]
    assert xs[-1] == xs[-2], "at rest"
    assert player.state == ("stopped" if how == "let go" else "operator") and player.quiet
    player.release(600 * MS)
    assert seen(player, 600, at(0.2)) is None
    player.offer(chunk(610, 0, 0, 0), 610 * MS)
    assert seen(player, 610, at(0.2))["translation"][0] == 0.2


def test_a_hold_that_somebody_asks_for_takes_no_chunk():
    """An enabling switch that is let go: it brakes, and goes on with a new chunk."""
    player, where = playing()
    player.hold("the switch is open")
    assert player.offer(chunk(200, 1), 200 * MS) == "the switch is open"
    for t in range(210, 400, 10):
        seen(player, t, where)
    assert (player.state, player.at_rest) == ("holding", True)
    player.hold("")
    assert seen(player, 400, where) and player.why == "no chunk yet"
    assert player.offer(chunk(400, 1, 1), 400 * MS) == ""
    seen(player, 410, where)
    assert player.state == "playing"


def test_a_stopped_or_holding_set_point_does_not_move_whatever_is_measured():
    """One wrong sample, an arm that sags, one that is pushed: nothing of it is told to the arm."""
    for end in ("stop", "hold"):
        player, where = playing()
        player.stop("told to") if end == "stop" else player.offer(HOLD)
        for t in range(210, 500, 10):
            stays = seen(player, t, where)["translation"]
        for i, x in enumerate([0.95, 0.05, *np.linspace(0.05, -0.35, 80)]):
            told = seen(player, 500 + 10 * i, at(x))
            assert told["translation"] is stays


# -------------------------------------------------------------------------------------- faults


def fault(player, name):
    """It has this fault, stays at rest, and plays again after it has been released."""
    assert (player.state, player.fault_name) == ("fault", name), player.why


def test_one_bad_sample_of_joints_ends_the_motion_within_their_range():
    """10 rad in one sample: no set-point follows it, and the fault says what it was."""
    player, where = released(JOINTS), np.zeros(2)
    player.offer(Chunk(0, np.tile([0.5, 0.5], (20, 1)), PERIOD), 0)
    for t in range(0, 300, 10):
        told = seen(player, t, {"joints": where})
        where = where if told is None else told["arm"]
    before = told["arm"]
    told = seen(player, 300, {"joints": where + 10.0})["arm"]
    fault(player, "measured_jump")
    assert player.why.startswith("joints jumped by 10.0")
    assert (np.abs(told - before) <= 1.5 * 0.01 + 1e-9).all()
    for t in range(310, 600, 10):
        stays = seen(player, t, {"joints": where})["arm"]
    assert (np.abs(stays) <= 1.5).all() and player.at_rest


def test_a_driver_that_switches_to_degrees_is_a_fault():
    """Before anything grows."""
    player, where = released(JOINTS), np.full(2, 0.3)
    player.offer(Chunk(0, np.tile([0.5, 0.5], (20, 1)), PERIOD), 0)
    for t in range(0, 300, 10):
        told = seen(player, t, {"joints": np.degrees(where) if t >= 200 else where})
        where = where if told is None else told["arm"]
    fault(player, "measured_jump")
    assert (where < 0.6).all()


def test_a_robot_that_comes_back_elsewhere_is_not_driven():
    """It was killed while the player held, and is 1.34 rad away when it is back."""
    player, where = released(JOINTS), np.zeros(2)
    player.offer(Chunk(0, np.tile([0.2, 0.2], (8, 1)), PERIOD), 0)
    for t in range(0, 600, 10):
        told = seen(player, t, {"joints": where})
        where = where if told is None else told["arm"]
    for t in range(600, 2500, 10):
        gone = player.tick(t * MS, {"joints": where}, {"joints": 600 * MS})["arm"]
    assert player.state == "holding" and "old" in player.why
    back = seen(player, 2500, {"joints": where + 1.34})["arm"]
    fault(player, "measured_jump")
    assert back is gone


def test_a_following_error_is_a_fault_until_it_is_released_at_rest():
    """An arm that is held fast: the set-point stops, stays, and begins anew where the arm is."""
    text = LIMITED.text.replace("lead: 0.05, ", "").replace(
        "delta_position,", "delta_position, limits: {following_error: 0.03},"
    )
    player = released(Contract.from_text(text))
    player.offer(chunk(0, *[9] * 18), 0)
    for t in range(0, 600, 10):
        told = seen(player, t, HOME)
        assert told is None or told["translation"][0] < 0.05
    fault(player, "following_error")
    assert "translation is 0.03" in player.why
    assert "translation is" in player.offer(chunk(600, 1), 600 * MS)
    assert player.release(600 * MS) == "" and player.fault_name == ""
    player.offer(chunk(600, *[1] * 5), 600 * MS)
    seen(player, 600, HOME)
    assert seen(player, 610, HOME)["translation"][0] < 0.001


@pytest.mark.parametrize("step_ms", [-100, 5000])
def test_a_clock_that_steps_is_a_fault_and_no_jump(step_ms):
    """Neither back to the measured pose nor on to wherever the plan would be."""
    player, where = playing()
    x = where["robot0_eef_pos"][0]
    late = at(x - 0.04)
    seen(player, 210, late)
    told = seen(player, 220 + step_ms, late)
    fault(player, "clock")
    assert abs(told["translation"][0] - x) < 0.003


def test_a_fault_of_the_node_is_told_and_latched():
    """A measured pose in another frame, for one; the first of several is the one that is told."""
    player, where = playing()
    player.fault("frame", "the pose is in camera, not in base")
    player.fault("other", "later")
    player.stop("told to")
    seen(player, 210, where)
    fault(player, "frame")
    assert player.why == "the pose is in camera, not in base"


def test_a_start_outside_the_range_is_a_fault_then_comes_back_slowly():
    """35 cm outside; nothing is told until it is released again, and then no farther out."""
    player = released(PLAIN)
    outside = at(0.0, 0.65)
    player.offer(chunk(0, *[0] * 9), 0)
    assert [seen(player, t, outside) for t in (0, 10, 20)] == [None] * 3
    fault(player, "outside")
    assert "0.350 outside its range" in player.why
    player.release(30 * MS)
    actions = moves(*[5] * 15)
    actions[:8, 1], actions[8:, 1] = 0.03, -0.03
    player.offer(Chunk(30 * MS, actions, PERIOD), 30 * MS)
    ys = [seen(player, 30, outside)]
    where = outside
    for t in range(40, 700, 10):
        told = seen(player, t, where)
        where = at(*told["translation"])
        ys.append(told["translation"][1])
    steps = np.diff([0.65, *ys[1:]])
    assert (steps <= 1e-12).all() and steps.min() >= -0.05 * 0.01 - 1e-9
    assert ys[-1] < 0.64


@pytest.mark.parametrize("on_stale", ["hold", "stop"])
def test_a_pose_that_is_not_measured_any_more_holds_or_is_a_fault(on_stale):
    """It goes on when the pose comes back, or waits to be released, as the contract says."""
    text = LIMITED.text.replace("jump:", f"on_stale: {on_stale}, jump:")
    player, where = playing(Contract.from_text(text))
    seen(player, 410, where, late_ms=300)
    assert "robot0_eef_pos is 0.300 s old, 0.2 s are allowed" in player.why
    seen(player, 420, where)
    assert player.state == ("playing" if on_stale == "hold" else "fault")


def test_a_pose_stamped_by_another_clock_is_not_believed():
    """One from the future never ages."""
    player = released(LIMITED)
    assert seen(player, 0, HOME, late_ms=-5000) is None
    assert "5.000 s in the future" in player.why


def test_what_is_published_on_change_only_may_be_as_old_as_it_says():
    """A gripper's width that came once, an hour ago."""
    text = ALL_KINDS.text.replace("names: [f]}", "names: [f], max_age_s: 3600}")
    contract = Contract.from_text(text)
    player, where = released(contract, now_ms=3_000_000), home(contract)
    actions = np.zeros((8, contract.action_dim))
    actions[:, contract.action.slices["right"]] = 0.1
    actions[:, contract.action.slices["right_turn"]] = [1, 0, 0, 0, 1, 0]
    player.offer(Chunk(3_000_000 * MS, actions, PERIOD))
    for t in range(3_000_000, 3_000_050, 10):
        stamps = dict.fromkeys(where, t * MS) | {"width": 0}
        told = player.tick(t * MS, where, stamps)
    assert told is not None and player.state == "playing"


def test_what_is_no_measurement_holds():
    """Not finite, or no rotation; it goes on when there is one again."""
    player, where = playing()
    for bad in ({"robot0_eef_pos": [np.nan, 0, 0]}, {"robot0_eef_quat": np.zeros(4)}):
        seen(player, 210, {**where, **bad})
        assert player.state == "holding" and "measures" in player.why
    seen(player, 220, where)
    assert player.state == "playing"


# ---------------------------------------------------------------------------------- the gate


def test_a_chunk_that_begins_far_off_is_put_away_and_the_one_before_goes_on():
    """An absolute pose of somewhere else never reaches the arm; the count says why."""
    player = released(absolute(LIMITED))
    player.offer(Chunk(0, to(10, 20, 30, 40), PERIOD))
    for t in range(0, 50, 10):
        player.tick(t * MS, HOME)
    player.offer(Chunk(PERIOD, to(200, 200, 200), PERIOD))
    player.tick(50 * MS, HOME)
    assert player.state == "playing" and player.rejected == {"jump": 1}
    other = released(absolute(LIMITED))
    other.offer(Chunk(0, to(200, 200, 200), PERIOD))
    assert other.tick(0, HOME) is None
    assert "begins 0.200 from the measured translation, beyond its jump" in other.why


def test_the_gate_looks_at_each_field_at_its_own_time():
    """A gripper's latency does not let a jump of the arm through, nor reject what is to come."""
    text = absolute(LIMITED).text.replace("binary,", "binary, actuation_latency_s: 0.2,")
    for actions, taken in ((to(200, 0, 0, 0, 0, 0), False), (to(0, 0, 0, 0, 200, 200), True)):
        player = released(Contract.from_text(text))
        player.offer(Chunk(0, actions, PERIOD))
        assert (player.tick(0, HOME) is not None) is taken


@pytest.mark.parametrize("early_s", [0.0, 0.1])
def test_the_gate_is_of_the_action_that_is_sent_now(early_s):
    """An arm that is told 0.1 s early begins with its third action."""
    text = absolute(LIMITED).text.replace(
        "state: robot0_eef_pos}", f"state: robot0_eef_pos, actuation_latency_s: {early_s}}}"
    )
    player = released(Contract.from_text(text))
    player.offer(Chunk(0, to(0, 0, 200, 200), PERIOD))
    assert (player.tick(0, HOME) is not None) is (early_s == 0.0)


def test_the_gate_of_deltas_is_their_size_not_the_arms_lag():
    """With the how-to's first values, an arm of 0.2 s time constant has no chunk rejected."""
    text = TEXT.replace("lead: 0.05", "velocity: 0.25, acceleration: 1.0, jump: 0.05")
    player, where = released(Contract.from_text(text)), HOME
    for t in range(0, 3000, 10):
        if t % 200 == 0:
            assert player.offer(chunk(t, *[12] * 8), t * MS) == ""
        told = seen(player, t, where)
        if told:
            here = where["robot0_eef_pos"]
            where = at(*(here + 0.05 * (told["translation"] - here)))
    assert not player.rejected and told["translation"][0] > 0.29
    player.offer(chunk(3000, 60, 60), 3000 * MS)
    seen(player, 3000, where)
    assert player.rejected == {"jump": 1}


def test_an_absolute_chunk_may_begin_where_the_arm_is_or_where_it_is_told_to_be():
    """Neither the lag of an arm nor a policy that looks ahead of it is a jump."""
    for x, taken in ((100, True), (200, True), (150, False)):
        text = TEXT.replace("lead: 0.05", "jump: 0.02").replace(
            "workspace_max: [0.3", "workspace_max: [0.4"
        )
        player = released(absolute(Contract.from_text(text)))
        player.offer(Chunk(0, to(*range(0, 220, 20)), PERIOD))
        for t in range(0, 510, 10):
            player.tick(t * MS, at(max(0, t - 250) / 2500))
        assert player.set_point["translation"][0] == pytest.approx(0.2)
        player.offer(Chunk(510 * MS, to(x, x), PERIOD))
        player.tick(510 * MS, at(0.1))
        assert ("jump" not in player.rejected) is taken


@pytest.mark.parametrize(
    ("stamp_ms", "now_ms", "why"),
    [
        (900, 1200, "from before this run"),
        (3000, 1200, "from the future"),
        (1100, 2500, "aged out on its way"),
    ],
)
def test_chunks_of_another_time_are_rejected(stamp_ms, now_ms, why):
    """A stamp of a wrong clock neither moves the arm nor locks out what comes after."""
    player = released(LIMITED, now_ms=1000)
    assert player.offer(chunk(stamp_ms, 1, 1), now_ms * MS) == why
    assert player.rejected == {why: 1}
    assert player.offer(chunk(now_ms, 1, 1), now_ms * MS) == ""


def test_chunks_that_are_no_actions_are_rejected_whole():
    """Not finite, huge, of another size, older, or with points too close together."""
    player = released(PLAIN)
    player.offer(chunk(1000, 1, 1, 1))
    nan, huge = moves(1, 1, 1), moves(1, 1e12)
    nan[2, 4] = np.nan
    assert player.offer(Chunk(1050 * MS, nan, PERIOD)) == "not finite"
    assert player.offer(Chunk(1050 * MS, huge, PERIOD)) == "beyond any robot"
    assert player.offer(Chunk(1050 * MS, np.zeros((3, 6)), PERIOD)) == "actions of another size"
    assert player.offer(chunk(950, 1)) == "older than the one before"
    quick = player.offer(Chunk(1050 * MS, moves(50, 50), MS))
    assert quick == "its actions are 1 ms apart, the contract's 50 ms"
    assert streamed(player, [1000, 1050]) == pytest.approx([1, 2])


def test_it_holds_and_says_why():
    """Past the end, after an empty chunk, and when it is too old; a hold opens no hand."""
    player = released(PLAIN)
    actions = moves(5, 5)
    actions[:, 6] = 1.0
    player.offer(Chunk(1000 * MS, actions, PERIOD))
    streamed(player, [1000, 1050])
    assert streamed(player, [1100]) == pytest.approx([10])
    assert player.why == "past the last action"
    assert player.set_point["gripper"].tolist() == [1.0]
    player.offer(Chunk(1200 * MS, moves(*[1] * 100), PERIOD))
    for t in range(1200, 2210, 50):
        player.tick(t * MS, HOME)
    assert player.state == "playing"
    player.tick(2250 * MS, HOME)
    assert player.why == "the newest chunk has aged out"


# ------------------------------------------------------------------------- all kinds, all fields


def test_every_field_of_two_arms_is_commanded():
    """Position, rotation and gripper of both."""
    player, where = released(TWO_ARMS), home(TWO_ARMS)
    actions = np.tile([0.1, 0.12, 0.1, 0, 0, 0.1, 1.0, 0.1, 0.1, 0.13, 0.1, 0, 0, -1.0], (20, 1))
    player.offer(Chunk(0, actions, PERIOD))
    for t in range(0, 800, 10):
        told = player.tick(t * MS, where)
        where = {"left_pos": told["left"], "left_quat": told["left_turn"]} | {
            "right_pos": told["right"],
            "right_quat": told["right_turn"],
        }
    assert told["left"] == pytest.approx([0.1, 0.12, 0.1], abs=1e-6)
    assert told["right"] == pytest.approx([0.1, 0.1, 0.13], abs=1e-6)
    assert Rotation.from_quat(told["left_turn"]).as_rotvec() == pytest.approx([0, 0, 0.1])
    assert Rotation.from_quat(told["right_turn"]).as_rotvec() == pytest.approx([0.1, 0, 0])
    assert (told["left_hand"], told["right_hand"]) == (1.0, -1.0)


def test_half_a_pose_keeps_the_orientation_it_began_with():
    """Whatever is measured of it later."""
    player = released(HALF_POSE)
    turned = Rotation.from_rotvec([0.3, 0, 0]).as_quat()
    where = {"at": np.zeros(3), "at.orientation": turned}
    player.offer(Chunk(0, np.full((8, 3), 0.005), PERIOD))
    for t in range(0, 350, 10):
        told = player.tick(t * MS, where)
        where = {"at": told["at"], "at.orientation": np.array([0.0, 0, 0, 1])}
    assert told["at.orientation"] == pytest.approx(turned) and told["at"][0] > 0.02


def test_velocities_come_up_within_their_acceleration_and_are_zero_in_a_hold():
    """A base that is stopped stands."""
    player, where = released(ALL_KINDS), home(ALL_KINDS)
    actions = np.zeros((8, ALL_KINDS.action_dim))
    actions[:, ALL_KINDS.action.slices["base"]] = [5, 0, 0, 0, 0, -0.5]
    actions[:, ALL_KINDS.action.slices["right"]] = 0.1
    actions[:, ALL_KINDS.action.slices["right_turn"]] = [1, 0, 0, 0, 1, 0]
    player.offer(Chunk(0, actions, PERIOD))
    told = [player.tick(t * MS, where)["base"] for t in range(0, 300, 10)]
    told = np.array(told)
    assert told[-1] == pytest.approx([0.6, 0, 0, 0, 0, -0.5])
    assert np.abs(np.diff(told, axis=0)).max() <= 2 * 0.01 + 1e-9
    player.stop("told to")
    braking = np.array([player.tick(t * MS, where)["base"] for t in range(300, 800, 10)])
    assert not braking[-1].any() and np.abs(np.diff(braking, axis=0)).max() <= 2 * 0.01 + 1e-9


def test_a_continuous_joint_goes_the_short_way_round():
    """From 3.1 to -3.1 rad it is 0.08 rad."""
    text = JOINTS.text.replace("state: joints", "state: joints, wrap: true")
    text = text.replace("joint_min: [-1.5, -1.5], joint_max: [1.5, 1.5], ", "")
    player, where = released(Contract.from_text(text)), np.array([3.1, 0.0])
    player.offer(Chunk(0, np.tile([-3.1, 0.1], (12, 1)), PERIOD))
    for t in range(0, 600, 10):
        told = player.tick(t * MS, {"joints": where})["arm"]
        where = (told + np.pi) % (2 * np.pi) - np.pi
    assert told == pytest.approx([2 * np.pi - 3.1, 0.1])


def test_a_driver_that_counts_turns_anew_makes_no_jump():
    """Deltas from the measured angle, at 0.5 rad/s over pi: no tick goes farther than 1 rad/s."""
    text = JOINTS.text.replace("state: joints", "state: joints, wrap: true, deltas_from: measured")
    text = text.replace("kind: joint_position", "kind: delta_joint_position")
    text = text[: text.index("  limits:")] + "  limits: {joint_velocity: [1.0]}\n"
    player, where, before = released(Contract.from_text(text)), np.array([3.1, 0.0]), None
    for t in range(0, 1000, 10):
        if t % 50 == 0:
            player.offer(Chunk(t * MS, np.full((12, 2), 0.025), PERIOD))
        told = player.tick(t * MS, {"joints": where})["arm"]
        assert before is None or np.abs(told - before).max() <= 0.01 + 1e-9
        before, where = told, (told + np.pi) % (2 * np.pi) - np.pi
    assert told[0] > 3.3


def test_a_binary_does_not_chatter_about_zero():
    """It changes where the network clearly says so."""
    player, told = released(PLAIN, interpolate=False), []
    actions = moves(*[0] * 7)
    actions[:, 6] = [0.02, -0.05, 0.05, -0.2, 0.05, -0.05, 0.2]
    player.offer(Chunk(0, actions, PERIOD))
    told = [float(player.tick(i * PERIOD, HOME)["gripper"][0]) for i in range(7)]
    assert told == [1, 1, 1, -1, -1, -1, 1]


@pytest.mark.parametrize(("deltas_from", "way_mm"), [("commanded", 95), ("measured", 40)])
def test_what_deltas_are_from_is_what_an_arm_that_lags_shows(deltas_from, way_mm):
    """5 mm an action: added up, or each from where the arm is, as robosuite's controller has it.

    An arm that goes 0.36 of the way to its goal in an action's time goes as much of 5 mm where
    each delta is from the measured pose; a policy that was trained on such is 2.7 times too fast
    where its deltas are added up.
    """
    text = PLAIN.text.replace("delta_position,", f"delta_position, deltas_from: {deltas_from},")
    player, where = released(Contract.from_text(text), 100, interpolate=False), HOME
    player.offer(chunk(0, *[5] * 20))
    for t in range(0, 990, 10):
        told = player.tick(t * MS, where)["translation"]
        here = where["robot0_eef_pos"]
        where = at(*(here + (1 - np.exp(-0.01 / 0.1)) * (told - here)))
    assert where["robot0_eef_pos"][0] * 1000 == pytest.approx(way_mm, abs=6)


def test_a_gripper_of_0_to_100_is_no_measured_jump():
    """It closes in a second, measured at 33 Hz, and began a little beyond its range."""
    scalar = "{name: grip, kind: scalar, state: width, limits: {min: 0, max: 100}}"
    text = JOINTS.text.replace("state: joints}]", f"state: joints}}, {scalar}]")
    width = "  width: {topic: /width, type: std_msgs/msg/Float64}\naction:"
    player = released(Contract.from_text(text.replace("action:", width, 1)))
    player.offer(Chunk(0, np.tile([0.0, 0.0, 0.0], (30, 1)), PERIOD), 0)
    for t in range(0, 900, 30):
        told = seen(player, t, {"joints": np.zeros(2), "width": np.array([100.02 - t / 10])})
    assert player.state == "playing" and told["grip"] == 0.0


def test_a_loosened_time_out_is_that_of_chunks_that_come_late_too():
    """A slow machine's, for once: 2.5 s old, where the contract allows one."""
    player = released(PLAIN)
    loose = PLAIN.action.tightened({"chunk_timeout_s": 5.0}, loosen=True)
    player.contract = dataclasses.replace(PLAIN, action=loose)
    assert player.offer(chunk(0, *[1] * 60), 2500 * MS) == ""
