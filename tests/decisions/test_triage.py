import numpy as np
import pytest

from dermrw.decisions.triage import (
    LEAST_POSITIVE,
    LEAST_SENSITIVITY,
    choose,
    few_positive,
    measure,
    share_of,
    too_few_positive,
)


def cases(seed: int, lesions: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    event = rng.random(lesions) < 0.3
    views = rng.integers(1, 4, size=lesions)
    lesion = np.repeat(np.arange(lesions), views)
    base = np.where(event, rng.normal(1.2, 1, lesions), rng.normal(-1, 1, lesions))
    score = 1 / (1 + np.exp(-(base[lesion] + 0.2 * rng.normal(size=len(lesion)))))
    return score, event[lesion], lesion


def test_the_interval_is_nearly_a_bootstraps_in_the_middle() -> None:
    score, event, lesion = cases(0)
    found = measure(score, event, lesion, 0.5)
    assert found.sensitivity.value == (score[event] >= 0.5).mean()
    assert found.specificity.value == (score[~event] < 0.5).mean()
    rng, mine, values = np.random.default_rng(5), np.unique(lesion[event]), []
    for _ in range(1500):
        rows = np.concatenate([np.flatnonzero(lesion == i) for i in rng.choice(mine, len(mine))])
        values.append((score[rows] >= 0.5).mean())
    assert (found.sensitivity.low, found.sensitivity.high) == pytest.approx(
        np.quantile(values, [0.025, 0.975]), abs=0.015
    )
    assert found.sensitivity.lesions == len(mine) and found.specificity.images == (~event).sum()


def test_of_one_image_a_lesion_it_is_clopper_and_pearsons() -> None:
    from scipy.stats import binomtest

    for hits, n in ((97, 100), (40, 100), (58, 58), (0, 20)):
        found = share_of(np.arange(n) < hits, np.arange(n))
        exact = binomtest(hits, n).proportion_ci(0.95, "exact")
        # v of a sample has n - 1 in its denominator: one image less
        assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=0.003)
    # alike images of a lesion tell nothing more
    once, often = share_of([1, 1, 1, 0] * 10, np.arange(40)), share_of([1, 1, 1, 0] * 20, np.tile(np.arange(40), 2))
    assert (once.low, once.high) == pytest.approx((often.low, often.high), abs=0.005)


def test_it_covers_near_one_where_a_bootstrap_does_not() -> None:
    rng, held, above = np.random.default_rng(0), [], []
    for _ in range(800):
        views = rng.integers(1, 4, 58)
        lesion = np.repeat(np.arange(58), views)
        hit = rng.random(58)[lesion] < 0.97  # the images of a lesion are alike
        found = share_of(hit, lesion)
        held.append(found.low <= 0.97 <= found.high)
        above.append(found.low > 0.97)
    assert np.mean(held) >= 0.93 and np.mean(above) <= 0.035


def test_the_chosen_threshold_is_the_highest_that_keeps_the_promise() -> None:
    score, event, lesion = cases(1)
    found = choose(score, event, lesion)
    assert found.sensitivity.low >= 0.92
    lowest, higher = np.unique(score[event & (score >= found.threshold)])[:2]
    assert measure(score, event, lesion, higher).sensitivity.low < 0.92
    assert found == measure(score, event, lesion, found.threshold)
    # a model file that rounds otherwise than the network loses no image by it
    assert found.threshold == pytest.approx(lowest, rel=1e-3) and found.threshold < lowest * (1 - 5e-5)


def test_the_promise_is_kept_on_new_lesions_nearly_always() -> None:
    kept = [measure(*cases(1000 + s), choose(*cases(s)).threshold).sensitivity.value >= 0.92 for s in range(60)]
    assert np.mean(kept) > 0.85  # both sets swing, so it can't be 0.975


def test_too_few_positive_lesions_miss_none_of_them() -> None:
    score, event = np.array([0.2, 0.9, 0.1, 0.3]), np.array([True, True, False, False])
    assert choose(score, event, np.arange(4)).threshold == pytest.approx(0.2, rel=1e-3)


def test_one_side_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="positive and negative"):
        choose([0.1, 0.2], [True, True], [0, 1])


def test_fewer_groups_than_the_least_cannot_have_the_promise() -> None:
    assert LEAST_POSITIVE == 45
    for count, kept in ((LEAST_POSITIVE, True), (LEAST_POSITIVE - 1, False)):
        groups = np.arange(count)
        low = share_of(np.ones(count), groups).low
        assert low == pytest.approx(0.025 ** (1 / count)) and (low >= LEAST_SENSITIVITY) == kept
        assert (too_few_positive(np.repeat(groups, 3), "patients") is None) == kept  # images of a group count once
    assert few_positive(12, "patients") == "only 12 malignant patients in validation; at least 45 are needed"
    assert few_positive(1, "images") == "only 1 malignant image in validation; at least 45 are needed"
    assert few_positive(0, "lesions") == "no malignant lesions in validation; at least 45 are needed"
