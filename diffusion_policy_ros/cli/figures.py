"""The file that a verb writes its figures to, refused before minutes of work instead of after."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from diffusion_policy_ros.errors import UserError


def check_json(path: Path | None) -> None:
    """Make the file's folder; None is no file.

    Raises:
        UserError: there is a folder of that name, or nothing can be made there.
    """
    if path is None:
        return
    if path.is_dir():
        raise UserError("is a folder", str(path), "give --json a file's name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        path.open("a").close()
        if is_new:
            path.unlink()
    except OSError as error:
        why = f"cannot be written ({error.strerror})"
        raise UserError(why, str(path), "choose another file for --json") from None


def write_json(path: Path | None, figures: Mapping[str, object]) -> None:
    """Write the figures; None is no file."""
    if path is not None:
        path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
