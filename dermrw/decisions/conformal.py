"""Prediction sets that contain the true class in 90 % of the cases of every class. No torch in here.

Class-conditional split conformal prediction (Vovk, Asian Conference on Machine Learning 2012, section 3; Sadinle, Lei,
Wasserman, JASA 114:223-234 (2019)): class c belongs to an image's set if its probability reaches the threshold of
the class, which 90 % of the class's validation cases reach. So the coverage of a class does not depend on its
prevalence: the sets are the same at every prevalence.

Images of a lesion are not independent. Each lesion has weight 1, divided equally among its images (pooling, Dunn,
Wasserman, Ramdas, JASA 118:2491-2502 (2023), section 3.1).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dermrw.decisions import ROUNDING as ROUNDING

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

COVERAGE = 0.9


class Thresholds(NamedTuple):
    """The threshold of each class's probability, with the sample size and uncertainty behind it."""

    values: Floats  # [C]; 0 if the class has too few lesions: it is then in every set
    lesions: npt.NDArray[np.int64]  # [C]
    coverage: float
    # [C, 2]: 95 % interval of the true coverage, given the number of lesions
    likely: Floats


def fit_thresholds(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, lesions: npt.ArrayLike, coverage: float = COVERAGE
) -> Thresholds:
    """Thresholds `[C]` from validation probabilities `[N, C]`, labels `[N]` and lesions `[N]`.

    Of L lesions of a class, at most (1 - coverage) (L + 1) lie at or below the threshold. With one image per lesion, a
    new exchangeable lesion lies below it with probability at most 1 - coverage. With several similar images per lesion
    the coverage is slightly lower (in simulation 88 % instead of 90 % for ten lesions of five images each). `likely`
    makes the same assumption. Below 1 / (1 - coverage) - 1 lesions (9 for 90 %) only the threshold 0 guarantees the
    coverage.

    Args:
        probabilities: at equal prevalence.
        labels: true classes.
        lesions: the lesion of each image.
        coverage: target share of each class's cases whose set contains the class.
    """
    from scipy.stats import beta  # imported here, because the demo uses this module without SciPy

    p, y, lesion_of = np.asarray(probabilities, dtype=np.float64), np.asarray(labels), np.asarray(lesions)
    if p.ndim != 2 or y.shape != p.shape[:1] or lesion_of.shape != y.shape:
        raise ValueError(f"probabilities [N, C], labels [N], lesions [N]: {p.shape}, {y.shape}, {lesion_of.shape}")
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must lie between 0 and 1, not at {coverage}")
    values, counts = np.zeros(p.shape[1]), np.zeros(p.shape[1], dtype=np.int64)
    likely = np.tile([0.0, 1.0], (p.shape[1], 1))
    for c in range(p.shape[1]):
        of_class = y == c
        if not of_class.any():
            continue
        _, lesion, views = np.unique(lesion_of[of_class], return_inverse=True, return_counts=True)
        counts[c] = len(views)
        order = np.argsort(p[of_class, c], kind="stable")
        score, below = p[of_class, c][order], np.cumsum(1 / views[lesion][order])  # lesions at or below the score
        allowed = (1 - coverage) * (counts[c] + 1) + 1e-9
        reached = np.flatnonzero(below <= allowed)
        if len(reached):
            values[c] = score[reached[-1]] * (1 - ROUNDING)
        k = np.floor(allowed)
        likely[c] = beta.ppf([0.025, 0.975], counts[c] + 1 - k, k) if k else (1.0, 1.0)
    return Thresholds(values, counts, coverage, likely)


def prediction_sets(probabilities: npt.ArrayLike, thresholds: npt.ArrayLike) -> Bools:
    """Whether each class is in each image's set `[N, C]`: it reaches its threshold, or is the most probable class.

    Args:
        probabilities: at equal prevalence `[N, C]`.
        thresholds: `[C]`.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    in_set = p >= np.asarray(thresholds, dtype=np.float64)
    in_set[np.arange(len(p)), p.argmax(1)] = True
    return np.asarray(in_set)
