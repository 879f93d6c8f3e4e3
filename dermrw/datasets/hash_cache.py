"""Perceptual hashes of image files that are kept between runs, in the user's cache folder.

An entry counts only for a file of the same path, size and time of modification, so a changed file is hashed again. The
cache may be deleted at any time.
"""

import csv
import io
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock
from tqdm import tqdm

from dermrw.errors import UserError
from dermrw.files import csv_text, expand_home, write_atomic
from dermrw.formatting import counted
from dermrw.images.preprocess import evaluation_pixels
from dermrw.inference.known_images import ImageHash, image_hash

FORMAT = 1  # of the file; to be raised if the hashes or the pixels that they are of change
SIDE = 224  # pixels of the square that is hashed
LONGEST_WAIT = 60  # seconds for another run's writing
Key = tuple[str, int, int]  # absolute path, bytes, nanoseconds


def hash_images(paths: Iterable[str]) -> dict[str, ImageHash]:
    """Returns the perceptual hashes of image files by path, without those that cannot be read; with a progress bar."""
    cache = HashCache.of(SIDE)
    unique = [path for path in dict.fromkeys(paths) if path]
    known = {path: value for path in unique if (value := cache.get(path)) is not None}
    missing = [path for path in unique if path not in known]
    if not missing:
        return known

    def hashed(path: str) -> ImageHash | None:
        try:
            return image_hash(evaluation_pixels(path, SIDE))
        except UserError:
            return None

    images = counted(len(missing), "image")
    print(f"Computing perceptual hashes of {images} to find copies, to be kept in {cache.path}", flush=True)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = tqdm(pool.map(hashed, missing), "Hashing", len(missing), unit="image", leave=False)
        fresh = {path: value for path, value in zip(missing, results, strict=True) if value is not None}
    cache.add(fresh)
    return known | fresh


class HashCache(NamedTuple):
    """The hashes in a file."""

    path: Path
    entries: dict[Key, ImageHash]

    @classmethod
    def of(cls, side: int) -> "HashCache":
        """Returns the cache of the hashes of pixels `[side, side, 3]`; a damaged file counts as empty."""
        folder = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        path = expand_home(folder) / "dermrw" / f"image_hashes_{side}_{FORMAT}.csv"
        return cls(path, _read(path))

    def get(self, path: str) -> ImageHash | None:
        """Returns the hashes of a file, or None if it is not in the cache or has changed."""
        key = _key(path)
        return self.entries.get(key) if key else None

    def add(self, hashes: Mapping[str, ImageHash]) -> None:
        """Adds the hashes of files, by path. A cache that can't be written is named, and the run continues."""
        keys = {path: _key(path) for path in hashes}
        self.entries.update({key: hashes[path] for path, key in keys.items() if key})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_suffix(".lock"), timeout=LONGEST_WAIT):  # other runs may write it, too
                text = csv_text([*key, *value] for key, value in (_read(self.path) | self.entries).items())
                write_atomic(self.path, text.encode("utf-8", "surrogateescape"))
        except (OSError, UserError) as error:  # of a lock, too: Timeout is an OSError
            reason = getattr(error, "strerror", None) or error
            print(f"The hashes are not kept, so the next run computes them again: {reason}", flush=True)


def _read(path: Path) -> dict[Key, ImageHash]:
    entries: dict[Key, ImageHash] = {}
    try:
        text = path.read_text("utf-8", "surrogateescape")
        for name, *numbers in csv.reader(io.StringIO(text, newline="")):
            size, modified, first, second = map(int, numbers)
            entries[name, size, modified] = (first, second)
    except (OSError, ValueError, csv.Error):
        return {}
    return entries


def _key(path: str) -> Key | None:
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return str(Path(path).absolute()), status.st_size, status.st_mtime_ns
