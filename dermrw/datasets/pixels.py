"""Pixels of an image set, in batches: decoding, memory cache, augmentation, order of the images in an epoch."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset
from monai.transforms import Compose, MapTransform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dermrw.config import Data
from dermrw.datasets.augment import augmenter, example_seed
from dermrw.datasets.dataset import ImageSet
from dermrw.errors import UserError
from dermrw.images.preprocess import center_crop, resized_pixels


class LoadPixels(MapTransform):
    """MONAI transform that replaces a file path by the image's resized, uncropped pixels, uint8 `[H, W, 3]`."""

    def __init__(self, size: int) -> None:
        super().__init__("image")
        self.size = size

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Reads files and leaves arrays unchanged."""
        image = data["image"]
        return {**data, "image": resized_pixels(image, self.size) if isinstance(image, str) else image}


class ImageDataset(Dataset):
    """Pixels and labels of an image set: (epoch, index) -> (uint8 `[size, size, 3]`, label, index).

    Decoded and resized images are cached in memory (MONAI's CacheDataset), in at most half of the free memory.
    """

    def __init__(self, images: ImageSet, data: Data, seed: int | None = None, progress: str | None = None) -> None:
        """With a `seed`, images are augmented and depend on (seed, epoch, index) alone; without, evaluation pixels."""
        self.images, self.size, self.seed = images, data.size, seed
        self.augment = augmenter(data.augment, data.size) if seed is not None else None
        if progress:
            print(f"Reading {len(images):,} images into memory: {progress}", flush=True)
        try:
            self.base = CacheDataset(
                [{"image": source} for source in images.sources],
                Compose([LoadPixels(data.size)]),
                cache_num=int(_free_memory() / 2 / (data.size * data.size * 4 / 3 * 3)),
                num_workers=min(8, os.cpu_count() or 1),
                progress=progress is not None,
                copy_cache=False,
            )
        except RuntimeError as error:
            raise _user_error(error) from None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, int]:
        epoch, index = key
        try:
            pixels = self.base[index]["image"]
        except RuntimeError as error:
            raise _user_error(error) from None
        if self.augment is not None and self.seed is not None:
            pixels = self.augment(pixels, example_seed(self.seed, epoch, index))
        else:
            pixels = center_crop(pixels, self.size)
        return torch.from_numpy(np.ascontiguousarray(pixels)), int(self.images.labels[index]), index


def _free_memory() -> float:
    """Returns the free memory in bytes."""
    return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _user_error(error: BaseException) -> BaseException:
    """Returns the UserError that MONAI has wrapped, or the error itself if there is none."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, UserError):
        inner = inner.__cause__
    return inner or error


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Returns the number of full batches in an epoch, at least 1 (also for a set smaller than a batch)."""
    return examples // min(batch_size, examples)


def epoch_batches(labels: np.ndarray, sampler: str, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the rows of the training set for each step of an epoch, int `[steps, batch_size]`.

    The result depends on (seed, epoch) alone. `shuffled` is a permutation. `balanced` draws the same number of
    examples with replacement, each with probability 1 / (classes × images of its class). An incomplete last batch is
    dropped.
    """
    rng = np.random.default_rng([seed, epoch])
    n = len(labels)
    if sampler == "balanced":
        counts = np.bincount(labels)
        probability = 1 / counts[labels]
        order = rng.choice(n, n, p=probability / probability.sum())
    else:
        order = rng.permutation(n)
    steps, batch_size = steps_per_epoch(n, batch_size), min(batch_size, n)
    return order[: steps * batch_size].reshape(steps, batch_size)


def loader(pixels: ImageDataset, batches: np.ndarray | list[np.ndarray], epoch: int, workers: int = 0) -> DataLoader:
    """Returns batches (uint8 `[B, size, size, 3]`, labels `[B]`, indices `[B]`). Keeps torch's global RNG as it is."""
    keys = [[(epoch, int(i)) for i in batch] for batch in batches]
    return DataLoader(
        pixels,
        batch_sampler=keys,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # otherwise the seeds of the workers come from the global generator
    )


def in_order(pixels: ImageDataset, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields batches of every image once, in the order of the set."""
    n = len(pixels)
    batches = [np.arange(start, min(n, start + batch_size)) for start in range(0, n, batch_size)]
    return iter(loader(pixels, batches, 0))
