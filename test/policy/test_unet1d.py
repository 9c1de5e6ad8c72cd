"""The U-Net: what it takes and what it refuses. Its numbers are tested in test_official.py."""

import pytest
import torch

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.denoisers import Condition, Sizes
from diffusion_policy_ros.policy.denoisers.unet1d import UNet1D, UNet1DSettings


@pytest.mark.parametrize(
    ("levels", "horizon", "cure"), [(2, 7, "6 or 8"), (3, 18, "16 or 20"), (4, 5, "use 8")]
)
def test_horizons_that_do_not_halve_name_the_nearest(levels, horizon, cure):
    """The user learns which horizon would do."""
    settings = UNet1DSettings(down_dims=(16,) * levels)
    assert cure in settings.horizon_problem(horizon).cure
    with pytest.raises(UserError, match=f"horizon: {horizon} steps.*{cure}"):
        UNet1D(Sizes(7, horizon), settings)
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
    net = UNet1D(Sizes(7, 8, 4), UNet1DSettings(down_dims=(16,)))
    sample, step = torch.zeros(1, 8, 7), torch.zeros(1)
    with pytest.raises(ValueError, match="size 3, built for 4"):
        net(sample, step, Condition(torch.zeros(1, 3)))
    with pytest.raises(ValueError, match="local"):
        net(sample, step, Condition(torch.zeros(1, 4), torch.zeros(1, 8, 2)))


def test_the_local_condition_is_added_step_by_step():
    """Another local condition of the last step changes nothing at the first: it is far away."""
    torch.manual_seed(0)
    net = UNet1D(Sizes(3, 32, local_cond=2), UNet1DSettings(down_dims=(16,), kernel_size=3))
    sample, step = torch.randn(1, 32, 3), torch.zeros(1)
    local = torch.randn(1, 32, 2)
    out = net(sample, step, Condition(local_cond=local))
    assert not torch.equal(out, net(sample, step, Condition()))
    without_norm = [m for m in net.modules() if isinstance(m, torch.nn.GroupNorm)]
    for norm in without_norm:  # which looks at all steps
        norm.forward = lambda hidden: hidden
    out = net(sample, step, Condition(local_cond=local))
    local[:, -1] += 1
    changed = (net(sample, step, Condition(local_cond=local)) - out).abs().sum(-1)[0]
    assert (changed[:8] == 0).all()
    assert changed[-1] > 0
