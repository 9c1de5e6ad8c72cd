"""`diffusion-policy data export`: a dataset in another project's format."""

from __future__ import annotations

import argparse


def add_export(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the action."""
    from diffusion_policy_ros.data.formats import FORMATS

    export = actions.add_parser(
        "export",
        help="write a dataset in another project's format",
        description="Write a dataset in another project's format; nothing is left of a failure.",
    )
    writable = {name: what for name, what in FORMATS.items() if name != "zarr"}
    export.add_argument(
        "format", metavar="FORMAT", choices=list(writable), help=", ".join(writable)
    )
    export.add_argument("dataset", metavar="DATASET", help="the dataset's folder")
    export.add_argument("--out", metavar="PATH", required=True, help="what to make")
    export.add_argument(
        "--where",
        default="",
        metavar="CONDITIONS",
        help="only these episodes, such as 'success=true, tag=clean'",
    )
    add_writing(export)
    export.set_defaults(run=run)


def add_writing(parser: argparse.ArgumentParser) -> None:
    """Add what says how a dataset is exported."""
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--video", choices=("av1", "h264"), default="", help="lerobot: pictures as video"
    )
    how.add_argument(
        "--images",
        dest="video",
        action="store_const",
        const="",
        help="lerobot: pictures one by one, which loses nothing (the default)",
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default 1)")
    parser.add_argument(
        "--stamps", action="store_true", help="lerobot: keep the frames' true times as a feature"
    )
    parser.add_argument(
        "--task", default="", metavar="TEXT", help="what was done, of episodes that do not say so"
    )


def run(args: argparse.Namespace) -> int:
    """Export, and say what was written.

    Raises:
        UserError: it cannot be said in that format; nothing is left.
    """
    from diffusion_policy_ros.data.formats import format_of
    from diffusion_policy_ros.data.formats.demonstrations import Writing

    options = Writing(args.video, args.jobs, args.stamps, args.task, args.where)
    written = format_of(args.format).write(args.dataset, args.out, options)
    print(written.said)
    return 0
