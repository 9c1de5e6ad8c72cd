"""The policy: observation window in, chunk of actions out."""

from __future__ import annotations

from collections.abc import Mapping

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

    def encode(
        self, observation: Arrays, *, crop_generator: torch.Generator | None = None
    ) -> Condition:
        """Observation window -> condition.

        Args:
            observation: key -> (B, To, ...), images uint8 (B, To, H, W, C), vectors float32.
            crop_generator: source of random crops; None crops the centre.

        Raises:
            UserError: a key is missing, or of another shape or type than the contract's.
        """
        window = {key: self._on_device(observation, key) for key in self.contract.observations}
        return Condition(self.encoder(window, self.normalizer, crop_generator))

    def loss(self, batch: Arrays, generator: torch.Generator | None = None) -> Tensor:
        """The training objective, a scalar.

        In training mode crops are random and each encoded window is used for `noise_samples` draws
        of noise and step; in eval mode crops are central and each window has one draw.

        Args:
            batch: observations as in `encode`, "action" (B, H, Da) in physical units, and
                "action_is_pad" (B, H) where padding is to be masked.
            generator: source of crops, noise and steps; the policy's own where not given.
        """
        generator = generator or self._generator
        settings, training = self.recipe.policy, self.recipe.training
        condition = self.encode(batch, crop_generator=generator if self.training else None)
        clean = self.normalizer[ACTION].normalize(self._actions(batch))
        is_pad = batch.get("action_is_pad") if training.mask_padding else None
        is_pad = None if is_pad is None else torch.as_tensor(is_pad).to(self.device)
        times = training.noise_samples if self.training else 1
        if times > 1:
            condition, clean = condition.repeat(times), clean.repeat_interleave(times, dim=0)
            is_pad = None if is_pad is None else is_pad.repeat_interleave(times, dim=0)
        timesteps = torch.randint(
            settings.num_train_timesteps,
            (len(clean),),
            generator=generator,
            device=generator.device,
        )
        return diffusion_loss(
            lambda sample, step: self.denoiser(sample, step, condition),
            self.schedule,
            clean,
            noise_source(generator)(clean),
            timesteps.to(self.device),
            prediction_type=settings.prediction_type,
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
