"""Reads the metadata of HAM10000 and ISIC 2018 Task 3 from disk: images, lesions and diagnoses.

Two layouts are supported: HAM10000 as distributed by Harvard Dataverse and Kaggle (`HAM10000_metadata[.csv|.tab]`,
images in one or several folders), and ISIC 2018 Task 3 (a ground-truth CSV, lesion groupings, an `…_Input` folder).
Images are found by their names, anywhere below the data folder.
"""

import os
from fnmatch import fnmatchcase
from pathlib import Path

import pandas as pd

from dermrw.diagnoses import COLUMNS, DX
from dermrw.errors import UserError, first_of
from dermrw.files import expand_home, open_regular, walk
from dermrw.images.formats import IMAGE_SUFFIXES

TABLE_COLUMNS = ["image_id", "lesion_id", "dx", "dx_type", "age", "sex", "localization", "path"]
# from the terms of ISIC's lesion groupings to HAM10000's dx_type
CONFIRMATION = {
    "histopathology": "histo",
    "serial imaging showing no change": "follow_up",
    "single image expert consensus": "consensus",
    "confocal microscopy with consensus dermoscopy": "confocal",
}
DOWNLOAD_HINT = "`make data` downloads it"


def find_ham10000(root: str | None, name: str = "data.root") -> Path | None:
    """Returns the folder of HAM10000: `root`, HAM10000_DIR or data/ham10000, in this order; None if there is none.

    Raises:
        UserError: `root` (called `name` in the message) or HAM10000_DIR is set, but is not a folder.
    """
    for value, key in ((root, name), (os.environ.get("HAM10000_DIR"), "HAM10000_DIR")):
        if value:
            try:
                folder = expand_home(value)
            except ValueError as error:
                raise UserError(f"{key} is {value}: {error}") from None
            if not folder.is_dir():
                raise UserError(f"{key} is {value}, which is not a folder: correct it, or leave it out")
            return folder.resolve()
    default = Path("data/ham10000")
    return default.resolve() if default.is_dir() else None


def index_images(root: Path) -> dict[str, Path]:
    """Returns the image files below `root` by id (file name without extension); of equal names, the first in order."""
    found: dict[str, Path] = {}
    for path in walk(root):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
            found.setdefault(path.stem, path)
    return found


def _paths(table: pd.DataFrame, root: Path, source: Path) -> list[str]:
    """Returns the file of each image of the table, or an empty string if it is missing."""
    found = index_images(root)
    for image in table["image_id"]:
        stem, suffix = os.path.splitext(image)
        if image not in found and stem in found and suffix.lower() in IMAGE_SUFFIXES:
            raise UserError(f"{source}: the image id {image} carries a file's ending: write {stem}, and so for all")
    return [str(found.get(image, "")) for image in table["image_id"]]


def _read_csv(path: Path) -> pd.DataFrame:
    """Reads a comma- or tab-separated table. All cells are strings, also empty ones."""
    try:
        with open_regular(path) as file:
            separator = "\t" if b"\t" in file.readline() else ","
            file.seek(0)
            return pd.read_csv(file, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        # pandas' parser errors are ValueErrors, and some have several lines
        raise UserError(f"{path} can't be read as a table: {' '.join(str(error).split())}") from None


def _require(table: pd.DataFrame, columns: list[str], path: Path) -> None:
    missing = [c for c in columns if c not in table.columns]
    if missing:
        raise UserError(f"{path} lacks the column {', '.join(missing)}: is it the file as published?")


def _first(root: Path, patterns: list[str]) -> Path | None:
    """Returns the first file below `root` that matches a pattern, with the patterns in order of preference, or None."""
    paths = sorted(p for p in walk(root) if not p.name.startswith("."))
    return next((p for pattern in patterns for p in paths if fnmatchcase(p.name, pattern) and p.is_file()), None)


def _one_hot_to_dx(table: pd.DataFrame, path: Path) -> pd.Series:
    _require(table, ["image", *COLUMNS], path)
    values = table[list(COLUMNS)].apply(pd.to_numeric, errors="coerce").to_numpy()
    bad = table["image"][(values == 1).sum(1) != 1]
    if len(bad):
        raise UserError(f"{path}: image {bad.iloc[0]} must have a 1 in exactly one column")
    return pd.Series([DX[i] for i in values.argmax(1)], index=table.index)


def _read_ham10000(metadata: Path) -> pd.DataFrame:
    table = _read_csv(metadata)
    _require(table, ["lesion_id", "image_id", "dx"], metadata)
    for optional in ("dx_type", "age", "sex", "localization"):
        if optional not in table.columns:
            table[optional] = ""
    return table


def _read_isic_training(truth: Path, root: Path) -> pd.DataFrame:
    table = _read_csv(truth)
    groups_path = _first(root, ["*LesionGroupings*.csv"])
    if groups_path is None:
        raise UserError(
            f"{root} has no ISIC2018_Task3_Training_LesionGroupings.csv, without which images of one lesion could be "
            "on both sides of the split: fetch it from the ISIC 2018 challenge's page"
        )
    groups = _read_csv(groups_path)
    _require(groups, ["image", "lesion_id"], groups_path)
    lesion = groups.set_index("image")["lesion_id"]
    without = table["image"][~table["image"].isin(lesion.index)]
    if len(without):
        raise UserError(f"{groups_path} names no lesion for {first_of(without.tolist())}: is it the file as published?")
    confirm = groups.set_index("image").get("diagnosis_confirm_type", pd.Series("", index=lesion.index))
    return pd.DataFrame(
        {
            "image_id": table["image"],
            "lesion_id": table["image"].map(lesion),
            "dx": _one_hot_to_dx(table, truth),
            "dx_type": table["image"].map(confirm).map(lambda c: CONFIRMATION.get(str(c).lower(), str(c))),
            "age": "",
            "sex": "",
            "localization": "",
        }
    )


def _validated(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Returns the table after a check: unique image ids, known diagnoses, and one diagnosis per lesion.

    Raises:
        UserError: the check fails.
    """
    if table.empty:
        raise UserError(f"{path} lists no image")
    for column in ("image_id", "lesion_id"):
        blank = table.index[table[column].str.strip() == ""]
        if len(blank):
            raise UserError(f"{path}: row {blank[0] + 2} has no {column}")
    odd = table["image_id"][table["image_id"].str.contains(r"[/\\]|^\.", regex=True)]
    if len(odd):
        raise UserError(f"{path}: {odd.iloc[0]!r} is not an image id")
    doubled = table["image_id"][table["image_id"].duplicated()]
    if len(doubled):
        raise UserError(f"{path} lists image {doubled.iloc[0]} twice: keep one of its rows")
    unknown = table[~table["dx"].isin(DX)]
    if len(unknown):
        row = unknown.iloc[0]
        raise UserError(f"{path}: image {row.image_id} has the diagnosis {row.dx!r}; known are {', '.join(DX)}")
    diagnoses = table.groupby("lesion_id")["dx"].nunique()
    if (diagnoses > 1).any():
        raise UserError(f"{path}: lesion {diagnoses.idxmax()} has two diagnoses; a lesion has one")
    return table


def read_ham10000(root: Path) -> pd.DataFrame:
    """Reads HAM10000 at `root` in either layout: one row per image, sorted by id, with the columns `TABLE_COLUMNS`.

    `path` is empty if the image file is missing. `dx_type` (how the diagnosis was confirmed) serves only to choose the
    meta set and for the report. It leaks the diagnosis and must never be an input of a model.
    """
    metadata = _first(root, ["HAM10000_metadata.csv", "HAM10000_metadata", "HAM10000_metadata.tab"])
    if metadata is not None:
        table, source = _validated(_read_ham10000(metadata), metadata), metadata
    else:
        truth = _first(root, ["*Task3_Training_GroundTruth.csv"])
        if truth is None:
            raise UserError(
                f"{root} holds neither HAM10000_metadata[.csv] nor ISIC2018_Task3_Training_GroundTruth.csv: "
                f"point data.root or HAM10000_DIR to HAM10000; {DOWNLOAD_HINT}"
            )
        table, source = _validated(_read_isic_training(truth, root), truth), truth
    table["path"] = _paths(table, root, source)
    return table[TABLE_COLUMNS].sort_values("image_id", ignore_index=True)


def with_images(table: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Returns the table if the file of every image exists.

    Raises:
        UserError: images are missing.
    """
    missing = table["image_id"][table["path"] == ""]
    if len(missing):
        raise UserError(
            f"{root} lacks {len(missing):,} of {len(table):,} images, {missing.iloc[0]}.jpg the first: "
            f"complete it ({DOWNLOAD_HINT}; `python -m dermrw check {root}` lists what is missing)"
        )
    return table


def find_official(root: Path, part: str) -> pd.DataFrame | None:
    """Returns the official `Validation` or `Test` set of ISIC 2018 Task 3 below `root` or in a sibling folder, or None.

    The columns are those of `read_ham10000`. Without a table of lesions next to the ground truth, every image counts as
    its own lesion.
    """
    folders = [root, *sorted(p for p in root.parent.iterdir() if p.is_dir() and "isic" in p.name.lower())]
    for folder in folders:
        truth = _first(folder, [f"*Task3_{part}_GroundTruth.csv"])
        if truth is None:
            continue
        table = _read_csv(truth)
        ids = table["image_id"] if "image_id" in table.columns else table.get("image")
        if ids is None:
            raise UserError(f"{truth} lacks the column image")
        dx = table["dx"] if "dx" in table.columns else _one_hot_to_dx(table, truth)
        lesion = table["lesion_id"] if "lesion_id" in table.columns else _lesions_beside(truth, ids)
        result = pd.DataFrame({"image_id": ids, "lesion_id": lesion, "dx": dx})
        for column in ("dx_type", "age", "sex", "localization"):
            result[column] = table[column] if column in table.columns else ""
        result["path"] = _paths(result, folder, truth)
        if (result["path"] == "").all():
            continue  # labels without images can't be scored
        return with_images(_validated(result, truth), folder).sort_values("image_id", ignore_index=True)
    return None


def _lesions_beside(truth: Path, ids: pd.Series) -> pd.Series:
    for path in sorted(truth.parent.glob("*.csv")):
        table = _read_csv(path)
        image = next((c for c in ("image_id", "image") if c in table.columns), None)
        lesion = next((c for c in table.columns if c.startswith("lesion_id")), None)
        if image and lesion and ids.isin(table[image]).all():
            return ids.map(table.drop_duplicates(image).set_index(image)[lesion])
    return ids
