"""A bootstrap of groups."""

import numpy as np

from dermrw.metrics.resampling import bootstrap_weights, intervals_of


def test_groups_are_drawn_whole_and_ignored_images_never() -> None:
    groups, weights = np.array(["a", "a", "b", "c", "d"]), np.array([1.0, 1, 1, 1, 0])
    drawn = np.concatenate(list(bootstrap_weights(groups, weights, 500)))
    assert (drawn[:, 0] == drawn[:, 1]).all() and (drawn[:, 4] == 0).all()
    assert (drawn[:, [0, 2, 3]].sum(1) == 3).all()
    np.testing.assert_allclose(drawn[:, :4].mean(0), 1, atol=0.1)


def test_biased_measures_are_reflected_at_the_estimate() -> None:
    values = np.random.default_rng(2).normal(size=50)

    def measure(w: np.ndarray) -> dict[str, float]:
        mean = float(np.average(values, weights=w))
        return {"plain": mean, "biased": mean}

    estimate = {"plain": 1.0, "biased": 1.0}
    found = intervals_of(measure, estimate, np.arange(50), np.ones(50), 200, ("biased",))
    low, high = found["plain"]
    np.testing.assert_allclose(found["biased"], (max(0, 2 - high), max(0, 2 - low)))
