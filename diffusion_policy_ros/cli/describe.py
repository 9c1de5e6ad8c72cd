"""`diffusion-policy describe`: a policy's pipeline with shapes, parameters, schedule and speed."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_policy_ros.cli.figures import check_least
from diffusion_policy_ros.report.table import table

if TYPE_CHECKING:
    from diffusion_policy_ros.contract import Contract
    from diffusion_policy_ros.data.dataset import WindowDataset
    from diffusion_policy_ros.policy.denoisers.condition import Sizes
    from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
    from diffusion_policy_ros.policy.recipe import Recipe

HEADS = ("part", "in", "out", "parameters")
# Beginning of a shipped recipe's name -> the shipped contract that it was made for.
MADE_FOR = {
    "can_image": "robomimic_can",
    "can_lowdim": "robomimic_can_lowdim",
    "square_image": "robomimic_square",
    "square_lowdim": "robomimic_square_lowdim",
    "mini_lift_state": "mini_lift_state",
    "mini_lift": "mini_lift",
    "mini_bypass": "mini_bypass",
    "small_state": "mini_lift_state",
}
ANY_CONTRACT = "example_arm"
BUDGET_S = 10.0  # no further chunk is measured after this


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "describe",
        help="a policy's shapes, parameters, schedule, and milliseconds a chunk",
        description=__doc__,
    )
    parser.add_argument(
        "policy", metavar="RECIPE|CHECKPOINT", help="a file, a shipped recipe's name, or a run"
    )
    parser.add_argument(
        "--contract",
        metavar="C",
        help="the robot (default: the dataset's, what the recipe was made for, or example_arm)",
    )
    parser.add_argument(
        "--chunks",
        type=int,
        default=5,
        metavar="N",
        help="how many to measure at most (default %(default)s); 0 builds no weights",
    )
    parser.add_argument("--device", default="auto", help="where to measure (default: %(default)s)")
    parser.add_argument(
        "--dataset",
        metavar="DIR",
        type=Path,
        help="write view_CAMERA.png: what is seen of its first picture, and eight varied samples",
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=Path(), help="where they go (default: here)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print it.

    Raises:
        UserError: recipe, checkpoint or contract cannot be read, or do not fit each other.
    """
    from diffusion_policy_ros.contract import Contract
    from diffusion_policy_ros.data.dataset import WindowDataset
    from diffusion_policy_ros.policy.checkpoint import check_contract

    check_least(args, chunks=0)
    robot = Contract.load(args.contract) if args.contract else None
    windows = WindowDataset(args.dataset, n_obs_steps=1, horizon=1) if args.dataset else None
    if windows is not None:
        robot = robot or windows.contract
        check_contract(robot, windows.contract, str(args.dataset))
    policy = build(args.policy, robot, weights=args.chunks > 0)
    print("\n".join(describe(policy)), flush=True)
    for path in draw_views(policy, windows, args.out) if windows else ():
        print(f"drawn     {path}", flush=True)
    if args.chunks > 0:
        print("\n".join(speed(policy, args.chunks, args.device)))
    return 0


def build(name: str, contract: Contract | None, weights: bool) -> DiffusionPolicy:
    """The policy of a checkpoint, or of a recipe with a contract.

    Args:
        name: a checkpoint's or a run's directory, or a recipe.
        contract: the robot's; None for the checkpoint's own, or what the recipe was made for.
        weights: whether a recipe's policy gets some; without, it has shapes only.
    """
    import torch

    from diffusion_policy_ros.contract import Contract
    from diffusion_policy_ros.policy.checkpoint import load_policy
    from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
    from diffusion_policy_ros.policy.recipe import Recipe

    if Path(name).is_dir():
        return load_policy(name, contract=contract)
    recipe = Recipe.load(name)
    robot = contract or Contract.load(made_for(recipe.name))
    with torch.device("cpu" if weights else "meta"):
        return DiffusionPolicy(recipe, robot).eval()


def draw_views(policy: DiffusionPolicy, windows: WindowDataset, folder: Path) -> Iterator[Path]:
    """Draw what each camera's encoder sees of a dataset's first pictures; yields the files."""
    from diffusion_policy_ros.policy.contact_sheet import write_contact_sheets

    folder.mkdir(parents=True, exist_ok=True)
    yield from write_contact_sheets(policy.encoder, windows.batch([0]), folder)


def made_for(recipe: str) -> str:
    """The shipped contract that shows what a recipe gives."""
    return next((MADE_FOR[start] for start in MADE_FOR if recipe.startswith(start)), ANY_CONTRACT)


def describe(policy: DiffusionPolicy) -> Iterator[str]:
    """Yield the lines that tell a person what the policy is made of."""
    from diffusion_policy_ros.policy.sizes import output_size

    recipe, contract = policy.recipe, policy.contract
    settings = recipe.policy
    yield f"recipe    {recipe.name}"
    yield f"contract  {contract.name}, hash {contract.hash}, {contract.rate_hz:g} Hz"
    yield ""
    yield from table(HEADS, list(parts(policy)))
    yield ""
    for key, camera in policy.encoder.image_encoders.items():
        yield f"sees      {key}: {camera.view.text}"
    axes = f" in the {settings.axes}'s axes" if settings.actions in ("delta", "relative") else ""
    yield f"poses     actions {settings.actions}{axes}, orientation {settings.orientation}"
    size = f"{settings.predicted_steps} actions of {contract.action_dim} values"
    yield f"chunk     {size}, {settings.n_action_steps} executed from the newest frame on"
    steps = "Ta" if settings.pred_action_steps_only else "H"
    yield f"output    {output_size(recipe, contract)} values ({steps} * Da)"
    yield from schedule_lines(recipe)


def parts(policy: DiffusionPolicy) -> Iterator[tuple[str, ...]]:
    """Yield a row for each part: what goes in, what comes out, how many parameters it has."""
    from diffusion_policy_ros.policy.sizes import param_count

    steps = policy.recipe.policy.n_obs_steps
    for key, stream in policy.contract.observations.items():
        dtype, seen = "uint8" if stream.is_image else "float32", (steps, *stream.shape)
        out, count = (steps, *policy.frames.seen.observations[key].shape), "-"
        if stream.is_image:
            camera = policy.encoder.image_encoders[key]
            out, count = (steps, camera.features), millions(param_count(camera))
        yield (key, f"{dtype} {seen}", str(out), count)
    for name, module in policy.named_children():
        if name not in ("encoder", "denoiser", "normalizer"):
            yield (name, "", "", millions(param_count(module)))
    chunk = (policy.sizes.horizon, policy.sizes.action_dim)
    given = condition_text(policy.sizes)
    denoiser = policy.recipe.policy.denoiser.name
    yield (denoiser, f"{chunk}, {given}", str(chunk), millions(param_count(policy.denoiser)))
    yield ("together", "", "", millions(param_count(policy)))


def condition_text(sizes: Sizes) -> str:
    """What the denoiser is told of the observations, as `condition 274`."""
    if sizes.global_cond:
        return f"condition {sizes.global_cond}"
    if sizes.tokens:
        return f"tokens {sizes.tokens}x{sizes.token_dim}"
    if sizes.local_cond:
        return f"local {sizes.horizon}x{sizes.local_cond}"
    return "a part given"  # inpainting: the observations are part of the sample


def blank(policy: DiffusionPolicy) -> dict[str, Any]:
    """An observation window of a robot at zero."""
    import torch

    window = {key: torch.from_numpy(array)[None] for key, array in policy.frames.blank().items()}
    tasks = policy.recipe.policy.tasks
    return window | ({"task": list(tasks[:1])} if tasks else {})


def schedule_lines(recipe: Recipe) -> Iterator[str]:
    """Yield what the diffusion is like."""
    p = recipe.policy
    betas = f", betas {p.beta_start:g} to {p.beta_end:g}" if p.schedule == "linear" else ""
    yield f"training  {p.num_train_timesteps} steps of {p.schedule}{betas}"
    yield f"target    {p.prediction_type}"
    yield f"sampling  {p.num_inference_steps} steps of {p.sampler}, spaced {p.timestep_spacing}"


def speed(policy: DiffusionPolicy, chunks: int, device: str) -> Iterator[str]:
    """Yield how long a chunk takes here."""
    import statistics
    import time

    import torch

    from diffusion_policy_ros.engine import build_engine

    engine, window = build_engine(policy, "eager", device), blank(policy)
    times: list[float] = []
    engine.sample(window, steps=1)  # what happens only once
    begin = time.perf_counter()
    while len(times) < chunks and time.perf_counter() - begin < BUDGET_S:
        start = time.perf_counter()
        engine.sample(window).cpu()
        times.append((time.perf_counter() - start) * 1e3)
    middle = statistics.median(times)
    where = f"{engine.device}, {torch.get_num_threads()} threads, engine {engine.name}"
    yield f"speed     {middle:.1f} ms a chunk, median of {len(times)} ({where})"
    yield "          the other engines with a checkpoint: diffusion-policy bench"


def millions(count: int) -> str:
    """255623687 -> '255.6 M', 46215 -> '46.2 k'."""
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.1f} k"
