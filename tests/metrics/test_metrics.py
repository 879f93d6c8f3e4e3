"""Metrics against the official ISIC scorer's frozen answers, scikit-learn, and slow loops."""

import csv
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta
from sklearn import metrics as sk
from sklearn.utils.class_weight import compute_sample_weight

from dermrw.diagnoses import COLUMNS, DX
from dermrw.metrics import calibration_error as reliability
from dermrw.metrics import class_bootstrap
from dermrw.metrics import classification as metrics
from dermrw.metrics.classification import Floats, Ints

ORACLE = Path(__file__).parent / "isic_oracle"
ANSWERS = json.loads((ORACLE / "answers.json").read_text())


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def oracle_case(name: str) -> tuple[list[str], Floats, Ints, Floats]:
    """(image ids, probabilities, labels, weights) as the scorer's files hold them."""
    texts = [(ORACLE / f"{name}_{kind}.csv").read_text() for kind in ("truth", "prediction")]
    truth, prediction = (list(csv.DictReader(text.splitlines())) for text in texts)
    ids = [row["image"] for row in truth]
    assert ids == [row["image"] for row in prediction]
    p, onehot = (np.array([[float(row[c]) for c in COLUMNS] for row in t]) for t in (prediction, truth))
    weights = metrics.score_weights(ids) * np.array([float(row.get("score_weight", 1)) for row in truth])
    return ids, p, onehot.argmax(1), weights


def random_case(
    seed: int, n: int = 300, c: int = 7, skill: float = 1.5
) -> tuple[Floats, Ints, npt.NDArray[np.str_], np.random.Generator]:
    rng = np.random.default_rng(seed)
    labels = np.r_[np.arange(c), rng.choice(c, n - c, p=np.arange(1, c + 1) / np.arange(1, c + 1).sum())]
    logits = rng.normal(size=(n, c)) + skill * np.eye(c)[labels]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    # lesions of one to four images, none of two classes
    lesions = np.array([f"L{y}_{rng.integers(1 + np.sum(labels == y) // 2)}" for y in labels])
    return p, labels, lesions, rng


def test_balanced_loss() -> None:
    p, y, _, _ = random_case(3)
    weights = compute_sample_weight("balanced", y)
    expected = sk.log_loss(y, p, sample_weight=weights)
    assert metrics.balanced_loss(np.log(p) + 40, y) == pytest.approx(expected, abs=1e-12)
    # a class without images is left out, and certain errors are finite
    some = y != 2
    assert metrics.balanced_loss(np.log(p[some]), y[some]) == pytest.approx(
        np.mean([-np.log(p[y == c, c]).mean() for c in range(7) if c != 2]), abs=1e-12
    )
    assert metrics.balanced_loss([[0.0, 2000.0]], [0]) == 2000


# ---- the official scorer


@pytest.mark.parametrize("name", ANSWERS)
def test_official_scorer(name: str) -> None:
    _, p, y, w = oracle_case(name)
    want = ANSWERS[name]
    assert metrics.balanced_accuracy(p, y, w) == pytest.approx(want["balanced_accuracy"], rel=0, abs=1e-15)
    assert np.sum(metrics.decide(p) < 0) == want["undecided"]
    for key, measure in (("auc", metrics.auc), ("ap", metrics.average_precision)):
        ours = dict(zip(COLUMNS, metrics.per_class(measure, p, y, w), strict=True))
        for column, value in want[key].items():
            assert ours.pop(column) == pytest.approx(value, rel=0, abs=1e-15)
        assert np.isnan(list(ours.values())).all()  # what the scorer cannot rank


def test_the_oracle_cases_tell_the_rules_apart() -> None:
    """Each case would fail if its rule were left out; or it proves nothing."""
    _, p, y, w = oracle_case("ties")
    first = np.eye(7)[p.argmax(1)]
    assert metrics.balanced_accuracy(first, y, w) > ANSWERS["ties"]["balanced_accuracy"] + 1e-3
    for name in ("zero_weight", "zero_weight_only", "weights"):
        _, p, y, w = oracle_case(name)
        assert w.min() == 0
        assert abs(metrics.balanced_accuracy(p, y) - ANSWERS[name]["balanced_accuracy"]) > 1e-3
    assert np.isnan(metrics.recalls(*oracle_case("absent")[1:])).sum() == 4
    assert np.isnan(metrics.recalls(*oracle_case("zero_weight_only")[1:])).sum() == 1


def test_score_weights() -> None:
    ids = ["ISIC_0035067", "ISIC_0035068", "ISIC_0035069"]
    assert metrics.score_weights(ids).tolist() == [1, 0, 1]
    assert metrics.score_weights(np.array(ids)).tolist() == [1, 0, 1]


# ---- decisions, confusion, recalls


def test_decide_ties_exactly() -> None:
    p = np.array([[0.5, 0.5, 0], [0.5, np.nextafter(0.5, 1), 0], [0.2, 0.2, 0.6], [1, 1, 1]])
    assert metrics.decide(p).tolist() == [-1, 1, 2, -1]
    assert metrics.decide(p.astype(np.float32)).tolist() == [-1, -1, 2, -1]  # float32 ties the second row
    with pytest.raises(ValueError, match="nan"):
        metrics.decide([[0.5, np.nan]])


@pytest.mark.parametrize("c", [2, 3, 7])
def test_recalls_are_sklearn_s(c: int) -> None:
    p, y, _, rng = random_case(c, c=c)
    w = rng.random(len(y)) * (rng.random(len(y)) > 0.2)
    for weights in (None, w):
        ours = metrics.recalls(p, y, weights)
        want = sk.recall_score(y, p.argmax(1), average=None, sample_weight=weights)
        np.testing.assert_allclose(ours, want, rtol=0, atol=1e-14)
        macro = sk.recall_score(y, p.argmax(1), average="macro", sample_weight=weights)
        assert metrics.balanced_accuracy(p, y, weights) == pytest.approx(macro, abs=1e-14)
        table = metrics.confusion(p, y, weights)
        want = sk.confusion_matrix(y, p.argmax(1), sample_weight=weights)
        np.testing.assert_allclose(table[:, :-1], want, atol=1e-12)
        assert not table[:, -1].any()


def test_confusion_keeps_the_undecided() -> None:
    p: list[list[float]] = [[0.5, 0.5, 0], [1, 0, 0], [0, 0, 1]]
    assert metrics.confusion(p, [0, 0, 1]).tolist() == [[1, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(metrics.recalls(p, [0, 0, 1]), [0.5, 0, np.nan])
    assert metrics.balanced_accuracy(p, [0, 0, 1]) == 0.25


def test_nothing_is_nan_not_a_crash() -> None:
    p, y = np.zeros((0, 7)), np.zeros(0, dtype=int)
    assert np.isnan(metrics.balanced_accuracy(p, y))
    assert np.isnan(metrics.balanced_accuracy(np.eye(3), [0, 1, 2], np.zeros(3)))
    assert np.isnan(
        [reliability.nll(p, y), reliability.brier(p, y), reliability.expected_calibration_error(p, y)]
    ).all()
    assert np.isnan(metrics.per_class(metrics.auc, p, y)).all()
    assert np.isnan(class_bootstrap.bootstrap_interval(p, y, []).balanced_accuracy).all()


@pytest.mark.parametrize("labels", [[0, 1, -1], [0, 1, 3], [0.0, 1.0, 2.0], [0, 1]])
def test_bad_labels(labels: list[float]) -> None:
    with pytest.raises(ValueError, match="labels"):
        metrics.confusion(np.eye(3), labels)


@pytest.mark.parametrize("weights", [[1, 1], [1, 1, -1], [1, 1, np.nan], [1, 1, np.inf]])
def test_bad_weights(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        metrics.recalls(np.eye(3), [0, 1, 2], weights)


def test_class_balanced_weights() -> None:
    _, y, _, rng = random_case(1)
    np.testing.assert_allclose(metrics.equal_prevalence_weights(y), compute_sample_weight("balanced", y), rtol=1e-13)
    w = rng.random(len(y))
    w[y == 3] = 0
    ours = metrics.equal_prevalence_weights(y, w)
    np.testing.assert_allclose(
        [ours[y == c].sum() for c in range(7)], np.where(np.arange(7) == 3, 0, w.sum() / 6), rtol=1e-12
    )
    assert metrics.equal_prevalence_weights(y, np.zeros(len(y))).tolist() == [0] * len(y)
    p = random_case(1)[0]  # accuracy under them is balanced accuracy
    assert np.average(p.argmax(1) == y, weights=ours) == pytest.approx(metrics.balanced_accuracy(p, y, w))


# ---- the bootstrap


def slow_bootstrap(p: Floats, y: Ints, lesions: npt.NDArray[np.str_], w: Floats, replicates: int, seed: int) -> Floats:
    """The definition, lesion by lesion."""
    rng = np.random.default_rng(seed)
    right = p.argmax(1) == y
    rows = []
    for _ in range(replicates):
        recall = []
        for c in np.unique(y):
            names = np.unique(lesions[(y == c) & (w > 0)])
            top = bottom = 0.0
            for name in rng.choice(names, len(names)):
                images = (lesions == name) & (y == c)
                top += np.sum(w[images] * right[images])
                bottom += np.sum(w[images])
            recall.append(top / bottom)
        rows.append([np.mean(recall), *recall])
    return np.array(rows)


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
def test_bootstrap_is_the_definition(weighted: bool) -> None:
    p, y, lesions, rng = random_case(5, n=240, c=3)  # at least ten lesions of each class
    w = rng.choice([0.0, 1.0, 2.5], len(y)) if weighted else np.ones(len(y))
    slow = slow_bootstrap(p, y, lesions, w, 1200, 0)
    for level in (0.5, 0.8, 0.95):
        ours = class_bootstrap.bootstrap_interval(p, y, lesions, w, replicates=20000, level=level)
        ends = np.array([ours.balanced_accuracy, *ours.recalls])
        # Quantiles of a lattice jump; so ask what share of the slow draws lies below each end. The share's
        # standard error is at most sqrt(0.25 * 0.75 / 1200) = 0.0125 at these levels.
        for tail, end in (((1 - level) / 2, ends[:, 0]), ((1 + level) / 2, ends[:, 1])):
            assert (np.mean(slow < end - 1e-9, axis=0) <= tail + 0.04).all()
            assert (np.mean(slow <= end + 1e-9, axis=0) >= tail - 0.04).all()
    assert ours.lesions.tolist() == [len(np.unique(lesions[(y == c) & (w > 0)])) for c in range(3)]


def test_bootstrap_spread_is_the_cluster_variance() -> None:
    """All lesions of 4 alike images: the spread is that of L lesions, twice that of 4 L images."""
    rng = np.random.default_rng(0)
    right = np.repeat(rng.random(200) < 0.7, 4)
    p = np.where(right[:, None], [0.9, 0.1], [0.1, 0.9])
    y = np.zeros(800, dtype=int)
    ours = class_bootstrap.bootstrap_interval(p, y, np.repeat(np.arange(200), 4), replicates=20000)
    m = right.mean()
    assert ours.recalls[0].high - ours.recalls[0].low == pytest.approx(2 * 1.96 * np.sqrt(m * (1 - m) / 200), rel=0.06)
    images = class_bootstrap.bootstrap_interval(p, y, np.arange(800), replicates=20000)
    assert images.recalls[0].high - images.recalls[0].low == pytest.approx(
        2 * 1.96 * np.sqrt(m * (1 - m) / 800), rel=0.06
    )


def test_bootstrap_of_one_lesion_and_of_none() -> None:
    p = np.array([[0.9, 0.1, 0], [0.1, 0.9, 0], [0.9, 0.1, 0], [0.2, 0.8, 0]])
    ours = class_bootstrap.bootstrap_interval(p, [0, 0, 1, 1], [7, 7, 8, 9], seed=3)
    # of one lesion, half right, and of two, one right: Jeffreys' posterior
    assert ours.recalls[0] == pytest.approx(beta.ppf([0.025, 0.975], 1, 1), abs=0.02)
    assert ours.recalls[1] == pytest.approx(beta.ppf([0.025, 0.975], 1.5, 1.5), abs=0.02)
    assert np.isnan(ours.recalls[2]).all()
    draws = np.random.default_rng(0).beta([1, 1.5], [1, 1.5], size=(100_000, 2)).mean(1)
    assert ours.balanced_accuracy == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.02)
    assert ours.lesions.tolist() == [1, 2, 0]


@pytest.mark.parametrize(("few", "recall"), [(1, 0.8), (2, 0.8), (3, 0.95), (12, 0.8)])
def test_a_class_of_few_lesions_widens_the_interval(few: int, recall: float) -> None:
    """Six classes of a hundred lesions and one of few: the 95 % interval covers the truth in about 95 % of samples."""
    rng, y = np.random.default_rng(few), np.r_[np.repeat(np.arange(6), 100), np.full(few, 6)]
    covered = 0
    for _ in range(200):
        decided = np.where(rng.random(len(y)) < recall, y, (y + 1) % 7)
        low, high = class_bootstrap.bootstrap_interval(
            np.eye(7)[decided], y, np.arange(len(y)), replicates=400
        ).balanced_accuracy
        covered += low <= recall <= high
    assert covered / 200 >= 0.9


def test_patients_with_images_of_several_classes_stay_whole() -> None:
    """Each of 60 patients has an image of each of four classes, all right or all wrong: as if there were one class."""
    right = np.random.default_rng(1).random(60) < 0.7
    y, patients = np.tile(np.arange(4), 60), np.repeat(np.arange(60), 4)
    decided = np.where(np.repeat(right, 4), y, (y + 1) % 4)
    together = class_bootstrap.bootstrap_interval(np.eye(4)[decided], y, patients, replicates=20_000).balanced_accuracy
    one = class_bootstrap.bootstrap_interval(
        np.eye(2)[(~right).astype(int)], np.zeros(60, int), np.arange(60), replicates=20_000
    ).balanced_accuracy
    assert together == pytest.approx(one, abs=0.01)
    apart = class_bootstrap.bootstrap_interval(np.eye(4)[decided], y, np.arange(240)).balanced_accuracy
    assert apart.high - apart.low < 0.6 * (one.high - one.low)


def test_bootstrap_is_seeded_and_blind_to_order() -> None:
    p, y, lesions, rng = random_case(2)
    ours = class_bootstrap.bootstrap_interval(p, y, lesions, seed=1)
    order = rng.permutation(len(y))
    again = class_bootstrap.bootstrap_interval(p[order], y[order], lesions[order], seed=1)
    assert ours.balanced_accuracy == again.balanced_accuracy
    assert ours.recalls == again.recalls
    assert ours.balanced_accuracy != class_bootstrap.bootstrap_interval(p, y, lesions, seed=2).balanced_accuracy
    assert ours.balanced_accuracy.low < metrics.balanced_accuracy(p, y) < ours.balanced_accuracy.high
    with pytest.raises(ValueError, match="lesions"):
        class_bootstrap.bootstrap_interval(p, y, lesions[:-1])


# ---- ranking


def test_ranking_is_sklearn_s() -> None:
    p, y, _, rng = random_case(9)
    p = np.round(p, 2)
    w = rng.random(len(y)) * (rng.random(len(y)) > 0.3)
    for weights in (None, w):
        for c in range(7):
            want = sk.roc_auc_score(y == c, p[:, c], sample_weight=weights)
            assert metrics.auc(y == c, p[:, c], weights) == pytest.approx(want, abs=1e-14)
            want = sk.average_precision_score(y == c, p[:, c], sample_weight=weights)
            assert metrics.average_precision(y == c, p[:, c], weights) == pytest.approx(want, abs=1e-14)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95, 1.0])
def test_operating_points_by_trying_every_threshold(level: float) -> None:
    p, y, _, rng = random_case(4)
    w = rng.choice([0.0, 1.0, 2.0], len(y))
    score, event = np.round(p[:, 1], 2), y == 1
    points = []
    for threshold in [*np.unique(score), np.inf]:
        said = score >= threshold
        points.append((w[event & said].sum() / w[event].sum(), w[~event & ~said].sum() / w[~event].sum()))
    want = max(sens for sens, spec in points if spec >= level - 1e-12)
    assert metrics.sensitivity_at_specificity(event, score, w, specificity=level) == pytest.approx(want, abs=1e-12)
    want = max(spec for sens, spec in points if sens >= level - 1e-12)
    assert metrics.specificity_at_sensitivity(event, score, w, sensitivity=level) == pytest.approx(want, abs=1e-12)


def test_a_level_that_is_met_exactly_counts() -> None:
    """1 - 0.9 < 1 / 10 in float64: one false alarm in ten must still be a specificity of 0.9."""
    event = np.r_[np.zeros(10, bool), True]
    score = np.r_[np.arange(10), 8.5]
    assert metrics.sensitivity_at_specificity(event, score, specificity=0.9) == 1
    assert metrics.sensitivity_at_specificity(event, score, specificity=0.91) == 0
    # thresholds whose points lie on one line are thresholds all the same
    event, score = np.array([1, 0, 1, 0, 1, 0], bool), [3, 3, 2, 2, 1, 1]
    assert metrics.sensitivity_at_specificity(event, score, specificity=1 / 3) == pytest.approx(2 / 3)


@pytest.mark.parametrize("event", [[True, True], [False, False], [True, False]])
def test_ranking_of_one_side_is_nan(event: list[bool]) -> None:
    weights = [1.0, 0.0]  # in the third, the only negative has no weight
    for measure in (
        metrics.auc,
        metrics.average_precision,
        metrics.sensitivity_at_specificity,
        metrics.specificity_at_sensitivity,
    ):
        assert np.isnan(measure(event, [0.1, 0.2], weights))


def test_malignant() -> None:
    p, y, _, _ = random_case(3)
    event, score = metrics.malignant(p, y)
    bad = [DX.index(dx) for dx in ("mel", "bcc", "akiec")]
    np.testing.assert_array_equal(event, np.isin(y, bad))
    np.testing.assert_allclose(score, p[:, bad].sum(1), atol=1e-15)
    assert metrics.malignant([[0.1, 0.9]], [1], [False, True])[1].tolist() == [0.9]
    with pytest.raises(ValueError, match="classes"):
        metrics.malignant([[0.1, 0.9]], [1])


# ---- calibration error


def slow_ece(event: npt.NDArray[np.bool_], score: Floats, w: Floats, bins: int) -> float:
    """Equal-mass bins for scores without ties: image i of the sorted n is in bin floor(bins (mid mass))."""
    order = np.argsort(score)
    total, before = w.sum(), 0.0
    parts: dict[int, list[int]] = {}
    for i in order:
        parts.setdefault(int(bins * (before + w[i] / 2) / total), []).append(i)
        before += w[i]
    return sum(abs(np.sum(w[ix] * score[ix]) - np.sum(w[ix] * event[ix])) / total for ix in parts.values())


@pytest.mark.parametrize("bins", [1, 5, 15])
def test_ece_by_loops(bins: int) -> None:
    p, y, _, _ = random_case(6)
    for w in (np.ones(len(y)), metrics.equal_prevalence_weights(y)):
        top = p.argmax(1)
        want = slow_ece(y == top, p.max(1), w, bins)
        assert reliability.expected_calibration_error(p, y, w, bins=bins) == pytest.approx(want, abs=1e-13)
        want = float(np.mean([slow_ece(y == c, p[:, c], w, bins) for c in range(7)]))
        ours = reliability.expected_calibration_error(p, y, w, bins=bins, classwise=True)
        assert ours == pytest.approx(want, abs=1e-13)


def test_reliability_bins_are_of_equal_mass() -> None:
    rng = np.random.default_rng(0)
    score = rng.random(307)
    curve = reliability.reliability_curve(rng.random(307) < score, score)
    assert set(np.round(curve.weight * 307).astype(int).tolist()) <= {20, 21}
    assert len(curve.weight) == 15
    assert (np.diff(curve.score) > 0).all()
    assert curve.weight.sum() == pytest.approx(1, abs=1e-14)


def test_equal_scores_share_a_bin() -> None:
    score = np.r_[np.full(50, 0.2), np.full(50, 1.0)]
    event = np.r_[np.arange(50) < 10, np.arange(50) < 50]
    curve = reliability.reliability_curve(event, score)
    np.testing.assert_allclose(curve.score, [0.2, 1])
    np.testing.assert_allclose(curve.frequency, [0.2, 1])
    p = np.array([[0.7, 0.3]] * 10)  # 7 of 10 right, in any order: no error
    y = np.r_[np.zeros(7, int), np.ones(3, int)]
    for order in (np.arange(10), np.arange(10)[::-1]):
        assert reliability.expected_calibration_error(p, y[order]) == pytest.approx(0, abs=1e-15)


def test_ece_tells_calibrated_from_overconfident() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(50000, 3)) * 1.5
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    y = (rng.random((len(p), 1)) > np.cumsum(p, 1)).sum(1)
    sharp = p**2 / np.sum(p**2, 1, keepdims=True)
    for classwise in (False, True):
        assert reliability.expected_calibration_error(p, y, classwise=classwise) < 0.01
        assert reliability.expected_calibration_error(sharp, y, classwise=classwise) > 0.05


def test_nll_and_brier() -> None:
    p, y, _, rng = random_case(8)
    w = rng.random(len(y))
    for weights in (None, w):
        assert reliability.nll(p, y, weights) == pytest.approx(sk.log_loss(y, p, sample_weight=weights), abs=1e-13)
        want = np.average([sum((p[i, c] - (y[i] == c)) ** 2 for c in range(7)) for i in range(len(y))], weights=weights)
        assert reliability.brier(p, y, weights) == pytest.approx(want, abs=1e-13)
    assert reliability.nll([[1.0, 0.0]], [1]) == np.inf
    assert reliability.nll([[1.0, 0.0], [1.0, 0.0]], [1, 0], [0, 1]) == 0
    assert reliability.brier([[1.0, 0.0]], [1]) == 2


@pytest.mark.parametrize("measure", [reliability.nll, reliability.brier, reliability.expected_calibration_error])
def test_logits_are_not_probabilities(measure: Callable[..., float]) -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        measure([[3.0, -1.0]], [0])


# ---- groups


def test_by_group() -> None:
    p, y, lesions, rng = random_case(7)
    groups = rng.choice(["male", "female", ""], len(y)).astype(object)
    groups[5], groups[6], groups[7] = None, np.nan, "rare"
    w = np.ones(len(y))
    w[7] = 0
    found = metrics.by_group(p, y, lesions, groups, w)
    assert [g.name for g in found] == ["female", "male", "rare", "missing"]
    assert sum(g.images for g in found) == len(y) - 1
    for g in found:
        rows = np.isin(groups, [g.name]) if g.name != "missing" else [str(v) in ("", "None", "nan") for v in groups]
        rows = np.asarray(rows) & (w > 0)
        assert g.lesions == len(set(lesions[rows]))
        assert g.images == rows.sum()
        if g.images:
            seen = np.unique(y[rows])
            want = sk.recall_score(y[rows], p[rows].argmax(1), labels=seen, average="macro")
            assert g.balanced_accuracy == pytest.approx(want, abs=1e-14)
            assert np.flatnonzero(g.present).tolist() == seen.tolist()
    rare = found[2]
    assert (rare.images, rare.lesions, rare.present.any()) == (0, 0, False)
    assert np.isnan(rare.balanced_accuracy)


def test_by_group_sorts_numbers_as_numbers() -> None:
    p, y = np.eye(4)[[0, 1, 2, 3]], [0, 1, 2, 3]
    found = metrics.by_group(p, y, [1, 2, 3, 4], [100.0, np.nan, 5.0, 20.0])
    assert [g.name for g in found] == ["5.0", "20.0", "100.0", "missing"]


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_properties(data: st.DataObject) -> None:
    c, n = data.draw(st.integers(2, 5)), data.draw(st.integers(1, 30))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    p = rng.dirichlet(np.ones(c), n).round(data.draw(st.integers(1, 6)))
    y, w = rng.integers(c, size=n), rng.integers(3, size=n)
    score = metrics.balanced_accuracy(p, y, w)
    assert np.isnan(score) == (not w.any())
    if w.any():  # a weight of k is k copies
        copies = np.repeat(np.arange(n), w)
        assert score == pytest.approx(metrics.balanced_accuracy(p[copies], y[copies]), abs=1e-14)
        order = rng.permutation(c)  # the names of the classes do not matter
        assert score == pytest.approx(metrics.balanced_accuracy(p[:, order], np.argsort(order)[y], w), abs=1e-14)
        box = class_bootstrap.bootstrap_interval(p, y, rng.integers(n, size=n), w, replicates=50)
        assert 0 <= box.balanced_accuracy.low <= box.balanced_accuracy.high <= 1
