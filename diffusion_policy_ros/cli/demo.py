"""`diffusion-policy demo`: record, convert, train and run, in a simulator, in one command."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_policy_ros.cli.figures import (
    check_json,
    check_least,
    check_seed,
    counted,
    write_json,
)
from diffusion_policy_ros.demo.domains import free_domain
from diffusion_policy_ros.demo.plans import OTHERS, PLANS, Plan
from diffusion_policy_ros.errors import UserError

if TYPE_CHECKING:
    from diffusion_policy_ros.policy.recipe import Recipe

MONITOR = "demo_monitor"
START_TIMEOUT_S = 600.0
"""For the policy's first word: on a busy machine its networks are compiled for minutes."""
EPISODE_TIMEOUT_S = 60.0
"""For each episode after that."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Tell argparse of the verb."""
    parser = subparsers.add_parser(
        "demo",
        help="the whole way once, on a simulated arm behind real ROS 2 topics",
        description="Records demonstrations of a scripted expert as rosbags, converts them, "
        "trains a Diffusion Policy with cameras, then starts simulator and node as separate "
        "processes over DDS and runs 20 episodes in real time. Run again, it goes on where it was",
    )
    parser.add_argument(
        "--sim",
        default="mini_lift",
        help="the simulator: a shipped one, or an entry point (default: %(default)s)",
    )
    parser.add_argument(
        "--state", action="store_true", help="things' poses instead of cameras: quicker"
    )
    parser.add_argument(
        "--contract", help="the robot, a name or a file (default: the simulator's own)"
    )
    parser.add_argument(
        "--recipe", help="the training, a name or a file (default: the simulator's own)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("demo"),
        help="folder for everything (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument(
        "--episodes", type=int, default=20, help="to run in the end (default: %(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=20_000,
        help="of the first of them (default: %(default)s, which nothing was chosen by)",
    )
    parser.add_argument(
        "--demonstrations",
        type=int,
        help="to record (default: the simulator's; of mini_lift 300, with --state 200)",
    )
    parser.add_argument("--engine", help="what runs the policy, as for the node (default: auto)")
    parser.add_argument("--dtype", help="its precision, as the engine has it: f32, int8, …")
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="change the recipe: training.updates=500"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run every stage; print and write the figures."""
    begun = time.monotonic()
    kind = "state" if args.state else "cameras"
    out = args.out / ("" if args.sim == "mini_lift" else args.sim.replace("/", "_")) / kind
    plan = _plan(args, kind)
    _check_parts()
    _check(args, plan)
    _record(plan, out, args.demonstrations or plan.demonstrations, args.sim)
    _convert(plan, out)
    checkpoint = _train(plan, out, args.settings)
    chosen = {"engine": args.engine, "dtype": args.dtype}
    seeds = range(args.seed, args.seed + args.episodes)
    drive = _drive(plan, args.sim, out, checkpoint, seeds, chosen)
    figures = {
        **drive.figures(),
        "seconds_total": round(time.monotonic() - begun, 1),
        "checkpoint": str(checkpoint),
    }
    _finish(args.sim, out, figures, drive)
    write_json(args.json, figures)
    return 0


def _plan(args: argparse.Namespace, kind: str) -> Plan:
    """What to do; the contract and the recipe that are given, or those of the simulator.

    Raises:
        UserError: there is no such simulator, or none is shipped for it.
    """
    from diffusion_policy_ros.sim.simulator import default_contract, found

    found(args.sim)
    plan = PLANS.get((args.sim, kind)) or OTHERS[kind]
    contract = args.contract or plan.contract or default_contract(args.sim, kind == "cameras")
    plan = replace(plan, contract=contract)
    return replace(plan, recipe=args.recipe, changes=()) if args.recipe else plan


def _check(args: argparse.Namespace, plan: Plan) -> None:
    """Fail now over what is only needed later.

    Raises:
        UserError: a number is too low, a setting has a mistake, the engine cannot run the policy,
            the figures cannot be written.
    """
    check_least(args, episodes=1, demonstrations=1)
    check_seed(args.seed, 10**9)  # as the simulated robot's parameter
    recipe = plan.recipe_with(args.settings)
    if args.engine or args.dtype:
        _try_engine(plan, recipe, args)
    check_json(args.json)


def _try_engine(plan: Plan, recipe: Recipe, args: argparse.Namespace) -> None:
    """Have it take the policy, untrained."""
    from diffusion_policy_ros.contract import Contract
    from diffusion_policy_ros.engine import build_engine
    from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy

    policy = DiffusionPolicy(recipe, Contract.load(plan.contract))
    build_engine(policy, args.engine or "auto", "auto", args.dtype)


def _check_parts() -> None:
    """Fail now rather than after ten minutes of training."""
    if importlib.util.find_spec("rclpy") is None:
        cure = "pip install -e '.[ros]', or run `make demo`"
        raise UserError("the demo needs rclpy", "demo", cure)


def _say(stage: int, what: str, how_long: str) -> None:
    print(f"[{stage}/5] {what} ({how_long})", flush=True)


def _record(plan: Plan, out: Path, count: int, sim: str) -> None:
    from diffusion_policy_ros.contract import Contract
    from diffusion_policy_ros.demonstrations import Recorded, record_demonstrations

    _say(
        1,
        f"recording {count} demonstrations of the scripted expert into {out / 'bags'}",
        plan.record,
    )
    with _bar(count, "bag") as bar:

        def show(recorded: Recorded, _: int) -> None:
            bar.update(len(recorded.bags) - bar.n)

        contract = Contract.load(plan.contract)
        jobs = os.cpu_count() or 1
        record_demonstrations(contract, out / "bags", count, sim=sim, jobs=jobs, progress=show)


def _bar(total: int, unit: str) -> Any:
    """A progress bar on a terminal, silence elsewhere."""
    from tqdm import tqdm

    return tqdm(total=total, unit=unit, leave=False, disable=not sys.stderr.isatty())


def _convert(plan: Plan, out: Path) -> None:
    from diffusion_policy_ros.contract import Contract
    from diffusion_policy_ros.data.convert import convert

    _say(2, f"converting the bags into {out / 'dataset'}", "a few seconds")
    contract, jobs = Contract.load(plan.contract), os.cpu_count() or 1
    report = convert([out / "bags"], contract, out / "dataset", jobs=jobs)
    print(f"      {counted(report.episodes, 'episode')}, {counted(report.frames, 'frame')}")


def _train(plan: Plan, out: Path, settings: list[str]) -> Path:
    from diffusion_policy_ros.evaluation import success_hook
    from diffusion_policy_ros.report.training import training_lines
    from diffusion_policy_ros.train.trainer import train

    _say(3, f"training into {out / 'run'}", plan.train)
    recipe, dataset, run = plan.recipe_with(settings), out / "dataset", out / "run"
    hooks = success_hook(recipe, dataset)
    checkpoint = train(dataset, recipe, run, resume=run.exists(), hooks=hooks)
    print("\n".join(training_lines(run)))
    return checkpoint


@dataclass
class Drive:
    """What was heard while the policy drove the arm."""

    episodes: list[dict[str, Any]] = field(default_factory=list)
    policy: dict[str, str] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        """The demo's figures."""
        return {
            "success_rate": sum(e["success"] for e in self.episodes) / max(len(self.episodes), 1),
            "episodes": len(self.episodes),
            "chunk_ms_p50": _milliseconds(self.policy.get("chunk_ms_p50")),
            "chunk_ms_p99": _milliseconds(self.policy.get("chunk_ms_p99")),
            "published_chunks": int(self.policy.get("chunks", 0)),
            "deadline_misses": int(self.policy.get("deadline_misses", 0)),
        }


def _milliseconds(text: str | None) -> float:
    """A figure of the diagnostics; a dash is one that is not there yet."""
    return float("nan") if text in (None, "-") else float(text or 0)


def _drive(
    plan: Plan,
    sim: str,
    out: Path,
    checkpoint: Path,
    seeds: range,
    chosen: Mapping[str, str | None],
) -> Drive:
    _say(
        4,
        f"driving it over DDS, {counted(len(seeds), 'unseen episode')} in real time",
        "some seconds each",
    )
    # The demo's networks are small: a second thread costs more than it gives beside a simulator.
    node = {"checkpoint": checkpoint, "threads": 1}
    node |= {name: value for name, value in chosen.items() if value}
    arm = {
        "sim": sim,
        "contract": plan.contract,
        "auto_reset": True,
        "episodes": len(seeds),
        "first_seed": seeds.start,
        "gif": out / "rollout.gif" if _has_pictures(sim) else "",
        "gif_episodes": 3 if sim == "mini_lift" else 1,  # others' take time that the arm has not
        "cameras": out.name == "cameras",
    }
    with (
        _domain() as environment,
        _node(MONITOR, out, environment, {}) as monitor,
        _node("policy_node", out, environment, node) as policy,
        _node("sim_robot", out, environment, arm) as robot,
    ):
        return _listen(monitor, {"policy_node": policy, "sim_robot": robot}, len(seeds))


def _has_pictures(sim: str) -> bool:
    from diffusion_policy_ros.sim.simulator import found

    return bool(getattr(found(sim), "cameras", ()))


@contextmanager
def _domain() -> Iterator[dict[str, str]]:
    """The environment of the nodes: a DDS domain of their own, if the caller has named none."""
    with ExitStack() as stack:
        domain = os.environ.get("ROS_DOMAIN_ID") or str(stack.enter_context(free_domain()))
        print(f"      watch it: ROS_DOMAIN_ID={domain} ros2 topic echo /policy_node/action_chunk")
        yield {
            "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
            **os.environ,
            "ROS_DOMAIN_ID": domain,
        }


@contextmanager
def _node(
    name: str, out: Path, environment: dict[str, str], parameters: dict[str, Any]
) -> Iterator[Any]:
    """A node as a process of its own, its log beside the results."""
    room = "demo" if name == MONITOR else "ros"
    command = [sys.executable, "-m", f"diffusion_policy_ros.{room}.{name}", "--ros-args"]
    for key, value in parameters.items():
        command += ["-p", f"{key}:={_yaml(value)}"]
    if shutil.which("setpriv"):  # whatever becomes of us, nobody goes on to command an arm
        command = ["setpriv", "--pdeathsig", "TERM", *command]
    pipe = subprocess.PIPE if name == MONITOR else subprocess.DEVNULL
    with (out / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=pipe, stderr=log, text=True)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _yaml(value: object) -> str:
    """A parameter as ROS reads it; an empty text or a path with `#` would be another one bare."""
    is_text = isinstance(value, str | Path)
    return json.dumps(str(value) if is_text else value, ensure_ascii=False)


def _listen(monitor: Any, nodes: dict[str, Any], episodes: int) -> Drive:
    """Collect episodes and diagnostics until all are done."""
    drive, deadline = Drive(), time.monotonic() + START_TIMEOUT_S
    for line in monitor.stdout:
        heard = json.loads(line)
        if "episode" in heard or ("policy" in heard and not drive.policy):
            deadline = time.monotonic() + EPISODE_TIMEOUT_S
        if "episode" in heard:
            drive.episodes.append(heard["episode"])
            _show(drive, episodes)
        drive.policy = heard.get("policy", drive.policy)
        if len(drive.episodes) >= episodes and "policy" in heard:
            return drive
        dead = [name for name, node in nodes.items() if node.poll() is not None]
        if time.monotonic() > deadline or (dead and len(drive.episodes) < episodes):
            late = f"no episode ended in time: {drive.policy.get('message', '')}"
            why = f"{dead[0]} ended" if dead else late
            raise UserError(why, "demo", "read the .log files in the demo's folder")
    raise UserError("the monitor ended", "demo", f"read {MONITOR}.log in the demo's folder")


def _show(drive: Drive, episodes: int) -> None:
    last, won = drive.episodes[-1], sum(e["success"] for e in drive.episodes)
    outcome = "success" if last["success"] else "no success"
    print(
        f"      episode {len(drive.episodes)}/{episodes} (seed {last['seed']}): {outcome} after "
        f"{counted(last['steps'], 'step')}; {won} succeeded",
        flush=True,
    )


def _finish(sim: str, out: Path, figures: dict[str, Any], drive: Drive) -> None:
    from diffusion_policy_ros.report.html import Page

    _say(5, "writing the report", "a moment")
    page = Page(f"Diffusion Policy demo: {sim}")
    page.facts(figures)
    page.picture(out / "rollout.gif", "Closed loop over DDS; the predicted chunk is drawn in")
    page.heading("Training")
    page.picture(out / "run" / "loss.png", "Loss")
    page.heading("Episodes")
    keys = list(drive.episodes[0]) if drive.episodes else []
    page.table(keys, [[episode[key] for key in keys] for episode in drive.episodes])
    page.heading("The policy node's last diagnostics")
    page.facts(drive.policy)
    page.heading("Go on")
    where = shlex.quote(figures["checkpoint"])
    page.code(f"diffusion-policy eval {where} --sim {sim} --episodes 100")
    page.code(f"policy_node --ros-args -p checkpoint:={where}")
    page.save(out / "report.html")
    episodes = counted(figures["episodes"], "episode")
    missed = counted(figures["deadline_misses"], "missed deadline")
    print(
        f"\nsuccess {figures['success_rate']:.0%} of {episodes}, chunk p50 "
        f"{figures['chunk_ms_p50']:.1f} ms, p99 {figures['chunk_ms_p99']:.1f} ms, "
        f"{missed}, {figures['seconds_total']:.0f} s in all\n"
        f"rollout:    {out / 'rollout.gif'}\nloss curve: {out / 'run' / 'loss.png'}\n"
        f"report:     {out / 'report.html'}\ncheckpoint: {figures['checkpoint']}"
    )
