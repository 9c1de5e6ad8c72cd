"""`diffusion-policy eval`: closed-loop success in the simulator, without ROS."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_policy_ros.cli.figures import (
    check_json,
    check_least,
    check_seed,
    check_threads,
    counted,
    write_json,
)
from diffusion_policy_ros.errors import UserError

if TYPE_CHECKING:
    from diffusion_policy_ros.engine import Engine
    from diffusion_policy_ros.runtime.sampling import Sampling


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Tell argparse of the verb."""
    parser = subparsers.add_parser(
        "eval",
        help="closed-loop success rate of a checkpoint in the simulator",
        description="Runs a checkpoint in the simulator, without ROS, through the same code from "
        "observation to set-point as on the robot. Inference takes no simulated time.",
    )
    parser.add_argument("checkpoint", type=Path, help="a checkpoint directory, or a run")
    parser.add_argument(
        "--all", action="store_true", help="every checkpoint of the run, as a table"
    )
    parser.add_argument("--sim", default="mini_lift", help="the simulator (default: %(default)s)")
    parser.add_argument(
        "--episodes", type=int, default=100, help="how many (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=10000, help="of the first; unseen from 10000 (default)"
    )
    parser.add_argument("--steps", type=int, help="denoising steps (default: the checkpoint's)")
    parser.add_argument("--sampler", help="ddim, ddpm or dpmpp_2m (default: the checkpoint's)")
    parser.add_argument(
        "--replan-steps", type=int, help="frames between chunks (default: the checkpoint's)"
    )
    parser.add_argument(
        "--delay",
        type=int,
        default=0,
        help="artificial latency of every chunk, frames, fewer than it has actions (default: 0)",
    )
    parser.add_argument("--task", metavar="TEXT", help="which of the tasks that were trained")
    parser.add_argument(
        "--chunk-join",
        default="replace",
        metavar="HOW",
        help="replace (default), temporal_ensemble, rtc, rtc_cheap or inpaint",
    )
    parser.add_argument(
        "--engine",
        default="auto",
        help="auto (default), eager, openvino or cuda_graph (experimental)",
    )
    parser.add_argument("--dtype", help="f32, int8, bf16, tf32 or fp16, as the engine has it")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
    parser.add_argument(
        "--threads", type=int, help="CPU threads (default: as many as there are cores)"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate and print."""
    from diffusion_policy_ros.policy.checkpoint import choice_lines

    _check(args)
    if args.all:
        return _run_all(args)
    for line in choice_lines(args.checkpoint):
        print(line)
    summary, text = _evaluate(args, args.checkpoint)
    print(text)
    write_json(args.json, summary)
    return 0


def _run_all(args: argparse.Namespace) -> int:
    """A line a checkpoint, oldest first, and the best one's name."""
    from diffusion_policy_ros.policy.checkpoint import run_checkpoints

    found = run_checkpoints(args.checkpoint)
    if not found:
        cure = "give a run, as `diffusion-policy train --out RUN` writes it"
        raise UserError("there are no checkpoints of a run here", str(args.checkpoint), cure)
    rows: list[dict[str, Any]] = []
    print(f"{'checkpoint':<16}{'success':>9}{'mean steps':>12}{'ms a chunk':>12}")
    for checkpoint in found:
        summary, _ = _evaluate(args, checkpoint)
        rows.append({**summary, "checkpoint": checkpoint.name})
        print(
            f"{checkpoint.name:<16}{summary['success_rate']:>9.1%}"
            f"{summary['mean_steps']:>12.1f}{summary['ms_per_chunk']:>12.1f}",
            flush=True,
        )
    best = max(rows, key=lambda row: float(row["success_rate"]))
    print(f"best: {args.checkpoint / 'checkpoints' / str(best['checkpoint'])}")
    write_json(args.json, {"checkpoints": rows})
    return 0


def _evaluate(args: argparse.Namespace, checkpoint: Path) -> tuple[dict[str, Any], str]:
    """The figures of a checkpoint, and what to say of them."""
    from tqdm import tqdm

    from diffusion_policy_ros import evaluation
    from diffusion_policy_ros.engine import build_engine
    from diffusion_policy_ros.policy.checkpoint import find_checkpoint, load_policy
    from diffusion_policy_ros.runtime.sampling import Sampling
    from diffusion_policy_ros.sim.simulator import SeveralWays
    from diffusion_policy_ros.ways import Ways

    policy, where = load_policy(checkpoint), find_checkpoint(checkpoint)
    settings = policy.recipe.policy
    _check_delay(args.delay, settings.n_action_steps)
    robot = evaluation.make_simulator(args.sim, policy.contract)
    sampling = Sampling.of(
        settings,
        num_inference_steps=args.steps,
        sampler=args.sampler,
        replan_steps=args.replan_steps,
        chunk_join=args.chunk_join,
        task=args.task,
    )
    engine = build_engine(policy, args.engine, args.device, args.dtype, args.threads, where)
    how = (settings.n_obs_steps, sampling, args.delay)
    closed_loop = evaluation.ClosedLoop(engine, policy.contract, *how)
    seeds = range(args.seed, args.seed + args.episodes)
    with robot, tqdm(total=args.episodes, unit="episode", disable=not sys.stderr.isatty()) as bar:
        won = 0

        def show(episode: evaluation.EpisodeResult) -> None:
            nonlocal won
            won += episode.success
            bar.set_postfix_str(f"{won} succeeded")
            bar.update()

        several = robot.simulator if isinstance(robot.simulator, SeveralWays) else None
        ways = Ways(several.ways) if several else None
        result = evaluation.evaluate(robot, closed_loop, seeds, show, ways)
    summary = {
        **result.summary(),
        **(ways.summary() if ways else {}),
        "checkpoint": str(where),
        **_setting(engine, sampling),
        "first_seed": args.seed,
        "delay_frames": args.delay,
    }
    return summary, _told(summary)


def _setting(engine: Engine, sampling: Sampling) -> dict[str, Any]:
    """What computed the chunks, and how."""
    return {
        "engine": engine.name,
        "dtype": engine.dtype,
        "device": str(engine.device),
        "sampler": sampling.sampler,
        "num_inference_steps": sampling.num_inference_steps,
        "replan_steps": sampling.replan_steps,
        "chunk_join": sampling.chunk_join,
    }


def _told(summary: dict[str, Any]) -> str:
    """What a person reads."""
    episodes = counted(summary["episodes"], "episode")
    latency = f"latency {counted(summary['delay_frames'], 'frame')}"
    return (
        f"{summary['success_rate'] * summary['episodes']:.0f} of {episodes} succeeded "
        f"({summary['success_rate']:.1%}), {summary['mean_steps']:.1f} steps on average\n"
        f"{summary['ms_per_chunk']:.1f} ms a chunk ({summary['engine']} {summary['dtype']} on "
        f"{summary['device']}, {summary['sampler']}, K={summary['num_inference_steps']}), "
        f"{latency}, {summary['chunk_join']}{_told_of_ways(summary)}"
    )


def _told_of_ways(summary: dict[str, Any]) -> str:
    """A line of a task that can be done in several ways; nothing of others."""
    if "ways" not in summary:
        return ""
    taken = ", ".join(f"{way} {count}" for way, count in summary["ways"].items())
    return (
        f"\nways: {taken} (entropy {summary['entropy_bits']:.2f} bit), "
        f"{counted(summary['collisions'], 'collision')}, "
        f"{counted(summary['changes_of_mind'], 'change')} of mind"
    )


def _check_delay(delay: int, actions: int) -> None:
    """Refuse chunks that are over before they arrive.

    Raises:
        UserError: they are.
    """
    if delay >= actions:
        what = f"a chunk has {actions} actions, so each would arrive when it is over"
        raise UserError(what, f"--delay {delay}", f"use 0 to {actions - 1}")


def _check(args: argparse.Namespace) -> None:
    """Refuse at once what would fail later, or mean nothing.

    Raises:
        UserError: a number is out of its range, or the figures cannot be written.
    """
    check_least(args, episodes=1, delay=0, threads=0)
    check_seed(args.seed)
    check_threads(args.threads)
    check_json(args.json)
