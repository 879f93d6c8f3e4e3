"""The folder of uploads: created at each start, removed at the end. No upload is opened anywhere else."""

import atexit
import contextlib
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dermrw.files import open_regular

try:
    import fcntl
except ImportError:  # Windows: the folder of a killed demo is not cleared
    fcntl = None  # type: ignore[assignment]

PREFIX = "dermrw-demo-"


def _lock(folder: Path, flags: int = 0) -> int | None:
    """Locks a folder of this user. Returns the descriptor that holds the lock; None if it can't be locked."""
    descriptor = None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        if os.fstat(descriptor).st_uid == os.getuid():
            fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
            return descriptor
    except OSError:
        pass
    if descriptor is not None:
        os.close(descriptor)
    return None


def clear_stale() -> None:
    """Removes the folders of killed demos. A running demo holds its folder's lock; other users' folders stay."""
    if fcntl is None:
        return
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        descriptor = _lock(folder, fcntl.LOCK_NB)
        if descriptor is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)


class Uploads:
    """The folder of this process."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        while True:
            self.folder = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
            self._held = _lock(self.folder) if fcntl else None
            # before it was locked, another demo may have removed it as stale
            if self.folder.exists():
                break
        atexit.register(self.cleanup)

    def cleanup(self) -> None:
        """Removes the folder."""
        self._ended.set()
        shutil.rmtree(self.folder, ignore_errors=True)

    def take(self, path: object) -> bytes | None:
        """Returns an upload's content and removes its file; None if there is no such upload."""
        own = self.own(path)
        if own is None:
            return None
        try:
            with open_regular(own) as file:
                return file.read()
        except OSError:
            return None
        finally:
            self.drop(own)

    def drop(self, path: object) -> None:
        """Removes an upload and its own folder."""
        if own := self.own(path):
            with contextlib.suppress(OSError):
                Path(own).unlink()
                if Path(own).parent != self.folder:
                    Path(own).parent.rmdir()

    def touch(self, path: str) -> None:
        """Postpones the sweeping of an upload."""
        with contextlib.suppress(OSError):
            os.utime(path, follow_symlinks=False)

    def size(self) -> int:
        """Returns the size of all uploads in bytes."""
        return sum(status.st_size for _, status in self._files())

    def free_space(self) -> int:
        """Returns the disk's free space in bytes."""
        return shutil.disk_usage(self.folder).free

    def sweep(self, seconds: float) -> None:
        """Removes uploads older than this: of pages that were closed, or of connections that broke."""
        for path, status in self._files():
            if time.time() - status.st_mtime > seconds:
                self.drop(str(path))

    def keep_sweeping(self, every: float, seconds: float, *tasks: Callable[[], None]) -> None:
        """Runs `sweep(seconds)` and the tasks in the background, at this interval, until the program ends."""

        def work() -> None:
            while not self._ended.wait(every):
                self.sweep(seconds)
                for task in tasks:
                    task()

        threading.Thread(target=work, name="sweeper", daemon=True).start()

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for folder, _, names in os.walk(self.folder):  # skips folders that are removed in the meantime
            for name in names:
                with contextlib.suppress(OSError):
                    path = Path(folder, name)
                    yield path, path.lstat()

    def place(self, path: object) -> str | None:
        """Returns the normalised path if it is inside the folder, else None. It does not access the disk."""
        if not isinstance(path, str) or "\0" in path:
            return None
        plain = Path(os.path.normpath(path))
        return str(plain) if plain.is_relative_to(self.folder) and plain != self.folder else None

    def known(self, path: object) -> str | None:
        """Returns the path of an upload, also of one that was removed; None for any other path."""
        plain = self.place(path)
        return plain if plain and (self.own(plain) or not os.path.lexists(plain)) else None

    def own(self, path: object) -> str | None:
        """Returns the real path of an uploaded file, else None.

        For a path outside the folder, it does not even look up whether the path exists.
        """
        plain = self.place(path)
        if plain is None:
            return None
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # absent, not a valid path, or a link to itself
            real = Path(plain).resolve(strict=True)
            if real.is_relative_to(self.folder) and stat.S_ISREG(real.lstat().st_mode):
                return str(real)
        return None
