"""The policy: observation window in, chunk of actions out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.denoisers import DENOISERS, Condition, Sizes
from diffusion_policy_ros.policy.denoisers.dropout import (
    DropoutDraws,
    leave_out_of_compiling,
    masks_of,
)
from diffusion_policy_ros.policy.eyes import ObservationEncoder, TemporalEncoder
from diffusion_policy_ros.policy.following import Follow, following
from diffusion_policy_ros.policy.frames import Frames
from diffusion_policy_ros.policy.inpainting import MaskGenerator
from diffusion_policy_ros.policy.normalizer import ACTION, Normalizer, Statistics
from diffusion_policy_ros.policy.objective import diffusion_loss
from diffusion_policy_ros.policy.recipe import Recipe
from diffusion_policy_ros.policy.samplers import (
    Denoise,
    DrawNoise,
    find_sampler,
    inference_timesteps,
    noise_source,
)
from diffusion_policy_ros.policy.schedules import make_schedule

Arrays = Mapping[str, "Tensor | np.ndarray"]


class Draws(NamedTuple):
    """The random numbers of a training step; a part of them belongs to a part of the batch.

    Attributes:
        views: (B, cameras, numbers) from 0 to below 1: how pictures vary, see view.py; None for
            what is seen when running.
        noise: (B, S, H, Da) standard normal, S draws for each window; with inpainting Da + Do.
        timesteps: (B, S) integers in [0, T).
        hidden: (B, S), whose observation is hidden; None where none is.
        dropout: which masks of the network's dropout; None where there is none.
    """

    views: Tensor | None
    noise: Tensor
    timesteps: Tensor
    hidden: Tensor | None = None
    dropout: DropoutDraws | None = None

    def part(self, where: slice) -> Draws:
        """Those of the batch's windows `where`."""
        views = None if self.views is None else self.views[where]
        hidden = None if self.hidden is None else self.hidden[where]
        dropout = None if self.dropout is None else self.dropout.part(where)
        return Draws(views, self.noise[where], self.timesteps[where], hidden, dropout)

    def pinned(self) -> Draws:
        """The same in page-locked memory, from which a GPU copies while it computes."""
        views, noise, timesteps, hidden = (
            None if each is None else each.pin_memory() for each in self[:4]
        )
        assert noise is not None and timesteps is not None
        return Draws(views, noise, timesteps, hidden, self.dropout)


class DiffusionPolicy(nn.Module):
    """Chi et al. 2023 (https://arxiv.org/abs/2303.04137) for one robot.

    Args:
        recipe: what the policy is.
        contract: the robot; gives the observations' and the action's sizes.

    Attributes:
        frames: how the network sees that robot.

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
        self.frames = Frames(contract, settings, settings.n_obs_steps)
        seen = self.frames.seen
        self.normalizer = Normalizer(seen, settings.normalization, settings.clip)
        eyes = (settings.image_encoder, settings.image_encoders, settings.task_features)
        self.encoder = ObservationEncoder(seen, *eyes)
        self.temporal = None
        if settings.temporal_encoder is not None:
            width = self.encoder.frame_features
            frames = settings.n_obs_steps
            self.temporal = TemporalEncoder(width, frames, settings.temporal_encoder)
        self.sizes = self._sizes()
        self.denoiser = DENOISERS[settings.denoiser.name](self.sizes, settings.denoiser)
        # What stands for a hidden observation; zeros would be an observation like others.
        blanks = self.sizes.condition_shapes if settings.condition_dropout else {}
        self.null = nn.ParameterDict({n: torch.zeros(shape) for n, shape in blanks.items()})
        self._drops_out = any(isinstance(m, nn.Dropout) and m.p > 0 for m in self.modules())
        # For callers that give no generator: a source of our own, so that no global one is read.
        self.generator = torch.Generator().manual_seed(recipe.training.seed)

    def _sizes(self) -> Sizes:
        """What the denoiser is built for."""
        settings, frame = self.recipe.policy, self.encoder.frame_features
        action, steps = self.frames.seen.action_dim, settings.predicted_steps
        match settings.conditioned:
            case "tokens":
                return Sizes(action, steps, tokens=settings.n_obs_steps, token_dim=frame)
            case "local":
                return Sizes(action, steps, local_cond=frame)
            case "inpainting":
                self._check_inpainting()
                return Sizes(action + frame, steps)
        window = settings.n_obs_steps * frame if self.temporal is None else self.temporal.features
        return Sizes(action, steps, global_cond=window)

    def _check_inpainting(self) -> None:
        cameras = [key for key, s in self.contract.observations.items() if s.is_image]
        if cameras:
            # Features that are learned and at the same time predicted collapse.
            what = f"inpainting is for vectors, '{cameras[0]}' is an image"
            raise UserError(what, "policy.conditioning", "use another one, such as global")

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        # Not of the first weight, which is searched for through all modules.
        return self.normalizer[ACTION].center.device

    def set_statistics(self, statistics: Statistics) -> None:
        """Take over a dataset's statistics, see Normalizer.fit."""
        self.normalizer.fit(statistics)

    def warnings(self) -> Iterator[str]:
        """What of robot, data and recipe is likely not meant."""
        yield from self.frames.warnings()
        yield from self.normalizer.warnings()

    def compile_networks(self) -> None:
        """Have torch.compile compile denoiser and image encoders when they first run."""
        leave_out_of_compiling()
        self.denoiser.compile()
        for camera in self.encoder.cameras.values():
            camera.backbone.compile()  # type: ignore[union-attr]

    def encode(self, observation: Arrays, *, views: Tensor | None = None) -> Condition:
        """Observation window -> condition.

        Args:
            observation: as the network sees it: key -> (B, To, ...), images uint8
                (B, To, H, W, C), vectors float32.
            views: (B, cameras, numbers), how pictures vary in training; see Draws.

        Raises:
            UserError: a key is missing, or of another shape or type than the network sees.
        """
        settings = self.recipe.policy
        frames = self._frames(observation, settings.n_obs_steps, views)
        match settings.conditioned:
            case "tokens":
                return Condition(tokens=frames)
            case "local":
                # Zeros beyond the newest frame: what is not known yet.
                unknown = settings.horizon - settings.n_obs_steps
                return Condition(local_cond=functional.pad(frames, (0, 0, 0, unknown)))
            case "inpainting":
                unknown = settings.horizon - settings.n_obs_steps
                given = functional.pad(frames, (self.frames.seen.action_dim, 0, 0, unknown))
                return self._inpainting(given)
        return Condition(frames.flatten(1) if self.temporal is None else self.temporal(frames))

    def _frames(self, observation: Arrays, steps: int, views: Tensor | None) -> Tensor:
        """Features (B, steps, Do) of each observed frame."""
        keys = self.frames.seen.observations
        window = {key: self._on_device(observation, key, steps) for key in keys}
        out: Tensor = self.encoder(window, self.normalizer, views)
        return out

    def _inpainting(self, given: Tensor) -> Condition:
        """Of sequences (B, H, Da + Do) of actions and observations, tell the observed part."""
        action, settings = self.frames.seen.action_dim, self.recipe.policy
        batch, horizon, _ = given.shape
        masks = MaskGenerator(action, self.encoder.frame_features, settings.n_obs_steps)
        return Condition(given=given, is_given=masks(batch, horizon, device=given.device))

    @property
    def _null(self) -> Mapping[str, Tensor] | None:
        return dict(self.null.items()) or None

    def predict(
        self, sample: Tensor, timestep: Tensor, condition: Condition, guidance: float = 1.0
    ) -> Tensor:
        """What the denoiser says of x_t (B, H, Da) at steps (B,), told of the condition.

        With a `guidance` other than 1 it is asked twice, with and without the observation, and
        the difference is scaled: Ho and Salimans 2022 (https://arxiv.org/abs/2207.12598) eq. 6,
        where 1 stands for their w = 0.
        """
        sample = condition.inpainted(sample)
        if guidance == 1.0:
            out: Tensor = self.denoiser(sample, timestep, condition)
            return out
        both = condition.beside(condition.hidden(null=self._null))
        answers = self.denoiser(torch.cat([sample] * 2), torch.cat([timestep] * 2), both)
        told, untold = answers.chunk(2)
        return torch.lerp(untold, told, guidance)

    def draw(self, windows: int, generator: torch.Generator | None = None) -> Draws:
        """All that is random in a loss over `windows` windows.

        In training mode pictures vary and each encoded window is used for `noise_samples`
        draws of noise and step; in eval mode they do not and each window has one draw.
        """
        source, settings = generator or self.generator, self.recipe.policy
        device, views, times = source.device, None, 1
        if self.training:
            numbers = (windows, len(self.encoder.cameras), self.encoder.view_numbers)
            views = torch.rand(numbers, generator=source, device=device)
            times = self.recipe.training.noise_samples
        chunks = (windows, times, settings.predicted_steps, self.sizes.action_dim)
        noise = torch.randn(chunks, generator=source, device=device)
        longest = settings.num_train_timesteps
        steps = torch.randint(longest, (windows, times), generator=source, device=device)
        hidden = dropout = None
        if self.training and settings.hidden_share:
            hidden = torch.rand((windows, times), generator=source, device=device)
            hidden = hidden < settings.hidden_share
        if self.training and self._drops_out:
            seed = int(torch.randint(2**31, (), generator=source, device=device))
            dropout = DropoutDraws(seed, 0, windows, windows)
        return Draws(views, noise, steps, hidden, dropout)

    def loss(
        self,
        batch: Arrays,
        generator: torch.Generator | None = None,
        draws: Draws | None = None,
    ) -> Tensor:
        """The training objective, a scalar.

        Args:
            batch: as the network sees it: observations as in `encode` (with inpainting of all H
                frames), "action" (B, H, Da) in physical units, and "action_is_pad" (B, H) where
                padding is to be masked.
            generator: source of views, noise and steps; the policy's own where not given.
            draws: views, noise and steps themselves, instead of drawn ones; see `draw`.
        """
        settings = self.recipe.policy
        clean = self.normalizer[ACTION].normalize(self._actions(batch))[:, settings.predicted]
        draws = draws or self.draw(len(clean), generator)
        times = draws.noise.shape[1]
        if settings.conditioned == "inpainting":
            observed = self._frames(batch, settings.training_obs_steps, draws.views)
            clean = torch.cat([clean, observed], dim=-1)
            condition = self._inpainting(clean)
        else:
            condition = self.encode(batch, views=draws.views)
        condition = condition.repeat(times)
        if draws.hidden is not None:
            where = draws.hidden.flatten().to(self.device, non_blocking=True)
            condition = condition.hidden(where, self._null)
        is_pad = batch.get("action_is_pad") if self.recipe.training.mask_padding else None
        if is_pad is not None:
            is_pad = torch.as_tensor(is_pad).to(self.device, non_blocking=True)[
                :, settings.predicted
            ]
            is_pad = is_pad.repeat_interleave(times, dim=0)
        with masks_of(draws.dropout, self.device):
            return diffusion_loss(
                lambda sample, step: self.predict(sample, step, condition),
                self.schedule,
                clean.repeat_interleave(times, dim=0),
                draws.noise.flatten(0, 1).to(clean, non_blocking=True),
                draws.timesteps.flatten().to(self.device, non_blocking=True),
                prediction_type=settings.prediction_type,
                is_pad=is_pad,
                is_given=condition.is_given,
                weighting=self.recipe.training.loss_weighting,
                min_snr_gamma=self.recipe.training.min_snr_gamma,
            )

    def forward(self, batch: Arrays, draws: Draws) -> Tensor:
        """`loss`, as what wraps a network calls it."""
        return self.loss(batch, draws=draws)

    def sample(
        self,
        observation: Arrays,
        *,
        steps: int | None = None,
        sampler: str | None = None,
        generator: torch.Generator | DrawNoise | None = None,
        noise: Tensor | None = None,
        guidance: float = 1.0,
        follow: Follow | None = None,
    ) -> Tensor:
        """A chunk of actions for each window; the window is encoded once, whatever the steps.

        Args:
            observation: as the robot is observed: key -> (B, To, ...), see `encode`.
            steps: K, diffusion steps; the recipe's where not given.
            sampler: a key of SAMPLERS; the recipe's where not given.
            generator: source of noise, or a function that draws it; the policy's own where
                not given.
            noise: the start x_T, standard normal, instead of a drawn one: (B, H, Da), with
                inpainting (B, H, Da + Do), of the network's sizes.
            guidance: see `predict`; other than 1 only where trained with condition_dropout.
            follow: actions to agree with, see Follow.

        Returns:
            (B, H, Da) of the contract's kinds, in physical units; the first action belongs to the
            oldest observed frame. With pred_action_steps_only (B, Ta, Da), from the newest
            observed frame on.

        Raises:
            UserError: steps, sampler, guidance, follow or observation do not fit.
        """

        def run(seen: Arrays, follow: Follow | None) -> Tensor:
            return self.sample_seen(
                seen,
                steps=steps,
                sampler=sampler,
                generator=generator,
                noise=noise,
                guidance=guidance,
                follow=follow,
            )

        return self.through_frames(run, observation, follow)

    def through_frames(
        self,
        run: Callable[[Arrays, Follow | None], Tensor],
        observation: Arrays,
        follow: Follow | None,
    ) -> Tensor:
        """What `run` samples of what the network sees, as the robot takes it.

        Args:
            run: as `sample_seen`.
            observation: as the robot is observed.
            follow: actions to agree with, of the contract's kinds.
        """
        frames, first = self.frames, self.recipe.policy.predicted.start
        if not frames.changes_any:
            return run(observation, follow)
        window = {
            key: value.cpu() if isinstance(value, Tensor) and value.ndim == 3 else value
            for key, value in observation.items()
        }
        if follow is not None and frames.changes_actions:
            follow = self._follow_seen(follow, window)
        chunk = run(frames.to_network(window), follow)
        if not frames.changes_actions:
            return chunk
        return torch.from_numpy(frames.to_robot(chunk.cpu(), window, first)).to(chunk.device)

    def _follow_seen(self, follow: Follow, window: Arrays) -> Follow | None:
        settings = self.recipe.policy
        shape = (len(follow.actions), settings.predicted_steps, self.contract.action_dim)
        if not follow.checked(shape).weights.any():
            return None
        actions = follow.extended().actions.cpu()
        seen = self.frames.actions_to_network(actions, window, settings.predicted.start)
        return dataclasses.replace(follow, actions=torch.from_numpy(seen))

    def sample_seen(
        self,
        observation: Arrays,
        *,
        steps: int | None = None,
        sampler: str | None = None,
        generator: torch.Generator | DrawNoise | None = None,
        noise: Tensor | None = None,
        guidance: float = 1.0,
        follow: Follow | None = None,
    ) -> Tensor:
        """As `sample`, all of it as the network sees it."""
        settings = self.recipe.policy
        run = find_sampler(
            sampler or settings.sampler, eta=settings.eta, variance=settings.variance
        )
        settings.check_guidance(guidance, "guidance")
        visited = inference_timesteps(
            settings.num_train_timesteps,
            settings.num_inference_steps if steps is None else steps,
            settings.timestep_spacing,
        )
        # What is computed in inference mode cannot be differentiated through later.
        plain = follow is None or not follow.differentiates
        with torch.inference_mode(plain), torch.no_grad():
            condition = self.encode(observation)
            draw = noise_source(generator or self.generator)
            start = self._start(noise, condition, draw)
            denoise, predicts = self._denoise(condition, guidance, follow)
            # A sampler treats each number by itself, so it need not know what is given.
            actions = run(
                denoise,
                self.schedule,
                start,
                visited,
                prediction_type=predicts,
                clip=settings.clip,
                draw=draw,
            )
            actions = condition.inpainted(actions)[..., : self.frames.seen.action_dim]
            return self.normalizer[ACTION].unnormalize(actions)

    def _denoise(
        self, condition: Condition, guidance: float, follow: Follow | None
    ) -> tuple[Denoise, str]:
        """What the sampler asks at every step, and what of it is predicted."""

        def told(sample: Tensor, step: Tensor) -> Tensor:
            return self.predict(sample, step, condition, guidance)

        settings = self.recipe.policy
        target = settings.prediction_type
        if follow is None:
            return told, target
        known = next(part for part in condition if part is not None)
        shape = (len(known), settings.predicted_steps, self.frames.seen.action_dim)
        actions = self.normalizer[ACTION].normalize(follow.checked(shape).actions.to(known))
        near = Follow(actions, follow.weights.to(known), follow.kind)
        return following(told, self.schedule, target, near, settings.clip), "sample"

    def _blank_chunk(self, condition: Condition) -> Tensor:
        known = next(part for part in condition if part is not None)
        shape = (self.recipe.policy.predicted_steps, self.sizes.action_dim)
        return known.new_zeros(len(known), *shape)

    def _start(self, noise: Tensor | None, condition: Condition, draw: DrawNoise) -> Tensor:
        blank = self._blank_chunk(condition)
        if noise is None:
            return draw(blank)
        if noise.shape != blank.shape:
            raise UserError(f"{tuple(noise.shape)}", "noise", f"give {tuple(blank.shape)}")
        return noise.to(blank)

    def _actions(self, batch: Arrays) -> Tensor:
        if ACTION not in batch:
            raise UserError(f"no '{ACTION}'", "batch", "give the actions to learn")
        actions = torch.as_tensor(batch[ACTION]).to(self.device, torch.float32)
        expected = (self.recipe.policy.horizon, self.frames.seen.action_dim)
        if tuple(actions.shape[1:]) != expected:
            raise UserError(f"{tuple(actions.shape)}", ACTION, f"give (batch, *{expected})")
        return actions

    def _on_device(self, observation: Arrays, key: str, steps: int) -> Tensor:
        stream = self.frames.seen.observations[key]
        if key not in observation:
            known = ", ".join(self.frames.seen.observations)
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
