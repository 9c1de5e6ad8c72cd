"""Diffusion in ten minutes: noise becomes a path from a start to a target in the plane.

    python examples/point_navigation.py --out navigation

trains on 10,000 noisy lines for about a minute on a laptop and writes four pictures; flags change
one thing each. The text that belongs to it is doc/tutorials/diffusion-in-ten-minutes.md. Needs
matplotlib: pip install 'diffusion_policy_ros[plot]'.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.denoisers.condition import Condition, Sizes
from diffusion_policy_ros.policy.denoisers.mlp import MLP, MLPSettings
from diffusion_policy_ros.policy.denoisers.unet1d import UNet1D, UNet1DSettings
from diffusion_policy_ros.policy.objective import padding_mask, training_step
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
SHORTEST = 8  # of those of any length
OBSERVATION = 4  # start and target, x and y each
LINES, WOBBLE = 10_000, 0.02
STEPS = 1000  # of the diffusion
BATCH, UPDATES, LEARNING_RATE = 256, 4000, 1e-3  # 4,000 updates: 100 epochs
CLIP = 1.1  # paths leave the square by their wobble
OBSTACLE = 0.3  # radius of the disc at the origin
BEND, DETOUR_WOBBLE = 0.75, 0.01
DROPPED = 0.1  # share of the observations that are hidden in training, for guidance
SIZE = 240  # of the GIF, pixels


@dataclass(frozen=True)
class Experiment:
    """What is changed; all of it has a flag of the same name."""

    length: int = POINTS
    points_noise: float = WOBBLE
    lr: float = LEARNING_RATE
    updates: int = UPDATES
    steps: int = 100
    train_steps: int = STEPS
    target: str = "sample"
    network: str = "mlp"
    hidden: int = 256
    layers: int = 2
    dropout: float = 0.0
    obstacle: bool = False
    velocity: bool = False
    variable_length: bool = False
    guidance: float | None = None
    regression: bool = False
    seed: int = 0

    @property
    def observation(self) -> int:
        """Numbers that the network is told."""
        return OBSERVATION + self.variable_length

    @property
    def channels(self) -> int:
        """Numbers of a point: where it is, and with velocity how fast it goes."""
        return 4 if self.velocity else 2


@dataclass(frozen=True)
class Paths:
    """Demonstrations.

    Attributes:
        observations: (count, 4), with lengths (count, 5).
        paths: (count, points, 2 or 4).
        lengths: (count,), so many of the points count.
    """

    observations: Tensor
    paths: Tensor
    lengths: Tensor


def noisy_lines(
    count: int, generator: torch.Generator, points: int = POINTS, wobble: float = WOBBLE
) -> tuple[Tensor, Tensor]:
    """Demonstrations: observations (count, 4) and paths (count, points, 2) in [-1, 1]."""
    ends = torch.rand((count, 2, 2), generator=generator) * 2 - 1
    start, target = ends[:, :1], ends[:, 1:]
    path = start + torch.linspace(0, 1, points)[:, None] * (target - start)
    return ends.flatten(1), path + wobble * torch.randn(path.shape, generator=generator)


def detours(
    count: int, generator: torch.Generator, points: int = POINTS, wobble: float = DETOUR_WOBBLE
) -> tuple[Tensor, Tensor]:
    """As `noisy_lines`, round a disc that each line would meet; half of them on each side."""
    turn, miss, near, far = torch.rand((4, count), generator=generator)
    angles = torch.stack([2 * math.pi * turn, 2 * math.pi * turn + math.pi + 0.4 * (miss - 0.5)])
    radii = 0.6 + 0.35 * torch.stack([near, far])
    ends = torch.stack([radii * angles.cos(), radii * angles.sin()], dim=-1).transpose(0, 1)
    start, target = ends[:, :1], ends[:, 1:]
    along = torch.linspace(0, 1, points)[:, None]
    ahead = (target - start) / (target - start).norm(dim=-1, keepdim=True)
    aside = torch.stack([-ahead[..., 1], ahead[..., 0]], dim=-1)
    side = 1.0 - 2.0 * (torch.arange(count) % 2).view(-1, 1, 1)  # left, right, left, ...
    path = start + along * (target - start) + side * BEND * (math.pi * along).sin() * aside
    return ends.flatten(1), path + wobble * torch.randn(path.shape, generator=generator)


def demonstrations(what: Experiment, count: int, generator: torch.Generator) -> Paths:
    """What an experiment learns from."""
    make = detours if what.obstacle else noisy_lines
    wobble = min(what.points_noise, DETOUR_WOBBLE) if what.obstacle else what.points_noise
    observations, paths = make(count, generator, what.length, wobble)
    lengths = torch.full((count,), what.length)
    if what.variable_length:
        lengths = torch.randint(SHORTEST, what.length + 1, (count,), generator=generator)
        paths = _shortened(observations, lengths, what.length, wobble, generator)
        told = 2.0 * lengths[:, None] / what.length - 1.0
        observations = torch.cat([observations, told], dim=1)
    if what.velocity:
        # Of the line, so that the wobble does not drown it; paths take one unit of time.
        start, target = observations[:, :OBSERVATION].view(-1, 2, 2).split(1, dim=1)
        speed = ((target - start) / 2.0).expand(-1, what.length, -1)
        paths = torch.cat([paths, speed], dim=-1)
    return Paths(observations, paths, lengths)


def _shortened(
    ends: Tensor, lengths: Tensor, points: int, wobble: float, generator: torch.Generator
) -> Tensor:
    """Lines of so many points each, padded with their last one."""
    start, target = ends.view(-1, 2, 2).split(1, dim=1)
    along = (torch.arange(points) / (lengths[:, None] - 1)).clamp(max=1)[..., None]
    path = start + along * (target - start)
    path = path + wobble * torch.randn(path.shape, generator=generator)
    last = (lengths - 1).clamp(max=points - 1).view(-1, 1, 1).expand(-1, 1, 2)
    is_pad = padding_mask(lengths, points)[..., None]
    return torch.where(is_pad, path.gather(1, last), path)


class Told(nn.Module):
    """A denoiser that can be told of an observation, or that there is none.

    Args:
        net: called with (path, step, condition).
        observation: numbers of one.
    """

    def __init__(self, net: nn.Module, observation: int) -> None:
        super().__init__()
        self.net = net
        # What stands for a hidden observation is learned: zeros would be one like others.
        self.null = nn.Parameter(torch.zeros(observation))

    def forward(self, noisy: Tensor, step: Tensor, seen: Tensor | None) -> Tensor:
        """Predicts (B, points, channels); without an observation for any."""
        told = self.null.expand(len(noisy), -1) if seen is None else seen
        predicted: Tensor = self.net(noisy, step, Condition(told))
        return predicted


def make_denoiser(what: Experiment | None = None) -> Told:
    """The network, about 100 k parameters: (path, step, observation) -> the noise in the path."""
    what = what or Experiment()
    sizes = Sizes(action_dim=what.channels, horizon=what.length, global_cond=what.observation)
    if what.network == "unet1d":
        settings = UNet1DSettings(down_dims=(32, 64), kernel_size=3, n_groups=4)
        problem = settings.horizon_problem(what.length)
        if problem is not None:
            raise UserError(problem.what, "--length", problem.cure)
        return Told(UNet1D(sizes, settings), what.observation)
    net = MLP(sizes, MLPSettings(hidden_size=what.hidden, num_layers=what.layers))
    if what.dropout:
        for i, layer in enumerate(net.layers):
            net.layers[i] = nn.Sequential(layer, nn.Dropout(what.dropout))
    return Told(net, what.observation)


def train(
    net: Told,
    schedule: NoiseSchedule,
    what: Experiment,
    generator: torch.Generator,
) -> list[float]:
    """Ho et al. 2020, algorithm 1; the target is epsilon there. Gives the loss of each update."""
    data = demonstrations(what, LINES, generator)
    optimizer = torch.optim.AdamW(net.parameters(), what.lr)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, what.updates)
    losses = []
    net.train()
    for _ in range(what.updates):
        rows = torch.randint(LINES, (BATCH,), generator=generator)
        seen = data.observations[rows]
        if what.guidance is not None:
            hidden = torch.rand((BATCH, 1), generator=generator) < DROPPED
            seen = torch.where(hidden, net.null, seen)
        is_pad = padding_mask(data.lengths[rows], what.length)
        loss, _ = training_step(
            denoiser_of(net, seen),
            schedule,
            data.paths[rows],
            generator,
            prediction_type=what.target,
            is_pad=is_pad,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()
        losses.append(loss.item())
    net.eval()
    return losses


def denoiser_of(
    net: Told, seen: Tensor, guidance: float | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """The network with its observation, as objective and samplers call it.

    With guidance it is asked twice, told and untold (Ho and Salimans 2022).
    """
    if guidance is None:
        return lambda noisy, step: net(noisy, step, seen)

    def guided(noisy: Tensor, step: Tensor) -> Tensor:
        untold = net(noisy, step, None)
        return untold + guidance * (net(noisy, step, seen) - untold)

    return guided


@torch.inference_mode()
def navigate(
    net: Told,
    schedule: NoiseSchedule,
    what: Experiment,
    observations: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, list[Tensor]]:
    """Ho et al. 2020, algorithm 2: observations (B, 4) -> paths (B, points, channels).

    Gives also what each of the steps began with.
    """
    seen: list[Tensor] = []
    denoise = denoiser_of(net, observations, what.guidance)

    def watched(noisy: Tensor, step: Tensor) -> Tensor:
        seen.append(noisy)
        return denoise(noisy, step)

    draw = noise_source(generator)
    start = torch.zeros(len(observations), what.length, what.channels)
    start = start if what.regression else draw(start)
    steps = 1 if what.regression else what.steps
    visited = inference_timesteps(schedule.num_train_timesteps, steps)
    paths = ddpm(
        watched, schedule, start, visited, prediction_type=what.target, clip=CLIP, draw=draw
    )
    return paths, seen


def misses(paths: Tensor, observations: Tensor, lengths: Tensor | None = None) -> Tensor:
    """How far paths (B, points, 2) begin from their start and end from their target, (B, 2)."""
    ends = observations[:, :OBSERVATION].view(-1, 2, 2)
    last = (torch.full((len(paths),), paths.shape[1]) if lengths is None else lengths) - 1
    final = paths[torch.arange(len(paths)), last, :2]
    return torch.stack([paths[:, 0, :2], final], dim=1).sub(ends).norm(dim=-1)


def inconsistency(paths: Tensor) -> float:
    """How far the way that velocities lead is from that of positions, as a share of it."""
    ways = paths[:, -1, :2] - paths[:, 0, :2]
    led = 2.0 * paths[..., 2:].mean(dim=1)  # velocities are halved to fit the square
    return float((led - ways).norm(dim=-1).mean() / ways.norm(dim=-1).mean())


def sides(paths: Tensor, observations: Tensor) -> Tensor:
    """On which side of the disc paths pass it: +1 left, -1 right, 0 for through it, (B,)."""
    start, target = observations[:, :OBSERVATION].view(-1, 2, 1, 2).unbind(1)
    ahead, ways = target - start, paths[..., :2] - start
    aside = ahead[..., 0] * ways[..., 1] - ahead[..., 1] * ways[..., 0]
    farthest = aside.gather(1, aside.abs().argmax(dim=1, keepdim=True))[:, 0]
    is_clear = paths[..., :2].norm(dim=-1).min(dim=1).values > OBSTACLE
    return farthest.sign() * is_clear


def figures(
    net: Told, schedule: NoiseSchedule, what: Experiment, generator: torch.Generator
) -> dict[str, float]:
    """What is told of an experiment, on observations that it has not seen."""
    fresh = demonstrations(what, 200, generator)
    paths, _ = navigate(net, schedule, what, fresh.observations, generator)
    ends = misses(paths, fresh.observations, fresh.lengths)
    found = {"miss": float(ends.mean())}
    if what.variable_length:
        found["end_miss"] = float(ends[:, 1].mean())
    if what.velocity:
        found["inconsistency"] = inconsistency(paths)
    if what.obstacle:
        passed = sides(paths, fresh.observations)
        one = fresh.observations[:1].expand(200, -1)
        drawn = sides(navigate(net, schedule, what, one, generator)[0], one)
        for name, side in (("valid", passed), ("of_one_valid", drawn)):
            found[name] = float((side != 0).float().mean())
        share = float((drawn > 0).float().sum() / max(1.0, float((drawn != 0).sum())))
        found |= {"left": float((passed > 0).float().mean()), "of_one_left": share}
        found["of_one_bits"] = entropy(share)
    return found


def entropy(share: float) -> float:
    """Of two ways, bit; of the demonstrations it is 1."""
    return abs(sum(p * math.log2(p) for p in (share, 1 - share) if p > 0))


def draw_noising(schedule: NoiseSchedule, generator: torch.Generator, path: Path) -> None:
    """One path with more and more noise."""
    from matplotlib import pyplot

    shown = [round(share * (schedule.num_train_timesteps - 1)) for share in (0, 0.1, 0.25, 0.5, 1)]
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


def draw_paths(paths: Tensor, data: Paths, obstacle: bool, path: Path) -> None:
    """Paths (6, n, points, ...) for six starts and targets, of several draws of noise each."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(7.5, 5))
    ends = data.observations[:, :OBSERVATION].view(-1, 2, 2)
    for axis, draws, (start, target), length in zip(
        axes.flat, paths, ends, data.lengths, strict=True
    ):
        for points in draws:
            axis.plot(*points[:length, :2].T, ".-", markersize=2, linewidth=0.8, alpha=0.6)
        if obstacle:
            axis.add_patch(pyplot.Circle((0, 0), OBSTACLE, color="0.8"))
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


def parsed(arguments: list[str] | None) -> tuple[Experiment, Path]:
    """The experiment that flags describe, and where pictures go."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    usual = Experiment()

    def add(name: str, told: str, **how: object) -> None:
        default = getattr(usual, name.removeprefix("--").replace("-", "_"))
        told = told if default in (None, False) else f"{told} (default %(default)s)"
        parser.add_argument(name, default=default, help=told, **how)  # type: ignore[arg-type]

    parser.add_argument("--out", type=Path, default=Path("navigation"), help="pictures go here")
    add("--target", "what the network predicts", choices=PREDICTION_TYPES)
    add("--updates", "of the training; 40 are an epoch", type=int)
    add("--length", "points of a path", type=int)
    add("--points-noise", "wobble of the lines", type=float)
    add("--lr", "learning rate", type=float)
    add("--steps", "of the way back", type=int)
    add("--train-steps", "of the diffusion", type=int)
    add("--network", "mlp or unet1d", choices=("mlp", "unet1d"))
    add("--hidden", "width of the mlp", type=int)
    add("--layers", "of the mlp", type=int)
    add("--dropout", "of the mlp, between layers", type=float)
    add("--obstacle", "a disc to go round, left or right", action="store_true")
    add("--velocity", "predict velocities, too", action="store_true")
    add("--variable-length", "8 points to --length, as it is told", action="store_true")
    add("--guidance", "hide some observations, and scale the difference", type=float)
    add("--regression", "one step from no noise: the mean", action="store_true")
    add("--seed", "of everything", type=int)
    args = vars(parser.parse_args(arguments))
    out = args.pop("out")
    what = Experiment(**args)
    _check(what)
    return what, out


def _check(what: Experiment) -> None:
    """Refuse what cannot be.

    Raises:
        UserError: it cannot.
    """
    least = {"updates": 1, "length": SHORTEST, "steps": 1, "train_steps": 2, "hidden": 1}
    for name, lowest in least.items():
        if getattr(what, name) < lowest:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{getattr(what, name)} is too few", flag, f"give {lowest} or more")
    if what.steps > what.train_steps:
        raise UserError(f"{what.steps}", "--steps", f"give 1 to {what.train_steps}")
    if what.obstacle and (what.variable_length or what.velocity):
        raise UserError("paths round it are of one length, without", "--obstacle", "drop a flag")
    if what.regression and what.target != "sample":
        raise UserError("the mean is that of paths", "--regression", "use --target sample")


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train, sample, draw; gives what is also printed."""
    what, out = parsed(arguments)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(what.seed)  # the network's first weights
    generator = torch.Generator().manual_seed(what.seed)

    schedule = make_schedule("squaredcos_cap_v2", num_train_timesteps=what.train_steps)
    net = make_denoiser(what)
    print(f"{param_count(net.net):,} parameters, {LINES:,} paths of {what.length} points")
    losses = train(net, schedule, what, generator)
    print(f"loss {np.mean(losses[:20]):.4f} at first, {np.mean(losses[-200:]):.4f} at last")
    found = {"loss": float(np.mean(losses[-200:])), **figures(net, schedule, what, generator)}
    print(", ".join(f"{name} {value:.4f}" for name, value in found.items()))

    draw_noising(schedule, generator, out / "noising.png")
    draw_losses(losses, out / "loss.png")
    data = demonstrations(what, 6, generator)
    six = data.observations.repeat_interleave(5, dim=0)
    several, seen = navigate(net, schedule, what, six, generator)
    lengths = data.lengths.repeat_interleave(5)
    draw_paths(several.unflatten(0, (6, 5)), data, what.obstacle, out / "paths.png")
    if len(seen) > 3:
        shown = [step[0, : lengths[0], :2] for step in [*seen[::3], several]]
        animate(shown, data.observations[0, :OBSERVATION], out / "denoising.gif")
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)  # so small a network gains nothing by more
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
