"""`dermrw predict`: files and folders to a CSV in ISIC's format. No torch in here."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

import dermrw
from dermrw.csv_table import is_missing, read_csv_table
from dermrw.decisions.prevalence import at_prevalence, parse_prevalence
from dermrw.errors import UserError, first_of
from dermrw.files import csv_text, require_writable, resolved_target, writing_atomic
from dermrw.formatting import counted
from dermrw.images.formats import IMAGE_SUFFIXES
from dermrw.inference.classifier import QUANTIZED, Classifier
from dermrw.inference.find_images import find_images
from dermrw.inference.image_rows import DECISION_COLUMNS, ImageRow, decision_cells
from dermrw.inference.lesion import combine_images
from dermrw.inference.model_file import ModelInfo
from dermrw.inference.partial_rows import RowFile
from dermrw.inference.verdict import Verdict
from dermrw.inference.workers import FEW, choose_workers, classify_files

MOST_NOTES = 20  # that are printed
WRITTEN_AT_ONCE = 1024  # rows of the CSV files

Rows = list[ImageRow] | RowFile
Answer = tuple[npt.NDArray[np.float64], Verdict]  # probabilities [C], at equal prevalence


def read_lesions(path: Path, image_ids: Sequence[str], group: str = "lesion") -> list[str]:
    """Each image's lesion, from a CSV with the columns `image` (or `image_id`) and `lesion_id` (or `group`).

    Args:
        path: the CSV.
        image_ids: of all images.
        group: the word for a lesion in messages.

    Raises:
        UserError: the file cannot be read, lacks a column, or does not name exactly one lesion for each image.
    """
    table = read_csv_table(path)
    position = {name.casefold(): i for i, name in enumerate(table.columns)}
    column = next((position[name] for name in ("image", "image_id") if name in position), None)
    lesion_column = next((position[name] for name in ("lesion_id", "group") if name in position), None)
    if column is None or lesion_column is None or not table.rows:
        wanted = "lesion_id" if group == "lesion" else "group"
        raise UserError(f"{path} must have rows with the columns image and {wanted}")
    known = set(image_ids)
    lesion: dict[str, str] = {}
    for row in table.rows:
        image, name = row[column], row[lesion_column]
        stem, suffix = os.path.splitext(image)
        if image not in known and suffix.lower() in IMAGE_SUFFIXES:
            image = stem  # the table lists file names
        if lesion.setdefault(image, name) != name:
            raise UserError(f"{path}: image {image} has two {group}s")
    without = [i for i in image_ids if is_missing(lesion.get(i, ""))]
    if without:
        raise UserError(f"{path} names no {group} for image {first_of(without)}: add a row for each image")
    return [lesion[i] for i in image_ids]


def _require_output(out: Path, sources: Iterable[Path]) -> None:
    """Refuses, before anything is computed, an output file that cannot be written or that is one of the inputs."""
    if not out.name or not out.parent.is_dir() or out.is_dir():
        raise UserError(f"{out} can't be written: --csv takes a file in a folder that exists")
    require_writable(out)
    for source in sources if out.exists() else []:
        if source.exists() and out.samefile(source):
            raise UserError(f"--csv {out} would replace {source}, which is read: name another file for the CSV")


def settings_digest(classifier: Classifier, images: Mapping[str, Path], hashed: bool) -> str:
    """A digest of all that determines the rows: model, device, id, path, size and time of each image, and `hashed`."""
    about = [dermrw.__version__, classifier.digest, classifier.device, *(["hashed"] if hashed else [])]
    digest = hashlib.sha256(json.dumps(about).encode())
    for name, path in images.items():
        try:
            status = path.stat()
            state = [status.st_size, status.st_mtime_ns]
        except OSError:
            state = []
        digest.update(json.dumps([name, str(path), *state]).encode() + b"\n")
    return digest.hexdigest()


def classify_missing(
    classifier: Classifier, images: Mapping[str, Path], rows: Rows, workers: int, hashed: bool = False
) -> None:
    """Classifies the images that `rows` lacks at its end, and extends it batch by batch.

    Args:
        classifier: the model.
        images: paths by id.
        rows: of the first images; afterwards of all.
        workers: processes; 1: this one.
        hashed: whether to compute perceptual hashes.

    Raises:
        UserError: a worker process was killed, or the model cannot be run.
        KeyboardInterrupt: Ctrl-C, with a hint if the rows are in a file.
    """
    done = len(rows)
    missing = islice(images.items(), done, None)
    names, paths = map(list, zip(*missing, strict=True)) if done < len(images) else ([], [])
    # on a terminal only, with the time left
    bar = tqdm(total=len(images), initial=done, desc="Predicting", unit="image", leave=False, disable=None)
    try:
        with bar, closing(classify_files(classifier, names, paths, workers, hashed)) as batches:
            for batch in batches:
                rows.extend(batch)
                bar.update(len(batch))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(*(["the same command continues"] if isinstance(rows, RowFile) else [])) from None


def _combine_lesions(
    rows: Rows, lesion_of: Mapping[str, str], info: ModelInfo
) -> dict[str, tuple[npt.NDArray[np.float64] | None, Verdict]]:
    """The answer of each lesion, from its images that are not refused; without probabilities if all are refused."""
    probabilities = np.zeros((len(rows), len(info.codes)))
    verdicts: list[Verdict] = []
    known: dict[Verdict, Verdict] = {}  # there are few different ones
    rows_of: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        verdicts.append(known.setdefault(row.verdict, row.verdict))
        if not row.error:
            probabilities[i] = row.probabilities
            rows_of.setdefault(lesion_of[row.image_id], []).append(i)
    return {
        lesion: combine_images(probabilities[members], [verdicts[i] for i in members], info)
        for lesion, members in rows_of.items()
    }


class Written(NamedTuple):
    """What was written, for the summary."""

    images: int
    refused: int
    notes: list[str]  # at most `MOST_NOTES`
    all_notes: int  # their number
    unreadable: list[str]  # errors


def _write(
    out: Path,
    rows: Rows,
    info: ModelInfo,
    prevalence: npt.NDArray[np.float64] | None,
    answer: Callable[[ImageRow], Answer],
    unreadable: list[str],
) -> Written:
    """Writes both files from the rows, atomically; neither is changed if this fails.

    Args:
        out: the CSV of probabilities; the decisions are written to `decisions_file(out)`.
        rows: of all images.
        info: the model's metadata.
        prevalence: `[C]`; None: equal.
        answer: the probabilities and verdict to write for a row.
        unreadable: errors on images without a row; those of the rows are added.

    Raises:
        UserError: no image could be read; the prevalence is 0 for every diagnosis to which an image gives any
            probability; or a file cannot be written.
    """
    images = refused = all_notes = 0
    notes: list[str] = []
    impossible: list[str] = []
    readable = (row for row in rows if _is_readable(row, unreadable))
    with writing_atomic(decisions_file(out)) as decisions, writing_atomic(out) as table:
        table.write(csv_text([["image", *info.columns]]).encode())
        decisions.write(csv_text([["image", *DECISION_COLUMNS]]).encode())
        while chunk := list(islice(readable, WRITTEN_AT_ONCE)):
            answers = [answer(row) for row in chunk]
            names, values = [row.image_id for row in chunk], np.array([values for values, _ in answers])
            if prevalence is not None:
                totals = values @ prevalence
                impossible += [name for name, total in zip(names, totals, strict=True) if not total > 0]
                if impossible:
                    continue  # to name them all
                values = at_prevalence(values, prevalence)
            shares = np.clip(values, 0.0, 1.0).tolist()
            table.write(csv_text([name, *row] for name, row in zip(names, shares, strict=True)).encode())
            cells = [[name, *decision_cells(v)] for name, (_, v) in zip(names, answers, strict=True)]
            decisions.write(csv_text(cells).encode())
            images += len(chunk)
            refused += sum(v.refused is not None for _, v in answers)
            for name, note in ((row.image_id, note) for row in chunk for note in row.notes):
                all_notes += 1
                if len(notes) < MOST_NOTES:
                    notes.append(f"image {name}: {note}")
        if impossible:
            raise UserError(
                f"image {first_of(impossible)}: all of the probability is on classes to which --prevalence gives no "
                "share: state shares above 0"
            )
        if not images:
            raise UserError("\n".join([f"no image could be read, so {out} is not written:", *unreadable]))
        for file in (decisions, table):  # a full disk is found before one of them is replaced
            file.flush()
            os.fsync(file.fileno())
    return Written(images, refused, notes, all_notes, unreadable)


def _is_readable(row: ImageRow, unreadable: list[str]) -> bool:
    if row.error:
        unreadable.append(row.error)
    return not row.error


def predict(
    model: Path,
    paths: Sequence[Path],
    out: Path,
    *,
    prevalence: str = "equal",
    lesions: Path | None = None,
    device: str = "auto",
    workers: int | None = None,
) -> None:
    """Writes the probabilities of every readable image in `paths` to `out`, in ISIC's format.

    A second file, `decisions_file(out)`, holds refusal, prediction set and triage of each image. With many images, rows
    are first written to `partial_file(out)` as they are computed, and the same call continues an interrupted run.

    Args:
        model: the .onnx file.
        paths: files and folders.
        out: the CSV: `image`, and one column per class. Both files stay as they were if no image can be read.
        prevalence: `equal`, `training`, or shares such as `mel=0.05,nv=0.8,…`.
        lesions: a CSV with each image's lesion. All images of a lesion that are not refused get the lesion's answer.
        device: `auto`, `cpu` or `cuda`.
        workers: processes for many images; None: one for each CPU that this process may use. The files do not depend
            on it.

    Raises:
        UserError: an argument is wrong; or, after both files are written, some images could not be read.
    """
    classifier = Classifier(model, device)
    info = classifier.info
    target_prevalence = parse_prevalence(prevalence, info.codes, info.prevalence)
    choose_workers(classifier, 0, workers)  # an impossible number is refused before the images are looked for
    _require_output(out, [])
    inputs = find_images(paths)
    decisions_out = decisions_file(out)
    sources = [model, *([lesions] if lesions else []), *inputs.images.values(), *inputs.misnamed]
    for file in (out, decisions_out):
        _require_output(file, sources)
    if not inputs.images and not inputs.misnamed:
        raise UserError(f"there is no image at {', '.join(map(str, paths))} ({len(inputs.skipped)} other files)")
    ids = list(inputs.images)
    group = "lesion" if info.is_ham10000 or info.subject == "lesion" else "group"
    lesion_of = dict(zip(ids, read_lesions(lesions, ids, group), strict=True)) if lesions else {}
    processes = choose_workers(classifier, len(ids), workers)
    where = f"on the {classifier.device}" + (f", in {processes} processes" if processes > 1 else "")
    print(f"Model {info.name} of {info.created}, sha256 {classifier.digest[:12]}, {where}", flush=True)
    if info.warning:
        print(info.warning, flush=True)
    if classifier.quantized:
        print(QUANTIZED, flush=True)

    with open_rows(classifier, inputs.images, partial_file(out)) as rows:
        classify_missing(classifier, inputs.images, rows, processes)
        answers = _combine_lesions(rows, lesion_of, info) if lesion_of else {}

        def answer(row: ImageRow) -> Answer:
            if lesion_of and not row.verdict.refused:
                combined, lesion_verdict = answers[lesion_of[row.image_id]]
                if combined is not None:
                    return combined, lesion_verdict
            return np.array(row.probabilities), row.verdict

        written = _write(out, rows, info, target_prevalence, answer, [str(error) for error in inputs.misnamed.values()])
        if isinstance(rows, RowFile):
            rows.finish()

    summary = f"{counted(written.images, 'image')} into {out}, probabilities at {_prevalence_name(prevalence, info)}"
    if lesion_of:
        answered = sum(combined is not None for combined, _ in answers.values())
        summary += f", the images of {counted(answered, group)} combined"
    if inputs.skipped:
        names = first_of([path.name for path in inputs.skipped])
        skipped = counted(len(inputs.skipped), "file that isn't an image", "files that aren't images")
        summary += f"; {skipped} skipped ({names})"
    print(summary)
    if inputs.by_path:
        print(f"{len(inputs.by_path):,} files share a name, so their paths are their ids ({first_of(inputs.by_path)})")
    decisions = "prediction sets and triage" if info.triage else "and prediction sets"
    print(f"Refusals ({written.refused:,}){',' * bool(info.triage)} {decisions} into {decisions_out}")
    if not info.triage:
        reason = f" ({info.no_triage})" if info.no_triage else ""
        print(f"The model has no triage{reason}, so the columns from triage on are empty")
    for note in written.notes:
        print(note)
    if written.all_notes > MOST_NOTES:
        print(f"… and {counted(written.all_notes - MOST_NOTES, 'more note', 'more notes')} on images")
    if written.unreadable:
        raise UserError(
            "\n".join(
                [f"{counted(len(written.unreadable), 'image is', 'images are')} not in {out}:", *written.unreadable]
            )
        )


@contextmanager
def open_rows(
    classifier: Classifier, images: Mapping[str, Path], path: Path, option: str = "--csv", hashed: bool = False
) -> Iterator[Rows]:
    """Yields the rows that are there at the start: for many images those of an interrupted run, and otherwise none.

    Args:
        classifier: the model.
        images: paths by id.
        path: of the file that the rows of many images are written to.
        option: of the command, that names the output; for messages.
        hashed: whether the rows have perceptual hashes.

    Raises:
        UserError: as of `RowFile`.
    """
    if len(images) < FEW:
        yield []
        return
    with RowFile(path, settings_digest(classifier, images, hashed), list(images), option) as file:
        if len(file):
            print(f"Continuing after {len(file):,} of {len(images):,} images, which are in {path}", flush=True)
        elif file.other:
            print(
                f"{path} is of another model, of other images or of another version of dermrw: starting again",
                flush=True,
            )
        yield file


def _prevalence_name(prevalence: str, info: ModelInfo) -> str:
    names = {"equal": "equal prevalence", "training": f"{info.prevalence_images}'s prevalence"}
    return names.get(prevalence, "the stated prevalence")


def decisions_file(out: Path) -> Path:
    """The path of the second file: `NAME_decisions.csv` in the folder of the CSV `out`."""
    return out.with_name(f"{out.stem}_decisions{out.suffix or '.csv'}")


def partial_file(out: Path) -> Path:
    """The path of the rows of an unfinished run: `NAME.csv.partial` in the folder of the CSV `out`."""
    target = resolved_target(out)
    return target.with_name(f"{target.name}.partial")
