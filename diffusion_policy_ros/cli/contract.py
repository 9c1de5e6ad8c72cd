"""`diffusion-policy contract check FILE`: what a contract means, or all that is wrong in it.

With `--live`: also whether the robot that runs is what it says.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.report.table import table

if TYPE_CHECKING:
    from diffusion_policy_ros.contract import Contract
    from diffusion_policy_ros.ros.live_check import Seen

LIVE_HEADS = ("topic", "type", "from", "rate", "age", "frame", "")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its one action, `check`."""
    parser = subparsers.add_parser(
        "contract", help="check a robot's contract and print what it means", description=__doc__
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    check = actions.add_parser("check", help="print the contract as a table, or its mistakes")
    check.add_argument("file", metavar="FILE", help="a YAML file, or a shipped contract's name")
    check.add_argument("--live", action="store_true", help="compare it with the running robot")
    check.add_argument(
        "--seconds", type=float, default=3.0, metavar="S", help="how long to listen (default 3)"
    )
    check.add_argument(
        "--ros-args",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="…",
        help="what follows is ROS's, as -r __ns:=/left",
    )
    check.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the contract's table, or that of the robot.

    Raises:
        UserError: the contract's mistakes, all at once; the robot is not what it says.
    """
    from diffusion_policy_ros.contract import Contract
    from diffusion_policy_ros.report.contract import contract_lines

    contract = Contract.load(args.file)
    contract.check_outputs()
    if args.live:
        check_live(contract, args)
        return 0
    unknown = check_definitions(contract, args.file)
    print("\n".join([*contract_lines(contract), *unknown]))
    return 0


def check_live(contract: Contract, args: argparse.Namespace) -> None:
    """Print how the running robot is beside its contract.

    Raises:
        UserError: there is no ROS, or they do not fit.
    """
    need_ros("contract check --live")
    from diffusion_policy_ros.ros.live_check import look

    seen = look(contract, args.seconds, args.ros_args)
    print("\n".join(live_lines(seen)), flush=True)
    wrong = [finding for finding in seen.findings if finding.wrong]
    if wrong:
        what = f"{len(wrong)} things are not what the contract says"
        raise UserError(what, args.file, "the table has a cure for each")


def live_lines(seen: Seen) -> Iterator[str]:
    """Yield one line for each topic, and behind it or below what does not fit."""
    rows = []
    for topic in dict.fromkeys((*seen.rows, *(finding.topic for finding in seen.findings))):
        head = (topic or "all", *seen.rows.get(topic, ("-",) * 5))
        said = [finding for finding in seen.findings if finding.topic == topic]
        told = [f"{'' if f.wrong else 'note: '}{f.what}; {f.cure}" for f in said] or ["ok"]
        rows += [(*(head if i == 0 else ("",) * 6), text) for i, text in enumerate(told)]
    yield from table(LIVE_HEADS, rows)
    yield f"frames  {seen.frames}"


def need_ros(where: str) -> None:
    """Refuse what cannot be done without ROS.

    Raises:
        UserError: there is no rclpy.
    """
    if importlib.util.find_spec("rclpy") is None:
        cure = "source /opt/ros/<release>/setup.bash, or pip install -e '.[ros]' (x86-64)"
        raise UserError("there is no rclpy", where, cure)


def check_definitions(contract: Contract, where: str) -> list[str]:
    """Return what cannot be checked here, for its definition is not known.

    Raises:
        UserErrors: a path is not in the message's definition.
    """
    from diffusion_policy_ros.data.definitions import problems
    from diffusion_policy_ros.errors import UserErrors

    found = list(problems(contract))
    wrong = [p for p in found if not p.key.endswith(".type")]
    if wrong:
        raise UserErrors([UserError(f"{p.key}: {p.what}", where, p.cure) for p in wrong])
    return [f"note: {p.key}: {p.what}; {p.cure}" for p in found]
