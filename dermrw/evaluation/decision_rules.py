"""What is said beside the ranking: refused or not, a set of diagnoses, refer or not. From validation, then measured.

Everything that a model file needs to say the same is in `Decisions.to_dict`.
"""

from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from dermrw.decisions.conformal import fit_thresholds, prediction_sets
from dermrw.decisions.prevalence import combine
from dermrw.decisions.refusal import fit_limits, refusal
from dermrw.decisions.triage import LEAST_SENSITIVITY, OperatingPoint, Share, choose, measure, share_of
from dermrw.diagnoses import DX, Classes
from dermrw.metrics.classification import malignant

Floats = npt.NDArray[np.float64]


class Predicted(NamedTuple):
    """A set of images with what the model says of them."""

    probabilities: Floats  # [N, C], for equal prevalence
    checks: Floats  # [N, 8]
    labels: npt.NDArray[np.int64]
    lesions: npt.NDArray[Any]


class Decisions(NamedTuple):
    """Thresholds and limits, and what they rest on."""

    codes: tuple[str, ...]
    thresholds: Floats  # [C], of the sets
    limits: dict[str, float]
    threshold: float | None  # of the triage; None where the classes aren't HAM10000's, or one side is missing
    fitted: dict[str, Any]  # for the report: lesions, likely cover, validation's own sensitivity

    @classmethod
    def fit(cls, valid: Predicted, classes: Classes) -> Self:
        """From the validation images."""
        sets = fit_thresholds(valid.probabilities, valid.labels, valid.lesions)
        point = None
        if classes.codes == DX:
            positive, score = malignant(valid.probabilities, valid.labels)
            if positive.any() and not positive.all():
                point = choose(score, positive, valid.lesions)
        fitted = {
            "sets": {
                "coverage": sets.coverage,
                "validation_lesions": dict(zip(classes.codes, sets.lesions.tolist(), strict=True)),
                "likely_coverage": dict(zip(classes.codes, sets.likely.tolist(), strict=True)),
            },
            "triage": None if point is None else {"least": LEAST_SENSITIVITY, "validation": point_dict(point)},
        }
        limits = fit_limits(valid.checks, valid.lesions)
        return cls(classes.codes, sets.values, limits, None if point is None else point.threshold, fitted)

    def to_dict(self) -> dict[str, Any]:
        """For report.json."""
        return {
            "thresholds": dict(zip(self.codes, self.thresholds.tolist(), strict=True)),
            "triage_threshold": self.threshold,
            "limits": self.limits,
            "fitted": self.fitted,
        }

    def measured(self, seen: Predicted, weights: Floats, lesion_rule: str) -> dict[str, Any]:
        """How refusal, sets and triage do on a set; images of weight 0 count nowhere.

        `by_lesion` is of the lesions with several images, judged together by the thresholds of single images.

        Cover and triage are of all images, the refused ones too: who shows the model such a picture again gets no other
        answer.
        """
        kept = weights > 0
        p, y, lesions = seen.probabilities[kept], seen.labels[kept], seen.lesions[kept]
        if not len(y):
            return {"refused": None, "sets": None, "triage": None, "by_lesion": None}
        reasons = [refusal(row, self.limits) for row in seen.checks[kept]]
        refused = np.array([reason is not None for reason in reasons])
        sets = prediction_sets(p, self.thresholds)
        held = sets[np.arange(len(y)), y]
        cover = {
            code: _share_dict(share_of(held[y == c], lesions[y == c])) if (y == c).any() else None
            for c, code in enumerate(self.codes)
        }
        whole = self._judged(p, y, lesions)
        return {
            "refused": {
                **_share_dict(share_of(refused, lesions)),
                "reasons": {r: reasons.count(r) for r in sorted({r for r in reasons if r})},
                "by_class": {c: float(refused[y == i].mean()) for i, c in enumerate(self.codes) if (y == i).any()},
            },
            "sets": {
                "coverage": whole["coverage"],
                "mean_over_classes": float(np.mean([row["share"] for row in cover.values() if row])),
                "by_class": cover,
                "mean_size": float(sets.sum(1).mean()),
                "sizes": np.bincount(sets.sum(1), minlength=len(self.codes) + 1)[1:].tolist(),
            },
            "triage": whole["triage"],
            "by_lesion": self._by_lesion(p, y, lesions, lesion_rule),
        }

    def _by_lesion(
        self, p: Floats, y: npt.NDArray[np.int64], lesions: npt.NDArray[Any], rule: str
    ) -> dict[str, Any] | None:
        """Of the lesions with several images: judged together, and image by image; None where there is none."""
        _, first, lesion, images = np.unique(lesions, return_index=True, return_inverse=True, return_counts=True)
        one, several = first[images > 1], images[lesion] > 1
        if not len(one):
            return None
        return {
            "together": self._judged(combine(p, lesion, rule)[one], y[one], lesions[one]),
            "one_by_one": self._judged(p[several], y[several], lesions[several]),
        }

    def _judged(self, p: Floats, y: npt.NDArray[np.int64], lesions: npt.NDArray[Any]) -> dict[str, Any]:
        """Cover of the sets, and triage; None where one side is missing."""
        held = prediction_sets(p, self.thresholds)[np.arange(len(y)), y]
        point = None
        if self.threshold is not None:
            positive, score = malignant(p, y)
            if positive.any() and not positive.all():
                point = point_dict(measure(score, positive, lesions, self.threshold))
        return {"coverage": _share_dict(share_of(held, lesions)), "triage": point}


def _share_dict(share: Share) -> dict[str, Any]:
    return {
        "share": share.value,
        "interval_95": [share.low, share.high],
        "images": share.images,
        "lesions": share.lesions,
    }


def point_dict(point: OperatingPoint) -> dict[str, Any]:
    """An operating point for JSON."""
    return {
        "threshold": point.threshold,
        "sensitivity": _share_dict(point.sensitivity),
        "specificity": _share_dict(point.specificity),
    }
