"""Image encoders: crops, key points, gradients."""

import pytest
import torch

from diffusion_policy_ros.contract import Stream
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.encoders import (
    IMAGE_ENCODERS,
    ImageEncoder,
    SpatialSoftmax,
    crop_windows,
)
from diffusion_policy_ros.policy.recipe import ImageEncoderSettings


def camera(*shape):
    """A camera of the contract."""
    return Stream(topic="/c", type="sensor_msgs/msg/Image", shape=shape, name="camera")


def test_key_points_are_where_the_maps_are_high():
    """A peak at the right edge, middle height, is (1, 0); a flat map is the centre."""
    maps = torch.zeros(1, 2, 5, 7)
    maps[0, 0, 2, 6] = 100
    torch.testing.assert_close(SpatialSoftmax(5, 7)(maps), torch.tensor([[1.0, 0.0, 0.0, 0.0]]))


def test_centre_crops_without_places():
    """Evaluation and training's eval mode see the same middle."""
    images = torch.arange(6 * 8, dtype=torch.uint8).view(1, 1, 6, 8, 1)
    crop = crop_windows(images, (2, 4), None)
    assert torch.equal(crop, images[:, :, 2:4, 2:6])


def test_given_crops_are_shared_by_a_window_and_reach_every_place():
    """All frames of a window are cut alike; the first and the last offset occur, none beyond."""
    rows = torch.arange(5, dtype=torch.uint8).view(1, 1, 5, 1, 1).expand(4, 2, 5, 6, 1)
    places = torch.tensor([[0.0, 0.0], [0.34, 0.5], [0.66, 0.9], [0.9999999, 0.9999999]])
    crops = crop_windows(rows.contiguous(), (3, 6), places)
    tops = crops[:, :, 0, 0, 0]
    assert torch.equal(tops[:, 0], tops[:, 1])
    assert tops[:, 0].tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize("name", IMAGE_ENCODERS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("features", "size"), [(0, 16), (10, 10)])
def test_every_encoder_gives_features_of_each_frame(name, channels, features, size):
    """uint8 (B, To, H, W, C) in, (B, To, F) out; every weight takes part."""
    settings = ImageEncoderSettings(name, keypoints=8, features=features, crop_shape=(36, 40))
    encoder = ImageEncoder(camera(40, 48, channels), settings)
    images = torch.randint(0, 255, (2, 3, 40, 48, channels), dtype=torch.uint8)
    out = encoder(images, torch.rand(2, 2))
    assert out.shape == (2, 3, size)
    assert encoder.features == size
    out.square().sum().backward()
    assert all(w.grad is not None for w in encoder.parameters() if w.requires_grad)


def test_frames_are_encoded_independently():
    """A frame's features do not depend on its neighbours."""
    encoder = ImageEncoder(camera(20, 20, 3), ImageEncoderSettings("small_conv"))
    images = torch.randint(0, 255, (3, 2, 20, 20, 3), dtype=torch.uint8)
    with torch.inference_mode():
        together, alone = encoder(images), encoder(images[1:2, 1:])
    torch.testing.assert_close(together[1, 1], alone[0, 0])


def test_impossible_images_are_the_user_s_mistake():
    """A crop beyond the image, or an image below the kernel, names the camera."""
    with pytest.raises(UserError, match="does not fit into camera, 20 x 20"):
        ImageEncoder(camera(20, 20, 3), ImageEncoderSettings(crop_shape=(20, 21)))
    with pytest.raises(UserError, match="too small for small_conv"):
        ImageEncoder(camera(6, 6, 3), ImageEncoderSettings("small_conv"))
