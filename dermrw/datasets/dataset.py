"""Loads the four image sets of a config: train, validation, test, meta."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dermrw.config import Data
from dermrw.datasets.cifar10 import CIFAR_CLASSES, cifar_table, find_cifar10
from dermrw.datasets.extra import choose_extra, read_extra, with_extra
from dermrw.datasets.ham10000 import find_ham10000, read_folder, with_images
from dermrw.datasets.label_noise import with_wrong_labels
from dermrw.datasets.readable import readable, refuse_unreadable
from dermrw.datasets.sample import write_sample
from dermrw.datasets.split import listed, meta_set, require_classes, split_lesions
from dermrw.datasets.table import draw_split, find_table, read_images, read_table
from dermrw.diagnoses import BENIGN_LABEL, HAM_CLASSES, Classes
from dermrw.errors import UserError
from dermrw.files import expand_home
from dermrw.labelled.classes import RunClasses


@dataclass(frozen=True)
class ImageSet:
    """A set of N images: their table, the labels used in training or evaluation `[N]`, and their files or pixels.

    A label is the index of a class, or of `Splits.label_names`.
    """

    table: pd.DataFrame  # image_id, lesion_id, dx, split and the patient's data
    labels: np.ndarray
    sources: list[Any]  # path (str) or uint8 [H, W, 3]

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, choose: Callable[[np.ndarray], np.ndarray]) -> "ImageSet":
        """Returns the subset of the rows that `choose` returns, given all row numbers `[N]`."""
        rows = choose(np.arange(len(self)))
        return ImageSet(self.table.iloc[rows], self.labels[rows], [self.sources[i] for i in rows])


class Splits(NamedTuple):
    """The four image sets. `table` is the content of split.csv."""

    classes: Classes
    table: pd.DataFrame
    train: ImageSet
    validation: ImageSet
    test: ImageSet
    meta: ImageSet
    facts: RunClasses | None = None  # of a user's own table
    left_out: pd.DataFrame | None = None  # image_id, label and reason of the images of `data.extra` that are not used
    sets: tuple[str, ...] = ()  # names of labels that stand for several classes

    @property
    def label_names(self) -> tuple[str, ...]:
        """The name of each label: the codes of the classes, then the sets of classes."""
        return (*self.classes.codes, *self.sets)


def resolve_root(data: Data) -> Path:
    """Returns the data folder of a config, or the table of `data.name=table`.

    Draws the embedded sample at data/sample if it does not exist.

    Raises:
        UserError: the data is not found.
    """
    if data.name == "sample":
        place = Path("data/sample")
        if data.root and Path(data.root).expanduser().resolve() != place.resolve():
            place = Path(data.root).expanduser()
            if not (place / "HAM10000_metadata.csv").is_file():
                raise UserError(f"data.root is {place}, which holds no sample: leave it out, and one is drawn")
            return place.resolve()  # drawn earlier, of any size
        return write_sample(place).resolve()
    if data.name == "cifar10":
        return find_cifar10(data.root)
    if data.name == "table":
        return find_table(data)
    root = find_ham10000(data.root)
    if root is None:
        raise UserError("HAM10000 is not at data/ham10000: set data.root or HAM10000_DIR, or run `make data`")
    return root


def true_labels(table: pd.DataFrame, classes: Classes, sets: tuple[str, ...] = ()) -> np.ndarray:
    """Returns the labels `[N]` of a table's diagnoses, without the label noise of `data.noise_rate`.

    `sets` names labels that stand for several classes; their indices follow those of the classes.
    """
    return table["dx"].map({name: i for i, name in enumerate((*classes.codes, *sets))}).to_numpy(np.int64)


def class_shares(table: pd.DataFrame, classes: Classes) -> np.ndarray:
    """Returns the share of each class `[C]` among the images of one class."""
    counts = np.array([(table["dx"] == code).sum() for code in classes.codes])
    return counts / counts.sum()


def image_set(table: pd.DataFrame, classes: Classes, sources: list[Any], sets: tuple[str, ...] = ()) -> ImageSet:
    """Returns the image set of a table with its true labels; `sets` names labels that stand for several classes."""
    return ImageSet(table.reset_index(drop=True), true_labels(table, classes, sets), sources)


def load_splits(
    data: Data,
    root: Path,
    split: pd.DataFrame | None = None,
    announce: bool = False,
    facts: RunClasses | None = None,
) -> Splits:
    """Returns the image sets of the data at `root`, with the given split (a run's split.csv) or a new one.

    Args:
        data: the config's section.
        root: the data folder.
        split: rows of a split.csv, or None to draw a new split.
        announce: whether to print the table and the folders that the images come from.
        facts: a run's classes.yaml, with the split of a run on a user's own table.
    """
    left_out = None
    if data.name == "cifar10":
        classes = CIFAR_CLASSES
        table, split = cifar_table(data, root, split)
    elif data.name == "table":
        table, split, facts = _own_table(data, root, split, announce, facts)
        classes = facts.classes
    else:
        classes = HAM_CLASSES
        ham = read_folder(root)
        table = ham.table
        extra_images = read_extra(data) if data.extra else None
        if announce:
            print("\n".join([ham.used(), *ham.notes()]), flush=True)
        if split is None:
            require_classes(table, ham.source)
            if data.skip_unreadable:
                table = readable(table, root)
            # The meta set comes first: its error message names the missing images and both remedies.
            reserved = table.iloc[:0] if data.reserve is None else listed(table, data.reserve, "the reserve")
            free = table  # a list of meta images may name reserved ones
            if data.meta == "rule":
                free = table[~table["lesion_id"].isin(reserved["lesion_id"])]
            meta = meta_set(free, data.meta, data.meta_per_class)
            table = with_images(table, root)
            if not data.skip_unreadable:
                refuse_unreadable(table, root)
            split = split_lesions(table, meta, data.validation, data.test, data.split_seed, reserved)
            if extra_images is not None:
                added, left_out = choose_extra(extra_images, ham.table, split, root, Path(str(data.extra)).name)
                split = pd.concat([split, added], ignore_index=True)
        if extra_images is not None:
            table = with_extra(table, extra_images, split, str(data.extra))
    if data.name != "cifar10":
        missing = table["image_id"][(table["path"] == "") & table["image_id"].isin(split["image_id"])]
        if len(missing):
            raise UserError(
                f"{root} lacks {len(missing):,} of the {len(split):,} images in the run's split.csv, such as "
                f"{missing.iloc[0]}: put them back, or start a new run"
            )
        table = table.rename(columns={"path": "source"})
    sets = (BENIGN_LABEL,) if data.extra_benign == "sum" else ()
    is_class, is_set = split["dx"].isin(classes.codes), split["dx"].isin(sets) & (split["split"] == "train")
    odd = split["dx"][~(is_class | is_set)]
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
        parts[name] = image_set(rows.drop(columns="source"), classes, rows["source"].tolist(), sets)
    for name, kind, rate in (("train", data.noise, data.noise_rate), ("meta", "uniform", data.meta_noise_rate)):
        if rate:
            rows = parts[name].table
            if data.name == "table":  # a group may hold images of several classes
                rows = rows.assign(lesion_id=rows["lesion_id"] + "\n" + rows["dx"])
            labels, one_class = parts[name].labels.copy(), rows["dx"].isin(classes.codes).to_numpy()
            labels[one_class] = with_wrong_labels(rows[one_class], classes.codes, kind, rate, data.noise_seed)
            parts[name] = replace(parts[name], labels=labels)
    return Splits(classes, split, **parts, facts=facts, left_out=left_out, sets=sets)


def _own_table(
    data: Data, root: Path, split: pd.DataFrame | None, announce: bool, facts: RunClasses | None
) -> tuple[pd.DataFrame, pd.DataFrame, RunClasses]:
    """The images of a user's own table, their split and the facts to store with it."""
    if split is None:
        images = read_table(data, root)
        split, facts = draw_split(images, data)
        table = images.table
    elif facts is None:
        raise ValueError("a split of a user's own table requires the classes of its run")
    else:
        table = read_images(data, root).table
    if announce:
        lines = [f"Data: {root}, {len(split):,} images of {len(facts.classes.codes)} classes", *facts.notes]
        print("\n".join(lines), flush=True)
    unused = [name for name in ("split", "source", "line", "label") if name in table]
    empty = [name for name in table.columns.difference(["path"]) if (table[name] == "").all()]
    return table.drop(columns=[*unused, *(name for name in empty if name not in unused)]), split, facts


def located(data: Data, root: Path) -> Data:
    """Returns the section with absolute paths, so that a run's config can be used from any folder."""
    paths = {key: getattr(data, key) for key in ("images", "classes", "extra", "extra_images", "refuse")}
    absolute = {key: str(expand_home(value).resolve()) for key, value in paths.items() if value is not None}
    return data.model_copy(update={"root": str(root), **absolute})
