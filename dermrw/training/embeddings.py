"""Embeddings of all images of a run, which the frozen backbone computes once (`model.freeze=backbone`).

The embeddings of every view of every training image, and of the validation and meta images, are kept in one NumPy file
in the run folder. The name of the file contains a digest of everything that the embeddings depend on, so embeddings of
other weights, images or settings are never used. An interrupted pass continues where it stopped.
"""

import copy
import hashlib
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from dermrw.config import Config
from dermrw.datasets.augment import augmenter, example_seed
from dermrw.datasets.dataset import ImageSet, Splits
from dermrw.datasets.pixel_cache import source_key, thread_count
from dermrw.errors import UserError
from dermrw.files import reserve
from dermrw.images.preprocess import PLAIN, Framing, content, network_pixels, resize
from dermrw.models import Head, last_linear
from dermrw.network_input import IMAGENET, normalisation_of, to_input
from dermrw.training.device import Placement
from dermrw.training.distributed import Job

BATCH = 32  # rows of a forward pass
FORMAT = "2"  # part of the digest: a change of the layout or of the computation outdates old files
FLUSH_SECONDS = 5.0  # at most this much of the pass is lost in a power cut


class Task(NamedTuple):
    """The images `start` to `stop` of a set, whose embeddings one forward pass computes."""

    images: ImageSet
    views: int
    start: int
    stop: int
    first_row: int  # of the set's first view in the file; the next view follows after `len(images)` rows


def number_of_views(config: Config) -> int:
    """Returns the number of views of each training image. Without augmentation, all views are the same."""
    return 1 if config.data.augment == "none" else config.model.embedding_views


def plan(splits: Splits, views: int) -> list[Task]:
    """Returns the tasks of a pass. They depend on the sets alone, so a resumed pass computes in the same batches."""
    tasks, row = [], 0
    for images, count in ((splits.train, views), (splits.validation, 1), (splits.meta, 1)):
        size = max(1, BATCH // count)
        for start in range(0, len(images), size):
            tasks.append(Task(images, count, start, min(len(images), start + size), row))
        row += count * len(images)
    return tasks


def view_reader(
    size: int, augment: str, seed: int, framing: Framing = PLAIN
) -> Callable[[ImageSet, int, int], np.ndarray]:
    """Returns a function (images, index, views) -> pixels uint8 `[views, size, size, 3]`, which threads can share.

    View 0 is the evaluation pixels. View v is the augmented image of epoch v. The image is decoded once.
    """
    local = threading.local()  # an augmenter holds a random state

    def read(images: ImageSet, index: int, views: int) -> np.ndarray:
        image = content(images.sources[index], framing)
        found = [network_pixels(image, size, framing)]
        if views > 1:
            pixels = np.asarray(resize(image, size, framing.interpolation))
            if not hasattr(local, "augment"):
                local.augment = augmenter(augment, size)
            found += [local.augment(pixels, example_seed(seed, view, index)) for view in range(1, views)]
        return np.stack(found)

    return read


def embeddings_key(network: nn.Module, splits: Splits, config: Config, placement: Placement) -> str:
    """Returns a digest of everything that the embeddings depend on: backbone, images, their pixels, and views."""
    digest = hashlib.sha256(FORMAT.encode())
    head = Head(network).name
    for name, tensor in network.state_dict().items():
        if not name.startswith(f"{head}."):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).numpy().tobytes())
    views = number_of_views(config)
    settings = [config.model.backbone, config.data.size, views, str(placement.device.type), placement.channels_last]
    settings += Framing.of(config.data).key
    if normalisation_of(network) != IMAGENET:  # ImageNet's is not in the digest: older files stay valid
        settings += normalisation_of(network)
    if views > 1:
        settings += [config.data.augment, config.train.seed]
    digest.update(json.dumps(settings).encode())
    for images in (splits.train, splits.validation, splits.meta):
        digest.update(json.dumps([source_key(source) for source in images.sources]).encode())
    return digest.hexdigest()[:16]


def embeddings(
    run: Path, network: nn.Module, splits: Splits, config: Config, placement: Placement, job: Job
) -> np.ndarray:
    """Returns the embeddings float32 `[rows, D]`, mapped into memory from the file in the run folder.

    Rows: view 0 of every training image, then view 1 and so on, then the validation images, then the meta images. If
    the file is absent, it is computed, or taken from another run in the same folder that has the same embeddings.

    Raises:
        UserError: an image can't be read, the disk has too little space, or a process does not see the run folder.
    """
    tasks = plan(splits, number_of_views(config))
    rows = sum(task.views * (task.stop - task.start) for task in tasks)
    shape = (rows, last_linear(network).in_features)
    key = job.same(lambda: embeddings_key(network, splits, config, placement))
    file = run / f"embeddings-{key}.npy"
    partial, done_file = run / f".embeddings-{key}.partial", run / f".embeddings-{key}.done"
    if not job.same(lambda: _found(file, shape)):
        job.same(lambda: _start(run, partial, done_file, shape, len(tasks)))
        try:
            target = np.load(partial, mmap_mode="r+")
            done = np.load(done_file, mmap_mode="r+")
        except OSError:
            raise UserError(
                f"process {job.rank} can't read {partial}: embeddings that several processes compute need a run folder "
                "that all of them share; train in one process"
                + (", or set model.embedding_views=0" if config.trains_on_embeddings else "")
            ) from None
        pending = job.same(lambda: np.flatnonzero(done == 0))
        _compute(tasks, job.part(pending), target, done, network, config, placement, job)
        del target, done
        job.wait()
        job.same(lambda: _finish(file, partial, done_file))
    found = _open(file, shape)
    assert found is not None
    return found


def first_views(
    run: Path, network: nn.Module, splits: Splits, config: Config, placement: Placement, job: Job
) -> np.ndarray:
    """Returns `embeddings` without augmented views and without the validation images."""
    alone = config.model_copy(update={"model": config.model.model_copy(update={"embedding_views": 1})})
    parts = splits._replace(validation=splits.validation.part(lambda rows: rows[:0]))
    return embeddings(run, network, parts, alone, placement, job)


@contextmanager
def temporary_embeddings(
    run: Path, network: nn.Module, splits: Splits, config: Config, placement: Placement, job: Job
) -> Iterator[np.ndarray]:
    """Yields `first_views` of networks that are not frozen. The file is removed after use.

    An interrupted run keeps it, so that the resumed run does not compute it again.
    """
    yield first_views(run, network, splits, config, placement, job)
    job.wait()
    job.same(lambda: _remove_others(run, set()))


def _open(file: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """Returns the array in a complete file, or None if there is no such file."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array if array.shape == shape and array.dtype == np.float32 else None


def _found(file: Path, shape: tuple[int, int]) -> bool:
    """Whether the run folder has the complete file; a file of another run in the same folder is linked into it."""
    if _open(file, shape) is None:
        file.unlink(missing_ok=True)
        for other in sorted(file.parent.parent.glob(f"*/{file.name}")):
            if _open(other, shape) is not None:
                with suppress(OSError):
                    os.link(other, file)
                    print(f"The embeddings are those of {other.parent}", flush=True)
                    break
    if _open(file, shape) is None:
        return False
    _remove_others(file.parent, {file})
    return True


def _remove_others(run: Path, kept: set[Path]) -> None:
    for old in [*run.glob("embeddings-*.npy"), *run.glob(".embeddings-*")]:
        if old not in kept:
            old.unlink()


def _start(run: Path, partial: Path, done_file: Path, shape: tuple[int, int], tasks: int) -> None:
    """Creates the two files of a pass, or keeps those of an interrupted pass. Removes those with another key."""
    _remove_others(run, {partial, done_file})
    try:
        if np.load(partial, mmap_mode="r").shape == shape and np.load(done_file, mmap_mode="r").shape == (tasks,):
            return
    except (OSError, ValueError, EOFError):
        pass
    done_file.unlink(missing_ok=True)
    partial.unlink(missing_ok=True)
    reserve(partial, 4 * shape[0] * shape[1] + 128, "the embeddings")
    np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
    with done_file.open("wb") as file:
        np.save(file, np.zeros(tasks, np.uint8))


def _finish(file: Path, partial: Path, done_file: Path) -> None:
    with partial.open("rb+") as written:
        os.fsync(written.fileno())
    partial.replace(file)
    done_file.unlink(missing_ok=True)


def _compute(
    tasks: Sequence[Task],
    pending: np.ndarray,
    target: np.memmap,
    done: np.memmap,
    network: nn.Module,
    config: Config,
    placement: Placement,
    job: Job,
) -> None:
    """Computes the pending tasks. A task is marked as done after its rows are on disk."""
    todo = [tasks[number] for number in pending]
    total = sum(task.views * (task.stop - task.start) for task in todo)
    views = number_of_views(config)
    images = sum(len(task.images) for task in tasks if task.start == 0)
    each = f", with {views} views of each training image" if views > 1 else ""
    done_before = int(done.sum())
    progress = f"; {done_before} of {len(tasks)} batches are done" if done_before else ""
    print(f"Computing the embeddings of {images:,} images once{each}{progress}", flush=True)
    finished: list[int] = []
    start = saved = time.monotonic()

    def flush() -> None:
        target.flush()
        done[finished] = 1
        done.flush()
        finished.clear()

    try:
        with tqdm(
            total=total, desc="embeddings", unit="view", leave=False, mininterval=1, disable=not job.leads
        ) as bar:
            for number, task, found in zip(pending, todo, _embedded(todo, network, config, placement), strict=True):
                for view in range(task.views):
                    row = task.first_row + view * len(task.images)
                    target[row + task.start : row + task.stop] = found[:, view]
                finished.append(int(number))
                bar.update(found.shape[0] * found.shape[1])
                if time.monotonic() - saved > FLUSH_SECONDS:
                    flush()
                    saved = time.monotonic()
    finally:
        flush()
    seconds = time.monotonic() - start
    print(f"{total:,} embeddings in {seconds:.0f} s, {total / max(seconds, 1e-9):.0f} per second", flush=True)


def _embedded(tasks: Sequence[Task], network: nn.Module, config: Config, placement: Placement) -> Iterator[np.ndarray]:
    """Yields the embeddings float32 `[images, views, D]` of each task, in order.

    Each of several threads reads the images of a task and computes their forward pass. On a CPU, the pass itself uses
    one thread. This is faster than a pass in several threads, which wait for each other at every layer.
    """
    read = view_reader(config.data.size, config.data.augment, config.train.seed, Framing.of(config.data))
    backbone = without_head(network)
    device = placement.device
    threads = min(8, torch.get_num_threads()) if device.type == "cpu" else thread_count()

    def compute(task: Task) -> np.ndarray:
        pixels = np.concatenate([read(task.images, i, task.views) for i in range(task.start, task.stop)])
        found = embed_pixels(backbone, pixels, placement)
        return found.reshape(task.stop - task.start, task.views, -1)

    def start_thread() -> None:
        if device.type == "cpu":
            torch.set_num_threads(1)  # of this thread

    own = torch.get_num_threads()
    with ThreadPoolExecutor(threads, initializer=start_thread) as pool:
        remaining = iter(tasks)
        ahead = [pool.submit(compute, task) for task in itertools.islice(remaining, 2 * threads)]
        try:
            while ahead:
                found = ahead.pop(0).result()
                ahead += [pool.submit(compute, task) for task in itertools.islice(remaining, 1)]
                yield found
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(own)


def without_head(network: nn.Module) -> nn.Module:
    """Returns a copy of the network in eval mode, `[N, 3, H, W]` -> embeddings, which threads can share."""
    backbone = copy.deepcopy(network).eval()
    parent, _, attribute = Head(backbone).name.rpartition(".")
    setattr(backbone.get_submodule(parent), attribute, nn.Identity())
    return backbone


@torch.inference_mode()
def embed_pixels(backbone: nn.Module, pixels: np.ndarray, placement: Placement) -> np.ndarray:
    """Returns the embeddings float32 `[N, D]` of pixels uint8 `[N, size, size, 3]`."""
    x = to_input(torch.from_numpy(pixels), placement.device, normalisation_of(backbone), placement.channels_last)
    return backbone(x).flatten(1).float().cpu().numpy()
