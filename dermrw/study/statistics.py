"""Is A better than B? Paired over the same test lesions and the same seeds."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

REPLICATES = 2000


class Paired(NamedTuple):
    """A minus B in balanced accuracy, with its 95 % interval."""

    difference: float
    low: float
    high: float
    seeds: int  # that both have


def paired_interval(
    a: npt.ArrayLike, b: npt.ArrayLike, labels: npt.ArrayLike, lesions: npt.ArrayLike, *, seed: int = 0
) -> Paired:
    """The difference of two methods' mean balanced accuracy over seeds, and its percentile bootstrap interval.

    A replicate draws, within each class, as many lesions as there are (an image's lesions stay together, and the same
    ones are drawn for both methods and every seed), and as many seeds. So the interval holds what other test lesions
    and other seeds would change. Three seeds are few: drawn from so few, their share of the variance comes out about a
    third too small.

    Args:
        a: decisions `[S, N]` of one method, S seeds on N images.
        b: those of the other, same seeds, same images.
        labels: true classes `[N]`.
        lesions: the lesion of each image `[N]`.
        seed: of the bootstrap.
    """
    a, b, y, lesion_of = np.asarray(a), np.asarray(b), np.asarray(labels), np.asarray(lesions)
    if a.shape != b.shape or a.ndim != 2 or a.shape[1:] != y.shape or y.shape != lesion_of.shape:
        raise ValueError(f"decisions [S, N] of both and labels and lesions [N]: {a.shape}, {b.shape}, {y.shape}")
    gain = (a == y).astype(float) - (b == y)  # [S, N]: -1, 0 or 1
    rng = np.random.default_rng(seed)
    present = np.unique(y)
    exact = np.mean([gain[:, y == c].mean() for c in present])
    by_class = np.empty((REPLICATES, len(present), len(a)))
    for k, c in enumerate(present):
        mine = y == c
        _, lesion = np.unique(lesion_of[mine], return_inverse=True)
        n = lesion.max() + 1
        sums = np.stack([np.bincount(lesion, row, n) for row in gain[:, mine]], 1)  # [L, S]
        images = np.bincount(lesion, minlength=n)
        drawn = rng.multinomial(n, np.full(n, 1 / n), size=REPLICATES)  # [R, L]
        by_class[:, k] = (drawn @ sums) / (drawn @ images)[:, None]
    per_seed = by_class.mean(1)  # [R, S]
    seeds = rng.integers(len(a), size=per_seed.shape)
    values = np.take_along_axis(per_seed, seeds, 1).mean(1)
    low, high = np.quantile(values, [0.025, 0.975])
    return Paired(float(exact), float(low), float(high), len(a))
