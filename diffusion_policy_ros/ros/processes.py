"""The start and the end of a node's process."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import rclpy
from rclpy.exceptions import NameValidationException
from rclpy.signals import SignalHandlerOptions

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.ros.parameters import help_text
from diffusion_policy_ros.ros.qos import wrong_name
from diffusion_policy_ros.stopping import STOP_SIGNALS, handle_stop_signals

_interrupted = threading.Event()
"""A stop signal has come, whoever may have swallowed the exception that it raised."""


def start(args: Sequence[str] | None = None, **options: Any) -> None:
    """`rclpy.init`, for which a word after ``--ros-args`` that it cannot read is a user's error.

    Args:
        args: the command line; the process' own by default.
        options: of `rclpy.init`.

    Raises:
        UserError: the arguments, or the parameter file that they name, cannot be read.
    """
    try:
        rclpy.init(args=None if args is None else list(args), **options)
    except RuntimeError as error:
        what, *_ = str(error).removeprefix("failed to initialize rcl: ").split(", at /")
        cure = "write -p name:=value, -r from:=to or --params-file FILE"
        raise UserError(what, "--ros-args", cure) from None


def failed(error: UserError) -> int:
    """Say what the user can mend; the exit code."""
    print(f"error: {error}", file=sys.stderr)
    return 2


def told_of(
    about: str | None, declare_all: Callable[[Any], object], args: Sequence[str] | None
) -> bool:
    """Print what a node is and which parameters it has, if the command line asks for it.

    Args:
        about: the text of its module.
        declare_all: declares its parameters.
        args: the command line; the process' own by default.
    """
    asked = any(word in ("-h", "--help") for word in (sys.argv if args is None else args))
    if asked:
        print(help_text(about or "", declare_all))
    return asked


def run(
    make: Callable[[], Any],
    declare_all: Callable[[Any], object],
    args: Sequence[str] | None = None,
) -> int:
    """Run a node until a stop signal, or until its future `finished`, then `close()` it.

    Args:
        make: makes the node; a class.
        declare_all: declares its parameters; for `--help`.
        args: the command line; the process' own by default.

    Returns:
        The exit code: 2 after a user's error.
    """
    if told_of(sys.modules[make.__module__].__doc__, declare_all, args):
        return 0
    node: Any = None
    try:
        start(args, signal_handler_options=SignalHandlerOptions.NO)
        node = make()
        done = node.finished
        on_stop_signal(lambda: done.set_result(True))
        rclpy.spin_until_future_complete(node, done)
    except UserError as error:
        return failed(error)
    except NameValidationException as error:
        return failed(wrong_name(error))
    except KeyboardInterrupt:
        pass
    finally:
        if node is not None:
            node.close()
            node.destroy_node()
        rclpy.try_shutdown()
    return 0


def raise_on_stop_signal() -> None:
    """Have the first stop signal raise KeyboardInterrupt; further ones change nothing.

    At a Ctrl-C two come: the terminal's and that of ``ros2 launch``.
    """

    def interrupt(*_: object) -> None:
        _interrupted.set()
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    handle_stop_signals(interrupt)


def on_stop_signal(stop: Callable[[], None]) -> None:
    """Call `stop` on another thread when a stop signal comes; further ones change nothing.

    At once, if one has come before that `raise_on_stop_signal` was to see to: an exception may be
    lost in a callback of somebody else's.

    rclpy's own handlers end DDS at once, and with it the chance to tell the robot to hold.
    Python's run only between two bytecodes of the main thread, which waits in DDS; hence a thread,
    woken by what the signal itself writes.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    handle_stop_signals(lambda *_: None)

    def wait() -> None:
        while ord(os.read(read, 1)) not in STOP_SIGNALS:
            pass
        stop()

    if _interrupted.is_set():
        stop()
    threading.Thread(target=wait, name="signals", daemon=True).start()
