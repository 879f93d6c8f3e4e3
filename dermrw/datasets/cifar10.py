"""CIFAR-10 with one dominant class: the toy problem of arXiv 2405.06859, a sanity check of the method.

At bias p the training set contains every image of the dominant class. The number of other images, equal for the nine
other classes, is such that the dominant class makes up the fraction p. The test set is the official 10,000 images.
Unlike in the paper, 100 images per class of the official training set are held out to choose the epoch, so the test
set is not used for model selection.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd
from torchvision.datasets import CIFAR10

from dermrw.config import Data
from dermrw.diagnoses import Classes
from dermrw.errors import UserError

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR_CLASSES = Classes(NAMES, NAMES, NAMES, None)
VALIDATION_PER_CLASS = 100
FOLDER = "cifar-10-batches-py"


def find_cifar10(root: str | None) -> Path:
    """Returns the folder that contains `cifar-10-batches-py`: `root`, CIFAR10_DIR or data/cifar10, in this order.

    If neither `root` nor CIFAR10_DIR is set, CIFAR-10 is downloaded to data/cifar10 unless it is there already.

    Raises:
        UserError: the given folder does not contain CIFAR-10, or the download fails.
    """
    given = root or os.environ.get("CIFAR10_DIR")
    folder = Path(given or "data/cifar10").expanduser().resolve()
    if folder.name == FOLDER:
        folder = folder.parent
    if (folder / FOLDER).is_dir():
        return folder
    if given:
        raise UserError(f"{given} does not hold {FOLDER}: correct data.root or CIFAR10_DIR, or unset it to download")
    print(f"Downloading CIFAR-10 (170 MB, Krizhevsky 2009) into {folder}", flush=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        CIFAR10(str(folder), download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"CIFAR-10 can't be downloaded ({error}): download cifar-10-python.tar.gz from "
            f"https://www.cs.toronto.edu/~kriz/cifar.html and unpack it into {folder}"
        ) from None
    return folder


def _read(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns pixels uint8 `[60000, 32, 32, 3]` and labels `[60000]`, the training images first."""
    try:
        parts = [CIFAR10(str(root), train=train, download=False) for train in (True, False)]
    except RuntimeError as error:
        raise UserError(f"{root / FOLDER} is incomplete or damaged ({error}): delete it to download it again") from None
    return np.concatenate([p.data for p in parts]), np.concatenate([p.targets for p in parts])


def _ids() -> list[str]:
    return [f"train_{i:05d}" for i in range(50_000)] + [f"test_{i:05d}" for i in range(10_000)]


def _divide(data: Data, labels: np.ndarray) -> pd.DataFrame:
    """Returns the rows of split.csv, drawn with the seed `data.split_seed`."""
    rng = np.random.default_rng(data.split_seed)
    dominant = 5000 - VALIDATION_PER_CLASS - data.meta_per_class
    others = round(dominant * (1 - data.bias) / data.bias / 9)
    split = np.full(len(labels), "", dtype=object)
    split[50_000:] = "test"
    for c in range(10):
        rows = rng.permutation(np.flatnonzero(labels[:50_000] == c))
        held, rows = rows[:VALIDATION_PER_CLASS], rows[VALIDATION_PER_CLASS:]
        meta, rows = rows[: data.meta_per_class], rows[data.meta_per_class :]
        split[held], split[meta] = "validation", "meta"
        split[rows if c == data.dominant else rows[:others]] = "train"
    ids = _ids()
    table = pd.DataFrame({"image_id": ids, "lesion_id": ids, "dx": [NAMES[i] for i in labels], "split": split})
    return table[table["split"] != ""].reset_index(drop=True)


def cifar_table(data: Data, root: Path, split: pd.DataFrame | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns a table of all images with their pixels (column `source`), and the split (a new one if None is given)."""
    pixels, labels = _read(root)
    split = _divide(data, labels) if split is None else split
    return pd.DataFrame({"image_id": _ids(), "source": list(pixels)}), split
