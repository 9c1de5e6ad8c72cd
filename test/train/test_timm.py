"""Training a backbone as timm has them: with a head that is not asked, and with batch norms."""

import types

import pytest
import torch
from torch import nn

from diffusion_policy_ros.policy import backbones
from diffusion_policy_ros.policy.recipe import Recipe
from diffusion_policy_ros.train.batches import open_data
from diffusion_policy_ros.train.learner import Learner
from diffusion_policy_ros.train.trainer import train


class Network(nn.Module):
    """A convolutional network with timm's names."""

    num_features = 8

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8)
        self.head = nn.LayerNorm(8)

    def forward_features(self, pixels):
        return self.norm(self.conv(pixels))


@pytest.fixture
def seeing(recipe, monkeypatch):
    """The small recipe with that backbone."""
    timm = types.SimpleNamespace(is_model=lambda _: True, create_model=lambda *_, **__: Network())
    monkeypatch.setattr(backbones, "import_timm", lambda: timm)
    eye = "{name: timm/network, pool: mean, features: 0, crop: [16, 20]}"
    return lambda **settings: Recipe.from_text(
        recipe.to_text(),
        overrides={"policy.image_encoder": eye}
        | {f"training.{key}": str(value) for key, value in settings.items()},
    )


@pytest.mark.parametrize("shares", [1, 2])
def test_a_head_that_is_not_asked_learns_nothing(dataset, seeing, tmp_path, shares):
    """Its weights have no gradient; the run is saved and resumes."""
    recipe = seeing(updates=4, batch_shares=shares)
    train(dataset, recipe, tmp_path / "run", progress="none", say=len, stop_after=2)
    newest = train(dataset, recipe, tmp_path / "run", True, progress="none", say=len)
    assert newest.name == "update_000004"


def test_batch_norms_are_the_same_in_training_and_running(dataset, seeing, tmp_path):
    """Their statistics are those of the weights, for averaged weights have none; that is told."""
    recipe, said = seeing(updates=3), []
    train(dataset, recipe, tmp_path / "run", progress="none", say=said.append)
    assert any("camera: timm/network has batch norms and no weights" in line for line in said)
    learner = Learner(recipe, open_data(dataset, recipe))
    with learner.data.batches(recipe.training, 0) as batches:
        learner.learn(next(batches))
    ours, averaged = (
        dict(policy.encoder.named_buffers()) for policy in (learner.policy, learner.average)
    )
    assert any(name.endswith("running_mean") for name in ours)
    for name, value in ours.items():
        torch.testing.assert_close(value, averaged[name])
