"""What page and API share: the model, one picture at a time, and the answer as JSON."""

import io
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dermrw.inference.case_index import Case, Index
from dermrw.inference.classifier import Classifier, Explanation
from dermrw.inference.lesion import Lesion, adjust_prevalence

MOST_BYTES = 30_000_000  # of one file
MOST_PICTURES = 10  # of one lesion
NOTE = "For research. Not a medical device; not a diagnosis."


class Picture(NamedTuple):
    """A file that was uploaded, in memory alone."""

    name: str  # as the user's machine calls it
    content: bytes


def plain_name(path: str) -> str:
    """The file's own name, without what would hide in a line of text or turn it round."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in Path(path).name)


class Engine:
    """The model and, where there is one, the index of labelled cases."""

    def __init__(self, classifier: Classifier, index: Index | None = None) -> None:
        self.classifier, self.index, self.info = classifier, index, classifier.info
        self._turn = threading.Lock()  # of 50 megapixels one picture takes a gigabyte while it is decoded

    def explain(self, picture: Picture) -> Explanation:
        """What the model says of it.

        Raises:
            UserError: it can't be read; the sentence names it.
        """
        file = io.BytesIO(picture.content)
        file.name = picture.name
        with self._turn:
            return self.classifier.explain(file)

    def cases(self, lesion: Lesion) -> list[Case]:
        """The labelled cases nearest to what isn't refused of it; none without an index."""
        if self.index is None or not lesion.accepted:
            return []
        return self.index.nearest(np.mean([picture.embedding for picture in lesion.accepted], axis=0))

    def answer(self, names: list[str], lesion: Lesion, prevalence: str, stated: npt.NDArray[np.float64] | None) -> Any:
        """As JSON: of the lesion, and of each of its pictures by itself, all at the stated prevalence.

        Raises:
            UserError: the stated prevalence has no share for any diagnosis in question.
        """
        said, codes = lesion.verdict, self.info.codes
        whole = None if said.refused else by_code(codes, lesion.at(stated))
        return {
            "refused": said.refused,
            "triage": said.triage or None,
            "set": list(said.classes),
            "not_ruled_out": list(said.not_ruled_out),
            "probabilities": whole,
            "prevalence": prevalence,
            "pictures": [
                {
                    "name": name,
                    "refused": one.verdict.refused,
                    "triage": one.verdict.triage or None,
                    "probabilities": None
                    if one.verdict.refused
                    else by_code(codes, adjust_prevalence(one.probabilities, stated)),
                }
                for name, one in zip(names, lesion.pictures, strict=True)
            ],
            "model": {"name": self.info.name, "created": self.info.created, "sha256": self.classifier.digest},
            "warning": self.info.warning,
            "note": NOTE,
        }


def by_code(codes: tuple[str, ...], values: npt.NDArray[np.floating]) -> Mapping[str, float]:
    """Each diagnosis's number."""
    return dict(zip(codes, map(float, values), strict=True))
