"""Contracts of the player's tests, and arms that follow set-points badly."""

import numpy as np
from scipy.spatial.transform import Rotation

from diffusion_policy_ros.contract import Contract

MS = 1_000_000
PERIOD = 50 * MS
TICK = 10 * MS

POSE = "type: geometry_msgs/msg/PoseStamped, field: pose"
JOINTS = "type: sensor_msgs/msg/JointState"
ALL_KINDS = Contract.from_text(f"""
name: all_kinds
rate_hz: 20
anchor: left_pos
observations:
  left_pos: {{topic: /left, {POSE}.position}}
  left_quat: {{topic: /left, {POSE}.orientation}}
  right_pos: {{topic: /right, {POSE}.position}}
  right_quat: {{topic: /right, {POSE}.orientation}}
  wrist: {{topic: /joint_states, {JOINTS}, names: [a, b]}}
  wheel: {{topic: /joint_states, {JOINTS}, names: [c]}}
  tail: {{topic: /joint_states, {JOINTS}, names: [d, e]}}
  turret: {{topic: /joint_states, {JOINTS}, names: [g]}}
  width: {{topic: /joint_states, {JOINTS}, names: [f]}}
action:
  record: {{topic: /told, type: std_msgs/msg/Float64MultiArray, shape: [32]}}
  limits: {{chunk_timeout_s: 0.6, observation_timeout_s: 0.2}}
  fields:
    - {{name: left, kind: delta_position, state: left_pos, limits: {{velocity: 0.2,
        acceleration: 2, step: 0.05, lead: 0.05, jump: 0.08, following_error: 0.3,
        min: [-0.3, -0.3, 0], max: 0.45}}}}
    - {{name: left_turn, kind: delta_axis_angle, state: left_quat, deltas_from: measured,
        limits: {{velocity: 1, acceleration: 8, lead: 0.4, step: 0.3}}}}
    - {{name: right, kind: position, state: right_pos, actuation_latency_s: 0.1,
        send: {{topic: /right/target}}, limits: {{velocity: [0.1, 0.2, 0.3],
        acceleration: [1, 2, 3], lead: 0.1, jump: 0.2, min: -0.4, max: 0.4}}}}
    - {{name: right_turn, kind: rotation_6d, state: right_quat, send: {{topic: /right/target}},
        limits: {{velocity: 2, acceleration: 9, jump: 1.0}}}}
    - {{name: wrist, kind: joint_position, size: 2, state: wrist, limits: {{velocity: [0.5, 1],
        acceleration: 4, lead: 0.2, min: -1, max: 1, jump: 0.8}}}}
    - {{name: wheel, kind: joint_position, size: 1, state: wheel, wrap: true,
        limits: {{velocity: 1, acceleration: 5}}}}
    - {{name: tail, kind: delta_joint_position, size: 2, state: tail, deltas_from: measured,
        limits: {{velocity: 1, min: [-0.5, -2], max: [0.5, 2]}}}}
    - {{name: turret, kind: delta_joint_position, size: 1, state: turret, wrap: true,
        deltas_from: measured, limits: {{velocity: 1}}}}
    - {{name: width, kind: scalar, state: width, limits: {{velocity: 0.1, min: 0, max: 0.5}}}}
    - {{name: base, kind: twist, limits: {{velocity: [1, 1, 0.1, 0.1, 0.1, 1], acceleration: 2}}}}
    - {{name: lift, kind: joint_velocity, size: 1, limits: {{velocity: 0.3, acceleration: 1}}}}
    - {{name: spin, kind: joint_velocity, size: 1}}
    - {{name: hand, kind: binary}}
    - {{name: light, kind: scalar}}
""")


def _arm(side):
    return f"""
    - {{name: {side}, kind: position, state: {side}_pos, send: {{topic: /{side}/target}}, limits:
        {{velocity: 0.25, acceleration: 1.5, lead: 0.1, jump: 0.15, min: -0.5, max: 0.5}}}}
    - {{name: {side}_turn, kind: axis_angle, state: {side}_quat, send: {{topic: /{side}/target}},
        limits: {{velocity: 1.5, acceleration: 8, lead: 0.5}}}}
    - {{name: {side}_hand, kind: binary}}"""


TWO_ARMS = Contract.from_text(f"""
name: two_arms
rate_hz: 20
anchor: left_pos
observations:
  left_pos: {{topic: /left, {POSE}.position}}
  left_quat: {{topic: /left, {POSE}.orientation}}
  right_pos: {{topic: /right, {POSE}.position}}
  right_quat: {{topic: /right, {POSE}.orientation}}
action:
  record: {{topic: /told, type: std_msgs/msg/Float64MultiArray, shape: [14]}}
  fields:{_arm("left")}{_arm("right")}
""")
HALF_POSE = Contract.from_text(f"""
name: half_pose
rate_hz: 20
anchor: at
observations:
  at: {{topic: /pose, {POSE}.position}}
action:
  record: next_state
  fields: [{{name: at, kind: delta_position, state: at, limits: {{velocity: 0.2}}}}]
""")
ROBOTS = {robot.name: robot for robot in (ALL_KINDS, TWO_ARMS, HALF_POSE)}


def home(contract, at=0.1):
    """Where a robot is in the beginning: key → vector, of all that measures it.

    Continuous joints are where their drivers begin to count anew.
    """
    found = {}
    for part in contract.commanded:
        if part.state in contract.measured:
            turns = part.role == "rotation"
            found[part.state] = (
                np.array([0.0, 0, 0, 1])
                if turns
                else np.full(part.size, np.pi - 1e-3 if part.wrap else at)
            )
    return found


def way(part, start, end):
    """The step between two values of a field, by SciPy."""
    if part.role == "rotation":
        return (Rotation.from_quat(end) * Rotation.from_quat(start).inv()).as_rotvec()
    return np.asarray(end) - np.asarray(start)


def moved(part, start, step):
    """The value after a step, as a driver says it: of continuous joints between -pi and pi."""
    if part.role == "rotation":
        return (Rotation.from_rotvec(step) * Rotation.from_quat(start)).as_quat()
    return (start + step + np.pi) % (2 * np.pi) - np.pi if part.wrap else start + step


def within(part, limit, vector, slack=1e-7):
    """Whether a vector of a field keeps to a limit: its length, or each component."""
    if limit is None:
        return True
    if part.role in ("position", "rotation") and not isinstance(limit, tuple):
        return np.linalg.norm(vector) <= limit * (1 + 1e-6) + slack
    return (np.abs(vector) <= np.array(limit) * (1 + 1e-6) + slack).all()
