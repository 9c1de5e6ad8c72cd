"""A stream of set-points that a robot can follow, whatever chunks come."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.spatial.transform import Rotation

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.runtime.playback import Chunk, Playback
from diffusion_policy_ros.runtime.player import Player

MS = 1_000_000
PERIOD = 50 * MS
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
  limits: {joint_min: [-1, -1], joint_max: [1, 1], joint_velocity: [0.5, 1],
           joint_acceleration: [4], joint_lead: [0.2]}
""")
HOME = {
    "robot0_eef_pos": np.array([0.0, 0.0, 0.2]),
    "robot0_eef_quat": np.array([0.0, 0.0, 0.0, 1.0]),
}


def moves(*xs):
    """Actions that move along x by so many mm each."""
    return np.array([[x / 1000, 0, 0, 0, 0, 0, -1.0] for x in xs])


def chunk(stamp_ms, *xs):
    """A chunk of moves along x, in mm, 50 ms apart."""
    return Chunk(stamp_ms * MS, moves(*xs), PERIOD)


def streamed(player, times_ms, measured=HOME):
    """The commanded x at these times, mm."""
    return [player.at(round(t * MS), measured).position[0] * 1000 for t in times_ms]


def test_at_each_actions_time_the_stream_is_where_the_simulator_would_be():
    """100 Hz passes through what 20 Hz is told, in straight lines."""
    player, playback = Player(PLAIN, 100), Playback(PLAIN)
    for one in (player, playback):
        one.offer(chunk(1000, 1, 5, 10, 2))
    xs = streamed(player, range(1000, 1210, 10))
    told = [playback.at(t * MS, HOME).position[0] * 1000 for t in range(1000, 1200, 50)]
    assert xs[0:20:5] == told
    assert xs[:6] == pytest.approx([1, 2, 3, 4, 5, 6])
    assert xs[15:] == pytest.approx([18] * 6)


def test_ticks_between_the_actions_times_lie_on_the_same_lines():
    """A player that ticks at odd times draws the same path."""
    player = Player(PLAIN, 100)
    player.offer(chunk(1000, 1, 5, 10, 2))
    xs = streamed(player, [1000, 1033, 1066, 1099])
    assert xs == pytest.approx([1, 1 + 5 * 0.66, 6 + 10 * 0.32, 6 + 10 * 0.98])


def test_what_a_late_tick_missed_is_caught_up_smoothly():
    """An executor that stalls for 0.4 s makes no jump, even without any limit of velocity."""
    player = Player(Contract.from_text(PLAIN.text.replace("delta_position", "position")), 100)
    actions = moves(*range(0, 150, 5))  # 1 mm in each 10 ms
    actions[:, 2] = 0.2
    player.offer(Chunk(0, actions, PERIOD))
    times = [*range(0, 300, 10), *range(690, 1000, 10)]
    xs = streamed(player, times)
    assert np.diff(xs).max() < 4, "of 40 mm that were missed"
    assert xs[times.index(900) :] == pytest.approx([t / 10 for t in range(900, 1000, 10)])


def test_turns_are_interpolated_on_the_shortest_way():
    """Half the time, half the angle."""
    player = Player(PLAIN, 100)
    actions = moves(0, 0)
    actions[1, 5] = 0.2
    player.offer(Chunk(1000 * MS, actions, PERIOD))
    angles = [player.at(t * MS, HOME).quaternion for t in (1000, 1025, 1050)]
    turned = [Rotation.from_quat(q).as_rotvec()[2] for q in angles]
    assert turned == pytest.approx([0, 0.1, 0.2])


def test_a_chunk_in_mid_way_bends_the_way_and_does_not_break_it():
    """From where the robot was told to be, to the new chunk's next action in the time left."""
    player = Player(PLAIN, 100)
    player.offer(chunk(1000, 0, 10, 10))
    assert streamed(player, [1000, 1010, 1020]) == pytest.approx([0, 2, 4])
    player.offer(chunk(1000, 0, 22, 10))
    assert streamed(player, [1030, 1040, 1050]) == pytest.approx([10, 16, 22])


def test_a_hold_between_two_actions_stays_there():
    """Neither back to the last action nor on to the next; what follows integrates from there."""
    player = Player(PLAIN, 100)
    player.offer(chunk(1000, 0, 10, 10))
    assert streamed(player, [1000, 1010, 1020])[-1] == pytest.approx(4)
    player.offer(Chunk(1020 * MS, np.zeros((0, 7)), PERIOD))
    held = player.at(1030 * MS, HOME)
    assert held.holding == "told to hold" and held.position[0] == pytest.approx(0.004)
    player.offer(chunk(1050, 1, 1))
    assert streamed(player, [1050]) == pytest.approx([5])


def test_without_limits_the_simulators_stream_is_playbacks_bit_for_bit():
    """One set-point an action: nothing in between has touched it."""
    player, playback = (
        Player(Contract.load("mini_lift_state"), 20, interpolate=False),
        Playback(Contract.load("mini_lift_state")),
    )
    rng = np.random.default_rng(0)
    for i in range(40):
        if i % 6 == 0:
            told = Chunk(i * PERIOD, rng.normal(size=(5, 7)) * 0.03, PERIOD)
            assert player.offer(told) == playback.offer(told)
        one, other = player.at(i * PERIOD, HOME), playback.at(i * PERIOD, HOME)
        assert (one.position == other.position).all() and one.holding == other.holding
        assert (one.quaternion == other.quaternion).all() and one.gripper == other.gripper
    assert player.clamped == playback.commander.clamped and player.dropped == playback.dropped


# ------------------------------------------------------------------------------------- limits


def test_a_hold_brakes_within_the_acceleration():
    """It does not stop dead, and not beyond what the chunk would have led to."""
    player = Player(LIMITED, 100)
    player.offer(chunk(0, *[5] * 20))
    where = HOME
    xs = []
    for i in range(60):
        if i == 30:
            player.offer(Chunk(i * 10 * MS, np.zeros((0, 7)), PERIOD))
        told = player.at(i * 10 * MS, where)
        where = {**HOME, "robot0_eef_pos": told.position}
        xs.append(told.position[0])
    steps = np.diff(xs)
    assert steps[29] > 5e-4 and steps[-1] == 0
    assert (np.abs(np.diff(steps)) <= 2 * 0.01**2 * (1 + 1e-6)).all()
    assert told.holding == "told to hold"


def test_limits_are_never_overshot_and_the_end_is_reached():
    """A chunk that ends at full speed ends where it says, from below."""
    player = Player(LIMITED, 100)
    player.offer(chunk(0, *[9] * 10))
    where, xs = HOME, []
    for i in range(140):
        told = player.at(i * 10 * MS, where)
        where = {**HOME, "robot0_eef_pos": told.position}
        xs.append(told.position[0] * 1000)
        if i == 40:
            player.offer(chunk(400, *[9] * 2, *[0] * 20))
    assert max(xs) <= 90 + 1e-6 and xs[-1] == pytest.approx(90, abs=1e-6)
    assert player.clamped["acceleration"] > 0


def test_a_velocity_limit_holds_back_and_nothing_is_piled_up():
    """1 m/s is asked for, 0.2 m/s is done; when the asking ends, so does the motion."""
    player = Player(LIMITED, 100)
    where, xs = HOME, []
    for i in range(200):
        if i % 20 == 0:
            player.offer(Chunk(i * 10 * MS, moves(*([50] if i < 100 else [0]) * 8), PERIOD))
        told = player.at(i * 10 * MS, where)
        where = {**HOME, "robot0_eef_pos": told.position}
        xs.append(told.position[0])
    steps = np.diff(xs)
    assert steps.max() == pytest.approx(0.002)
    assert player.clamped["velocity"] > 50
    assert xs[-1] < xs[100] + 0.0215 and steps[-50:].max() == 0


numbers = st.one_of(
    st.floats(-0.06, 0.06), st.floats(-3, 3), st.sampled_from([np.nan, np.inf, 1e9, -1e300])
)
chunks = st.tuples(
    st.integers(-12, 3),  # its stamp, periods from now
    st.lists(st.lists(numbers, min_size=7, max_size=7), min_size=0, max_size=6),
)
events = st.lists(
    st.tuples(st.integers(1, 9), st.one_of(chunks, st.sampled_from(["stop", "resume", "blind"]))),
    min_size=1,
    max_size=12,
)


def drive(player, contract, happenings, noise):
    """Everything that is told while chunks come, with a robot that follows behind."""
    now, where, told = 10 * PERIOD, {k: v.copy() for k, v in HOME.items()}, []
    for ticks, what in happenings:
        seen_ns = None
        if what == "stop":
            player.stop("test")
        elif what == "resume":
            told.append(None)  # it begins anew at the measured pose
            player.resume(now)
        elif what == "blind":
            seen_ns = now - 10**10
        else:
            late, actions = what
            array = np.array(actions, dtype=float).reshape(len(actions), contract.action_dim)
            player.offer(Chunk(now + late * PERIOD, array, PERIOD), now)
        for _ in range(ticks):
            now += 10 * MS + noise
            point = player.at(now, where, seen_ns or now)
            if point.position is None:
                continue
            told.append((point, where))
            pos, quat = where["robot0_eef_pos"], where["robot0_eef_quat"]
            left = Rotation.from_quat(point.quaternion) * Rotation.from_quat(quat).inv()
            turned = Rotation.from_rotvec(0.2 * left.as_rotvec()) * Rotation.from_quat(quat)
            where = {
                "robot0_eef_pos": pos + 0.2 * (point.position - pos),
                "robot0_eef_quat": turned.as_quat(),
            }
    return told


def steps_of(told):
    """Runs of steps (m) and turns (rad) between two tellings; a run ends at a resume."""
    runs, moved, turned = [], [], []
    for one, other in zip(told, told[1:], strict=False):
        if one is None or other is None:
            runs.append((moved, turned))
            moved, turned = [], []
            continue
        moved.append(other[0].position - one[0].position)
        turn = (
            Rotation.from_quat(other[0].quaternion) * Rotation.from_quat(one[0].quaternion).inv()
        )
        turned.append(turn.as_rotvec())
    return [*runs, (moved, turned)]


@settings(max_examples=60, deadline=None)
@given(events, st.integers(0, 3 * MS))
def test_whatever_comes_what_is_told_is_within_all_limits(happenings, noise):
    """Finite, in the workspace, near the robot, and smooth from tick to tick."""
    limits = LIMITED.action.limits
    told = drive(Player(LIMITED, 100), LIMITED, happenings, noise)
    for point, where in filter(None, told):
        assert np.isfinite(point.position).all() and np.isfinite(point.quaternion).all()
        assert (point.position >= np.array(limits.workspace_min) - 1e-7).all()
        assert (point.position <= np.array(limits.workspace_max) + 1e-7).all()
        away = np.linalg.norm(point.position - where["robot0_eef_pos"])
        assert away <= limits.lead * (1 + 1e-6)
        turn = Rotation.from_quat(point.quaternion)
        turn = turn * Rotation.from_quat(where["robot0_eef_quat"]).inv()
        assert turn.magnitude() <= limits.lead_rotation * (1 + 1e-6)
    for moved, turned in steps_of(told):
        for steps, top, change in ((moved, 2e-3, 2e-4), (turned, 1e-2, 8e-4)):
            sizes = np.linalg.norm(steps, axis=1) if steps else np.zeros(1)
            changes = np.diff([np.zeros(3), *steps], axis=0)
            assert sizes.max() <= top * (1 + 1e-6)
            assert np.linalg.norm(changes, axis=1).max(initial=0) <= change * (1 + 1e-6)


targets = st.lists(st.lists(st.floats(-3, 3), min_size=2, max_size=2), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), targets), min_size=1, max_size=6))
def test_joints_keep_to_their_ranges_velocities_and_accelerations(happenings):
    """Each joint for itself, and near what is measured."""
    player, now, where, told = Player(JOINTS, 100), 0, np.zeros(2), []
    for ticks, actions in happenings:
        player.offer(Chunk(now, np.array(actions), PERIOD), now)
        for _ in range(ticks):
            point = player.at(now, {"joints": where}, now)
            told.append(point.joints)
            assert (np.abs(point.joints - where) <= 0.2 * (1 + 1e-6)).all()
            where, now = where + 0.3 * (point.joints - where), now + 10 * MS
    steps = np.diff([np.zeros(2), *told], axis=0)
    assert (np.abs(told) <= 1 + 1e-9).all()
    assert (np.abs(steps) <= np.array([0.005, 0.01]) * (1 + 1e-6)).all()
    assert (np.abs(np.diff([np.zeros(2), *steps], axis=0)) <= 4e-4 * (1 + 1e-6)).all()


# --------------------------------------------------------------------------- what is rejected


def test_a_chunk_that_begins_far_from_the_robot_is_rejected_and_the_one_before_goes_on():
    """An absolute pose of somewhere else never reaches the arm; the count says why."""
    text = LIMITED.text.replace("delta_position", "position")
    player = Player(Contract.from_text(text), 100)
    near, far = moves(10, 20, 30, 40), moves(10, 200, 200, 200)
    near[:, 2] = far[:, 2] = 0.2
    player.offer(Chunk(0, near, PERIOD))
    for t in range(0, 50, 10):
        player.at(t * MS, HOME)
    player.offer(Chunk(PERIOD, far[1:], PERIOD))
    assert player.at(50 * MS, HOME).holding == ""
    assert player.rejected == {"jump": 1}
    player.reset()
    player.offer(Chunk(PERIOD, far[1:], PERIOD))
    assert "0.200 from the measured position, beyond jump" in player.at(60 * MS, HOME).holding


@pytest.mark.parametrize(
    ("stamp_ms", "why"),
    [(900, "from before this run"), (3000, "from the future"), (1100, "aged out on its way")],
)
def test_chunks_of_another_time_are_rejected(stamp_ms, why):
    """A stamp of a wrong clock neither moves the arm nor locks out what comes after."""
    player = Player(LIMITED, 100)
    player.resume(1000 * MS)
    now = 2500 * MS if stamp_ms == 1100 else 1200 * MS
    assert player.offer(chunk(stamp_ms, 1, 1), now) == why
    assert player.rejected == {why: 1}
    assert player.offer(chunk(now // MS, 1, 1), now) == ""


def test_time_that_runs_backwards_starts_anew():
    """A simulator that was restarted is followed at once, from where its arm is."""
    player = Player(LIMITED, 100)
    player.offer(chunk(5000, 1, 1, 1), 5000 * MS)
    player.at(5000 * MS, HOME)
    moved = {**HOME, "robot0_eef_pos": np.array([0.1, 0.0, 0.3])}
    assert player.at(100 * MS, moved).position.tolist() == [0.1, 0.0, 0.3]
    assert player.offer(chunk(150, 1), 150 * MS) == ""


def test_a_stop_is_latched_and_resume_begins_at_the_measured_pose():
    """Chunks of before the resume do not count."""
    player = Player(LIMITED, 100)
    player.offer(chunk(0, 1, 1, 1), 0)
    player.stop("told to stop")
    assert player.at(10 * MS, HOME).holding == "stopped: told to stop"
    player.offer(chunk(50, 9, 9), 50 * MS)
    assert player.at(60 * MS, HOME).position == pytest.approx(HOME["robot0_eef_pos"])
    moved = {**HOME, "robot0_eef_pos": np.array([0.1, 0.0, 0.3])}
    player.resume(100 * MS)
    told = player.at(110 * MS, moved)
    assert told.holding == "no chunk yet" and told.position.tolist() == [0.1, 0.0, 0.3]


@pytest.mark.parametrize("on_stale", ["hold", "stop"])
def test_a_pose_that_is_not_measured_any_more_holds(on_stale):
    """It goes on when the pose comes back, or waits to be resumed, as the contract says."""
    text = LIMITED.text.replace("jump:", f"on_stale: {on_stale}, jump:")
    player = Player(Contract.from_text(text), 100)
    player.offer(chunk(0, *[1] * 20), 0)
    assert player.at(0, HOME, 0).holding == ""
    assert "0.300 s old, 0.2 s are allowed" in player.at(300 * MS, HOME, 0).holding
    again = player.at(310 * MS, HOME, 310 * MS).holding
    assert again == "" if on_stale == "hold" else again.startswith("stopped: the measured pose")


def test_a_pose_stamped_by_another_clock_is_not_believed():
    """One from the future never ages."""
    player = Player(LIMITED, 100)
    assert "5.000 s in the future" in player.at(0, HOME, 5000 * MS).holding


# -------------------------------------------------------------------------------- latencies


def test_each_field_is_sent_as_early_as_it_takes_to_take_effect():
    """A gripper that needs 100 ms is told 100 ms before the arm; passed actions are dropped."""
    text = TEXT.replace("kind: binary", "kind: binary, actuation_latency_s: 0.1")
    player = Player(Contract.from_text(text), 100)
    actions = moves(1, 1, 1, 1)
    actions[:, 6] = [1, 2, 3, 4]
    player.offer(Chunk(1000 * MS, actions, PERIOD))
    told = [player.at(t * MS, HOME) for t in (1000, 1050, 1100)]
    assert [point.gripper for point in told] == [3, 4, 4]
    assert [round(p.position[0] * 1000, 6) for p in told] == [1, 2, 3]
    assert [p.holding for p in told] == ["", "", ""], "the arm still moves"


@pytest.mark.parametrize("latency_ms", [0, 50, 120])
def test_a_robot_with_latency_repeats_what_it_was_shown_in_time(latency_ms):
    """States one frame later, sent early: the robot is where it was, when it was."""
    text = PLAIN.text.replace("kind: delta_position", "kind: position").replace(
        "record: {topic: /eef_command, type: trajectory_msgs/msg/JointTrajectory, shape: [7]}",
        "record: next_state",
    )
    text = text.replace("kind: binary", "kind: binary, state: robot0_gripper_qpos, threshold: 0.1")
    text = text.replace("state: robot0_eef_pos", "state: robot0_eef_pos, actuation_latency_s: L")
    contract = Contract.from_text(text.replace("L}", f"{latency_ms / 1000}}}"))
    shown = np.arange(41) * 2.0  # mm, at each frame
    actions = moves(*shown[1:])
    actions[:, 2] = 0.2
    player = Player(contract, 100)
    player.offer(Chunk(0, actions, PERIOD))
    times = range(-200, 1000, 10)
    told = dict(zip(times, streamed(player, times), strict=True))
    done = [told[t - max(latency_ms, 50)] for t in range(200, 1000, 50)]
    assert done == pytest.approx(shown[4:20])
