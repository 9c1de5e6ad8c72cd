"""Where actions lead: the step of one action, and absolute orientations of every kind."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.spatial.transform import Rotation

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.policy.rotations import TO_QUATERNION, convert
from diffusion_policy_ros.runtime.axes import goals
from diffusion_policy_ros.runtime.player import Player
from diffusion_policy_ros.runtime.tail import Chunk

PERIOD = 50_000_000
ABSOLUTE = """
name: absolute
rate_hz: 20
anchor: at
observations:
  at: {topic: /pose, type: geometry_msgs/msg/PoseStamped, field: pose.position}
  turn: {topic: /pose, type: geometry_msgs/msg/PoseStamped, field: pose.orientation}
action:
  fields:
    - {name: at, kind: position, state: at, limits: {step: 0.05, min: -0.12, max: 0.3}}
    - {name: turn, kind: KIND, state: turn, limits: {step: 0.3}}
  record: next_state
"""
vectors = st.lists(st.floats(-2, 2), min_size=3, max_size=3)


def absolute(kind="quaternion"):
    """A robot whose actions are absolute poses, with orientations of this kind."""
    return Contract.from_text(ABSOLUTE.replace("KIND", kind))


def test_a_step_of_one_action_is_limited_and_its_target_is_in_the_range():
    """0.2 m is asked for: 0.05 m an action is done, to the edge and no farther."""
    actions = np.tile([-0.2, 0, 0, 0, 0, 0, 1.0], (6, 1))
    where = {"at": np.zeros(3), "turn": np.array([0.0, 0, 0, 1])}
    xs = [goal["at"][0] for goal in goals(absolute(), where, actions)]
    assert xs == pytest.approx([0, -0.05, -0.1, -0.12, -0.12, -0.12, -0.12])
    player = Player(absolute(), 20, interpolate=False)
    player.release(0)
    player.offer(Chunk(0, actions, PERIOD))
    told = [player.tick(i * PERIOD, where)["at"][0] for i in range(5)]
    assert told == pytest.approx(xs[1:6])
    assert player.clamped["at.step"] == 2 and player.clamped["at.range"] == 5


@pytest.mark.parametrize("kind", TO_QUATERNION)
@settings(max_examples=30, deadline=None)
@given(vectors, vectors)
def test_absolute_orientations_are_approached_on_the_shortest_way(kind, start, goal):
    """Each kind leads to the same orientation, by at most the limit each time."""
    here, there = Rotation.from_rotvec(start), Rotation.from_rotvec(goal)
    action = np.concatenate([np.zeros(3), convert(there.as_quat(), "quaternion", kind)])
    distance = (there * here.inv()).magnitude()
    actions = np.tile(action, (int(distance / 0.3) + 1, 1))
    where = {"at": np.zeros(3), "turn": here.as_quat()}
    for told in goals(absolute(kind), where, actions)[1:]:
        left = (there * Rotation.from_quat(told["turn"]).inv()).magnitude()
        assert left == pytest.approx(max(0.0, distance - 0.3), abs=1e-6)
        distance = left
    assert left < 1e-6
