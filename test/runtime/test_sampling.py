"""How chunks are sampled: what a policy can take, where a chunk begins, what its noise is."""

import numpy as np
import pytest
import torch

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.recipe import PolicySettings
from diffusion_policy_ros.runtime.inference import make_chunk, noise_generator
from diffusion_policy_ros.runtime.sampling import Sampling

CONTRACT = Contract.load("mini_lift_state")
WINDOW = {"robot0_eef_pos": np.zeros((2, 3), np.float32)}
SAMPLING = Sampling(num_inference_steps=4, sampler="ddim", replan_steps=1, n_action_steps=8)
PERIOD = CONTRACT.period_ns


class Engine:
    """Stands in for a policy: gives the action's index."""

    def sample(self, observation, **_):
        """(1, 16, 7), every component the index in the horizon."""
        return torch.arange(16.0)[None, :, None].expand(1, 16, 7)


@pytest.mark.parametrize(
    "change",
    [
        {"num_inference_steps": 0},
        {"num_inference_steps": 101},
        {"replan_steps": 9},
        {"sampler": "ddmi"},
        {"chunk_join": "temporal_assemble"},
    ],
)
def test_settings_that_the_policy_cannot_take_are_refused(change):
    """With the valid ones in words."""
    settings = PolicySettings(n_action_steps=8, num_train_timesteps=100)
    assert (
        Sampling.of(settings, num_inference_steps=None).num_inference_steps
        == settings.num_inference_steps
    )
    with pytest.raises(UserError, match="use 1 to|did you mean"):
        Sampling.of(settings, **change)


def test_guidance_is_for_policies_that_were_trained_for_it():
    """Any scale from 0 on with observation dropout, only 1 without."""
    trained = PolicySettings(observation_dropout=0.1)
    assert Sampling.of(trained, guidance_scale=3.0).guidance_scale == 3.0
    with pytest.raises(UserError, match="guidance_scale: -1; use 0 or more"):
        Sampling.of(trained, guidance_scale=-1.0)
    with pytest.raises(UserError, match="guidance_scale: 3; use 1"):
        Sampling.of(PolicySettings(), guidance_scale=3.0)


def test_chunks_begin_at_the_newest_frame_s_action():
    """It is the second of all H predicted, the first where only executed ones are."""
    every = Sampling.of(PolicySettings())
    steps_only = Sampling.of(PolicySettings(pred_action_steps_only=True))
    for sampling, first in ((every, 1.0), (steps_only, 0.0), (SAMPLING, 1.0)):
        chunk = make_chunk(Engine(), CONTRACT, WINDOW, 0, sampling)
        assert chunk.actions[0, 0] == first
        assert len(chunk.actions) == 8


def noise(seed, time_ns):
    """What the noise of a chunk begins with."""
    return torch.randn(3, generator=noise_generator(seed, time_ns)).tolist()


def test_a_chunks_noise_follows_from_seed_and_frame_alone():
    """Whatever was sampled before or left out: so a recorded run can be replayed."""
    assert noise(7, 3 * PERIOD) == noise(7, 3 * PERIOD)
    drawn = [noise(7, 3 * PERIOD), noise(7, 4 * PERIOD), noise(8, 3 * PERIOD), noise(7, -PERIOD)]
    assert len({tuple(values) for values in drawn}) == 4
