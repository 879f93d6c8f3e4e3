"""Classification metrics: ISIC's balanced accuracy, confidence intervals over lesions, ROC measures, groups.

Pure functions of NumPy arrays, for any number of classes C. The usual inputs are `probabilities` float [N, C];
`labels` int [N] in 0..C-1; `lesions` [N], strings or ints, the lesion of each image; and `weights` [N], finite and
non-negative, all 1 if None. Images of weight 0 are ignored. All functions raise ValueError for inputs of the wrong
shape or range. Undefined results (no image, no positive) are nan, without a warning. Fractions are in 0..1, logarithms
are natural (nats).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from dermrw.diagnoses import DIAGNOSES

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Weights = npt.ArrayLike | None

# The official scorer (isic-challenge-scoring 5.6.0, load_csv.parse_truth_csv) gives this image weight 0.
ISIC_ZERO_WEIGHT = "ISIC_0035068"


class Interval(NamedTuple):
    """The ends of an interval, low <= high; both nan if the quantity is undefined."""

    low: float
    high: float


class Group(NamedTuple):
    """One value of a grouping, such as one sex or one age band."""

    name: str
    images: int  # of weight above 0
    lesions: int
    balanced_accuracy: float  # over the classes in the group only
    recalls: Floats  # [C], nan where absent
    present: Bools  # [C]
    rows: Bools  # [N]: which images it has


def checked_weights(weights: Weights, n: int) -> Floats:
    """Returns the weights [N] as float64, all 1 for None; ValueError unless they are N finite, non-negative numbers."""
    w = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != (n,) or not np.isfinite(w).all() or (w < 0).any():
        raise ValueError(f"weights must be {n} finite, non-negative numbers")
    return w


def checked(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, weights: Weights, sums: bool = False
) -> tuple[Floats, Ints, Floats]:
    """Returns the three inputs as float64, int64, float64; `sums` also requires that rows sum to 1 (no logits)."""
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if p.ndim != 2 or y.shape != p.shape[:1]:
        raise ValueError(f"probabilities [N, C] and labels [N] have shapes {p.shape} and {y.shape}")
    if y.size and (y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= p.shape[1]):
        raise ValueError(f"labels must be integers in 0..{p.shape[1] - 1}")
    # 1e-3 allows for half precision and for files with few decimals, but not for logits
    if sums and not (np.abs(p.sum(axis=1) - 1) <= 1e-3).all():
        raise ValueError("probabilities must sum to 1 in every row")
    return p, y.astype(np.int64), checked_weights(weights, len(y))


def decide(probabilities: npt.ArrayLike) -> Ints:
    """Returns the class of the largest probability [N], or -1 for a tie (exact equality).

    ISIC calls a tie 'undecided' and counts it as wrong (metrics._to_labels of the scorer). Rounding creates ties, so
    pass the same numbers that are submitted. Raises ValueError for a nan.
    """
    p = np.asarray(probabilities)
    if np.isnan(p).any():
        raise ValueError("probabilities hold a nan")
    tied = (p == p.max(axis=1, keepdims=True)).sum(axis=1) > 1
    return np.where(tied, -1, p.argmax(axis=1)).astype(np.int64)


def score_weights(image_ids: Sequence[str] | npt.NDArray[Any]) -> Floats:
    """Returns ISIC's weight [N] of each image: 0 for `ISIC_ZERO_WEIGHT`, 1 for all others."""
    return np.array([0.0 if str(name) == ISIC_ZERO_WEIGHT else 1.0 for name in image_ids])


def equal_prevalence_weights(labels: npt.ArrayLike, weights: Weights = None) -> Floats:
    """Returns weights [N] with equal totals for all classes present, proportional to `weights` within a class.

    Their sum is that of `weights`. They simulate a test set of equal prevalence.
    """
    y = np.asarray(labels, dtype=np.int64)
    w = checked_weights(weights, len(y))
    total = np.bincount(y, weights=w)
    each = w.sum() / max(1, np.count_nonzero(total))  # total weight of every class
    return np.divide(w * each, total[y], out=np.zeros(len(y)), where=w > 0)


def class_totals(share: npt.ArrayLike, totals: Floats) -> Floats:
    """Returns total weights [C] in proportion to `share` [C], with the sum of `totals` [C]; 0 for absent classes."""
    wanted = np.where(totals > 0, np.asarray(share, dtype=np.float64), 0.0)
    return np.asarray(totals.sum() * wanted / max(wanted.sum(), np.finfo(float).tiny))


def prevalence_weights(labels: npt.ArrayLike, prevalence: npt.ArrayLike, weights: Weights = None) -> Floats:
    """Returns weights [N] with class totals by `prevalence` [C], proportional to `weights` within a class.

    Their sum is that of `weights`. They simulate a test set of this prevalence. The share of a class without images is
    distributed over the other classes in proportion to theirs.
    """
    y = np.asarray(labels, dtype=np.int64)
    w = checked_weights(weights, len(y))
    share = np.asarray(prevalence, dtype=np.float64)
    total = np.bincount(y, weights=w, minlength=len(share))
    each = w.sum() * share / max(share[total > 0].sum(), np.finfo(float).tiny)  # total weight of every class
    return np.divide(w * each[y], total[y], out=np.zeros(len(y)), where=w > 0)


def confusion(probabilities: npt.ArrayLike, labels: npt.ArrayLike, weights: Weights = None) -> Floats:
    """Returns the total weight [C, C + 1] of images by class (row) and decision (column; the last is undecided)."""
    p, y, w = checked(probabilities, labels, weights)
    table = np.zeros((p.shape[1], p.shape[1] + 1))
    # -1, undecided, is the last column. (scikit-learn's confusion_matrix refuses weights that are all 0.)
    np.add.at(table, (y, decide(p)), w)
    return table


def recalls(probabilities: npt.ArrayLike, labels: npt.ArrayLike, weights: Weights = None) -> Floats:
    """Returns the recall [C] of each class, by weight; nan for a class without weight."""
    table = confusion(probabilities, labels, weights)
    total = table.sum(axis=1)
    return np.divide(table.diagonal(), total, out=np.full(len(total), np.nan), where=total > 0)


def precisions(probabilities: npt.ArrayLike, labels: npt.ArrayLike, weights: Weights = None) -> Floats:
    """Returns the precision [C] of each class, by weight; nan for a class that is never decided for."""
    table = confusion(probabilities, labels, weights)[:, :-1]
    total = table.sum(axis=0)
    return np.divide(table.diagonal(), total, out=np.full(len(total), np.nan), where=total > 0)


def f1_scores(probabilities: npt.ArrayLike, labels: npt.ArrayLike, weights: Weights = None) -> Floats:
    """Returns the F1 score [C] of each class: the harmonic mean of precision and recall; nan without images."""
    table = confusion(probabilities, labels, weights)
    support = table.sum(axis=1)
    total = support + table[:, :-1].sum(axis=0)
    return np.divide(2 * table.diagonal(), total, out=np.full(len(total), np.nan), where=support > 0)


def balanced_accuracy(probabilities: npt.ArrayLike, labels: npt.ArrayLike, weights: Weights = None) -> float:
    """Returns the mean recall of the classes present: the challenge's score, exactly as in its official scorer.

    Source: isic-challenge-scoring 5.6.0, metrics.balanced_multiclass_accuracy. Undecided images are wrong, images are
    weighted, and the mean omits classes without weight.
    """
    values = recalls(probabilities, labels, weights)
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan


def balanced_loss(logits: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Returns the mean cross-entropy of a class, in nats, averaged over the classes present.

    Args:
        logits: `[N, C]`.
        labels: `[N]`.
    """
    scores, y = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    losses = logsumexp(scores, axis=1) - scores[np.arange(len(y)), y]
    return float(np.average(losses, weights=equal_prevalence_weights(y)))


def _two_sides(positive: npt.ArrayLike, score: npt.ArrayLike, weights: Weights) -> list[Any] | None:
    """Returns positive, score and weight of the images with weight above 0; None without positives or negatives."""
    event, value = np.asarray(positive, dtype=bool), np.asarray(score, dtype=np.float64)
    if event.ndim != 1 or value.shape != event.shape:
        raise ValueError(f"positive and score must be [N], not of shapes {event.shape} and {value.shape}")
    w = checked_weights(weights, len(event))
    event, value, w = event[w > 0], value[w > 0], w[w > 0]
    return [event, value, w] if event.any() and not event.all() else None


def auc(positive: npt.ArrayLike, score: npt.ArrayLike, weights: Weights = None) -> float:
    """Returns the area under the ROC of `score` [N] for `positive` [N] bool; nan without positives or negatives."""
    sides = _two_sides(positive, score, weights)
    return float(roc_auc_score(sides[0], sides[1], sample_weight=sides[2])) if sides else np.nan


def average_precision(positive: npt.ArrayLike, score: npt.ArrayLike, weights: Weights = None) -> float:
    """Returns average precision (step-wise sum as in scikit-learn and ISIC); nan without positives or negatives."""
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
    """Returns the highest sensitivity of all thresholds with a specificity of at least `specificity`.

    There is no interpolation between thresholds, because a clinic could not apply a mixture of two.
    """
    curve = _roc(positive, score, weights)  # 1e-12: 1 - 0.9 is below 1 / 10 in float64
    return float(curve[1][curve[0] <= 1 - specificity + 1e-12].max()) if curve else np.nan


def specificity_at_sensitivity(
    positive: npt.ArrayLike, score: npt.ArrayLike, weights: Weights = None, *, sensitivity: float = 0.95
) -> float:
    """Returns the highest specificity of all thresholds with a sensitivity of at least `sensitivity`."""
    curve = _roc(positive, score, weights)
    return float(1 - curve[0][curve[1] >= sensitivity - 1e-12].min()) if curve else np.nan


class RankedCurve:
    """The ROC curve of one score, ranked once, so that areas for many sets of weights are cheap: a bootstrap's."""

    def __init__(self, positive: npt.ArrayLike, score: npt.ArrayLike) -> None:
        """`positive` is bool `[N]`, `score` is `[N]`."""
        event, value = np.asarray(positive, dtype=bool), np.asarray(score, dtype=np.float64)
        order = np.argsort(-value, kind="stable")
        self.positives, self.negatives = order[event[order]], order[~event[order]]  # indices, by descending score
        risen, below = -value[self.positives], -value[self.negatives]
        # equal scores are one threshold; the curve rises only at thresholds with positives
        self._starts = np.flatnonzero(np.r_[True, risen[1:] != risen[:-1]][: len(risen)])
        thresholds = risen[self._starts]
        self._before = np.searchsorted(below, thresholds, "left")  # number of negatives with a higher score
        self._upto = np.searchsorted(below, thresholds, "right")  # and of those with at least this score

    def areas(self, positive_weights: Floats, negative_weights: Floats, sensitivity: float | Floats = 0.0) -> Floats:
        """Returns the areas of R sets of weights: `[R]`, or `[S, R]` for S values of `sensitivity`.

        An area is the integral of specificity over sensitivity, from `sensitivity` to 1: the AUC for 0. nan where a set
        of weights has no positives or no negatives.

        Args:
            positive_weights: of the images `positives` `[R, P]`.
            negative_weights: of the images `negatives` `[R, N - P]`.
            sensitivity: see above.
        """
        least = np.atleast_1d(np.asarray(sensitivity, dtype=np.float64))
        count = len(positive_weights)
        areas = np.full((len(least), count), np.nan)
        if len(self.positives) and len(self.negatives):
            cumulative = np.zeros((count, len(self.negatives) + 1))
            np.cumsum(negative_weights, axis=1, out=cumulative[:, 1:])
            true = np.add.reduceat(positive_weights, self._starts, axis=1)  # [R, T]
            upto, before = cumulative[:, self._upto], cumulative[:, self._before]
            total_true, total_false = true.sum(axis=1, keepdims=True), cumulative[:, -1:]
            defined = (total_true > 0) & (total_false > 0)
            share, falls, fallen = (
                np.divide(part, total, out=np.zeros_like(part), where=defined)
                for part, total in ((true, total_true), (upto - before, total_false), (upto, total_false))
            )
            top = np.cumsum(share, axis=1)
            slope = np.divide(falls, share, out=np.zeros_like(share), where=share > 0)
            for row, bound in zip(areas, least, strict=True):
                height = np.maximum(top - np.maximum(top - share, bound), 0.0)  # of the part above `sensitivity`
                # 1 - fallen: the specificity at the upper end of each segment
                values = (height * (1 - fallen + slope * height / 2)).sum(axis=1)
                row[defined[:, 0]] = values[defined[:, 0]]
        return areas if np.ndim(sensitivity) else areas[0]


def roc_areas(
    positive: npt.ArrayLike, score: npt.ArrayLike, weights: npt.ArrayLike, sensitivity: float = 0.0
) -> Floats:
    """Returns areas under the ROC of one score [N] for R sets of weights [R, N]; see `RankedCurve.areas`."""
    curve, w = RankedCurve(positive, score), np.asarray(weights, dtype=np.float64)
    return curve.areas(w[:, curve.positives], w[:, curve.negatives], sensitivity)


def partial_auc(
    positive: npt.ArrayLike, score: npt.ArrayLike, weights: Weights = None, *, sensitivity: float = 0.8
) -> float:
    """Returns the area under the ROC and above this sensitivity, between 0 and 1 - `sensitivity`.

    It is the measure of ISIC 2024 (SLICE-3D), for `sensitivity` 0.8: 0.2 for a perfect score, 0.02 for a random one.
    """
    sides = _two_sides(positive, score, weights)
    return float(roc_areas(sides[0], sides[1], sides[2][None], sensitivity)[0]) if sides else np.nan


def per_class(
    measure: Callable[..., float],
    probabilities: npt.ArrayLike,
    labels: npt.ArrayLike,
    weights: Weights = None,
    **options: float,
) -> Floats:
    """Returns `measure` (`auc`, `average_precision`, ...) of every class against the rest [C]."""
    p, y, w = checked(probabilities, labels, weights)
    return np.array([measure(y == c, p[:, c], w, **options) for c in range(p.shape[1])])


def malignant(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, classes: Sequence[bool] | None = None
) -> tuple[Bools, Floats]:
    """Returns (positive [N], score [N]) of malignant against the rest, for `auc` and similar functions.

    The score is the summed probability of the malignant classes, which `classes` [C] bool marks (HAM10000's if None).
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
    """Returns the results of every value of `groups` [N]; None, nan and '' form the group 'missing'.

    Groups are sorted: numbers, then names, then 'missing'. Balanced accuracies of groups are comparable only if
    `present` is equal. A class can have a single lesion, so check the counts.
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
        found.append(Group(name, int(counted.sum()), lesion_count, score, share, ~np.isnan(share), rows))
    return found
