"""From a config to the four sets of images (train, validation, test, meta) and their batches."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from monai.data import CacheDataset
from monai.transforms import Compose, MapTransform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dermrw.config import Data
from dermrw.datasets.augment import augmenter, example_seed
from dermrw.datasets.cifar10 import CIFAR_CLASSES, cifar_table, find_cifar10
from dermrw.datasets.ham10000 import find_ham10000, read_ham10000, with_images
from dermrw.datasets.label_noise import with_wrong_labels
from dermrw.datasets.sample import write_sample
from dermrw.datasets.split import listed, meta_set, split_lesions
from dermrw.datasets.verify import readable, refuse_unreadable
from dermrw.diagnoses import HAM_CLASSES, Classes
from dermrw.errors import UserError
from dermrw.images.preprocess import center_crop, resized_pixels


@dataclass(frozen=True)
class ImageSet:
    """Some images: a table with a row each, the labels `[N]` that they go by, and a file or the pixels of each."""

    table: pd.DataFrame  # image_id, lesion_id, dx, split, and what is known of the patient
    labels: np.ndarray
    sources: list[Any]  # path (str) or uint8 [H, W, 3]

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, choose: Callable[[np.ndarray], np.ndarray]) -> "ImageSet":
        """The images whose rows `choose` gives, of all rows `[N]`."""
        rows = choose(np.arange(len(self)))
        return ImageSet(self.table.iloc[rows], self.labels[rows], [self.sources[i] for i in rows])


class Splits(NamedTuple):
    """The four sets; `table` is what split.csv holds."""

    classes: Classes
    table: pd.DataFrame
    train: ImageSet
    validation: ImageSet
    test: ImageSet
    meta: ImageSet


def resolve_root(data: Data) -> Path:
    """The folder of the data that the config asks for; the embedded sample is drawn at data/sample if it isn't there.

    Raises:
        UserError: what is asked for is not found.
    """
    if data.name == "sample":
        place = Path("data/sample")
        if data.root and Path(data.root).expanduser().resolve() != place.resolve():
            place = Path(data.root).expanduser()
            if not (place / "HAM10000_metadata.csv").is_file():
                raise UserError(f"data.root is {place}, which holds no sample: leave it out, and one is drawn")
            return place.resolve()  # drawn before, of whatever size
        return write_sample(place).resolve()
    if data.name == "cifar10":
        return find_cifar10(data.root)
    root = find_ham10000(data.root)
    if root is None:
        raise UserError("HAM10000 is not at data/ham10000: set data.root or HAM10000_DIR, or run `make data`")
    return root


def true_labels(table: pd.DataFrame, classes: Classes) -> np.ndarray:
    """The labels `[N]` that the diagnoses of a table are, whatever `data.noise_rate` has the images go by."""
    return table["dx"].map({code: i for i, code in enumerate(classes.codes)}).to_numpy(np.int64)


def image_set(table: pd.DataFrame, classes: Classes, sources: list[Any]) -> ImageSet:
    """The set of the table's rows."""
    return ImageSet(table.reset_index(drop=True), true_labels(table, classes), sources)


def load_splits(data: Data, root: Path, split: pd.DataFrame | None = None) -> Splits:
    """The sets below `root`, divided anew or as a run's split.csv says."""
    if data.name == "cifar10":
        classes = CIFAR_CLASSES
        table, split = cifar_table(data, root, split)
    else:
        classes = HAM_CLASSES
        table = read_ham10000(root)
        if split is None:
            if data.skip_unreadable:
                table = readable(table)
            # the meta set first: its error names the images that a user's copy lacks, and both ways out
            meta = meta_set(table, data.meta, data.meta_per_class)
            table = with_images(table, root)
            if not data.skip_unreadable:
                refuse_unreadable(table)
            reserved = table.iloc[:0] if data.reserve is None else listed(table, data.reserve, "the reserve")
            split = split_lesions(table, meta, data.validation, data.test, data.split_seed, reserved)
        table = table.rename(columns={"path": "source"})
    odd = split["dx"][~split["dx"].isin(classes.codes)]
    if len(odd):
        raise UserError(f"split.csv holds the class {odd.iloc[0]!r}; known are {', '.join(classes.codes)}")
    known = split["image_id"].isin(table["image_id"])
    if not known.all():
        raise UserError(
            f"split.csv names {split['image_id'][~known].iloc[0]}, which is not below {root}: "
            "is data.root the data that the run was trained on?"
        )
    extra = [c for c in table.columns if c not in ("lesion_id", "dx")]
    merged = split.merge(table[extra], on="image_id", how="left", validate="one_to_one")
    parts = {}
    for name in ("train", "validation", "test", "meta"):
        rows = merged[merged["split"] == name]
        parts[name] = image_set(rows.drop(columns="source"), classes, rows["source"].tolist())
    for name, kind, rate in (("train", data.noise, data.noise_rate), ("meta", "uniform", data.meta_noise_rate)):
        if rate:
            wrong = with_wrong_labels(parts[name].table, classes.codes, kind, rate, data.noise_seed)
            parts[name] = replace(parts[name], labels=wrong)
    return Splits(classes, split, **parts)


class LoadPixels(MapTransform):
    """MONAI transform: replaces the file under a key by its uncropped pixels, uint8 `[H, W, 3]`."""

    def __init__(self, size: int) -> None:
        super().__init__("image")
        self.size = size

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Reads files; passes arrays on."""
        image = data["image"]
        return {**data, "image": resized_pixels(image, self.size) if isinstance(image, str) else image}


class ImageDataset(Dataset):
    """Pixels and labels of an image set; item (epoch, index) -> (uint8 `[size, size, 3]`, label, index).

    Decoded and resized pixels stay in memory (MONAI's CacheDataset), as many as half of the free memory holds.
    """

    def __init__(self, images: ImageSet, data: Data, seed: int | None = None, progress: str | None = None) -> None:
        """`seed` given: augment, with randomness from (seed, epoch, index) alone; else the evaluation pixels."""
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
    """Bytes of memory that are free now."""
    return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _user_error(error: BaseException) -> BaseException:
    """The UserError inside MONAI's wrapping, else the error itself."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, UserError):
        inner = inner.__cause__
    return inner or error


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Whole batches in an epoch; a set smaller than a batch is one."""
    return examples // min(batch_size, examples)


def epoch_batches(labels: np.ndarray, sampler: str, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Rows of the training set for each step of an epoch, int `[steps, batch_size]`, from (seed, epoch) alone.

    `shuffled`: a permutation. `balanced`: as many draws with replacement, each example with probability
    1 / (classes × images of its class). What doesn't fill a batch is left out of the epoch.
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
    """Batches (uint8 `[B, size, size, 3]`, labels `[B]`, indices `[B]`); the global random stream is left alone."""
    keys = [[(epoch, int(i)) for i in batch] for batch in batches]
    return DataLoader(
        pixels,
        batch_sampler=keys,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else the loader draws its workers' seeds from the global stream
    )


def in_order(pixels: ImageDataset, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Every image once, in the set's order."""
    n = len(pixels)
    batches = [np.arange(start, min(n, start + batch_size)) for start in range(0, n, batch_size)]
    return iter(loader(pixels, batches, 0))
