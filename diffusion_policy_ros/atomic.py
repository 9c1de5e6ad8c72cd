"""A file is there when it is whole; what was there before stays until then."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusion_policy_ros.errors import UserError


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


def is_over(process: str) -> bool:
    """Whether no other process of that number lives."""
    if not process.isdecimal() or int(process) == os.getpid():
        return process.isdecimal()
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return False


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a draft to write beside a file, which it replaces then; links to it stay links.

    Raises:
        OSError: it could not be written; of the file, whatever it says of the draft.
    """
    whole = path.resolve()
    draft = whole.with_name(f".{whole.name}-{os.getpid()}")
    try:
        yield draft
        draft.replace(whole)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        draft.unlink(missing_ok=True)
