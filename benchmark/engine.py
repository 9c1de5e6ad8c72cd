"""How fast the engines are: the plain modules and each other engine in turns, whole chunks.

    python benchmark/engine.py [--json] [--device cuda] [--networks unet_256,...] [--threads N]
        [--chunks 20] [--peers]

Seeded random weights, batch 1, horizon 16, 7 actions, condition of 274 numbers, ten steps of DDIM.

ms_eager    a chunk by the plain modules, median
ms          the same by the engine; both took turns of five, so what else runs slowed both
speedup     ms_eager / ms
rel_error   relative L2 distance of the two chunks, same noise, normalised units
floor_ms    the bytes of the denoiser's weights as stored, read ten times at the read bandwidth
            that was measured in this run
first_ms    a chunk of one step: what comes before the other nine

`image_policy` has two cameras with ResNet-18 and the largest U-Net; its window slides by one frame
a chunk. --peers adds what one would take instead, on the same weights: torch.compile (needs a C++
compiler, minutes of compiling), and ONNX Runtime (pip install onnx onnxscript onnxruntime).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.engine import Engine, build_engine
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.denoisers import Condition
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.recipe import Recipe

STEPS = 10
RECIPE = """
name: engine
policy:
  n_obs_steps: 2
  horizon: 16
  num_inference_steps: 10
  denoiser: {denoiser}
  image_encoder: {{name: resnet18, keypoints: 32, features: 64, crop: [76, 76]}}
"""
NETWORKS = {
    "unet_512": "{name: unet1d, down_dims: [512, 1024, 2048], kernel_size: 5}",
    "unet_256": "{name: unet1d, down_dims: [256, 512, 1024], kernel_size: 5}",
    "unet_64": "{name: unet1d, down_dims: [64, 128, 256], kernel_size: 5}",
    "transformer_256": "{name: transformer, n_layer: 8, n_emb: 256}",
    "image_policy": "{name: unet1d, down_dims: [512, 1024, 2048], kernel_size: 5}",
}
JOINTS = [f"joint_{number}" for number in range(137)]
CONTRACT = f"""
name: engine
rate_hz: 20
anchor: state
observations:
  state: {{topic: /state, type: sensor_msgs/msg/JointState, field: position, names: {JOINTS}}}
action:
  fields:
    - {{name: translation, kind: delta_position, frame: base}}
    - {{name: rotation, kind: delta_axis_angle, frame: base}}
    - {{name: gripper, kind: binary, frame: base}}
  record: {{topic: /command, type: trajectory_msgs/msg/JointTrajectory, shape: [7]}}
"""

DTYPES = {"cpu": ("openvino", ("f32", "int8", "bf16")), "cuda": ("cuda_graph", ("f32", "bf16"))}
BYTES = {"f32": 4, "int8": 1, "bf16": 2}
READ_MB = 1024
TURN = 5
"""Chunks of a turn: the first comes upon the caches, and the threads still turning, of another."""


def make_policy(network: str) -> DiffusionPolicy:
    """Seeded random weights; layers that start at zero are not left there."""
    torch.manual_seed(0)
    cameras = network == "image_policy"
    contract = Contract.load("mini_lift") if cameras else Contract.from_text(CONTRACT)
    recipe = Recipe.from_text(RECIPE.format(denoiser=NETWORKS[network]))
    policy = DiffusionPolicy(recipe, contract)
    for weight in policy.parameters():
        if not weight.any() and weight.dim() > 1:
            nn.init.normal_(weight, std=0.02)
    return policy


def windows(contract: Contract, count: int) -> list[dict[str, np.ndarray]]:
    """Windows of two frames of noise, each one frame later than the one before."""
    random, frames = np.random.default_rng(0), count + 1
    recorded = {
        key: random.integers(0, 256, (frames, *stream.shape), dtype=np.uint8)
        if stream.is_image
        else random.uniform(-1, 1, (frames, *stream.shape)).astype(np.float32)
        for key, stream in contract.observations.items()
    }
    return [{key: rows[None, i : i + 2] for key, rows in recorded.items()} for i in range(count)]


def others(policy: DiffusionPolicy, device: str) -> dict[tuple[str, str], Engine]:
    """The engines that this machine has, by name and precision."""
    found, (name, dtypes) = {}, DTYPES[device]
    for dtype in dtypes:
        try:
            found[name, dtype] = build_engine(policy, name, device, dtype)
        except UserError as error:
            say(str(error))
    return found


class Peer:
    """The policy with its denoiser run by something else; `sample` as an engine's.

    Args:
        policy: whose weights it takes.
        denoiser: called as the policy's own.
    """

    def __init__(self, policy: DiffusionPolicy, denoiser: Callable[..., Tensor]) -> None:
        self.policy = copy.copy(policy)
        self.policy.__dict__["_modules"] = {
            **policy._modules,
            "denoiser": Called(policy, denoiser),
        }

    def sample(self, observation: Any, **options: Any) -> Tensor:
        """See DiffusionPolicy.sample."""
        return self.policy.sample(observation, **options)


class Called(nn.Module):
    """A function in the denoiser's place."""

    def __init__(self, policy: DiffusionPolicy, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.plain, self.function = policy.denoiser, function

    def forward(self, *given: Any) -> Tensor:
        """Call it."""
        return self.function(*given)


def peers(policy: DiffusionPolicy) -> dict[tuple[str, str], Peer]:
    """What one would take instead, as far as it is installed."""
    made = {
        "torch.compile": lambda: torch.compile(policy.denoiser),
        "onnxruntime": lambda: onnx_denoiser(policy),
    }
    found = {}
    for name, make in made.items():
        try:
            found[name, "f32"] = Peer(policy, make())
        except ImportError as error:
            say(f"without {name}: {error}")
    return found


def onnx_denoiser(policy: DiffusionPolicy) -> Callable[..., Tensor]:
    """Run by ONNX Runtime."""
    import onnxruntime

    example = next(iter(windows(policy.contract, 1)))
    with torch.no_grad():
        condition = policy.encode(example)
    places = [place for place, part in enumerate(condition) if part is not None]

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.denoiser = policy.denoiser

        def forward(self, sample: Tensor, step: Tensor, *parts: Tensor) -> Tensor:
            known = dict(zip(places, parts, strict=True))
            return self.denoiser(sample, step, Condition(*map(known.get, range(len(condition)))))

    sample, step = torch.zeros(1, 16, 7), torch.zeros(1, dtype=torch.long)
    parts = [part for part in condition if part is not None]
    names = ["sample", "step", *(f"part{place}" for place in places)]
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/denoiser.onnx"
        with contextlib.redirect_stdout(sys.stderr):
            torch.onnx.export(
                Plain().eval(), (sample, step, *parts), path, input_names=names, dynamo=True
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Else its threads go on turning for a while, in the next one's turn.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])

    def run(sample: Tensor, step: Tensor, condition: Condition) -> Tensor:
        given = [sample, step, *(condition[place] for place in places)]
        arrays = {name: part.numpy() for name, part in zip(names, given, strict=True)}
        return torch.from_numpy(session.run(None, arrays)[0])

    return run


def measure(network: str, args: argparse.Namespace, bandwidth: float) -> list[dict[str, Any]]:
    """The rows of a network."""
    policy = make_policy(network)
    plain = build_engine(policy, "eager", args.device)
    sides: dict[tuple[str, str], Any] = dict(others(policy, args.device))
    if args.peers and args.device == "cpu":
        sides |= peers(policy)
    noise = torch.randn(1, 16, 7, generator=torch.Generator().manual_seed(1)).to(plain.device)
    shown = windows(policy.contract, args.chunks + 1)
    reference = plain.sample(shown[0], noise=noise)
    error = {
        key: float((side.sample(shown[0], noise=noise) - reference).norm() / reference.norm())
        for key, side in sides.items()
    }
    everyone = {("eager", "f32"): plain, **sides}
    times = timed(everyone, shown[1:], noise)
    first = timed(everyone, shown[: 1 + args.chunks // 4], noise, steps=1)
    weights = sum(weight.numel() for weight in policy.denoiser.parameters())
    ms_eager = times["eager", "f32"]
    return [
        {
            "network": network,
            "engine": name,
            "dtype": dtype,
            "device": args.device,
            "threads": torch.get_num_threads(),
            "ms_eager": round(ms_eager, 2),
            "ms": round(times[name, dtype], 2),
            "speedup": round(ms_eager / times[name, dtype], 2),
            "rel_error": error[name, dtype],
            "floor_ms": round(1e3 * STEPS * weights * BYTES[dtype] / bandwidth, 2),
            "first_ms": round(first[name, dtype], 2),
        }
        for name, dtype in sides
    ]


def timed(
    sides: Mapping[tuple[str, str], Any], shown: list[Any], noise: Tensor, **options: Any
) -> dict[tuple[str, str], float]:
    """Milliseconds of a chunk, medians, the sides in turns."""
    times: dict[tuple[str, str], list[float]] = {key: [] for key in sides}
    turns = [shown[i : i + TURN] for i in range(0, len(shown), TURN)]
    for turn, key in itertools.product(turns, sides):
        for window in turn:
            begun = time.perf_counter()
            sides[key].sample(window, noise=noise, **options)
            if noise.is_cuda:
                torch.cuda.synchronize()
            times[key].append(1e3 * (time.perf_counter() - begun))
    return {key: statistics.median(spent) for key, spent in times.items()}


def read_bandwidth(device: str) -> float:
    """Bytes a second of reading memory once, the best of some."""
    data = torch.ones(READ_MB << 18, device=device)
    seconds = []
    for _ in range(8):
        begun = time.perf_counter()
        data.sum().item()
        seconds.append(time.perf_counter() - begun)
    return data.numel() * 4 / min(seconds)


def table(rows: list[dict[str, Any]]) -> str:
    """All rows, in Markdown."""
    names = list(rows[0])
    lines = [
        "| "
        + " | ".join(
            f"{row[name]:.1e}" if name == "rel_error" else str(row[name]) for name in names
        )
        + " |"
        for row in rows
    ]
    return "\n".join([f"| {' | '.join(names)} |", "|---" * len(names) + "|", *lines])


def say(text: str) -> None:
    """To the standard error: the standard output is for figures."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default=",".join(NETWORKS), help="which (default: all)")
    parser.add_argument("--device", default="cpu", choices=list(DTYPES))
    parser.add_argument("--threads", type=int, default=0, help="on the CPU (default: torch's)")
    parser.add_argument("--chunks", type=int, default=20, help="each side's (default 20)")
    parser.add_argument("--peers", action="store_true", help="torch.compile and ONNX Runtime, too")
    parser.add_argument("--json", action="store_true", help="print a list of rows")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    unknown = set(args.networks.split(",")) - set(NETWORKS)
    if unknown or (args.device == "cuda" and not torch.cuda.is_available()):
        parser.error(f"no network {unknown.pop()}" if unknown else "no GPU here")
    bandwidth = read_bandwidth(args.device)
    say(f"reading memory: {bandwidth / 1e9:.1f} GB/s, {torch.get_num_threads()} threads")
    rows = []
    for network in args.networks.split(","):
        rows += measure(network, args, bandwidth)
        say(f"{network} done")
    print(json.dumps(rows, indent=1) if args.json else table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
