"""Finds the official validation and test sets of ISIC 2018 Task 3 on disk.

The ground truth is in ISIC's format (`image` and one column per class) or in Dataverse's
(`ISIC2018_Task3_Test_GroundTruth.tab`, with the columns of HAM10000_metadata). Dataverse publishes 1,511 of the 1,512
test images. The other one, ISIC_0035068, has no metadata and the weight 0 in the official score.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from dermrw.datasets.ham10000 import TABLE_COLUMNS, image_paths, one_hot_to_dx, validated, with_optional
from dermrw.errors import UserError
from dermrw.files import open_regular
from dermrw.labelled.folder import choose_table, data_files, find_images, matching, read_frame, require_columns
from dermrw.metrics.classification import score_weights

NAMES_SHOWN = 5  # of missing images


class OfficialSet(NamedTuple):
    """An official set on disk."""

    title: str
    table: pd.DataFrame  # TABLE_COLUMNS; the images with a file
    missing: list[str]  # ids in the ground truth that have no file
    source: Path  # the ground truth

    def incomplete(self, unreadable: Sequence[str] = ()) -> str | None:
        """Returns a sentence on the images that can't be scored, or None if the set is complete.

        Args:
            unreadable: ids of images in `table` that can't be read.
        """
        absent = sorted([*self.missing, *unreadable])
        if not absent:
            return None
        names = ", ".join(absent[:NAMES_SHOWN]) + (", …" if len(absent) > NAMES_SHOWN else "")
        unweighted = not score_weights(absent).any()
        weight = ", which has weight 0 in the official score" if unweighted else ""
        verb = "is" if len(absent) == 1 else "are"
        total = len(self.table) + len(self.missing)
        return f"{len(absent):,} of {total:,} images {verb} missing or unreadable and not scored: {names}{weight}"


def find_official(root: Path, part: str) -> OfficialSet | None:
    """Returns the official `Validation` or `Test` set below `root` or in a sibling folder named after ISIC, or None.

    Of several, the one with the most images is used; it has none if only labels are there. Without a table of lesions
    next to the ground truth, every image counts as its own lesion.

    Raises:
        UserError: a ground truth can't be read, or two contradict each other.
    """
    folders = [root, *sorted(p for p in root.parent.iterdir() if p.is_dir() and "isic" in p.name.lower() and p != root)]
    files_of = {folder: data_files(folder) for folder in folders}
    sets: list[OfficialSet] = []
    for folder, files in files_of.items():
        truths = matching(files, folder, f"*Task3_{part}_GroundTruth")
        found = choose_table(truths, folder, _read_truth, ["image_id", "dx"])
        if found is None:
            continue
        ids = found.rows["image_id"].tolist()
        paths = dict(image_paths(files, folder, ids, found.path).paths)
        for other, others in files_of.items():
            absent = [image for image in ids if image not in paths]
            if absent and other != folder:
                paths |= find_images(others, other, absent).paths
        table = found.rows.assign(path=[str(paths.get(image, "")) for image in ids])[TABLE_COLUMNS]
        table = table.sort_values("image_id", ignore_index=True)
        present = table[table["path"] != ""].reset_index(drop=True)
        missing = table.loc[table["path"] == "", "image_id"].tolist()
        sets.append(OfficialSet(f"ISIC 2018's official {part.lower()} set", present, missing, found.path))
    if not sets:
        return None
    best = max(sets, key=lambda official: len(official.table))
    for other_set in sets:
        _require_same_labels(best, other_set)
    return best


def _require_same_labels(one: OfficialSet, other: OfficialSet) -> None:
    both = one.table.merge(other.table, on="image_id", suffixes=("", "_other"))
    different = both["image_id"][both["dx"] != both["dx_other"]]
    if len(different):
        raise UserError(
            f"{one.source} and {other.source} give image {different.iloc[0]} different diagnoses: "
            "delete or move the wrong one"
        )


def _read_truth(path: Path) -> pd.DataFrame:
    """Returns a ground truth with the columns of `TABLE_COLUMNS` except `path`."""
    table = read_frame(path)
    names = {name.casefold() for name in table.columns}
    if {"image_id", "dx"} <= names:
        table = with_optional(require_columns(table, ["image_id", "dx"], path))
        table = table.assign(dx=table["dx"].str.lower())
    else:
        table = require_columns(table, ["image"], path)
        table = with_optional(table.assign(dx=one_hot_to_dx(table, path)).rename(columns={"image": "image_id"}))
    if "lesion_id" in table.columns:
        table["lesion_id"] = table["lesion_id"].where(table["lesion_id"] != "", table["image_id"])
    else:
        table["lesion_id"] = _lesions(path, table["image_id"])
    return validated(table, path)


def _lesions(truth: Path, ids: pd.Series) -> pd.Series:
    """Returns the lesion of each image from a CSV file next to the ground truth, or the image's id if there is none."""
    for path in sorted(truth.parent.glob("*.csv")):
        with open_regular(path) as file:
            if b"lesion" not in file.read(4096).replace(b"\0", b"").lower():  # large tables of pixels are not read
                continue
        table = read_frame(path)
        image = next((c for c in ("image_id", "image") if c in table.columns), None)
        lesion = next((c for c in table.columns if c.startswith("lesion_id")), None)
        if image and lesion and ids.isin(table[image]).all():
            return ids.map(table.drop_duplicates(image).set_index(image)[lesion])
    return ids
