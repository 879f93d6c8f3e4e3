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

    @property
    def overall(self) -> Floats:
        """Replicates `[replicates]` of the mean over the classes with weight; nan if there is none."""
        present = self.lesions > 0
        return self.means[:, present].mean(axis=1) if present.any() else self.means[:, 0]


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

    Whole lesions are drawn with replacement, within each class. If a lesion (or patient) has images of several classes,
    the classes are not independent: then lesions are drawn from all of them.

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
    _, lesion = np.unique(lesions[kept], return_inverse=True)
    # the images of one lesion and one class make a cell
    cells, cell_of = np.unique(lesion * classes + labels[kept], return_inverse=True)
    sums = np.column_stack([np.bincount(cell_of, values[kept]), np.bincount(cell_of, weights[kept])])
    lesion_of, class_of = np.divmod(cells, classes)
    joint = None
    if len(np.unique(lesion)) < len(cells):
        whole = np.zeros((lesion_of.max() + 1, 2, classes))
        whole[lesion_of, :, class_of] = sums
        joint = _drawn_sums(whole.reshape(len(whole), -1), replicates, rng).reshape(replicates, 2, classes)
    means = np.full((replicates, classes), np.nan)
    for c in np.unique(class_of):
        mine = sums[class_of == c]
        share = mine[:, 0] / mine[:, 1]
        if len(share) < FEW or np.ptp(share) < 1e-9:
            means[:, c] = _posterior_means(share, signed, replicates, rng)
            continue
        drawn = _drawn_sums(mine, replicates, rng) if joint is None else joint[:, :, c]
        own = np.full(replicates, mine[:, 0].sum() / mine[:, 1].sum())  # where no lesion of the class is drawn
        means[:, c] = np.divide(drawn[:, 0], drawn[:, 1], out=own, where=drawn[:, 1] > 0)
    return Replicates(means, np.bincount(class_of, minlength=classes))


def _drawn_sums(sums: Floats, replicates: int, rng: np.random.Generator) -> Floats:
    """Returns the sums `[replicates, K]` of as many lesions as there are, drawn with replacement.

    Lesions with the same sums `[lesions, K]` are equivalent. The draw is therefore multinomial over these kinds, which
    gives the same distribution and is fast.
    """
    kinds, number = np.unique(sums, axis=0, return_counts=True)
    rows = max(1, CELLS // len(kinds))
    sizes = [min(rows, replicates - start) for start in range(0, replicates, rows)]
    return np.concatenate([rng.multinomial(len(sums), number / len(sums), size=size) @ kinds for size in sizes])


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


def interval_around(estimate: float, replicates: Floats, level: float) -> Interval:
    """Returns the percentile interval of replicates `[R]`, extended to the estimate; nan if a replicate is.

    An estimate at the end of its range, such as 1, would otherwise lie outside.
    """
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.minimum(low, estimate)), float(np.maximum(high, estimate)))


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
    drawn = replicated_means(right, w, y, lesion_of, p.shape[1], replicates, seed)
    each_class = zip(drawn.means.T, recalls(p, y, w), strict=True)
    return Bootstrap(
        interval_around(balanced_accuracy(p, y, w), drawn.overall, level),
        tuple(interval_around(share, means, level) for means, share in each_class),
        drawn.lesions,
    )
