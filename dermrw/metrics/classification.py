"""Classification metrics: ISIC's balanced accuracy, intervals over lesions, ROC measures, groups.

Pure functions of NumPy arrays, for any number of classes C. The usual inputs: `probabilities` float [N, C];
`labels` int [N] in 0..C-1; `lesions` [N], strings or ints, the lesion that each image shows; `weights` [N],
finite and non-negative, all 1 if None. An image of weight 0 counts nowhere. All functions raise ValueError
for inputs of the wrong shape or range. What is undefined (no image, no positive) is nan, without a warning.
Fractions are in 0..1, logarithms natural (nats).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from dermrw.diagnoses import DIAGNOSES

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Weights = npt.ArrayLike | None

# The official scorer (isic-challenge-scoring 5.6.0, load_csv.parse_truth_csv) gives this image weight 0.
ISIC_ZERO_WEIGHT = "ISIC_0035068"


class Interval(NamedTuple):
    """Two ends, low <= high; both nan where the quantity is undefined."""

    low: float
    high: float


class Bootstrap(NamedTuple):
    """Intervals for balanced accuracy and for each class's recall, and how many lesions [C] each rests on."""

    balanced_accuracy: Interval
    recalls: tuple[Interval, ...]
    lesions: Ints


class Group(NamedTuple):
    """One value of a grouping, such as one sex or one age band."""

    name: str
    images: int  # of weight above 0
    lesions: int
    balanced_accuracy: float  # over the classes present in the group only
    recalls: Floats  # [C], nan where absent
    present: Bools  # [C]


def checked_weights(weights: Weights, n: int) -> Floats:
    """The weights [N] as float64, all 1 for None; ValueError unless they are N finite, non-negative numbers."""
    w = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != (n,) or not np.isfinite(w).all() or (w < 0).any():
        raise ValueError(f"weights must be {n} finite, non-negative numbers")
    return w


def checked(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, weights: Weights, sums: bool = False
) -> tuple[Floats, Ints, Floats]:
    """The three inputs as float64, int64, float64; `sums` also requires that rows sum to 1 (no logits)."""
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if p.ndim != 2 or y.shape != p.shape[:1]:
        raise ValueError(f"probabilities [N, C] and labels [N] have shapes {p.shape} and {y.shape}")
    if y.size and (y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= p.shape[1]):
        raise ValueError(f"labels must be integers in 0..{p.shape[1] - 1}")
    # 1e-3 allows for half precision and files with few decimals, and refuses logits
    if sums and not (np.abs(p.sum(axis=1) - 1) <= 1e-3).all():
        raise ValueError("probabilities must sum to 1 in every row")
    return p, y.astype(np.int64), checked_weights(weights, len(y))


def decide(probabilities: npt.ArrayLike) -> Ints:
    """The class of the largest probability [N], or -1 where two or more share it (exact equality).

    ISIC calls a tie 'undecided', which is never right (scorer's metrics._to_labels). Rounding makes ties:
    decide on the numbers that are handed in. Raises ValueError for a nan.
    """
    p = np.asarray(probabilities)
    if np.isnan(p).any():
        raise ValueError("probabilities hold a nan")
    tied = (p == p.max(axis=1, keepdims=True)).sum(axis=1) > 1
    return np.where(tied, -1, p.argmax(axis=1)).astype(np.int64)


def score_weights(image_ids: Sequence[str] | npt.NDArray[Any]) -> Floats:
    """ISIC's weight [N] of each image: 0 for `ISIC_ZERO_WEIGHT`, 1 for all others."""
    return np.array([0.0 if str(name) == ISIC_ZERO_WEIGHT else 1.0 for name in image_ids])


def equal_prevalence_weights(labels: npt.ArrayLike, weights: Weights = None) -> Floats:
    """Weights [N] that give every class present the same total, in proportion to `weights` within a class.

    They sum to what `weights` sum to. They stand in for a test set of equal prevalence.
    """
    y = np.asarray(labels, dtype=np.int64)
    w = checked_weights(weights, len(y))
    total = np.bincount(y, weights=w)
    each = w.sum() / max(1, np.count_nonzero(total))  # what every class is to weigh
    return np.divide(w * each, total[y], out=np.zeros(len(y)), where=w > 0)


def prevalence_weights(labels: npt.ArrayLike, prevalence: npt.ArrayLike, weights: Weights = None) -> Floats:
    """Weights [N] that give each class the share of `prevalence` [C], in proportion to `weights` within a class.

    They sum to what `weights` sum to, and stand in for a test set of that prevalence; a class without an image has no
    share, and the others' shares grow in proportion.
    """
    y = np.asarray(labels, dtype=np.int64)
    w = checked_weights(weights, len(y))
    share = np.asarray(prevalence, dtype=np.float64)
    total = np.bincount(y, weights=w, minlength=len(share))
    each = w.sum() * share / max(share[total > 0].sum(), np.finfo(float).tiny)  # what every class is to weigh
    return np.divide(w * each[y], total[y], out=np.zeros(len(y)), where=w > 0)


def confusion(probabilities: npt.ArrayLike, labels: npt.ArrayLike, weights: Weights = None) -> Floats:
    """Weight [C, C + 1] of the images of each class (row) by decision (column; the last is undecided)."""
    p, y, w = checked(probabilities, labels, weights)
    table = np.zeros((p.shape[1], p.shape[1] + 1))
    # -1, undecided, is the last column. (scikit-learn's confusion_matrix refuses weights that are all 0.)
    np.add.at(table, (y, decide(p)), w)
    return table


def recalls(probabilities: npt.ArrayLike, labels: npt.ArrayLike, weights: Weights = None) -> Floats:
    """The share [C] of each class's weight that is decided rightly; nan for a class without weight."""
    table = confusion(probabilities, labels, weights)
    total = table.sum(axis=1)
    return np.divide(table.diagonal(), total, out=np.full(len(total), np.nan), where=total > 0)


def balanced_accuracy(probabilities: npt.ArrayLike, labels: npt.ArrayLike, weights: Weights = None) -> float:
    """The mean recall of the classes present: the challenge's score, exactly as its official scorer computes it.

    (isic-challenge-scoring 5.6.0, metrics.balanced_multiclass_accuracy: undecided is wrong, weights count,
    the mean leaves out a class without weight.)
    """
    values = recalls(probabilities, labels, weights)
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan


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
    """Percentile intervals for balanced accuracy and each recall, from a bootstrap of lesions within classes.

    Images of a lesion are right or wrong together, so whole lesions are drawn (cluster bootstrap: Field and
    Welsh, J. R. Stat. Soc. B 69:369-390 (2007); Cameron, Gelbach, Miller, Rev. Econ. Stat. 90:414-427
    (2008)), and within classes, since balanced accuracy takes the classes as given. In a replicate each class
    draws as many of its lesions, with replacement, as it has; its recall is the weight decided rightly over
    the weight drawn. A lesion with images of two classes counts as one lesion in each.

    Lesions of a class with the same (weight right, weight) are alike, so the draw is multinomial over these
    kinds: the same distribution, and quick. A class with one lesion, or whose lesions are all wholly right or
    all wholly wrong, has an interval of width 0, given as it is: it says that the bootstrap saw no variation,
    not that the recall is known. With L lesions the variance comes out about (L - 1) / L of what it should.
    """
    p, y, w = checked(probabilities, labels, weights)
    lesion_of, right = np.asarray(lesions), w * (decide(p) == y)
    if lesion_of.shape != y.shape:
        raise ValueError(f"lesions must be [{len(y)}], not of shape {lesion_of.shape}")
    rng = np.random.default_rng(seed)
    drawn = np.full((replicates, p.shape[1]), np.nan)
    count = np.zeros(p.shape[1], dtype=np.int64)
    for c in np.unique(y[w > 0]):
        mine = (y == c) & (w > 0)
        _, lesion = np.unique(lesion_of[mine], return_inverse=True)
        sums = np.column_stack([np.bincount(lesion, right[mine]), np.bincount(lesion, w[mine])])
        kinds, number = np.unique(sums, axis=0, return_counts=True)
        count[c] = number.sum()
        totals = rng.multinomial(count[c], number / count[c], size=replicates) @ kinds
        drawn[:, c] = totals[:, 0] / totals[:, 1]

    def interval(values: Floats) -> Interval:
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        return Interval(float(low), float(high))

    present = count > 0
    overall = drawn[:, present].mean(axis=1) if present.any() else drawn[:, 0]
    return Bootstrap(interval(overall), tuple(interval(column) for column in drawn.T), count)


def _two_sides(positive: npt.ArrayLike, score: npt.ArrayLike, weights: Weights) -> list[Any] | None:
    """Positive, score and weight of the images with weight; None unless both sides are there."""
    event, value = np.asarray(positive, dtype=bool), np.asarray(score, dtype=np.float64)
    if event.ndim != 1 or value.shape != event.shape:
        raise ValueError(f"positive and score must be [N], not of shapes {event.shape} and {value.shape}")
    w = checked_weights(weights, len(event))
    event, value, w = event[w > 0], value[w > 0], w[w > 0]
    return [event, value, w] if event.any() and not event.all() else None


def auc(positive: npt.ArrayLike, score: npt.ArrayLike, weights: Weights = None) -> float:
    """Area under the ROC curve of `score` [N] for `positive` [N] bool; nan without positives or negatives."""
    sides = _two_sides(positive, score, weights)
    return float(roc_auc_score(sides[0], sides[1], sample_weight=sides[2])) if sides else np.nan


def average_precision(positive: npt.ArrayLike, score: npt.ArrayLike, weights: Weights = None) -> float:
    """Average precision (scikit-learn's step-wise sum, as ISIC's); nan without positives or negatives."""
    sides = _two_sides(positive, score, weights)
    return float(average_precision_score(sides[0], sides[1], sample_weight=sides[2])) if sides else np.nan


def _roc(positive: npt.ArrayLike, score: npt.ArrayLike, weights: Weights) -> tuple[Floats, Floats] | None:
    sides = _two_sides(positive, score, weights)
    if sides is None:
        return None
    false, true, _ = roc_curve(sides[0], sides[1], sample_weight=sides[2], drop_intermediate=False)
    return false, true


def sensitivity_at_specificity(
    positive: npt.ArrayLike, score: npt.ArrayLike, weights: Weights = None, *, specificity: float = 0.95
) -> float:
    """The greatest sensitivity of any threshold whose specificity is at least `specificity`.

    No interpolation between thresholds: a clinic could not apply a mixture of two.
    """
    curve = _roc(positive, score, weights)  # 1e-12: 1 - 0.9 is below 1 / 10 in float64
    return float(curve[1][curve[0] <= 1 - specificity + 1e-12].max()) if curve else np.nan


def specificity_at_sensitivity(
    positive: npt.ArrayLike, score: npt.ArrayLike, weights: Weights = None, *, sensitivity: float = 0.95
) -> float:
    """The greatest specificity of any threshold whose sensitivity is at least `sensitivity`."""
    curve = _roc(positive, score, weights)
    return float(1 - curve[0][curve[1] >= sensitivity - 1e-12].min()) if curve else np.nan


def per_class(
    measure: Callable[..., float],
    probabilities: npt.ArrayLike,
    labels: npt.ArrayLike,
    weights: Weights = None,
    **options: float,
) -> Floats:
    """`measure` (`auc`, `average_precision`, ...) of every class against the rest [C]."""
    p, y, w = checked(probabilities, labels, weights)
    return np.array([measure(y == c, p[:, c], w, **options) for c in range(p.shape[1])])


def malignant(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, classes: Sequence[bool] | None = None
) -> tuple[Bools, Floats]:
    """(positive [N], score [N]) of malignant against the rest, for `auc` and similar functions.

    The score is the summed probability of the malignant classes; `classes` [C] bool says which (HAM10000's
    if None).
    """
    p, y, _ = checked(probabilities, labels, None)
    bad = np.array([d.malignant for d in DIAGNOSES] if classes is None else classes, dtype=bool)
    if bad.shape != p.shape[1:]:
        raise ValueError(f"classes must be {p.shape[1]} truths, not of shape {bad.shape}")
    return bad[y], p[:, bad].sum(axis=1)


def by_group(
    probabilities: npt.ArrayLike,
    labels: npt.ArrayLike,
    lesions: npt.ArrayLike,
    groups: npt.ArrayLike,
    weights: Weights = None,
) -> list[Group]:
    """Results for every value of `groups` [N], none left out; None, nan and '' are the group 'missing'.

    Numbers come in their order, then names in theirs, 'missing' last. Balanced accuracies of groups are
    comparable only where `present` agrees, and a class may have a single lesion: see the counts.
    """
    p, y, w = checked(probabilities, labels, weights)
    lesion_of, values = np.asarray(lesions), np.asarray(groups, dtype=object)
    if lesion_of.shape != y.shape or values.shape != y.shape:
        raise ValueError(f"lesions and groups must be [{len(y)}]")
    names = np.array(["missing" if str(v) in ("None", "nan", "<NA>", "NaT", "") else str(v) for v in values])

    def order(name: str) -> tuple[int, float, str]:
        try:
            return 0, float(name), name
        except ValueError:
            return 1 + (name == "missing"), 0.0, name

    found = []
    for name in sorted(set(names.tolist()), key=order):
        rows = names == name
        counted = rows & (w > 0)
        share = recalls(p[rows], y[rows], w[rows])
        score = balanced_accuracy(p[rows], y[rows], w[rows])
        lesion_count = len(np.unique(lesion_of[counted]))
        found.append(Group(name, int(counted.sum()), lesion_count, score, share, ~np.isnan(share)))
    return found
