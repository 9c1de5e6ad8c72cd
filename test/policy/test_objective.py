"""The training objective, by hand."""

import pytest
import torch

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.objective import diffusion_loss, masked_mean, target
from diffusion_policy_ros.policy.samplers import PREDICTION_TYPES
from diffusion_policy_ros.policy.schedules import add_noise, make_schedule


@pytest.mark.parametrize("prediction", PREDICTION_TYPES)
def test_a_perfect_network_has_no_loss(prediction):
    """The loss is zero exactly where the network knows the target."""
    clean, noise = torch.randn(2, 3, 8, 2, generator=torch.Generator().manual_seed(0))
    goal = target(prediction, clean, noise)

    def loss(network):
        steps = torch.tensor([0, 50, 99])
        return diffusion_loss(
            network, make_schedule(), clean, noise, steps, prediction_type=prediction
        )

    assert loss(lambda sample, step: goal) == 0
    assert loss(lambda sample, step: goal + 2) == pytest.approx(4)


def test_the_network_sees_the_noisy_sample_and_its_step():
    """What comes in is q(x_t | x_0) at each entry's own step."""
    clean, noise = torch.randn(2, 3, 8, 2)
    steps, schedule, seen = torch.tensor([3, 1, 2]), make_schedule(), []

    def network(sample, step):
        seen.append((sample, step))
        return sample

    diffusion_loss(network, schedule, clean, noise, steps, prediction_type="sample")
    torch.testing.assert_close(seen[0][0], add_noise(schedule, clean, noise, steps))
    assert torch.equal(seen[0][1], steps)


def test_padding_does_not_count():
    """The mean is over the actions that were really commanded; all padding is no loss."""
    error = torch.ones(2, 3, 4)
    error[0, 2] = 100
    is_pad = torch.zeros(2, 3, dtype=torch.bool)
    is_pad[0, 2] = True
    assert masked_mean(error, is_pad) == 1
    assert masked_mean(error, None) == pytest.approx((20 + 400) / 24)
    assert masked_mean(error, torch.ones(2, 3, dtype=torch.bool)) == 0


def test_an_unknown_target_is_refused():
    """With the near one."""
    with pytest.raises(UserError, match="did you mean 'sample'"):
        target("samples", torch.zeros(1), torch.zeros(1))
