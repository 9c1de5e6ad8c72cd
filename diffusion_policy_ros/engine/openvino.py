"""The policy on a CPU through OpenVINO: encoders and denoiser compiled, the rest as it is.

`DiffusionPolicy.sample` stays the one truth: this engine runs it on a copy of the policy whose
networks are compiled ones. Work that does not change is done once: a frame that was encoded for
the window before is not encoded again, and what the denoiser computes of observation and steps
alone is computed once a chunk, for all steps (see `stages`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from diffusion_policy_ros.engine.compiled import (
    HINTS,
    Compiled,
    Models,
    Store,
    capabilities,
    convert,
)
from diffusion_policy_ros.engine.stages import split
from diffusion_policy_ros.engine.tracing import trace
from diffusion_policy_ros.engine.weights import compress, unroll
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.checkpoint import checkpoint_hash, find_checkpoint
from diffusion_policy_ros.policy.denoisers import Condition
from diffusion_policy_ros.policy.diffusion_policy import Arrays, DiffusionPolicy
from diffusion_policy_ros.policy.eyes import ImageEncoder
from diffusion_policy_ros.policy.following import Follow
from diffusion_policy_ros.policy.samplers import inference_timesteps
from diffusion_policy_ros.policy.view import look

Module = TypeVar("Module", bound=nn.Module)
AHEAD = 64
"""Steps whose early stage is computed at once; more would take memory for nothing."""
EXAMPLE = 3
"""Size of the batch that networks are traced with; any that is no other size in them."""


class OpenVinoEngine:
    """Runs the networks through OpenVINO.

    Args:
        policy: in eval mode from then on; stays on the CPU.
        device: the CPU.
        dtype: "f32"; "bf16" where the processor has it; "int8" for weights in 8 bits.
        checkpoint: where the policy came from; converted networks are kept in it.
        say: told once of what could not be kept.

    Raises:
        UserError: another device, or a dtype that the processor does not have.
    """

    name = "openvino"

    def __init__(
        self,
        policy: DiffusionPolicy,
        device: torch.device,
        dtype: str = "f32",
        checkpoint: Path | None = None,
        say: Callable[[str], object] = print,
    ) -> None:
        if device.type != "cpu":
            raise UserError(f"{device}", "device", "the openvino engine computes on the cpu")
        known = ", ".join(sorted(capabilities()))
        if dtype not in HINTS:
            raise UserError(f"unknown precision '{dtype}'", "dtype", f"use one of: {known}")
        if dtype not in capabilities():
            raise UserError(f"this processor has no {dtype}", "dtype", f"use one of: {known}")
        # Where a chunk follows another, only the derivative by its sample is wanted.
        self.policy = policy.to(device).eval().requires_grad_(False)
        self.dtype = dtype
        folder = None if checkpoint is None else find_checkpoint(checkpoint)
        content = "" if folder is None else checkpoint_hash(folder)
        store = Store(folder, content, dtype, say)
        models, self.threads = store.get(lambda: _converted(self.policy, dtype))
        networks = {
            name: Compiled(model, dtype, self.threads, any_batch=name == "early")
            for name, model in models.items()
        }
        self._denoiser = CompiledDenoiser(self.policy.denoiser, networks)
        self._fast = _with_networks(self.policy, self._denoiser, networks)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.policy.device

    def sample(
        self,
        observation: Arrays,
        *,
        steps: int | None = None,
        follow: Follow | None = None,
        **options: Any,
    ) -> Tensor:
        """See DiffusionPolicy.sample. Where derivatives are needed, the plain modules compute."""
        settings = self.policy.recipe.policy
        differentiates = follow is not None and follow.differentiates
        self._denoiser.to_visit = inference_timesteps(
            settings.num_train_timesteps,
            settings.num_inference_steps if steps is None else steps,
            settings.timestep_spacing,
        )
        policy = self.policy if differentiates else self._fast
        return policy.sample(observation, steps=steps, follow=follow, **options)


class CompiledDenoiser(nn.Module):
    """Called as the denoiser that it stands for.

    Args:
        plain: the network itself.
        halves: of it, "early" and "late".
    """

    def __init__(self, plain: nn.Module, halves: Mapping[str, Compiled]) -> None:
        super().__init__()
        self.plain, self._early, self._late = plain, halves["early"], halves["late"]
        self._late.fit(1)
        self.to_visit: Sequence[int] = ()
        self._parts: list[Tensor] = []
        self._rows: dict[int, Tensor] = {}  # step -> what is known of it, (B, F)

    def forward(self, sample: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """See the denoisers."""
        step, parts = int(timestep[0]), [p for p in condition[:3] if p is not None]
        if len(timestep) > 1 and not bool((timestep == step).all()):
            out: Tensor = self.plain(sample, timestep, condition)
            return out
        if not self._is_known(parts, len(sample)):
            self._parts, self._rows = parts, {}
        if step not in self._rows:
            self._look_ahead(step, len(sample))
        return self._late(sample, self._rows[step])

    def _is_known(self, parts: list[Tensor], batch: int) -> bool:
        rows = next(iter(self._rows.values()), None)
        return (
            rows is not None
            and len(rows) == batch
            and all(torch.equal(a, b) for a, b in zip(parts, self._parts, strict=True))
        )

    def _look_ahead(self, step: int, batch: int) -> None:
        """Fill the table for the steps from `step` on."""
        visit = list(self.to_visit)
        steps = visit[visit.index(step) :][:AHEAD] if step in visit else [step]
        times = torch.tensor(steps).repeat_interleave(batch)
        parts = [part.repeat(len(steps), *[1] * (part.dim() - 1)) for part in self._parts]
        rows = self._early(times, *parts).view(len(steps), batch, -1)
        self._rows.update(zip(steps, rows, strict=True))


class CompiledCamera(nn.Module):
    """Called as the ImageEncoder that it stands for; remembers the last window's frames.

    Args:
        plain: the encoder itself.
        compiled: frames (N, h, w, C) -> features (N, F).
        frames: To, of a window.
    """

    def __init__(self, plain: ImageEncoder, compiled: Compiled, frames: int) -> None:
        super().__init__()
        self.plain, self._compiled, self._frames = plain, compiled, frames
        for count in range(1, frames + 1):
            compiled.fit(count)
        self._seen: list[tuple[Tensor, Tensor]] = []  # frame (H, W, C), its features (F,)

    def forward(self, images: Tensor, numbers: Tensor | None = None) -> Tensor:
        """See ImageEncoder."""
        if numbers is not None:
            out: Tensor = self.plain(images, numbers)
            return out
        frames = list(images.flatten(0, 1))
        found = [self._recall(frame) for frame in frames]
        new = [frame for frame, known in zip(frames, found, strict=True) if known is None]
        # Copies: a caller may write the next picture into the same memory.
        fresh = zip([frame.clone() for frame in new], self._encode(new), strict=True)
        self._seen = [next(fresh) if known is None else known for known in found]
        return torch.stack([features for _, features in self._seen]).view(*images.shape[:2], -1)

    def _recall(self, frame: Tensor) -> tuple[Tensor, Tensor] | None:
        return next((known for known in self._seen if torch.equal(known[0], frame)), None)

    def _encode(self, frames: list[Tensor]) -> list[Tensor]:
        """Features of each frame, as many at once as a window has."""
        features: list[Tensor] = []
        for first in range(0, len(frames), self._frames):
            some = torch.stack(frames[first : first + self._frames])
            features += self._compiled(look(some[None], self.plain.view)[0])
        return features


class _Denoiser(nn.Module):
    """A denoiser called with tensors alone, the noisy sample last."""

    def __init__(self, network: nn.Module, places: Sequence[int]) -> None:
        super().__init__()
        self.network, self.places = network, places

    def forward(self, given: list[Tensor]) -> Tensor:
        timestep, *parts, sample = given
        named = {Condition._fields[at]: part for at, part in zip(self.places, parts, strict=True)}
        out: Tensor = self.network(sample, timestep, Condition(**named))
        return out


class _Frames(nn.Module):
    """A camera's encoder, of what is seen of frames."""

    def __init__(self, camera: ImageEncoder) -> None:
        super().__init__()
        self.camera = camera

    def forward(self, given: list[Tensor]) -> Tensor:
        return self.camera.encode(given[0])


def _with_networks(
    policy: DiffusionPolicy, denoiser: CompiledDenoiser, networks: Mapping[str, Compiled]
) -> DiffusionPolicy:
    """A copy of the policy, with these networks instead; all else is shared."""
    fast, encoder = _shallow(policy), _shallow(policy.encoder)
    frames = policy.recipe.policy.n_obs_steps
    cameras = {
        name: CompiledCamera(camera, networks[name], frames)
        for name, camera in _cameras(policy).items()
    }
    encoder.cameras = nn.ModuleDict(cameras)
    fast.encoder, fast.denoiser = encoder, denoiser
    return fast


def _shallow(module: Module) -> Module:
    twin = copy.copy(module)
    twin.__dict__["_modules"] = dict(module._modules)
    return twin


def _cameras(policy: DiffusionPolicy) -> Mapping[str, ImageEncoder]:
    encoder = policy.encoder
    return {encoder.module_names[key]: camera for key, camera in encoder.image_encoders.items()}


def _converted(policy: DiffusionPolicy, precision: str) -> Models:
    """All its networks in OpenVINO's form."""
    stages = split(_traced_denoiser(policy))
    halves = {"early": stages.early, "late": stages.late}
    rewrite = compress if precision == "int8" else unroll
    models = {name: convert(rewrite(half)) for name, half in halves.items()}
    for name, camera in _cameras(policy).items():
        height, width = camera.view.size
        dtype = torch.float32 if camera.view.resized else torch.uint8
        frames = torch.zeros(EXAMPLE, height, width, camera.channels, dtype=dtype)
        models[name] = convert(trace(_Frames(camera), [frames]))
    return models


def _traced_denoiser(policy: DiffusionPolicy) -> fx.GraphModule:
    window = {
        key: torch.zeros(
            EXAMPLE,
            policy.recipe.policy.n_obs_steps,
            *stream.shape,
            dtype=torch.uint8 if stream.is_image else torch.float32,
        )
        for key, stream in policy.frames.seen.observations.items()
    }
    with torch.no_grad():
        condition = policy.encode(window)
    parts = {place: part for place, part in enumerate(condition[:3]) if part is not None}
    sample = torch.zeros(EXAMPLE, policy.recipe.policy.predicted_steps, policy.sizes.action_dim)
    steps = torch.zeros(EXAMPLE, dtype=torch.long)
    network = _Denoiser(policy.denoiser, list(parts))
    return trace(network, [steps, *parts.values(), sample])
