"""Where the decoded pixels of an image set are kept: in memory, in a file on disk, or nowhere (`data.cache`).

The pixels are the same in all three cases, so the results of a training are, too.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from filelock import FileLock
from monai.data import CacheDataset
from monai.transforms import Compose, MapTransform
from tqdm import tqdm

from dermrw.errors import UserError
from dermrw.files import free_bytes, replacing
from dermrw.formatting import gigabytes
from dermrw.images.preprocess import PLAIN, Framing, evaluation_pixels, resized_pixels

Where = Literal["memory", "disk", "none"]

FORMAT = "1"  # part of the digest of a cache file: a change of the layout or of the pixels outdates old files
FOLDER = Path("runs/.pixel_cache")  # default of `data.cache_folder`
UNUSED_DAYS = 14  # cache files that were not used for longer are removed when a new one is written
DISK_MARGIN = 1e9  # bytes that remain free on the disk if `data.cache=auto` chooses it


class Choice(NamedTuple):
    """Where pixels are kept, and a sentence about it."""

    where: Where
    sentence: str


def thread_count() -> int:
    """Returns the number of threads that decode images: one for each usable core, at most 16."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(16, usable or 1)


def available_memory() -> float:
    """Returns the memory in bytes that this process can use: of the machine or, if less, of its cgroup.

    Processes of the same training on this machine share it equally.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = float(next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))) * 1024
    except (OSError, StopIteration, ValueError):
        available = float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        used = int((group / "memory.current").read_text())
        files = [line for line in (group / "memory.stat").read_text().splitlines() if line.startswith("inactive_file ")]
        freeable = int(files[0].split()[1]) if files else 0
        available = min(available, int((group / "memory.max").read_text()) - used + freeable)
    return max(0.0, available) / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def expected_bytes(count: int, size: int) -> float:
    """Returns the expected size of the pixels of `count` images of the proportions 4:3, shorter side `size`."""
    return count * size * size * 4 / 3 * 3


def choose_cache(asked: str, count: int, size: int, folder: Path, once: bool) -> Choice:
    """Returns where to keep the pixels of `count` images.

    `auto` is memory if they fit into half of the available memory, otherwise disk if they fit there, otherwise none.
    Images that are read `once` are not written to disk by `auto`.
    """
    needed, memory = expected_bytes(count, size), available_memory() / 2
    about = f"about {gigabytes(needed)}"
    if asked == "memory" or (asked == "auto" and needed <= memory):
        part = f", of which {gigabytes(memory)} fit" if needed > memory else ""
        return Choice("memory", f"kept in memory ({about}{part})")
    if asked == "disk" or (asked == "auto" and not once and needed + DISK_MARGIN <= _free_at(folder)):
        reason = "" if asked == "disk" else f", more than half of the available memory, {gigabytes(memory)}"
        return Choice("disk", f"kept decoded in {folder} ({about}{reason})")
    if asked == "none" or once:
        return Choice("none", "decoded when they are used" if once else "decoded in each epoch")
    return Choice(
        "none",
        f"decoded in each epoch ({about} fit neither into half of the available memory nor on the disk of {folder}; "
        "data.workers=N shares the work)",
    )


def _free_at(folder: Path) -> float:
    """Returns the free bytes of the disk of a folder that may not exist yet."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return free_bytes(place)


def source_key(source: Any) -> str:
    """Returns a text that changes with the image: path, size and time of change of a file; a digest of an array."""
    if isinstance(source, str):
        try:
            status = Path(source).stat()
        except OSError:
            return source  # reading it raises an error that names it
        return f"{source} {status.st_size} {status.st_mtime_ns}"
    return f"array {hashlib.sha256(np.ascontiguousarray(source).tobytes()).hexdigest()}"


def read_pixels(source: Any, size: int, framing: Framing) -> np.ndarray:
    """Returns the pixels of an image file or an array that a cache keeps, uint8 `[H, W, 3]`.

    With `crop=square` they are not cropped: augmentation starts from them, and the middle square is cut out later.
    With `crop=whole` they are the network's input, since it cannot be computed from the uncropped pixels.
    """
    if not isinstance(source, str) and source.shape[:2] == (size, size) and framing.field_of_view == "none":
        return source  # the usual case of CIFAR-10
    if framing.crop == "whole":
        return evaluation_pixels(source, size, framing)
    return resized_pixels(source, size, framing)


def decoded_in_order(read: Callable[[Any], np.ndarray], items: Sequence[Any]) -> Iterator[np.ndarray]:
    """Yields `read(item)` for each item, in order. Threads read some items ahead."""
    threads = thread_count()
    with ThreadPoolExecutor(threads) as pool:
        waiting: list[Future] = []
        remaining = iter(items)
        try:
            for item in remaining:
                waiting.append(pool.submit(read, item))
                if len(waiting) == 4 * threads:
                    break
            while waiting:
                pixels = waiting.pop(0).result()
                waiting += [pool.submit(read, item) for _, item in zip(range(1), remaining, strict=False)]
                yield pixels
        finally:
            pool.shutdown(cancel_futures=True)


class LoadPixels(MapTransform):
    """MONAI transform that replaces a file path by the image's pixels (`read_pixels`), uint8 `[H, W, 3]`."""

    def __init__(self, size: int, framing: Framing = PLAIN) -> None:
        super().__init__("image")
        self.size, self.framing = size, framing

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Replaces the item `image`."""
        return {**data, "image": read_pixels(data["image"], self.size, self.framing)}


class MemoryPixels:
    """Pixels in memory (MONAI's CacheDataset); images beyond half of the available memory are decoded when used."""

    def __init__(self, sources: Sequence[Any], size: int, progress: bool, framing: Framing = PLAIN) -> None:
        """Decodes the images in threads."""
        try:
            self.cached = CacheDataset(
                [{"image": source} for source in sources],
                Compose([LoadPixels(size, framing)]),
                cache_num=int(available_memory() / 2 / expected_bytes(1, size)),
                num_workers=thread_count(),
                progress=progress,
                copy_cache=False,
            )
        except RuntimeError as error:
            raise _user_error(error) from None

    def __getitem__(self, index: int) -> np.ndarray:
        try:
            return self.cached[index]["image"]
        except RuntimeError as error:
            raise _user_error(error) from None


def _user_error(error: BaseException) -> BaseException:
    """Returns the UserError that MONAI has wrapped, or the error itself if there is none."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, UserError):
        inner = inner.__cause__
    return inner or error


class DecodedPixels:
    """Pixels that are decoded each time they are used."""

    def __init__(self, sources: Sequence[Any], size: int, framing: Framing = PLAIN) -> None:
        self.sources, self.size, self.framing = sources, size, framing

    def __getitem__(self, index: int) -> np.ndarray:
        return read_pixels(self.sources[index], self.size, self.framing)


class DiskPixels:
    """Pixels in a file, which all processes of this machine share. Reading needs no memory beyond one image.

    The name of the file contains a digest of the size, the framing and of the path, size and time of change of each
    image. The file is written once, by the first process that needs it, and used again by later runs.
    """

    def __init__(
        self, sources: Sequence[Any], size: int, folder: Path, progress: bool, framing: Framing = PLAIN
    ) -> None:
        """Opens the cache file of these images. If it is absent, decodes the images in threads and writes it.

        Raises:
            UserError: an image can't be read, the folder can't be written to, or the disk is full.
        """
        keys = json.dumps([FORMAT, size, *framing.key, [source_key(source) for source in sources]])
        self.file = folder / f"{hashlib.sha256(keys.encode()).hexdigest()[:16]}.pixels"
        index = self.file.with_suffix(".npy")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.file.with_suffix(".lock")):
                shapes = self._shapes(index, len(sources))
                if shapes is None:
                    shapes = self._write(index, sources, size, progress, framing)
        except OSError as error:
            full = " (data.cache=none needs no space)" if error.errno == 28 else ""
            raise UserError(
                f"the decoded images can't be written to {folder} ({error.strerror}): set data.cache_folder=FOLDER on "
                f"another disk{full}"
            ) from None
        self.shapes = shapes
        self.offsets = np.concatenate([[0], np.cumsum(shapes.astype(np.int64).prod(1) * 3)])
        self._descriptor: int | None = None

    def _shapes(self, index: Path, count: int) -> np.ndarray | None:
        """Returns height and width of each image in a complete cache file `[N, 2]`, or None if there is none."""
        try:
            shapes = np.load(index, allow_pickle=False)
            complete = self.file.stat().st_size == 3 * shapes.astype(np.int64).prod(1).sum()
        except (OSError, ValueError, EOFError):
            return None
        if not complete or shapes.shape != (count, 2):
            return None
        index.touch()  # the time of the last use
        return shapes

    def _write(self, index: Path, sources: Sequence[Any], size: int, progress: bool, framing: Framing) -> np.ndarray:
        """Writes the pixels, then the index: a file with an index is complete. Removes files that were long unused."""
        for old in index.parent.glob("*.npy"):
            if time.time() - old.stat().st_mtime > UNUSED_DAYS * 86400:
                for suffix in (".npy", ".pixels", ".lock"):
                    old.with_suffix(suffix).unlink(missing_ok=True)
        needed = expected_bytes(len(sources), size)
        if free_bytes(index.parent) < needed:
            raise OSError(28, f"{gigabytes(needed)} needed, {gigabytes(free_bytes(index.parent))} free")
        index.unlink(missing_ok=True)
        shapes = np.empty((len(sources), 2), np.int32)
        decoded = decoded_in_order(DecodedPixels(sources, size, framing).__getitem__, range(len(sources)))
        with replacing(self.file) as file:
            for i, pixels in enumerate(tqdm(decoded, "Decoding", len(sources), leave=False, disable=not progress)):
                shapes[i] = pixels.shape[:2]
                file.write(np.ascontiguousarray(pixels).data)
        with replacing(index) as file:
            np.save(file, shapes)
        return shapes

    def __getitem__(self, index: int) -> np.ndarray:
        if self._descriptor is None:
            try:
                self._descriptor = os.open(self.file, os.O_RDONLY)
            except OSError as error:
                raise UserError(f"{self.file} can't be read ({error.strerror}): repeat the command") from None
        start, stop = int(self.offsets[index]), int(self.offsets[index + 1])
        # not a memory map: its pages would count as memory of this process
        content = os.pread(self._descriptor, stop - start, start)
        if len(content) != stop - start:
            raise UserError(f"{self.file} was cut short during the training: repeat the command, which writes it again")
        return np.frombuffer(content, np.uint8).reshape(*self.shapes[index], 3)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None}  # a worker process opens the file itself

    def __del__(self) -> None:
        descriptor = getattr(self, "_descriptor", None)
        if descriptor is not None:
            with suppress(OSError):
                os.close(descriptor)
