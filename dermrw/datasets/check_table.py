"""`dermrw check` for a user's own table or folder: its classes, groups and splits, and the faults of its images."""

from pathlib import Path

import pandas as pd

from dermrw.config import Data
from dermrw.datasets.readable import print_list, read_all, unlike
from dermrw.datasets.table import (
    TableImages,
    choose_meta,
    find_conflicts,
    read_table,
    split_groups,
    with_checked_splits,
)
from dermrw.errors import UserError
from dermrw.formatting import counted
from dermrw.images.formats import is_image_file
from dermrw.labelled.folder import data_files, matching


def is_own_data(path: Path) -> bool:
    """Whether a path is a table, or a folder with a folder per class, and not HAM10000's folder or one like it."""
    if not path.is_dir():
        return path.is_file()
    files = data_files(path)
    if any("ham10000" in file.name.casefold() for file in [path.absolute(), *files]):
        return False
    if matching(files, path, "*Task3_Training_GroundTruth"):
        return False
    images = [file for file in files if file.parent != path and is_image_file(file)]
    classes = {file.relative_to(path).parts[0] for file in images}
    # a single folder of archive ids is that of HAM10000 without its table
    return len(classes) > 1 or (len(classes) == 1 and not any(file.name.startswith("ISIC_") for file in images))


def check_table(path: Path, data: Data) -> None:
    """Prints a summary of a table or folder.

    Args:
        path: the table or folder.
        data: the settings of `data` as for training.

    Raises:
        UserError: it can't be read; or, after the summary, images are missing or unreadable and not skipped, or
            contradict each other.
    """
    images = read_table(data, path.resolve())
    table = with_checked_splits(images.table, images)
    unit = images.facts.unit
    groups = "" if unit == "images" else f" of {table['lesion_id'].nunique():,} {unit}"
    print(f"{images.source}: {counted(len(table), 'image')}{groups}, {len(images.facts.classes.codes)} classes")
    print(_classes(table, images))
    if "split" in table:
        counts = table["split"].value_counts()
        print("splits: " + ", ".join(f"{name} {n:,}" for name, n in counts.items()))
    for note in images.facts.notes:
        print(note)
    missing = table.loc[table["path"] == "", "image_id"].tolist()
    present = table[table["path"] != ""]
    decoded = read_all(present)
    bad = {image for image, _ in decoded.unreadable}
    print_list("missing", missing)
    print_list("unreadable", [f"{image} ({why})" for image, why in decoded.unreadable])
    conflicts = find_conflicts(present[~present["image_id"].isin(bad)], decoded.identical)
    print_list("identical images within a class", [" = ".join(group) for group in conflicts.copies])
    print_list("images in two classes", conflicts.two_classes)
    if "split" in table:
        print_list("images in two splits", conflicts.two_splits)
        print_list(f"{unit if unit != 'images' else 'groups'} in two splits", conflicts.divided_groups)
    warnings = unlike(decoded.pictures, images.folder)
    print("\n".join(warnings), end="\n" if warnings else "")
    faults = []
    if not data.skip_unreadable:
        faults += [counted(len(missing), "image is missing", "images are missing")] * bool(missing)
        faults += [counted(len(bad), "image can't be read", "images can't be read")] * bool(bad)
    faults += conflicts.errors
    if faults:
        raise UserError(f"{images.source}: {'; '.join(faults)}")
    read = present[~present["image_id"].isin(bad)]
    try:
        meta = choose_meta(read, images.facts.classes, data, images)
        split_groups(read[~read["lesion_id"].isin(meta["lesion_id"])], images.facts.classes.codes, data, images)
    except UserError as error:
        print(f"warning: training with these splits and this meta set will stop: {error}")
        return
    print("No fault found.")


def _classes(table: pd.DataFrame, images: TableImages) -> str:
    """Returns a text table with the images and groups of each class, and of its splits."""
    codes, _, names, malignant = images.facts.classes
    labels = [code if name == code else f"{code} ({name})" for code, name in zip(codes, names, strict=True)]
    width = max(5, *(len(label) for label in labels))
    unit = images.facts.unit
    grouped = unit != "images"
    lines = [f"{'class':<{width}}{'images':>9}{'share':>8}" + (f"{unit:>10}" if grouped else "") + "  malignant"]
    for i, (code, label) in enumerate(zip(codes, labels, strict=True)):
        rows = table[table["dx"] == code]
        share = f"{len(rows) / len(table):.1%}"
        count = f"{rows['lesion_id'].nunique():>10,}" if grouped else ""
        stated = "not stated" if malignant is None else "yes" if malignant[i] else "no"
        lines.append(f"{label:<{width}}{len(rows):>9,}{share:>8}{count}  {stated}")
    return "\n".join(lines)
