"""Finds the images among files and folders, and gives each an id. No torch in here."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from dermrw.errors import UserError
from dermrw.files import walk
from dermrw.images.formats import is_image_file
from dermrw.inference.shipped import shipped_model


class InputFiles(NamedTuple):
    """The files at the paths that a user named."""

    images: dict[str, Path]  # by id: the file name without its suffix, or the path of files that share that name
    misnamed: dict[Path, UserError]  # images whose names cannot be ids
    skipped: list[Path]  # files in folders that are not images by their content
    by_path: list[str]  # the ids that are paths
    again: dict[Path, Path]  # files and folders that were found before under another path, by links: that path


def model_and_paths(paths: Sequence[Path]) -> tuple[Path, list[Path]]:
    """Returns the model file and the images among the paths that a user named.

    The first path names the model, a file or a run folder, unless it is an image or another folder, or unless it is the
    only path. Then the model is the one shipped with dermrw, which is printed.

    Raises:
        UserError: a model is named, but no image.
    """
    first, others = paths[0], list(paths[1:])
    if (first / "config.yaml").is_file() or (first / "model.onnx").is_file():  # a run folder
        first = first / "model.onnx"
    if first.suffix == ".onnx" or (others and not first.is_dir() and not is_image_file(first)):
        if not others:
            raise UserError(f"name the images to classify with {first}, or a folder of them")
        return first, others
    print("Using the model shipped with dermrw")
    return shipped_model(), list(paths)


def image_id(path: Path) -> str:
    """The file name without its suffix, as UTF-8, the encoding of the CSV, in any locale.

    A suffix begins with a letter: the names of an archive's files are often UIDs such as 1.2.840.7, without a suffix.

    Raises:
        UserError: the name isn't UTF-8.
    """
    return _utf8(path.stem if re.fullmatch(r"\.[A-Za-z]\w{1,5}", path.suffix) else path.name, path)


def _utf8(name: str, path: Path) -> str:
    try:
        name.encode()
        return name
    except UnicodeEncodeError:
        try:
            return os.fsencode(name).decode()  # in an ASCII locale
        except UnicodeError:
            raise UserError(f"the name of the image {path} is not UTF-8, the encoding of the CSV: rename it") from None


def find_images(paths: Iterable[Path], hidden: bool = True) -> InputFiles:
    """Images among files and, recursively, in folders.

    In a folder a file is an image by its content, or, if its content is unknown, by its suffix: then it is damaged, and
    reading it gives an error that names it. A file named by itself is read in any case. Files that share a name, such
    as `a.jpg` and `a.png` or one in each of two folders, get their paths below the named folder as ids.

    Args:
        paths: of files and folders.
        hidden: whether hidden folders in a folder are searched, too.

    Raises:
        UserError: a path is absent, or a folder can't be read.
    """
    found: list[tuple[str, ...]] = []  # possible ids of each image: its name, its path below the folder, its whole path
    files: list[Path] = []
    misnamed: dict[Path, UserError] = {}
    skipped: list[Path] = []
    again: dict[Path, Path] = {}

    def add(path: Path, folder: Path) -> None:
        try:
            below, whole = path.relative_to(folder).as_posix(), Path(os.path.realpath(path)).as_posix()
            found.append((image_id(path), _utf8(below, path), _utf8(whole, path)))
            files.append(path)
        except UserError as error:
            misnamed[path] = error

    for path in paths:
        if path.is_dir():
            for file in sorted(walk(path, strict=True, hidden=hidden, again=again)):
                if is_image_file(file):
                    add(file, path)
                else:
                    skipped.append(file)
        elif path.exists():
            add(path, path.parent)
        else:
            raise UserError(f"there is no file or folder {path}: name images, or folders of images")
    ids = _distinct_ids(found)
    images: dict[str, Path] = {}
    for name, path in zip(ids, files, strict=True):
        first = images.setdefault(name, path)  # a file that is named twice is one image
        if first != path:
            again[path] = first
    names = {name for name, (short, _, _) in zip(ids, found, strict=True) if name != short}
    return InputFiles(images, misnamed, skipped, [name for name in images if name in names], again)


def _distinct_ids(candidates: Sequence[tuple[str, ...]]) -> list[str]:
    """The first possible id of each image that no other image has; the last one identifies its file."""
    level = [0] * len(candidates)
    while True:
        files_of: dict[str, set[str]] = {}
        for names, n in zip(candidates, level, strict=True):
            files_of.setdefault(names[n], set()).add(names[-1])
        shared = [
            i for i, names in enumerate(candidates) if len(files_of[names[level[i]]]) > 1 and level[i] + 1 < len(names)
        ]
        if not shared:
            return [names[n] for names, n in zip(candidates, level, strict=True)]
        for i in shared:
            level[i] += 1
