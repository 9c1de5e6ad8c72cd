"""The quick decoders against rosbags', on messages of every shape."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from made_bags import IMAGE, JOINTS, POSE, TRAJECTORY, header
from rosbags.typesys import Stores, get_typestore

from diffusion_policy_ros.data.bags import message_types
from diffusion_policy_ros.observe import cdr

STORE = get_typestore(Stores.ROS2_JAZZY)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=9)
NUMBER = st.floats(width=64)
NUMBERS = st.lists(NUMBER, max_size=4).map(lambda values: np.array(values, np.float64))


def build(kind, /, **fields):
    """A strategy of messages of a type."""
    return st.builds(message_types(kind), **fields)


HEADER = st.builds(header, st.integers(0, 2**60), TEXT)
DURATION = build(
    "builtin_interfaces/msg/Duration",
    sec=st.integers(-(2**31), 2**31 - 1), nanosec=st.integers(0, 2**32 - 1),
)  # fmt: skip
MESSAGES = {
    IMAGE: build(
        IMAGE, header=HEADER, height=st.integers(0, 2**32 - 1), width=st.integers(0, 2**32 - 1),
        encoding=TEXT, is_bigendian=st.integers(0, 255), step=st.integers(0, 2**32 - 1),
        data=st.binary(max_size=30).map(lambda b: np.frombuffer(b, np.uint8)),
    ),
    POSE: build(
        POSE, header=HEADER,
        pose=build(
            "geometry_msgs/msg/Pose",
            position=build("geometry_msgs/msg/Point", x=NUMBER, y=NUMBER, z=NUMBER),
            orientation=build(
                "geometry_msgs/msg/Quaternion", x=NUMBER, y=NUMBER, z=NUMBER, w=NUMBER
            ),
        ),
    ),
    JOINTS: build(
        JOINTS, header=HEADER, name=st.lists(TEXT, max_size=4),
        position=NUMBERS, velocity=NUMBERS, effort=NUMBERS,
    ),
    TRAJECTORY: build(
        TRAJECTORY, header=HEADER, joint_names=st.lists(TEXT, max_size=4),
        points=st.lists(
            build(
                "trajectory_msgs/msg/JointTrajectoryPoint", positions=NUMBERS, velocities=NUMBERS,
                accelerations=NUMBERS, effort=NUMBERS, time_from_start=DURATION,
            ),
            max_size=3,
        ),
    ),
}  # fmt: skip


def fields(value):
    """A message, a tuple with names or an array as plain values; NaN equals itself."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    elif hasattr(value, "__msgtype__"):
        value = vars(value)
    if isinstance(value, dict):
        return {n: fields(v) for n, v in value.items() if n not in ("header", "__msgtype__")}
    if isinstance(value, np.ndarray | memoryview):
        return bytes(value)
    if isinstance(value, list):
        return [fields(item) for item in value]
    return repr(value)


@pytest.mark.parametrize("name", list(cdr.DECODERS))
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_every_field_is_as_rosbags_decodes_it(name, data):
    """Whatever the lengths, and so the paddings: the same values, and no more of them."""
    msg = data.draw(MESSAGES[name])
    raw = memoryview(bytes(STORE.serialize_cdr(msg, name, little_endian=True)))
    assert fields(cdr.DECODERS[name](raw)) == fields(STORE.deserialize_cdr(raw, name))


@pytest.mark.parametrize("name", list(cdr.DECODERS))
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_message_that_is_cut_off_is_an_error(name, data):
    """Never half a message, and no error but those that are announced."""
    raw = bytes(STORE.serialize_cdr(data.draw(MESSAGES[name]), name, little_endian=True))
    end = data.draw(st.integers(12, len(raw) - 1))
    with pytest.raises(cdr.ERRORS):
        cdr.DECODERS[name](memoryview(raw[:end]))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(list(cdr.DECODERS)), st.binary(max_size=100))
def test_nonsense_is_an_error_or_a_message(name, nonsense):
    """Bytes from anywhere raise what is announced, at once, whatever counts they claim."""
    try:
        cdr.DECODERS[name](memoryview(b"\0\1\0\0" + nonsense))
    except cdr.ERRORS:
        pass
