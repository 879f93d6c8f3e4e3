"""The decisions on one image besides its probabilities: refusal, prediction set, triage. No torch in here.

`dermrw predict`, the Python class and the demo all use this function.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dermrw.decisions.conformal import prediction_sets
from dermrw.decisions.prevalence import at_prevalence
from dermrw.decisions.refusal import refusal, too_small
from dermrw.inference.model_file import ModelInfo

REFER, NO_REASON = "refer", "no reason to refer seen"


class Verdict(NamedTuple):
    """Refusal, prediction set and triage. A refused image has only the reason."""

    refused: str | None  # the reason, such as `it is blurred`
    classes: tuple[str, ...]  # the prediction set, the most probable first; empty if refused
    refer: bool | None  # None: refused, or the model has no triage rule
    malignant: tuple[str, ...] = ()  # malignant and pre-malignant classes in the prediction set
    malignancy_score: float | None = None  # 0 to 100, `triage_score` in per cent; None: refused, or no triage rule

    @property
    def triage(self) -> str:
        """`refer` or `no reason to refer seen`; empty if refused, or if the model has no triage rule."""
        return "" if self.refused or self.refer is None else REFER if self.refer else NO_REASON

    @property
    def not_ruled_out(self) -> tuple[str, ...]:
        """Malignant and pre-malignant classes in the prediction set of an image that triage does not refer."""
        return () if self.refused or self.refer is not False else self.malignant


def verdict(
    probabilities: npt.NDArray[np.floating], checks: npt.NDArray[np.floating], width: int, height: int, info: ModelInfo
) -> Verdict:
    """The verdict on one image.

    Args:
        probabilities: the image's, at equal prevalence `[C]`.
        checks: the graph's image checks `[8]`.
        width: of the image without its border, pixels.
        height: of the image without its border, pixels.
        info: the model's metadata.
    """
    reason = too_small(width, height, info.smallest) or refusal(checks, info.limits, info.is_ham10000)
    return Verdict(reason, (), None) if reason else decide(probabilities, info)


def malignant_share(probabilities: npt.NDArray[np.floating], info: ModelInfo) -> float:
    """Returns the summed probability of the malignant and pre-malignant classes, from probabilities `[C]`."""
    malignant = info.malignant or (False,) * len(info.codes)
    return sum(float(p) for p, bad in zip(probabilities, malignant, strict=True) if bad)


def triage_score(probabilities: npt.NDArray[np.floating], info: ModelInfo) -> float:
    """Returns the malignant share at `info.triage_shares`, from probabilities at equal prevalence `[C]`."""
    return malignant_share(at_prevalence(probabilities[None], info.triage_shares)[0], info)


def decide(probabilities: npt.NDArray[np.floating], info: ModelInfo) -> Verdict:
    """Prediction set and triage from probabilities at equal prevalence `[C]`, of an image or lesion not refused."""
    in_set = prediction_sets(probabilities[None], info.thresholds)[0]
    order = [c for c in np.argsort(-probabilities, kind="stable") if in_set[c]]
    refer = score = None
    if info.triage is not None:
        share = triage_score(probabilities, info)
        refer, score = share >= info.triage.threshold, min(100.0, 100 * share)
    malignant = tuple(info.codes[c] for c in order if info.malignant and info.malignant[c])
    return Verdict(None, tuple(info.codes[c] for c in order), refer, malignant, score)
