"""Sets of classes that hold the right one in nine of ten cases of every class. No torch in here.

Class-conditional split conformal prediction (Vovk, Asian Conference on Machine Learning 2012, section 3; Sadinle, Lei,
Wasserman, JASA 114:223-234 (2019)): class c belongs to a picture's set where its probability reaches the class's own
threshold, which all but a tenth of the class's validation cases reach. So the cover of a class doesn't depend on how
common it is: the sets are the same at every prevalence.

Images of a lesion are not independent. Each lesion counts once, an image by its share of its lesion (pooling, Dunn,
Wasserman, Ramdas, JASA 118:2491-2502 (2023), section 3.1).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

COVERAGE = 0.9
ROUNDING = 1e-4  # relative


class Thresholds(NamedTuple):
    """What each class's probability has to reach, and on how much that rests."""

    values: Floats  # [C]; 0 where the class has too few lesions: it is then in every set
    lesions: npt.NDArray[np.int64]  # [C]
    coverage: float
    # [C, 2]: the cover that a threshold from so few lesions really has lies in here 19 times of 20
    likely: Floats


def fit_thresholds(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, lesions: npt.ArrayLike, coverage: float = COVERAGE
) -> Thresholds:
    """Thresholds `[C]` from validation probabilities `[N, C]`, labels `[N]` and lesions `[N]`.

    Of L lesions of a class, at most (1 - coverage) (L + 1) lie at or below the threshold. Were there one image of each,
    one more lesion, drawn as these were, would lie below it with at most the probability 1 - coverage; with several
    that are alike the cover is nearly that (in simulation 88 % in the place of 90 where ten lesions have five images
    each). `likely` rests on the same. Below 1 / (1 - coverage) - 1 lesions (9 for
    nine tenths) only the threshold 0 keeps that promise.

    Args:
        probabilities: for equal prevalence.
        labels: true classes.
        lesions: the lesion of each image.
        coverage: the share of each class's cases whose set is to hold the class.
    """
    from scipy.stats import beta  # here, since the demo uses this module and has no SciPy

    p, y, lesion_of = np.asarray(probabilities, dtype=np.float64), np.asarray(labels), np.asarray(lesions)
    if p.ndim != 2 or y.shape != p.shape[:1] or lesion_of.shape != y.shape:
        raise ValueError(f"probabilities [N, C], labels [N], lesions [N]: {p.shape}, {y.shape}, {lesion_of.shape}")
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must lie between 0 and 1, not at {coverage}")
    values, counts = np.zeros(p.shape[1]), np.zeros(p.shape[1], dtype=np.int64)
    likely = np.tile([0.0, 1.0], (p.shape[1], 1))
    for c in range(p.shape[1]):
        mine = y == c
        if not mine.any():
            continue
        _, lesion, views = np.unique(lesion_of[mine], return_inverse=True, return_counts=True)
        counts[c] = len(views)
        order = np.argsort(p[mine, c], kind="stable")
        score, below = p[mine, c][order], np.cumsum(1 / views[lesion][order])  # lesions that lie at or below
        allowed = (1 - coverage) * (counts[c] + 1) + 1e-9
        reached = np.flatnonzero(below <= allowed)
        if len(reached):
            values[c] = score[reached[-1]] * (1 - ROUNDING)  # the model file rounds otherwise than what was measured
        k = np.floor(allowed)
        likely[c] = beta.ppf([0.025, 0.975], counts[c] + 1 - k, k) if k else (1.0, 1.0)
    return Thresholds(values, counts, coverage, likely)


def prediction_sets(probabilities: npt.ArrayLike, thresholds: npt.ArrayLike) -> Bools:
    """Which classes belong to each picture's set `[N, C]`: those that reach their threshold, and always the first.

    Args:
        probabilities: for equal prevalence `[N, C]`.
        thresholds: `[C]`.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    found = p >= np.asarray(thresholds, dtype=np.float64)
    found[np.arange(len(p)), p.argmax(1)] = True
    return np.asarray(found)
