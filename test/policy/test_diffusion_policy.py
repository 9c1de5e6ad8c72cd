"""The policy: what goes in, what comes out, and where randomness comes from."""

import dataclasses

import numpy as np
import pytest
import torch

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy


@pytest.fixture
def policy(recipe, contract, statistics):
    """A small untrained policy."""
    torch.manual_seed(0)
    policy = DiffusionPolicy(recipe, contract)
    policy.set_statistics(statistics)
    return policy.eval()


def generator(seed=0):
    """A generator of this seed."""
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_samples_are_chunks_in_physical_units(policy, batch, sampler, steps):
    """(B, H, Da), within the demonstrations' range, with the constant component constant."""
    out = policy.sample(batch, steps=steps, sampler=sampler, generator=generator())
    assert out.shape == (5, 8, 8)
    assert out.dtype == torch.float32
    assert (out[..., 0].abs() <= 0.1 + 1e-6).all()
    assert (out[..., 2] == 0.5).all()


def test_noise_and_generator_decide_the_sample(policy, batch):
    """The same noise gives the same chunk; a generator's first draw is that noise."""
    noise = torch.randn(5, 8, 8, generator=generator(1))
    first = policy.sample(batch, noise=noise)
    assert torch.equal(first, policy.sample(batch, noise=noise))
    assert torch.equal(first, policy.sample(batch, generator=generator(1)))
    assert not torch.equal(first, policy.sample(batch, generator=generator(2)))


def test_no_global_generator_moves(policy, batch):
    """Not even without a generator: the policy has a source of its own."""
    state = torch.random.get_rng_state()
    policy.sample(batch)
    policy.train().loss(batch)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_window_is_encoded_once_whatever_the_steps(policy, batch, monkeypatch):
    """Ten steps of diffusion look at the cameras once."""
    calls = []
    encode = policy.encoder.forward
    monkeypatch.setattr(policy.encoder, "forward", lambda *a: calls.append(1) or encode(*a))
    policy.sample(batch, steps=10)
    assert len(calls) == 1


def test_arrays_and_tensors_are_the_same(policy, batch):
    """NumPy windows, as the runtime has them, need no conversion."""
    noise = torch.zeros(5, 8, 8)
    tensors = {key: torch.from_numpy(value) for key, value in batch.items()}
    assert torch.equal(policy.sample(batch, noise=noise), policy.sample(tensors, noise=noise))


def test_each_window_is_sampled_by_itself(policy, batch):
    """A batch is its entries, to float rounding."""
    noise = torch.randn(5, 8, 8, generator=generator())
    alone = policy.sample({k: v[2:3] for k, v in batch.items()}, noise=noise[2:3])
    together = policy.sample(batch, noise=noise)[2:3]
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


def test_the_loss_uses_each_window_for_several_draws(policy, batch, monkeypatch):
    """Training asks the denoiser about noise_samples chunks a window, validation about one."""
    sizes = []
    denoise = policy.denoiser.forward
    monkeypatch.setattr(
        policy.denoiser, "forward", lambda s, *a: sizes.append(len(s)) or denoise(s, *a)
    )
    policy.train().loss(batch, generator())
    policy.eval().loss(batch, generator())
    assert sizes == [10, 5]


def test_the_loss_is_a_function_of_the_generator(policy, batch):
    """Crops, noise and steps all come from it."""
    policy.train()
    losses = [policy.loss(batch, generator(seed)) for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_drawn_numbers_are_the_generator_s(policy, batch):
    """A loss over given draws is the loss that draws them; parts of them belong to windows."""
    policy.train()
    draws = policy.draw(5, generator(3))
    whole = policy.loss(batch, draws=draws)
    assert whole == policy.loss(batch, generator(3))
    parts = [slice(0, 2), slice(2, 5)]
    losses = [policy.loss({k: v[p] for k, v in batch.items()}, draws=draws.part(p)) for p in parts]
    torch.testing.assert_close(losses[0] * 0.4 + losses[1] * 0.6, whole)
    assert draws.views.shape == (5, 1, 2)
    assert policy.eval().draw(5, generator(3)).views is None


def test_padded_actions_do_not_count(policy, batch, monkeypatch):
    """A denoiser that is right except beyond an episode's end has no loss, unless told to care."""
    batch["action_is_pad"][:, 6:] = True
    clean = policy.normalizer["action"].normalize(torch.from_numpy(batch["action"]))
    wrong = clean.clone()
    wrong[:, 6:] += 1
    monkeypatch.setattr(policy.denoiser, "forward", lambda *a: wrong)
    assert policy.loss(batch, generator()) == 0
    training = dataclasses.replace(policy.recipe.training, mask_padding=False)
    policy.recipe = dataclasses.replace(policy.recipe, training=training)
    assert policy.loss(batch, generator()) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b.pop("camera"), "no 'camera'.*give all of: position, camera, turn"),
        (lambda b: b.update(camera=b["camera"][:, :1]), r"camera: shape \(5, 1, 20, 24, 3\)"),
        (lambda b: b.update(camera=b["camera"].astype(np.float32)), "camera: type.*give uint8"),
        (lambda b: b.update(turn=b["turn"][..., :3]), r"turn: shape.*give \(batch, \*\(2, 4\)\)"),
    ],
)
def test_windows_that_do_not_fit_are_refused_by_key(policy, batch, damage, message):
    """Shape, type and presence are checked before anything is computed."""
    damage(batch)
    with pytest.raises(UserError, match=message):
        policy.sample(batch)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"steps": 21}, "use 1 to 20"),
        ({"steps": 0}, "use 1 to 20"),
        ({"sampler": "dimm"}, "did you mean 'ddim'"),
        ({"guidance": 2.0}, "trained without guidance"),
        ({"noise": torch.zeros(1, 8, 8)}, r"give \(5, 8, 8\)"),
    ],
)
def test_ways_of_sampling_that_it_does_not_have_are_refused(policy, batch, how, message):
    """More steps than trained, an unknown sampler, guidance: each with its cure."""
    with pytest.raises(UserError, match=message):
        policy.sample(batch, **how)


def test_it_learns_a_toy_problem(recipe, contract, statistics, batch):
    """150 updates on five windows: the loss falls fivefold, samples are the actions."""
    torch.manual_seed(0)
    policy = DiffusionPolicy(recipe, contract)
    policy.set_statistics(statistics)
    low, high = (torch.as_tensor(statistics["action"][name]) for name in ("min", "max"))
    actions = low + (high - low) * (torch.from_numpy(batch["action"]) + 1) / 2
    batch = {**batch, "action": actions}
    optimizer = torch.optim.AdamW(policy.parameters(), 2e-3)
    losses, source = [], generator()
    for _ in range(150):
        loss = policy.train().loss(batch, source)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-20:]) < np.mean(losses[:5]) / 5
    error = policy.eval().sample(batch, steps=10, generator=source) - actions
    assert error.abs().mean() < 0.1
