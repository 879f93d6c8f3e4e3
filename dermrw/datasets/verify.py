"""Checks a data folder: images and lesions per class, missing and unreadable files, pixel-identical duplicates."""

import hashlib
import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from dermrw.config import CONFIGS
from dermrw.datasets.ham10000 import find_ham10000, find_official, read_ham10000
from dermrw.diagnoses import DIAGNOSES
from dermrw.errors import UserError
from dermrw.images.preprocess import read_image


def check(folder: Path | None) -> None:
    """Prints a summary of a HAM10000 folder.

    Raises:
        UserError: HAM10000 is not found, or images are missing or unreadable (after the summary).
    """
    root = find_ham10000(str(folder) if folder else None, "the folder to check")
    if root is None:
        raise UserError("HAM10000 is not at data/ham10000: name its folder, set HAM10000_DIR, or run `make data`")
    table = read_ham10000(root)
    print(f"{root}: {len(table):,} images of {table['lesion_id'].nunique():,} lesions")
    print(summary(table))
    missing = table.loc[table["path"] == "", "image_id"].tolist()
    unreadable, groups = read_all(table[table["path"] != ""])
    _say("missing", missing)
    _say("unreadable", [f"{image} ({why})" for image, why in unreadable])
    _say("groups of pixel-identical images", [" = ".join(group) for group in groups])
    _say_meta(table)
    for part in ("Validation", "Test"):
        official = find_official(root, part)
        if official is not None:
            print(f"ISIC 2018's official {part.lower()} set: {len(official):,} images")
    if missing or unreadable:
        raise UserError(
            f"{root} lacks {len(missing):,} images and {len(unreadable):,} can't be read: fetch them anew, "
            "`make data` does it"
        )
    print("Complete.")


def summary(table: pd.DataFrame) -> str:
    """Returns a text table with the images, lesions and kinds of confirmation of each class."""
    lines = [f"{'class':<7}{'images':>8}{'share':>8}{'lesions':>9}  confirmed by"]
    for d in DIAGNOSES:
        rows = table[table["dx"] == d.dx]
        ways = ", ".join(f"{way or 'unknown'} {n:,}" for way, n in rows["dx_type"].value_counts().items())
        share = f"{len(rows) / len(table):.1%}"
        lines.append(f"{d.dx:<7}{len(rows):>8,}{share:>8}{rows['lesion_id'].nunique():>9,}  {ways}")
    return "\n".join(lines)


def read_all(table: pd.DataFrame) -> tuple[list[tuple[str, str]], list[list[str]]]:
    """Decodes every image; returns (id, reason) of each unreadable one, and groups of ids with identical pixels.

    Prints one line on the images that could be read only with a note, such as a broken colour profile.
    """
    notes: dict[str, str] = {}  # by path

    def digest(path: str) -> str | UserError:
        try:
            image = read_image(path)
        except UserError as error:
            return error
        if image.info.get("notes"):
            notes[path] = image.info["notes"][0]
        pixels = np.asarray(image)
        return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()

    unreadable: list[tuple[str, str]] = []
    same: dict[str, list[str]] = defaultdict(list)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = tqdm(pool.map(digest, table["path"]), "Reading", len(table), unit="image", leave=False)
        for image_id, result in zip(table["image_id"], found, strict=True):
            if isinstance(result, UserError):
                unreadable.append((image_id, str(result)))
            else:
                same[result].append(image_id)
    if notes:
        path = min(notes)
        print(f"Read with a note: {len(notes):,} of {len(table):,} images, such as {path}: {notes[path]}")
    return unreadable, [group for group in same.values() if len(group) > 1]


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows whose images exist and can be read, and prints the others.

    Raises:
        UserError: no image is left.
    """
    present = table[table["path"] != ""]
    bad = dict(read_all(present)[0])
    missing = table.loc[table["path"] == "", "image_id"].tolist()
    if bad or missing:
        print(f"Left out of {len(table):,} images, as data.skip_unreadable asks:")
        _say("missing", missing)
        _say("unreadable", list(bad.values()))
    kept = present[~present["image_id"].isin(list(bad))].reset_index(drop=True)
    if kept.empty:
        raise UserError(
            f"of {len(table):,} images {len(missing):,} are missing and {len(bad):,} can't be read, which leaves none: "
            "is data.root the folder with the images?"
        )
    return kept


def refuse_unreadable(table: pd.DataFrame) -> None:
    """Reads every image once, so that one error message lists all unreadable images.

    Raises:
        UserError: images can't be read.
    """
    bad = [why for _, why in read_all(table)[0]]
    if bad:
        more = f"\n… and {len(bad) - 10:,} more" if len(bad) > 10 else ""
        listed = "\n".join(bad[:10])
        raise UserError(
            f"{len(bad):,} of {len(table):,} images can't be read: fetch them anew, or leave them out with "
            f"data.skip_unreadable=true\n{listed}{more}"
        )


def _say(what: str, items: list[str], most: int = 20) -> None:
    print(f"{what}: {len(items):,}" + (":" if items else ""))
    for item in items[:most]:
        print(f"  {item}")
    if len(items) > most:
        print(f"  … and {len(items) - most:,} more")


def _say_meta(table: pd.DataFrame) -> None:
    listed = pd.read_csv(CONFIGS / "ham10000_meta_3_per_class.csv", comment="#", dtype=str)["image_id"]
    present = listed.isin(table.loc[table["path"] != "", "image_id"]).sum()
    print(f"curated meta set: {present} of {len(listed)} images are here" + ("" if present else " (data.meta=rule)"))
