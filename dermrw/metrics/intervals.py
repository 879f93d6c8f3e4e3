"""Confidence intervals over groups (lesions or patients) for areas under ROC curves and for classes of few images.

Inputs and conventions as in `dermrw.metrics.classification`: `groups` [N] names the lesion or patient of each image.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import beta

from dermrw.metrics.class_bootstrap import CELLS, FEW, Bootstrap, bootstrap_interval
from dermrw.metrics.classification import (
    Bools,
    Floats,
    Interval,
    Ints,
    RankedCurve,
    Weights,
    checked_weights,
    recalls,
    roc_areas,
)
from dermrw.metrics.resampling import bootstrap_counts

ROUNDING = 1e-9  # replicates that differ by less do not vary
UNDEFINED = Interval(np.nan, np.nan)


def clopper_pearson(share: float, groups: float, level: float = 0.95) -> Interval:
    """Returns the exact interval of a share observed on independent groups (Clopper, Pearson, Biometrika 1934).

    `groups` need not be an integer (an effective sample size), nor `share * groups`. The width is above 0 for any
    finite number of groups. nan without groups or with an undefined share.
    """
    if not groups > 0 or not np.isfinite(share):
        return UNDEFINED
    tail, right = (1 - level) / 2, min(max(share, 0.0), 1.0) * groups
    wrong = groups - right
    low = beta.ppf(tail, right, wrong + 1) if right > 1e-9 else 0.0
    high = beta.ppf(1 - tail, right + 1, wrong) if wrong > 1e-9 else 1.0
    return Interval(float(low), float(high))


def extend_if_few(interval: Interval, share: float, groups: float, level: float = 0.95) -> Interval:
    """Returns the union of a bootstrap interval and Clopper and Pearson's, if the bootstrap cannot be trusted.

    It cannot if there are fewer than `FEW` groups, or if its replicates do not vary: a class of which all images are
    right has a bootstrap interval of width 0, but its recall is not known exactly.
    """
    exact = clopper_pearson(share, groups, level)
    if not np.isfinite(exact.low) or (groups >= FEW and interval.high - interval.low > ROUNDING):
        return interval
    return _union(interval, exact)


def _union(one: Interval, other: Interval) -> Interval:
    return Interval(float(np.fmin(one.low, other.low)), float(np.fmax(one.high, other.high)))


def score_intervals(
    probabilities: npt.ArrayLike,
    labels: npt.ArrayLike,
    groups: npt.ArrayLike,
    weights: Weights = None,
    *,
    replicates: int = 2000,
    level: float = 0.95,
) -> Bootstrap:
    """Returns `bootstrap_interval`'s intervals, those of recalls extended by Clopper and Pearson's.

    They are extended for a class of fewer than `FEW` groups, and for one whose images are all right or all wrong.
    """
    drawn = bootstrap_interval(probabilities, labels, groups, weights, replicates=replicates, level=level)
    shares = recalls(probabilities, labels, weights)
    classes = zip(drawn.recalls, shares, drawn.lesions, strict=True)
    each_class = tuple(
        ends if n >= FEW and 0 < share < 1 else _union(ends, clopper_pearson(float(share), float(n), level))
        for ends, share, n in classes
    )
    return drawn._replace(recalls=each_class)


def area_intervals(
    positive: npt.ArrayLike,
    scores: npt.ArrayLike,
    groups: npt.ArrayLike,
    weights: Weights = None,
    *,
    sensitivity: float | Sequence[float] = 0.0,
    replicates: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> list[Interval]:
    """Returns percentile intervals of K areas under ROC curves, from one bootstrap of whole groups.

    Groups are drawn with replacement from all groups, so that a patient with positive and negative images stays whole.
    Replicates without positives or negatives are left out. With few positive or negative groups, or replicates that do
    not vary, the interval is extended by Clopper and Pearson's for the smaller number of groups. An area is the mean
    over the positive images of a share, so that its variance is at most that of a binomial share.

    Args:
        positive: bool `[N, K]`.
        scores: `[N, K]`.
        groups: `[N]`.
        weights: `[N]`.
        sensitivity: 0 for the AUC; otherwise as of `partial_auc`; one value, or one of each curve.
        replicates: number of bootstrap samples.
        level: of the intervals.
        seed: of the draws.

    Returns:
        K intervals; nan where a curve has no positives or no negatives.
    """
    event, score, names = np.asarray(positive, dtype=bool), np.asarray(scores, dtype=np.float64), np.asarray(groups)
    if event.ndim != 2 or score.shape != event.shape or names.shape != event.shape[:1]:
        raise ValueError(f"positive, scores and groups have shapes {event.shape}, {score.shape} and {names.shape}")
    w = checked_weights(weights, len(names))
    event, score, names, w = event[w > 0], score[w > 0], names[w > 0], w[w > 0]
    _, group = np.unique(names, return_inverse=True)
    least = np.broadcast_to(np.asarray(sensitivity, dtype=np.float64), event.shape[1:])
    values = _replicated_areas(event, score, group, w, least, replicates, seed)
    intervals = []
    for k in range(event.shape[1]):
        fewest = min(len(np.unique(group[event[:, k]])), len(np.unique(group[~event[:, k]])))
        defined = values[np.isfinite(values[:, k]), k]
        if not fewest:
            intervals.append(UNDEFINED)
            continue
        tails = [(1 - level) / 2, (1 + level) / 2]
        area = float(roc_areas(event[:, k], score[:, k], w[None], float(least[k]))[0])
        low, high = np.quantile(defined, tails) if len(defined) else (area, area)
        top = 1 - float(least[k])  # the largest possible area
        scaled = extend_if_few(Interval(float(low) / top, float(high) / top), area / top, float(fewest), level)
        intervals.append(Interval(scaled.low * top, scaled.high * top))
    return intervals


def _replicated_areas(
    event: Bools, score: Floats, group: Ints, w: Floats, least: Floats, replicates: int, seed: int
) -> Floats:
    """The areas `[replicates, K]`; nan where a replicate has no positives or no negatives."""
    columns: dict[tuple[bytes, bytes], list[int]] = {}  # curves that differ in `least` alone are ranked once
    for k in range(event.shape[1]):
        columns.setdefault((event[:, k].tobytes(), score[:, k].tobytes()), []).append(k)
    curves = [
        (RankedCurve(event[:, same[0]], score[:, same[0]]), same)
        for same in columns.values()
        if event[:, same[0]].any()
    ]
    curves = [(curve, same) for curve, same in curves if len(curve.negatives)]
    sides = [[(group[side], w[side]) for side in (curve.positives, curve.negatives)] for curve, _ in curves]
    values = np.full((replicates, event.shape[1]), np.nan)
    start = 0
    for drawn in bootstrap_counts(
        int(group.max(initial=-1)) + 1, replicates, seed, max(1, CELLS // max(1, len(group)))
    ):
        rows = slice(start, start + len(drawn))
        for (curve, same), parts in zip(curves, sides, strict=True):
            positive, negative = (np.take(drawn, groups, axis=1) * weights for groups, weights in parts)
            values[rows, same] = curve.areas(positive, negative, least[same]).T
        start += len(drawn)
    return values


def replicates_for(images: int, most: int) -> int:
    """Returns the number of bootstrap samples of areas for a set of this size: `most`, fewer beyond 20,000 images."""
    return max(min(most, 200), min(most, 40_000_000 // max(1, images)))
