"""`--rerun`, of the verbs that show recordings: the Rerun viewer, see report/rerun.py."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusion_policy_ros.report.rerun import View


def add_rerun(parser: Any) -> None:
    """Add the option."""
    parser.add_argument(
        "--rerun",
        nargs="?",
        const="",
        metavar="FILE.rrd",
        help="show it in the Rerun viewer, too, or write a recording to open there",
    )


@contextmanager
def viewing(args: argparse.Namespace) -> Iterator[View | None]:
    """What to add to the viewer's episodes; None where nobody asked for it.

    Raises:
        UserError: Rerun is not installed, there is no screen, or the file cannot be written.
    """
    if args.rerun is None:
        yield None
        return
    from diffusion_policy_ros.report.rerun import opened

    with opened(args.rerun) as view:
        yield view
    if args.rerun:
        print(f"rerun     {args.rerun}")
