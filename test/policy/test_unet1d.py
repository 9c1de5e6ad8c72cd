"""The U-Net against numbers of the reference network."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.denoisers import DENOISERS, Condition
from diffusion_policy_ros.policy.denoisers.unet1d import UNet1D, UNet1DSettings
from diffusion_policy_ros.policy.interop.official import build_unet1d

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = ["global_cond", "bias_film", "unconditioned_two_levels"]


def golden(name):
    """Config, weights, inputs and output of one reference network."""
    arrays = np.load(GOLDEN / f"official_unet1d_{name}.npz")
    parts = {"state": {}, "in": {}}
    for key in arrays.files:
        head, _, tail = key.partition("/")
        if tail:
            parts[head][tail] = torch.from_numpy(arrays[key])
    config = json.loads(str(arrays["config"]))
    return config, parts["state"], parts["in"], torch.from_numpy(arrays["out"])


@pytest.mark.parametrize("name", FILES)
def test_equals_the_reference_network(name):
    """The reference's weights in our network give its output within 1e-5 relative."""
    config, state, inputs, expected = golden(name)
    with torch.inference_mode():
        out = build_unet1d(config, state)(**inputs)
    assert (out - expected).norm() / expected.norm() < 1e-5
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_a_scalar_step_is_every_entry_s_step():
    """The reference's calling convention takes one number for the whole batch."""
    config, state, inputs, _ = golden("global_cond")
    net = build_unet1d(config, state)
    with torch.inference_mode():
        one = net(inputs["sample"], 7, global_cond=inputs["global_cond"])
        each = net(inputs["sample"], torch.full((3,), 7), global_cond=inputs["global_cond"])
    assert torch.equal(one, each)


def test_weights_that_do_not_fit_are_refused_by_name():
    """A missing tensor or another size is an error, never a random weight."""
    config, state, *_ = golden("global_cond")
    state.pop("final_conv.1.bias")
    with pytest.raises(UserError, match="out.bias"):
        build_unet1d(config, state)
    with pytest.raises(UserError, match="unknown argument 'down_dim'.*did you mean 'down_dims'"):
        build_unet1d({**config, "down_dim": [8]}, state)


@pytest.mark.parametrize("name", DENOISERS)
@pytest.mark.parametrize("size", [(1, 8, 2, 0), (5, 16, 7, 11)])
def test_every_denoiser_keeps_the_shape_and_lets_gradients_through(name, size):
    """(B, H, A) in, (B, H, A) out, and every weight takes part."""
    batch, horizon, action, cond = size
    net = DENOISERS[name](action, cond, UNet1DSettings(down_dims=(16, 32), n_groups=4))
    condition = Condition(torch.randn(batch, cond) if cond else None)
    out = net(torch.randn(batch, horizon, action), torch.arange(batch), condition)
    assert out.shape == (batch, horizon, action)
    out.square().mean().backward()
    assert all(weight.grad is not None for weight in net.parameters())


@pytest.mark.parametrize(
    ("levels", "horizon", "cure"), [(2, 7, "6 or 8"), (3, 18, "16 or 20"), (4, 5, "use 8")]
)
def test_horizons_that_do_not_halve_name_the_nearest(levels, horizon, cure):
    """The user learns which horizon would do."""
    settings = UNet1DSettings(down_dims=(16,) * levels)
    assert cure in settings.horizon_problem(horizon).cure
    assert settings.horizon_problem(2 ** (levels - 1) * 3) is None


def test_settings_know_all_their_mistakes():
    """Group counts, even kernels and odd embeddings are found together."""
    settings = UNet1DSettings(down_dims=(10, 16), kernel_size=4, diffusion_step_embed_dim=33)
    assert [p.key for p in settings.problems()] == [
        "down_dims",
        "kernel_size",
        "diffusion_step_embed_dim",
    ]


def test_a_condition_that_it_was_not_built_for_is_refused():
    """Sizes are named instead of broadcast."""
    net = UNet1D(7, 4, UNet1DSettings(down_dims=(16,)))
    sample, step = torch.zeros(1, 8, 7), torch.zeros(1)
    with pytest.raises(ValueError, match="size 3, built for 4"):
        net(sample, step, Condition(torch.zeros(1, 3)))
    with pytest.raises(ValueError, match="local"):
        net(sample, step, Condition(torch.zeros(1, 4), torch.zeros(1, 8, 2)))
