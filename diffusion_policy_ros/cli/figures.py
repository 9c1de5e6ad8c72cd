"""What a verb was given, refused before minutes of work and not after; its file of figures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

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
            raise UserError(f"{name} must be {least} or more", f"--{name} {value}", "mend it")


def check_file(path: Path | None, option: str) -> None:
    """Make the folder of an option's file; None is no file.

    Raises:
        UserError: there is a folder of that name, or nothing can be made there.
    """
    if path is None:
        return
    if path.is_dir():
        raise UserError("is a folder", str(path), f"give {option} a file's name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        path.open("a").close()
        if is_new:
            path.unlink()
    except OSError as error:
        why = f"cannot be written ({error.strerror})"
        raise UserError(why, str(path), f"choose another file for {option}") from None


def check_json(path: Path | None) -> None:
    """The same for --json."""
    check_file(path, "--json")


def write_json(path: Path | None, figures: Mapping[str, object]) -> None:
    """Write the figures; None is no file."""
    if path is not None:
        path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
