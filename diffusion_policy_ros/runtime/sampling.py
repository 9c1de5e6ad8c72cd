"""How chunks are sampled."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from diffusion_policy_ros.errors import UserError, did_you_mean
from diffusion_policy_ros.policy.recipe import PolicySettings
from diffusion_policy_ros.policy.samplers import SAMPLERS
from diffusion_policy_ros.policy.tasks import check_task
from diffusion_policy_ros.runtime.joining import JOINS

SEEDS = 2**31
"""How many seeds of the noise there are: as many as a parameter of the node can tell."""


@dataclass(frozen=True)
class Sampling:
    """How chunks are sampled; a whole new one replaces it, so that a change takes effect between
    two chunks.

    Attributes:
        num_inference_steps: K, denoising steps.
        sampler: a name in ``policy.samplers.SAMPLERS``.
        guidance_scale: of classifier-free guidance; 1 is none.
        replan_steps: frames between inferences.
        n_action_steps: Ta, actions of a chunk.
        first_action: which of the predicted actions belongs to the newest observed frame; where
            not given, there is one for each observed frame before it.
        chunk_join: how chunks join, of ``runtime.joining.JOINS``.
        task: which of the tasks that were trained is meant; the only one where there is one.
    """

    num_inference_steps: int
    sampler: str
    replan_steps: int
    n_action_steps: int
    guidance_scale: float = 1.0
    first_action: int | None = None
    chunk_join: str = "replace"
    task: str = ""

    @classmethod
    def of(cls, settings: PolicySettings, **changes: Any) -> Sampling:
        """A policy's own way of sampling, changed where something is given.

        Args:
            settings: the policy's recipe.
            changes: attribute → value; None leaves the policy's own.

        Raises:
            UserError: a value that the policy cannot be sampled with.
        """
        changes["task"] = changes.get("task") or None
        own = cls(
            num_inference_steps=settings.num_inference_steps,
            sampler=settings.sampler,
            replan_steps=settings.frames_between_inferences,
            n_action_steps=settings.n_action_steps,
            first_action=settings.executed.start,
            task=settings.tasks[0] if len(settings.tasks) == 1 else "",
        )
        given = {name: value for name, value in changes.items() if value is not None}
        return dataclasses.replace(own, **given).checked(settings)

    def checked(self, settings: PolicySettings) -> Sampling:
        """Itself, if the policy can be sampled so.

        Raises:
            UserError: it cannot.
        """
        for name, highest in (
            ("num_inference_steps", settings.num_train_timesteps),
            ("replan_steps", self.n_action_steps),
        ):
            value = getattr(self, name)
            if not 1 <= value <= highest:
                raise UserError(f"{value} is out of range", name, f"use 1 to {highest}")
        if self.sampler not in SAMPLERS:
            cure = did_you_mean(self.sampler, SAMPLERS)
            raise UserError(f"no sampler '{self.sampler}'", "sampler", cure)
        if self.chunk_join not in JOINS:
            cure = did_you_mean(self.chunk_join, JOINS)
            raise UserError(f"no way to join '{self.chunk_join}'", "chunk_join", cure)
        settings.check_guidance(self.guidance_scale, "guidance_scale")
        check_task(self.task, settings.tasks)
        return self


def drawn_seed() -> int:
    """A seed that nobody chose."""
    return torch.Generator().seed() % SEEDS
