"""The model as the page and the API share it, and the API's result as JSON."""

import io
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dermrw.errors import UserError
from dermrw.images.preprocess import read_image
from dermrw.inference.case_index import Case, Index
from dermrw.inference.classifier import Classifier, Explanation
from dermrw.inference.lesion import Lesion, adjust_prevalence
from dermrw.inference.messages import adapted

from .heatmap import relative_evidence
from .region import PREVIEW, UNCHANGED, Edit, chosen_box, jpeg, seen_part, turned
from .words import words_for

MAX_BYTES = 30_000_000  # per file
MAX_PICTURES = 10  # per lesion
MAX_IMAGES = 500  # of the table of many images
NOTE = "For research. Not a medical device; not a diagnosis."


class Picture(NamedTuple):
    """An uploaded file, in memory only."""

    name: str  # on the user's machine
    content: bytes


class Examined(NamedTuple):
    """A picture's result on the page, with the user's changes to it."""

    explanation: Explanation
    edit: Edit = UNCHANGED
    preview: bytes = b""  # a JPEG, if the browser can't show the file


def plain_name(path: str) -> str:
    """Returns the file's name without line ends, control characters and marks that change the writing direction."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in Path(path).name)


class Engine:
    """The model and, if there is one, the index of labelled cases."""

    def __init__(self, classifier: Classifier, index: Index | None = None) -> None:
        self.classifier, self.index, self.info = classifier, index, classifier.info
        self.words = words_for(classifier.info)
        self._lock = threading.Lock()  # one image at a time: decoding 50 megapixels takes a gigabyte

    def explain(self, picture: Picture, hashed: bool = False) -> Explanation:
        """Returns the model's outputs and verdict for one image.

        Args:
            picture: the upload.
            hashed: whether to compute perceptual hashes.

        Raises:
            UserError: the image can't be read; the message names it.
        """
        file = io.BytesIO(picture.content)
        file.name = picture.name
        with self._lock:
            return self.classifier.explain(file, hashed=hashed)

    def examine(self, picture: Picture, edit: Edit = UNCHANGED, preview: bool = False) -> Examined:
        """Returns the result for one image with the user's turn and crop, which replaces the automatic cut.

        Raises:
            UserError: the image can't be read, or the crop is not possible; the message names the image.
        """
        file = io.BytesIO(picture.content)
        file.name = picture.name
        with self._lock:
            try:
                image = turned(read_image(file), edit)
                box = chosen_box(image, edit)
            except UserError as error:
                raise UserError(adapted(str(error), self.info)) from None
            explanation = self.classifier.explain(image, box)
            return Examined(explanation, edit, jpeg(image, PREVIEW, 88) if preview else b"")

    def cases(self, lesion: Lesion) -> list[Case]:
        """Returns the labelled cases nearest to the lesion's accepted images; none without an index."""
        if self.index is None or not lesion.accepted:
            return []
        return self.index.nearest(np.mean([picture.embedding for picture in lesion.accepted], axis=0))

    def answer(
        self,
        names: list[str],
        lesion: Lesion,
        prevalence: str,
        shares: npt.NDArray[np.float64] | None,
        heat_map: str | None = None,
    ) -> dict[str, Any]:
        """Returns the API's result as JSON: for the lesion, and for each of its images alone.

        Args:
            names: of the images' files.
            lesion: the combined result of the images.
            prevalence: as the client gave it.
            shares: its share of each diagnosis `[C]`; None for equal prevalence.
            heat_map: the code of a class, to include each image's heat map for it.

        Raises:
            UserError: the prevalence is 0 for every diagnosis with a probability above 0.
        """
        verdict, codes, triage = lesion.verdict, self.info.codes, self.info.triage
        shares_of_triage = None if triage is None else self.info.triage_shares
        return {
            "refused": verdict.refused,
            "triage": verdict.triage or None,
            "malignancy_score": verdict.malignancy_score,
            **({"no_triage": self.info.no_triage} if self.info.no_triage else {}),
            "set": list(verdict.classes),
            "not_ruled_out": list(verdict.not_ruled_out),
            "probabilities": None if verdict.refused else by_code(codes, lesion.at(shares)),
            "prevalence": prevalence,
            "thresholds": {
                "set": by_code(codes, np.asarray(self.info.thresholds)),
                "coverage": self.info.coverage,
                "triage": None if triage is None else triage.threshold,
                "triage_prevalence": None if shares_of_triage is None else by_code(codes, np.array(shares_of_triage)),
            },
            "pictures": [
                {
                    "name": name,
                    "refused": picture.verdict.refused,
                    "triage": picture.verdict.triage or None,
                    "notes": list(picture.notes),
                    "box": list(picture.used),
                    "seen": list(seen_part(picture.used, self.info.crop)),
                    "probabilities": None
                    if picture.verdict.refused
                    else by_code(codes, adjust_prevalence(picture.probabilities, shares)),
                    **({} if heat_map is None else {"heat_map": self._heat_map(picture, heat_map)}),
                }
                for name, picture in zip(names, lesion.pictures, strict=True)
            ],
            "model": {"name": self.info.name, "created": self.info.created, "sha256": self.classifier.digest},
            "warning": self.info.warning,
            "note": NOTE,
        }

    def _heat_map(self, picture: Explanation, code: str) -> list[list[float]]:
        """Returns the rows of the relative evidence for a class, 0 to 1."""
        evidence = relative_evidence(picture.activation_map)[self.info.codes.index(code)]
        rows: list[list[float]] = (evidence / 255).round(3).tolist()
        return rows


def by_code(codes: tuple[str, ...], values: npt.NDArray[np.floating]) -> Mapping[str, float]:
    """Returns the values `[C]` by the code of their diagnosis."""
    return dict(zip(codes, map(float, values), strict=True))
