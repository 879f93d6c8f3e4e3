"""The folder of the uploads: made at each start, removed in the end, and the only place where a picture is opened."""

import atexit
import contextlib
import os
import shutil
import stat
import tempfile
from pathlib import Path

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
        while True:
            self.folder = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
            self._held = _lock(self.folder) if fcntl else None
            # before it was locked, another demo's start may have taken it for stale
            if self.folder.exists():
                break
        atexit.register(self.cleanup)

    def cleanup(self) -> None:
        """Removes all."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def own(self, path: object) -> str | None:
        """The path as it is to be opened, if it is a file that was uploaded here; else None.

        Of a path outside the folder not even whether it exists is looked up.
        """
        if not isinstance(path, str):
            return None
        plain = Path(os.path.normpath(path))
        if not plain.is_relative_to(self.folder):
            return None
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # absent; no path at all; a link to itself
            real = plain.resolve(strict=True)
            if real.is_relative_to(self.folder) and stat.S_ISREG(real.lstat().st_mode):
                return str(real)
        return None
