"""Images per second of the input pipeline, and the share of a training step that waits for it."""

import statistics
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import monai.transforms as mt
import numpy as np
import torch
import torchvision.transforms.v2 as tv
from torchvision.io import ImageReadMode, decode_image

from dermrw.config import Config
from dermrw.datasets.dataset import load_splits, resolve_root
from dermrw.datasets.pixel_cache import thread_count
from dermrw.datasets.pixels import ImageDataset, epoch_batches, in_order, loader
from dermrw.models import build_model
from dermrw.network_input import normalisation_of, to_input
from dermrw.objectives import Batch, build_objective
from dermrw.training.device import Placement, choose_device

ImageOf = Callable[[int], Any]


def _monai(paths: list[str], size: int) -> ImageOf:
    """Returns a pipeline of MONAI's transforms, from file to tensor, as close to ours as MONAI allows."""
    transform = mt.Compose(
        [
            mt.LoadImage(image_only=True, reader="PILReader", reverse_indexing=False, dtype=np.uint8),
            mt.EnsureChannelFirst(channel_dim=-1),
            mt.ScaleIntensity(),
            mt.RandScaleCrop(roi_scale=0.75, max_roi_scale=1.0, random_size=True),
            mt.Resize((size, size), mode="bilinear", anti_aliasing=True),
            mt.RandFlip(0.5, spatial_axis=0),
            mt.RandRotate90(0.75),
            mt.RandAdjustContrast(0.8, gamma=(0.8, 1.2)),
        ]
    )
    return lambda i: transform(paths[i])


def _torchvision(paths: list[str], size: int) -> ImageOf:
    """Returns a pipeline of torchvision's v2 transforms, from file to tensor."""
    transform = tv.Compose(
        [
            tv.RandomResizedCrop(size, scale=(0.5, 1.0), ratio=(0.8, 1.25), antialias=True),
            tv.RandomHorizontalFlip(),
            tv.RandomVerticalFlip(),
            tv.RandomApply([tv.ColorJitter(0.2, 0.2, 0.2, 0.03)], 0.8),
        ]
    )
    return lambda i: transform(decode_image(paths[i], ImageReadMode.RGB))


def throughput(image_of: ImageOf, count: int, seconds: float = 3.0) -> float:
    """Returns the images per second of one process, measured for `seconds`."""
    image_of(0)
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        image_of(done % count)
        done += 1
    return done / (time.perf_counter() - start)


def images_per_second(config: Config) -> dict[str, float]:
    """Returns the images per second of each pipeline, with augmentation, in one thread and in several workers.

    Our pipeline is measured with pixels from memory, from the cache on disk and from files (`data.cache`), MONAI's and
    torchvision's from files.
    """
    splits, data = load_splits(config.data, resolve_root(config.data)), config.data
    some = splits.train.part(lambda rows: rows[:512])
    paths = list(map(str, some.sources))
    before, workers = torch.get_num_threads(), thread_count()
    torch.set_num_threads(1)
    try:
        with TemporaryDirectory() as folder:
            cached = {
                cache: ImageDataset(
                    some, data.model_copy(update={"cache": cache, "cache_folder": folder, "workers": 0}), seed=0
                )
                for cache in ("memory", "disk", "none")
            }
            names = {"memory": "dermrw, cached", "disk": "dermrw, cached on disk", "none": "dermrw, from files"}
            rates = {
                names[cache]: throughput(lambda i, pixels=pixels: pixels[(0, i)], len(some))  # type: ignore[misc]
                for cache, pixels in cached.items()
            }
            for cache, pixels in cached.items():
                rates[f"{names[cache]}, {workers} workers"] = rate_of_workers(pixels, workers)
        return {
            **rates,
            "MONAI's transforms": throughput(_monai(paths, data.size), len(paths)),
            "torchvision's v2": throughput(_torchvision(paths, data.size), len(paths)),
        }
    finally:
        torch.set_num_threads(before)


def rate_of_workers(pixels: ImageDataset, workers: int, seconds: float = 3.0) -> float:
    """Returns the images per second of `loader` with worker processes, measured for `seconds` after the first batch."""
    rows = np.arange(len(pixels))
    batches = [rows[i : i + 32] for i in range(0, len(rows), 32)] * 100
    iterator = iter(loader(pixels, batches, 0, workers))
    next(iterator)
    start, done = time.perf_counter(), 0
    for images, _, _ in iterator:
        done += len(images)
        if time.perf_counter() - start > seconds:
            break
    return done / (time.perf_counter() - start)


def waiting_share(config: Config, steps: int = 4) -> dict[str, float]:
    """Returns the mean seconds of a training step with this config, and the share of it spent waiting for the batch."""
    splits, train = load_splits(config.data, resolve_root(config.data)), config.train
    some = splits.train.part(lambda rows: rows[: (steps + 1) * train.batch_size])
    classes = len(splits.classes.codes)
    choice = Placement(choose_device("auto"), "fp32", True)
    model, _ = build_model(config.model.model_copy(update={"weights": "none"}), classes)
    model, objective = choice.place(model).train(), build_objective(config, some.labels, classes, 1000)
    objective.step = 500  # in the middle of training, after any initial phase with uniform weights
    meta = ImageDataset(splits.meta, config.data)
    images, labels, _ = next(in_order(meta, len(meta)))
    meta_x, meta_y = to_input(images, choice.device, normalisation_of(model), True), labels.to(choice.device)
    batches = iter(
        loader(
            ImageDataset(some, config.data, seed=0),
            epoch_batches(some.labels, "shuffled", train.batch_size, 0, 0),
            0,
            config.data.workers,
        )
    )
    waited, worked = [], []
    for _ in range(steps + 1):
        start = time.perf_counter()
        images, labels, rows = next(batches)
        ready = time.perf_counter()
        x, y = to_input(images, choice.device, normalisation_of(model), True), labels.to(choice.device)
        loss, _ = objective(model, Batch(x, y, rows, meta_x, meta_y, len(y)))
        model.zero_grad()
        loss.backward()
        loss.item()
        waited.append(ready - start)
        worked.append(time.perf_counter() - ready)
    # the mean, because steps differ if the weights are refreshed only every few steps
    wait, work = statistics.fmean(waited[1:]), statistics.fmean(worked[1:])
    return {"seconds_a_step": wait + work, "waiting_share": wait / (wait + work)}
