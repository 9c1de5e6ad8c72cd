"""Action fields as axes: their limits, what measures them, and the messages they go out in."""

import pytest

from diffusion_policy_ros.contract import ACTION_KINDS, LIMITS_OF, OUTPUTS, ROLES, Contract
from diffusion_policy_ros.contract.check import sent_in_other_units
from diffusion_policy_ros.contract.outputs import DEFAULTS
from diffusion_policy_ros.errors import UserError, UserErrors
from diffusion_policy_ros.runtime.player import Player
from diffusion_policy_ros.shipped import config_path

POSE, TWIST = "geometry_msgs/msg/PoseStamped", "geometry_msgs/msg/TwistStamped"
HEAD = """
name: robot
rate_hz: 20
anchor: q
observations:
  q: {topic: /joint_states, type: sensor_msgs/msg/JointState, names: [a, b]}
  finger: {topic: /joint_states, type: sensor_msgs/msg/JointState, names: [f]}
  nameless: {topic: /joints, type: std_msgs/msg/Float64MultiArray, shape: [2]}
  left_pos: {topic: /left, type: geometry_msgs/msg/PoseStamped, field: pose.position}
  left_quat: {topic: /left, type: geometry_msgs/msg/PoseStamped, field: pose.orientation}
  right_pos: {topic: /right, type: geometry_msgs/msg/PoseStamped, field: pose.position}
action:
  record: {topic: /told, type: std_msgs/msg/Float64MultiArray, shape: [N]}
  fields:
"""
SIZES = {kind: size or 2 for kind, size in ACTION_KINDS.items()}


def robot(*fields, limits=""):
    """A contract of these fields."""
    kinds = [field.split("kind: ")[1].split(",")[0].split("}")[0] for field in fields]
    text = HEAD.replace("N]", f"{sum(SIZES[kind] for kind in kinds)}]")
    lines = "".join(f"    - {{{field}}}\n" for field in fields)
    return Contract.from_text(f"{text}{lines}" + (f"  limits: {{{limits}}}\n" if limits else ""))


def refusals(contract):
    """Why no player can play it, a line each."""
    with pytest.raises(UserErrors) as caught:
        contract.check_outputs()
    return str(caught.value).splitlines()


ARM = "name: arm, kind: joint_position, size: 2, state: q"
TURN = "name: turn, kind: rotation_6d, state: left_quat"


def test_arm_and_gripper_as_joints_share_a_trajectory():
    """All fields are commanded: one message, the names of both."""
    send = "{topic: ~/joint_trajectory, type: trajectory_msgs/msg/JointTrajectory}"
    contract = robot(ARM, f"name: hand, kind: scalar, state: finger, send: {send}")
    contract.check_outputs()
    assert [(o.topic, o.names) for o in contract.outputs] == [
        ("~/joint_trajectory", ("a", "b", "f"))
    ]


def test_two_arms_need_an_output_each():
    """Two positions do not fit a pose; the cure works, and two grippers share one array."""
    fields = [
        "name: left, kind: position, state: left_pos",
        "name: right, kind: position, state: right_pos",
        "name: left_hand, kind: binary",
        "name: right_hand, kind: binary",
    ]
    lines = refusals(robot(*fields))
    assert len(lines) == 1 and "left, right would go out in one" in lines[0]
    fields[0] += f", send: {{topic: /left/target, type: {POSE}}}"
    contract = robot(*fields)
    contract.check_outputs()
    parts = {o.topic: [part.name for part in o.fields] for o in contract.outputs}
    assert parts["/left/target"] == ["left", "left.orientation"]
    assert parts["~/gripper"] == ["left_hand", "right_hand"]


def test_half_a_pose_keeps_the_other_half_of_the_same_message():
    """The orientation is measured where the position is."""
    contract = robot("name: at, kind: position, state: left_pos, frame: world")
    assert [part.kind for part in contract.commanded] == ["position", "quaternion"]
    assert contract.measured["at.orientation"].field == "pose.orientation"
    assert contract.frames == {"left_pos": "world", "at.orientation": "world"}
    whole = robot(
        "name: at, kind: position, state: left_pos",
        "name: turn, kind: axis_angle, state: left_quat",
    )
    assert len(whole.commanded) == 2


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("name: arm, kind: joint_position, size: 2", "nothing measures arm"),
        ("name: arm, kind: joint_position, size: 2, state: nameless", "0 names for 2 values"),
        (ARM + f", send: {{type: {POSE}}}", "cannot carry arm, a joint_position"),
        (ARM + ", send: {type: std_msgs/msg/Float64}", "arm has 2 values"),
        (ARM + ", send: {names: [c, c]}", "arm would tell c twice in one trajectory_msgs"),
    ],
)
def test_what_no_output_can_carry_is_refused_at_check(field, expected):
    """But it loads: what was trained with it goes on."""
    assert expected in refusals(robot(field))[0]


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (ARM + ", limits: {velocity: 0}", "velocity: is not above zero"),
        (ARM + ", limits: {velocity: [1, 2, 3]}", "3 numbers for 2 components"),
        (ARM + ", limits: {velocity: []}", "0 numbers for 2 components"),
        ("name: arm, kind: joint_position, limits: {velocity: []}", "size: is missing"),
        (TURN + ", limits: {lead: [1, 1, 1, 1, 1, 1]}", "6 numbers for 3 components"),
        (ARM + ", limits: {min: 1, max: 0}", "is above the maximum"),
        (ARM + ", limits: {min: 1}", "belong together"),
        (ARM + ", wrap: [true]", "1 of 2 joints"),
        (ARM + ", wrap: true, limits: {min: -1, max: 1}", "no range"),
        (ARM + ", deltas_from: measured", "is no delta"),
        (ARM + ", send: {type: geometry_msgs/msg/Pose}", "did you mean 'geometry_msgs/msg/Pose"),
        ("name: g, kind: binary, limits: {velocity: 1}", "has no such limit; remove it"),
        ("name: g, kind: scalar, limits: {lead: 1}", "nothing measures the field"),
        ("name: v, kind: twist, limits: {lead: 1}", "has no such limit"),
    ],
)
def test_mistakes_of_a_field_are_named(field, expected):
    """With the line and a cure, as all others."""
    with pytest.raises(UserErrors) as caught:
        robot(field)
    assert expected in str(caught.value)


def test_limits_of_a_rotation_are_of_three_axes():
    """Whatever number of components tells the rotation: a player is made of them."""
    contract = robot(TURN + ", limits: {velocity: [1, 1, 0.5]}")
    assert Player(contract).contract is contract


def test_limits_at_the_top_mean_what_they_meant():
    """They act on the fields by kind, a field's own wins, and the hash is of the top alone."""
    text = config_path("contracts", "mini_lift_state").read_text()
    contract = Contract.from_text(text)
    moved, turned, hand = map(contract.action.limits_of, contract.action.fields)
    assert moved.given == {
        "step": 0.05,
        "lead": 0.05,
        "min": (-0.3, -0.3, 0.0),
        "max": (0.3, 0.3, 0.45),
    }
    assert turned.given == {"step": 0.3} and not hand.given
    own = Contract.from_text(
        text.replace("delta_position,", "delta_position, limits: {lead: 0.02, velocity: 0.1},")
    )
    assert own.action.limits_of(own.action.fields[0]).lead == 0.02
    assert own.hash == contract.hash


def test_limits_of_joints_reach_the_fields_that_they_fit():
    """One number acts on every field of joints; a list on those of its size."""
    hand = "name: hand, kind: joint_position, size: 1, state: finger"
    text = HEAD.replace("N]", "3]") + f"    - {{{ARM}}}\n    - {{{hand}}}\n"
    limits = "  limits: {joint_velocity: [0.5], joint_min: [-1, -1], joint_max: [1, 1]}\n"
    contract = Contract.from_text(text + limits)
    arm, hand = map(contract.action.limits_of, contract.action.fields)
    assert arm.given == {"velocity": (0.5,), "min": (-1, -1), "max": (1, 1)}
    assert hand.given == {"velocity": (0.5,)}


HAND = "name: hand, kind: joint_position, size: 1, state: finger"


@pytest.mark.parametrize(
    ("wrong", "cured", "expected"),
    [
        (
            (ARM, HAND, "joint_lead: [0.1, 0.1]"),
            (ARM, HAND + ", limits: {lead: 0.1}", "joint_lead: [0.1, 0.1]"),
            "limits.joint_lead: 2 numbers, but hand has 1 joints",
        ),
        (
            (ARM + ", wrap: true", HAND + ", wrap: true", "joint_min: [-1], joint_max: [1]"),
            (ARM, HAND + ", wrap: true", "joint_min: [-1], joint_max: [1]"),
            "limits.joint_min: continuous joints have no range",
        ),
    ],
)
def test_limits_that_would_not_reach_a_field_are_refused(wrong, cured, expected):
    """Nobody plays an arm whose limits were meant and do not act; the cure works."""

    def made(arm, hand, limits):
        text = HEAD.replace("N]", "3]") + f"    - {{{arm}}}\n    - {{{hand}}}\n"
        return Contract.from_text(f"{text}  limits: {{{limits}}}\n")

    (line,) = refusals(made(*wrong))
    assert expected in line
    with pytest.raises(UserErrors, match=expected):
        made(*wrong).refuse_contradictions("arm.yaml")
    made(*cured).check_outputs()


def test_joints_are_not_told_each_others_set_points():
    """Names that are sent in another order than the state has them are refused; others are not."""
    send = "send: {names: [b, a]}"
    contract = robot(f"{ARM}, {send}")
    (line,) = refusals(contract)
    assert "fields.0.send.names: arm has its joints as b, a, but its state as a, b" in line
    with pytest.raises(UserErrors, match="in the same order"):
        contract.refuse_contradictions("arm.yaml")
    robot(f"{ARM}, send: {{names: [left_a, left_b]}}").check_outputs()
    (line,) = refusals(robot(ARM, ARM.replace("arm", "other")))
    assert "arm, other would tell a, b twice in one" in line
    robot(ARM, ARM.replace("arm", "other") + ", send: {topic: /other}").check_outputs()


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (
            "topic: /p, type: geometry_msgs/msg/PointStamped",
            "which geometry_msgs/msg/PointStamped",
        ),
        ("topic: /p, type: std_msgs/msg/Float64MultiArray, shape: [3]", "does not measure"),
        ("tf: {parent: base, child: tool}", "from tf, which a player does not read"),
    ],
)
def test_a_state_that_cannot_begin_a_pose_is_refused(stream, expected):
    """A player would wait for ever, or play and tell the robot nothing; the cures work."""

    def made(measured, send=""):
        pose = "topic: /left, type: geometry_msgs/msg/PoseStamped, field: pose.position"
        text = HEAD.replace("N]", "3]").replace(pose, measured, 1)
        return Contract.from_text(
            f"{text}    - {{name: at, kind: position, state: left_pos{send}}}\n"
        )

    (line,) = refusals(made(stream))
    assert "fields.at.state" in line and expected in line
    made(f"topic: /p, type: {POSE}, field: pose.position").check_outputs()
    if "topic" in stream:
        made(stream, f", send: {{topic: /t, type: {TWIST}}}").check_outputs()


def test_parameters_tighten_limits_and_loosen_them_only_when_told_to():
    """By the field's name or by the one at the top; what is wrong is named."""
    action = robot(
        "name: left, kind: position, state: left_pos, limits: {velocity: 0.5}",
        "name: right, kind: position, state: right_pos",
        limits="lead: 0.05",
    ).action
    slower = action.tightened({"velocity": 0.1, "right.lead": 0.01, "chunk_timeout_s": 0.5})
    left, right = map(slower.limits_of, slower.fields)
    assert (left.velocity, left.lead, right.velocity, right.lead) == (0.1, 0.05, 0.1, 0.01)
    assert slower.limits.chunk_timeout_s == 0.5
    with pytest.raises(UserError, match=r"limit left.velocity: 0.6 allows more.*loosen_limits"):
        action.tightened({"left.velocity": 0.6})
    assert action.tightened({"left.velocity": 0.6}, loosen=True).fields[0].limits.velocity == 0.6
    with pytest.raises(UserError, match="allows more"):
        action.tightened({"on_stale": "stop"}).tightened({"on_stale": "hold"})
    with pytest.raises(UserError, match=r"did you mean 'left.velocity'"):
        action.tightened({"left.velocit": 0.1})
    with pytest.raises(UserError, match="not above zero"):
        action.tightened({"left.velocity": -1.0})


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("rate_hz: 20", "rate_hz: 10", "rate_hz: 20 and 10"),
        ("delta_position", "position", "kind: delta_position"),
        ("frame: base", "frame: world", "frame: base"),
        ("name: translation,", "name: translation, deltas_from: measured,", "deltas_from"),
        ("topic: /eef_pose", "topic: /other", ""),
    ],
)
def test_a_player_knows_chunks_that_are_not_its_own(old, new, expected):
    """By name; a topic is nobody's meaning."""
    text = config_path("contracts", "mini_lift_state").read_text()
    ours, theirs = Contract.from_text(text), Contract.from_text(text.replace(old, new))
    told = ours.action_difference(theirs)
    assert expected in told and bool(told) is bool(expected)


@pytest.mark.parametrize("task", ["can", "can_lowdim", "square", "square_lowdim"])
def test_robomimics_deltas_are_from_the_measured_pose(task):
    """As robosuite's controller has them, whose actions its data are."""
    fields = Contract.load(f"robomimic_{task}").action.fields
    assert [part.deltas_from for part in fields if part.is_delta] == ["measured"] * 2


def test_the_tables_know_every_kind():
    """Each kind has a role, each role limits and an output that carries it."""
    assert ROLES.keys() == ACTION_KINDS.keys()
    for role in ROLES.values():
        assert role in LIMITS_OF and role in OUTPUTS[DEFAULTS[role][1]].roles


def test_velocities_and_a_grippers_position_are_no_one_joint_state():
    """Which has either: the arm's velocities would go out as positions."""
    send = "send: {topic: /command, type: sensor_msgs/msg/JointState, names: "
    contract = Contract.from_text(f"""
name: arm
rate_hz: 20
anchor: joints
observations:
  joints: {{topic: /joint_states, type: sensor_msgs/msg/JointState, names: [a, finger]}}
action:
  fields:
  - {{name: arm, kind: joint_velocity, size: 1, {send}[a]}}}}
  - {{name: grip, kind: scalar, {send}[finger]}}}}
  record: [{{topic: /command, type: std_msgs/msg/Float64MultiArray, shape: [2]}}]
""")
    with pytest.raises(UserError, match="arm, grip mix positions and velocities"):
        contract.check_outputs()


def test_no_component_has_the_name_of_another():
    """Two arms of one make: a listener of chunks has to know whose joint it is."""
    second = ARM.replace("name: arm", "name: right") + ", send: {topic: ~/right}"
    assert robot(ARM, second).action_names == ["arm.a", "arm.b", "right.a", "right.b"]
    assert robot(ARM).action_names == ["a", "b"]


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (f"{ARM}, send: {{scale: [1, 2, 3]}}", "3 numbers for 2 components of arm"),
        (f"{TURN}, send: {{scale: [0.1]}}", "PoseStamped is in SI units"),
        ("name: hand, kind: binary, send: {scale: [0.1]}", "hand is open or closed"),
    ],
)
def test_units_that_cannot_be_sent_are_refused(field, expected):
    """Each with its cure."""
    assert expected in "\n".join(refusals(robot(field)))


def test_other_units_than_were_recorded_on_a_topic_are_noted():
    """A driver of degrees that is sent rad would swing to zero."""
    send = "type: sensor_msgs/msg/JointState, topic: /told"
    record = f"{{{send}, names: [a, b], scale: [0.01]}}"
    text = HEAD.replace("{topic: /told, type: std_msgs/msg/Float64MultiArray, shape: [N]}", record)
    noted = [
        list(
            sent_in_other_units(
                Contract.from_text(f"{text}    - {{{ARM}, send: {{{send}{scale}}}}}\n")
            )
        )
        for scale in ("", ", scale: [0.01]", ", scale: [0.01, 0.01]")
    ]
    assert [
        "recorded with scale [0.01, 0.01], sent with [1.0, 1.0]" in line for line in noted[0]
    ] == [True]
    assert noted[1:] == [[], []]
