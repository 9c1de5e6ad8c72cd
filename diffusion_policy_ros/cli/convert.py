"""`diffusion-policy convert`: bags into a dataset for training."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusion_policy_ros.contract import Contract
    from diffusion_policy_ros.data.reports import BagReport, Progress, Report


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "convert",
        help="make a dataset of recorded bags, or add bags to one",
        description="Make a dataset of bags, or add to one those that it does not have yet.",
        epilog="An interruption leaves the dataset as it was; run the same command again.",
    )
    parser.add_argument("bags", metavar="BAG", nargs="+", help="a bag, or a directory of bags")
    parser.add_argument("--out", required=True, metavar="DATASET", help="the dataset's directory")
    parser.add_argument(
        "--contract",
        metavar="C",
        help="the robot's contract, a file or a shipped one's name (default: each bag's own)",
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default 1)")
    parser.add_argument(
        "--images",
        choices=("auto", "raw", "jpeg", "png", "video"),
        default="auto",
        help="how pictures are kept: small ones raw, larger ones as the jpeg or png bytes that "
        "came, else as jpeg of quality 95 (auto, the default); all raw; all that "
        "are not compressed as jpeg, or as png, which loses nothing; all in colour as video, a "
        "fifth of jpeg (depth and grey as png)",
    )
    _add_episodes(parser.add_argument_group("what becomes an episode"))
    _add_format(parser.add_argument_group("for another project"))
    parser.set_defaults(run=run)


def _add_episodes(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--keep-idle", action="store_true", help="leave motionless starts and ends in"
    )
    group.add_argument(
        "--skip-failed", action="store_true", help="reject episodes recorded as failed"
    )
    group.add_argument(
        "--max-gap-frames",
        type=int,
        default=0,
        metavar="N",
        help="bridge gaps of up to N missing frames: vectors interpolated, pictures repeated",
    )
    group.add_argument(
        "--split-topic", default="", metavar="TOPIC", help="a message on it begins an episode"
    )
    group.add_argument(
        "--split-times",
        type=float,
        nargs="+",
        default=[],
        metavar="S",
        help="begin an episode at these times, s from the first frame",
    )
    group.add_argument(
        "--split-still",
        type=float,
        default=0.0,
        metavar="S",
        help="begin an episode where the robot sets out after it stood for S seconds",
    )


def _add_format(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--format",
        choices=("dataset", "lerobot", "robomimic", "aloha"),
        default="dataset",
        help="what to make: a dataset of this package (the default), or another project's; then "
        "--out must not exist, and the options are those of diffusion-policy data export",
    )
    group.add_argument(
        "--video", choices=("av1", "h264"), default="", help="lerobot: pictures as video"
    )
    group.add_argument("--stamps", action="store_true", help="lerobot: keep true times, too")
    group.add_argument("--task", default="", metavar="TEXT", help="lerobot: what was done")


def run(args: argparse.Namespace) -> int:
    """Convert and say what became of each bag.

    Raises:
        UserError: nothing could be converted; the dataset is as it was.
    """
    if args.format != "dataset":
        return _elsewhere(args)
    contract = find_contract(args.contract, args.bags)
    print("\n".join(summary(_convert(args, contract, Path(args.out), args.images))))
    return 0


def _elsewhere(args: argparse.Namespace) -> int:
    """Convert into a dataset that is gone afterwards, and export that."""
    from diffusion_policy_ros.data.formats import format_of
    from diffusion_policy_ros.data.formats.demonstrations import (
        Writing,
        built_beside,
        refuse_existing,
    )

    out = Path(args.out)
    refuse_existing(out)
    # What came compressed stays as it came; nothing else is to lose anything on the way.
    images = "png" if args.images == "auto" and not args.video else args.images
    options, form = Writing(args.video, args.jobs, args.stamps, args.task), format_of(args.format)
    contract = find_contract(args.contract, args.bags)
    form.check(contract, options)
    with built_beside(out, ".dataset") as between:
        _convert(args, contract, between, images)
        written = form.write(between, out, options)
    print(written.said)
    return 0


def _convert(args: argparse.Namespace, contract: Contract, out: Path, images: str) -> Report:
    """Convert, and say what became of each bag."""
    from diffusion_policy_ros.data.convert import Options, convert

    options = Options(
        args.keep_idle,
        args.skip_failed,
        own_cells=args.contract is None,
        max_gap_frames=args.max_gap_frames,
        split_topic=args.split_topic,
        split_times=tuple(args.split_times),
        split_still_s=args.split_still,
        images=images,  # type: ignore[arg-type]  # argparse has checked it
    )
    with Printer() as printer:
        return convert(args.bags, contract, out, args.jobs, printer, options)


def find_contract(name: str | None, bags: list[str]) -> Contract:
    """The contract that was named, or the one that the first readable bag was recorded with.

    Raises:
        UserError: there is none, or it has mistakes; or no bag can be read.
    """
    from diffusion_policy_ros.contract import Contract
    from diffusion_policy_ros.data.bags import open_bag
    from diffusion_policy_ros.data.convert import expand
    from diffusion_policy_ros.errors import UserError

    if name is not None:
        return Contract.load(name)
    refused: list[UserError] = []
    for path in expand(bags):
        try:
            text = open_bag(path).metadata.get("contract", "")
        except UserError as error:  # it is rejected by name; the others are converted
            refused.append(error)
            continue
        if not text:
            cure = "name one with --contract; diffusion-policy inspect BAG drafts one"
            raise UserError("was recorded without a contract", str(path), cure)
        contract = Contract.from_text(text, f"{path}: contract")
        contract.refuse_contradictions(f"{path}: contract")
        return contract
    raise refused[0]


class Printer:
    """Prints what became of each bag; on a terminal with a bar below.

    Args:
        odd_only: leave out those of which nothing is to be said but that they are in the dataset.
    """

    def __init__(self, odd_only: bool = False) -> None:
        self._odd_only = odd_only
        self._bar: Any = None

    def __enter__(self) -> Progress:
        return self._told

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _told(self, report: BagReport, done: int, total: int) -> None:
        from tqdm import tqdm

        if self._bar is None:
            quiet = not sys.stderr.isatty()
            self._bar = tqdm(total=total, unit="bag", disable=quiet, leave=False)
        lines = [*report.lines()]
        is_odd = report.status == "rejected" or len(lines) > 1
        for line in lines if is_odd or not self._odd_only else ():
            tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
        self._bar.update(done - self._bar.n)


def summary(report: Report) -> list[str]:
    """What the dataset holds now, and how to go on."""
    counts = dict.fromkeys(("kept", "rejected", "present"), 0)
    for bag in report.bags:
        counts[bag.status] += 1
    said = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    where = shlex.quote(str(report.dataset))
    return [
        f"{said}; {report.dataset} holds {report.episodes} episodes, {report.frames} frames",
        f"next: diffusion-policy train --dataset {where} --config RECIPE --out RUN",
    ]
