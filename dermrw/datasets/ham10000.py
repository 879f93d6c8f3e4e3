"""Reads the images, lesions and diagnoses of HAM10000 from disk.

Two layouts are supported: HAM10000 as distributed by Harvard Dataverse and Kaggle (`HAM10000_metadata[.csv|.tab]`,
images in one or several folders), and ISIC 2018 Task 3 (a ground-truth CSV, lesion groupings, an `…_Input` folder).
Images are found by their names, anywhere below the data folder. Of several tables the nearest to the folder is used.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from dermrw.diagnoses import COLUMNS, DX
from dermrw.errors import UserError, first_of
from dermrw.files import expand_home
from dermrw.images.formats import IMAGE_SUFFIXES
from dermrw.labelled.folder import (
    FoundImages,
    FoundTable,
    choose_table,
    data_files,
    find_images,
    folder_text,
    matching,
    read_frame,
    relative,
    require_columns,
)

TABLE_COLUMNS = ["image_id", "lesion_id", "dx", "dx_type", "age", "sex", "localization", "path"]
OPTIONAL = ("dx_type", "age", "sex", "localization")
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


class HamFolder(NamedTuple):
    """The content of a HAM10000 folder and where it was found."""

    root: Path
    table: pd.DataFrame  # TABLE_COLUMNS; one row per image, sorted by id; `path` is empty if the file is missing
    source: Path  # the file with the diagnoses
    unused: list[Path]  # other tables that match
    copies: list[Path]  # image files that are identical to a used one

    @property
    def paths(self) -> list[str]:
        """The image files that exist."""
        return [path for path in self.table["path"] if path]

    def used(self) -> str:
        """Returns one line with the table and the image folders, for the start of a training."""
        where = folder_text(self.paths, self.root) if self.paths else "no folder"
        return f"Data in {self.root}: table {relative(self.source, self.root)}; images in {where}"

    def notes(self) -> list[str]:
        """Returns sentences on files that were found and not used."""
        notes = []
        if self.unused:
            names = ", ".join(relative(path, self.root) for path in self.unused[:5])
            more = f" and {len(self.unused) - 5:,} more" if len(self.unused) > 5 else ""
            notes.append(
                f"Not used: {names}{more}. Of several tables the nearest to the data folder is used, and "
                "equally near ones have the same content"
            )
        if self.copies:
            n, folders = len(self.copies), folder_text(self.copies, self.root)
            notes.append(f"Not used: {n:,} image files that are identical to a used one, byte for byte, in {folders}")
        return notes


def read_ham10000(root: Path) -> pd.DataFrame:
    """Reads HAM10000 at `root` in either layout: one row per image, sorted by id, with the columns `TABLE_COLUMNS`.

    `path` is empty if the image file is missing. `dx_type` (how the diagnosis was confirmed) serves only to choose the
    meta set and for the report. It leaks the diagnosis and must never be an input of a model.
    """
    return read_folder(root).table


def read_folder(root: Path) -> HamFolder:
    """Reads HAM10000 at `root` in either layout.

    Raises:
        UserError: there is no table or a bad one, or several tables or image files contradict each other.
    """
    files = data_files(root)
    found = _find_table(files, root)
    images = image_paths(files, root, found.rows["image_id"].tolist(), found.path)
    table = found.rows.assign(path=[str(images.paths.get(image, "")) for image in found.rows["image_id"]])
    table = table[TABLE_COLUMNS].sort_values("image_id", ignore_index=True)
    return HamFolder(root, table, found.path, found.unused, images.copies)


def image_paths(files: Sequence[Path], root: Path, ids: list[str], source: Path) -> FoundImages:
    """Returns the image files of the ids in the table `source`.

    Raises:
        UserError: two files of an id differ, or the ids end in a suffix that the files' names have in addition.
    """
    images = find_images(files, root, ids)
    stems = {os.path.splitext(image)[0]: image for image in ids if image not in images.paths}
    stems = {stem: image for stem, image in stems.items() if image[len(stem) :].lower() in IMAGE_SUFFIXES}
    for stem in find_images(files, root, list(stems)).paths if stems else ():
        raise UserError(
            f"{source}: the image id {stems[stem]} ends in the suffix of a file: write {stem}, likewise in all rows"
        )
    return images


def _find_table(files: list[Path], root: Path) -> FoundTable:
    """Returns the table of either layout, with all columns of `TABLE_COLUMNS` except `path`."""

    def depth(paths: list[Path]) -> float:
        return len(paths[0].relative_to(root).parts) if paths else float("inf")

    dataverse = matching(files, root, "HAM10000_metadata")
    isic = matching(files, root, "*Task3_Training_GroundTruth")
    found: FoundTable | None
    if depth(dataverse) <= depth(isic) and dataverse:
        found = choose_table(dataverse, root, _read_ham10000, ["image_id", "lesion_id", "dx", "dx_type"])
        assert found is not None
        if depth(dataverse) == depth(isic):
            choose_table([found.path, isic[0]], root, _image_and_dx, ["image_id", "dx"])
        return found._replace(unused=[*found.unused, *isic])
    found = choose_table(
        isic, root, lambda path: _read_isic_training(path, files, root), ["image_id", "lesion_id", "dx"]
    )
    if found is not None:
        return found._replace(unused=[*found.unused, *dataverse])
    near = [path for path in files if "ham10000_metadata" in path.name.casefold()]
    renamed = f"{relative(near[0], root)} must be named HAM10000_metadata.csv, or " if near else ""
    raise UserError(
        f"{root} holds neither HAM10000_metadata[.csv] nor ISIC2018_Task3_Training_GroundTruth.csv: "
        f"{renamed}point data.root or HAM10000_DIR to HAM10000; {DOWNLOAD_HINT}"
    )


def _image_and_dx(path: Path) -> pd.DataFrame:
    """Returns ids and diagnoses of a table of either layout."""
    table = read_frame(path)
    if "Task3" in path.name:
        table = require_columns(table, ["image"], path)
        return pd.DataFrame({"image_id": table["image"], "dx": one_hot_to_dx(table, path)})
    return _read_ham10000(path)[["image_id", "dx"]]


def one_hot_to_dx(table: pd.DataFrame, path: Path) -> pd.Series:
    """Returns the diagnoses of a ground truth in ISIC's format, one column per class.

    Raises:
        UserError: a column is missing, or an image has not exactly one 1.
    """
    table = require_columns(table, ["image", *COLUMNS], path)
    numbers = table[list(COLUMNS)].apply(lambda column: column.str.replace(",", "."))  # decimal commas
    values = numbers.apply(pd.to_numeric, errors="coerce").to_numpy()
    bad = table["image"][(values == 1).sum(1) != 1]
    if len(bad):
        raise UserError(f"{path}: image {bad.iloc[0]} must have a 1 in exactly one column")
    return pd.Series([DX[i] for i in values.argmax(1)], index=table.index, dtype=str)


def _read_ham10000(metadata: Path) -> pd.DataFrame:
    table = with_optional(require_columns(read_frame(metadata), ["lesion_id", "image_id", "dx"], metadata))
    return validated(table.assign(dx=table["dx"].str.lower()), metadata)


def with_optional(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the table with the columns `OPTIONAL`, empty where the file has none."""
    spelled = {c: c.casefold() for c in table.columns if c.casefold() in OPTIONAL}
    table = table.rename(columns=spelled)
    for column in OPTIONAL:
        if column not in table.columns:
            table[column] = ""
    table["age"] = table["age"].str.replace(",", ".")  # decimal commas
    return table


def _read_isic_training(truth: Path, files: list[Path], root: Path) -> pd.DataFrame:
    table = require_columns(read_frame(truth), ["image"], truth)
    found = choose_table(matching(files, root, "*LesionGroupings*"), root, _read_groups, ["image", "lesion_id"])
    if found is None:
        raise UserError(
            f"{root} has no ISIC2018_Task3_Training_LesionGroupings.csv, without which images of one lesion could be "
            "on both sides of the split: download it from the ISIC 2018 challenge's page"
        )
    groups = found.rows.set_index("image")
    without = table["image"][~table["image"].isin(groups.index)]
    if len(without):
        raise UserError(f"{found.path} names no lesion for {first_of(without.tolist())}: is it the file as published?")
    confirm = groups.get("diagnosis_confirm_type", pd.Series("", index=groups.index))
    rows = pd.DataFrame(
        {
            "image_id": table["image"],
            "lesion_id": table["image"].map(groups["lesion_id"]),
            "dx": one_hot_to_dx(table, truth),
            "dx_type": table["image"].map(confirm).map(lambda c: CONFIRMATION.get(str(c).lower(), str(c))),
            "age": "",
            "sex": "",
            "localization": "",
        }
    )
    return validated(rows, truth)


def _read_groups(path: Path) -> pd.DataFrame:
    """Returns the lesion groupings, one row per image."""
    groups = require_columns(read_frame(path), ["image", "lesion_id"], path)
    groups = groups.rename(columns={c: c.casefold().replace(" ", "_") for c in groups.columns})
    doubled = groups["image"][groups["image"].duplicated()]
    if len(doubled):
        raise UserError(f"{path} lists image {doubled.iloc[0]} twice: keep one of its rows")
    return groups


def validated(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Returns the table after a check: unique image ids, known diagnoses, and one diagnosis per lesion.

    Raises:
        UserError: the check fails.
    """
    if table.empty:
        raise UserError(f"{path} lists no image")
    for column in ("image_id", "lesion_id"):
        blank = table.index[table[column].str.strip() == ""]
        if len(blank):
            raise UserError(f"{path}: line {blank[0]} has no {column}")
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
