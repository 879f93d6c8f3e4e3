import numpy as np
import pytest

from dermrw.triage import choose, measure


def cases(seed: int, lesions: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    event = rng.random(lesions) < 0.3
    views = rng.integers(1, 4, size=lesions)
    lesion = np.repeat(np.arange(lesions), views)
    base = np.where(event, rng.normal(1.2, 1, lesions), rng.normal(-1, 1, lesions))
    score = 1 / (1 + np.exp(-(base[lesion] + 0.2 * rng.normal(size=len(lesion)))))
    return score, event[lesion], lesion


def test_shares_and_intervals_against_a_bootstrap_written_out() -> None:
    score, event, lesion = cases(0)
    found = measure(score, event, lesion, 0.5)
    assert found.sensitivity.value == (score[event] >= 0.5).mean()
    assert found.specificity.value == (score[~event] < 0.5).mean()
    rng, mine, values = np.random.default_rng(5), np.unique(lesion[event]), []
    for _ in range(1500):
        rows = np.concatenate([np.flatnonzero(lesion == i) for i in rng.choice(mine, len(mine))])
        values.append((score[rows] >= 0.5).mean())
    assert (found.sensitivity.low, found.sensitivity.high) == pytest.approx(
        np.quantile(values, [0.025, 0.975]), abs=0.01
    )
    assert found.sensitivity.lesions == len(mine) and found.specificity.images == (~event).sum()


def test_the_chosen_threshold_is_the_highest_that_keeps_the_promise() -> None:
    score, event, lesion = cases(1)
    found = choose(score, event, lesion)
    assert found.sensitivity.low >= 0.92
    higher = np.unique(score[event & (score > found.threshold)])[0]
    assert measure(score, event, lesion, higher).sensitivity.low < 0.92
    assert found == measure(score, event, lesion, found.threshold)


def test_the_promise_is_kept_on_new_lesions_nearly_always() -> None:
    kept = [measure(*cases(1000 + s), choose(*cases(s)).threshold).sensitivity.value >= 0.92 for s in range(60)]
    assert np.mean(kept) > 0.85  # both sets swing, so it can't be 0.975


def test_too_few_positive_lesions_miss_none_of_them() -> None:
    score, event = np.array([0.2, 0.9, 0.1, 0.3]), np.array([True, True, False, False])
    assert choose(score, event, np.arange(4)).threshold == 0.2


def test_one_side_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="positive and negative"):
        choose([0.1, 0.2], [True, True], [0, 1])
