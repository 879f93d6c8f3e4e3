"""`data.extra=TABLE`: further labelled images, added to the training split of a HAM10000 run and to no other split.

Public tables overlap: ISIC 2019 contains HAM10000, and the ISIC archive contains the official test set, often resized
or recompressed. So an image is left out if its id is known, or if it looks like an image of the run or of an official
set (perceptual hashes, as in `dermrw.inference.known_images`). If that image is not a training image, all images of its
group are left out, too. A table may have a column `split`: then only its rows with `train` are added. Its rows with
`validation` bound the false refusals (`dermrw.evaluation.refusal_fit`).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from dermrw.config import Data
from dermrw.datasets.ham10000 import read_folder
from dermrw.datasets.hash_cache import hash_images
from dermrw.datasets.official import OfficialSet, find_official
from dermrw.diagnoses import BENIGN_LABEL, DX, HAM_CLASSES
from dermrw.errors import UserError, first_of
from dermrw.files import expand_home
from dermrw.inference.known_images import Hashes, ImageHash, have_copy, have_two_labels
from dermrw.labelled.labelled_images import SPLIT_NAMES, read_labelled_images
from dermrw.labelled.names import codes_by_name
from dermrw.published import BENIGN, archive_id, fold, image_name

PREFIX = "extra "  # of these images' groups in split.csv
OFFICIAL_IDS = range(34321, 36065)  # ISIC_0034321 to ISIC_0036064: ISIC 2018's official validation and test images
HELD_ID, HELD_COPY = "id of a held-out image", "looks like a held-out image"
HELD_LESION, HELD_GROUP = "lesion of a held-out image", "group of a held-out image"
TRAIN_ID, TRAIN_COPY = "id of a training image", "looks like a training image"
NO_FILE, UNREADABLE, NO_CLASS = "no file", "can't be read", "label without a class"
NOT_TRAIN, TWO_LABELS = "split is not train", "looks the same as an image with another label"


class Chosen(NamedTuple):
    """The result for each image of the table."""

    rows: pd.DataFrame  # image_id, lesion_id, dx, split of the added images
    left_out: pd.DataFrame  # image_id, label and reason of the others


def read_extra(data: Data) -> pd.DataFrame:
    """Returns the images of `data.extra`: image_id, path, label, lesion_id, dx (empty: no class), and subgroups.

    With `data.extra_benign=sum`, dx is `benign` for images with this label. The column split is there if the source
    has one.

    Raises:
        UserError: the table cannot be read.
    """
    assert data.extra is not None
    source = expand_home(data.extra)
    if not source.exists():
        raise UserError(f"data.extra is {source}, which does not exist: name a table or a folder of labelled images")
    images = expand_home(data.extra_images) if data.extra_images else None
    if images is not None and not images.is_dir():
        raise UserError(f"data.extra_images is {images}, which is not a folder: correct it, or leave it out")
    names = codes_by_name(HAM_CLASSES)
    labelled = read_labelled_images(source, images, classes=names.keys(), option="data.extra_images")
    if labelled.published:
        names |= {label: code for label, code in labelled.published.codes.items() if code in DX}
    if data.extra_benign == "sum":
        names.setdefault(BENIGN, BENIGN_LABEL)
    codes = [names.get(fold(label), "") for label in labelled.table["label"]]
    return labelled.table.assign(dx=codes)


def choose_extra(extra: pd.DataFrame, ham: pd.DataFrame, split: pd.DataFrame, root: Path, name: str) -> Chosen:
    """Returns the images to add to training, and prints how many are added and left out.

    Args:
        extra: the result of `read_extra`.
        ham: all images of HAM10000, with the columns image_id, lesion_id and path (empty: no file).
        split: the run's split of them.
        root: HAM10000's folder; official sets are searched below and next to it.
        name: of the table, for messages.

    Raises:
        UserError: no image is left.
    """
    train = set(split["image_id"][split["split"] == "train"])
    is_train = ham["image_id"].isin(train)
    official = _official_sets(root)
    held = pd.concat([ham[~is_train], *(found.table for found in official)])
    held_ids = {*map(_key, held["image_id"]), *(_key(image) for found in official for image in found.missing)}
    train_ids = set(map(_key, ham["image_id"][is_train]))
    keys = extra["image_id"].map(_key)
    held_id = (keys.isin(held_ids) | keys.map(_is_official)).to_numpy()
    lesions = set(held["lesion_id"]) - set(ham["lesion_id"][is_train])
    held_lesion = extra["lesion_id"].str.removeprefix("lesion_id ").isin(lesions).to_numpy()

    hashes = hash_images([*extra["path"], *ham["path"], *held["path"]])
    mine = [hashes.get(path) for path in extra["path"]]
    readable = np.array([value is not None for value in mine], dtype=bool)
    held_copy, train_copy = np.zeros(len(extra), dtype=bool), np.zeros(len(extra), dtype=bool)
    own = _array(mine)
    held_copy[readable] = have_copy(own, _array(hashes.get(path) for path in held["path"]))
    train_copy[readable] = have_copy(own, _array(hashes.get(path) for path in ham["path"][is_train]))

    groups = extra["lesion_id"].to_numpy(str)
    held_group = np.isin(groups, groups[held_id | held_copy | held_lesion])
    reasons = np.full(len(extra), "", dtype=object)
    train_rows = extra["split"].map(SPLIT_NAMES).eq("train") if "split" in extra else pd.Series(True, extra.index)
    for reason, which in (
        (NOT_TRAIN, ~train_rows.to_numpy()),
        (NO_CLASS, (extra["dx"] == "").to_numpy()),
        (NO_FILE, (extra["path"] == "").to_numpy()),
        (HELD_ID, held_id),
        (TRAIN_ID, keys.isin(train_ids).to_numpy()),
        (UNREADABLE, ~readable),
        (HELD_COPY, held_copy),
        (HELD_LESION, held_lesion),
        (HELD_GROUP, held_group),
        (TRAIN_COPY, train_copy),
    ):
        reasons[(reasons == "") & which] = reason
    # benign without a diagnosis contradicts no class, and an image that is left out none either
    diagnoses = extra["dx"].where((reasons == "") & (extra["dx"] != BENIGN_LABEL), "")
    two_labels = np.zeros(len(extra), dtype=bool)
    two_labels[readable] = have_two_labels(own, diagnoses[readable].tolist())
    reasons[two_labels & (reasons == "")] = TWO_LABELS
    left_out = extra[["image_id", "label"]].assign(reason=reasons)[reasons != ""].reset_index(drop=True)
    added = extra[reasons == ""]
    _announce(added, left_out, name)
    if added.empty:
        raise UserError(f"data.extra={name} adds no image to training: leave it out, or name another table")
    several = added.groupby("lesion_id")["dx"].transform("nunique") > 1  # label noise needs one class for each lesion
    lesion = PREFIX + added["lesion_id"].where(~several, added["lesion_id"] + " " + added["dx"])
    rows = pd.DataFrame({"image_id": added["image_id"], "lesion_id": lesion, "dx": added["dx"], "split": "train"})
    return Chosen(rows.reset_index(drop=True), left_out)


def with_extra(table: pd.DataFrame, extra: pd.DataFrame, split: pd.DataFrame, name: str) -> pd.DataFrame:
    """Returns the table of HAM10000's images with the extra images of a split.

    Raises:
        UserError: the extra table lacks images of the split, or their files.
    """
    wanted = split["image_id"][is_extra(split)]
    found = extra[extra["image_id"].isin(wanted) & (extra["path"] != "")]
    absent = wanted[~wanted.isin(found["image_id"])].tolist()
    if absent:
        raise UserError(
            f"{name} lacks {len(absent):,} of the {len(wanted):,} images that the run added from it, such as "
            f"{first_of(absent)}: put them back, or correct data.extra and data.extra_images"
        )
    both = pd.concat([table, found.reindex(columns=table.columns, fill_value="")], ignore_index=True)
    return both.fillna("")


def validation_sources(
    data: Data, trained: pd.DataFrame, paths: Sequence[str], held: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    """Returns the validation images of `data.extra` by source.

    The source is in the column `source`, `dataset` or `challenge`; without them, it is the name of the table. Images
    that a run has trained with and images that it holds out are left out, with the other images of their groups, by id
    and by perceptual hash. Images that cannot be read are left out as well. The labels are not used.

    Args:
        data: the config's section.
        trained: the run's training images, with the columns image_id and lesion_id.
        paths: their files.
        held: the images that the run holds out, with the columns image_id and path (`held_out`).

    Raises:
        UserError: the table cannot be read.
    """
    extra = read_extra(data)
    if "split" not in extra:
        return {}
    rows = extra[extra["split"].map(SPLIT_NAMES).eq("validation") & (extra["path"] != "")]
    if rows.empty:
        return {}
    others = [*paths, *held["path"]]
    hashes = hash_images([*rows["path"], *others])
    rows = rows[rows["path"].isin(hashes)]
    keys = rows["image_id"].map(_key)
    known = (
        keys.isin({*map(_key, trained["image_id"]), *map(_key, held["image_id"])}) | keys.map(_is_official)
    ).to_numpy()
    known = known | have_copy(_array(map(hashes.get, rows["path"])), _array(map(hashes.get, others)))
    groups = set(trained["lesion_id"][is_extra(trained)].str.removeprefix(PREFIX))
    groups |= {group for group, dx in zip(rows["lesion_id"], rows["dx"], strict=True) if f"{group} {dx}" in groups}
    known = known | rows["lesion_id"].isin(groups | set(rows["lesion_id"][known])).to_numpy()
    names = rows["source"] if "source" in rows else pd.Series("", rows.index)
    kept = rows.assign(source=names.replace("", Path(str(data.extra)).name))[~known]
    return {str(name): part.reset_index(drop=True) for name, part in kept.groupby("source")}


def held_out(root: Path, split: pd.DataFrame) -> pd.DataFrame:
    """Returns image_id and path of HAM10000's images that a run neither trains with nor validates on.

    These are test and meta images, images that no split contains, and the official sets next to them.

    Args:
        root: HAM10000's folder.
        split: the run's split.
    """
    table = read_folder(root).table
    used = split["image_id"][split["split"].isin(["train", "validation"])]
    parts = [table[~table["image_id"].isin(used)], *(found.table for found in _official_sets(root))]
    return pd.concat([part[["image_id", "path"]] for part in parts], ignore_index=True)


def _official_sets(root: Path) -> list[OfficialSet]:
    return [found for part in ("Validation", "Test") if (found := find_official(root, part)) is not None]


def is_extra(split: pd.DataFrame) -> pd.Series:
    """Whether each row of a split.csv is an image of `data.extra`."""
    return split["lesion_id"].str.startswith(PREFIX)


def _array(values: Iterable[ImageHash | None]) -> Hashes:
    return np.array([value for value in values if value is not None], dtype=np.uint64).reshape(-1, 2)


def _key(image_id: str) -> str:
    return archive_id(image_id) or image_name(image_id).casefold()


def _is_official(key: str) -> bool:
    """Whether an id is one of ISIC 2018's official images, which are not always on this machine."""
    number = key.removeprefix("isic_")
    return key != number and number.isdecimal() and int(number) in OFFICIAL_IDS


def _announce(added: pd.DataFrame, left_out: pd.DataFrame, name: str) -> None:
    counts = added["dx"].value_counts()
    classes = ", ".join(f"{code} {counts[code]:,}" for code in (*DX, BENIGN_LABEL) if code in counts)
    total = len(added) + len(left_out)
    print(f"Added to training from {name}: {len(added):,} of {total:,} images ({classes or 'none'})")
    if len(left_out):
        print("Left out: " + "; ".join(f"{reason}, {n:,}" for reason, n in count_reasons(left_out).items()), flush=True)


def count_reasons(left_out: pd.DataFrame) -> dict[str, int]:
    """Returns the number of images by reason; a label without a class is named."""
    without = left_out["reason"] == NO_CLASS
    named = left_out["reason"].where(~without, left_out["reason"] + ": " + left_out["label"].replace("", "no label"))
    return dict(Counter(named.tolist()).most_common())


class SourceCounts(NamedTuple):
    """Training images of one source."""

    name: str
    classes: dict[str, int]  # number of images of each class
    benign: int  # number of benign images without a class


def training_sources(train: pd.DataFrame, name: str, codes: Sequence[str]) -> list[SourceCounts]:
    """Returns the number of training images of HAM10000 and of the extra table.

    Args:
        train: the table of the training images.
        name: of the extra table.
        codes: of the classes.
    """
    extra = is_extra(train)
    parts = ("HAM10000", train[~extra]), (name, train[extra])
    counts = [(source, Counter(rows["dx"].tolist())) for source, rows in parts]
    return [SourceCounts(source, {code: n[code] for code in codes}, n[BENIGN_LABEL]) for source, n in counts]
