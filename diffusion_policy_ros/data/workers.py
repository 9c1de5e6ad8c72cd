"""Processes that work for this one, and end with it however it ends."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def pool(jobs: int, begin: Callable[..., None] | None = None, *args: Any) -> ProcessPoolExecutor:
    """Processes that each begin with begin(*args).

    They are not forked: neither an OpenGL context nor a running thread survives that. Where this
    process is killed, they would wait for work for ever, so each looks out for its end.
    """
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, context, _begin, (begin, *args))


def _begin(begin: Callable[..., None] | None, *args: Any) -> None:
    end_with_parent()
    if begin is not None:
        begin(*args)


def end_with_parent() -> None:
    """Have this process, which another one started, end when that one does."""
    threading.Thread(target=_wait_for_its_end, daemon=True).start()


def _wait_for_its_end() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
