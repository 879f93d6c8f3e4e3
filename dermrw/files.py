"""Files that are written whole or not at all. No torch in here."""

import contextlib
import os
from pathlib import Path

from dermrw.errors import UserError


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file so that at any moment, a power cut included, it holds either its old or its new content.

    Raises:
        UserError: the folder is absent or may not be written to, or the disk is full; the old file is whole.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        remove_partial(temporary)
        raise UserError(
            f"{path} can't be written ({error.strerror}): free some space, or name a place that may be written to"
        ) from None


def remove_partial(path: Path) -> None:
    """Removes what an interrupted write left, if it can be removed."""
    with contextlib.suppress(OSError):  # in a read-only folder there is nothing to remove
        path.unlink(missing_ok=True)
