"""Pixels of an image set, in batches: cache, augmentation, order of the images in an epoch."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dermrw.config import Data
from dermrw.datasets.augment import augmenter, example_seed
from dermrw.datasets.dataset import ImageSet
from dermrw.datasets.pixel_cache import (
    FOLDER,
    DecodedPixels,
    DiskPixels,
    MemoryPixels,
    choose_cache,
    decoded_in_order,
)
from dermrw.images.preprocess import Framing, center_crop


class ImageDataset(Dataset):
    """Pixels and labels of an image set: (epoch, index) -> (uint8 `[size, size, 3]`, label, index).

    Decoded and resized images are kept in memory, in a file or nowhere, as `data.cache` says (`pixel_cache`).
    """

    def __init__(
        self,
        images: ImageSet,
        data: Data,
        seed: int | None = None,
        progress: str | None = None,
        once: bool = False,
    ) -> None:
        """With a `seed`, images are augmented and depend on (seed, epoch, index) alone; without, evaluation pixels.

        Args:
            images: the images.
            data: the config's section.
            seed: of the augmentation.
            progress: the name of the set, to print it with the place of its pixels. None prints nothing.
            once: every image is read once, so `data.cache=auto` writes no file.
        """
        self.images, self.size, self.seed = images, data.size, seed
        self.augment = augmenter(data.augment, data.size) if seed is not None else None
        folder = Path(data.cache_folder).expanduser() if data.cache_folder else FOLDER
        in_files = any(isinstance(source, str) for source in images.sources)
        framing = Framing.of(data)
        if self.augment is not None:  # it starts from the uncropped pixels
            framing = replace(framing, crop="square")
        choice = choose_cache(data.cache if in_files else "memory", len(images), data.size, folder, once)
        if progress:
            print(f"Reading {len(images):,} images: {progress}; {choice.sentence}", flush=True)
        self.base: MemoryPixels | DiskPixels | DecodedPixels
        if choice.where == "memory":
            self.base = MemoryPixels(images.sources, data.size, progress is not None, framing)
        elif choice.where == "disk":
            self.base = DiskPixels(images.sources, data.size, folder, progress is not None, framing)
        else:
            self.base = DecodedPixels(images.sources, data.size, framing)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, int]:
        epoch, index = key
        pixels = self.base[index]
        if self.augment is not None and self.seed is not None:
            pixels = self.augment(pixels, example_seed(self.seed, epoch, index))
        else:
            pixels = center_crop(pixels, self.size)
        # a copy unless it is contiguous and writable, as torch requires
        return torch.from_numpy(np.require(pixels, requirements=["C", "W"])), int(self.images.labels[index]), index


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
    return loader_of(pixels, [[(epoch, int(i)) for i in batch] for batch in batches], workers)


def loader_of(pixels: ImageDataset, keys: list[list[tuple[int, int]]], workers: int = 0) -> DataLoader:
    """Returns the batches of these keys of `ImageDataset`, as `loader`."""
    return DataLoader(
        pixels,
        batch_sampler=keys,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # otherwise the seeds of the workers come from the global generator
    )


def in_order(pixels: ImageDataset, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields batches of every image once, in the order of the set. Threads decode images that are not cached."""
    n = len(pixels)
    batches = [np.arange(start, min(n, start + batch_size)) for start in range(0, n, batch_size)]
    if isinstance(pixels.base, DecodedPixels) and pixels.augment is None:
        return _decoded_batches(pixels, batches)
    return iter(loader(pixels, batches, 0))


def _decoded_batches(pixels: ImageDataset, batches: list[np.ndarray]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    def read(index: int) -> np.ndarray:
        return np.ascontiguousarray(center_crop(pixels.base[index], pixels.size))

    labels = torch.as_tensor(np.array(pixels.images.labels))
    decoded = decoded_in_order(read, range(len(pixels)))
    for batch in batches:
        index = torch.from_numpy(batch)
        yield torch.from_numpy(np.stack(list(itertools.islice(decoded, len(batch))))), labels[index], index
