"""`dermrw predict`: files and folders to a CSV in ISIC's format. No torch in here."""

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from dermrw.decisions.prevalence import at_prevalence, combine, parse_prevalence
from dermrw.decisions.refusal import CHECKS
from dermrw.errors import UserError, first_of
from dermrw.files import open_regular, require_writable, walk, write_atomic
from dermrw.images.preprocess import IMAGE_SUFFIXES
from dermrw.inference.classifier import BATCH, Classifier, Shown
from dermrw.inference.model_file import ModelInfo
from dermrw.inference.verdict import Verdict, of_lesion, verdict


class Found(NamedTuple):
    """What lies at the paths that a user named."""

    images: dict[str, Path]  # by id: the file's name without its ending
    misnamed: dict[Path, UserError]  # images whose names can't be ids
    skipped: int  # files in folders that aren't images by their ending


def image_id(path: Path) -> str:
    """The file's name without its ending; in UTF-8, which the CSV is written in, whatever the locale says.

    Raises:
        UserError: the name isn't UTF-8.
    """
    try:
        path.stem.encode()
        return path.stem
    except UnicodeEncodeError:
        try:
            return os.fsencode(path.stem).decode()  # a locale that knows ASCII alone
        except UnicodeError:
            raise UserError(f"the name of the image {path} is not UTF-8, as the CSV must be: rename it") from None


def find_images(paths: Iterable[Path]) -> Found:
    """Images among files and, recursively, in folders. A file that is named is taken whatever its ending.

    Raises:
        UserError: a path is absent; or two files would have the same id.
    """
    images: dict[str, Path] = {}
    misnamed: dict[Path, UserError] = {}
    skipped = 0

    def add(path: Path) -> None:
        try:
            name = image_id(path)
        except UserError as error:
            misnamed[path] = error
            return
        other = images.setdefault(name, path)
        if other.resolve() != path.resolve():
            raise UserError(f"{other} and {path} would both be image {name}: rename one, or predict them apart")

    for path in paths:
        if path.is_dir():
            for file in sorted(walk(path)):
                if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith("."):
                    add(file)
                else:
                    skipped += 1
        elif path.exists():
            add(path)
        else:
            raise UserError(f"there is no file or folder {path}")
    return Found(images, misnamed, skipped)


def read_lesions(path: Path, image_ids: Sequence[str]) -> list[str]:
    """Each image's lesion, from a CSV with the columns `image` (or `image_id`) and `lesion_id`.

    Raises:
        UserError: the file can't be read, lacks a column, or names no lesion for an image, or two.
    """
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} can't be read as a table: {' '.join(str(error).split())[:200]}") from None
    column = next((c for c in ("image", "image_id") if rows and c in rows[0]), None)
    if column is None or "lesion_id" not in rows[0]:
        raise UserError(f"{path} must have rows with the columns image and lesion_id")
    lesion: dict[str, str] = {}
    for row in rows:
        image, name = row[column] or "", row["lesion_id"] or ""
        if lesion.setdefault(image, name) != name:
            raise UserError(f"{path}: image {image} has two lesions")
    without = [i for i in image_ids if not lesion.get(i)]
    if without:
        raise UserError(f"{path} names no lesion for image {first_of(without)}: add what is missing")
    return [lesion[i] for i in image_ids]


def _shown(classifier: Classifier, paths: Sequence[Path]) -> Iterator[Shown | UserError]:
    """Each picture as it is shown to the network, or what is wrong with it, in order; read ahead by a batch."""

    def read(path: Path) -> Shown | UserError:
        try:
            return classifier.show(path)
        except UserError as error:
            return error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(paths), BATCH):
            yield from pool.map(read, paths[start : start + BATCH])


def _require_place(out: Path, sources: Iterable[Path]) -> None:
    """Refuses, before anything is computed, a place for the CSV that can't be written or that holds what is read."""
    if not out.parent.is_dir() or out.is_dir():
        raise UserError(f"{out} can't be written: --csv takes a file in a folder that exists")
    require_writable(out)
    for source in sources if out.exists() else []:
        if source.exists() and out.samefile(source):
            raise UserError(f"--csv {out} would replace {source}, which is read: name another file for the CSV")


class Classified(NamedTuple):
    """N pictures that could be read, and what is wrong with the others."""

    ids: list[str]
    probabilities: npt.NDArray[np.float64]  # [N, C], for equal prevalence
    checks: npt.NDArray[np.float64]  # [N, 8]
    sides: list[tuple[int, int]]  # width and height
    unreadable: list[UserError]

    def verdicts(self, probabilities: npt.NDArray[np.float64], info: ModelInfo) -> list[Verdict]:
        """Of each, from these probabilities `[N, C]`: its own or its lesion's."""
        rows = zip(probabilities, self.checks, self.sides, strict=True)
        return [verdict(p, checks, *sides, info) for p, checks, sides in rows]


def _classify(classifier: Classifier, images: dict[str, Path]) -> Classified:
    ids: list[str] = []
    sides: list[tuple[int, int]] = []
    unreadable: list[UserError] = []
    found = [(np.zeros((0, len(classifier.info.codes)), np.float32), np.zeros((0, len(CHECKS)), np.float32))]
    batch: list[npt.NDArray[np.uint8]] = []

    def run() -> None:
        if batch:
            probabilities, checks = classifier.run(np.stack(batch), "probabilities", "checks")
            found.append((probabilities, checks))
            batch.clear()

    shown_of = _shown(classifier, list(images.values()))
    for name, shown in zip(tqdm(images, "Predicting", unit="image", leave=False), shown_of, strict=True):
        if isinstance(shown, UserError):
            unreadable.append(shown)
            continue
        ids.append(name)
        sides.append((shown.width, shown.height))
        batch.append(shown.pixels)
        if len(batch) == BATCH:
            run()
    run()
    probabilities, checks = (np.concatenate(parts).astype(np.float64) for parts in zip(*found, strict=True))
    return Classified(ids, probabilities, checks, sides, unreadable)


def predict(
    model: Path,
    paths: Sequence[Path],
    out: Path,
    *,
    prevalence: str = "equal",
    lesions: Path | None = None,
    device: str = "auto",
) -> None:
    """Writes the probabilities of every readable image among `paths` to `out`, in ISIC's format.

    And beside it, into `decisions_file(out)`, whether each is refused and why, its prediction set and its triage.

    Args:
        model: the .onnx file.
        paths: files and folders.
        out: the CSV: `image`, and a column a class; both files are left as they were where no image can be read.
        prevalence: `equal`, `training`, or shares such as `mel=0.05,nv=0.8,…`.
        lesions: a CSV that names each image's lesion; images of one lesion that aren't refused get the lesion's
            probabilities.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        UserError: something that was asked for can't be had; or, after all is written, images that can't be read.
    """
    classifier = Classifier(model, device)
    info = classifier.info
    stated = parse_prevalence(prevalence, info.codes, info.prevalence)
    found = find_images(paths)
    beside = decisions_file(out)
    for place in (out, beside):
        _require_place(place, [model, *([lesions] if lesions else []), *found.images.values(), *found.misnamed])
    if not found.images and not found.misnamed:
        raise UserError(f"there is no image at {', '.join(map(str, paths))} ({found.skipped} other files)")
    ids = list(found.images)
    lesion_of = dict(zip(ids, read_lesions(lesions, ids), strict=True)) if lesions else {}
    print(
        f"Model {info.name} of {info.created}, sha256 {classifier.digest[:12]}, on the {classifier.device}", flush=True
    )
    if info.warning:
        print(info.warning, flush=True)

    classified = _classify(classifier, found.images)
    kept, values = classified.ids, classified.probabilities
    unreadable = [*found.misnamed.values(), *classified.unreadable]
    if not kept:
        raise UserError("\n".join([f"no image could be read, and {out} isn't written:", *map(str, unreadable)]))
    verdicts = classified.verdicts(values, info)
    if lesion_of:
        # a refused picture has no say in what its lesion is
        accepted = [i for i, v in enumerate(verdicts) if not v.refused]
        values[accepted] = combine(values[accepted], [lesion_of[kept[i]] for i in accepted], info.lesion_rule)
        alone: dict[str, list[Verdict]] = {}
        for i in accepted:
            alone.setdefault(lesion_of[kept[i]], []).append(verdicts[i])
        said_of = zip(kept, classified.verdicts(values, info), strict=True)
        verdicts = [of_lesion(said, alone.get(lesion_of[name], [])) for name, said in said_of]
    if stated is not None:
        impossible = [name for name, share in zip(kept, values @ stated, strict=True) if not share > 0]
        if impossible:
            raise UserError(
                f"image {first_of(impossible)}: all of the probability is on classes to which --prevalence gives no "
                "share: state shares above 0"
            )
        values = at_prevalence(values, stated)
    write_atomic(out, _csv(kept, info.columns, values))
    write_atomic(beside, _decisions_csv(kept, verdicts))
    said = f"{len(kept):,} images into {out}, probabilities for {_prevalence_words(prevalence)}"
    if lesion_of:
        lesions_said = len({lesion_of[kept[i]] for i in accepted})
        said += f", {lesions_said:,} lesions combined by their {info.lesion_rule} mean".replace("mean mean", "mean")
    if found.skipped:
        said += f"; {found.skipped:,} files that aren't images skipped"
    print(said)
    refused = sum(v.refused is not None for v in verdicts)
    print(f"{beside} says of each whether it is refused ({refused:,} are), its prediction set, and refer or not")
    if unreadable:
        raise UserError("\n".join([f"{len(unreadable):,} images are not in {out}:", *map(str, unreadable)]))


def _prevalence_words(prevalence: str) -> str:
    return {"equal": "equal prevalence", "training": "the training data's prevalence"}.get(
        prevalence, "the stated prevalence"
    )


def decisions_file(out: Path) -> Path:
    """Beside the CSV `out`: `NAME_decisions.csv`."""
    return out.with_name(f"{out.stem}_decisions{out.suffix or '.csv'}")


def _decisions_csv(image_ids: Sequence[str], verdicts: Sequence[Verdict]) -> bytes:
    """`image, refused, set, triage, not_ruled_out`; of a refused picture the reason alone.

    `not_ruled_out`: malignant diagnoses in the set of what the triage rule doesn't refer.
    """
    text = io.StringIO()
    writer: Any = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "refused", "set", "triage", "not_ruled_out"])
    for image_id, v in zip(image_ids, verdicts, strict=True):
        writer.writerow([image_id, v.refused or "", " ".join(v.classes), v.triage, " ".join(v.not_ruled_out)])
    return text.getvalue().encode()


def _csv(image_ids: Sequence[str], columns: Sequence[str], values: npt.NDArray[np.float64]) -> bytes:
    """ISIC's format; all digits, since rounding makes ties."""
    text = io.StringIO()
    writer: Any = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *columns])
    for image_id, row in zip(image_ids, np.clip(values, 0.0, 1.0), strict=True):
        writer.writerow([image_id, *map(repr, row.tolist())])
    return text.getvalue().encode()
