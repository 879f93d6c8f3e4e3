"""Percentile intervals of any measure, by a bootstrap of whole groups, such as patients or lesions. No torch.

`intervals` has the functions for recalls and for areas under ROC curves.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from dermrw.metrics.classification import Floats, Interval


def bootstrap_counts(groups: int, replicates: int, seed: int = 0, rows: int = 1) -> Iterator[Floats]:
    """Yields the numbers of draws of each group `[R, groups]` in bootstrap replicates, `replicates` rows in all.

    Each replicate draws as many groups as there are, with replacement. Nothing is yielded without groups.

    Args:
        groups: their number.
        replicates: number of bootstrap samples.
        seed: of the draws, which do not depend on `rows`.
        rows: R, the number of replicates at a time; the last array can have fewer.
    """
    if not groups:
        return
    rng = np.random.default_rng(seed)
    shares = np.full(groups, 1 / groups)
    for start in range(0, replicates, rows):
        yield rng.multinomial(groups, shares, size=min(rows, replicates - start)).astype(np.float64)


def interval_of(values: npt.ArrayLike, level: float = 0.95) -> Interval:
    """Returns the percentile interval of replicates `[R]` without the undefined ones; nan if none is defined."""
    defined = np.asarray(values, dtype=np.float64)
    defined = defined[np.isfinite(defined)]
    if not len(defined):
        return Interval(np.nan, np.nan)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def reflected_interval(values: npt.ArrayLike, estimate: float) -> Interval:
    """Returns the interval of replicates `[R]`, reflected at the estimate, with ends of at least 0.

    Resampling adds noise that raises a calibration error. The basic bootstrap takes this into account (Davison and
    Hinkley, Bootstrap Methods (1997), section 5.2).
    """
    low, high = interval_of(values)
    return Interval(max(0.0, 2 * estimate - high), max(0.0, 2 * estimate - low))
