"""Percentile intervals of any measure, by a bootstrap of whole groups, such as patients or lesions. No torch.

`intervals` has the faster functions for recalls and for areas under ROC curves.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from dermrw.metrics.classification import Floats, Interval

CHUNK = 4_000_000  # image weights held at a time


def bootstrap_weights(groups: npt.ArrayLike, weights: Floats, replicates: int, seed: int = 0) -> Iterator[Floats]:
    """Yields image weights `[R, N]` of bootstrap replicates, `replicates` rows in all.

    Each replicate draws as many groups as there are, with replacement. An image has its weight in `weights` `[N]` times
    the number of draws of its group in `groups` `[N]`.
    """
    _, group = np.unique(np.asarray(groups)[weights > 0], return_inverse=True)
    count = int(group.max(initial=-1)) + 1
    rng = np.random.default_rng(seed)
    rows = max(1, CHUNK // max(1, len(weights)))
    for start in range(0, replicates, rows):
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=min(rows, replicates - start))
        result = np.zeros((len(drawn), len(weights)))
        result[:, weights > 0] = drawn[:, group] * weights[weights > 0]
        yield result


def interval_of(values: npt.ArrayLike, level: float = 0.95) -> Interval:
    """Returns the percentile interval of replicates `[R]` without the undefined ones; nan if none is defined."""
    defined = np.asarray(values, dtype=np.float64)
    defined = defined[np.isfinite(defined)]
    if not len(defined):
        return Interval(np.nan, np.nan)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def intervals_of(
    measures: Callable[[Floats], Mapping[str, float]],
    estimates: Mapping[str, float],
    groups: npt.ArrayLike,
    weights: Floats,
    replicates: int,
    biased: tuple[str, ...] = (),
) -> dict[str, Interval]:
    """Returns the interval of each measure, a function of the image weights `[N]`.

    Resampling adds noise that raises a calibration error. For the measures in `biased` the interval is therefore
    reflected at the estimate (the basic bootstrap: Davison and Hinkley, Bootstrap Methods (1997), section 5.2), with
    ends of at least 0.
    """
    values: dict[str, list[float]] = {name: [] for name in estimates}
    for rows in bootstrap_weights(groups, weights, replicates):
        for drawn in rows:
            for name, value in measures(drawn).items():
                values[name].append(value)
    result = {}
    for name, estimate in estimates.items():
        low, high = interval_of(values[name])
        if name in biased:
            low, high = max(0.0, 2 * estimate - high), max(0.0, 2 * estimate - low)
        result[name] = Interval(low, high)
    return result
