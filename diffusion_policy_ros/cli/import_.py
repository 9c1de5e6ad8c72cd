"""`diffusion-policy import FORMAT PATH`: demonstrations of other projects into a dataset."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from diffusion_policy_ros.cli.checkpoints import add_import

if TYPE_CHECKING:
    from collections.abc import Iterator

    from diffusion_policy_ros.data.formats.demonstrations import Column
    from diffusion_policy_ros.data.formats.matched import Matched
    from diffusion_policy_ros.data.reports import Report

HEADS = ("contract", "from", "how")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb, with one action for each format."""
    from diffusion_policy_ros.data.formats import FORMATS

    parser = subparsers.add_parser(
        "import",
        help="make a dataset of another project's demonstrations, or take over its policy",
        description=__doc__,
    )
    actions = parser.add_subparsers(title="formats", metavar="FORMAT", required=True)
    for name, what in FORMATS.items():
        action = actions.add_parser(
            name,
            help=what,
            description=f"Make a dataset of {what}, or add what it does not have yet.",
            epilog="An interruption leaves the dataset as it was; run the same command again.",
        )
        action.add_argument("path", metavar="PATH", help=what)
        action.add_argument("--contract", metavar="C", help="a file, or a shipped contract's name")
        action.add_argument("--out", metavar="DATASET", required=True, help="the dataset's folder")
        _OPTIONS.get(name, _foreign_options)(action)
        action.set_defaults(run=run, format=name)
    add_import(actions)


def _robomimic_options(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "--mask", default="", metavar="NAME", help="only this part, such as train (default: all)"
    )


def _foreign_options(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "--map",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=COLUMN[A:B]",
        help="where an observation, action or action.FIELD is, where names do not say it; a "
        "rotation as KEY=COLUMN[3:6]:axis_angle",
    )
    action.add_argument(
        "--episodes", default="", metavar="N", help="only these, as 0,3-7 (default: all)"
    )
    action.add_argument(
        "--task",
        nargs="+",
        action="extend",
        default=[],
        metavar="TEXT",
        help="only episodes of these tasks",
    )
    action.add_argument(
        "--every", type=int, default=1, metavar="N", help="each Nth frame (default 1)"
    )
    action.add_argument(
        "--images",
        choices=("auto", "raw", "jpeg", "png", "video"),
        default="auto",
        help="how pictures are kept that are no jpeg or png already: raw where they are small, "
        "else as jpeg of quality 95 (auto, the default); video: all in colour, a fifth of jpeg",
    )


_OPTIONS = {"robomimic": _robomimic_options}


def run(args: argparse.Namespace) -> int:
    """Import and say how many there are, and what was odd about which.

    Raises:
        UserError: nothing could be imported; the dataset is as it was.
    """
    from diffusion_policy_ros.cli.convert import summary

    report = _robomimic(args) if args.format == "robomimic" else _foreign(args)
    print("\n".join(summary(report)))
    return 0


def _robomimic(args: argparse.Namespace) -> Report:
    from diffusion_policy_ros.cli.convert import Printer
    from diffusion_policy_ros.contract import Contract
    from diffusion_policy_ros.data.formats.robomimic import import_robomimic
    from diffusion_policy_ros.errors import UserError

    if args.contract is None:
        cure = "give --contract: robomimic_can and robomimic_square are shipped"
        raise UserError("the file says no contract", args.path, cure)
    contract = Contract.load(args.contract)
    with Printer(odd_only=True) as printer:
        return import_robomimic(args.path, contract, args.out, args.mask, printer)


def _foreign(args: argparse.Namespace) -> Report:
    from diffusion_policy_ros.cli.convert import Printer
    from diffusion_policy_ros.contract import Contract
    from diffusion_policy_ros.data.formats import format_of
    from diffusion_policy_ros.data.formats.demonstrations import Choice
    from diffusion_policy_ros.data.formats.drafting import draft
    from diffusion_policy_ros.data.formats.matched import Matched
    from diffusion_policy_ros.data.formats.matching import match
    from diffusion_policy_ros.data.importing import import_demonstrations
    from diffusion_policy_ros.errors import UserError

    if args.every < 1:
        raise UserError(f"{args.every} is no number of frames", "--every", "give 1 or more")
    choice = Choice(_numbers(args.episodes), tuple(args.task))
    foreign = format_of(args.format).read(args.path, choice)
    if args.contract is not None:
        contract = Contract.load(args.contract)
    elif foreign.contract:
        contract = Contract.from_text(foreign.contract, f"{args.path}: the noted contract")
    else:
        print(draft(foreign), end="")
        cure = "check the draft above, save it, and give it with --contract"
        raise UserError("no contract was given", args.path, cure)
    matching = match(contract, foreign.columns, args.map, bool(foreign.contract))
    matched = Matched(foreign, contract, matching, args.every, args.images)
    print("\n".join(described(matched, foreign.columns)), flush=True)
    with Printer(odd_only=True) as printer:
        return import_demonstrations(matched, args.out, printer)


def _numbers(text: str) -> tuple[int, ...]:
    """``0,3-7`` as numbers; none, which means all, of an empty text.

    Raises:
        UserError: it says none, or something else.
    """
    from diffusion_policy_ros.errors import UserError

    found: list[int] = []
    for part in filter(None, text.split(",")):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or len(part) > 20:
            raise UserError(f"'{part}' is no number", "--episodes", "write them as 0,3-7")
        if dash and int(last) < int(first):
            raise UserError(f"'{part}' ends before it begins", "--episodes", "write them as 0,3-7")
        if dash and int(last) - int(first) > 10_000_000:
            raise UserError(f"'{part}' is too many", "--episodes", "write them as 0,3-7")
        found += range(int(first), int(last or first) + 1)
    if text and not found:
        raise UserError(f"'{text}' names none", "--episodes", "write them as 0,3-7")
    return tuple(found)


def described(matched: Matched, columns: dict[str, Column]) -> Iterator[str]:
    """Where everything will come from, as a table; and what is left out."""
    from diffusion_policy_ros.report.table import table

    rows = [(*row,) for row in _rows(matched, columns)]
    yield from table(HEADS, rows)
    unused = list(matched.matching.unused(columns))
    if unused:
        yield f"not used: {', '.join(unused)}"
    yield ""


def _rows(matched: Matched, columns: dict[str, Column]) -> Iterator[tuple[str, str, str]]:
    contract, matching = matched.contract, matched.matching
    for key, source in matching.observations.items():
        stream = contract.observations[key]
        shape = "x".join(map(str, stream.shape))
        how = [source.how, *([f"{source.turn} to quaternion"] if source.turn else [])]
        theirs = columns[source.columns[0]].shape
        if stream.is_image:
            if theirs and theirs != stream.shape:
                how.append(f"from {'x'.join(map(str, theirs))}")
        elif stream.scale and not matched.is_ours:
            how.append("scaled to SI units")
        yield f"{key} {shape}", source.said(), ", ".join(how)
    size = f"action {contract.action_dim}"
    if matching.action is None:
        yield size, "the next state", "record: next_state in the contract"
    else:
        yield size, matching.action.said(), matching.action.how
