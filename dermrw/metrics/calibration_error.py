"""Calibration error, reliability diagrams and proper scores.

Inputs as in `classification`: `probabilities` float [N, C], `labels` int [N], `weights` [N], all 1 if None.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dermrw.metrics.classification import Floats, Weights, checked, checked_weights


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
