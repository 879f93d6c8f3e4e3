"""Classifies many image files, in this process or in several, and yields their rows in order. No torch in here."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from dermrw.errors import UserError
from dermrw.inference.classifier import Classifier, Origin, load
from dermrw.inference.image_rows import BATCH, ImageRow, classify_batch

FEW = 200  # images below which starting processes takes longer than they save
AHEAD = 2  # batches that wait for each process, so that none is idle

_origin: Origin | None = None  # in a worker process


def usable_cpus() -> int:
    """The number of CPUs that this process may use: by its affinity, and by the quota of its container."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # other systems, and containers without a quota ("max")
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cpus = min(cpus, max(1, -(-int(quota) // int(period))))
    return cpus


def choose_workers(classifier: Classifier, images: int, workers: int | None) -> int:
    """The number of worker processes for this many images; 1: the images stay in this process.

    Args:
        classifier: the model. A GPU is used by one process, unless `workers` is given.
        images: number of images.
        workers: the user's choice; None: `usable_cpus`.

    Raises:
        UserError: `workers` is below 1.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers must be at least 1, not {workers}")
    if images < FEW:
        return 1
    if workers is None:
        workers = usable_cpus() if classifier.device == "CPU" else 1
    return min(workers, -(-images // BATCH))


def classify_files(
    classifier: Classifier, image_ids: Sequence[str], paths: Sequence[Path], workers: int = 1, hashed: bool = False
) -> Generator[list[ImageRow], None, None]:
    """Yields the rows of the images in order, `BATCH` images at a time.

    The rows do not depend on `workers`, to the last digit. Only the images of a few batches are in memory at a time.

    Args:
        classifier: the model; each worker process loads its file once and uses one thread.
        image_ids: of the images.
        paths: of their files.
        workers: processes; 1: this one alone, with threads.
        hashed: whether to compute perceptual hashes.

    Raises:
        UserError: a worker process was killed, or the model cannot be run.
    """
    starts = range(0, len(paths), BATCH)
    if workers == 1:
        with ThreadPoolExecutor(min(8, usable_cpus())) as readers:
            for start in starts:
                end = start + BATCH
                yield classify_batch(classifier, image_ids[start:end], paths[start:end], readers, hashed)
        return
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _start_worker, classifier.origin._replace(threads=1)
    )
    waiting: deque[Future[list[ImageRow]]] = deque()
    try:
        for start in starts:
            end = start + BATCH
            batch = image_ids[start:end], [str(path) for path in paths[start:end]], hashed
            with _without_interrupts():  # the first submissions start the processes
                waiting.append(pool.submit(_classify_in_worker, *batch))
            if len(waiting) > AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, perhaps because memory ran out: the same command continues where it stopped, "
            "with a smaller --workers if this happens again"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Delays Ctrl-C here, and blocks it in processes that are started here: the first process ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(*origin: Any) -> None:
    global _origin
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _origin = Origin(*origin)


def _end_with_parent() -> None:
    """Ends a worker whose parent was killed; it would wait for work forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@cache
def _loaded() -> Classifier:
    assert _origin is not None
    return load(_origin)


def _classify_in_worker(image_ids: Sequence[str], paths: Sequence[str], hashed: bool) -> list[ImageRow]:
    return classify_batch(_loaded(), image_ids, paths, hashed=hashed)
