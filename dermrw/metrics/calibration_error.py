"""Calibration error, reliability diagrams and proper scores.

Inputs as in `classification`: `probabilities` float [N, C], `labels` int [N], `weights` [N], all 1 if None.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dermrw.metrics.classification import Floats, Interval, Ints, Weights, checked, checked_weights
from dermrw.metrics.resampling import bootstrap_counts, interval_of, reflected_interval


class Reliability(NamedTuple):
    """Points of a reliability diagram, one for each bin with weight above 0, in ascending order of score."""

    score: Floats  # mean score in the bin
    frequency: Floats  # share of events in the bin
    weight: Floats  # the bin's share of all weight; sums to 1


def reliability_curve(
    event: npt.ArrayLike, score: npt.ArrayLike, weights: Weights = None, *, bins: int = 15
) -> Reliability:
    """Returns the mean score and the frequency of `event` [N] bool in bins of equal weight, ordered by `score` [N].

    Bins have equal mass instead of equal width. No bin is nearly empty, and the bias of the calibration error is
    smaller (Roelofs et al., AISTATS 2022). Images of equal score are put into the bin of their middle mass, so the
    result does not depend on their order. Bins that are empty for this reason are omitted.
    """
    happened, value = np.asarray(event, dtype=np.float64), np.asarray(score, dtype=np.float64)
    w = checked_weights(weights, len(value))
    happened, value, w = happened[w > 0], value[w > 0], w[w > 0]
    _, same = np.unique(value, return_inverse=True)
    mass = np.bincount(same, w)
    middle = (np.cumsum(mass) - mass / 2) / w.sum()
    where = np.minimum(bins * middle, bins - 1).astype(np.int64)[same]
    sums = np.array([np.bincount(where, w * v, minlength=bins) for v in (value, happened, np.ones_like(w))])
    sums = sums[:, sums[2] > 0]
    return Reliability(sums[0] / sums[2], sums[1] / sums[2], sums[2] / w.sum())


def expected_calibration_error(
    probabilities: npt.ArrayLike,
    labels: npt.ArrayLike,
    weights: Weights = None,
    *,
    bins: int = 15,
    classwise: bool = False,
) -> float:
    """Returns the mean absolute difference of probability and frequency over the bins of `reliability_curve`.

    The default is the top-label error (Guo et al., ICML 2017, eq. 3). It compares the largest probability with the
    frequency at which its class (the first of tied classes) is correct. `classwise` computes the error of each class's
    probability and averages it over all C classes (Kull et al., NeurIPS 2019, section 2). Without weights, the result
    holds at the test set's prevalence; with `equal_prevalence_weights`, at equal prevalence. Chance adds up to about
    0.4 sqrt(bins / effective N), so the error is above 0 even for perfect calibration. nan without weight.
    """
    p, y, w = checked(probabilities, labels, weights, sums=True)
    if not w.any():
        return np.nan
    top = p.argmax(axis=1)
    pairs = [(y == c, p[:, c]) for c in range(p.shape[1])] if classwise else [(y == top, p[np.arange(len(y)), top])]
    curves = [reliability_curve(event, score, w, bins=bins) for event, score in pairs]
    return float(np.mean([r.weight @ np.abs(r.score - r.frequency) for r in curves]))


def _mean(values: Floats, w: Floats) -> float:
    return float(np.average(values[w > 0], weights=w[w > 0])) if w.any() else np.nan


def brier(probabilities: npt.ArrayLike, labels: npt.ArrayLike, weights: Weights = None) -> float:
    """Returns the mean over images of sum_c (p_c - [y = c])^2, 0 to 2 (Brier, Mon. Weather Rev. 78:1-3 (1950))."""
    p, y, w = checked(probabilities, labels, weights, sums=True)
    return _mean(np.sum((p - np.eye(p.shape[1])[y]) ** 2, axis=1), w)


def nll(probabilities: npt.ArrayLike, labels: npt.ArrayLike, weights: Weights = None) -> float:
    """Returns the mean of -log p[label] in nats; infinite if a label has probability 0."""
    p, y, w = checked(probabilities, labels, weights, sums=True)
    with np.errstate(divide="ignore"):
        return _mean(-np.log(p[np.arange(len(y)), y]), w)


def errors(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, weights: Weights = None, *, bins: int = 15
) -> dict[str, float]:
    """Returns the calibration errors and the proper scores by name."""
    return {
        "top_label_ece": expected_calibration_error(probabilities, labels, weights, bins=bins),
        "classwise_ece": expected_calibration_error(probabilities, labels, weights, bins=bins, classwise=True),
        "brier": brier(probabilities, labels, weights),
        "nll": nll(probabilities, labels, weights),
    }


class _RankedBins:
    """Events and scores, ranked once, so that the calibration error for many sets of weights is cheap."""

    def __init__(self, event: npt.NDArray[np.bool_], score: Floats, y: Ints, group: Ints, w: Floats) -> None:
        order = np.argsort(score, kind="stable")
        value = score[order]
        starts = np.flatnonzero(np.r_[True, value[1:] != value[:-1]])  # of the rows of equal score
        self.starts = np.r_[starts, len(value)]
        self.same = None if len(starts) == len(value) else np.repeat(np.arange(len(starts)), np.diff(self.starts))
        self.difference = value - event[order]
        self.y, self.group, self.w = y[order], group[order], w[order]

    def error(self, drawn: Floats, scale: Floats, bins: int) -> float:
        """Returns the error of `expected_calibration_error`.

        Args:
            drawn: number of draws of each group.
            scale: factor of the weights of each class `[C]`.
            bins: number of bins.
        """
        w = drawn[self.group] * self.w * scale[self.y]
        mass = w if self.same is None else np.bincount(self.same, w)
        total = w.sum()
        if not total > 0:
            return np.nan
        place = bins * ((np.cumsum(mass) - mass / 2) / total)  # ascending; the integer part is the bin
        first = self.starts[np.searchsorted(place, np.arange(bins))]  # row of each bin
        filled = first[:-1] < first[1:], first[-1] < len(w)
        first = first[np.r_[filled[0], filled[1]]]
        return float(np.abs(np.add.reduceat(w * self.difference, first)).sum() / total)


def calibration_intervals(
    probabilities: Mapping[str, Floats],
    labels: Ints,
    groups: npt.ArrayLike,
    weights: Floats,
    class_totals: Mapping[str, Callable[[Floats], Floats]],
    *,
    replicates: int,
    bins: int = 15,
    seed: int = 0,
) -> dict[str, dict[str, Interval]]:
    """Returns the intervals of `errors` for several sets of probabilities, from one bootstrap of whole groups.

    The intervals of calibration errors are those of `reflected_interval`. The scores are ranked once. A replicate then
    costs one pass over the images for each class.

    Args:
        probabilities: `[N, C]` by name.
        labels: `[N]`.
        groups: `[N]`.
        weights: `[N]`.
        class_totals: by the same names, a function of the drawn total weight of each class `[C]` that returns the total
            weight that the class is given `[C]`.
        replicates: number of bootstrap samples.
        bins: of the calibration error.
        seed: of the draws.
    """
    kept = np.asarray(weights) > 0
    y, w = np.asarray(labels)[kept], np.asarray(weights, dtype=np.float64)[kept]
    _, group = np.unique(np.asarray(groups)[kept], return_inverse=True)
    values: dict[str, list[dict[str, float]]] = {name: [] for name in probabilities}
    estimates, prepared = {}, {}
    for name, all_rows in probabilities.items():
        p = np.asarray(all_rows, dtype=np.float64)[kept]
        classes = p.shape[1]
        own = np.bincount(y, w, classes).astype(np.float64)
        estimates[name] = errors(p, y, w * _scale(own, class_totals[name])[y], bins=bins)
        top = p.argmax(axis=1)
        with np.errstate(divide="ignore"):
            loss = -np.log(p[np.arange(len(y)), y])
        prepared[name] = (
            _RankedBins(y == top, p[np.arange(len(y)), top], y, group, w),
            [_RankedBins(y == c, p[:, c], y, group, w) for c in range(classes)],
            np.sum((p - np.eye(classes)[y]) ** 2, axis=1),
            np.where(np.isfinite(loss), loss, 0.0),
            ~np.isfinite(loss),
        )
    for (drawn,) in bootstrap_counts(int(group.max(initial=-1)) + 1, replicates, seed):
        once = drawn[group] * w
        for name, (top_bins, class_bins, squares, loss, infinite) in prepared.items():
            scale = _scale(np.bincount(y, once, len(class_bins)), class_totals[name])
            scaled = once * scale[y]
            total = scaled.sum() or np.nan
            values[name].append(
                {
                    "top_label_ece": top_bins.error(drawn, scale, bins),
                    "classwise_ece": float(np.mean([each.error(drawn, scale, bins) for each in class_bins])),
                    "brier": float(squares @ scaled / total),
                    "nll": np.inf if scaled[infinite].any() else float(loss @ scaled / total),
                }
            )
    return {
        name: {
            key: reflected_interval([row[key] for row in values[name]], estimate)
            if key.endswith("ece")
            else interval_of([row[key] for row in values[name]] if np.isfinite(estimate) else [])
            for key, estimate in estimates[name].items()
        }
        for name in probabilities
    }


def _scale(totals: npt.NDArray[Any], class_totals: Callable[[Floats], Floats]) -> Floats:
    """The factor of each class's weights `[C]`."""
    return np.divide(class_totals(totals), totals, out=np.zeros(len(totals)), where=totals > 0)
