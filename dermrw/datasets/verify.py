"""`dermrw check`: lists the files that a data folder contains and those it lacks, and warns of unusual images."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dermrw.config import CONFIGS, Data, load_config
from dermrw.datasets.check_table import check_table, is_own_data
from dermrw.datasets.dataset import load_splits
from dermrw.datasets.ham10000 import HamFolder, find_ham10000, read_folder
from dermrw.datasets.official import find_official
from dermrw.datasets.readable import SHOWN, print_list, read_all, unlike
from dermrw.diagnoses import DIAGNOSES
from dermrw.errors import UserError
from dermrw.formatting import counted
from dermrw.labelled.folder import folder_counts, relative

TABLES = (".csv", ".tsv", ".tab", ".txt")  # endings of tables


def _data(config: str, overrides: Sequence[str]) -> Data:
    """Returns the data settings of a config of dermrw with these overrides."""
    other = [text for text in overrides if not text.startswith("data.")]
    if other:
        raise UserError(f"check reads only data: {other[0]} is not a key of data")
    return load_config(CONFIGS / config, overrides).data


def check(folder: Path | None, images: Path | None = None, overrides: Sequence[str] = ()) -> None:
    """Prints a summary of a HAM10000 folder and of the official sets next to it, or of a user's own table or folder.

    Warnings, and missing images of the official sets, are not errors: training and evaluation work without them.

    Args:
        folder: HAM10000's folder, or a user's own table or folder; None: HAM10000 in its default place.
        images: the images of a table, as `data.images`; default: the folder of the table.
        overrides: keys of `data` as for training: of a table or folder any but `extra`; of HAM10000 `data.extra=TABLE`,
            for the images that training would add from it, and others.

    Raises:
        UserError: HAM10000 is not found, its files contradict each other, or images are missing or unreadable (after
            the summary). Of a table or folder also: an image has two classes or splits, or a group has two splits. Or
            `data.extra` cannot be read, or adds no image.
    """
    if folder is not None and folder.suffix.lower() in TABLES and not folder.exists():
        raise UserError(f"the table {folder} does not exist: name a CSV with the columns image and label")
    if folder is not None and is_own_data(folder):
        check_table(folder, _data("table.yaml", [*overrides, *([] if images is None else [f"data.images={images}"])]))
        return
    data = _data("ham.yaml", overrides)
    if overrides and data.extra is None:
        raise UserError("with HAM10000, check takes key=value only with data.extra=TABLE, the images to add to it")
    if images is not None:
        raise UserError(f"--images is an option for a table: {folder or 'HAM10000'} is a folder")
    root = find_ham10000(str(folder) if folder else None, "the folder to check")
    if root is None:
        raise UserError("HAM10000 is not at data/ham10000: name its folder, set HAM10000_DIR, or run `make data`")
    ham = read_folder(root)
    table = ham.table
    print(f"{root}: {counted(len(table), 'image')} of {counted(table['lesion_id'].nunique(), 'lesion')}")
    _print_files(ham)
    print(summary(table))
    missing = table.loc[table["path"] == "", "image_id"].tolist()
    decoded = read_all(table[table["path"] != ""])
    print_list("missing", missing)
    print_list("unreadable", [f"{image} ({why})" for image, why in decoded.unreadable])
    print_list("groups of pixel-identical images", [" = ".join(group) for group in decoded.identical])
    _print_meta(table)
    print(f"size and colours: {counted(len(decoded.pictures), 'image')} looked at")
    warnings = unlike(decoded.pictures, root)
    without = [d.dx for d in DIAGNOSES if d.dx not in set(table["dx"])]
    if without:
        warnings.append(f"warning: there is no image of {', '.join(without)}; training needs images of every class")
    warnings += _official(root)
    print("\n".join(warnings), end="\n" if warnings else "")
    if missing or decoded.unreadable:
        raise UserError(
            f"{root} lacks {counted(len(missing), 'image')} and {len(decoded.unreadable):,} can't be read: "
            "download them again with `make data`"
        )
    if data.extra is not None:
        load_splits(data, root)  # prints the images that are added and left out
    print(f"Complete, with {len(warnings)} warning{'s' * (len(warnings) > 1)} (above)." if warnings else "Complete.")


def _print_files(ham: HamFolder) -> None:
    print(f"table: {relative(ham.source, ham.root)}")
    counts = folder_counts(ham.paths, ham.root)
    print("images in:" if counts else "images in: no folder")
    for name, n in counts[:SHOWN]:
        print(f"  {n:>8,}  {ham.root if name == '.' else name}")
    if len(counts) > SHOWN:
        print(f"  {sum(n for _, n in counts[SHOWN:]):>8,}  in {len(counts) - SHOWN:,} more folders")
    for note in ham.notes():
        print(note)


def _official(root: Path) -> list[str]:
    """Prints the official sets that are on disk; returns warnings."""
    warnings = []
    for part in ("Validation", "Test"):
        official = find_official(root, part)
        if official is None:
            continue
        decoded = read_all(official.table)
        print(f"{official.title}: {counted(len(official.table), 'image')}; ground truth {official.source}")
        incomplete = official.incomplete([image for image, _ in decoded.unreadable])
        if incomplete:
            warnings.append(f"warning: {official.title}: {incomplete}")
        warnings += unlike(decoded.pictures, root)
    return warnings


def summary(table: pd.DataFrame) -> str:
    """Returns a text table with the images, lesions and kinds of confirmation of each class."""
    lines = [f"{'class':<7}{'images':>8}{'share':>8}{'lesions':>9}  confirmed by"]
    for d in DIAGNOSES:
        rows = table[table["dx"] == d.dx]
        kinds = ", ".join(f"{kind or 'unknown'} {n:,}" for kind, n in rows["dx_type"].value_counts().items())
        share = f"{len(rows) / len(table):.1%}"
        lines.append(f"{d.dx:<7}{len(rows):>8,}{share:>8}{rows['lesion_id'].nunique():>9,}  {kinds}")
    return "\n".join(lines)


def _print_meta(table: pd.DataFrame) -> None:
    ids = pd.read_csv(CONFIGS / "ham10000_meta_3_per_class.csv", comment="#", dtype=str)["image_id"]
    present = ids.isin(table.loc[table["path"] != "", "image_id"]).sum()
    print(f"curated meta set: {present} of {len(ids)} images are here" + ("" if present else " (use data.meta=rule)"))
