"""Policies with seeded random weights, and windows for them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.recipe import Recipe
from diffusion_policy_ros.shipped import read_config

TINY_UNET = "{name: unet1d, down_dims: [16, 32], n_groups: 4}"
RESNET = "{name: resnet18, keypoints: 32, features: 64, crop_shape: [%d, %d]}"
TINY_EYES = "{name: small_conv, keypoints: 4, features: 8, crop_shape: [16, 16]}"
LARGE = "{name: unet1d, down_dims: [512, 1024, 2048], kernel_size: 5}"
# name -> denoiser, whether it has cameras
NETWORKS = {
    "unet_256": ("{name: unet1d, down_dims: [256, 512, 1024], kernel_size: 5}", False),
    "image_policy": (LARGE, True),
    "unet_512": (LARGE, False),
    "unet_64": ("{name: unet1d, down_dims: [64, 128, 256], kernel_size: 5}", False),
    "transformer_256": ("{name: transformer, n_layer: 8, n_emb: 256}", False),
}
TINY_NETWORKS = {
    "unet_256": (TINY_UNET, False),
    "image_policy": (TINY_UNET, True),
    "transformer_256": ("{name: transformer, n_layer: 1, n_emb: 16, n_head: 2}", False),
}


def eyes(crop: tuple[int, ...], tiny: bool) -> str:
    """The image encoder's settings."""
    return TINY_EYES if tiny else RESNET % crop


def recipe(denoiser: str, encoder: str, more: str = "") -> Recipe:
    """Of windows of two frames and chunks of eight actions; `more` is YAML at the top level."""
    return Recipe.from_text(
        "name: gpu_check\n"
        "policy:\n"
        "  {n_obs_steps: 2, horizon: 16, n_action_steps: 8, replan_steps: 2,\n"
        f"   num_inference_steps: 10, denoiser: {denoiser}, image_encoder: {encoder}}}\n{more}"
    )


def make_policy(network: str, tiny: bool) -> DiffusionPolicy:
    """One of NETWORKS, of state or of two cameras of 84x84."""
    denoiser, cameras = (TINY_NETWORKS if tiny else NETWORKS)[network]
    contract = Contract.load("mini_lift" if cameras else "mini_lift_state")
    return untrained(recipe(denoiser, eyes((76, 76), tiny)), contract)


def camera_policy(side: tuple[int, int], rate_hz: int, tiny: bool) -> DiffusionPolicy:
    """Two cameras of (height, width) and a U-Net of 256/512/1024, at a rate."""
    text, _ = read_config("contracts", "mini_lift")
    text = text.replace("shape: [84, 84, 3]", f"shape: [{side[0]}, {side[1]}, 3]")
    contract = Contract.from_text(text.replace("rate_hz: 20", f"rate_hz: {rate_hz}"))
    denoiser, _ = (TINY_NETWORKS if tiny else NETWORKS)["unet_256"]
    crop = tuple(int(0.9 * length) for length in side)
    return untrained(recipe(denoiser, eyes(crop, tiny)), contract)


def untrained(made_of: Recipe, contract: Contract) -> DiffusionPolicy:
    """Seeded random weights; layers that start at zero are not left there."""
    torch.manual_seed(0)
    policy = DiffusionPolicy(made_of, contract).eval()
    for weight in policy.parameters():
        if weight.dim() > 1 and not weight.any():
            nn.init.normal_(weight, std=0.02)
    return policy


def frames(contract: Contract, count: int) -> dict[str, np.ndarray]:
    """Frames of noise: key -> (count, ...)."""
    random = np.random.default_rng(0)
    return {
        key: random.integers(0, 256, (count, *stream.shape), dtype=np.uint8)
        if stream.is_image
        else random.uniform(-1, 1, (count, *stream.shape)).astype(np.float32)
        for key, stream in contract.observations.items()
    }


def windows(contract: Contract, count: int) -> list[dict[str, np.ndarray]]:
    """Windows of two frames, each one frame later than the one before."""
    seen = frames(contract, count + 1)
    return [{key: rows[None, i : i + 2] for key, rows in seen.items()} for i in range(count)]


class InFloat64(TorchFunctionMode):
    """What asks for float32 gets float64: so that a policy's code computes the exact chunk."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # noqa: D102, ANN001
        def wide(value: object) -> object:
            return torch.float64 if value is torch.float32 else value

        func = torch.Tensor.double if func is torch.Tensor.float else func
        given = {name: wide(value) for name, value in (kwargs or {}).items()}
        return func(*map(wide, args), **given)


def exact_chunk(policy: DiffusionPolicy, window: dict[str, np.ndarray], noise: Tensor) -> Tensor:
    """The policy's chunk, computed in float64 on the CPU."""
    wide = untrained(policy.recipe, policy.contract)
    wide.load_state_dict(policy.state_dict())
    wide.double()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with InFloat64():
            return wide.sample(window, noise=noise.double())
    finally:
        torch.set_default_dtype(before)
