"""The training objective, by hand."""

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.objective import (
    diffusion_loss,
    masked_mean,
    padding_mask,
    step_weights,
    target,
)
from diffusion_policy_ros.policy.samplers import PREDICTION_TYPES
from diffusion_policy_ros.policy.schedules import SCHEDULES, add_noise, make_schedule


@pytest.mark.parametrize("prediction", PREDICTION_TYPES)
def test_a_perfect_network_has_no_loss(prediction):
    """The loss is zero exactly where the network knows the target."""
    clean, noise = torch.randn(2, 3, 8, 2, generator=torch.Generator().manual_seed(0))
    schedule, steps = make_schedule(), torch.tensor([0, 50, 99])
    goal = target(prediction, clean, noise, schedule, steps)

    def loss(network):
        return diffusion_loss(network, schedule, clean, noise, steps, prediction_type=prediction)

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


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_v_equals_diffusers(schedule):
    """The target v is the reference's velocity, at each entry's own step."""
    clean, noise = torch.randn(2, 4, 8, 2, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor([0, 1, 50, 99])
    expected = DDPMScheduler(100, beta_schedule=schedule).get_velocity(clean, noise, steps)
    ours = target("v", clean, noise, make_schedule(schedule), steps)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_min_snr_weights_equal_the_reference(schedule):
    """From diffusers' signal-to-noise ratio, as its training scripts weigh each target."""
    steps = torch.arange(100)
    snr = compute_snr(DDPMScheduler(100, beta_schedule=schedule), steps).double()
    bounded = torch.stack([snr, torch.full_like(snr, 5.0)]).amin(0)
    expected = {"epsilon": bounded / snr, "sample": bounded, "v": bounded / (snr + 1)}
    for prediction in PREDICTION_TYPES:
        ours = step_weights(make_schedule(schedule), "min_snr", prediction)
        torch.testing.assert_close(ours, expected[prediction], rtol=2e-3, atol=1e-7)


def test_min_snr_weighs_each_entry_by_its_step():
    """By hand: an error of one everywhere gives the mean of the steps' weights."""
    schedule, steps = make_schedule(), torch.tensor([5, 60, 99])
    clean, noise = torch.zeros(3, 8, 2), torch.zeros(3, 8, 2)
    how = {"prediction_type": "v", "weighting": "min_snr", "min_snr_gamma": 2.0}
    loss = diffusion_loss(lambda x, t: x + 1, schedule, clean, noise, steps, **how)
    weights = step_weights(schedule, "min_snr", "v", 2.0)
    torch.testing.assert_close(loss, weights[steps].mean().float())


@pytest.mark.parametrize("prediction", PREDICTION_TYPES)
def test_min_snr_means_the_same_whatever_is_predicted(prediction):
    """One network's error of x_0, told as each target, has one weighted loss."""
    schedule, steps = make_schedule(), torch.tensor([5, 60, 90])
    clean, noise = torch.randn(2, 3, 8, 2, generator=torch.Generator().manual_seed(0)).double()
    noisy = add_noise(schedule, clean, noise, steps)
    signal = schedule.sqrt_alphas_cumprod[steps].view(-1, 1, 1)
    spread = schedule.sqrt_one_minus_alphas_cumprod[steps].view(-1, 1, 1)
    guess = clean + 0.1
    eps = (noisy - signal * guess) / spread
    told = {"sample": guess, "epsilon": eps, "v": signal * eps - spread * guess}[prediction]
    how = {"prediction_type": prediction, "weighting": "min_snr"}
    loss = diffusion_loss(lambda x, t: told, schedule, clean, noise, steps, **how)
    expected = step_weights(schedule, "min_snr", "sample")[steps].mean() * 0.01
    torch.testing.assert_close(loss, expected)


def test_chunks_of_any_length_in_one_batch():
    """What lies beyond a chunk's own end counts as little as an episode's padding."""
    is_pad = padding_mask(torch.tensor([3, 1, 4]), 4)
    assert is_pad.tolist() == [[False] * 3 + [True], [False] + [True] * 3, [False] * 4]
    error = torch.where(is_pad, 1e6, 2.0).unsqueeze(-1).expand(-1, -1, 5)
    assert masked_mean(error, is_pad) == 2


def test_an_unknown_weighting_is_refused():
    """With the near one; and v without its schedule is a bug."""
    with pytest.raises(UserError, match="did you mean 'min_snr'"):
        step_weights(make_schedule(), "min-snr", "v")
    with pytest.raises(UserError, match="did you mean 'epsilon'"):
        step_weights(make_schedule(), "min_snr", "epsilo")
    with pytest.raises(ValueError, match="give schedule"):
        target("v", torch.zeros(1), torch.zeros(1))
