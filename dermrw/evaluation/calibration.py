"""From logits to probabilities for equal prevalence; `decisions/prevalence.py` converts those to any prevalence.

The same probabilities cannot be calibrated for a data set with 67 % nevi and maximise balanced accuracy. So the
model's probabilities are for *equal prevalence*: a hypothetical clinic that sees every diagnosis equally often. Their
maximum is the decision that maximises balanced accuracy.

`fit` learns temperature and offsets (Guo et al., ICML 2017, section 4.2; offsets as in bias-corrected
temperature scaling, Alexandari, Kundaje, Shrikumar, ICML 2020) from validation images only.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.model_selection import StratifiedGroupKFold
from threadpoolctl import threadpool_limits

from dermrw.metrics.classification import equal_prevalence_weights

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

T_BOUNDS = (0.05, 20.0)  # a separable validation set would send T to 0, a useless model to infinity
STRENGTHS = (np.inf, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003)  # simplest first; inf is temperature alone
FOLDS = 5


@dataclass(frozen=True)
class EqualPrevalence:
    """Logits [N, C] to probabilities [N, C] for equal prevalence: softmax(logits / temperature + offsets).

    `temperature` > 0, without unit; `offsets` [C] are in nats and belong to the scaled logits. Computed in
    float64. Raises ValueError for a temperature or offsets that are not finite, or logits of another width.
    """

    temperature: float
    offsets: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuses the values of a damaged file or a failed fit."""
        if not (np.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature must be finite and above 0, not {self.temperature}")
        if not np.isfinite(self.offsets).all():
            raise ValueError(f"offsets must be finite, not {self.offsets}")

    def scores(self, logits: npt.ArrayLike) -> Floats:
        """The scaled and shifted logits [N, C], float64; their softmax is the result."""
        z = np.asarray(logits, dtype=np.float64)
        if z.ndim != 2 or z.shape[1] != len(self.offsets):
            raise ValueError(f"logits must be [N, {len(self.offsets)}], not of shape {z.shape}")
        if not np.isfinite(z).all():
            raise ValueError("logits contain values that are not finite")
        return z / self.temperature + np.asarray(self.offsets, dtype=np.float64)

    def __call__(self, logits: npt.ArrayLike) -> Floats:
        """Probabilities [N, C] for equal prevalence; every row sums to 1."""
        return np.asarray(softmax(self.scores(logits), axis=1), dtype=np.float64)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` gives back an equal object (JSON keeps a float64 exactly)."""
        return {"temperature": float(self.temperature), "offsets": [float(b) for b in self.offsets]}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "EqualPrevalence":
        """From the values of `to_dict`."""
        return cls(float(stored["temperature"]), tuple(float(b) for b in stored["offsets"]))


def penalised_nll(
    parameters: Floats, logits: Floats, labels: Ints, weights: Floats, free: Bools, strength: float
) -> tuple[float, Floats]:
    """Penalised weighted NLL (nats) and its gradient [1 + F] at `parameters` [1 + F].

    `parameters` are log T, then u [F] for the F classes in `free` [C]; their offsets are u - mean(u), the
    others' 0, so that an offset that is held stays at the mean of those that are fitted. The value is
    sum_i w_i (-log p_i[y_i]) + strength |u|^2. In (1/T, u) it is convex, and log T is a smooth one-to-one
    map of 1/T, so L-BFGS cannot end in a false minimum.
    """
    inverse_t, u = np.exp(-parameters[0]), parameters[1:]
    offsets = np.zeros(logits.shape[1])
    offsets[free] = u - u.mean() if u.size else u
    log_p = log_softmax(logits * inverse_t + offsets, axis=1)
    rows = np.arange(len(labels))
    value = -weights @ log_p[rows, labels]
    slope = np.exp(log_p)  # d value / d score: w (p - onehot)
    slope[rows, labels] -= 1.0
    slope *= weights[:, None]
    gradient = np.empty_like(parameters)
    gradient[0] = -inverse_t * np.sum(slope * logits)
    if u.size:
        value += strength * (u @ u)
        by_class = slope.sum(axis=0)[free]
        gradient[1:] = by_class - by_class.mean() + 2 * strength * u
    return float(value), gradient


def fit_at(logits: Floats, labels: Ints, strength: float, free: Bools) -> EqualPrevalence:
    """Temperature and the offsets of the classes `free` [C], by L-BFGS from T = 1 and zero offsets.

    A class without an image among `labels` is left out of the softmax while fitting: the likelihood is that
    of the label *among the classes seen*, which says nothing about the missing one. To leave it in would
    call every probability for it an error and drive its offset to minus infinity. Its offset is 0, the mean.
    """
    seen = np.bincount(labels, minlength=logits.shape[1]) > 0
    fitted = seen & free if np.isfinite(strength) else np.zeros_like(seen)
    weights = equal_prevalence_weights(labels)
    start = np.zeros(1 + fitted.sum())
    bounds = [(np.log(T_BOUNDS[0]), np.log(T_BOUNDS[1]))] + [(None, None)] * (len(start) - 1)
    inputs = (logits[:, seen], np.cumsum(seen)[labels] - 1, weights / weights.sum(), fitted[seen], strength)
    optimum = minimize(
        penalised_nll, start, inputs, "L-BFGS-B", jac=True, bounds=bounds, options={"ftol": 1e-12, "gtol": 1e-8}
    ).x
    offsets = np.zeros(len(seen))
    if len(optimum) > 1:
        offsets[fitted] = optimum[1:] - optimum[1:].mean()
    return EqualPrevalence(float(np.exp(optimum[0])), tuple(offsets.tolist()))


class Tried(NamedTuple):
    """One row of the cross-validation table; all in nats of class-balanced NLL over the held-out lesions."""

    strength: float  # lambda; inf is temperature alone
    nll: float
    standard_error: float
    behind: float  # nll less that of the best row, 0 for the best
    behind_error: float  # standard error of `behind`, paired image by image


class Fit(NamedTuple):
    """The fitted calibration, the chosen strength, and the cross-validation of all strengths."""

    calibration: EqualPrevalence
    strength: float
    table: tuple[Tried, ...]  # empty if there were too few lesions to cross-validate


def clustered_mean(losses: Floats, labels: Ints, lesions: npt.NDArray[Any]) -> tuple[float, float]:
    """Mean over classes present of the class's mean loss, and its standard error with lesions as clusters.

    For a class with n images in L lesions, the variance of the mean is L / (L - 1) sum_l r_l^2 / n^2, r_l the
    sum over lesion l of (loss - class mean): Cameron, Gelbach, Miller (2008), section 2, for a mean. A class
    of one lesion adds nothing to the error, for want of anything to estimate it from.
    """
    classes = np.unique(labels)
    means, variance = [], np.float64(0)
    for c in classes:
        mine = losses[labels == c]
        _, lesion = np.unique(lesions[labels == c], return_inverse=True)
        residual = np.bincount(lesion, mine - mine.mean())
        means.append(mine.mean())
        variance += len(residual) / max(1, len(residual) - 1) * np.sum(residual**2) / len(mine) ** 2
    return float(np.mean(means)), float(np.sqrt(variance) / len(classes))


def _held_out(
    logits: Floats, labels: Ints, lesions: npt.NDArray[Any], strengths: list[float], free: Bools, seed: int
) -> Floats:
    """Each image's NLL [S, N] under each strength, fitted to the folds that its lesion is not in."""
    seen = np.bincount(labels, minlength=logits.shape[1]) > 0
    column = np.cumsum(seen)[labels] - 1
    losses = np.empty((len(strengths), len(labels)))
    with warnings.catch_warnings():  # a class of fewer lesions than folds is expected: some folds lack it
        warnings.filterwarnings("ignore", message="The least populated class")
        splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
        folds = list(splitter.split(logits, labels, lesions))
    for train, held in folds:
        for losses_at, strength in zip(losses, strengths, strict=True):
            scores = fit_at(logits[train], labels[train], strength, free).scores(logits[held])
            losses_at[held] = -log_softmax(scores[:, seen], axis=1)[np.arange(len(held)), column[held]]
    return losses


def fit(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    lesions: npt.ArrayLike,
    seed: int,
    *,
    strengths: Sequence[float] = STRENGTHS,
) -> Fit:
    """Fit `EqualPrevalence` to validation `logits` [N, C], `labels` [N] in 0..C-1 and `lesions` [N].

    Minimises (1/K) sum_c mean_{i in c} -log p_i[c] + lambda |b|^2 over T in `T_BOUNDS` and offsets b of sum
    0; c runs over the K classes present, each of the same weight, as under equal prevalence. lambda is the
    one of `strengths` whose class-balanced NLL is least in 5-fold cross-validation with lesions whole and
    classes spread over the folds (`seed` deals them); held-out losses are pooled before the mean over
    classes, so that a fold without a rare class does no harm. inf stands for b = 0: temperature alone.

    Few lesions. A class missing from the labels, or with one lesion only, keeps offset 0 (the mean of the
    others'), since no held-out lesion could check its offset. The single lesion still counts
    for T. Without two classes of two lesions, or with no class of as many lesions as folds, nothing can be
    cross-validated: temperature alone, and an empty table.

    Why the plain minimum, not the simplest within one standard error: simulated validation sets of 1,000
    images as HAM10000's (11 lesions of df, 16 of vasc, lesions of 1 or more alike images), T = 1.5, 100 each,
    two difficulties; loss of balanced accuracy against the true T and b, in points of 100:
      truth                     T alone     minimum      simplest within 1 SE (of the row / paired)
      b = 0 (balanced model)    0.00        0.07-0.08    0.00         / 0.01
      b ~ N(0, 0.3)             0.3-0.8     0.2-0.3      0.3-0.8      / 0.2-0.4
      b = -log(prior) / 2       1.9-4.1     0.4-0.5      1.5-2.5      / 0.5-0.6
      b = -log(prior) (ERM)     6.5-13      0.4-0.5      2.0-2.2      / 0.5-0.6
    The minimum fits offsets in 4 of 10 balanced models, at almost no cost; the simplest row costs more elsewhere.

    Raises ValueError for inputs of the wrong shape or range, or no image.
    """
    z, y, lesion_of = np.asarray(logits, dtype=np.float64), np.asarray(labels), np.asarray(lesions)
    if z.ndim != 2 or not len(z) or y.shape != z.shape[:1] or lesion_of.shape != y.shape:
        raise ValueError(f"logits [N, C], labels [N], lesions [N]: shapes {z.shape}, {y.shape}, {lesion_of.shape}")
    if not np.isfinite(z).all():
        raise ValueError("logits contain values that are not finite")
    if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= z.shape[1]:
        raise ValueError(f"labels must be integers in 0..{z.shape[1] - 1}")
    y = y.astype(np.int64)
    free = np.array([len(np.unique(lesion_of[y == c])) >= 2 for c in range(z.shape[1])])
    if free.sum() < 2 or max(len(np.unique(lesion_of[y == c])) for c in np.unique(y)) < FOLDS:
        return Fit(fit_at(z, y, np.inf, free), np.inf, ())
    tried = sorted(strengths, reverse=True)  # simplest first, so that it wins a draw
    with threadpool_limits(1, user_api="blas"):  # BLAS threads make steps of eight numbers 15 times slower
        losses = _held_out(z, y, lesion_of, tried, free, seed)
    means = [clustered_mean(row, y, lesion_of) for row in losses]
    best = int(np.argmin([mean for mean, _ in means]))
    table = tuple(
        Tried(strength, *mean, *clustered_mean(row - losses[best], y, lesion_of))
        for strength, mean, row in zip(tried, means, losses, strict=True)
    )
    return Fit(fit_at(z, y, tried[best], free), tried[best], table)
