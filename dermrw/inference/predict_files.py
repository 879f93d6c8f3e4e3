"""`dermrw predict`: files and folders to a CSV in ISIC's format. No torch in here."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from dermrw.csv_table import read_csv_table
from dermrw.decisions.prevalence import at_prevalence, parse_prevalence
from dermrw.decisions.refusal import CHECKS
from dermrw.errors import UserError, first_of
from dermrw.files import csv_text, predictions_csv, require_writable, walk, write_atomic
from dermrw.images.formats import IMAGE_SUFFIXES, is_image_file
from dermrw.inference.classifier import BATCH, QUANTIZED, Classifier, NetworkInput
from dermrw.inference.lesion import combine_images
from dermrw.inference.model_file import ModelInfo
from dermrw.inference.verdict import Verdict, verdict

MOST_NOTES = 20  # that are printed


class InputFiles(NamedTuple):
    """The files at the paths that a user named."""

    images: dict[str, Path]  # by id: the file name without its suffix, or the path of files that share that name
    misnamed: dict[Path, UserError]  # images whose names cannot be ids
    skipped: list[Path]  # files in folders that are not images by their content
    by_path: list[str]  # the ids that are paths


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


def find_images(paths: Iterable[Path]) -> InputFiles:
    """Images among files and, recursively, in folders.

    In a folder a file is an image by its content, or, if its content is unknown, by its suffix: then it is damaged, and
    reading it gives an error that names it. A file named by itself is read in any case. Files that share a name, such
    as `a.jpg` and `a.png` or one in each of two folders, get their paths below the named folder as ids.

    Raises:
        UserError: a path is absent.
    """
    found: list[tuple[str, ...]] = []  # possible ids of each image: its name, its path below the folder, its whole path
    files: list[Path] = []
    misnamed: dict[Path, UserError] = {}
    skipped: list[Path] = []

    def add(path: Path, folder: Path) -> None:
        try:
            below, whole = path.relative_to(folder).as_posix(), path.resolve().as_posix()
            found.append((image_id(path), _utf8(below, path), _utf8(whole, path)))
            files.append(path)
        except UserError as error:
            misnamed[path] = error

    for path in paths:
        if path.is_dir():
            for file in sorted(walk(path)):
                if is_image_file(file):
                    add(file, path)
                else:
                    skipped.append(file)
        elif path.exists():
            add(path, path.parent)
        else:
            raise UserError(f"there is no file or folder {path}")
    ids = _distinct_ids(found)
    images: dict[str, Path] = {}
    for name, path in zip(ids, files, strict=True):
        images.setdefault(name, path)  # a file that is named twice is one image
    names = {name for name, (short, _, _) in zip(ids, found, strict=True) if name != short}
    return InputFiles(images, misnamed, skipped, [name for name in images if name in names])


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


def read_lesions(path: Path, image_ids: Sequence[str]) -> list[str]:
    """Each image's lesion, from a CSV with the columns `image` (or `image_id`) and `lesion_id`.

    Raises:
        UserError: the file cannot be read, lacks a column, or does not name exactly one lesion for each image.
    """
    table = read_csv_table(path)
    position = {name.casefold(): i for i, name in enumerate(table.columns)}
    column = next((position[name] for name in ("image", "image_id") if name in position), None)
    if column is None or "lesion_id" not in position or not table.rows:
        raise UserError(f"{path} must have rows with the columns image and lesion_id")
    known = set(image_ids)
    lesion: dict[str, str] = {}
    for row in table.rows:
        image, name = row[column], row[position["lesion_id"]]
        stem, suffix = os.path.splitext(image)
        if image not in known and suffix.lower() in IMAGE_SUFFIXES:
            image = stem  # the table lists file names
        if lesion.setdefault(image, name) != name:
            raise UserError(f"{path}: image {image} has two lesions")
    without = [i for i in image_ids if not lesion.get(i)]
    if without:
        raise UserError(f"{path} names no lesion for image {first_of(without)}: add a row for each image")
    return [lesion[i] for i in image_ids]


def _prepare_all(classifier: Classifier, paths: Sequence[Path]) -> Iterator[NetworkInput | UserError]:
    """The network's input from each file, or the error, in order; reads one batch ahead."""

    def prepare(path: Path) -> NetworkInput | UserError:
        try:
            return classifier.prepare(path)
        except UserError as error:
            return error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(paths), BATCH):
            yield from pool.map(prepare, paths[start : start + BATCH])


def _require_output(out: Path, sources: Iterable[Path]) -> None:
    """Refuses, before anything is computed, an output file that cannot be written or that is one of the inputs."""
    if not out.parent.is_dir() or out.is_dir():
        raise UserError(f"{out} can't be written: --csv takes a file in a folder that exists")
    require_writable(out)
    for source in sources if out.exists() else []:
        if source.exists() and out.samefile(source):
            raise UserError(f"--csv {out} would replace {source}, which is read: name another file for the CSV")


class Classified(NamedTuple):
    """The N images that could be read, and the errors of the others."""

    ids: list[str]
    probabilities: npt.NDArray[np.float64]  # [N, C], at equal prevalence
    verdicts: list[Verdict]
    unreadable: list[UserError]
    notes: list[str]  # on images that could be read


def _classify(classifier: Classifier, images: dict[str, Path]) -> Classified:
    """Probabilities and verdict of each image by itself."""
    ids: list[str] = []
    sizes: list[tuple[int, int]] = []  # width and height
    unreadable: list[UserError] = []
    notes: list[str] = []
    outputs = [(np.zeros((0, len(classifier.info.codes)), np.float32), np.zeros((0, len(CHECKS)), np.float32))]
    batch: list[npt.NDArray[np.uint8]] = []

    def run_batch() -> None:
        if batch:
            probabilities, checks = classifier.run(np.stack(batch), "probabilities", "checks")
            outputs.append((probabilities, checks))
            batch.clear()

    inputs = _prepare_all(classifier, list(images.values()))
    for name, network_input in zip(tqdm(images, "Predicting", unit="image", leave=False), inputs, strict=True):
        if isinstance(network_input, UserError):
            unreadable.append(network_input)
            continue
        ids.append(name)
        notes += [f"image {name}: {note}" for note in network_input.notes]
        sizes.append((network_input.width, network_input.height))
        batch.append(network_input.pixels)
        if len(batch) == BATCH:
            run_batch()
    run_batch()
    probabilities, checks = (np.concatenate(parts).astype(np.float64) for parts in zip(*outputs, strict=True))
    rows = zip(probabilities, checks, sizes, strict=True)
    verdicts = [verdict(p, image_checks, *size, classifier.info) for p, image_checks, size in rows]
    return Classified(ids, probabilities, verdicts, unreadable, notes)


def _combine_lesions(classified: Classified, lesion_of: dict[str, str], info: ModelInfo) -> tuple[Classified, int]:
    """The images with the answers of their lesions, and the number of lesions that have an answer.

    Refused images keep their own answer and do not affect their lesion's.
    """
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(classified.ids):
        rows_of.setdefault(lesion_of[name], []).append(row)
    values, verdicts, answered = classified.probabilities.copy(), list(classified.verdicts), 0
    for rows in rows_of.values():
        image_verdicts = [classified.verdicts[row] for row in rows]
        combined, lesion_verdict = combine_images(classified.probabilities[rows], image_verdicts, info)
        if combined is None:
            continue
        answered += 1
        for row, image_verdict in zip(rows, image_verdicts, strict=True):
            if not image_verdict.refused:
                values[row], verdicts[row] = combined, lesion_verdict
    return classified._replace(probabilities=values, verdicts=verdicts), answered


def _shift_prevalence(classified: Classified, prevalence: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The probabilities `[N, C]` at this prevalence `[C]`.

    Raises:
        UserError: the prevalence is 0 for every diagnosis to which an image gives any probability.
    """
    totals = classified.probabilities @ prevalence
    impossible = [name for name, total in zip(classified.ids, totals, strict=True) if not total > 0]
    if impossible:
        raise UserError(
            f"image {first_of(impossible)}: all of the probability is on classes to which --prevalence gives no "
            "share: state shares above 0"
        )
    return at_prevalence(classified.probabilities, prevalence)


def predict(
    model: Path,
    paths: Sequence[Path],
    out: Path,
    *,
    prevalence: str = "equal",
    lesions: Path | None = None,
    device: str = "auto",
) -> None:
    """Writes the probabilities of every readable image in `paths` to `out`, in ISIC's format.

    A second file, `decisions_file(out)`, holds refusal, prediction set and triage of each image.

    Args:
        model: the .onnx file.
        paths: files and folders.
        out: the CSV: `image`, and one column per class. Both files stay as they were if no image can be read.
        prevalence: `equal`, `training`, or shares such as `mel=0.05,nv=0.8,…`.
        lesions: a CSV with each image's lesion. All images of a lesion that are not refused get the lesion's answer.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        UserError: an argument is wrong; or, after both files are written, some images could not be read.
    """
    classifier = Classifier(model, device)
    info = classifier.info
    target_prevalence = parse_prevalence(prevalence, info.codes, info.prevalence)
    inputs = find_images(paths)
    decisions_out = decisions_file(out)
    sources = [model, *([lesions] if lesions else []), *inputs.images.values(), *inputs.misnamed]
    for file in (out, decisions_out):
        _require_output(file, sources)
    if not inputs.images and not inputs.misnamed:
        raise UserError(f"there is no image at {', '.join(map(str, paths))} ({len(inputs.skipped)} other files)")
    ids = list(inputs.images)
    lesion_of = dict(zip(ids, read_lesions(lesions, ids), strict=True)) if lesions else {}
    print(
        f"Model {info.name} of {info.created}, sha256 {classifier.digest[:12]}, on the {classifier.device}", flush=True
    )
    if info.warning:
        print(info.warning, flush=True)
    if classifier.quantized:
        print(QUANTIZED, flush=True)

    classified = _classify(classifier, inputs.images)
    unreadable = [*inputs.misnamed.values(), *classified.unreadable]
    if not classified.ids:
        raise UserError("\n".join([f"no image could be read, so {out} is not written:", *map(str, unreadable)]))
    combined = 0
    if lesion_of:
        classified, combined = _combine_lesions(classified, lesion_of, info)
    values = classified.probabilities
    if target_prevalence is not None:
        values = _shift_prevalence(classified, target_prevalence)

    write_atomic(out, predictions_csv(classified.ids, info.columns, np.clip(values, 0.0, 1.0).tolist()))
    write_atomic(decisions_out, _decisions_csv(classified.ids, classified.verdicts))
    summary = f"{len(classified.ids):,} images into {out}, probabilities at {_prevalence_name(prevalence)}"
    if lesion_of:
        summary += f", the images of {combined:,} lesions combined"
    if inputs.skipped:
        names = first_of([path.name for path in inputs.skipped])
        summary += f"; {len(inputs.skipped):,} files that aren't images skipped ({names})"
    print(summary)
    if inputs.by_path:
        print(f"{len(inputs.by_path):,} files share a name, so their paths are their ids ({first_of(inputs.by_path)})")
    refused = sum(image_verdict.refused is not None for image_verdict in classified.verdicts)
    print(f"Refusals ({refused:,}), prediction sets and triage into {decisions_out}")
    for note in classified.notes[:MOST_NOTES]:
        print(note)
    if len(classified.notes) > MOST_NOTES:
        print(f"… and {len(classified.notes) - MOST_NOTES:,} more notes on images")
    if unreadable:
        raise UserError("\n".join([f"{len(unreadable):,} images are not in {out}:", *map(str, unreadable)]))


def _prevalence_name(prevalence: str) -> str:
    names = {"equal": "equal prevalence", "training": "the training data's prevalence"}
    return names.get(prevalence, "the stated prevalence")


def decisions_file(out: Path) -> Path:
    """The path of the second file: `NAME_decisions.csv` in the folder of the CSV `out`."""
    return out.with_name(f"{out.stem}_decisions{out.suffix or '.csv'}")


def _decisions_csv(image_ids: Sequence[str], verdicts: Sequence[Verdict]) -> bytes:
    """The columns `image, refused, set, triage, not_ruled_out`; the last three are empty if the image is refused."""
    rows = [
        [image_id, v.refused or "", " ".join(v.classes), v.triage, " ".join(v.not_ruled_out)]
        for image_id, v in zip(image_ids, verdicts, strict=True)
    ]
    return csv_text([["image", "refused", "set", "triage", "not_ruled_out"], *rows]).encode()
