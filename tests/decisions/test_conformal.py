import numpy as np
import pytest

from dermrw.decisions.conformal import ROUNDING, fit_thresholds, prediction_sets


def cases(rng: np.random.Generator, lesions: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, labels and lesions; images of a lesion are nearly alike, and lesions have 1 to 4 of them."""
    y_of = rng.integers(classes, size=lesions)
    views = rng.integers(1, 5, size=lesions)
    lesion = np.repeat(np.arange(lesions), views)
    logits = rng.normal(size=(lesions, classes))
    logits[np.arange(lesions), y_of] += rng.normal(1.0, 1.5, lesions)
    z = logits[lesion] + 0.1 * rng.normal(size=(len(lesion), classes))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return p, y_of[lesion], lesion


def test_one_image_a_lesion_is_the_textbooks_quantile() -> None:
    """Of 29 cases a nonconformity quantile at ceil(30 × 0.9) / 29: the 27th smallest of 1 − p (Angelopoulos, Bates)."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet([1, 1], 29)
    found = fit_thresholds(p, np.zeros(29, int), np.arange(29))
    assert found.values[0] == pytest.approx((1 - np.sort(1 - p[:, 0])[27 - 1]) * (1 - ROUNDING))
    assert found.lesions.tolist() == [29, 0] and found.values[1] == 0


def test_nine_in_ten_new_lesions_are_covered_within_each_class() -> None:
    """Drawn anew five hundred times: the mean cover of a class is nine tenths or a little more, however few it has."""
    rng = np.random.default_rng(1)
    cover = []
    for _ in range(500):
        p, y, lesion = cases(rng, 60)
        t = fit_thresholds(p, y, lesion).values
        new_p, new_y, new_lesion = cases(rng, 60)
        first = np.unique(new_lesion, return_index=True)[1]
        held = new_p[first, new_y[first]] >= t[new_y[first]]
        cover.append([held[new_y[first] == c].mean() for c in range(3)])
    mean = np.nanmean(cover, 0)
    assert (mean > 0.89).all() and (mean < 0.95).all()


def test_the_likely_cover_is_what_many_thresholds_have() -> None:
    """One image a lesion: 95 % of the thresholds have a cover within the stated range."""
    rng, n, inside = np.random.default_rng(2), 25, []
    for _ in range(1000):
        p = rng.random(n)
        found = fit_thresholds(np.column_stack([p, 1 - p]), np.zeros(n, int), np.arange(n))
        low, high = found.likely[0]
        inside.append(low <= 1 - found.values[0] <= high)  # of a uniform score
    assert 0.93 < np.mean(inside) < 0.97
    assert (found.likely[1] == [0, 1]).all()  # no lesion: nothing is known


def test_too_few_lesions_put_the_class_into_every_set() -> None:
    p = np.full((8, 2), 0.5)
    found = fit_thresholds(p, np.zeros(8, int), np.arange(8))
    assert found.values[0] == 0 and (found.likely[0] == 1).all()
    enough = fit_thresholds(np.full((9, 2), 0.5), np.zeros(9, int), np.arange(9))
    assert enough.values[0] == 0.5 * (1 - ROUNDING)


def test_a_lesion_counts_once_however_often_it_was_photographed() -> None:
    rng = np.random.default_rng(3)
    p = rng.dirichlet([1, 1], 40)
    once = fit_thresholds(p, np.zeros(40, int), np.arange(40))
    often = fit_thresholds(np.repeat(p, 7, 0), np.zeros(280, int), np.repeat(np.arange(40), 7))
    worst = p[:, 0].argmin()
    one_often = np.concatenate([p, np.repeat(p[[worst]], 100, 0)])
    lesions = np.concatenate([np.arange(40), np.full(100, worst)])
    assert once.values[0] == often.values[0]
    assert fit_thresholds(one_often, np.zeros(140, int), lesions).values[0] == once.values[0]


def test_sets_hold_what_reaches_its_threshold_and_always_the_first() -> None:
    sets = prediction_sets([[0.5, 0.3, 0.2], [0.4, 0.35, 0.25]], [0.6, 0.3, 0.25])
    assert sets.tolist() == [[True, True, False], [True, True, True]]


def test_wrong_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="probabilities"):
        fit_thresholds(np.zeros((3, 2)), np.zeros(2, int), np.zeros(3))
    with pytest.raises(ValueError, match="coverage"):
        fit_thresholds(np.zeros((3, 2)), np.zeros(3, int), np.zeros(3), 1.0)
