"""A bootstrap of groups."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import roc_auc_score

from dermrw.metrics import calibration_error, intervals
from dermrw.metrics.classification import Floats, Ints, class_totals, equal_prevalence_weights, prevalence_weights
from dermrw.metrics.resampling import bootstrap_counts, interval_of, reflected_interval


def case(ties: bool, n: int = 400, c: int = 4) -> tuple[Floats, Ints, npt.NDArray[np.str_], Floats]:
    """Images with groups of several images and classes, weights of 0 and 2 included."""
    rng = np.random.default_rng(5)
    y = np.r_[np.arange(c), rng.choice(c, n - c, p=[0.6, 0.3, 0.08, 0.02])]
    p = rng.dirichlet(np.full(c, 0.4), n) + 0.3 * np.eye(c)[y]
    p /= p.sum(1, keepdims=True)
    if ties:
        p = np.array([rng.multinomial(50, row) for row in p]) / 50
    groups = np.array([f"g{i}" for i in rng.integers(n // 3, size=n)])
    return p, y, groups, np.r_[np.zeros(5), np.full(5, 2.0), np.ones(n - 10)]


def drawn_weights(groups: npt.ArrayLike, w: Floats, replicates: int) -> Floats:
    """The image weights of the replicates `[R, N]`."""
    kept = w > 0
    _, group = np.unique(np.asarray(groups)[kept], return_inverse=True)
    counts = np.concatenate(list(bootstrap_counts(int(group.max()) + 1, replicates)))
    weights = np.zeros((replicates, len(w)))
    weights[:, kept] = counts[:, group] * w[kept]
    return weights


def test_groups_are_drawn_as_often_as_there_are_groups() -> None:
    drawn = np.concatenate(list(bootstrap_counts(7, 500, rows=64)))
    assert drawn.shape == (500, 7) and (drawn.sum(1) == 7).all()
    np.testing.assert_allclose(drawn.mean(0), 1, atol=0.15)
    np.testing.assert_array_equal(drawn, np.concatenate(list(bootstrap_counts(7, 500, rows=9))))
    assert list(bootstrap_counts(0, 10)) == []


@pytest.mark.parametrize("ties", [False, True])
def test_areas_are_sklearns_for_the_same_draws(ties: bool) -> None:
    p, y, groups, w = case(ties)
    events = y[:, None] == np.arange(4)
    aucs = [
        [roc_auc_score(events[:, k], p[:, k], sample_weight=row) if row[events[:, k]].any() else np.nan for k in (0, 3)]
        for row in drawn_weights(groups, w, 60)
    ]
    found = intervals.area_intervals(events[:, [0, 3]], p[:, [0, 3]], groups, w, replicates=60)
    want = interval_of(np.array(aucs)[:, 0])
    np.testing.assert_allclose(found[0], want, atol=1e-12)
    few = len(np.unique(groups[events[:, 3] & (w > 0)]))  # so few that Clopper and Pearson's interval is added
    area = roc_auc_score(events[:, 3], p[:, 3], sample_weight=w)
    np.testing.assert_allclose(
        found[1], intervals.extend_if_few(interval_of(np.array(aucs)[:, 1]), area, few), atol=1e-12
    )
    both = intervals.area_intervals(events[:, [0, 0]], p[:, [0, 0]], groups, w, sensitivity=(0.0, 0.8), replicates=60)
    assert both[0] == found[0]
    assert both[1:] == intervals.area_intervals(events[:, :1], p[:, :1], groups, w, sensitivity=0.8, replicates=60)


@pytest.mark.parametrize("ties", [False, True])
def test_calibration_intervals_are_those_of_the_errors_for_the_same_draws(ties: bool) -> None:
    p, y, groups, w = case(ties)
    prevalence = np.array([0.1, 0.2, 0.3, 0.4])
    q = p * prevalence + 1e-9
    q /= q.sum(1, keepdims=True)
    sets = {"equal": p, "training": q, "own": q[:, ::-1]}
    totals: dict[str, Callable[[Floats], Floats]] = {
        "equal": lambda t: class_totals(np.ones(4), t),
        "training": lambda t: class_totals(prevalence, t),
        "own": np.copy,
    }
    found = calibration_error.calibration_intervals(sets, y, groups, w, totals, replicates=40)
    for name, each in sets.items():

        def measured(weights: Floats, name: str = name, each: Floats = each) -> dict[str, float]:
            if name == "equal":
                weights = equal_prevalence_weights(y, weights)
            elif name == "training":
                weights = prevalence_weights(y, prevalence, weights)
            return calibration_error.errors(each, y, weights)

        rows, estimate = [measured(row) for row in drawn_weights(groups, w, 40)], measured(w)
        for key, ends in found[name].items():
            values = [row[key] for row in rows]
            want = reflected_interval(values, estimate[key]) if key.endswith("ece") else interval_of(values)
            np.testing.assert_allclose(ends, want, rtol=1e-12, atol=1e-12, err_msg=f"{name} {key}")


def test_an_infinite_nll_has_no_interval() -> None:
    """Replicates without the image of probability zero would give a finite one."""
    p, y = np.array([[1.0, 0.0], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]]), np.array([1, 1, 0, 1])

    def interval(rows: slice) -> tuple[float, ...]:
        groups = np.arange(4)[rows]
        found = calibration_error.calibration_intervals(
            {"x": p[rows]}, y[rows], groups, np.ones(len(groups)), {"x": np.copy}, replicates=50
        )
        return tuple(found["x"]["nll"])

    assert np.isnan(interval(slice(0, 4))).all()
    rows = [calibration_error.nll(p[1:], y[1:], row) for row in drawn_weights(np.arange(3), np.ones(3), 50)]
    np.testing.assert_allclose(interval(slice(1, 4)), interval_of(rows))


def test_biased_measures_are_reflected_at_the_estimate() -> None:
    values = np.random.default_rng(2).normal(1, 0.1, size=50)
    low, high = interval_of(values)
    np.testing.assert_allclose(reflected_interval(values, 1.0), (max(0, 2 - high), max(0, 2 - low)))
    assert np.isnan(interval_of([np.nan, np.inf])).all()
