"""One message ↔ one array, on duck-typed messages."""

import io
from types import SimpleNamespace as Message

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image

from diffusion_policy_ros.contract import Stream
from diffusion_policy_ros.observe.codecs import DecodeError, decode, stamp_ns
from diffusion_policy_ros.observe.serialized import StampedMessage

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
IMAGE = "sensor_msgs/msg/Image"


def stream(type_name, **settings):
    """A stream named ``key`` on ``/topic``."""
    return Stream("/topic", type_name, **settings).resolved("key")


def image_message(rgb, encoding, padding=0):
    """An Image of an RGB array in some encoding, rows padded with rubbish."""
    pixels = {
        "rgb8": rgb,
        "bgr8": rgb[..., ::-1],
        "rgba8": np.dstack([rgb, np.full(rgb.shape[:2], 9, np.uint8)]),
        "bgra8": np.dstack([rgb[..., ::-1], np.full(rgb.shape[:2], 9, np.uint8)]),
        "mono8": rgb[..., :1],
    }[encoding]
    rows = pixels.reshape(len(rgb), -1)
    rows = np.hstack([rows, np.full((len(rgb), padding), 77, np.uint8)])
    return Message(
        height=rgb.shape[0],
        width=rgb.shape[1],
        encoding=encoding,
        step=rows.shape[1],
        data=rows.tobytes(),
    )


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8"])
def test_every_encoding_gives_the_same_rgb(encoding, padding):
    """Colours in any order, padded rows or not."""
    spec = stream(IMAGE, shape=(6, 8, 3), encoding=encoding, resize="none")
    array = decode(spec, image_message(RGB, encoding, padding))
    assert np.array_equal(array, RGB) and array.flags.c_contiguous


def test_grey_is_one_channel_or_three_equal_ones():
    """mono8 as the contract's shape wants it."""
    message = image_message(RGB, "mono8", padding=3)
    grey = decode(stream(IMAGE, shape=(6, 8, 1), encoding="mono8"), message)
    colour = decode(stream(IMAGE, shape=(6, 8, 3), encoding="mono8"), message)
    assert np.array_equal(grey, RGB[..., :1]) and np.array_equal(
        colour, np.repeat(RGB[..., :1], 3, axis=2)
    )
    assert decode(stream(IMAGE, shape=(6, 8, 1)), image_message(RGB, "rgb8")).shape == (6, 8, 1)


def test_another_encoding_is_refused_by_name():
    """Nothing is guessed: the cure names the key."""
    with pytest.raises(
        DecodeError,
        match=r"key \(/topic\): the image is 'bgr8', the contract says 'rgb8'; set encod",
    ):
        decode(stream(IMAGE, shape=(6, 8, 3)), image_message(RGB, "bgr8"))


def test_another_size_is_refused_where_the_contract_fixes_it():
    """Exact with resize: none, and with source_size."""
    for settings in ({"resize": "none"}, {"source_size": (12, 16)}):
        with pytest.raises(DecodeError, match="the image is 8x6"):
            decode(stream(IMAGE, shape=(12, 16, 3), **settings), image_message(RGB, "rgb8"))


@pytest.mark.parametrize(
    "change", [{"height": 0}, {"step": 3}, {"data": b"123"}, {"height": 10**6}]
)
def test_an_image_that_contradicts_itself_is_refused(change):
    """Sizes that do not fit the data never read beyond it."""
    message = Message(**{**vars(image_message(RGB, "rgb8")), **change})
    with pytest.raises(DecodeError, match="bytes are no"):
        decode(stream(IMAGE, shape=(6, 8, 3)), message)


def test_area_averages_whole_blocks_of_pixels():
    """Halving an image averages 2x2 blocks, rounded once a direction."""
    array = decode(stream(IMAGE, shape=(3, 4, 3)), image_message(RGB, "rgb8"))
    blocks = RGB.reshape(3, 2, 4, 2, 3).mean((1, 3))
    assert np.abs(array - blocks).max() <= 1.0


def test_crop_comes_before_resizing():
    """The crop is in pixels of the source."""
    array = decode(stream(IMAGE, shape=(2, 3, 3), crop=(1, 2, 2, 3)), image_message(RGB, "rgb8"))
    assert np.array_equal(array, RGB[1:3, 2:5])
    with pytest.raises(DecodeError, match="no such crop"):
        decode(stream(IMAGE, shape=(2, 3, 3), crop=(5, 2, 2, 3)), image_message(RGB, "rgb8"))


@pytest.mark.parametrize("how", ["PNG", "JPEG"])
def test_compressed_images(how):
    """Png is exact, jpeg near; a broken one is refused."""
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(flat).save(buffer, how)
    spec = stream("sensor_msgs/msg/CompressedImage", shape=(16, 16, 3))
    array = decode(spec, Message(format=how, data=np.frombuffer(buffer.getvalue(), np.uint8)))
    assert np.abs(array.astype(int) - flat).max() <= (0 if how == "PNG" else 4)
    for broken in (b"", b"rubbish", buffer.getvalue()[:60]):
        with pytest.raises(DecodeError, match="not a whole jpeg or png"):
            decode(spec, Message(format=how, data=broken))


def test_joints_are_picked_by_name_in_any_order():
    """The contract's order counts; a missing joint is named."""
    spec = stream("sensor_msgs/msg/JointState", names=("left", "right"))
    message = Message(
        name=["x", "right", "left"], position=[0.0, 2.0, 1.0], velocity=[], effort=[]
    )
    assert decode(spec, message).tolist() == [1.0, 2.0]
    with pytest.raises(DecodeError, match="no position of joint 'left'"):
        decode(spec, Message(name=["right"], position=[1.0]))
    many = [f"wheel_{i}_joint" for i in range(30)]
    with pytest.raises(DecodeError, match=r"wheel_1_joint, .*_joint, \.\.\.$"):
        decode(spec, Message(name=many, position=[0.0] * 30))
    with pytest.raises(DecodeError, match="no velocity of joint"):
        decode(stream("sensor_msgs/msg/JointState", names=("x",), field="velocity"), message)


def test_a_part_of_a_trajectorys_point_is_taken_by_its_place():
    """As of any other message."""
    spec = stream("trajectory_msgs/msg/JointTrajectory", field="positions[1:3]")
    point = Message(positions=[1.0, 2.0, 3.0], velocities=[])
    assert decode(spec, Message(joint_names=[], points=[point])).tolist() == [2.0, 3.0]


def test_poses_transforms_and_twists():
    """The named part, x y z (w)."""
    vector = Message(x=1.0, y=2.0, z=3.0)
    turn = Message(x=0.0, y=0.0, z=0.6, w=0.8)
    pose = Message(pose=Message(position=vector, orientation=turn))
    transform = Message(transform=Message(translation=vector, rotation=turn))
    twist = Message(twist=Message(linear=vector, angular=vector))
    assert decode(stream("geometry_msgs/msg/PoseStamped"), pose).tolist() == [1, 2, 3]
    spec = stream("geometry_msgs/msg/PoseStamped", field="pose.orientation")
    assert decode(spec, pose).tolist() == pytest.approx([0, 0, 0.6, 0.8])
    spec = stream("geometry_msgs/msg/TransformStamped", field="transform.rotation")
    assert decode(spec, transform).tolist() == pytest.approx([0, 0, 0.6, 0.8])
    spec = stream("geometry_msgs/msg/TwistStamped", field="twist.angular", scale=(0.1,))
    assert decode(spec, twist).tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_a_zero_quaternion_is_refused():
    """An orientation that was never filled in is no orientation."""
    zero = Message(x=0.0, y=0.0, z=0.0, w=0.0)
    with pytest.raises(DecodeError, match="no unit quaternion"):
        spec = stream("geometry_msgs/msg/PoseStamped", field="pose.orientation")
        decode(spec, Message(pose=Message(orientation=zero)))


def test_commands_and_arrays():
    """The first point of a trajectory; plain arrays, which have no stamp."""
    trajectory = Message(joint_names=["b", "a"], points=[Message(positions=[1.0, 2.0])])
    spec = stream("trajectory_msgs/msg/JointTrajectory", names=("a", "b"))
    assert decode(spec, trajectory).tolist() == [2.0, 1.0]
    with pytest.raises(DecodeError, match="trajectory is empty"):
        decode(spec, Message(joint_names=[], points=[]))
    array = Message(data=[1.0, 2.0])
    assert decode(stream("std_msgs/msg/Float32MultiArray", shape=(2,)), array).tolist() == [
        1.0,
        2.0,
    ]
    assert stamp_ns(array) is None
    with pytest.raises(DecodeError, match="2 values, the contract says 3"):
        decode(stream("std_msgs/msg/Float64MultiArray", shape=(3,)), array)


@given(st.sampled_from([float("nan"), float("inf"), -float("inf")]), st.integers(0, 2))
def test_what_is_not_finite_is_refused(value, place):
    """NaN and infinity never become an observation."""
    point = Message(x=0.0, y=0.0, z=0.0)
    setattr(point, "xyz"[place], value)
    with pytest.raises(DecodeError, match="not finite"):
        decode(stream("geometry_msgs/msg/PoseStamped"), Message(pose=Message(position=point)))


@pytest.mark.parametrize("length", [3, 14])
def test_a_message_that_ends_within_its_header_is_damaged(length):
    """Before its stamp, or between that and its frame."""
    spec = stream("geometry_msgs/msg/PoseStamped", field="pose.position", frame_id="base")
    message = StampedMessage(lambda _: {}, memoryview(b"\0\1\0\0" + bytes(10))[:length])
    with pytest.raises(DecodeError, match=f"a message of {length} bytes has no header"):
        decode(spec, message)
