"""Finds the tables and images of a data folder on disk. Ambiguous files are an error that names them.

Hidden files and folders (such as `.download`, `._ISIC_1.jpg`) and `__MACOSX`, the resource forks in archives made on a
Mac, are not looked at.
"""

import os
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from PIL import Image

from dermrw.csv_table import CsvTable, read_csv_table
from dermrw.errors import UserError
from dermrw.files import walk
from dermrw.images.formats import IMAGE_SUFFIXES, is_image_file

TABLE_SUFFIXES = (".csv", ".tab", ".tsv", ".txt", "")  # in order of preference; Dataverse writes .tab
NO_IMAGES = {".txt", ".csv", ".tab", ".tsv", ".json", ".xml", ".yaml", ".md", ".npy", ".npz", ".pt"}  # never opened


class FoundTable(NamedTuple):
    """A table file of a data folder."""

    path: Path
    rows: pd.DataFrame
    unused: list[Path]  # other files that match, with the same content or farther from the folder


class FoundImages(NamedTuple):
    """The image files of a list of ids."""

    paths: dict[str, Path]  # by id; absent ids have none
    copies: list[Path]  # files that are identical to a used one, byte for byte


def data_files(root: Path) -> list[Path]:
    """Returns the files below a data folder, sorted, without hidden ones and resource forks."""
    return sorted(walk(root, hidden=False))


def relative(path: Path, root: Path) -> str:
    """Returns the path as text relative to the data folder, for messages; a path outside of it is unchanged."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def read_frame(path: Path, comments: bool = False) -> pd.DataFrame:
    """Returns a CSV file as a data frame of text, indexed by line number; see `csv_table.read_csv_table`."""
    return frame_of(read_csv_table(path, comments))


def frame_of(table: CsvTable) -> pd.DataFrame:
    """Returns a CSV table as a data frame of text, indexed by line number."""
    return pd.DataFrame(table.rows, columns=table.columns, index=table.lines, dtype=str)


def require_columns(table: pd.DataFrame, columns: Sequence[str], path: Path) -> pd.DataFrame:
    """Returns the table with these columns in the case given here (`Image_ID` becomes `image_id`).

    Raises:
        UserError: a column is missing.
    """
    table = table.rename(columns=_as_spelled(table, columns))
    missing = [c for c in columns if c not in table.columns]
    if missing:
        raise UserError(
            f"{path} lacks the column {', '.join(missing)}: is it the file as published? "
            f"Its columns are {', '.join(table.columns)[:200]}"
        )
    return table


def _as_spelled(table: pd.DataFrame, columns: Sequence[str]) -> dict[str, str]:
    """Returns new names for the columns that differ from the given ones in case only."""
    spelled = {c.casefold(): c for c in columns}
    return {
        c: spelled[c.casefold()]
        for c in table.columns
        if c.casefold() in spelled and spelled[c.casefold()] not in table.columns
    }


def matching(files: Sequence[Path], root: Path, stem: str) -> list[Path]:
    """Returns the table files with this stem (a pattern), the nearest to `root` first, then by `TABLE_SUFFIXES`."""
    suffixes = TABLE_SUFFIXES[:-1] if stem.endswith("*") else TABLE_SUFFIXES  # the pattern would match any suffix
    found = []
    for path in files:
        name = path.name.casefold()
        suffix = next((i for i, s in enumerate(suffixes) if fnmatchcase(name, stem.casefold() + s)), None)
        if suffix is not None:
            found.append((len(path.relative_to(root).parts), suffix, path))
    return [path for _, _, path in sorted(found)]


def choose_table(
    candidates: Sequence[Path], root: Path, read: Callable[[Path], pd.DataFrame], key: Sequence[str]
) -> FoundTable | None:
    """Returns the table nearest to `root`, or None if there is no candidate.

    Args:
        candidates: files in order of preference.
        root: the data folder.
        read: reads a candidate.
        key: the columns that must agree where several candidates are equally near.

    Raises:
        UserError: equally near candidates differ in these columns, or one can't be read.
    """
    if not candidates:
        return None
    depth = min(len(path.relative_to(root).parts) for path in candidates)
    chosen, *others = [path for path in candidates if len(path.relative_to(root).parts) == depth]
    rows = read(chosen)
    for other in others:
        other_rows = read(other)
        if not _content(rows, key).equals(_content(other_rows, key)):
            raise UserError(
                f"{root} contains two tables with different contents, {relative(chosen, root)} ({len(rows):,} rows) "
                f"and {relative(other, root)} ({len(other_rows):,} rows): move one of them out of {root}"
            )
    return FoundTable(chosen, rows, [path for path in candidates if path != chosen])


def _content(rows: pd.DataFrame, key: Sequence[str]) -> pd.DataFrame:
    return rows[list(key)].sort_values(list(key)).reset_index(drop=True)


def find_images(files: Sequence[Path], root: Path, ids: Sequence[str]) -> FoundImages:
    """Returns the image file of each id: the file whose name without suffix, or whole name, is the id.

    A file with an image's suffix is taken as an image. Of the others, those that are named like an id are opened, and
    their first bytes decide.

    Raises:
        UserError: two files of an id differ.
    """
    wanted = set(ids)
    found: dict[str, list[Path]] = {}
    for path in files:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            if path.stem in wanted:
                found.setdefault(path.stem, []).append(path)
        elif path.suffix.lower() not in NO_IMAGES:
            name = next((name for name in (path.name, path.stem) if name in wanted), None)
            if name is not None and is_image_file(path):
                found.setdefault(name, []).append(path)
    several = {image: paths for image, paths in sorted(found.items()) if len(paths) > 1}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        same = pool.map(_identical, several.values())
        different = [image for image, is_same in zip(several, same, strict=True) if not is_same]
    if different:
        raise UserError(_ambiguous(root, several[different[0]], different))
    copies = [path for paths in several.values() for path in paths[1:]]
    return FoundImages({image: paths[0] for image, paths in found.items()}, copies)


def _identical(paths: list[Path]) -> bool:
    """Whether the files are identical byte for byte. Files that can't be read are not."""
    try:
        states = [path.stat() for path in paths]
        if len({(state.st_dev, state.st_ino) for state in states}) == 1:
            return True
        if len({state.st_size for state in states}) > 1 or not all(stat.S_ISREG(state.st_mode) for state in states):
            return False
        first = paths[0].read_bytes()
        return all(path.read_bytes() == first for path in paths[1:])
    except OSError:
        return False


def _ambiguous(root: Path, paths: list[Path], ids: list[str]) -> str:
    one, other = paths[0], next(path for path in paths[1:] if not _identical([paths[0], path]))
    more = f" (and of {len(ids) - 1:,} more images)" if len(ids) > 1 else ""
    folders = [relative(path.parent, root) for path in (one, other) if path.parent != root]
    if len(folders) < 2 or one.parent == other.parent:  # the folder of the other images must stay
        fix = f"delete one of them, or move it out of {root}"
    else:
        fix = f"move {' or '.join(folders)} out of {root}"
    return (
        f"{root} contains different files of image {ids[0]}{more}, {relative(one, root)}{_size(one)} and "
        f"{relative(other, root)}{_size(other)}: {fix}, so that each image has one file"
    )


def _size(path: Path) -> str:
    """Returns size and colours from the header of an image file, such as ` (28 × 28 pixels, greyscale)`."""
    try:
        if not path.is_file():
            return ""
        with Image.open(path) as image:
            grey = ", greyscale" if image.mode in ("1", "L", "LA", "I", "I;16", "F") else ""
            return f" ({image.width} × {image.height} pixels{grey})"
    except Exception:  # of many types, on damaged files
        return ""


def folder_counts(paths: Sequence[str] | Sequence[Path], root: Path) -> list[tuple[str, int]]:
    """Returns the folders of these files, relative to `root`, with the number of files; the largest first."""
    counts = Counter(relative(Path(path).parent, root) for path in paths)
    return sorted(((name, n) for name, n in counts.items()), key=lambda item: (-item[1], item[0]))


def folder_text(paths: Sequence[str] | Sequence[Path], root: Path, most: int = 4) -> str:
    """Returns the folders of these files as text, such as `part_1 (5,000), part_2 (5,015)`."""
    counts = [(str(root) if name == "." else name, n) for name, n in folder_counts(paths, root)]
    listed = [f"{name} ({n:,})" for name, n in counts[:most]]
    rest = counts[most:]
    return ", ".join([*listed, *([f"{len(rest):,} more folders ({sum(n for _, n in rest):,})"] if rest else [])])
