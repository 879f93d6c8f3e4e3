"""Calibration: Bayes' rule against sampling, the gradient against differences, known truths found again."""

import json
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pytest
from scipy.optimize import approx_fprime, minimize

from dermrw.decisions.prevalence import at_prevalence
from dermrw.evaluation.calibration import (
    T_BOUNDS,
    Bools,
    EqualPrevalence,
    Floats,
    Ints,
    clustered_mean,
    fit,
    fit_at,
    penalised_nll,
)
from dermrw.metrics import calibration_error as reliability
from dermrw.metrics import classification as metrics

PRIOR = np.array([1113, 6705, 514, 327, 1099, 115, 142]) / 10015
ALL = np.ones(7, bool)


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def world(
    lesions: list[int], offset: Floats | float, scale: float, seed: int = 0, images: float = 1.34
) -> tuple[Floats, Ints, Ints]:
    """Images of a world whose truth is known: softmax(logits / scale - offset) is exact at equal prevalence.

    x ~ Normal(mean of the class, 1); logits = scale * (log p(x | class) + offset). With offset = log prior they
    are those of an overconfident model trained at that prior; with 0, of a balanced one.
    """
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(100).normal(size=(len(lesions), 6))
    means *= 2.2 / np.linalg.norm(means, axis=1, keepdims=True)
    y = np.repeat(np.arange(len(lesions)), lesions)
    number = 1 + rng.poisson(images - 1, len(y))
    lesion = np.repeat(np.arange(len(y)), number)
    centre = means[y] + np.sqrt(0.7) * rng.normal(size=(len(y), 6))
    x = centre[lesion] + np.sqrt(0.3) * rng.normal(size=(len(lesion), 6))
    z = scale * (x @ means.T - (means**2).sum(1) / 2 + offset)
    return z, y[lesion], lesion


def test_at_prevalence_calibrates_an_erm_world() -> None:
    """The whole chain: equal prevalence from ERM logits, back to the training prevalence, is softmax(z / T)."""
    z, y, _ = world([300] * 7, np.log(PRIOR), 1.5)
    truth = EqualPrevalence(1.5, tuple(-np.log(PRIOR)))
    back = at_prevalence(truth(z), PRIOR)
    np.testing.assert_allclose(back, EqualPrevalence(1.5, (0.0,) * 7)(z), rtol=1e-10, atol=1e-14)
    # at equal prevalence the probabilities are calibrated on a sample of equal prevalence
    z, y, _ = world([6000] * 7, np.log(PRIOR), 1.5, images=1)
    assert reliability.expected_calibration_error(truth(z), y) < 0.012
    assert reliability.expected_calibration_error(EqualPrevalence(1, (0.0,) * 7)(z), y) > 0.1


# ---- EqualPrevalence


def test_softmax_by_hand_and_stable() -> None:
    chain = EqualPrevalence(2.0, (0.5, -0.25, -0.25))
    z = np.array([[1.0, 2.0, -3.0]])
    e = [np.exp(1 / 2 + 0.5), np.exp(2 / 2 - 0.25), np.exp(-3 / 2 - 0.25)]
    np.testing.assert_allclose(chain(z)[0], np.array(e) / sum(e), rtol=1e-14)
    huge = chain(np.array([[1e6, 0, -1e6]], dtype=np.float32))
    assert huge.dtype == np.float64
    assert huge.tolist() == [[1, 0, 0]]
    np.testing.assert_allclose(chain(z + 1e4), chain(z), rtol=1e-10)


@pytest.mark.parametrize("temperature", [0.05, 0.7, 1.0, 20.0])
def test_temperature_moves_no_decision(temperature: float) -> None:
    z = world([50] * 7, 0, 1)[0]
    np.testing.assert_array_equal(metrics.decide(EqualPrevalence(temperature, (0.0,) * 7)(z)), z.argmax(1))
    shift = EqualPrevalence(temperature, (3.0,) * 7)  # nor does the same offset for all
    np.testing.assert_allclose(shift(z), EqualPrevalence(temperature, (0.0,) * 7)(z), rtol=1e-12, atol=1e-16)


def test_json_round_trip_is_exact() -> None:
    chain = EqualPrevalence(np.pi, (1 / 3, -1e-17, np.float64(2) / 3))
    assert EqualPrevalence.from_dict(json.loads(json.dumps(chain.to_dict()))) == chain


@pytest.mark.parametrize("bad", [(0, (0.0,)), (-1, (0.0,)), (np.nan, (0.0,)), (np.inf, (0.0,)), (1, (np.nan,))])
def test_equal_prevalence_refuses(bad: tuple[float, tuple[float, ...]]) -> None:
    with pytest.raises(ValueError, match="finite"):
        EqualPrevalence(*bad)


@pytest.mark.parametrize("logits", [[[1.0, 2.0, 3.0]], [1.0, 2.0], [[np.nan, 0]], [[np.inf, 0]]])
def test_logits_refused(logits: npt.ArrayLike) -> None:
    with pytest.raises(ValueError, match="logits"):
        EqualPrevalence(1, (0.0, 0.0))(logits)


# ---- the objective and one fit


@pytest.mark.parametrize("free", [ALL, ~ALL, np.arange(7) != 3])
def test_gradient(free: Bools) -> None:
    z, y, _ = world([20] * 7, np.log(PRIOR), 1.5)
    w = metrics.equal_prevalence_weights(y) / len(y)
    strength = 0.02 if free.any() else np.inf
    at = np.random.default_rng(1).normal(size=1 + free.sum()) * 0.5
    args = (z, y, w, free, strength)
    value, gradient = penalised_nll(at, *args)
    numeric = approx_fprime(at, lambda v: penalised_nll(v, *args)[0], 1e-7)
    np.testing.assert_allclose(gradient, numeric, rtol=0, atol=2e-6)
    # the value, from the parts that are tested elsewhere
    b = np.zeros(7)
    b[free] = at[1:] - at[1:].mean() if free.any() else 0
    penalty = strength * np.sum(at[1:] ** 2) if free.any() else 0
    assert value == pytest.approx(
        reliability.nll(EqualPrevalence(np.exp(at[0]), tuple(b))(z), y, w) + penalty, abs=1e-13
    )


@pytest.mark.parametrize("strength", [np.inf, 0.1, 0.001])
def test_the_fit_is_the_minimum(strength: float) -> None:
    """Another optimiser, without gradient or log, from another start, on the constrained problem."""
    z, y, _ = world([15, 60, 12, 10, 20, 5, 6], np.log(PRIOR), 1.5)
    w = metrics.equal_prevalence_weights(y)
    ours = fit_at(z, y, strength, ALL)
    penalised = np.isfinite(strength)

    def loss(v: Floats) -> float:
        b = np.r_[v[1:], -v[1:].sum()] if penalised else np.zeros(7)
        return reliability.nll(EqualPrevalence(v[0], tuple(b))(z), y, w) + (float(strength * b @ b) if penalised else 0)

    mine = np.r_[ours.temperature, ours.offsets[:-1]] if penalised else np.array([ours.temperature])
    start = np.r_[2.5, np.zeros(len(mine) - 1)]
    bounds = [(0.1, 10)] + [(-6, 6)] * (len(mine) - 1)
    other = minimize(loss, start, bounds=bounds, options={"ftol": 1e-14, "gtol": 1e-9, "maxfun": 20000})
    assert loss(mine) <= other.fun + 1e-9
    np.testing.assert_allclose(mine, other.x, rtol=0, atol=2e-3)
    assert sum(ours.offsets) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("offset", "scale"), [(np.log(PRIOR), 1.5), (0 * PRIOR, 0.6), (np.log(PRIOR), 1.0)])
def test_known_truth_is_found_from_many_images(offset: Floats, scale: float) -> None:
    z, y, _ = world([4000] * 7, offset, scale, images=1)
    ours = fit_at(z, y, 1e-6, ALL)
    assert ours.temperature == pytest.approx(scale, rel=0.03)
    np.testing.assert_allclose(ours.offsets, -(offset - np.mean(offset)), rtol=0, atol=0.12)


def test_classes_weigh_the_same() -> None:
    """Ten copies of every nevus change nothing."""
    z, y, _ = world([30] * 7, np.log(PRIOR), 1.5)
    rows = np.r_[np.arange(len(y)), np.repeat(np.flatnonzero(y == 1), 9)]
    once, often = fit_at(z, y, 0.01, ALL), fit_at(z[rows], y[rows], 0.01, ALL)
    np.testing.assert_allclose(once.offsets, often.offsets, rtol=0, atol=1e-5)
    assert once.temperature == pytest.approx(often.temperature, abs=1e-5)


def test_temperature_is_bounded() -> None:
    z, y, _ = world([20] * 7, 0, 1)
    separable = 0.1 * np.eye(7)[y]
    assert fit_at(separable, y, np.inf, ALL).temperature == pytest.approx(T_BOUNDS[0])
    useless = np.random.default_rng(0).normal(size=z.shape) * 1e-3 - 1e2 * np.eye(7)[y]  # worse than chance
    assert fit_at(useless, y, np.inf, ALL).temperature == pytest.approx(T_BOUNDS[1])


# ---- fit: choosing the strength

VALIDATION = [61, 540, 33, 23, 73, 11, 16]  # lesions; about 1,000 images, as a tenth of HAM10000


def test_fit_on_an_erm_model() -> None:
    z, y, lesions = world(VALIDATION, np.log(PRIOR), 1.5, seed=1)
    found = fit(z, y, lesions, seed=0)
    assert np.isfinite(found.strength)
    big, truth, _ = world([3000] * 7, np.log(PRIOR), 1.5, seed=2)
    exact = EqualPrevalence(1.5, tuple(-np.log(PRIOR)))
    score = [metrics.balanced_accuracy(c(big), truth) for c in (found.calibration, exact)]
    loss = [reliability.nll(c(big), truth) for c in (found.calibration, exact)]
    assert score[0] > score[1] - 0.015
    assert loss[0] < loss[1] + 0.04
    assert metrics.balanced_accuracy(fit_at(z, y, np.inf, ALL)(big), truth) < score[1] - 0.08


def test_fit_on_a_balanced_model() -> None:
    z, y, lesions = world(VALIDATION, 0, 1.5, seed=1)
    found = fit(z, y, lesions, seed=0)
    assert found.strength >= 0.1
    assert found.calibration.temperature == pytest.approx(1.5, rel=0.15)
    assert np.abs(found.calibration.offsets).max() < 0.15


def test_the_table() -> None:
    z, y, lesions = world([12, 40, 8, 5, 9, 5, 6], np.log(PRIOR), 1.5)
    found = fit(z, y, lesions, seed=3, strengths=(0.01, np.inf, 0.1))
    assert [row.strength for row in found.table] == [np.inf, 0.1, 0.01]
    best = min(found.table, key=lambda row: row.nll)
    assert found.strength == best.strength
    assert (best.behind, best.behind_error) == (0, 0)
    for row in found.table:
        assert row.behind == pytest.approx(row.nll - best.nll, abs=1e-13)
        assert row.standard_error > 0
    assert found == fit(z, y, lesions, seed=3, strengths=(0.01, np.inf, 0.1))
    assert found.table != fit(z, y, lesions, seed=4, strengths=(0.01, np.inf, 0.1)).table


def test_held_out_means_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """No fold is fitted to a lesion that it is then judged on, and every image is judged once per strength."""
    import dermrw.evaluation.calibration as module

    z, y, lesions = world([12, 40, 8, 5, 9, 5, 6], 0, 1)
    z[:, 0] = np.arange(len(y)) * 1e-9  # a mark to know images by
    judged, real = [], module.fit_at

    class Spy:
        def __init__(self, train: Floats) -> None:
            self.seen = set(lesions[np.round(train[:, 0] * 1e9).astype(int)].tolist())

        def scores(self, held: Floats) -> Floats:
            rows = np.round(held[:, 0] * 1e9).astype(int)
            assert self.seen.isdisjoint(lesions[rows].tolist())
            judged.extend(rows.tolist())
            return held

    monkeypatch.setattr(
        module, "fit_at", lambda train, *rest: real(train, *rest) if len(train) == len(y) else Spy(train)
    )
    fit(z, y, lesions, seed=0, strengths=(np.inf, 0.1))
    assert sorted(judged) == sorted([*range(len(y)), *range(len(y))])


def test_a_missing_class_keeps_the_mean_offset() -> None:
    z, y, lesions = world(VALIDATION, np.log(PRIOR), 1.5, seed=1)
    rows = y != 5
    found = fit(z[rows], y[rows], lesions[rows], seed=0)
    offsets = np.array(found.calibration.offsets)
    assert offsets[5] == 0
    assert offsets.sum() == pytest.approx(0, abs=1e-12)
    assert np.isfinite(found.strength)
    # the others are fitted as if the class did not exist
    keep = np.arange(7) != 5
    labels = np.cumsum(keep)[y[rows]] - 1
    without = fit_at(z[rows][:, keep], labels, found.strength, np.ones(6, bool))
    np.testing.assert_allclose(offsets[keep], without.offsets, rtol=0, atol=1e-9)


def test_a_class_of_one_lesion_keeps_the_mean_offset() -> None:
    z, y, lesions = world([61, 300, 33, 23, 73, 1, 3], np.log(PRIOR), 1.5, seed=1)
    found = fit(z, y, lesions, seed=0)  # vasc: 3 lesions, 5 folds
    assert found.calibration.offsets[5] == 0
    assert found.calibration.offsets[6] > 0
    assert sum(found.calibration.offsets) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("lesions", [[1] * 7, [4] * 7, [0, 30, 0, 0, 0, 0, 0], [0, 30, 1, 0, 0, 0, 0]])
def test_too_little_to_cross_validate(lesions: list[int]) -> None:
    found = fit(*world(lesions, np.log(PRIOR), 1.5), seed=0)
    assert found.table == ()
    assert found.strength == np.inf
    assert found.calibration.offsets == (0,) * 7
    assert T_BOUNDS[0] * 0.999 <= found.calibration.temperature <= T_BOUNDS[1] * 1.001


def test_clustered_error_is_the_spread_over_samples() -> None:
    """Simulate: the standard error says how far the class-balanced mean wanders between samples."""
    rng = np.random.default_rng(0)
    size = rng.integers(1, 5, 90)
    lesions = np.repeat(np.arange(90), size)
    y = (lesions >= 30).astype(int)  # 30 lesions of one class, 60 of the other
    means, errors = [], []
    for _ in range(1500):
        losses = rng.normal(size=90)[lesions] + 0.3 * rng.normal(size=len(lesions))
        mean, error = clustered_mean(losses, y, lesions)
        means.append(mean)
        errors.append(error)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(means), rel=0.07)
    plain = np.mean([np.mean(losses[y == c]) for c in (0, 1)])
    assert mean == pytest.approx(plain, abs=1e-14)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda z, y, g: (z, y[:-1], g), "shapes"),
        (lambda z, y, g: (z, y, g[:-1]), "shapes"),
        (lambda z, y, g: (z[:0], y[:0], g[:0]), "shapes"),
        (lambda z, y, g: (np.where(z == z[0, 0], np.nan, z), y, g), "finite"),
        (lambda z, y, g: (z, y - 1, g), "labels"),
        (lambda z, y, g: (z, y + 1, g), "labels"),
        (lambda z, y, g: (z, y * 1.0, g), "labels"),
    ],
)
def test_fit_refuses(change: Callable[..., tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike]], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        fit(*change(*world([5] * 7, 0, 1)), seed=0)
