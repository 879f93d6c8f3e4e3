"""The paired difference of balanced accuracy."""

import numpy as np
import pytest

from dermrw.metrics.class_bootstrap import bootstrap_interval
from dermrw.metrics.classification import balanced_accuracy
from dermrw.metrics.paired import paired_difference


def drawn(n: int, right: float, rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """Returns probabilities `[n, 3]` whose decision is right for a share of the images."""
    decided = np.where(rng.random(n) < right, labels, (labels + 1) % 3)
    return np.eye(3)[decided] * 0.8 + 0.2 / 3


def test_it_equals_a_plain_bootstrap_of_lesions() -> None:
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1, 2], [90, 60, 30])
    lesions = np.array([f"{c}-{i // 2}" for i, c in enumerate(labels)])
    a, b = (drawn(180, share, rng, labels) for share in (0.8, 0.7))
    found = paired_difference(a, b, labels, lesions, replicates=20_000)
    assert found.difference == pytest.approx(balanced_accuracy(a, labels) - balanced_accuracy(b, labels))
    gain = (a.argmax(1) == labels).astype(float) - (b.argmax(1) == labels)
    differences = []
    for _ in range(4000):
        by_class = []
        for c in range(3):
            own = np.unique(lesions[labels == c])
            rows = np.concatenate([np.flatnonzero(lesions == name) for name in rng.choice(own, len(own))])
            by_class.append(gain[rows].mean())
        differences.append(np.mean(by_class))
    assert (found.low, found.high) == pytest.approx(np.quantile(differences, [0.025, 0.975]), abs=0.01)


def test_variation_that_both_share_cancels() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 50)
    a = drawn(150, 0.7, rng, labels)
    assert paired_difference(a, a, labels, np.arange(150)) == (0, 0, 0)
    b = a.copy()
    b[0] = np.roll(b[0], 1)
    found, alone = paired_difference(a, b, labels, np.arange(150)), bootstrap_interval(a, labels, np.arange(150))
    assert found.high - found.low < (alone.balanced_accuracy.high - alone.balanced_accuracy.low) / 3


def test_images_of_weight_0_do_not_count() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], 20)
    a, b = drawn(60, 0.9, rng, labels), drawn(60, 0.5, rng, labels)
    weights = (np.arange(60) % 2).astype(float)
    kept = weights > 0
    assert paired_difference(a, b, labels, np.arange(60), weights) == paired_difference(
        a[kept], b[kept], labels[kept], np.arange(60)[kept]
    )
    assert np.isnan(paired_difference(a, b, labels, np.arange(60), np.zeros(60)).difference)
    with pytest.raises(ValueError, match="shapes"):
        paired_difference(a, b, labels, np.arange(59))
