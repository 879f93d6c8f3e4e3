"""Reads a user's labelled images: a CSV table, or a folder with a folder per class."""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import DisjointSet

from dermrw.csv_table import is_missing, parse_csv_table
from dermrw.errors import UserError, first_of
from dermrw.formatting import counted
from dermrw.images.formats import IMAGE_SUFFIXES
from dermrw.images.skin_tone import TONE_COLUMN
from dermrw.inference.find_images import find_images as find_image_files
from dermrw.inference.find_images import image_id
from dermrw.inference.known_images import is_distinctive
from dermrw.labelled.folder import data_files, find_images, frame_of, read_frame, require_columns
from dermrw.published import PublishedSet, archive_id, fold, published_duplicates, recognise

IMAGE_COLUMNS = ("image", "image_id", "isic_id", "image_name", "img_id", "image name", "file", "filename", "path")
LABEL_COLUMNS = ("label", "dx", "diagnosis", "benign_malignant", "target")
GROUP_COLUMNS = {
    "group": "groups",
    "patient_id": "patients",
    "patient": "patients",
    "lesion_id": "lesions",
    "lesion_id_isic": "lesions",  # of ISIC's lesion groupings
}
# columns of the report's subgroups, by the names that tables have
SUBGROUPS = {
    "sex": ("sex", "gender"),
    "age": ("age", "age_approx"),
    "localization": ("localization", "site", "anatom_site_general", "anatom_site_general_challenge", "anatom_site"),
    "dx_type": ("dx_type", "diagnosis_confirm_type"),
}
SOURCE_COLUMNS = ("source", "dataset", "challenge")
RESERVED = ("image_id", "text", "label", "lesion_id", "path", TONE_COLUMN)  # columns that --by cannot name
OTHER_CLASSES = ("scc", "unk")  # of ISIC's one-hot tables, which HAM10000 lacks
DUPLICATES = "ISIC_2020_Training_Duplicates.csv"  # published with ISIC 2020: pairs of images
# folders of a split above the folders of the classes, and the names of the parts in a table
SPLIT_NAMES = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "test": "test", "testing": "test", "meta": "meta",
}  # fmt: skip


class LabelledImages(NamedTuple):
    """Images with labels as the user names them."""

    # N rows with image_id, path (empty: not found), label, lesion_id (the group), and the columns of the subgroups.
    # Where they are known also split and source, as the user writes them, and line, the line of the table.
    table: pd.DataFrame
    unit: str  # of resampling: patients, lesions or groups; images without any of them
    subgroups: tuple[str, ...]  # columns of the table in addition to `SUBGROUPS`
    notes: list[str]
    published: PublishedSet | None = None  # the published set that the table belongs to
    duplicates: tuple[str, ...] = ()  # ids of images that are not in the table, since it has their duplicates


def read_labelled_images(
    source: Path,
    images: Path | None = None,
    by: Sequence[str] = (),
    classes: Collection[str] = (),
    option: str = "--images",
) -> LabelledImages:
    """Returns the labelled images of a table or folder.

    Args:
        source: a CSV file, or a folder with a folder per class.
        images: the folder of the images; None: the folder of the table.
        by: further columns of the table that the report shows subgroups of.
        classes: folded names of the classes, to recognise one-hot columns.
        option: the option or key that names the folder of the images, for messages.

    Raises:
        UserError: the source cannot be read, lacks a column, or contradicts itself.
    """
    if source.is_dir():
        if images or by:
            raise UserError(
                f"{source} is a folder, so {'--by has' if by else f'{option} has'} no meaning: name a table, or leave "
                "it out"
            )
        return _read_folder(source)
    if not source.exists():
        raise UserError(f"there is no table or folder {source}")
    if images is not None and not images.is_dir():
        raise UserError(f"{option} {images} is not a folder")

    def find(texts: Sequence[str]) -> list[str]:
        return _paths(texts, images or source.parent, source, option, images is not None)

    return _read_table(source, read_frame(source), find, by, classes, alone=False)


def read_uploaded_table(
    content: bytes, name: str, find: Callable[[Sequence[str]], list[str]], classes: Collection[str] = (),
    most_cells: int | None = None,
) -> LabelledImages:  # fmt: skip
    """Returns the labelled images of a CSV file that is not on the disk.

    Args:
        content: of the file.
        name: of the file, for messages.
        find: returns the path of each image, empty where there is none, from the texts in the table's column.
        classes: folded names of the classes, to recognise one-hot columns.
        most_cells: as of `csv_table.parse_csv_table`.

    Raises:
        UserError: the table cannot be read, lacks a column, or contradicts itself.
    """
    frame = frame_of(parse_csv_table(content, name, most_cells=most_cells))
    return _read_table(Path(name), frame, find, (), classes, alone=True)


def normal_label(text: str) -> str:
    """Returns a label without outer spaces, in Unicode's composed form, whatever form a file system uses."""
    return unicodedata.normalize("NFC", text).strip()


def _read_folder(folder: Path) -> LabelledImages:
    files = find_image_files([folder], hidden=False)
    if files.misnamed:
        raise UserError("\n".join(map(str, files.misnamed.values())))
    parts = {name: path.relative_to(folder).parts[:-1] for name, path in files.images.items()}
    if not any(parts.values()):
        tables = sorted(path.name for path in folder.glob("*.csv"))
        fix = f"name a table, such as {folder / tables[0]}" if tables else "or name a table"
        raise UserError(f"{folder} has no folder per class with images: sort the images into folders, {fix}")
    splits = _split_folders(parts.values())
    table = pd.DataFrame({"image_id": list(parts), "path": [str(files.images[name]) for name in parts]})
    if splits:
        table["split"] = [SPLIT_NAMES[above[0].casefold()] for above in parts.values()]
    level = 1 if splits else 0
    table["label"] = [normal_label(above[level]) if len(above) > level else "" for above in parts.values()]
    for path, kept in files.again.items():
        places = [p.relative_to(folder).parts[: level + 1] for p in (kept, path)]
        if places[0] != places[1] and kept not in path.parents:  # a loop leads up
            raise UserError(
                f"{kept} and {path} are the same, by a link, in two folders: keep one of them, or move one out of "
                f"{folder}"
            )
    skipped = counted(len(files.skipped), "file that isn't an image", "files that aren't images")
    notes = [f"{skipped} skipped"] if files.skipped else []
    return LabelledImages(table.assign(lesion_id=list(parts)), "images", (), notes)


def _split_folders(parts: Collection[tuple[str, ...]]) -> bool:
    """Whether the outer folders are those of a split, as `train/CLASS` and `test/CLASS`."""
    outer = {above[0].casefold() for above in parts if above}
    names = {SPLIT_NAMES.get(name) for name in outer}
    return "train" in names and len(names) > 1 and None not in names and any(len(above) > 1 for above in parts)


def _read_table(
    source: Path,
    frame: pd.DataFrame,
    find: Callable[[Sequence[str]], list[str]],
    by: Sequence[str],
    classes: Collection[str],
    alone: bool,
) -> LabelledImages:
    """The labelled images of a data frame; `alone`: other tables next to it are not read."""
    column = {name.casefold(): name for name in frame.columns}
    published = None if "label" in column else recognise(frame.columns)
    image = next((column[name] for name in IMAGE_COLUMNS if name in column), None)
    if published:
        image = next(name for name in frame.columns if name.casefold() == published.image)
    if image is None:
        raise UserError(f"{source} lacks the column image: its columns are {', '.join(frame.columns)[:200]}")
    if frame.empty:
        raise UserError(f"{source} has no row")
    if published:
        named = frame.set_axis([name.casefold() for name in frame.columns], axis=1)
        labels = [published.label(dict(zip(named.columns, row, strict=True))) for row in named.to_numpy().tolist()]
    else:
        labels = _labels(frame, image, column, classes, source)
    sibling = ""
    if not alone and "label" not in column:  # a published ground truth; a table of the user's own stands alone
        frame, sibling = _with_sibling(frame, image, source)
    column = {name.casefold(): name for name in frame.columns}
    absent = [name for name in by if name.casefold() not in column]
    if absent:
        raise UserError(
            f"--by {absent[0]}: {source} has no such column; its columns are {', '.join(frame.columns)[:200]}"
        )
    reserved = [name for name in by if name.casefold() in RESERVED]
    if reserved:
        raise UserError(f"--by {reserved[0]}: name a column that holds subgroups, such as the device or the clinic")
    without = frame[image] == ""
    if without.any():
        raise UserError(f"{source}, line {frame.index[without][0]} names no image")

    texts = frame[image].tolist()
    parts = {"image_id": _ids(texts), "text": texts, "label": [normal_label(label) for label in labels]}
    for name, aliases in SUBGROUPS.items():
        found = next((column[alias] for alias in aliases if alias in column), None)
        if found is not None:
            parts[name] = frame[found].tolist()
    if "age" in parts:
        parts["age"] = [age.replace(",", ".") for age in parts["age"]]  # decimal commas
    if "split" in column:
        parts["split"] = [value.strip().casefold() for value in frame[column["split"]]]
    for name in SOURCE_COLUMNS:
        if name in column:
            parts.setdefault("source", [value.strip() for value in frame[column[name]]])
    extra = []
    for name in by:
        if not any(name.casefold() in aliases for aliases in SUBGROUPS.values()):
            parts[column[name.casefold()]] = frame[column[name.casefold()]].tolist()
            extra.append(column[name.casefold()])
    table = pd.DataFrame(parts, index=frame.index)
    table["lesion_id"], unit, notes = _groups(frame, column, table["image_id"], texts)
    if sibling:
        notes.append(f"groups and further columns are those of {sibling}, next to the table")
    table["line"] = table.index
    table, repeats = _without_repeats(table, source)
    notes += repeats
    duplicates: list[str] = []
    if published and published.name == "ISIC 2020" and not alone:
        duplicates, note = _published_duplicates(table["image_id"].tolist(), source)
        notes.append(note)
        table = table[~table["image_id"].isin(duplicates)]
    table["path"] = find(table["text"].tolist())
    _require_one_text_each(table, source)
    table = table.drop(columns="text").reset_index(drop=True)
    return LabelledImages(table, unit, tuple(dict.fromkeys(extra)), notes, published, tuple(duplicates))


def _labels(
    frame: pd.DataFrame, image: str, column: dict[str, str], classes: Collection[str], source: Path
) -> list[str]:
    """The label of each row, from a column, or from one-hot columns as in ISIC's ground truths."""
    label = next((column[name] for name in LABEL_COLUMNS if name in column), None)
    if label is not None:
        return [str(value) for value in frame[label]]
    hot = [name for name in frame.columns if name != image and fold(name) in {*classes, *OTHER_CLASSES}]
    if len(hot) < 2:
        raise UserError(
            f"{source} lacks the column label (or one column per class): its columns are "
            f"{', '.join(frame.columns)[:200]}"
        )
    numbers = frame[hot].apply(lambda values: pd.to_numeric(values.str.replace(",", "."), errors="coerce"))
    ones = numbers == 1
    others = ~ones & (numbers != 0) & (frame[hot] != "")  # an empty cell stands for 0
    bad = frame[image][(ones.sum(axis=1) != 1) | others.any(axis=1)]
    if len(bad):
        raise UserError(
            f"{source}: image {bad.iloc[0]} must have a 1 in exactly one of {', '.join(hot)}, and 0 elsewhere"
        )
    return [hot[i] for i in ones.to_numpy().argmax(axis=1)]


def _with_sibling(frame: pd.DataFrame, image: str, source: Path) -> tuple[pd.DataFrame, str]:
    """The table with the columns of a table next to it that names a group for each image, as ISIC's metadata does.

    The second value is the name of that table, or empty.
    """
    if {name.casefold() for name in frame.columns}.intersection(GROUP_COLUMNS):
        return frame, ""
    for path in sorted(source.parent.glob("*.csv")):
        if path.samefile(source):
            continue
        try:
            other = read_frame(path)
        except UserError:
            continue
        names = {name.casefold(): name for name in other.columns}
        key = next((names[name] for name in IMAGE_COLUMNS if name in names), None)
        group = next((name for name in GROUP_COLUMNS if name in names), None)
        if key and group and frame[image].isin(other[key]).all():
            known = {name.casefold() for name in frame.columns}
            other = other.drop_duplicates(key).set_index(key)
            wanted = [name for name in other.columns if name.casefold() not in known]
            return frame.assign(**{name: frame[image].map(other[name]) for name in wanted}), path.name
    return frame, ""


def _ids(texts: Sequence[str]) -> list[str]:
    """The file name without its suffix, or the text of the table where another image has the same name."""
    short = [image_id(Path(text)) for text in texts]
    texts_of: dict[str, set[str]] = {}
    for name, text in zip(short, texts, strict=True):
        texts_of.setdefault(name, set()).add(text)
    return [name if len(texts_of[name]) == 1 else text for name, text in zip(short, texts, strict=True)]


def _groups(
    frame: pd.DataFrame, column: dict[str, str], ids: pd.Series, texts: Sequence[str]
) -> tuple[list[str], str, list[str]]:
    """The group of each row, the unit of resampling, and notes. A column `group` overrides patients and lesions.

    Rows that share a patient, a lesion or the image belong to one group, also indirectly: a lesion is not divided
    where the patient is known for some of its images only.
    """
    names = [name for name in GROUP_COLUMNS if name in column]
    names = ["group"] if "group" in names else names
    first: dict[str, int] = {}  # a row with this value
    joined = DisjointSet(range(len(frame)))

    def join(row: int, value: str) -> None:
        joined.merge(first.setdefault(value, row), row)

    named = [""] * len(frame)  # the coarsest name of each row's group
    used = []
    for name in names:
        values = [str(value).strip() for value in frame[column[name]]]
        filled = [not is_missing(value) for value in values]
        if any(take and not known for take, known in zip(filled, named, strict=True)):
            used.append(name)
        for row in np.flatnonzero(filled).tolist():
            join(row, f"{name} {values[row]}")
            named[row] = named[row] or f"{name} {values[row]}"
    if not used:
        return ids.tolist(), "images", []
    for row, text in enumerate(texts):
        join(row, f"image {text}")
    of_group: dict[int, str] = {}
    for name in names:  # patients name a group before lesions do
        for row, value in enumerate(named):
            if value.startswith(f"{name} "):
                of_group.setdefault(joined[row], value)
    groups = [of_group.get(joined[row], "") for row in range(len(frame))]
    units = {GROUP_COLUMNS[name] for name in used}
    alone = sum(not group for group in groups)
    notes = []
    if alone:
        verbs = "has no group and counts" if alone == 1 else "have no group and count"
        own = "a group of its own" if alone == 1 else "groups of their own"
        notes.append(f"{alone:,} of {len(groups):,} images {verbs} as {own}")
    unit = units.pop() if len(units) == 1 and not alone else "groups"
    return [group or f"image {name}" for group, name in zip(groups, ids, strict=True)], unit, notes


def _without_repeats(table: pd.DataFrame, source: Path) -> tuple[pd.DataFrame, list[str]]:
    """The table with one row per image, and a note on repeated rows. Its split names all splits of its rows."""
    kinds = table.groupby("text", sort=False)["label"].nunique()
    if (kinds > 1).any():
        names = kinds.index[kinds > 1].tolist()
        more = f", and {len(names) - 1:,} more images" if len(names) > 1 else ""
        raise UserError(f"{source} gives the image {names[0]} two labels{more}: keep one row of each image")
    once = table.drop_duplicates("text")
    repeats = len(table) - len(once)
    if repeats and "split" in table:
        splits = table.groupby("text", sort=False)["split"].agg(lambda values: " and ".join(sorted(set(values))))
        once = once.assign(split=once["text"].map(splits))
    repeated = counted(repeats, "row repeats an image and is", "rows repeat an image and are")
    return once, [f"{repeated} counted once"] if repeats else []


def _require_one_text_each(table: pd.DataFrame, source: Path) -> None:
    """Checks that no two rows name one file in different ways, such as `a.jpg` and `a`.

    Raises:
        UserError: two rows do.
    """
    paths = table["path"][table["path"] != ""].map(os.path.normpath)
    repeated = paths[paths.duplicated(keep=False)]
    if len(repeated):
        one, other = table["text"][repeated.index[repeated == repeated.iloc[0]]].tolist()[:2]
        raise UserError(f"{source} names one file as {one} and as {other}: keep one row of each image")


def _published_duplicates(ids: Sequence[str], source: Path) -> tuple[list[str], str]:
    """The images of ISIC 2020 to leave out, by the list `DUPLICATES` next to the table, and a note.

    Raises:
        UserError: the list can't be read, or lacks a column.
    """
    path = next((path for path in source.parent.iterdir() if path.name.casefold() == DUPLICATES.casefold()), None)
    if path is None:
        return [], (
            f"{DUPLICATES} is not next to the table, so ISIC 2020's published duplicates count as separate images"
        )
    pairs = require_columns(read_frame(path), ["image_name_1", "image_name_2"], path)
    doubled = published_duplicates(zip(pairs["image_name_1"], pairs["image_name_2"], strict=True), ids)
    why = "it is a duplicate" if len(doubled) == 1 else "they are duplicates"
    return sorted(doubled), f"{counted(len(doubled), 'image')} left out: {why} by {path.name}"


def _paths(texts: Sequence[str], folder: Path, source: Path, option: str, named: bool) -> list[str]:
    """The file of each image, or an empty text.

    Raises:
        UserError: no image is found, or two different files belong to one image.
    """
    paths = [_file(folder, text) for text in texts]
    wanted = {text: _stem(text) for text, path in zip(texts, paths, strict=True) if not path}
    if wanted:
        found = find_images(data_files(folder), folder, list(wanted.values())).paths
        named_once = Counter(wanted.values())
        for i, text in enumerate(texts):
            stem = wanted.get(text, "")
            file = found.get(stem)
            if file is None:
                continue
            # a name of the ISIC archive is of one image; other names can occur again in the folder of another patient
            one = archive_id(stem) or (is_distinctive(stem) and file.parent == folder)
            if (one and named_once[stem] == 1) or _ends_in(file.parent, text):
                paths[i] = str(file)
    if not any(paths):
        fix = f"name {'another folder' if named else 'the folder of the images'} with {option}"
        raise UserError(f"{source}: there is no image {first_of(list(dict.fromkeys(texts)))} in {folder}: {fix}")
    return paths


def _ends_in(folder: Path, text: str) -> bool:
    """Whether a file's folder ends in the folders that the text names: of `site1/0001.jpg` in `site1`."""
    named = [part for part in text.replace("\\", "/").split("/")[:-1] if part not in ("", ".")]
    return not named or [*folder.parts[-len(named) :]] == named


def _stem(text: str) -> str:
    name = text.replace("\\", "/").rpartition("/")[2]
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in IMAGE_SUFFIXES else name


def _file(folder: Path, text: str) -> str:
    try:
        tried = [folder / text, folder / text.replace("\\", "/")]
        return next((str(path) for path in tried if path.is_file()), "")
    except (ValueError, OSError):  # not a valid path
        return ""
