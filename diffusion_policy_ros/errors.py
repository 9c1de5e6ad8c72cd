"""One kind of error for users: what is wrong, where, and the cure.

The command line prints one line for each and exits with 2; so does a node, unless it waits to be
configured again. Everything else that is raised is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
import errno
import os
import textwrap
from collections.abc import Iterable, Sequence

LONGEST = 500
"""Characters that are said of what is wrong: a value that was found may be a whole file."""


# What the system refuses -> the cure. Any other refusal is a bug of ours and keeps its traceback.
SYSTEM_CURES = {
    errno.EACCES: "change its permissions, or choose another path",
    errno.EPERM: "change its permissions, or choose another path",
    errno.EROFS: "choose a path that can be written",
    errno.ENOSPC: "make room, or choose another disk",
    errno.EDQUOT: "make room, or choose another disk",
    errno.EFBIG: "choose a disk that takes larger files",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "choose another path: a part of this one is a file",
    errno.EISDIR: "give a file",
    errno.EEXIST: "choose another path",
    errno.EXDEV: "choose a path on the same disk",
    errno.EIO: "check the disk",
}


class UserError(Exception):
    """A mistake that the user can mend.

    Args:
        what: what is wrong, with the value that was found.
        where: file, topic, key or line it was found at.
        cure: what to do about it.
    """

    def __init__(self, what: str, where: str = "", cure: str = "") -> None:
        super().__init__(what, where, cure)
        self.what, self.where, self.cure = what, where, cure

    def __str__(self) -> str:
        what = self.what if len(self.what) <= LONGEST else f"{self.what[:LONGEST]}..."
        text = f"{self.where}: {what}" if self.where else what
        line = " ".join((f"{text}; {self.cure}" if self.cure else text).split())
        return line if line.isprintable() else "".join(map(_shown, line))


class UserErrors(UserError):
    """Several mistakes found in one go, one line each."""

    def __init__(self, errors: Sequence[UserError]) -> None:
        first = errors[0]
        super().__init__(first.what, first.where, first.cure)
        self.errors = list(errors)

    def __reduce__(self) -> tuple[type[UserErrors], tuple[list[UserError]]]:
        """As what a process sends to another one."""
        return type(self), (self.errors,)

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


def _shown(letter: str) -> str:
    """What a damaged file holds must not reach a terminal as a command to it."""
    return letter if letter.isprintable() else ascii(letter)[1:-1]


def first_line(error: Exception) -> str:
    """The first line of what another library raised, for a line of our own."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def names_said(names: Iterable[str]) -> str:
    """Names in a row; of many the first, none of them cut in two."""
    return textwrap.shorten(", ".join(names), 200, placeholder=" ...")


def did_you_mean(name: object, valid: Iterable[str]) -> str:
    """The cure for an unknown name: the near one, or the list of valid ones."""
    names = list(valid)
    near = difflib.get_close_matches(str(name), names, n=1)
    return f"did you mean '{near[0]}'?" if near else "use one of: " + ", ".join(names)


def refusal(error: OSError) -> UserError:
    """What the system refused, as a user's error.

    Raises:
        OSError: it is none of `SYSTEM_CURES`, so it is for us to mend.
    """
    if error.errno not in SYSTEM_CURES:
        raise error
    where = str(error.filename or "")
    where = f"{where[:200]}..." if len(where) > 200 else where
    return UserError(os.strerror(error.errno or 0).lower(), where, SYSTEM_CURES[error.errno])
