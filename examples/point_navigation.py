"""Diffusion in ten minutes: noise becomes a path from a start to a target in the plane.

    python examples/point_navigation.py --out navigation

trains on 10,000 noisy lines for about a minute on a laptop and writes four pictures. The text that
belongs to it is doc/tutorials/diffusion-in-ten-minutes.md. Needs matplotlib: pip install
'diffusion_policy_ros[plot]'.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from diffusion_policy_ros.policy.denoisers.condition import Condition, Sizes
from diffusion_policy_ros.policy.denoisers.mlp import MLP, MLPSettings
from diffusion_policy_ros.policy.objective import diffusion_loss
from diffusion_policy_ros.policy.samplers import (
    PREDICTION_TYPES,
    ddpm,
    inference_timesteps,
    noise_source,
)
from diffusion_policy_ros.policy.schedules import NoiseSchedule, add_noise, make_schedule
from diffusion_policy_ros.policy.sizes import param_count
from diffusion_policy_ros.report.gif import RolloutGif

POINTS = 32  # of a path
OBSERVATION = 4  # start and target, x and y each
LINES, WOBBLE = 10_000, 0.02
STEPS = 1000  # of the diffusion
BATCH, UPDATES, LEARNING_RATE = 256, 4000, 1e-3  # 4,000 updates: 100 epochs
CLIP = 1.1  # paths leave the square by their wobble
SIZE = 240  # of the GIF, pixels


def noisy_lines(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Demonstrations: observations (count, 4) and paths (count, POINTS, 2) in [-1, 1]."""
    ends = torch.rand((count, 2, 2), generator=generator) * 2 - 1
    start, target = ends[:, :1], ends[:, 1:]
    path = start + torch.linspace(0, 1, POINTS)[:, None] * (target - start)
    return ends.flatten(1), path + WOBBLE * torch.randn(path.shape, generator=generator)


def make_denoiser() -> MLP:
    """The network, about 100 k parameters: (path, step, observation) -> the noise in the path."""
    sizes = Sizes(action_dim=2, horizon=POINTS, global_cond=OBSERVATION)
    return MLP(sizes, MLPSettings(hidden_size=256, num_layers=2))


def train(
    net: MLP,
    schedule: NoiseSchedule,
    target: str,
    updates: int,
    generator: torch.Generator,
) -> list[float]:
    """Ho et al. 2020, algorithm 1; `target` is epsilon there. Gives the loss of each update."""
    observations, paths = noisy_lines(LINES, generator)
    optimizer = torch.optim.AdamW(net.parameters(), LEARNING_RATE)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    losses = []
    for _ in range(updates):
        rows = torch.randint(LINES, (BATCH,), generator=generator)
        clean, condition = paths[rows], Condition(observations[rows])
        noise = torch.randn(clean.shape, generator=generator)
        steps = torch.randint(schedule.num_train_timesteps, (BATCH,), generator=generator)
        loss = diffusion_loss(
            denoiser_of(net, condition), schedule, clean, noise, steps, prediction_type=target
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()
        losses.append(loss.item())
    return losses


def denoiser_of(net: MLP, condition: Condition) -> Callable[[Tensor, Tensor], Tensor]:
    """The network with its observation, as objective and samplers call it."""
    return lambda noisy, step: net(noisy, step, condition)


@torch.inference_mode()
def navigate(
    net: MLP,
    schedule: NoiseSchedule,
    target: str,
    observations: Tensor,
    generator: torch.Generator,
    steps: int = 100,
) -> tuple[Tensor, list[Tensor]]:
    """Ho et al. 2020, algorithm 2: observations (B, 4) -> paths (B, POINTS, 2).

    Gives also what each of the steps began with.
    """
    seen: list[Tensor] = []
    denoise = denoiser_of(net, Condition(observations))

    def watched(noisy: Tensor, step: Tensor) -> Tensor:
        seen.append(noisy)
        return denoise(noisy, step)

    draw = noise_source(generator)
    start = draw(torch.zeros(len(observations), POINTS, 2))
    visited = inference_timesteps(schedule.num_train_timesteps, steps)
    paths = ddpm(watched, schedule, start, visited, prediction_type=target, clip=CLIP, draw=draw)
    return paths, seen


def misses(paths: Tensor, observations: Tensor) -> Tensor:
    """How far paths (B, POINTS, 2) begin from their start and end from their target, (B, 2)."""
    ends = observations.view(-1, 2, 2)
    return torch.stack([paths[:, 0], paths[:, -1]], dim=1).sub(ends).norm(dim=-1)


def draw_noising(schedule: NoiseSchedule, generator: torch.Generator, path: Path) -> None:
    """One path with more and more noise."""
    from matplotlib import pyplot

    shown = [0, 100, 250, 500, 999]
    _, clean = noisy_lines(1, torch.Generator().manual_seed(5))
    noise = torch.randn(clean.shape, generator=generator)
    figure, axes = pyplot.subplots(1, len(shown), figsize=(11, 2.6))
    for axis, step in zip(axes, shown, strict=True):
        noisy = add_noise(schedule, clean, noise, torch.tensor([step]))[0]
        axis.plot(*noisy.T, ".-", markersize=3, linewidth=0.8)
        axis.set(title=f"t = {step}", xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
        axis.set(xticks=[], yticks=[])
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def draw_losses(losses: list[float], path: Path) -> None:
    """The loss of each update, and its mean over a hundred."""
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5, 2.6))
    axis.semilogy(losses, linewidth=0.3, alpha=0.4)
    width = min(100, len(losses))
    axis.semilogy(
        np.arange(width - 1, len(losses)), np.convolve(losses, np.ones(width) / width, "valid")
    )
    axis.set(xlabel="update", ylabel="loss")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def draw_paths(paths: Tensor, observations: Tensor, path: Path) -> None:
    """A path for each of six starts and targets, several draws of noise for each."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(7.5, 5))
    for axis, draws, (start, target) in zip(
        axes.flat, paths, observations.view(-1, 2, 2), strict=True
    ):
        for points in draws:
            axis.plot(*points.T, ".-", markersize=2, linewidth=0.8, alpha=0.6)
        axis.plot(*start, "o", color="green", markersize=9, label="start")
        axis.plot(*target, "o", color="red", markersize=9, label="target")
        axis.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect="equal", xticks=[], yticks=[])
    axes[0, 0].legend(loc="upper right", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def animate(seen: list[Tensor], observation: Tensor, path: Path) -> None:
    """One path as it comes out of the noise."""
    ends = to_pixels(observation.view(2, 2))
    plane = Image.new("RGB", (SIZE, SIZE), (24, 28, 34))
    for (x, y), colour in zip(ends, ((60, 200, 90), (235, 70, 70)), strict=True):
        ImageDraw.Draw(plane).ellipse((x - 6, y - 6, x + 6, y + 6), fill=colour)
    gif = RolloutGif(path, period_ms=60)
    for number, points in enumerate(seen):
        gif.add(np.asarray(plane), to_pixels(points), f"step {number} of {len(seen) - 1}")
    gif.save()


def to_pixels(points: Tensor) -> np.ndarray:
    """Points (n, 2), x to the right and y up, to columns and rows of the GIF."""
    scaled = points.double().numpy() / 3.0  # noise reaches beyond the square
    return (np.array([0.5, 0.5]) + scaled * [1, -1]) * SIZE


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train, sample, draw; gives what is also printed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("navigation"), help="pictures go here")
    parser.add_argument(
        "--target", choices=PREDICTION_TYPES, default="sample", help="default %(default)s"
    )
    parser.add_argument("--updates", type=int, default=UPDATES, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)  # the network's first weights
    generator = torch.Generator().manual_seed(args.seed)

    schedule = make_schedule("squaredcos_cap_v2", num_train_timesteps=STEPS)
    net = make_denoiser()
    print(f"{param_count(net):,} parameters, {LINES:,} lines of {POINTS} points")
    losses = train(net, schedule, args.target, args.updates, generator)
    print(f"loss {np.mean(losses[:20]):.4f} at first, {np.mean(losses[-200:]):.4f} at last")

    observations, _ = noisy_lines(200, generator)  # none that it has seen
    paths, seen = navigate(net, schedule, args.target, observations, generator)
    miss = float(misses(paths, observations).mean())
    print(f"paths begin and end {miss:.3f} from where they should, on average")

    draw_noising(schedule, generator, args.out / "noising.png")
    draw_losses(losses, args.out / "loss.png")
    six = observations[:6].repeat_interleave(5, dim=0)
    several, _ = navigate(net, schedule, args.target, six, generator)
    draw_paths(several.view(6, 5, POINTS, 2), observations[:6], args.out / "paths.png")
    animate([step[0] for step in [*seen[::3], paths]], observations[0], args.out / "denoising.gif")
    return {"loss": float(np.mean(losses[-200:])), "miss": miss}


if __name__ == "__main__":
    torch.set_num_threads(1)  # so small a network gains nothing by more
    main()
