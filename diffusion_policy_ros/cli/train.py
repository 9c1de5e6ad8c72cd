"""`diffusion-policy train --dataset D --config R --out RUN key=value...`: dataset to policy."""

from __future__ import annotations

import argparse
from pathlib import Path

from diffusion_policy_ros.errors import UserError


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "train", help="train a policy on a dataset", description=__doc__
    )
    parser.add_argument(
        "--dataset", metavar="DIR", type=Path, help="a dataset (default: the recipe's data)"
    )
    parser.add_argument(
        "--config", metavar="RECIPE", help="a YAML file, or a shipped recipe's name"
    )
    parser.add_argument("--out", metavar="RUN", type=Path, required=True, help="the run's folder")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run that is there, exactly"
    )
    parser.add_argument(
        "--progress",
        choices=("auto", "bar", "lines", "none"),
        default="auto",
        help="a bar, plain lines, neither, or what suits the terminal (the default)",
    )
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="change the recipe: training.updates=500"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, or go on training.

    Raises:
        UserError: recipe, dataset or run do not allow it.
    """
    from diffusion_policy_ros.evaluation import success_hook
    from diffusion_policy_ros.policy.recipe import Recipe, parse_overrides
    from diffusion_policy_ros.policy.run import RECIPE
    from diffusion_policy_ros.report.training import training_lines
    from diffusion_policy_ros.shipped import config_names
    from diffusion_policy_ros.train.distributed import place
    from diffusion_policy_ros.train.trainer import train

    config = args.config
    if config is None and args.resume:
        config = args.out / RECIPE
        if not config.is_file():
            cure = "leave out --resume to begin one"
            raise UserError("no run to resume", str(args.out), cure)
    if config is None:
        shipped = ", ".join(config_names("recipes"))
        raise UserError("no recipe", "--config", f"give a YAML file or one of: {shipped}")
    recipe = Recipe.load(config, parse_overrides(args.settings))
    hooks = success_hook(recipe, args.dataset)
    how = {"resume": args.resume, "progress": args.progress, "hooks": hooks}
    train(args.dataset, recipe, args.out, **how)
    if place()[0] == 0:  # of several processes one speaks
        print("\n".join(training_lines(args.out)))
    return 0
