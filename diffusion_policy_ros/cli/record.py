"""`diffusion-policy record`: demonstrations by the keys of a terminal, and what comes, live."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import shlex
import shutil
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from diffusion_policy_ros.cli.contract import need_ros
from diffusion_policy_ros.report.table import table

if TYPE_CHECKING:
    from diffusion_policy_ros.ros.recording import Recording

HEADS = ("topic", "count", "rate", "age", "")
KEYS = "space: start, keep as success   f: keep as failure   d: discard   q: quit"
SILENT_S = 1.0
"""What came before, and has not for so long, is said to be silent."""
PERIOD_S = 0.1
WAYS_TO_KEEP = {" ": True, "s": True, "f": False}
"""Key → the label that an episode is kept with."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "record",
        help="record demonstrations, or whatever is there, by keys of the terminal",
        description="Record demonstrations, one bag an episode: start, keep, discard and label by "
        "keys, with count, rate and age of every topic. Without a contract all that is published "
        "is recorded: inspect drafts a contract from that.",
        epilog=f"Keys: {KEYS.replace('   ', '; ')}. An interruption keeps what is being recorded.",
    )
    parser.add_argument("--contract", metavar="C", help="a file, or a shipped contract's name")
    parser.add_argument("--out", default="bags", help="folder for the episodes (default: bags)")
    parser.add_argument(
        "--topics", nargs="+", default=[], metavar="T", help="without a contract: only these"
    )
    parser.add_argument(
        "--extra-topics", nargs="+", default=[], metavar="T", help="beside those of the contract"
    )
    parser.add_argument(
        "--ros-args",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="…",
        help="what follows is ROS's, as -r __ns:=/left",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Record until the person quits.

    Raises:
        UserError: no ROS, or a contract with mistakes.
    """
    need_ros("record")
    from diffusion_policy_ros.ros.processes import raise_on_stop_signal
    from diffusion_policy_ros.ros.recording import Recording

    raise_on_stop_signal()
    recording = Recording(parameters(args), args.ros_args)
    screen = Screen()
    try:
        with key_by_key():
            attend(recording, screen)
    finally:
        with contextlib.suppress(OSError):  # the terminal may be gone
            screen.show([])
        if kept := recording.close():
            print(f"kept what came: {kept}")
    print(following(args))
    return 0


def parameters(args: argparse.Namespace) -> dict[str, object]:
    """Return the recorder's parameters."""
    found: dict[str, object] = {"out": args.out}
    if args.contract:
        found["contract"] = args.contract
    elif not args.topics:
        found["all"] = True
    for name in ("topics", "extra_topics"):
        if getattr(args, name):
            found[name] = getattr(args, name)
    return found


def following(args: argparse.Namespace) -> str:
    """Return what to do next."""
    if args.contract:
        return f"next: diffusion-policy convert {shlex.quote(args.out)} --out dataset"
    bag = shlex.quote(f"{args.out}/EPISODE")
    return f"next: diffusion-policy inspect {bag} --draft my_arm.yaml"


def attend(recording: Recording, screen: Screen) -> None:
    """Show how it is, and do what keys say, until `q` or the input's end."""
    screen.say(KEYS)
    while True:
        time.sleep(PERIOD_S)
        screen.show([*lines(recording.text, recording.values), KEYS])
        key = pressed()
        if key in ("q", ""):
            return
        if key is not None and (said := do(recording, key)):
            screen.say(said)


def do(recording: Recording, key: str) -> str:
    """Do what a key says; the answer, or nothing where it says nothing."""
    if key in WAYS_TO_KEEP and recording.is_recording:
        return recording.keep(WAYS_TO_KEEP[key])
    if key == "d":
        return recording.ask("discard")
    return recording.ask("start") if key in (" ", "s") else ""


def lines(text: str, values: Mapping[str, str]) -> Iterator[str]:
    """Yield what is shown of a recorder's figures."""
    kept = [f"{values.get(f'kept as {end}', 0)} as {end}" for end in ("success", "failure")]
    seconds = f", {values['recorded_s']} s" if "recorded_s" in values else ""
    yield f"{text}{seconds}; kept {', '.join(kept)}; discarded {values.get('discarded', 0)}"
    yield from table(HEADS, list(rows(values)))


def rows(values: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    """Yield one line for each topic."""
    for key, count in values.items():
        topic, _, name = key.rpartition(".")
        if name != "count":
            continue
        age = values[f"{topic}.age_s"]
        silent = "SILENT" if age != "never" and float(age) > SILENT_S else ""
        wrong = values.get(f"{topic}.problem", silent)
        unit = "" if age == "never" else " s"
        yield (topic, count, f"{values[f'{topic}.rate_hz']} Hz", f"{age}{unit}", wrong)


class Screen:
    """Lines that are said once, and below them, on a terminal, such as change."""

    def __init__(self) -> None:
        self._shown: list[str] = []
        self._live = sys.stdout.isatty()

    def say(self, text: str) -> None:
        """Print a line for good."""
        self._erase()
        print(text, flush=True)

    def show(self, lines: list[str]) -> None:
        """Show these lines in place of those before."""
        if self._live and lines != self._shown:
            self._erase()
            width = shutil.get_terminal_size().columns
            print("".join(f"{line[: width - 1]}\n" for line in lines), end="", flush=True)
            self._shown = lines

    def _erase(self) -> None:
        if self._shown:
            print(f"\x1b[{len(self._shown)}F\x1b[J", end="")
        self._shown = []


def pressed() -> str | None:
    """Return the key that was pressed; None where none was, nothing at the input's end."""
    if not select.select([sys.stdin], [], [], 0)[0]:
        return None
    return os.read(sys.stdin.fileno(), 1).decode(errors="replace")


@contextlib.contextmanager
def key_by_key() -> Iterator[None]:
    """Have a terminal hand over every key at once, for the time being."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):  # it may be gone
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
