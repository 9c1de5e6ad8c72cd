"""Cameras' encodings, depth, and cameras that are mounted upside down."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from diffusion_policy_ros.contract import Contract, Stream
from diffusion_policy_ros.errors import UserError, UserErrors
from diffusion_policy_ros.observe.codecs import DecodeError, decode
from diffusion_policy_ros.observe.images import DEPTH_HEAD, ENCODINGS, metres_of

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
COLOURS = (
    np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [128, 128, 128]]], dtype=np.uint8)
    .repeat(4, axis=0)
    .repeat(4, axis=1)
)
"""Four squares of one colour: encodings that share colour among neighbours keep them."""
DEPTH = {"near": 0.5, "far": 1.77, "resize": "none"}


def stream(encoding="rgb8", shape=(8, 8, 3), kind=IMAGE, **more):
    """A camera."""
    return Stream("/camera", kind, shape, encoding=encoding, name="camera", **more)


def message(encoding, rows, width, big=False):
    """An Image of uint8 (height, bytes a row), with four bytes of padding behind each row."""
    height, step = len(rows), rows.shape[1] + 4
    data = np.pad(rows, ((0, 0), (0, 4)), constant_values=77)
    return SimpleNamespace(
        encoding=encoding,
        height=height,
        width=width,
        step=step,
        is_bigendian=int(big),
        data=data.tobytes(),
    )


def yuv(rgb):
    """ITU-R BT.601 with black at 16."""
    r, g, b = np.moveaxis(rgb.astype(float), -1, 0)
    y = 16 + 0.257 * r + 0.504 * g + 0.098 * b
    u = 128 - 0.148 * r - 0.291 * g + 0.439 * b
    v = 128 + 0.439 * r - 0.368 * g - 0.071 * b
    return [np.rint(part).astype(np.uint8) for part in (y, u, v)]


def packed(encoding):
    """The squares as a message."""
    y, u, v = yuv(COLOURS)
    red, green, blue = np.moveaxis(COLOURS, -1, 0)
    if encoding in ("yuv422", "uyvy", "yuv422_yuy2", "yuyv"):
        chroma = np.where(np.arange(8) % 2, v, u)
        parts = (chroma, y) if encoding in ("yuv422", "uyvy") else (y, chroma)
        rows = np.stack(parts, axis=-1).reshape(8, 16)
    elif encoding == "nv12":
        colours = np.stack([u[::2, ::2], v[::2, ::2]], axis=-1).reshape(4, 8)
        found = message(encoding, np.concatenate([y, colours]), 8)
        found.height = 8
        return found
    elif encoding.startswith("bayer"):
        rows = np.zeros((8, 8), np.uint8)
        for i, colour in enumerate(encoding[6:10]):
            plane = {"r": red, "g": green, "b": blue}[colour]
            rows[i // 2 :: 2, i % 2 :: 2] = plane[i // 2 :: 2, i % 2 :: 2]
    elif encoding in ("mono8", "8UC1"):
        rows = green
    elif encoding == "mono16":
        rows = (green.astype("<u2") * 256 + 3).view(np.uint8)
    else:
        order = [2, 1, 0] if encoding in ("bgr8", "bgra8", "8UC3") else [0, 1, 2]
        rows = COLOURS[..., order]
        if "a" in encoding:
            rows = np.concatenate([rows, np.full((8, 8, 1), 9, np.uint8)], axis=-1)
        rows = rows.reshape(8, -1)
    return message(encoding, np.ascontiguousarray(rows), 8)


@pytest.mark.parametrize("encoding", [e for e in ENCODINGS if e not in ("16UC1", "32FC1")])
def test_every_encoding_becomes_the_same_picture(encoding):
    """Red is red, whatever the camera's driver sends, with padded rows."""
    grey = encoding in ("mono8", "8UC1", "mono16")
    found = decode(stream(encoding, resize="none"), packed(encoding))
    wanted = np.repeat(COLOURS[..., 1:2], 3, axis=2) if grey else COLOURS
    assert found.dtype == np.uint8 and found.shape == (8, 8, 3)
    assert np.abs(found.astype(int) - wanted).max() <= 2


@pytest.mark.parametrize("encoding", ["bayer_rggb8", "yuv422", "nv12"])
def test_a_picture_of_odd_size_is_refused(encoding):
    """Its last colours would be torn apart."""
    odd = packed(encoding)
    odd.width, odd.step = 7, odd.step
    with pytest.raises(DecodeError, match="no whole groups of colours"):
        decode(stream(encoding, resize="area"), odd)


METRES = np.array([[0.5, 1.0, 1.77, 0.0], [0.49, 1.78, np.nan, 1.2]], np.float32)
STEPS = [[1, 101, 255, 0], [0, 0, 0, 141]]


def depth_message(encoding, big=False):
    """The depths as a message."""
    order = ">" if big else "<"
    if encoding == "32FC1":
        values = METRES.astype(f"{order}f4")
    else:
        values = np.rint(np.nan_to_num(METRES) * 1000).astype(f"{order}u2")
    return message(encoding, values.view(np.uint8).reshape(2, -1), 4, big)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("encoding", ["16UC1", "32FC1", "mono16"])
def test_depth_is_told_in_steps_from_near_to_far(encoding, big):
    """0 where nothing was measured, or out of the range; back to metres within half a step."""
    scale = () if encoding == "32FC1" else (0.001,)
    camera = stream(encoding, (2, 4, 1), scale=scale, **DEPTH)
    found = decode(camera, depth_message(encoding, big))
    assert found.dtype == np.uint8 and found[..., 0].tolist() == STEPS
    back = metres_of(camera, found)[..., 0]
    known = found[..., 0] > 0
    assert back[known] == pytest.approx(METRES[known], abs=(1.77 - 0.5) / 254 / 2 + 1e-6)
    assert np.isnan(back[~known]).all()


def test_unknown_depth_is_not_averaged_in():
    """Shrunk, a pixel is the mean of what was measured there, and unknown where little was."""
    metres = np.array([[1.0, np.nan, np.nan, np.nan], [1.2, 1.1, np.nan, 1.0]], np.float32)
    found = decode(
        stream("32FC1", (1, 2, 1), near=0.5, far=1.77),
        message("32FC1", metres.view(np.uint8).reshape(2, -1), 4),
    )
    assert found[0, :, 0].tolist() == [1 + round(254 * 0.6 / 1.27), 0]


def png(values):
    """A PNG of 16 bits."""
    data = io.BytesIO()
    Image.fromarray(values.astype(np.uint16)).save(data, "PNG")
    return data.getvalue()


def test_depth_comes_as_png_and_as_compressed_depth():
    """Whole numbers with the transport's head or without, and its quantised inverse of floats."""
    millimetres = np.rint(np.nan_to_num(METRES) * 1000)
    head = DEPTH_HEAD.pack(0, 0.0, 0.0)
    for data in (png(millimetres), head + png(millimetres)):
        camera = stream("16UC1", (2, 4, 1), COMPRESSED, scale=(0.001,), **DEPTH)
        assert decode(camera, SimpleNamespace(data=data))[..., 0].tolist() == STEPS
    a, b = 1000.0, 1.0
    raw = np.where(np.nan_to_num(METRES) > 0, a / np.maximum(np.nan_to_num(METRES), 0.1) + b, 0)
    camera = stream("32FC1", (2, 4, 1), COMPRESSED, **DEPTH)
    packed = SimpleNamespace(data=DEPTH_HEAD.pack(0, a, b) + png(np.rint(raw)))
    found = decode(camera, packed)[..., 0].astype(int)
    assert np.abs(found - STEPS)[[0, 0, 1], [0, 1, 3]].max() <= 1


def test_a_depth_png_is_no_colour_picture():
    """It was clipped to 8 bits before; the cure names what makes it one of depth."""
    with pytest.raises(DecodeError, match="16 bits, as depth is; set encoding: 16UC1"):
        decode(stream(kind=COMPRESSED, shape=(2, 4, 3)), SimpleNamespace(data=png(METRES * 0)))


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"\x00" * 12 + b"RVL", "its depth is no png"), (b"\x89PNG cut", "not a whole jpeg or png")],
)
def test_broken_depth_is_refused_in_words(data, expected):
    """Another compression, a cut PNG."""
    camera = stream("16UC1", (2, 4, 1), COMPRESSED, scale=(0.001,), **DEPTH)
    with pytest.raises(UserError, match=expected):
        decode(camera, SimpleNamespace(data=data))


@pytest.mark.parametrize(
    ("keys", "turned"),
    [
        ({"rotate": "180"}, lambda a: a[::-1, ::-1]),
        ({"rotate": "90"}, lambda a: np.rot90(a, -1)),
        ({"rotate": "270"}, lambda a: np.rot90(a)),
        ({"flip": "horizontal"}, lambda a: a[:, ::-1]),
        ({"flip": "vertical"}, lambda a: a[::-1]),
        ({"rotate": "180", "flip": "vertical"}, lambda a: a[:, ::-1]),
    ],
)
def test_a_camera_that_is_mounted_otherwise_is_turned(keys, turned):
    """Clockwise, then mirrored; crop and shape are of what is upright."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    raw = message("rgb8", pixels.reshape(4, -1), 6)
    wanted = turned(pixels)
    camera = stream(shape=wanted.shape, resize="none", source_size=(4, 6), **keys)
    assert (decode(camera, raw) == wanted).all()
    cropped = stream(shape=(2, 3, 3), resize="none", crop=(1, 0, 2, 3), **keys)
    assert (decode(cropped, raw) == wanted[1:3, 0:3]).all()


CAMERA = """
name: depth
rate_hz: 10
anchor: depth
observations:
  depth: {topic: /depth, type: sensor_msgs/msg/Image, KEYS}
  pose: {topic: /pose, type: geometry_msgs/msg/PoseStamped, field: pose.position}
action:
  fields: [{name: way, kind: delta_position, state: pose}]
  record: next_state
"""
GOOD = "encoding: 16UC1, scale: [0.001], near: 0.2, far: 1.5, shape: [96, 96, 1]"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("scale: [0.001], ", "", "depth in whole numbers needs one; write [0.001] for mm"),
        (", near: 0.2, far: 1.5", "", "depth needs near and far"),
        ("near: 0.2, far: 1.5", "near: 2, far: 1", "depth needs near and far"),
        ("96, 1]", "96, 3]", "depth has one channel; write [96, 96, 1]"),
        ("encoding: 16UC1, ", "", "rgb8 is no depth; use 16UC1 or 32FC1"),
        (GOOD, "shape: [96, 96, 3], rotate: 45", "'45' is not a valid choice"),
    ],
)
def test_depth_without_its_scale_or_range_is_refused(old, new, expected):
    """By name, before anything is recorded."""
    text = CAMERA.replace("KEYS", GOOD)
    assert Contract.from_text(text).observations["depth"].is_depth
    with pytest.raises(UserErrors) as caught:
        Contract.from_text(text.replace(old, new))
    assert expected in str(caught.value)


def test_another_range_of_depth_is_another_meaning():
    """A network that has learned one would see another picture; the scale is the camera's."""
    ours, other, scaled = (
        Contract.from_text(CAMERA.replace("KEYS", keys))
        for keys in (GOOD, GOOD.replace("1.5", "2.5"), GOOD.replace("0.001", "0.0001"))
    )
    assert ours.hash != other.hash and ours.hash == scaled.hash


@pytest.mark.parametrize("encoding", [*ENCODINGS, "nonsense"])
def test_the_cure_of_another_encoding_is_accepted(encoding):
    """What it says to write is a contract."""
    with pytest.raises(DecodeError) as caught:
        decode(stream("bgra8"), SimpleNamespace(encoding=encoding if encoding != "bgra8" else "x"))
    if f"set encoding: {encoding}" in str(caught.value):
        keys = GOOD.replace("16UC1", encoding)
        if encoding not in ("16UC1", "32FC1"):
            keys = f"encoding: {encoding}, shape: [96, 96, 3]"
        assert Contract.from_text(CAMERA.replace("KEYS", keys))
