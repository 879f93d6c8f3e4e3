"""The rows of an unfinished `dermrw predict` or `dermrw score`: a file from which the same command continues.

The file is JSON Lines: a header with the digest of the settings, then one line per image, in the order of the images.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from dermrw.errors import UserError
from dermrw.inference.image_rows import BATCH, ImageRow
from dermrw.inference.verdict import Verdict

try:
    import fcntl
except ImportError:  # Windows: two runs into one file are not noticed there
    fcntl = None  # type: ignore[assignment]

PROGRAM = "dermrw predict, unfinished"
FORMAT = f"{PROGRAM}, 2"
SYNC_SECONDS = 5.0  # between two syncs to the disk: more could be lost only by a power cut


class RowFile:
    """Rows in a file, which a killed run leaves behind. At most one run writes a file at a time.

    Use it as a context manager. After `finish`, closing deletes the file.
    """

    def __init__(self, path: Path, digest: str, image_ids: Sequence[str], option: str = "--csv") -> None:
        """Opens the file and keeps the rows of an earlier run with the same digest.

        Args:
            path: of the file.
            digest: of everything that determines the rows.
            image_ids: of all rows that the file will have.
            option: of the command, that names the output; for messages.

        Raises:
            UserError: the file is another program's, another run writes it, or it can't be written.
        """
        self.path, self._count, self._synced, self._done = path, 0, time.monotonic(), False
        self._fix = f"name another {'file' if option == '--csv' else 'folder'} with {option}"
        self.other = False  # whether the file had rows of another model or of other images, which were dropped
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
            self._lock()
            self._resume(digest, image_ids)
        except OSError as error:
            raise UserError(f"{path} can't be written ({error.strerror}): {self._fix}") from None

    def _lock(self) -> None:
        try:
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UserError(f"another run writes {self.path}: wait for it, or {self._fix}") from None

    def _resume(self, digest: str, image_ids: Sequence[str]) -> None:
        header = json.dumps({"format": FORMAT, "digest": digest}).encode() + b"\n"
        first = self._file.readline()
        if first == header:
            self._keep_whole_batches(image_ids)
            return
        if first and not (first.startswith(f'{{"format": "{PROGRAM}'.encode()) or header.startswith(first)):
            self._file.close()
            raise UserError(f"{self.path} was not written by dermrw: move it, or {self._fix}")
        self.other = bool(first.endswith(b"\n"))
        self._file.seek(0)
        self._file.truncate()
        self._file.write(header)
        self._file.flush()

    def _keep_whole_batches(self, image_ids: Sequence[str]) -> None:
        """Cuts off everything after the last whole batch: a row that was cut short, or zeros after a power cut."""
        end, count = self._file.tell(), 0
        position = end
        while line := self._file.readline():
            try:
                whole = line.endswith(b"\n") and _decode(line).image_id == image_ids[count]
            except (ValueError, LookupError, TypeError):
                whole = False
            if not whole:
                break
            count, position = count + 1, position + len(line)
            if count % BATCH == 0 or count == len(image_ids):
                end, self._count = position, count
        self._file.seek(end)
        self._file.truncate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._done and fcntl is not None:  # while it is locked
            self.path.unlink(missing_ok=True)
        self._file.close()
        if self._done and fcntl is None:  # Windows does not delete open files
            self.path.unlink(missing_ok=True)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[ImageRow]:
        self._file.flush()
        with self.path.open("rb") as file:
            file.readline()
            yield from map(_decode, file)

    def extend(self, rows: Sequence[ImageRow]) -> None:
        """Appends rows, so that they survive the end of this process, and every few seconds syncs them to the disk."""
        self._file.write(b"".join(map(_encode, rows)))
        self._file.flush()
        self._count += len(rows)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def finish(self) -> None:
        """Marks the rows as used, so that the file is deleted when it is closed."""
        self._done = True


def _encode(row: ImageRow) -> bytes:
    v = row.verdict
    decisions = (v.refused, v.classes, v.refer, v.malignant, v.malignancy_score)
    cells = [row.image_id, row.probabilities, *decisions, row.notes, row.error]
    return json.dumps([*cells, row.hashes] if row.hashes else cells).encode() + b"\n"


def _decode(line: bytes) -> ImageRow:
    image_id, probabilities, refused, classes, refer, malignant, score, notes, error, *hashes = json.loads(line)
    image_verdict = Verdict(refused, tuple(classes), refer, tuple(malignant), score)
    known = [(first, second) for first, second in hashes]
    return ImageRow(image_id, tuple(probabilities), image_verdict, tuple(notes), error, known[0] if known else None)
