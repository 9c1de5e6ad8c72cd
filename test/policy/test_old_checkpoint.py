"""A checkpoint from before views: `crop_shape` in pixels, whose centre is rounded down."""

from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_policy_ros.policy.checkpoint import load_policy

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def golden():
    """A batch, and what the version that wrote the checkpoint made of it."""
    with np.load(GOLDEN / "old_checkpoint.npz") as file:
        found = dict(file)
    batch = {key[6:]: found.pop(key) for key in list(found) if key.startswith("batch/")}
    return batch, {key: torch.from_numpy(value) for key, value in found.items()}


def test_it_computes_what_it_computed(golden):
    """The same actions; a crop of 13 in 20 begins at 3, where one of today begins at 4."""
    batch, expected = golden
    policy = load_policy(GOLDEN / "old_checkpoint")
    actions = policy.sample(batch, noise=expected["noise"])
    torch.testing.assert_close(actions, expected["actions"], rtol=0, atol=1e-6)


def test_it_is_trained_as_it_was(golden):
    """The same random crops, noise and steps of the same seed: the same loss."""
    batch, expected = golden
    policy = load_policy(GOLDEN / "old_checkpoint").train()
    loss = policy.loss(batch, torch.Generator().manual_seed(5))
    torch.testing.assert_close(loss.detach(), expected["loss"], rtol=1e-6, atol=0)
