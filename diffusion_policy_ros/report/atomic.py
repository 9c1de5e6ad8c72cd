"""A report's file is there when it is whole; what was there before stays until then."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
