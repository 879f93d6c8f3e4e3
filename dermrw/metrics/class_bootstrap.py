"""Bootstrap of each class's lesions, for balanced accuracy, recalls and their differences.

Inputs and conventions as in `dermrw.metrics.classification`.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dermrw.metrics.classification import (
    Floats,
    Interval,
    Ints,
    Weights,
    balanced_accuracy,
    checked,
    decide,
    recalls,
)

FEW = 10  # lesions of a class, or groups, below which a bootstrap shows too little variation
CELLS = 1_000_000  # of the replicates' counts at a time, so that memory does not grow with the images


class Bootstrap(NamedTuple):
    """Intervals of balanced accuracy and of each class's recall, and the number of lesions [C] of each class."""

    balanced_accuracy: Interval
    recalls: tuple[Interval, ...]
    lesions: Ints


class Replicates(NamedTuple):
    """Bootstrap replicates of the mean value of each class, and the number of lesions that each class has."""

    means: Floats  # [replicates, C]; nan for a class without weight
    lesions: Ints  # [C]


def replicated_means(
    values: Floats,
    weights: Floats,
    labels: npt.NDArray[Any],
    lesions: npt.NDArray[Any],
    classes: int,
    replicates: int,
    seed: int,
    signed: bool = False,
) -> Replicates:
    """Returns bootstrap replicates of Σ values / Σ weights of each class.

    Whole lesions are drawn with replacement, within each class: lesions with the same (Σ values, Σ weights) are
    equivalent, so the draw is multinomial over these kinds. If a lesion (or patient) has images of several classes, the
    classes are not independent: then lesions are drawn from all of them.

    A class of fewer than `FEW` lesions, or whose lesions all have one mean, shows too little variation. Its replicates
    are drawn from the posterior of its mean under Jeffreys' prior instead: a Dirichlet distribution of the shares of
    the values −1, 0 and 1 that occur, with the number of lesions and ½ for each value.

    Args:
        values: 0 to 1 (−1 to 1 if `signed`), times the weights `[N]`.
        weights: of the images `[N]`; those without weight are left out.
        labels: their classes `[N]`.
        lesions: the lesion or patient of each image `[N]`.
        classes: C.
        replicates: their number.
        seed: of the draws.
        signed: whether the values are differences, from −1 to 1.
    """
    rng = np.random.default_rng(seed)
    kept = weights > 0
    values, weights, labels = values[kept], weights[kept], labels[kept]
    _, lesion = np.unique(lesions[kept], return_inverse=True)
    count = int(lesion.max(initial=-1)) + 1
    sums = np.zeros((2, classes, count))
    np.add.at(sums[0], (labels, lesion), values)
    np.add.at(sums[1], (labels, lesion), weights)
    present = sums[1] > 0  # [C, lesions]
    joint = _drawn_together(sums, replicates, rng) if (present.sum(0) > 1).any() else None
    means = np.full((replicates, classes), np.nan)
    for c in np.flatnonzero(present.any(1)):
        total, weight = sums[:, c, present[c]]
        share = total / weight
        if len(share) < FEW or np.ptp(share) < 1e-9:
            means[:, c] = _posterior_means(share, signed, replicates, rng)
        elif joint is not None:
            means[:, c] = joint[:, c]
        else:
            kinds, number = np.unique(np.column_stack([total, weight]), axis=0, return_counts=True)
            drawn = rng.multinomial(len(share), number / len(share), size=replicates) @ kinds
            means[:, c] = drawn[:, 0] / drawn[:, 1]
    return Replicates(means, present.sum(1))


def _drawn_together(sums: Floats, replicates: int, rng: np.random.Generator) -> Floats:
    """Returns replicates `[replicates, C]` of the classes' means from draws of whole lesions of all classes.

    A class of which no lesion is drawn has its own mean.
    """
    count = sums.shape[2]
    rows = max(1, CELLS // max(count, 1))
    parts = []
    for start in range(0, replicates, rows):
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=min(rows, replicates - start)).astype(np.float64)
        total, weight = drawn @ sums[0].T, drawn @ sums[1].T
        own = np.broadcast_to(sums[0].sum(1) / np.maximum(sums[1].sum(1), np.finfo(float).tiny), total.shape)
        parts.append(np.divide(total, weight, out=own.copy(), where=weight > 0))
    return np.concatenate(parts)


def _posterior_means(share: Floats, signed: bool, replicates: int, rng: np.random.Generator) -> Floats:
    """Returns draws of the mean of a class from the lesions' means `[L]`, under Jeffreys' prior.

    A mean between two values counts for both in proportion, such as 0.25 for a quarter of a 1.
    """
    plus, minus = np.clip(share, 0, 1).sum(), np.clip(-share, 0, 1).sum()
    if not signed:
        return rng.beta(plus + 0.5, len(share) - plus + 0.5, size=replicates)
    drawn = rng.dirichlet([minus + 0.5, len(share) - plus - minus + 0.5, plus + 0.5], size=replicates)
    difference: Floats = drawn[:, 2] - drawn[:, 0]
    return difference


def bootstrap_interval(
    probabilities: npt.ArrayLike,
    labels: npt.ArrayLike,
    lesions: npt.ArrayLike,
    weights: Weights = None,
    *,
    replicates: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Bootstrap:
    """Returns percentile intervals of balanced accuracy and each recall, from a bootstrap of lesions within classes.

    The errors on images of one lesion are correlated, so whole lesions are drawn (cluster bootstrap: Field and Welsh,
    J. R. Stat. Soc. B 69:369-390 (2007); Cameron, Gelbach, Miller, Rev. Econ. Stat. 90:414-427 (2008)). They are drawn
    within classes, because balanced accuracy takes the classes as given. Each replicate draws, with replacement, as
    many lesions of a class as the class has. Its recall is the correctly decided weight divided by the drawn weight. A
    lesion with images of two classes counts as one lesion in each.

    A class of few lesions, or whose lesions are all right or all wrong, is drawn from Jeffreys' posterior instead
    (`replicated_means`): with one lesion a bootstrap would show no variation, and the interval of balanced accuracy
    would be far too narrow (with six classes of 100 lesions and one of one, it covered the truth in 27 % of samples).
    """
    p, y, w = checked(probabilities, labels, weights)
    lesion_of, right = np.asarray(lesions), w * (decide(p) == y)
    if lesion_of.shape != y.shape:
        raise ValueError(f"lesions must be [{len(y)}], not of shape {lesion_of.shape}")
    drawn, count = replicated_means(right, w, y, lesion_of, p.shape[1], replicates, seed)

    def interval(values: Floats, estimate: float) -> Interval:  # holds the estimate, also of 0 or 1
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        return Interval(float(np.minimum(low, estimate)), float(np.maximum(high, estimate)))

    present = count > 0
    overall = drawn[:, present].mean(axis=1) if present.any() else drawn[:, 0]
    each_class = zip(drawn.T, recalls(p, y, w), strict=True)
    score = balanced_accuracy(p, y, w)
    return Bootstrap(interval(overall, score), tuple(interval(means, share) for means, share in each_class), count)
