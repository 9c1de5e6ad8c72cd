"""Rest at the ends of a recording, and within it."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from made_bags import CONTRACT, PERIOD, START, image, pose, trajectory, write_bag

from diffusion_policy_ros.cli.main import main
from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.dataset import Dataset
from diffusion_policy_ros.data.idle import JOINT, KEPT_IDLE_FRAMES, departures, idle_ends


def still(frames):
    """States and actions of an arm at rest."""
    turn = np.tile(np.array([0, 0, 0, 1], np.float32), (frames, 1))
    states = {"position": np.zeros((frames, 3), np.float32), "orientation": turn}
    return states, np.zeros((frames, 7), np.float32)


@given(st.integers(0, 20), st.integers(0, 20), st.sampled_from(["position", "command", "gripper"]))
def test_idle_ends_are_what_is_beyond_the_first_and_last_motion(before, after, what):
    """The arm moves, is told to, or its gripper changes: rest beyond the kept frames counts."""
    states, actions = still(before + 3 + after)
    moving = slice(before, before + 3)
    if what == "position":
        states["position"][moving, 0] = 0.1, 0.2, 0.3
        states["position"][before + 3 :, 0] = 0.3
        after += 1  # the last frame that moves is already where the arm rests
    elif what == "command":
        actions[moving, 0] = 0.01
    else:
        actions[moving, 6] = 1.0
    idle = idle_ends(CONTRACT, states, actions)
    if what != "gripper" or (before and after):
        assert idle.start == max(0, before - KEPT_IDLE_FRAMES)
        assert idle.end == max(0, after - KEPT_IDLE_FRAMES)


def test_a_slow_start_is_motion():
    """A drift that stays below the threshold in each frame is motion when it adds up."""
    states, actions = still(100)
    states["position"][:, 0] = np.arange(100) * 1e-3
    idle = idle_ends(CONTRACT, states, actions)
    assert idle.start <= 3
    assert idle.end <= 3


def test_a_quaternions_sign_is_no_motion():
    """Quaternions q and -q are the same orientation."""
    states, actions = still(50)
    states["orientation"][10:] *= -1
    assert idle_ends(CONTRACT, states, actions) == (50, 0)


@given(st.lists(st.tuples(st.integers(2, 30), st.integers(1, 30)), min_size=1, max_size=4))
def test_it_sets_out_after_each_long_rest(parts):
    """Moves and rests in turn: a rest of ten frames or more is left once, a shorter one never."""
    states, actions = still(sum(map(sum, parts)))
    place, at, wanted = 0.0, 0, []
    for number, (moves, rests) in enumerate(parts):
        if number and parts[number - 1][1] + 1 >= 10:  # the last frame that moves is at rest, too
            wanted.append(at - KEPT_IDLE_FRAMES)
        for x in range(moves):
            states["position"][at + x, 0] = place = place + 0.01
        states["position"][at + moves :, 0] = place
        at += moves + rests
    states["orientation"][::3] *= -1  # the same orientation
    assert departures(CONTRACT, states, actions, 10) == wanted


def test_a_gripper_that_works_is_no_rest():
    """The arm waits until it has closed."""
    states, actions = still(60)
    states["position"][:10, 0] = np.arange(10) * 0.01
    states["position"][10:50, 0] = 0.09
    states["position"][50:, 0] = 0.09 + 0.01 * np.arange(1, 11)
    assert departures(CONTRACT, states, actions, 30) == [50 - KEPT_IDLE_FRAMES]
    actions[30:, 6] = 1.0
    assert departures(CONTRACT, states, actions, 30) == []


def test_a_long_bag_is_split_where_it_stood(tmp_path):
    """Three demonstrations with a second between them; what stands is left out, as ever."""
    messages, x = [], 0.0
    for i in range(3 * 40):
        ns, moves = START + i * PERIOD, i % 40 < 20
        x += 0.01 * moves
        messages += [("/camera", ns, picture(ns)), ("/pose", ns, pose(ns, (x, 0, 0)))]
        messages += [("/command", ns, trajectory(ns, [0.01 * moves] + [0.0] * 6))]
    bag = write_bag(tmp_path / "bag", messages, CONTRACT)
    (tmp_path / "made.yaml").write_text(CONTRACT.text)
    words = [
        "convert",
        str(bag),
        "--contract",
        str(tmp_path / "made.yaml"),
        "--split-still",
        "0.5",
    ]
    assert main([*words, "--out", str(tmp_path / "data")]) == 0
    episodes = Dataset(tmp_path / "data").episodes
    assert [e.frames for e in episodes] == pytest.approx([22, 24, 24], abs=1)


def picture(ns):
    """Of the contract's size."""
    return image(ns, np.zeros((4, 6, 3), np.uint8))


def test_four_joints_are_no_quaternion():
    """Each counts for itself, and its negative is another place."""
    contract = Contract.from_text("""
name: four_joints
rate_hz: 10
anchor: q
observations:
  q: {topic: /q, type: sensor_msgs/msg/JointState, names: [a, b, c, d]}
action:
  fields: [{name: arm, kind: joint_position, size: 4, state: q}]
  record: next_state
""")
    path = np.full((12, 4), 0.5, np.float32)
    path[5:] += 0.8 * JOINT
    assert idle_ends(contract, {"q": path}, path) == (len(path), 0)
    path[5:] = -0.5
    assert idle_ends(contract, {"q": path}, path) == (5 - KEPT_IDLE_FRAMES, 7 - KEPT_IDLE_FRAMES)


def test_a_continuous_joint_that_rests_at_half_a_turn_is_still():
    """Its noise says now pi and now -pi."""
    contract = Contract.from_text("""
name: turntable
rate_hz: 10
anchor: q
observations:
  q: {topic: /q, type: sensor_msgs/msg/JointState, names: [a, b]}
action:
  fields: [{name: arm, kind: joint_position, size: 2, state: q, wrap: [true, false]}]
  record: next_state
""")
    path = np.full((12, 2), 0.5)
    path[:, 0] = np.where(np.arange(12) % 2, np.pi - 1e-3, 1e-3 - np.pi)
    assert idle_ends(contract, {"q": path}, path) == (len(path), 0)
    path[6:, 0] = 1e-3 - np.pi + 0.5
    assert idle_ends(contract, {"q": path}, path) == (6 - KEPT_IDLE_FRAMES, 6 - KEPT_IDLE_FRAMES)


def test_driving_on_at_one_speed_is_no_rest():
    """A base at the recording's end, whose place nothing measures, while its arm stands."""
    contract = Contract.load("mobile_manipulator")
    states = {"joints": np.zeros((40, 6)), "opening": np.zeros((40, 1))}
    states["joints"][:, 0] = 0.05 * np.minimum(np.arange(40), 10)
    actions = np.zeros((40, contract.action_dim))
    actions[:, contract.action.slices["arm"]] = states["joints"]
    assert idle_ends(contract, states, actions) == (0, 30 - KEPT_IDLE_FRAMES)
    actions[5:35, 0] = 0.3
    assert idle_ends(contract, states, actions) == (0, 5 - KEPT_IDLE_FRAMES)
    actions[5:, 0] = 0.3
    assert idle_ends(contract, states, actions) == (0, 0)
