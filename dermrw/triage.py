"""Refer, or no reason to refer seen: malignant and pre-malignant against the rest. NumPy alone in here.

The score is the summed probability, at equal prevalence, of melanoma, basal cell carcinoma and actinic keratosis /
intraepithelial carcinoma. The operating point is chosen on validation so that even the lower end of the sensitivity's
95 % interval is what was asked for: a threshold whose estimate is just that would fall short half of the time.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LEAST_SENSITIVITY = 0.92
REPLICATES = 2000


class Share(NamedTuple):
    """A share with its 95 % interval over lesions, and how many of each it rests on."""

    value: float
    low: float
    high: float
    images: int
    lesions: int


class OperatingPoint(NamedTuple):
    """Refer where the score reaches `threshold`."""

    threshold: float
    sensitivity: Share
    specificity: Share


class _Bootstrap:
    """Lesions drawn anew: the same draws for every threshold, so that intervals move one way with it."""

    def __init__(self, lesions: npt.NDArray[np.generic]) -> None:
        _, self.lesion, self.images = np.unique(lesions, return_inverse=True, return_counts=True)
        n = len(self.images)
        self.drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=REPLICATES)  # [R, L]

    def share(self, hit: npt.NDArray[np.bool_]) -> Share:
        """The share of images that are hit."""
        hits = np.bincount(self.lesion, hit, len(self.images))
        values = (self.drawn @ hits) / (self.drawn @ self.images)
        low, high = np.quantile(values, [0.025, 0.975])
        return Share(float(hit.mean()), float(low), float(high), len(hit), len(self.images))


def share_of(hit: npt.ArrayLike, lesions: npt.ArrayLike) -> Share:
    """The share of images `[N]` that are hit, N > 0, with its percentile interval from a bootstrap of lesions `[N]`."""
    return _Bootstrap(np.asarray(lesions)).share(np.asarray(hit, dtype=bool))


def _sides(
    score: npt.ArrayLike, positive: npt.ArrayLike, lesions: npt.ArrayLike
) -> tuple[Floats, npt.NDArray[np.bool_], npt.NDArray[np.generic]]:
    s, event, lesion_of = np.asarray(score, dtype=np.float64), np.asarray(positive, dtype=bool), np.asarray(lesions)
    if s.ndim != 1 or event.shape != s.shape or lesion_of.shape != s.shape:
        raise ValueError(f"score, positive and lesions must be [N]: {s.shape}, {event.shape}, {lesion_of.shape}")
    if not event.any() or event.all():
        raise ValueError("an operating point needs positive and negative images")
    return s, event, lesion_of


def measure(score: npt.ArrayLike, positive: npt.ArrayLike, lesions: npt.ArrayLike, threshold: float) -> OperatingPoint:
    """Sensitivity and specificity of this threshold on a set.

    Args:
        score: `[N]`, the summed probability.
        positive: `[N]`, malignant or pre-malignant.
        lesions: `[N]`.
        threshold: refer from here on.
    """
    s, event, lesion_of = _sides(score, positive, lesions)
    sensitivity = _Bootstrap(lesion_of[event]).share(s[event] >= threshold)
    return OperatingPoint(threshold, sensitivity, _Bootstrap(lesion_of[~event]).share(s[~event] < threshold))


def choose(
    score: npt.ArrayLike, positive: npt.ArrayLike, lesions: npt.ArrayLike, least: float = LEAST_SENSITIVITY
) -> OperatingPoint:
    """The highest threshold whose sensitivity's lower end is at least `least`; arguments as of `measure`.

    So few positive lesions that no threshold does it leave the lowest positive score, which misses none of them.
    """
    s, event, lesion_of = _sides(score, positive, lesions)
    bootstrap = _Bootstrap(lesion_of[event])
    candidates = np.unique(s[event])  # rising
    low, high = 0, len(candidates) - 1
    while low < high:  # the highest that keeps the promise
        middle = (low + high + 1) // 2
        if bootstrap.share(s[event] >= candidates[middle]).low >= least:
            low = middle
        else:
            high = middle - 1
    return measure(s, event, lesion_of, float(candidates[low]))
