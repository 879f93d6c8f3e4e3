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
ROUNDING = 1e-4  # relative


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


def share_of(hit: npt.ArrayLike, lesions: npt.ArrayLike) -> Share:
    """The share of images `[N]` that are hit, N > 0, with its interval over lesions `[N]`.

    Clopper and Pearson's interval for as many independent images as would know the share as well as these, whose
    lesions' images go together: n* = p (1 - p) / v, with v the variance between lesions (a ratio's, linearised), less
    what v itself rests on few lesions (Korn, Graubard, Survey Methodology 24:193-201 (1998), section 3). Where all
    or none are hit there is no v: n* is then the number of lesions. Near 100 %, where triage needs it, a bootstrap's
    percentiles are too narrow.
    """
    from scipy.stats import beta, t  # here, since the demo uses this module and has no SciPy

    h = np.asarray(hit, dtype=bool)
    _, lesion, images = np.unique(np.asarray(lesions), return_inverse=True, return_counts=True)
    n, count, p = len(h), len(images), float(h.mean())
    effective = float(count)
    if 0 < p < 1 and count > 1:
        residual = np.bincount(lesion, h - p, count)
        v = count / (count - 1) * np.square(residual).sum() / n**2
        effective = min(n, p * (1 - p) / v * (t.ppf(0.975, n - 1) / t.ppf(0.975, count - 1)) ** 2)
    k = p * effective
    low = beta.ppf(0.025, k, effective - k + 1) if k > 0 else 0.0
    high = beta.ppf(0.975, k + 1, effective - k) if k < effective else 1.0
    return Share(p, float(low), float(high), n, count)


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
    sensitivity = share_of(s[event] >= threshold, lesion_of[event])
    return OperatingPoint(threshold, sensitivity, share_of(s[~event] < threshold, lesion_of[~event]))


def choose(
    score: npt.ArrayLike, positive: npt.ArrayLike, lesions: npt.ArrayLike, least: float = LEAST_SENSITIVITY
) -> OperatingPoint:
    """The highest threshold whose sensitivity's lower end is at least `least`, as is that of all below it.

    Arguments as of `measure`.

    So few positive lesions that no threshold does it leave the lowest positive score, which misses none of them.
    """
    s, event, lesion_of = _sides(score, positive, lesions)
    best, *higher = np.unique(s[event])  # rising
    for candidate in higher:
        if share_of(s[event] >= candidate, lesion_of[event]).low < least:
            break  # beyond the first that breaks the promise none is looked at: the interval needn't fall evenly
        best = candidate
    # the model file rounds otherwise than what was measured
    return measure(s, event, lesion_of, float(best) * (1 - ROUNDING))
