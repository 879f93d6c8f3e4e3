"""Is A better than B? Paired over the same test lesions and the same seeds."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

REPLICATES = 2000


class Paired(NamedTuple):
    """A minus B in balanced accuracy, with its 95 % interval: NaN of one seed."""

    difference: float
    low: float
    high: float
    seeds: int  # that both have


def paired_interval(
    a: npt.ArrayLike, b: npt.ArrayLike, labels: npt.ArrayLike, lesions: npt.ArrayLike, *, seed: int = 0
) -> Paired:
    """The difference of two methods' mean balanced accuracy over seeds, and its 95 % interval.

    Two things might have come out otherwise, and the interval is of their sum. *Other test lesions*: a replicate draws,
    within each class, as many lesions as there are, the same for both methods and every seed. *Other seeds*: their
    mean is off by √(s_A²/S + s_B²/S) times a draw of Student's t, with Welch and Satterthwaite's degrees of freedom
    (2 to 4 of three seeds, whose t reaches 4.3 to 2.8 where a normal one ends at 2.0). A bootstrap of so few seeds
    would be too narrow: it finds two thirds of their variance, and takes that for known.

    One seed says nothing about others: then low and high are NaN.

    Args:
        a: decisions `[S, N]` of one method, S seeds on N images.
        b: those of the other, same seeds, same images.
        labels: true classes `[N]`.
        lesions: the lesion of each image `[N]`.
        seed: of the replicates.
    """
    a, b, y, lesion_of = np.asarray(a), np.asarray(b), np.asarray(labels), np.asarray(lesions)
    if a.shape != b.shape or a.ndim != 2 or a.shape[1:] != y.shape or y.shape != lesion_of.shape:
        raise ValueError(f"decisions [S, N] of both and labels and lesions [N]: {a.shape}, {b.shape}, {y.shape}")
    gain = (a == y).astype(float) - (b == y)  # [S, N]: -1, 0 or 1
    rng = np.random.default_rng(seed)
    present = np.unique(y)
    by_class = np.empty((REPLICATES, len(present), len(a)))
    for k, c in enumerate(present):
        mine = y == c
        _, lesion = np.unique(lesion_of[mine], return_inverse=True)
        n = lesion.max() + 1
        sums = np.stack([np.bincount(lesion, row, n) for row in gain[:, mine]], 1)  # [L, S]
        images = np.bincount(lesion, minlength=n)
        drawn = rng.multinomial(n, np.full(n, 1 / n), size=REPLICATES)  # [R, L]
        by_class[:, k] = (drawn @ sums) / (drawn @ images)[:, None]
    by_lesions = by_class.mean((1, 2))  # [R]
    one, other = balanced_accuracies(a, y), balanced_accuracies(b, y)
    low, high = np.quantile(by_lesions + _seed_noise(one, other, rng), [0.025, 0.975])
    return Paired(float(one.mean() - other.mean()), float(low), float(high), len(a))


def balanced_accuracies(decisions: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Balanced accuracy of each row `[S]` of decisions `[S, N]` on true classes `[N]`."""
    return np.mean([(decisions[:, y == c] == c).mean(1) for c in np.unique(y)], axis=0)


def _seed_noise(a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws `[R]` of how far the difference of two means over seeds `[S]` is off, by Welch's t; NaN of one seed."""
    if len(a) < 2:
        return np.full(REPLICATES, np.nan)
    parts = np.array([a.var(ddof=1), b.var(ddof=1)]) / len(a)
    if not parts.any():
        return np.zeros(REPLICATES)
    freedom = (len(a) - 1) * parts.sum() ** 2 / np.square(parts).sum()
    return rng.standard_t(freedom, REPLICATES) * np.sqrt(parts.sum())
