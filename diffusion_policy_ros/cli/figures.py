"""What a verb was given, refused before minutes of work and not after; its file of figures."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path

from diffusion_policy_ros.atomic import check_file, replacing
from diffusion_policy_ros.errors import UserError


def check_least(args: argparse.Namespace, **lowest: int) -> None:
    """Refuse numbers that mean nothing.

    Args:
        args: the command line; an option that was not given is None.
        lowest: name of an option -> its least value.

    Raises:
        UserError: one is below it.
    """
    for name, least in lowest.items():
        value = getattr(args, name)
        if value is not None and value < least:
            cure = f"{name} must be {least} or more"
            raise UserError("is out of range", f"--{name} {value}", cure)


def check_seed(seed: int | None, most: int = 2**31 - 1) -> None:
    """Refuse a seed that is none; None was not given.

    Raises:
        UserError: it is negative, or larger than a node's parameter.
    """
    if seed is not None and not 0 <= seed <= most:
        cure = f"seed must be 0 or more, and {most} at most"
        raise UserError("is out of range", f"--seed {seed}", cure)


def check_threads(threads: int | None) -> None:
    """Refuse more threads than cores; None and 0 leave the choice to torch.

    Raises:
        UserError: there are not so many.
    """
    cores = os.cpu_count() or 1
    if threads is not None and not 0 <= threads <= cores:
        cure = f"use 1 to {cores}, the cores that there are; 0 leaves the choice to torch"
        raise UserError("is out of range", f"--threads {threads}", cure)


def check_picture(path: Path | None) -> None:
    """The same for --plot, which draws a PNG.

    Raises:
        UserError: as `check_file`, or the name is of another kind of file.
    """
    _check_kind(path, "--plot", "the picture is a PNG", ".png")


def check_json(path: Path | None) -> None:
    """The same for --json."""
    _check_kind(path, "--json", "the figures are JSON", ".json")


def check_page(path: Path | None) -> None:
    """The same for --out of a page."""
    _check_kind(path, "--out", "the page is HTML", ".html", ".htm")


def _check_kind(path: Path | None, option: str, what: str, *suffixes: str) -> None:
    """A word at the wrong place must not replace a bag or a dataset's index."""
    if path is not None and path.suffix.lower() not in suffixes and not path.is_dir():
        raise UserError(what, f"{option} {path}", f"end the name in {suffixes[0]}")
    check_file(path, option)


def counted(count: int, noun: str) -> str:
    """'1 episode', '2 episodes'."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def write_json(path: Path | None, figures: Mapping[str, object]) -> None:
    """Write the figures; None is no file."""
    if path is not None:
        with replacing(path) as draft:
            draft.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
