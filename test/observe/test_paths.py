"""A field's path into any message."""

from types import SimpleNamespace as Msg

import numpy as np
import pytest
from hypothesis import given, strategies as st

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.contract.fields import known_size, parsed
from diffusion_policy_ros.errors import UserError, UserErrors
from diffusion_policy_ros.observe.paths import numbers

VECTOR = Msg(x=1.0, y=2.0, z=3.0)
MESSAGE = Msg(
    wrench=Msg(force=VECTOR, torque=Msg(x=4.0, y=5.0, z=6.0)),
    data=True,
    o_t_ee=np.arange(16.0),
    name=["arm", "finger"],
    position=[0.1, 0.2],
    parts=[Msg(id="left", at=VECTOR), Msg(id="right", at=Msg(x=7.0, y=8.0, z=9.0))],
    label="text",
    mode=3,
    level=b"\x03",
    levels=[b"\x03", b"\x04"],
)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("wrench.force", [1, 2, 3]),
        ("wrench", [1, 2, 3, 4, 5, 6]),
        ("wrench.torque.y", [5]),
        ("data", [1]),
        ("mode", [3]),
        ("level", [3]),
        ("levels", [3, 4]),
        ("levels[1]", [4]),
        ("o_t_ee[12:15]", [12, 13, 14]),
        ("o_t_ee[3]", [3]),
        ("o_t_ee[0]", [0]),
        ("position[name=finger]", [0.2]),
        ("parts[id=right].at", [7, 8, 9]),
        ("parts[0].at.z", [3]),
        ("parts[0:2]", None),
    ],
)
def test_a_path_ends_at_numbers(path, expected):
    """By name, place, slice, or the name beside it; messages field after field."""
    if expected is None:
        with pytest.raises(UserError, match="is text"):
            numbers(path, MESSAGE)
        return
    assert list(numbers(path, MESSAGE)) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("wrench.forze", "there is no 'forze'; did you mean 'force'?"),
        ("label", "label is text; name a number"),
        ("o_t_ee[12:17]", "o_t_ee has 16 values, not 17"),
        ("o_t_ee[16]", "o_t_ee has 16 values, not 17"),
        ("position[name=thumb]", "no position whose name is 'thumb'; it has arm, finger"),
        ("position[mode=arm]", "no position whose mode is 'arm'; it has None, None"),
        ("mode[0]", "mode is no array to pick of; write mode alone"),
        ("wrench.force[0:2]", "force is no array to pick of; it has the fields x, y, z"),
        ("wrench.force[name=x]", "force is no array to pick of; it has the fields x, y, z"),
        ("mode.x", "there is no 'x'; there are no fields, but numbers"),
        ("position.x", "there is no 'x'; there are no fields, but numbers"),
    ],
)
def test_what_is_not_there_is_named(path, expected):
    """With what there is."""
    with pytest.raises(UserError) as caught:
        numbers(path, MESSAGE)
    assert str(caught.value) == expected


TWIST, JOINTS = "geometry_msgs/msg/TwistStamped", "sensor_msgs/msg/JointState"
ODOMETRY = "nav_msgs/msg/Odometry"


@pytest.mark.parametrize(
    ("kind", "field", "expected"),
    [
        (TWIST, "twist.linear[0]", "twist.linear is no array; write twist.linear.x"),
        (TWIST, "twist.linear[0:2]", "twist.linear is no array; write twist.linear.x"),
        (TWIST, "twist.linear[name=b]", "twist.linear is no array; write twist.linear.x"),
        (TWIST, "twist[0].linear", "twist is no array; write twist"),
        ("std_msgs/msg/Float64", "data[0]", "data is no array; write data"),
        ("std_msgs/msg/Float64", "data.x", "data has no fields; write data"),
        ("sensor_msgs/msg/Joy", "axes.x", "axes has no fields; write axes[0]"),
        (f"{JOINTS}, names: [a]", "position[0:1]", "names pick the values, too; write position"),
        (
            f"{JOINTS}, names: [a]",
            "position[name=a]",
            "names pick the values, too; write position",
        ),
        (JOINTS, "position[name=a]", ""),
        (TWIST, "twist.linear.x", ""),
        ("sensor_msgs/msg/Joy", "axes[0]", ""),
        (ODOMETRY, "pose.covariance[0:6]", ""),
    ],
)
def test_what_cannot_be_picked_is_refused_when_it_is_loaded(kind, field, expected):
    """Of the types that are known; each cure is a path that is taken."""
    stream = f'  it: {{topic: /o, type: {kind}, field: "{field}"}}'
    text = Contract.load("mini_bypass").text.replace("observations:", f"observations:\n{stream}")
    if not expected:
        assert Contract.from_text(text).observations["it"].size
        return
    with pytest.raises(UserErrors) as caught:
        Contract.from_text(text)
    assert f"observations.it.field: {expected}" in str(caught.value)


@given(st.text(alphabet="ab.[]0:1=_", max_size=12))
def test_any_text_is_a_path_or_none(text):
    """And what is one says so again when it is put together."""
    steps = parsed(text)
    assert all(step.name for step in steps)
    if steps:
        assert text.count(".") >= len(steps) - 1


@pytest.mark.parametrize(
    ("path", "size"),
    [("a[3]", 1), ("a[2:9]", 7), ("p[name=x]", 1), ("w.f", 3), ("w.f.y", 1), ("w", 6), ("u", 0)],
)
def test_sizes_that_a_path_says_itself(path, size):
    """Or its type's table."""
    assert known_size(path, {"w.f": 3, "w.t": 3}) == size


def test_a_message_of_more_than_axes_is_read_whole():
    """Some robots tell a pose as x y z and three angles."""
    pose = Msg(x=1.0, y=2.0, z=3.0, rx=4.0, ry=5.0, rz=6.0)
    turn = Msg(w=1.0, x=0.0, y=0.5, z=0.25)
    assert numbers("tool", Msg(tool=pose)) == [1, 2, 3, 4, 5, 6]
    assert numbers("tool", Msg(tool=turn)) == [0, 0.5, 0.25, 1]
