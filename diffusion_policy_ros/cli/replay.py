"""`diffusion-policy replay CHECKPOINT BAG|DATASET --out DIR`: a policy over a recording."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_policy_ros.cli.figures import check_least, check_seed, check_threads, write_json
from diffusion_policy_ros.cli.view import add_rerun, viewing
from diffusion_policy_ros.errors import UserError

if TYPE_CHECKING:
    from diffusion_policy_ros.replay.policy import Policy
    from diffusion_policy_ros.replay.reading import Replayed
    from diffusion_policy_ros.report.rerun import View

PAGE, FIGURES = "replay.html", "replay.json"
EXIT_DIFFERENT = 1


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "replay",
        help="what a policy would have commanded over a recording, as a report",
        description="Run a policy over a recording by the code that runs on the robot, and "
        "compare its chunks with what was done, with each other, with the limits, and with the "
        "node's own where they were recorded.",
        epilog="--expect turns it into a test: exit code 1, and a line for each difference.",
    )
    parser.add_argument("checkpoint", type=Path, help="a checkpoint directory, or a run")
    parser.add_argument(
        "recording", type=Path, metavar="BAG|DATASET", help="a bag, a folder of bags, a dataset"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the report")
    parser.add_argument(
        "--contract",
        metavar="C",
        help="the robot's, with its topics and limits, as the node's (default: the checkpoint's)",
    )
    parser.add_argument(
        "--expect", type=Path, metavar="FILE", help=f"an earlier {FIGURES} to compare with"
    )
    parser.add_argument(
        "--episodes", type=int, default=10, metavar="N", help="at most so many (default 10)"
    )
    parser.add_argument(
        "--all-roles",
        action="store_true",
        help="recordings that were trained on, too, where others are held out",
    )
    parser.add_argument(
        "--every", type=int, metavar="N", help="frames between chunks (default: the policy's)"
    )
    parser.add_argument("--seed", type=int, help="of the noise (default: the run's own, or 0)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the policy's)")
    parser.add_argument("--sampler", help="ddpm, ddim, ... (default: the policy's)")
    parser.add_argument("--chunk-join", help="as the node's parameter (default: replace)")
    parser.add_argument("--task", metavar="TEXT", help="default: what each recording says")
    # Not auto: the same on every machine, whatever is installed there.
    parser.add_argument(
        "--engine", default="eager", help="as the node's parameter (default eager)"
    )
    parser.add_argument("--dtype", help="f32, int8, ... (default: the engine's own)")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: one a core)")
    add_rerun(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Replay, write the report, and compare.

    Raises:
        UserError: checkpoint, recording or options do not allow it.
    """
    _check(args)
    with viewing(args) as view:
        return _run(args, view)


def _run(args: argparse.Namespace, view: View | None) -> int:
    from diffusion_policy_ros.policy.checkpoint import checkpoint_hash, choice_lines
    from diffusion_policy_ros.replay.summary import differences, load_expected, summary
    from diffusion_policy_ros.report.replay_page import write_page

    expected = None if args.expect is None else load_expected(args.expect)
    policy, executed = _policy(args)
    for line in choice_lines(args.checkpoint):
        print(line)
    replayed, policy = _replay(args, policy, view)
    found = summary(replayed, policy, executed, checkpoint_hash(args.checkpoint))
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / FIGURES, found)
    write_page(args.out / PAGE, replayed, policy.contract, found)
    print("\n".join(_told(found, replayed)))
    print(f"report  {args.out / PAGE}\nfigures {args.out / FIGURES}")
    if expected is None:
        return 0
    lines = list(differences(found, expected))
    if found["checkpoint"] != expected.get("checkpoint"):
        print("note    another checkpoint, so that actions are not compared")
    print("\n".join(f"different: {line}" for line in lines) or f"as expected by {args.expect}")
    return EXIT_DIFFERENT if lines else 0


def _policy(args: argparse.Namespace) -> tuple[Policy, int]:
    """What makes the chunks, and how many of a chunk's actions are executed."""
    from diffusion_policy_ros.contract import Contract
    from diffusion_policy_ros.engine import build_engine
    from diffusion_policy_ros.policy.checkpoint import load_policy
    from diffusion_policy_ros.replay.policy import Policy, to_horizon
    from diffusion_policy_ros.runtime.sampling import Sampling

    robot = Contract.load(args.contract) if args.contract else None
    loaded = load_policy(args.checkpoint, contract=robot)
    settings = loaded.recipe.policy
    given = {
        "num_inference_steps": args.steps,
        "sampler": args.sampler,
        "chunk_join": args.chunk_join,
        "task": args.task,
    }
    # Each recording says its own task, see Policy.for_task.
    first = next(iter(settings.tasks), None)
    sampling = Sampling.of(settings, **{**given, "task": args.task or first})
    how = (args.engine, args.device, args.dtype, args.threads)
    engine = build_engine(loaded, *how, args.checkpoint)
    given["noise_seed"] = args.seed
    names = frozenset(name for name, value in given.items() if value is not None)
    whole = to_horizon(sampling, settings.predicted_steps)
    return Policy(engine, whole, args.seed or 0, names), sampling.n_action_steps


def _replay(
    args: argparse.Namespace, policy: Policy, view: View | None
) -> tuple[list[Replayed], Policy]:
    """The recordings, replayed; and the policy as the last of them had it."""
    from tqdm import tqdm

    from diffusion_policy_ros.data.dataset import INDEX
    from diffusion_policy_ros.policy.checkpoint import load_episodes

    roles = load_episodes(args.checkpoint)
    of = _of_dataset if (args.recording / INDEX).is_file() else _of_bags
    with tqdm(unit="chunk", disable=not sys.stderr.isatty()) as bar:
        found = list(of(args, policy, roles, bar.update, view))
    runs = [one.live for one in found if one.live is not None]
    return found, policy.as_recorded(runs[-1].how(0)) if runs else policy


def _of_dataset(
    args: argparse.Namespace,
    policy: Policy,
    roles: Mapping[str, str],
    tick: Callable[[], None],
    view: View | None,
) -> Iterator[Replayed]:
    from diffusion_policy_ros.data.dataset import WindowDataset
    from diffusion_policy_ros.policy.checkpoint import check_contract
    from diffusion_policy_ros.replay.recording import replay_episode

    steps = policy.n_obs_steps
    windows = WindowDataset(args.recording, steps, steps)
    check_contract(policy.contract, windows.contract, str(args.recording))
    role = [roles.get(episode.hash, "unknown") for episode in windows.episodes]
    for n in _wanted(role, args):
        one = replace(replay_episode(windows, n, policy, args.every, tick), role=role[n])
        if view:
            view.add_episode(windows.dataset, n, one)
        yield one


def _of_bags(
    args: argparse.Namespace,
    policy: Policy,
    roles: Mapping[str, str],
    tick: Callable[[], None],
    view: View | None,
) -> Iterator[Replayed]:
    from diffusion_policy_ros.data.convert import expand, fingerprint
    from diffusion_policy_ros.replay.recording import replay_bag

    bags = expand([args.recording])
    role = [roles.get(fingerprint(bag), "unknown") if roles else "unknown" for bag in bags]
    for n in _wanted(role, args):
        see = view.sees(n) if view else lambda *_: None
        one = replace(replay_bag(bags[n], policy, args.every, tick, see), role=role[n])
        if view:
            view.add_bag(n, one, policy.contract)
        yield one


def _wanted(roles: Sequence[str], args: argparse.Namespace) -> Sequence[int]:
    """Numbers of the recordings to replay: those held out, where there are any."""
    held_out = [] if args.all_roles else [n for n, role in enumerate(roles) if role == "held out"]
    return (held_out or range(len(roles)))[: args.episodes]


def _check(args: argparse.Namespace) -> None:
    """Refuse at once what would fail later.

    Raises:
        UserError: a number is out of its range, or the report cannot be written.
    """
    check_least(args, episodes=1, every=1, threads=0)
    check_seed(args.seed)
    check_threads(args.threads)
    if args.out.exists() and not args.out.is_dir():
        raise UserError("is a file", str(args.out), "give --out a folder")


def _told(found: dict[str, Any], replayed: list[Replayed]) -> list[str]:
    """What is worth a line each."""
    from diffusion_policy_ros.replay.reading import roles_said
    from diffusion_policy_ros.replay.summary import overall

    frames, steps = found["frames"], found["executed_steps"]
    lines = [
        f"{found['chunks']} chunks after {frames['made']} frames of {len(replayed)} recordings; "
        f"{sum(frames['refused'].values())} frames refused, {frames['gaps']} gaps"
    ]
    lines.append(f"recordings: {roles_said(one.role for one in replayed)}")
    repeated = overall(found["error_of_repeating"], steps)
    for name, value in overall(found["error"], steps).items():
        than = f", repeating the last action {repeated[name]:.4g}" if name in repeated else ""
        lines.append(f"error of {name}: {value:.4g} {found['units'][name]}{than}")
    if found["live"]:
        live = found["live"]
        lines.append(
            f"live chunks: {live['same']} of {live['compared']} the same, largest difference "
            f"{live['largest_difference']:.3g}"
        )
        if live["engine"] and not found["engine"].startswith(live["engine"]):
            ours = found["engine"]
            lines.append(f"note    the node ran {live['engine']}, this {ours}: --engine, --dtype")
    return lines
