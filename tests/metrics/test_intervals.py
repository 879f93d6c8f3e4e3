"""Precision, F1, the partial AUC of ISIC 2024, and intervals over groups, against scikit-learn and by hand."""

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import binomtest
from sklearn import metrics as sk

from dermrw.metrics import class_bootstrap, intervals
from dermrw.metrics import classification as metrics
from dermrw.metrics.classification import Floats, Ints


def case(seed: int, n: int = 300, c: int = 4, skill: float = 1.5) -> tuple[Floats, Ints, npt.NDArray[np.str_]]:
    rng = np.random.default_rng(seed)
    labels = np.r_[np.arange(c), rng.choice(c, n - c)]
    logits = rng.normal(size=(n, c)) + skill * np.eye(c)[labels]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return p, labels, np.array([f"L{rng.integers(n // 2)}" for _ in labels])


@pytest.mark.parametrize("weighted", [False, True])
def test_precision_and_f1_are_those_of_sklearn(weighted: bool) -> None:
    p, y, _ = case(0)
    w = np.random.default_rng(1).random(len(y)) if weighted else None
    decided = p.argmax(1)
    np.testing.assert_allclose(
        metrics.precisions(p, y, w), sk.precision_score(y, decided, average=None, sample_weight=w), atol=1e-14
    )
    np.testing.assert_allclose(metrics.f1_scores(p, y, w), sk.f1_score(y, decided, average=None, sample_weight=w))


def test_precision_and_f1_without_decisions_or_images() -> None:
    p, y = [[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.4, 0.4, 0.2]], [0, 1, 0]
    np.testing.assert_array_equal(metrics.precisions(p, y), [0.5, np.nan, np.nan])  # the third image is a tie
    np.testing.assert_array_equal(metrics.f1_scores(p, y), [0.5, 0, np.nan])


def isic_2024_score(truth: npt.NDArray[np.bool_], prediction: Floats, min_tpr: float = 0.80) -> float:
    """The metric that the organisers of ISIC 2024 published, without its checks of the submission's table."""
    v_gt = np.abs(truth.astype(float) - 1)
    v_pred = -1.0 * prediction
    max_fpr = abs(1 - min_tpr)
    fpr, tpr, _ = sk.roc_curve(v_gt, v_pred, sample_weight=None)
    stop = np.searchsorted(fpr, max_fpr, "right")
    x_interp = [fpr[stop - 1], fpr[stop]]
    y_interp = [tpr[stop - 1], tpr[stop]]
    tpr = np.append(tpr[:stop], np.interp(max_fpr, x_interp, y_interp))
    fpr = np.append(fpr[:stop], max_fpr)
    return float(sk.auc(fpr, tpr))


@pytest.mark.parametrize("seed", range(20))
def test_partial_auc_is_that_of_isic_2024(seed: int) -> None:
    rng = np.random.default_rng(seed)
    event = np.r_[True, False, rng.random(200) < rng.choice([0.02, 0.3, 0.9])]
    score = np.round(rng.normal(size=202) + rng.choice([0, 1, 4]) * event, rng.integers(0, 4))  # with ties
    assert metrics.partial_auc(event, score) == pytest.approx(isic_2024_score(event, score), abs=1e-12)
    assert metrics.partial_auc(event, score, sensitivity=0.0) == pytest.approx(sk.roc_auc_score(event, score))


def test_partial_auc_of_perfect_constant_and_one_sided_scores() -> None:
    event = np.array([True, False, True, False])
    assert metrics.partial_auc(event, event.astype(float)) == pytest.approx(0.2)
    assert metrics.partial_auc(event, np.zeros(4)) == pytest.approx(0.02)
    assert metrics.partial_auc(event, 1.0 - event) == 0
    assert np.isnan(metrics.partial_auc(event | True, event.astype(float)))
    weights = [2.0, 1.0, 0.0, 3.0]
    copies = np.repeat(np.arange(4), [2, 1, 0, 3])
    score = np.array([0.4, 0.5, 0.1, 0.2])
    assert metrics.partial_auc(event, score, weights) == pytest.approx(
        isic_2024_score(event[copies], score[copies]), abs=1e-12
    )


def test_average_precision_is_the_area_of_the_drawn_curve() -> None:
    p, y, _ = case(2)
    for c in range(4):
        precision, recall, _ = sk.precision_recall_curve(y == c, p[:, c])
        area = -np.sum(np.diff(recall) * precision[:-1])
        assert metrics.average_precision(y == c, p[:, c]) == pytest.approx(area, abs=1e-12)


def test_areas_of_many_sets_of_weights_are_those_of_sklearn() -> None:
    p, y, _ = case(3)
    weights = np.random.default_rng(0).integers(0, 3, (20, len(y))).astype(float)
    score, event = np.round(p[:, 1], 1), y == 1
    want = [sk.roc_auc_score(event, score, sample_weight=w) for w in weights]
    np.testing.assert_allclose(metrics.roc_areas(event, score, weights), want, atol=1e-12)
    weights[3, event] = 0
    assert np.isnan(metrics.roc_areas(event, score, weights)[3])


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (3, 3), (0, 8), (5, 9), (40, 41)])
def test_clopper_pearson_is_scipy_s(right: int, n: int) -> None:
    want = binomtest(right, n).proportion_ci(method="exact")
    assert intervals.clopper_pearson(right / n, n) == pytest.approx((want.low, want.high), abs=1e-9)


def test_clopper_pearson_of_nothing() -> None:
    assert np.isnan(intervals.clopper_pearson(0.5, 0)).all()
    assert np.isnan(intervals.clopper_pearson(np.nan, 5)).all()


def test_few_groups_never_have_an_interval_of_width_zero() -> None:
    p = np.array([[0.9, 0.1, 0], [0.1, 0.9, 0], [0.9, 0.1, 0], [0.2, 0.8, 0]])
    ours = intervals.score_intervals(p, [0, 0, 1, 1], [7, 7, 8, 9])
    assert ours.recalls[0] == intervals.clopper_pearson(0.5, 1)  # the bootstrap's interval is (0.5, 0.5)
    assert ours.recalls[1] == intervals.clopper_pearson(0.5, 2)
    assert np.isnan(ours.recalls[2]).all()
    perfect = intervals.score_intervals(np.eye(2)[[0, 0, 1] * 20], [0, 0, 1] * 20, np.arange(60))
    for ends, lesions in zip(perfect.recalls, (40, 20), strict=True):
        assert ends == pytest.approx(intervals.clopper_pearson(1.0, lesions))
    low, high = perfect.balanced_accuracy  # about that of a mean of two shares of 40 and 20
    assert high == 1 and intervals.clopper_pearson(1.0, 20).low < low < intervals.clopper_pearson(1.0, 120).low


def test_many_groups_keep_the_bootstrap_interval() -> None:
    p, y, lesions = case(4)
    ours, plain = intervals.score_intervals(p, y, lesions), class_bootstrap.bootstrap_interval(p, y, lesions)
    assert ours.balanced_accuracy == plain.balanced_accuracy and ours.recalls == plain.recalls


def slow_areas(
    event: npt.NDArray[np.bool_], score: Floats, lesions: npt.NDArray[np.str_], sensitivity: float
) -> Floats:
    rng, names, values = np.random.default_rng(1), np.unique(lesions), []
    for _ in range(800):
        rows = np.concatenate([np.flatnonzero(lesions == name) for name in rng.choice(names, len(names))])
        measure = isic_2024_score if sensitivity else sk.roc_auc_score
        values.append(measure(event[rows], score[rows]))
    return np.array(values)


@pytest.mark.parametrize("sensitivity", [0.0, 0.8])
def test_area_intervals_are_a_bootstrap_of_groups(sensitivity: float) -> None:
    p, y, lesions = case(5, n=150, c=2)
    ours = intervals.area_intervals((y == 1)[:, None], p[:, 1:], lesions, sensitivity=sensitivity)[0]
    slow = np.quantile(slow_areas(y == 1, p[:, 1], lesions, sensitivity), [0.025, 0.975])
    assert ours == pytest.approx(slow.tolist(), abs=0.25 * (slow[1] - slow[0]))
    point = metrics.partial_auc(y == 1, p[:, 1], sensitivity=sensitivity)
    assert ours.low < point < ours.high


def test_area_intervals_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    p, y, lesions = case(6)
    event = y[:, None] == np.arange(4)
    whole = intervals.area_intervals(event, p, lesions, replicates=100)
    assert len(whole) == 4
    monkeypatch.setattr(intervals, "CELLS", 7 * len(y))
    assert intervals.area_intervals(event, p, lesions, replicates=100) == whole


def test_area_intervals_of_few_and_of_no_positives() -> None:
    score = np.linspace(0, 1, 40)
    event = np.stack([score > 0.98, score > 2, score > 0.5], 1)  # one positive image, none, half of them
    one, none, half = intervals.area_intervals(event, np.stack([score] * 3, 1), np.arange(40), replicates=50)
    assert one == pytest.approx(intervals.clopper_pearson(1.0, 1))  # a perfect score on one image shows little
    assert np.isnan(none).all()
    assert half == pytest.approx(intervals.clopper_pearson(1.0, 20)) and half.low < 1
    assert np.isnan(intervals.area_intervals(event[:0], event[:0], [], replicates=50)).all()


def test_large_sets_take_fewer_replicates() -> None:
    assert [intervals.replicates_for(n, 2000) for n in (0, 1500, 20_000, 100_000, 400_000)] == [
        2000, 2000, 2000, 400, 200,
    ]  # fmt: skip
    assert intervals.replicates_for(10, 50) == 50
