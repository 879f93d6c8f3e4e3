"""Reading of regular files only, and atomic writing of files. This module does not import torch."""

import contextlib
import csv
import errno
import glob
import io
import os
import shutil
import stat
import time
import uuid
from argparse import ArgumentTypeError
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from dermrw.errors import UserError, remedy

ABANDONED_SECONDS = 3600  # no file is written for longer
# folders of operating systems on a disk, which only an administrator can read
OF_THE_SYSTEM = ("lost+found", "System Volume Information", "$RECYCLE.BIN")


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a regular file for reading. Reading from a pipe or from /dev/zero might never end.

    Raises:
        UserError: the path is a pipe, a device or a socket.
        OSError: the path is absent or a folder, or reading is not permitted.
    """
    mode = Path(path).stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # for a folder, `open` raises a clear error
        raise UserError(f"{path} is a pipe or a device: name a file")
    return Path(path).open("rb")


def filled(text: str) -> str:
    """Returns an argument of a command, which must not be empty; the `type` of such arguments.

    Raises:
        ArgumentTypeError: it is empty, as that of a variable which the shell does not know.
    """
    if not text.strip():
        raise ArgumentTypeError("it is empty: name a file or folder")
    return text


def path_argument(text: str) -> Path:
    """Returns the path that an argument of a command names. `Path("")` would be the current folder.

    Raises:
        ArgumentTypeError: it is empty.
    """
    return Path(filled(text))


def expand_home(text: str) -> Path:
    """Returns the path with `~` or `~NAME` replaced with the home folder.

    Raises:
        ValueError: the text is not a valid path, or there is no such home folder.
    """
    if "\0" in text:
        raise ValueError("a path can't contain the character NUL")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError("this user has no home folder: write the full path") from None


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file atomically: it holds either its old or its new content at any time, even after a power cut.

    If `path` is a link, the file that it points to is written, and the link is kept.

    Raises:
        UserError: the folder is absent or not writable, the disk is full, or the path is not a regular file. The old
            file is kept.
    """
    target = resolved_target(path)
    try:
        with replacing(target) as file:
            file.write(data)
    except OSError as error:
        raise _unwritable(path, error) from None


@contextlib.contextmanager
def writing_atomic(path: Path) -> Iterator[BinaryIO]:
    """Context manager that yields a file to write to, for content that is too large for `write_atomic`.

    Raises:
        UserError: as of `write_atomic`.
    """
    target = resolved_target(path)
    try:
        with replacing(target) as file:
            yield file
    except OSError as error:
        raise _unwritable(path, error) from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Context manager that yields a file to write to, which replaces `path` at the end. An error keeps the old file.

    Each writer has a file of its own, so of several at the same time, the last one's content is kept, whole. Files that
    killed processes left are removed.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????.partial"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                left.unlink()
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        remove_partial(temporary)
        raise


def csv_text(rows: Iterable[Iterable[object]], line_end: str = "\n", quote_all: bool = False) -> str:
    """Returns the rows as CSV. Floats keep all of their digits."""
    text = io.StringIO()
    quoting: Any = csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL
    csv.writer(text, lineterminator=line_end, quoting=quoting).writerows(rows)
    return text.getvalue()


def predictions_csv(
    image_ids: Iterable[str], columns: Sequence[str], probabilities: Iterable[Iterable[float]]
) -> bytes:
    """Returns probabilities `[N, C]` as CSV in ISIC's format: the column `image`, then one column per class.

    Probabilities keep all digits, because rounding would create ties.
    """
    rows = ([image_id, *row] for image_id, row in zip(image_ids, probabilities, strict=True))
    return csv_text([["image", *columns], *rows]).encode()


def require_writable(path: Path) -> None:
    """Checks, before a long computation, that `write_atomic` can write this path. It leaves no file behind.

    Raises:
        UserError: the path can't be written.
    """
    target = resolved_target(path)
    trial = target.with_name(f".{target.name}.attempt")
    try:
        trial.open("wb").close()
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        remove_partial(trial)


def reserve(path: Path, size: int, contents: str) -> None:
    """Creates a file of `size` zero bytes and reserves its space, so that writing through a memory map can't fail.

    Raises:
        UserError: the disk has too little space, or the folder can't be written to. `contents` says what is stored.
    """
    try:
        with path.open("wb") as file:
            if free_bytes(path) < size:
                raise OSError(errno.ENOSPC, "No space left on device")
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
    except OSError as error:
        remove_partial(path)
        if error.errno == errno.ENOSPC:
            raise UserError(
                f"{contents} need {size / 1e9:.1f} GB at {path.parent}, which has {free_bytes(path.parent) / 1e9:.1f} "
                "GB free: free some space, or name a folder on another disk"
            ) from None
        raise _unwritable(path, error) from None


def free_bytes(path: Path) -> int:
    """Returns the free space in bytes of the disk that holds the path."""
    return shutil.disk_usage(path).free


def resolved_target(path: Path) -> Path:
    """Returns the file to replace when `path` is written, with links resolved.

    Raises:
        UserError: the path is a device, a pipe or a folder.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path} exists and is not a regular file: name another")
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _unwritable(path, error) from None
    return path.resolve()


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} can't be written ({error.strerror}): {remedy(error)}")


def remove_partial(path: Path) -> None:
    """Removes the temporary file of an interrupted write, if possible."""
    with contextlib.suppress(OSError):  # in a read-only folder there is nothing to remove
        path.unlink(missing_ok=True)


def walk(
    root: Path, strict: bool = False, hidden: bool = True, again: dict[Path, Path] | None = None
) -> Iterator[Path]:
    """Yields every file below a folder, sorted. Links to folders are followed, and each folder is visited once.

    Args:
        root: the folder.
        strict: whether a folder that can't be read is an error, and not left out. Hidden folders and those of an
            operating system are left out.
        hidden: whether hidden files and folders, and folders of resource forks (`__MACOSX`), are entered.
        again: to be extended with the folders that are not visited again, because they are links; and where they are.

    Raises:
        UserError: a folder can't be read.
    """

    def refuse(error: OSError) -> None:
        name = Path(error.filename).name
        if strict and not name.startswith(".") and name not in OF_THE_SYSTEM:
            raise UserError(f"the folder {error.filename} can't be read ({error.strerror}): {remedy(error)}") from None

    entered: dict[str, Path] = {}
    for folder, subfolders, names in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:  # two links to one folder, or a link back up
            subfolders.clear()
            if again is not None:
                again[Path(folder)] = entered[real]
            continue
        entered[real] = Path(folder)
        subfolders[:] = sorted(name for name in subfolders if hidden or not _is_hidden(name))
        yield from (Path(folder) / name for name in sorted(names) if hidden or not _is_hidden(name))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
