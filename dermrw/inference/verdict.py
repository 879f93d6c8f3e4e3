"""What a model says of a picture beside its ranking: refused and why, the prediction set, refer or not.

The same function answers `dermrw predict`, the Python class and the demo. No torch in here.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dermrw.decisions.conformal import prediction_sets
from dermrw.decisions.refusal import refusal, too_small
from dermrw.diagnoses import MALIGNANT
from dermrw.inference.model_file import ModelInfo

REFER, NO_REASON = "refer", "no reason to refer seen"


class Verdict(NamedTuple):
    """Of a refused picture nothing else is said."""

    refused: str | None  # the reason, such as `it is blurred`
    classes: tuple[str, ...]  # the prediction set, the likeliest first; none of a refused picture
    refer: bool | None  # None: it is refused, or the model knows no triage

    @property
    def triage(self) -> str:
        """In words; nothing for a refused picture, or where the model knows no triage."""
        return "" if self.refused or self.refer is None else REFER if self.refer else NO_REASON

    @property
    def not_ruled_out(self) -> tuple[str, ...]:
        """The malignant and pre-malignant diagnoses of the set, where there is no reason to refer by the rule alone."""
        return () if self.refused or self.refer is not False else tuple(c for c in self.classes if c in MALIGNANT)


def verdict(
    probabilities: npt.NDArray[np.floating], checks: npt.NDArray[np.floating], width: int, height: int, info: ModelInfo
) -> Verdict:
    """Of one picture.

    Args:
        probabilities: for equal prevalence `[C]`, of the picture or of its lesion.
        checks: what the graph measured of the picture `[8]`.
        width: of the picture as it was given, pixels.
        height: of the same.
        info: the model's metadata.
    """
    reason = too_small(width, height, info.smallest) or refusal(checks, info.limits)
    return Verdict(reason, (), None) if reason else judged(probabilities, info)


def judged(probabilities: npt.NDArray[np.floating], info: ModelInfo) -> Verdict:
    """Set and triage by these probabilities for equal prevalence `[C]`, of what is not refused."""
    members = prediction_sets(probabilities[None], info.thresholds)[0]
    order = [c for c in np.argsort(-probabilities, kind="stable") if members[c]]
    refer = None
    if info.triage is not None:
        score = sum(float(p) for p, code in zip(probabilities, info.codes, strict=True) if code in MALIGNANT)
        refer = score >= info.triage.threshold
    return Verdict(None, tuple(info.codes[c] for c in order), refer)


def of_lesion(said: Verdict, alone: Iterable[Verdict]) -> Verdict:
    """What is said of a lesion's pictures together, which is refer where any of them is to be referred alone.

    A mean hides one suspicious picture among others, all the more where one of another lesion slipped in.
    """
    return said._replace(refer=True) if said.refer is False and any(one.refer for one in alone) else said
