"""The folder of the uploads: made at each start, removed in the end, and the only place where a picture is opened."""

import atexit
import contextlib
import os
import shutil
import stat
import tempfile
from pathlib import Path

PREFIX = "dermrw-demo-"


class Uploads:
    """This process's folder."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
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
