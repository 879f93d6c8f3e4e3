"""Triage: refer malignant and pre-malignant lesions. Needs NumPy only.

The score is the summed probability of melanoma, basal cell carcinoma and actinic keratosis / intraepithelial carcinoma
at the training data's prevalence. At equal prevalence, a rare benign diagnosis counts as much as nevi do, and a rare
malignant one as much as melanoma. On validation images that score has a lower AUC (docs/results_in_detail.md has the
figures).

The operating point is chosen on validation so that the lower end of the sensitivity's 95 % confidence interval reaches
the target. If only the estimate reached it, the true sensitivity would be below the target half of the time.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dermrw.decisions import ROUNDING

Floats = npt.NDArray[np.float64]

LEAST_SENSITIVITY = 0.92
# Groups below which no threshold has this sensitivity with 97.5 % confidence: if none of n groups is missed, the lower
# end of Clopper and Pearson's interval is 0.025^(1/n)
LEAST_POSITIVE = math.ceil(math.log(0.025) / math.log(LEAST_SENSITIVITY))


class Share(NamedTuple):
    """A proportion with its 95 % confidence interval over lesions, and the numbers of images and lesions."""

    value: float
    low: float
    high: float
    images: int
    lesions: int


class OperatingPoint(NamedTuple):
    """Refer if the score reaches `threshold`."""

    threshold: float
    sensitivity: Share
    specificity: Share


def share_of(hit: npt.ArrayLike, lesions: npt.ArrayLike) -> Share:
    """The share of hits among images `[N]`, N > 0, with its confidence interval over lesions `[N]`.

    Clopper and Pearson's interval with an effective sample size n* = p (1 - p) / v. Here v is the variance between
    lesions (of a ratio, linearised), and n* is reduced if v is estimated from few lesions (Korn, Graubard, Survey
    Methodology 24:193-201 (1998), section 3). If all or no images are hits, v is 0 and n* is the number of lesions.
    Near 100 %, the range that triage needs, bootstrap percentiles are too narrow.
    """
    from scipy.stats import beta, t  # imported here, because the demo uses this module without SciPy

    h = np.asarray(hit, dtype=bool)
    _, lesion, images = np.unique(np.asarray(lesions), return_inverse=True, return_counts=True)
    n, count, p = len(h), len(images), float(h.mean())
    effective = float(count)
    if 0 < p < 1 and count > 1:
        residual = np.bincount(lesion, h - p, count)
        v = count / (count - 1) * np.square(residual).sum() / n**2
        effective = float(n)
        if v > 0:
            effective = min(n, p * (1 - p) / v * (t.ppf(0.975, n - 1) / t.ppf(0.975, count - 1)) ** 2)
    k = p * effective
    low = beta.ppf(0.025, k, effective - k + 1) if k > 0 else 0.0
    high = beta.ppf(0.975, k + 1, effective - k) if k < effective else 1.0
    return Share(p, float(low), float(high), n, count)


def _validated(
    score: npt.ArrayLike, positive: npt.ArrayLike, lesions: npt.ArrayLike
) -> tuple[Floats, npt.NDArray[np.bool_], npt.NDArray[np.generic]]:
    s, event, lesion_of = np.asarray(score, dtype=np.float64), np.asarray(positive, dtype=bool), np.asarray(lesions)
    if s.ndim != 1 or event.shape != s.shape or lesion_of.shape != s.shape:
        raise ValueError(f"score, positive and lesions must be [N]: {s.shape}, {event.shape}, {lesion_of.shape}")
    if not event.any() or event.all():
        raise ValueError("an operating point needs positive and negative images")
    return s, event, lesion_of


def sensitivity_and_specificity(
    referred: npt.NDArray[np.bool_], positive: npt.NDArray[np.bool_], lesions: npt.NDArray[Any]
) -> tuple[Share | None, Share | None]:
    """Both figures of a set that may have only malignant or only benign images; None for a side without images.

    Args:
        referred: `[N]`.
        positive: `[N]`, malignant or pre-malignant.
        lesions: `[N]`.
    """
    return (
        share_of(referred[positive], lesions[positive]) if positive.any() else None,
        share_of(~referred[~positive], lesions[~positive]) if not positive.all() else None,
    )


def measure(score: npt.ArrayLike, positive: npt.ArrayLike, lesions: npt.ArrayLike, threshold: float) -> OperatingPoint:
    """Sensitivity and specificity of this threshold on a set.

    Args:
        score: `[N]`, the summed probability.
        positive: `[N]`, malignant or pre-malignant.
        lesions: `[N]`.
        threshold: refer if the score is at least this.
    """
    s, event, lesion_of = _validated(score, positive, lesions)
    sensitivity, specificity = sensitivity_and_specificity(s >= threshold, event, lesion_of)
    assert sensitivity is not None and specificity is not None  # both sides have images
    return OperatingPoint(threshold, sensitivity, specificity)


def too_few_positive(lesions: npt.ArrayLike, unit: str) -> str | None:
    """Returns the reason why no threshold can have `LEAST_SENSITIVITY` with confidence; None if one can.

    Args:
        lesions: the lesion, or other group, of each positive validation image `[N]`.
        unit: of the groups, in the plural.
    """
    count = len(np.unique(np.asarray(lesions)))
    return None if count >= LEAST_POSITIVE else few_positive(count, unit)


def few_positive(count: int, unit: str) -> str:
    """Returns a phrase on too few malignant groups, such as `only 12 malignant patients in validation; …`."""
    counted = f"only {count}" if count else "no"
    return (
        f"{counted} malignant {unit[:-1] if count == 1 else unit} in validation; at least {LEAST_POSITIVE} are needed"
    )


def choose(
    score: npt.ArrayLike, positive: npt.ArrayLike, lesions: npt.ArrayLike, least: float = LEAST_SENSITIVITY
) -> OperatingPoint:
    """The operating point of the highest threshold whose sensitivity is at least `least` with 97.5 % confidence.

    The lower end of the interval must reach `least` at this threshold and at every lower one. With too few positive
    lesions no threshold reaches it: the lowest positive score is chosen, which misses none of them. Arguments as of
    `measure`.
    """
    s, event, lesion_of = _validated(score, positive, lesions)
    best, *higher = np.unique(s[event])  # rising
    for candidate in higher:
        if share_of(s[event] >= candidate, lesion_of[event]).low < least:
            break  # stop at the first failure: the lower end need not fall monotonically
        best = candidate
    return measure(s, event, lesion_of, float(best) * (1 - ROUNDING))
