"""Image encoders: key points, gradients, what of a picture reaches the actions."""

import dataclasses

import pytest
import torch

from diffusion_policy_ros.contract import Contract, Stream
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.eyes import (
    IMAGE_ENCODERS,
    ImageEncoder,
    ImageEncoderSettings,
    SpatialSoftmax,
)
from diffusion_policy_ros.policy.recipe import Recipe
from diffusion_policy_ros.shipped import config_names


def camera(*shape):
    """A camera of the contract."""
    return Stream(topic="/c", type="sensor_msgs/msg/Image", shape=shape, name="camera")


def test_key_points_are_where_the_maps_are_high():
    """A peak at the right edge, middle height, is (1, 0); a flat map is the centre."""
    maps = torch.zeros(1, 2, 5, 7)
    maps[0, 0, 2, 6] = 100
    torch.testing.assert_close(SpatialSoftmax(5, 7)(maps), torch.tensor([[1.0, 0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("name", IMAGE_ENCODERS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("features", "size"), [(0, 16), (10, 10)])
def test_every_encoder_gives_features_of_each_frame(name, channels, features, size):
    """uint8 (B, To, H, W, C) in, (B, To, F) out; every weight takes part."""
    settings = ImageEncoderSettings(name=name, keypoints=8, features=features, crop=(36, 40))
    encoder = ImageEncoder(camera(40, 48, channels), settings)
    images = torch.randint(0, 255, (2, 3, 40, 48, channels), dtype=torch.uint8)
    out = encoder(images, torch.rand(2, 2))
    assert out.shape == (2, 3, size)
    assert encoder.features == size
    out.square().sum().backward()
    assert all(w.grad is not None for w in encoder.parameters() if w.requires_grad)


def test_frames_are_encoded_independently():
    """A frame's features do not depend on its neighbours."""
    encoder = ImageEncoder(camera(20, 20, 3), ImageEncoderSettings(name="small_conv"))
    images = torch.randint(0, 255, (3, 2, 20, 20, 3), dtype=torch.uint8)
    with torch.inference_mode():
        together, alone = encoder(images), encoder(images[1:2, 1:])
    torch.testing.assert_close(together[1, 1], alone[0, 0])


def test_impossible_images_are_the_user_s_mistake():
    """A crop beyond the image, or an image below the kernel, names the camera."""
    with pytest.raises(UserError, match="does not fit into camera, 20 x 20"):
        ImageEncoder(camera(20, 20, 3), ImageEncoderSettings(crop=(20, 21)))
    with pytest.raises(UserError, match="too small for small_conv"):
        ImageEncoder(camera(6, 6, 3), ImageEncoderSettings(name="small_conv"))


CAMERAS = [n for n in config_names("recipes") if "lowdim" not in n and "state" not in n]


@pytest.mark.parametrize("name", CAMERAS)
@pytest.mark.parametrize("size", [(84, 84), (96, 96), (224, 224), (480, 640)])
def test_a_shipped_recipe_sees_four_fifths_of_a_picture_of_any_size(name, size):
    """Except where the published settings, of pictures of 84 x 84, are in pixels."""
    settings = Recipe.load(name).policy.image_encoder
    if isinstance(settings.crop, tuple):
        assert name.startswith(("can_", "square_"))
        return
    with torch.device("meta"):
        assert ImageEncoder(camera(*size, 3), settings).view.share >= 0.79


@pytest.mark.parametrize("size", [(96, 96), (240, 320)])
def test_what_surrounds_the_middle_changes_the_chunk(size):
    """Noise instead of all beyond the middle 76 x 76: another chunk; beyond the crop: the same."""
    text = Contract.load("mini_lift").text.replace("[84, 84, 3]", f"[{size[0]}, {size[1]}, 3]")
    settings = {"policy.image_encoder": "{name: small_conv, keypoints: 4, features: 0}"}
    recipe = Recipe.load("fast_inference", settings)
    torch.manual_seed(0)
    policy = DiffusionPolicy(recipe, Contract.from_text(text)).eval()
    random = torch.Generator().manual_seed(1)
    window = {
        key: torch.randint(0, 256, (1, 2, *stream.shape), generator=random, dtype=torch.uint8)
        if stream.is_image
        else torch.ones(1, 2, *stream.shape)
        for key, stream in policy.contract.observations.items()
    }
    noise = torch.randn(1, 16, policy.contract.action_dim, generator=random)
    chunk = policy.sample(window, noise=noise)

    def beside(height, width):
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        other = dict(window)
        for key, stream in policy.contract.observations.items():
            if stream.is_image:
                other[key] = 255 - window[key]
                inside = slice(top, top + height), slice(left, left + width)
                other[key][:, :, inside[0], inside[1]] = window[key][:, :, inside[0], inside[1]]
        return policy.sample(other, noise=noise)

    assert not torch.equal(beside(76, 76), chunk)
    view = next(iter(policy.encoder.image_encoders.values())).view
    assert torch.equal(beside(*view.size), chunk)


def test_pictures_vary_in_training_alone(contract, recipe, batch, statistics):
    """Drawn from the generator given: the same seed, the same loss; not when running."""
    augment = dataclasses.replace(
        recipe.policy.image_encoder.augment,
        brightness=0.5,
        hue=0.1,
        rotate_deg=10.0,
        blur=1.0,
        erase=0.5,
    )
    encoder = dataclasses.replace(recipe.policy.image_encoder, augment=augment)
    varied = dataclasses.replace(
        recipe, policy=dataclasses.replace(recipe.policy, image_encoder=encoder)
    )
    policies = []
    for chosen in (recipe, varied):
        torch.manual_seed(0)
        policies.append(DiffusionPolicy(chosen, contract))
        policies[-1].set_statistics(statistics)
    plain, policy = policies
    draws = policy.draw(5, torch.Generator().manual_seed(1))
    few = draws._replace(views=draws.views[..., :2])
    assert policy.loss(batch, draws=draws) != plain.loss(batch, draws=few)
    again = policy.loss(batch, torch.Generator().manual_seed(1))
    assert policy.loss(batch, torch.Generator().manual_seed(1)) == again
    noise = torch.randn(5, 8, 8)
    found = [each.eval().sample(batch, noise=noise) for each in (plain, policy)]
    assert torch.equal(*found)
