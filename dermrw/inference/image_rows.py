"""The result for one image file, as `dermrw predict` and `Classifier` on a table of paths give it. No torch in here."""

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dermrw.errors import UserError
from dermrw.inference.find_images import image_id
from dermrw.inference.known_images import ImageHash
from dermrw.inference.verdict import Verdict, verdict

if TYPE_CHECKING:
    from dermrw.inference.classifier import Classifier, NetworkInput

# Results may differ in the last digits with the number of images in one call of the network. So each call has `BATCH`
# neighbours in the list of files, for any number of processes and wherever an interrupted run stopped.
BATCH = 32
DECISION_COLUMNS = ("refused", "set", "triage", "not_ruled_out", "malignancy_score")


class ImageRow(NamedTuple):
    """The probabilities of an image and the verdict on it, or the error if it cannot be read."""

    image_id: str
    probabilities: tuple[float, ...]  # [C], at equal prevalence; empty if the image cannot be read
    verdict: Verdict
    notes: tuple[str, ...] = ()  # on how the image was read
    error: str = ""  # empty if the image can be read
    hashes: ImageHash | None = None  # perceptual hashes, if they are asked for


def classify_batch(
    classifier: "Classifier",
    image_ids: Sequence[str],
    paths: Sequence[str | Path],
    readers: Executor | None = None,
    hashed: bool = False,
) -> list[ImageRow]:
    """The rows of at most `BATCH` image files, in order, from one call of the network.

    Args:
        classifier: the model.
        image_ids: of the images.
        paths: of their files.
        readers: threads that read the files; None: this one.
        hashed: whether to compute perceptual hashes.

    Raises:
        UserError: the model cannot be run.
    """

    def prepare(path: str | Path) -> "NetworkInput | UserError":
        try:
            return classifier.prepare(path, hashed)
        except UserError as error:
            return error

    inputs = list(readers.map(prepare, paths) if readers else map(prepare, paths))
    pixels = [network_input.pixels for network_input in inputs if not isinstance(network_input, UserError)]
    outputs: Iterator[Any] = iter(())
    if pixels:
        probabilities, checks = classifier.run(np.stack(pixels), "probabilities", "checks")
        outputs = zip(probabilities.astype(np.float64), checks.astype(np.float64), strict=True)
    rows = []
    for name, network_input in zip(image_ids, inputs, strict=True):
        if isinstance(network_input, UserError):
            rows.append(ImageRow(name, (), Verdict(None, (), None), error=str(network_input)))
            continue
        p, image_checks = next(outputs)
        image_verdict = verdict(p, image_checks, *network_input.content_size, classifier.info)
        rows.append(ImageRow(name, tuple(p.tolist()), image_verdict, network_input.notes, hashes=network_input.hashes))
    return rows


def classify_table(classifier: "Classifier", table: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """The table, a column of values [N] by name, with the columns of `Classifier.__call__`, from its column `path`.

    The column `image` holds the ids; without it they are the files' names.

    Raises:
        UserError: a column is no list, or the two differ in length.
    """
    for name in {"path", "image"}.intersection(table):
        if isinstance(table[name], str | bytes) or not isinstance(table[name], Iterable):
            raise UserError(f"the column {name} must be a list, not the single value {table[name]!r}")
    paths = [str(path) for path in table["path"]]
    ids = [str(name) for name in table["image"]] if "image" in table else [image_id(Path(path)) for path in paths]
    if len(ids) != len(paths):
        raise UserError(f"the column image has {len(ids):,} values, and the column path has {len(paths):,}")
    starts = range(0, len(paths), BATCH)
    rows = [row for i in starts for row in classify_batch(classifier, ids[i : i + BATCH], paths[i : i + BATCH])]
    info = classifier.info
    absent = (np.nan,) * len(info.codes)
    probabilities = np.clip([row.probabilities or absent for row in rows], 0, 1).reshape(len(rows), len(info.codes))
    texts = np.array([[*decision_cells(row.verdict), row.error] for row in rows], dtype=object)
    columns = zip((*DECISION_COLUMNS, "error"), texts.reshape(len(rows), len(DECISION_COLUMNS) + 1).T, strict=True)
    return {
        **table,
        "image": np.array(ids, dtype=object),
        **dict(zip(info.columns, probabilities.T, strict=True)),
        **dict(columns),
        "malignancy_score": np.array([row.verdict.malignancy_score for row in rows], dtype=np.float64),  # None: nan
    }


def decision_cells(image_verdict: Verdict) -> list[str]:
    """The cells of `DECISION_COLUMNS`; all but the first are empty if the image is refused.

    Codes are separated by spaces. A code with a space is quoted, as `shlex.split` reads it. The malignancy score has
    all digits, since rounding could move it across the threshold.
    """
    score = image_verdict.malignancy_score
    return [
        image_verdict.refused or "",
        shlex.join(image_verdict.classes),
        image_verdict.triage,
        shlex.join(image_verdict.not_ruled_out),
        "" if score is None else repr(score),
    ]
