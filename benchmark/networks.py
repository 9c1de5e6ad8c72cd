"""Which network, and what it predicts: every pair trained alike on the simulator's state task.

    python benchmark/networks.py [--out DIR] [--updates 1200] [--episodes 100] [--json]

Records the demo's 200 demonstrations into DIR, trains each of U-Net, Transformer and MLP (of about
as many weights) to predict epsilon, sample and v, with the recipe mini_lift_state otherwise: the
same data, batches, updates and seed. Then each drives the arm in closed loop, in the evaluation
episodes, with few denoising steps and with more. Milliseconds a chunk are medians, the networks
taking turns, one thread. Run again it goes on: what is in DIR is not computed twice.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import hush, trained

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.convert import convert
from diffusion_policy_ros.demonstrations import record_demonstrations
from diffusion_policy_ros.engine import Engine, build_engine
from diffusion_policy_ros.evaluation import ClosedLoop, evaluate, make_simulator
from diffusion_policy_ros.policy.checkpoint import load_policy
from diffusion_policy_ros.policy.recipe import Recipe
from diffusion_policy_ros.runtime.sampling import Sampling
from diffusion_policy_ros.sim.simulator import FIRST_EVALUATION_SEED

NAME = "mini_lift_state"
DEMONSTRATIONS = 200
NETWORKS: dict[str, dict[str, Any]] = {
    "U-Net": {"name": "unet1d", "down_dims": [64, 128], "kernel_size": 3},
    "Transformer": {"name": "transformer", "n_layer": 4, "n_emb": 100, "p_drop_attn": 0.0},
    "MLP": {"name": "mlp", "hidden_size": 416, "num_layers": 4},
}
TARGETS = ("epsilon", "sample", "v")
STEPS = (2, 8)
"""Denoising steps that each is evaluated with: the demo's, and four times as many."""
TURNS = 40


def make_dataset(out: Path) -> Path:
    """The demo's demonstrations, recorded unless they are there."""
    contract = Contract.load(NAME)
    record_demonstrations(contract, out / "bags", DEMONSTRATIONS)
    convert([out / "bags"], contract, out / "dataset")
    return out / "dataset"


def checkpoint(out: Path, network: str, target: str, updates: int) -> Path:
    """The checkpoint of a pair, trained unless it is there, in a run of its own."""
    run = out / "runs" / f"{NETWORKS[network]['name']}_{target}"
    changes = {
        "policy.denoiser": json.dumps(NETWORKS[network]),
        "policy.prediction_type": target,
        "training.updates": str(updates),
        "training.batch_shares": "1",
        "training.threads": "1",
    }
    return trained(out / "dataset", Recipe.load(NAME, changes), run, say=hush)


def pairs(out: Path, updates: int) -> Iterator[tuple[dict[str, Any], Engine]]:
    """Each pair's first columns, and what runs it."""
    for network in NETWORKS:
        for target in TARGETS:
            begun = time.process_time()
            policy = load_policy(checkpoint(out, network, target, updates))
            row = {"network": network, "target": target}
            row["parameters"] = sum(p.numel() for p in policy.denoiser.parameters())
            print(f"{network}, {target}: {time.process_time() - begun:.0f} s", flush=True)
            yield row, build_engine(policy, "eager", "cpu", threads=1)


def add_success(row: dict[str, Any], engine: Engine, episodes: int, notes: Path) -> None:
    """Columns of the closed loop, from the notes of an earlier run where they have them."""
    contract, settings = engine.policy.contract, engine.policy.recipe.policy
    known = json.loads(notes.read_text()) if notes.exists() else {}
    for steps in STEPS:
        key = f"{row['network']} {row['target']} {steps} {episodes}"
        if key not in known:
            sampling = Sampling.of(settings, num_inference_steps=steps)
            policy = ClosedLoop(engine, contract, settings.n_obs_steps, sampling)
            seeds = range(FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + episodes)
            with make_simulator("mini_lift", contract) as robot:
                summary = evaluate(robot, policy, seeds).summary()
            known[key] = [summary["success_rate"], summary["mean_steps"]]
            notes.write_text(json.dumps(known, indent=1))
        row[f"success_{steps}"], row[f"mean_steps_{steps}"] = known[key]


def add_times(rows: list[dict[str, Any]], engines: list[Engine]) -> None:
    """Columns of milliseconds a chunk; all take turns, so that what else runs slows all."""
    for steps in STEPS:
        taken: list[list[float]] = [[] for _ in engines]
        for _ in range(TURNS):
            for engine, times in zip(engines, taken, strict=True):
                times.append(milliseconds(engine, steps))
        for row, times in zip(rows, taken, strict=True):
            row[f"ms_{steps}"] = round(float(np.median(times[TURNS // 4 :])), 2)


def milliseconds(engine: Engine, steps: int) -> float:
    """Of one chunk."""
    window = {key: array[None] for key, array in engine.policy.frames.blank().items()}
    begun = time.perf_counter()
    engine.sample(window, steps=steps)
    return (time.perf_counter() - begun) * 1e3


def table(rows: list[dict[str, Any]]) -> str:
    """As doc/which-network.md has it."""
    head = "| network | parameters | predicts |"
    for steps in STEPS:
        head += f" success, K={steps} | steps to finish | ms a chunk |"
    lines = [head, "|---" * (3 + 3 * len(STEPS)) + "|"]
    for row in rows:
        line = f"| {row['network']} | {row['parameters'] / 1e6:.2f} M | {row['target']} |"
        for steps in STEPS:
            line += f" {row[f'success_{steps}']:.0%} | {row[f'mean_steps_{steps}']:.1f} |"
            line += f" {row[f'ms_{steps}']:.1f} |"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    """Train, evaluate, time, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("networks"), help="(%(default)s)")
    parser.add_argument("--updates", type=int, default=1200, help="of each (%(default)s)")
    parser.add_argument("--episodes", type=int, default=100, help="of each (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON at the end")
    args = parser.parse_args()
    torch.set_num_threads(1)
    make_dataset(args.out)
    rows, engines = [], []
    for row, engine in pairs(args.out, args.updates):
        add_success(row, engine, args.episodes, args.out / "episodes.json")
        print({key: value for key, value in row.items() if key != "parameters"}, flush=True)
        rows.append(row)
        engines.append(engine)
    add_times(rows, engines)
    print(json.dumps(rows) if args.json else table(rows))


if __name__ == "__main__":
    main()
