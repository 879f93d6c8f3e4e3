"""The difference of two models' balanced accuracy on the same images, with an interval over lesions."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dermrw.metrics.class_bootstrap import interval_around, replicated_means
from dermrw.metrics.classification import Weights, balanced_accuracy, checked, decide


class Difference(NamedTuple):
    """Balanced accuracy of A minus that of B, and the ends of its interval."""

    difference: float
    low: float
    high: float


def paired_difference(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    labels: npt.ArrayLike,
    lesions: npt.ArrayLike,
    weights: Weights = None,
    *,
    replicates: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Returns the difference in balanced accuracy of A and B, and its percentile interval.

    The bootstrap is that of `class_bootstrap.bootstrap_interval`: lesions are drawn within classes. Each replicate
    draws the same lesions for both models, so that variation which both share cancels. The interval covers the choice
    of lesions, not the variation between training runs of different seeds.

    Args:
        a: probabilities `[N, C]` of one model.
        b: those of the other, for the same images.
        labels: true classes `[N]`.
        lesions: the lesion of each image `[N]`.
        weights: weight of each image `[N]`.
        replicates: number of bootstrap replicates.
        level: coverage of the interval.
        seed: of the replicates.
    """
    pa, y, w = checked(a, labels, weights)
    pb, _, _ = checked(b, labels, weights)
    lesion_of = np.asarray(lesions)
    if pa.shape != pb.shape or lesion_of.shape != y.shape:
        raise ValueError(f"a, b [N, C] and lesions [N] have shapes {pa.shape}, {pb.shape} and {lesion_of.shape}")
    gain = w * ((decide(pa) == y).astype(np.float64) - (decide(pb) == y))
    if not gain.any() and w.any():  # two models that decide alike on every image
        return Difference(0.0, 0.0, 0.0)
    drawn = replicated_means(gain, w, y, lesion_of, pa.shape[1], replicates, seed, signed=True)
    difference = balanced_accuracy(pa, y, w) - balanced_accuracy(pb, y, w)
    return Difference(difference, *interval_around(difference, drawn.overall, level))
