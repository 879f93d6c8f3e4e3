"""Files that are written whole or not at all, and read only where they are files. No torch in here."""

import contextlib
import csv
import io
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from dermrw.errors import UserError, remedy


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a file for reading, and nothing else: a pipe would be waited for without end, /dev/zero never ends.

    Raises:
        UserError: it is a pipe, a device or a socket.
        OSError: it is absent, a folder, or may not be read.
    """
    mode = Path(path).stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a folder's own error is plain enough
        raise UserError(f"{path} is a pipe or a device: name a file")
    return Path(path).open("rb")


def expand_home(text: str) -> Path:
    """The path, `~` and `~NAME` replaced by the home folder; a ValueError where it can't be one's."""
    if "\0" in text:
        raise ValueError("no path holds the character NUL")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError("there is no such user's home folder: write the whole path") from None


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file so that at any moment, a power cut included, it holds either its old or its new content.

    Where `path` is a link, the file that it leads to is written, and the link stays.

    Raises:
        UserError: the folder is absent or may not be written to, the disk is full, or what is there is no file; the
            old file is whole.
    """
    target = _target(path)
    try:
        with replacing(target) as file:
            file.write(data)
    except OSError as error:
        raise _unwritable(path, error) from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which replaces `path` at the end; after an error the old file stays."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        remove_partial(temporary)
        raise


def csv_text(rows: Iterable[Iterable[object]], line_end: str = "\n", quote_all: bool = False) -> str:
    """The rows as CSV. Floats keep all of their digits."""
    text = io.StringIO()
    quoting: Any = csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL
    csv.writer(text, lineterminator=line_end, quoting=quoting).writerows(rows)
    return text.getvalue()


def predictions_csv(
    image_ids: Iterable[str], columns: Sequence[str], probabilities: Iterable[Iterable[float]]
) -> bytes:
    """Probabilities `[N, C]` in ISIC's format: `image`, one column per class, all digits since rounding makes ties."""
    rows = ([image_id, *row] for image_id, row in zip(image_ids, probabilities, strict=True))
    return csv_text([["image", *columns], *rows]).encode()


def require_writable(path: Path) -> None:
    """Finds out before long work whether `write_atomic` could write this after it; leaves nothing behind.

    Raises:
        UserError: it could not.
    """
    target = _target(path)
    trial = target.with_name(f".{target.name}.attempt")
    try:
        trial.open("wb").close()
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        remove_partial(trial)


def _target(path: Path) -> Path:
    """The file that is replaced when `path` is written: never a device, a pipe or a folder."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path} is there and is no regular file, so it isn't replaced: name another")
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _unwritable(path, error) from None
    return path.resolve()


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} can't be written ({error.strerror}): {remedy(error)}")


def remove_partial(path: Path) -> None:
    """Removes what an interrupted write left, if it can be removed."""
    with contextlib.suppress(OSError):  # in a read-only folder there is nothing to remove
        path.unlink(missing_ok=True)


def walk(root: Path) -> Iterator[Path]:
    """Everything below a folder that is no folder, sorted; links to folders are followed, each folder entered once."""
    entered: set[str] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:  # two links to one folder, or a link back up
            subfolders.clear()
            continue
        entered.add(real)
        subfolders.sort()
        yield from (Path(folder) / name for name in sorted(names))
