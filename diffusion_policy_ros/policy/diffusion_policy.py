"""The policy: observation window in, chunk of actions out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserError, did_you_mean
from diffusion_policy_ros.policy.denoisers import DENOISERS, Condition
from diffusion_policy_ros.policy.encoders import ObservationEncoder
from diffusion_policy_ros.policy.normalizer import ACTION, Normalizer, Statistics
from diffusion_policy_ros.policy.objective import diffusion_loss
from diffusion_policy_ros.policy.recipe import Recipe
from diffusion_policy_ros.policy.samplers import SAMPLERS, inference_timesteps, noise_source
from diffusion_policy_ros.policy.schedules import make_schedule

Arrays = Mapping[str, "Tensor | np.ndarray"]


class Draws(NamedTuple):
    """The random numbers of a training step; a part of them belongs to a part of the batch.

    Attributes:
        crops: (B, cameras, 2) from 0 to below 1, see crop_windows; None for central crops.
        noise: (B, S, H, Da) standard normal, S draws for each window.
        timesteps: (B, S) integers in [0, T).
    """

    crops: Tensor | None
    noise: Tensor
    timesteps: Tensor

    def part(self, where: slice) -> Draws:
        """Those of the batch's windows `where`."""
        crops = None if self.crops is None else self.crops[where]
        return Draws(crops, self.noise[where], self.timesteps[where])


class DiffusionPolicy(nn.Module):
    """Chi et al. 2023 (https://arxiv.org/abs/2303.04137) for one robot.

    Args:
        recipe: what the policy is.
        contract: the robot; gives the observations' and the action's sizes.

    Raises:
        UserError: recipe and contract do not fit together.
    """

    def __init__(self, recipe: Recipe, contract: Contract) -> None:
        super().__init__()
        self.recipe, self.contract = recipe, contract
        settings = recipe.policy
        self.schedule = make_schedule(
            settings.schedule, settings.num_train_timesteps, settings.beta_start, settings.beta_end
        )
        self.normalizer = Normalizer(contract)
        self.encoder = ObservationEncoder(contract, settings.image_encoder)
        condition_size = settings.n_obs_steps * self.encoder.frame_features
        build = DENOISERS[settings.denoiser.name]
        self.denoiser = build(contract.action_dim, condition_size, settings.denoiser)
        # For callers that give no generator: a source of our own, so that no global one is read.
        self._generator = torch.Generator().manual_seed(recipe.training.seed)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def set_statistics(self, statistics: Statistics) -> None:
        """Take over a dataset's statistics, see Normalizer.fit."""
        self.normalizer.fit(statistics)

    def encode(self, observation: Arrays, *, crops: Tensor | None = None) -> Condition:
        """Observation window -> condition.

        Args:
            observation: key -> (B, To, ...), images uint8 (B, To, H, W, C), vectors float32.
            crops: (B, cameras, 2), places of the crops; central ones without.

        Raises:
            UserError: a key is missing, or of another shape or type than the contract's.
        """
        window = {key: self._on_device(observation, key) for key in self.contract.observations}
        return Condition(self.encoder(window, self.normalizer, crops))

    def draw(self, windows: int, generator: torch.Generator | None = None) -> Draws:
        """All that is random in a loss over `windows` windows.

        In training mode crops are random and each encoded window is used for `noise_samples`
        draws of noise and step; in eval mode crops are central and each window has one draw.
        """
        source, settings = generator or self._generator, self.recipe.policy
        device, crops, times = source.device, None, 1
        if self.training:
            places = (windows, len(self.encoder.cameras), 2)
            crops = torch.rand(places, generator=source, device=device)
            times = self.recipe.training.noise_samples
        chunks = (windows, times, settings.horizon, self.contract.action_dim)
        noise = torch.randn(chunks, generator=source, device=device)
        longest = settings.num_train_timesteps
        steps = torch.randint(longest, (windows, times), generator=source, device=device)
        return Draws(crops, noise, steps)

    def loss(
        self,
        batch: Arrays,
        generator: torch.Generator | None = None,
        draws: Draws | None = None,
    ) -> Tensor:
        """The training objective, a scalar.

        Args:
            batch: observations as in `encode`, "action" (B, H, Da) in physical units, and
                "action_is_pad" (B, H) where padding is to be masked.
            generator: source of crops, noise and steps; the policy's own where not given.
            draws: crops, noise and steps themselves, instead of drawn ones; see `draw`.
        """
        clean = self.normalizer[ACTION].normalize(self._actions(batch))
        crops, noise, timesteps = draws or self.draw(len(clean), generator)
        times = noise.shape[1]
        condition = self.encode(batch, crops=crops).repeat(times)
        is_pad = batch.get("action_is_pad") if self.recipe.training.mask_padding else None
        if is_pad is not None:
            is_pad = torch.as_tensor(is_pad).to(self.device).repeat_interleave(times, dim=0)
        return diffusion_loss(
            lambda sample, step: self.denoiser(sample, step, condition),
            self.schedule,
            clean.repeat_interleave(times, dim=0),
            noise.flatten(0, 1).to(clean),
            timesteps.flatten().to(self.device),
            prediction_type=self.recipe.policy.prediction_type,
            is_pad=is_pad,
        )

    @torch.inference_mode()
    def sample(
        self,
        observation: Arrays,
        *,
        steps: int | None = None,
        sampler: str | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        guidance: float = 1.0,
    ) -> Tensor:
        """A chunk of actions for each window; the window is encoded once, whatever the steps.

        Args:
            observation: as in `encode`.
            steps: K, diffusion steps; the recipe's where not given.
            sampler: a key of SAMPLERS; the recipe's where not given.
            generator: source of noise; the policy's own where not given.
            noise: the start x_T, (B, H, Da) standard normal, instead of a drawn one.
            guidance: scale of classifier-free guidance; this policy is not trained for it, so 1.

        Returns:
            (B, H, Da) in physical units; the first action belongs to the oldest observed frame.

        Raises:
            UserError: steps, sampler, guidance or observation do not fit.
        """
        settings = self.recipe.policy
        name = sampler or settings.sampler
        if name not in SAMPLERS:
            raise UserError(f"unknown sampler '{name}'", "sampler", did_you_mean(name, SAMPLERS))
        if guidance != 1.0:
            raise UserError(f"{guidance}", "guidance", "use 1: it was trained without guidance")
        visited = inference_timesteps(
            settings.num_train_timesteps,
            settings.num_inference_steps if steps is None else steps,
            settings.timestep_spacing,
        )
        condition = self.encode(observation)
        draw = noise_source(generator or self._generator)
        actions = SAMPLERS[name](
            lambda sample, step: self.denoiser(sample, step, condition),
            self.schedule,
            draw(self._blank_chunk(condition)) if noise is None else self._start(noise, condition),
            visited,
            prediction_type=settings.prediction_type,
            clip=1.0 if settings.clip_sample else None,
            draw=draw,
        )
        return self.normalizer[ACTION].unnormalize(actions)

    def _blank_chunk(self, condition: Condition) -> Tensor:
        assert condition.global_cond is not None
        shape = (self.recipe.policy.horizon, self.contract.action_dim)
        return condition.global_cond.new_zeros(len(condition.global_cond), *shape)

    def _start(self, noise: Tensor, condition: Condition) -> Tensor:
        blank = self._blank_chunk(condition)
        if noise.shape != blank.shape:
            raise UserError(f"{tuple(noise.shape)}", "noise", f"give {tuple(blank.shape)}")
        return noise.to(blank)

    def _actions(self, batch: Arrays) -> Tensor:
        if ACTION not in batch:
            raise UserError(f"no '{ACTION}'", "batch", "give the actions to learn")
        actions = torch.as_tensor(batch[ACTION]).to(self.device, torch.float32)
        expected = (self.recipe.policy.horizon, self.contract.action_dim)
        if tuple(actions.shape[1:]) != expected:
            raise UserError(f"{tuple(actions.shape)}", ACTION, f"give (batch, *{expected})")
        return actions

    def _on_device(self, observation: Arrays, key: str) -> Tensor:
        stream, steps = self.contract.observations[key], self.recipe.policy.n_obs_steps
        if key not in observation:
            known = ", ".join(self.contract.observations)
            raise UserError(f"no '{key}'", "observation", f"give all of: {known}")
        value = torch.as_tensor(observation[key])
        expected = (steps, *stream.shape)
        if tuple(value.shape[1:]) != expected or len(value) == 0:
            raise UserError(f"shape {tuple(value.shape)}", key, f"give (batch, *{expected})")
        if stream.is_image != (value.dtype == torch.uint8):
            wanted = "uint8" if stream.is_image else "float32"
            raise UserError(f"type {value.dtype}", key, f"give {wanted}")
        value = value.to(self.device, non_blocking=True)
        return value if stream.is_image else value.float()
