"""The signals that ask a process to stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C; whoever ends processes; the terminal's window or connection, which is gone."""

Handler = Callable[[int, FrameType | None], Any]


def handle_stop_signals(handler: Handler) -> dict[signal.Signals, Any]:
    """Have each call a handler; ``nohup`` keeps SIGHUP away as before.

    Of a terminal that is gone two are sent, by its shell and by the kernel when that ends: the
    second is no second wish.

    Returns:
        Signal → its handler until now, to be put back by `signal.signal`.
    """

    def handle(number: int, frame: FrameType | None) -> Any:
        if number == signal.SIGHUP:
            signal.signal(number, lambda *_: None)
            _silence()
        return handler(number, frame)

    kept_away = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    asked = STOP_SIGNALS[:-1] if kept_away else STOP_SIGNALS
    return {number: signal.signal(number, handle) for number in asked}


def _silence() -> None:
    """Send to nowhere what went to a terminal: to fail there would cost what is to be saved."""
    for output in (1, 2):
        try:
            os.write(output, b"")
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), output)
