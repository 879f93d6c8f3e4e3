"""The images of one lesion are combined."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dermrw.decisions.lesion_rule import LESION_RULE, LESION_RULES, combine


def test_images_of_a_lesion_are_combined() -> None:
    p = np.array([[0.9, 0.1], [0.5, 0.5], [0.3, 0.7]])
    lesions = ["b", "a", "b"]
    np.testing.assert_allclose(combine(p, lesions, "mean"), [[0.6, 0.4], [0.5, 0.5], [0.6, 0.4]], rtol=1e-15)
    odds = np.sqrt(9 * 3 / 7)  # the geometric mean of probabilities is that of their odds
    expected = [odds / (1 + odds), 1 / (1 + odds)]
    np.testing.assert_allclose(combine(p, lesions, "geometric"), [expected, [0.5, 0.5], expected], rtol=1e-12)
    certain = combine([[1.0, 0.0], [0.2, 0.8]], ["a", "a"], "geometric")
    assert np.isfinite(certain).all() and 0 < certain[0, 1] < 0.01


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 7), st.integers(1, 6))
def test_the_most_suspicious_image_gives_the_malignant_share(seed: int, c: int, images: int) -> None:
    rng = np.random.default_rng(seed)
    malignant = rng.random(c) < 0.5
    p = rng.dirichlet(np.full(c, 0.3), images)
    others = rng.dirichlet(np.ones(c), 2)
    together = combine(np.vstack([others[:1], p, others[1:]]), ["a", *["b"] * images, "c"], LESION_RULE, malignant)
    np.testing.assert_array_equal(together[[0, -1]], others)  # one image each
    lesion = together[1]
    np.testing.assert_allclose(together[1:-1], np.tile(lesion, (images, 1)), rtol=0, atol=0)
    assert lesion.min() >= 0 and lesion.sum() == pytest.approx(1, abs=1e-12)
    if malignant.any() and not malignant.all():
        highest = max(row[malignant].sum() for row in p)
        assert lesion[malignant].sum() == pytest.approx(highest, rel=1e-9, abs=1e-12)
    for group in (malignant, ~malignant):
        mean = p.mean(0)[group]
        np.testing.assert_allclose(lesion[group] * mean.sum(), mean * lesion[group].sum(), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        combine(p[::-1], ["b"] * images, LESION_RULE, malignant)[0], lesion, rtol=1e-9, atol=1e-12
    )


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 7), st.integers(1, 6))
def test_a_lesion_has_the_highest_score_of_its_images_at_the_prevalence_of_triage(
    seed: int, c: int, images: int
) -> None:
    rng = np.random.default_rng(seed)
    malignant = np.arange(c) < rng.integers(1, c)
    shares = rng.dirichlet(np.ones(c)) * 0.99 + 0.01 / c
    p = rng.dirichlet(np.full(c, 0.5), images) * 0.99 + 0.01 / c
    lesion = combine(p, [0] * images, LESION_RULE, malignant, shares)[0]

    def score(row: np.ndarray) -> float:
        return float((row * shares)[malignant].sum() / (row * shares).sum())

    assert score(lesion) == pytest.approx(max(map(score, p)), rel=1e-9)
    assert lesion.min() > 0 and lesion.sum() == pytest.approx(1, abs=1e-12)
    if images > 1:
        for group in (malignant, ~malignant):
            np.testing.assert_allclose(
                lesion[group] / lesion[group].sum(), (m := p.mean(0)[group]) / m.sum(), rtol=1e-9
            )
    equal = combine(p, [0] * images, LESION_RULE, malignant)
    np.testing.assert_allclose(combine(p, [0] * images, LESION_RULE, malignant, np.full(c, 1 / c)), equal, rtol=1e-12)


def test_one_confident_mistake_does_not_silence_the_others() -> None:
    """Melanoma, nevus, keratosis: one image is sure of the nevus, two suspect melanoma."""
    p = np.array([[0.0005, 0.999, 0.0005], [0.27, 0.68, 0.05], [0.46, 0.49, 0.05]])
    lesion = combine(p, [0, 0, 0], malignant=[True, False, False])[0]
    assert lesion[0] == pytest.approx(0.46) and combine(p, [0, 0, 0], "geometric")[0, 0] < 0.06


def test_certain_images_and_unknown_malignancy() -> None:
    both = combine([[1.0, 0.0], [0.0, 1.0]], [0, 0], malignant=[True, False])
    np.testing.assert_array_equal(both, [[1.0, 0.0]] * 2)
    np.testing.assert_array_equal(combine([[0.0, 1.0]] * 2, [0, 0], malignant=[True, False]), [[0.0, 1.0]] * 2)
    p = [[0.9, 0.1], [0.3, 0.7]]
    np.testing.assert_allclose(combine(p, [0, 0]), combine(p, [0, 0], "mean"))
    assert LESION_RULE in LESION_RULES
    with pytest.raises(ValueError, match="rule must be one of most_suspicious, mean, geometric, not 'median'"):
        combine(p, [0, 0], "median")
    with pytest.raises(ValueError, match="malignant must hold 2 truths"):
        combine(p, [0, 0], malignant=[True])
