"""Views: which part of a picture is seen, and how it varies in training."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from diffusion_policy_ros.contract import Stream
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.contact_sheet import COLUMNS, GAP, contact_sheet
from diffusion_policy_ros.policy.eyes import ImageEncoder, ImageEncoderSettings
from diffusion_policy_ros.policy.view import (
    AugmentSettings,
    ViewSettings,
    look,
    look_varied,
    view_of,
)

NEUTRAL = 0.5  # of a number that is a strength: nothing changes


def view(picture, augment=None, **settings):
    """A view of pictures of that size."""
    return view_of(
        "camera", picture, ViewSettings(augment=augment or AugmentSettings(), **settings)
    )


def varied(images, augment, **numbers):
    """What whole pictures (B, To, H, W, C) become; `numbers` by their place, `n3=0.1`."""
    row = torch.full((len(images), 16), NEUTRAL)
    for name, value in numbers.items():
        row[:, int(name[1:])] = value
    seen = view(tuple(images.shape[2:4]), augment, crop=1.0)
    return look_varied(images, seen, row)


def pictures(*shape, seed=0):
    """Noise."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("picture", "settings", "size", "corner"),
    [
        ((84, 84), {}, (75, 75), (4, 4)),  # halves to the even neighbour, as torchvision
        ((20, 24), {"crop": (13, 20)}, (13, 20), (4, 2)),
        ((20, 24), {"crop_shape": (13, 20)}, (13, 20), (3, 2)),
        ((20, 24), {"crop_shape": ()}, (20, 24), (0, 0)),
        ((20, 24), {"crop": 1.0}, (20, 24), (0, 0)),
        ((480, 640), {"resize": (40, 52)}, (36, 46), (2, 3)),
    ],
)
def test_what_is_seen_when_running(picture, settings, size, corner):
    """A share is rounded down; pixels are as given; old crops keep their place."""
    seen = view(picture, **settings)
    assert (seen.size, seen.corner) == (size, corner)
    assert look(pictures(2, 2, *picture, 3), seen).shape == (2, 2, *size, 3)


def test_a_crop_is_the_picture_s_own_pixels():
    """uint8, none changed."""
    images = torch.arange(6 * 8, dtype=torch.uint8).view(1, 1, 6, 8, 1)
    assert torch.equal(look(images, view((6, 8), crop=(2, 4))), images[:, :, 2:4, 2:6])


def test_resizing_is_antialiased():
    """Halved, each pixel is near the mean of four; a single bright pixel is not lost."""
    images = torch.zeros(1, 1, 8, 8, 3, dtype=torch.uint8)
    images[0, 0, 3, 3] = 255
    small = look(images, view((8, 8), resize=(4, 4), crop=1.0))
    assert small.dtype == torch.float32
    assert float(small.sum()) == pytest.approx(3 * 255 / 4, rel=1e-4)


@given(numbers=st.tuples(*[st.floats(0, 1, exclude_max=True, width=32)] * 2))
@settings(max_examples=30, deadline=None)
def test_random_crops_lie_within_and_are_shared_by_a_window(numbers):
    """All frames of a window are cut alike, wherever the numbers put it."""
    rows = torch.arange(30, dtype=torch.uint8).view(1, 1, 5, 6, 1).expand(2, 2, -1, -1, -1)
    places = torch.tensor([numbers, (0.0, 0.0)])
    crops = look_varied(rows.contiguous(), view((5, 6), crop=(3, 4)), places)
    corners = crops[:, :, 0, 0, 0]
    assert torch.equal(corners[:, 0], corners[:, 1])
    assert corners[1, 0] == 0
    top, left = divmod(int(corners[0, 0]), 6)
    assert (top, left) == (int(numbers[0] * 3), int(numbers[1] * 3))


def test_without_random_crop_training_sees_what_running_sees():
    """augment: {random_crop: false}."""
    images, fixed = pictures(3, 2, 10, 12, 3), view((10, 12), AugmentSettings(random_crop=False))
    assert torch.equal(look_varied(images, fixed, torch.rand(3, 2)), look(images, fixed))


EACH = [
    {"brightness": 0.5},
    {"contrast": 0.5},
    {"saturation": 0.5},
    {"hue": 0.3},
    {"rotate_deg": 30.0},
    {"translate": 0.3},
    {"scale": 0.4},
    {"blur": 2.0},
    {"erase": 1.0},
]


@pytest.mark.parametrize("strength", EACH, ids=lambda s: next(iter(s)))
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_each_variation_varies_windows_not_frames(strength, channels):
    """Equal windows differ; equal frames of one do not; the result is a picture."""
    if channels == 1 and {"saturation", "hue"} & strength.keys():
        pytest.skip("one channel has no colour")
    picture = pictures(1, 1, 16, 20, channels)
    images = picture.expand(2, 2, -1, -1, -1)
    numbers = torch.rand(2, 16, generator=torch.Generator().manual_seed(3))
    seen = view((16, 20), AugmentSettings(**strength), crop=1.0)
    out = look_varied(images, seen, numbers)
    assert out.shape == images.shape
    assert torch.equal(out[:, 0], out[:, 1])
    assert not torch.allclose(out[0], out[1])
    assert out.min() >= -1e-3 and out.max() <= 255 + 1e-3
    assert torch.equal(out, look_varied(images, seen, numbers))


@pytest.mark.parametrize("strength", EACH[:7], ids=lambda s: next(iter(s)))
def test_in_the_middle_of_its_range_a_variation_changes_nothing(strength):
    """Strengths go both ways about the picture as it is."""
    images = pictures(2, 1, 16, 20, 3)
    out = varied(images, AugmentSettings(**strength))
    torch.testing.assert_close(out, images.float(), rtol=0, atol=1e-2)


def test_brightness_multiplies():
    """At its largest, 0.5 is half as bright again."""
    images = pictures(1, 1, 8, 8, 3) // 2
    out = varied(images, AugmentSettings(brightness=0.5), n2=1.0)
    torch.testing.assert_close(out, (images * 1.5).clamp(max=255).float())


def test_a_third_of_a_turn_exchanges_the_colours():
    """Red becomes green, green blue, blue red."""
    images = pictures(1, 1, 8, 8, 3)
    out = varied(images, AugmentSettings(hue=1 / 3), n5=1.0)
    torch.testing.assert_close(out, images[..., [2, 0, 1]].float(), rtol=0, atol=1e-2)


def test_no_saturation_is_grey():
    """At strength 1 and its lowest number the channels are equal."""
    out = varied(pictures(1, 1, 8, 8, 3), AugmentSettings(saturation=1.0), n4=0.0)
    torch.testing.assert_close(out[..., 0], out[..., 2], rtol=0, atol=1e-3)


def test_depth_beside_colours_keeps_its_values():
    """Colours do not touch a fourth channel."""
    images = pictures(1, 1, 8, 8, 4)
    out = varied(images, AugmentSettings(brightness=0.5, hue=0.2), n2=0.9, n5=0.9)
    assert torch.equal(out[..., 3], images[..., 3].float())


def test_distances_are_not_brightened():
    """A camera of depth has an eye whose pictures keep their values, whatever colours do."""
    depth = {"encoding": "16UC1", "scale": (0.001,), "near": 0.2, "far": 2.0}
    stream = Stream("/d", "sensor_msgs/msg/Image", (20, 24, 1), name="depth", **depth)
    augment = AugmentSettings(brightness=1.0, contrast=1.0, hue=0.5, translate=0.1)
    settings = ImageEncoderSettings(name="small_conv", augment=augment)
    assert ImageEncoder(stream, settings).view.augment == AugmentSettings(translate=0.1)


def test_a_shift_of_whole_pixels_moves_them():
    """A shift by 0.25 of 8 pixels is two; a quarter turn turns a square."""
    images = pictures(1, 1, 8, 8, 3)
    out = varied(images, AugmentSettings(translate=0.25), n8=1.0)
    torch.testing.assert_close(out[:, :, :, :6], images[:, :, :, 2:].float(), rtol=0, atol=1e-2)
    turned = varied(images, AugmentSettings(rotate_deg=90.0), n6=1.0)
    torch.testing.assert_close(turned, images.rot90(1, (2, 3)).float(), rtol=0, atol=1e-2)


def test_a_picture_that_is_not_square_turns_without_distortion():
    """A round spot in the centre stays round."""
    y, x = torch.meshgrid(torch.arange(20) - 9.5, torch.arange(40) - 19.5, indexing="ij")
    spot = (255 * (-(x**2 + y**2) / 18).exp()).to(torch.uint8).view(1, 1, 20, 40, 1)
    out = varied(spot, AugmentSettings(rotate_deg=45.0), n6=1.0)
    middle = (out - spot)[:, :, :, 14:26]  # beyond, edges are mirrored
    assert float(middle.abs().max()) < 10


def test_blur_spreads_a_point_as_a_gaussian_does():
    """Its sum stays and its variance is the deviation's square."""
    images = torch.zeros(1, 1, 31, 31, 1, dtype=torch.uint8)
    images[0, 0, 15, 15] = 255
    out = varied(images, AugmentSettings(blur=2.0), n10=1.0)[0, 0, :, :, 0]
    offsets = torch.arange(31) - 15
    assert float(out.sum()) == pytest.approx(255, rel=1e-4)
    assert float((out.sum(0) * offsets**2).sum() / out.sum()) == pytest.approx(4, rel=0.03)


def test_erasing_greys_one_rectangle_of_the_said_area():
    """A tenth of the picture or so, in the share of windows asked for."""
    images = torch.zeros(400, 1, 40, 40, 1, dtype=torch.uint8)
    numbers = torch.rand(400, 16, generator=torch.Generator().manual_seed(0))
    out = look_varied(images, view((40, 40), AugmentSettings(erase=0.25), crop=1.0), numbers)
    share = (out > 0).float().mean(dim=(1, 2, 3, 4))
    assert float((share > 0).float().mean()) == pytest.approx(0.25, abs=0.08)
    assert float(share[share > 0].mean()) == pytest.approx(0.11, abs=0.02)


def test_a_contact_sheet_shows_the_crop_and_eight_samples():
    """The picture's own pixels inside the frame; without variation all samples are the crop."""
    picture = pictures(20, 24, 3).numpy()
    seen = view((20, 24), AugmentSettings(random_crop=False), crop=(10, 12))
    sheet = contact_sheet(seen, picture)
    assert sheet.size == (24 + COLUMNS * (12 + GAP), 2 * 10 + GAP)
    assert sheet.getpixel((6, 5)) == (255, 60, 60)  # the crop's corner
    assert sheet.getpixel((7, 6)) == tuple(picture[6, 7])
    assert sheet.getpixel((24 + GAP, 0)) == tuple(picture[5, 6])
    assert contact_sheet(view((20, 24)), picture[..., :1]).mode == "RGB"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop": (20, 25)}, "crop: 20 x 25 does not fit into camera, 20 x 24"),
        ({"crop_shape": (21, 24)}, "crop_shape: 21 x 24 does not fit"),
        ({"resize": (10, 10), "crop": (11, 10)}, "11 x 10 does not fit into camera, 10 x 10"),
    ],
)
def test_a_crop_beyond_the_picture_is_refused(settings, message):
    """With key and sizes."""
    with pytest.raises(UserError) as caught:
        view((20, 24), **settings)
    assert message in str(caught.value)
    assert "crop: 0.9" in caught.value.cure
