"""`diffusion-policy import checkpoint` and `export checkpoint`: policies of other projects."""

from __future__ import annotations

import argparse


def add_import(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add it to the projects of `import`."""
    parser = actions.add_parser(
        "checkpoint",
        help="a trained policy of LeRobot or of the original Diffusion Policy",
        description="Make a checkpoint of LeRobot's (a folder with config.json, type diffusion) "
        "or of the original's (a .ckpt) that gives the same actions. No pickle is executed. "
        "Without --contract, print the draft of one.",
    )
    parser.add_argument("path", metavar="PATH", help="the folder or the .ckpt")
    parser.add_argument("--contract", metavar="C", help="a file, or a shipped contract's name")
    parser.add_argument("--out", metavar="RUN", required=True, help="the new checkpoint's folder")
    parser.add_argument(
        "--map",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=THEIRS",
        help="which of the checkpoint's observations one of the contract's is, where names do not "
        "say it; several keys in a row are the parts of one",
    )
    parser.set_defaults(run=run_import)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb `export`; datasets are exported by `data export`."""
    parser = subparsers.add_parser(
        "export",
        help="a trained policy as another project's",
        description="Write a trained policy for another project.",
    )
    actions = parser.add_subparsers(title="what", metavar="WHAT", required=True)
    checkpoint = actions.add_parser(
        "checkpoint",
        help="a policy's weights, statistics and configuration",
        description="Write a policy as a folder that another project loads, with the same "
        "actions. What that project cannot express is refused with the reason.",
    )
    checkpoint.add_argument("checkpoint", metavar="RUN", help="a checkpoint, or a run")
    checkpoint.add_argument("--format", choices=("lerobot",), required=True, help="whose")
    checkpoint.add_argument("--out", metavar="DIR", required=True, help="the new folder")
    checkpoint.add_argument(
        "--sampler", choices=("ddim", "ddpm"), help="how it is sampled there (the recipe's)"
    )
    checkpoint.add_argument(
        "--steps", type=int, metavar="K", help="with how many steps (the recipe's)"
    )
    checkpoint.set_defaults(run=run_export)


def run_export(args: argparse.Namespace) -> int:
    """Export.

    Raises:
        UserError: it cannot be expressed; nothing was written.
    """
    from diffusion_policy_ros.interop.lerobot_export import export_lerobot

    out = export_lerobot(args.checkpoint, args.out, args.sampler, args.steps)
    print(f"written to {out}; its README.md says what its numbers are")
    return 0


def run_import(args: argparse.Namespace) -> int:
    """Import, or draft.

    Raises:
        UserError: it cannot be imported; nothing was written.
    """
    from diffusion_policy_ros.contract import Contract
    from diffusion_policy_ros.errors import UserError
    from diffusion_policy_ros.interop.importing import (
        draft_contract,
        import_checkpoint,
        read_foreign,
    )

    if args.contract is None:
        print(draft_contract(read_foreign(args.path), args.path))
        cure = "check the draft above, save it, and give it with --contract"
        raise UserError("no contract was given", args.path, cure)
    contract = Contract.load(args.contract)
    written = import_checkpoint(args.path, contract, args.out, _said(args.map))
    print(f"written to {written}; run it with policy_node --ros-args -p checkpoint:={written}")
    return 0


def _said(words: list[str]) -> dict[str, tuple[str, ...]]:
    """Name of theirs -> keys of ours."""
    from diffusion_policy_ros.errors import UserError

    found: dict[str, tuple[str, ...]] = {}
    for word in words:
        key, _, theirs = word.partition("=")
        if not key or not theirs:
            cure = "write --map joints=observation.state"
            raise UserError(f"'{word}' says nothing", "--map", cure)
        found[theirs] = (*found.get(theirs, ()), key)
    return found
