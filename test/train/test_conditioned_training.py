"""Ways of conditioning, from a dataset to a checkpoint that samples."""

import dataclasses

import numpy as np
import pytest
import torch

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.dataset import Index
from diffusion_policy_ros.policy.checkpoint import load_policy
from diffusion_policy_ros.policy.recipe import Recipe
from diffusion_policy_ros.train.trainer import train

TRANSFORMER = "{name: transformer, n_layer: 1, n_emb: 16, p_drop_attn: 0.3}"
UNET = "{down_dims: [8, 16], n_groups: 4, diffusion_step_embed_dim: 8}"
WAYS = {
    "inpainting": {"policy.denoiser": UNET, "policy.conditioning": "inpainting"},
    "transformer": {"policy.denoiser": TRANSFORMER, "policy.observation_dropout": "0.2"},
    "steps only": {"policy.denoiser": "{name: mlp}", "policy.pred_action_steps_only": "true"},
}


@pytest.fixture
def poses(dataset):
    """The dataset of a robot without the camera."""
    index = Index.load(dataset)
    lines = [line for line in index.contract.splitlines() if not line.startswith("  camera")]
    text = "\n".join(lines).replace("anchor: camera", "anchor: position") + "\n"
    contract = Contract.from_text(text)
    dataclasses.replace(index, contract=text, contract_hash=contract.hash).save(dataset)
    return dataset


@pytest.mark.parametrize("way", WAYS)
def test_every_way_trains_and_resumes_exactly(poses, recipe, tmp_path, way):
    """Four updates in one go and two and two: the same weights, dropout and all; it samples."""
    overrides = {"training.updates": "4", "policy.image_encoder": "{}", **WAYS[way]}
    recipe = Recipe.from_text(recipe.to_text(), overrides=overrides)
    whole = train(poses, recipe, tmp_path / "whole", say=lambda _: None)
    train(poses, recipe, tmp_path / "halves", say=lambda _: None, stop_after=2)
    resumed = train(poses, recipe, tmp_path / "halves", resume=True, say=lambda _: None)
    policy, again = load_policy(whole), load_policy(resumed)
    for name, tensor in policy.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    chunk = policy.sample({"position": np.zeros((1, 2, 3), np.float32)})
    assert chunk.shape == (1, recipe.policy.predicted_steps, 4)
    assert torch.isfinite(chunk).all()
