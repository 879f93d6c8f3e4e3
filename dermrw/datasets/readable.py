"""Decodes every image of a table once: unreadable images, identical images, and images that look like other files.

Masks, heat maps and thumbnails have the names of the images that they belong to. Where they are the only file of an
image they can't be told from it by name, so size and colours are compared with those of the other images.
"""

import hashlib
import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from dermrw.errors import UserError
from dermrw.images.preprocess import read_image
from dermrw.labelled.folder import folder_text, relative

SAMPLED = 64  # rows and columns of pixels whose colours are looked at
LEAST_CHROMA = 2.0  # mean range of R, G and B in a pixel; dermoscopic images have 20 and more
FEW_COLOURS = 8  # a mask or a label map has fewer, a photograph has hundreds
UNLIKE_SIZE = 2.0  # times smaller or larger than the median
THUMBNAIL = 64  # pixels of the longer side
SHOWN = 20  # lines of a list


class Decoded(NamedTuple):
    """What decoding every image of a table has shown."""

    unreadable: list[tuple[str, str]]  # id and reason
    identical: list[list[str]]  # groups of ids with the same pixels
    pictures: pd.DataFrame  # image_id, path, width, height, colourless; one row per readable image


class _Picture(NamedTuple):
    digest: str
    width: int
    height: int
    colourless: bool


def read_all(table: pd.DataFrame) -> Decoded:
    """Decodes the images of a table with the columns `image_id` and `path`.

    Prints one line on the images that could be read only with a note, such as a broken colour profile.
    """
    notes: dict[str, str] = {}  # by path

    def decode(path: str) -> _Picture | UserError:
        try:
            image = read_image(path)
        except UserError as error:
            return error
        if image.info.get("notes"):
            notes[path] = image.info["notes"][0]
        pixels = np.asarray(image)
        digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
        return _Picture(digest, pixels.shape[1], pixels.shape[0], is_colourless(pixels))

    unreadable: list[tuple[str, str]] = []
    same: dict[str, list[str]] = defaultdict(list)
    rows = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = tqdm(pool.map(decode, table["path"]), "Reading", len(table), unit="image", leave=False)
        for image_id, path, result in zip(table["image_id"], table["path"], results, strict=True):
            if isinstance(result, UserError):
                unreadable.append((image_id, str(result)))
            else:
                same[result.digest].append(image_id)
                rows.append((image_id, path, *result[1:]))
    if notes:
        path = min(notes)
        print(f"Read with a note: {len(notes):,} of {len(table):,} images, such as {path}: {notes[path]}")
    pictures = pd.DataFrame(rows, columns=["image_id", "path", "width", "height", "colourless"])
    return Decoded(unreadable, [group for group in same.values() if len(group) > 1], pictures)


def is_colourless(pixels: np.ndarray) -> bool:
    """Whether an image uint8 `[H, W, 3]` is grey or has hardly any colours, by a grid of its pixels."""
    h, w = pixels.shape[:2]
    grid = pixels[:: max(1, h // SAMPLED), :: max(1, w // SAMPLED)].astype(np.int32)
    if float((grid.max(2) - grid.min(2)).mean()) < LEAST_CHROMA:
        return True
    return len(np.unique(grid @ (1 << 16, 1 << 8, 1))) <= FEW_COLOURS


def unlike(pictures: pd.DataFrame, root: Path) -> list[str]:
    """Returns a warning for each kind of images that look like masks or thumbnails, and for odd sizes."""
    if pictures.empty:
        return []
    warnings = []

    def warn(rows: pd.DataFrame, why: str) -> None:
        if len(rows):
            first = rows.iloc[0]
            example = f"{relative(Path(first['path']), root)} ({first['width']} × {first['height']} pixels)"
            folders = folder_text(rows["path"].tolist(), root)
            warnings.append(
                f"warning: {len(rows):,} of {len(pictures):,} images {why}: {folders}; the first is {example}"
            )

    warn(pictures[pictures["colourless"]], "are grey or have only a few colours, as masks have")
    side = pictures[["width", "height"]].max(axis=1)
    middle = side.median()
    usual = pictures.iloc[(side - middle).abs().argmin()]
    size = f"{usual['width']} × {usual['height']} pixels"
    if middle < THUMBNAIL:
        warn(pictures[side < THUMBNAIL], "are as small as thumbnails")
    warn(pictures[side * UNLIKE_SIZE < middle], f"are less than half as large as most ({size})")
    warn(pictures[side > UNLIKE_SIZE * middle], f"are more than twice as large as most ({size})")
    return warnings


def readable(table: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Returns the rows whose images exist and can be read, and prints the others and warnings.

    Raises:
        UserError: no image is left.
    """
    present = table[table["path"] != ""]
    decoded = read_all(present)
    bad = dict(decoded.unreadable)
    missing = table.loc[table["path"] == "", "image_id"].tolist()
    if bad or missing:
        print(f"Left out of {len(table):,} images, because data.skip_unreadable is set:")
        print_list("missing", missing)
        print_list("unreadable", list(bad.values()))
    kept = present[~present["image_id"].isin(list(bad))].reset_index(drop=True)
    if kept.empty:
        raise UserError(
            f"of {len(table):,} images {len(missing):,} are missing and {len(bad):,} can't be read, which leaves none: "
            "is data.root the folder with the images?"
        )
    for warning in unlike(decoded.pictures, root):
        print(warning, flush=True)
    return kept


def refuse_unreadable(table: pd.DataFrame, root: Path) -> None:
    """Reads every image once, so that one error message lists all unreadable images. Prints warnings.

    Raises:
        UserError: images can't be read.
    """
    decoded = read_all(table)
    bad = [why for _, why in decoded.unreadable]
    if bad:
        more = f"\n… and {len(bad) - 10:,} more" if len(bad) > 10 else ""
        listed = "\n".join(bad[:10])
        raise UserError(
            f"{len(bad):,} of {len(table):,} images can't be read: download them again, or leave them out with "
            f"data.skip_unreadable=true\n{listed}{more}"
        )
    for warning in unlike(decoded.pictures, root):
        print(warning, flush=True)


def print_list(title: str, items: list[str]) -> None:
    """Prints a title with the number of items, and the first `SHOWN` items."""
    print(f"{title}: {len(items):,}" + (":" if items else ""))
    for item in items[:SHOWN]:
        print(f"  {item}")
    if len(items) > SHOWN:
        print(f"  … and {len(items) - SHOWN:,} more")
