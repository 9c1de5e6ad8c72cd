"""`diffusion-policy`: find the verb, run it, turn a user's mistake into one line and exit code 2.

A verb is a module of this folder, one line in `VERBS`, with two functions:

    def add_parser(subparsers):      # subparsers.add_parser(name, help=…); set_defaults(run=run)
    def run(args) -> int:            # the exit code; raises UserError for a user's mistake

A verb's module imports nothing heavy at its top, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from diffusion_policy_ros import __version__
from diffusion_policy_ros.errors import UserError, refusal
from diffusion_policy_ros.stopping import handle_stop_signals

# verb -> module in this folder, in the order a newcomer needs them.
VERBS = {
    "doctor": "doctor",
    "contract": "contract",
    "record": "record",
    "inspect": "inspect",
    "convert": "convert",
    "import": "import_",
    "data": "data",
    "describe": "describe",
    "weights": "weights",
    "train": "train",
    "eval": "eval",
    "bench": "bench",
    "latency": "latency",
    "replay": "replay",
    "export": "checkpoints",
    "demo": "demo",
}

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE


class Parser(argparse.ArgumentParser):
    """Says a mistake of the command line as any other mistake: in one line."""

    def error(self, message: str) -> NoReturn:
        """End with the line and the exit code of a user's mistake."""
        self.exit(EXIT_USER_ERROR, f"error: {message}; see {self.prog} --help\n")


def build_parser(verbs: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser that knows these verbs; only their modules are imported."""
    parser: argparse.ArgumentParser = Parser(
        prog="diffusion-policy",
        description="Record, convert, train and run a Diffusion Policy on a ROS 2 arm.",
        epilog="diffusion-policy VERB --help explains one verb.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in verbs:
        module = importlib.import_module(f"diffusion_policy_ros.cli.{VERBS[verb]}")
        module.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return the exit code.

    Args:
        argv: the arguments after the program's name; the process' own by default.
    """
    if argv is None:  # what was begun is put away however the process is asked to stop
        handle_stop_signals(signal.default_int_handler)
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may hold bytes that are no text
            stream.reconfigure(errors="backslashreplace")
    named = [words[0]] if words and words[0] in VERBS else list(VERBS)
    try:
        args = build_parser(named).parse_args(words)
        code = int(args.run(args))
        sys.stdout.flush()
        return code
    except UserError as error:
        print_error(error)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output is gone; what is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except OSError as error:
        print_error(refusal(error))
        return EXIT_USER_ERROR


def print_error(error: UserError) -> None:
    """Print one `error: ` line to stderr for each mistake."""
    for line in str(error).splitlines():
        print(f"error: {line}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
