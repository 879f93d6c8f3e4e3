"""The folder of the uploads: made at each start, removed in the end, and the only place where a picture is opened."""

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
except ImportError:  # Windows: what a killed demo leaves behind stays there
    fcntl = None  # type: ignore[assignment]

PREFIX = "dermrw-demo-"


def _lock(folder: Path, how: int = 0) -> int | None:
    """A descriptor that holds our own folder's lock until it is closed or the process dies; None: it can't be had."""
    descriptor = None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        if os.fstat(descriptor).st_uid == os.getuid():
            fcntl.flock(descriptor, fcntl.LOCK_EX | how)
            return descriptor
    except OSError:
        pass
    if descriptor is not None:
        os.close(descriptor)
    return None


def clear_stale() -> None:
    """Removes the folders of killed demos. One that runs holds its folder's lock, and another user's isn't ours."""
    if fcntl is None:
        return
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        descriptor = _lock(folder, fcntl.LOCK_NB)
        if descriptor is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)


class Uploads:
    """This process's folder."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        while True:
            self.folder = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
            self._held = _lock(self.folder) if fcntl else None
            # before it was locked, another demo's start may have taken it for stale
            if self.folder.exists():
                break
        atexit.register(self.cleanup)

    def cleanup(self) -> None:
        """Removes all."""
        self._ended.set()
        shutil.rmtree(self.folder, ignore_errors=True)

    def take(self, path: object) -> bytes | None:
        """An upload's content, which is then no longer on the disk; None: there is no such upload."""
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
        """Removes an upload, and the folder that it alone lies in."""
        if own := self.own(path):
            with contextlib.suppress(OSError):
                Path(own).unlink()
                if Path(own).parent != self.folder:
                    Path(own).parent.rmdir()

    def touch(self, path: str) -> None:
        """Has it swept later."""
        with contextlib.suppress(OSError):
            os.utime(path, follow_symlinks=False)

    def size(self) -> int:
        """Bytes of all uploads."""
        return sum(status.st_size for _, status in self._files())

    def room(self) -> int:
        """Bytes that the disk has left."""
        return shutil.disk_usage(self.folder).free

    def sweep(self, seconds: float) -> None:
        """Removes what came longer ago than this and was never asked about: a page that was closed, a torn upload."""
        for path, status in self._files():
            if time.time() - status.st_mtime > seconds:
                self.drop(str(path))

    def keep_sweeping(self, every: float, seconds: float, *more: Callable[[], None]) -> None:
        """Sweeps in the background until the program ends, and does what else is to be done then."""

        def work() -> None:
            while not self._ended.wait(every):
                self.sweep(seconds)
                for one in more:
                    one()

        threading.Thread(target=work, name="sweeper", daemon=True).start()

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for folder, _, names in os.walk(self.folder):  # a folder that vanishes meanwhile is passed over
            for name in names:
                with contextlib.suppress(OSError):
                    path = Path(folder, name)
                    yield path, path.lstat()

    def place(self, path: object) -> str | None:
        """The path without detours, if it is one in the folder; whether a file is there is not looked up."""
        if not isinstance(path, str) or "\0" in path:
            return None
        plain = Path(os.path.normpath(path))
        return str(plain) if plain.is_relative_to(self.folder) and plain != self.folder else None

    def known(self, path: object) -> str | None:
        """The path of an upload, or of one that is no longer there; None for anything else."""
        plain = self.place(path)
        return plain if plain and (self.own(plain) or not os.path.lexists(plain)) else None

    def own(self, path: object) -> str | None:
        """The path as it is to be opened, if it is a file that was uploaded here; else None.

        Of a path outside the folder not even whether it exists is looked up.
        """
        plain = self.place(path)
        if plain is None:
            return None
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # absent; no path at all; a link to itself
            real = Path(plain).resolve(strict=True)
            if real.is_relative_to(self.folder) and stat.S_ISREG(real.lstat().st_mode):
                return str(real)
        return None
