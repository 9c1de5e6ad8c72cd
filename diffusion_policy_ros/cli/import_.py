"""`diffusion-policy import robomimic FILE`: demonstrations of other projects into a dataset."""

from __future__ import annotations

import argparse


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb, with one action for each project."""
    parser = subparsers.add_parser(
        "import",
        help="make a dataset of another project's demonstrations",
        description=__doc__,
    )
    actions = parser.add_subparsers(title="projects", metavar="PROJECT", required=True)
    robomimic = actions.add_parser(
        "robomimic",
        help="an HDF5 file of robomimic",
        description="Make a dataset of robomimic's HDF5 file, or add what it does not have yet.",
        epilog="An interruption leaves the dataset as it was; run the same command again.",
    )
    robomimic.add_argument("file", metavar="FILE", help="the HDF5 file")
    robomimic.add_argument(
        "--contract", metavar="C", required=True, help="a file, or a shipped contract's name"
    )
    robomimic.add_argument("--out", metavar="DATASET", required=True, help="the dataset's folder")
    robomimic.add_argument(
        "--mask", default="", metavar="NAME", help="only this part, such as train (default: all)"
    )
    robomimic.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Import and say what became of each demonstration.

    Raises:
        UserError: nothing could be imported; the dataset is as it was.
    """
    from diffusion_policy_ros.cli.convert import Printer, summary
    from diffusion_policy_ros.contract import Contract
    from diffusion_policy_ros.data.robomimic import import_robomimic

    contract = Contract.load(args.contract)
    with Printer() as printer:
        report = import_robomimic(args.file, contract, args.out, args.mask, printer)
    print("\n".join(summary(report)))
    return 0
