import numpy as np
import pytest

from dermrw.decisions.refusal import QUALITY
from dermrw.evaluation.quality_limits import LEAST_LOSS, choose_images, degraded, harmful_value, harmful_values


def test_the_value_is_the_one_from_which_a_tenth_of_the_answers_is_lost() -> None:
    """A loss that grows evenly with the measure crosses a tenth at a tenth of the range."""
    rng = np.random.default_rng(0)
    values = rng.uniform(0, 1, 40_000)
    lost = (rng.random(40_000) < values).astype(float)
    weights = np.ones(40_000)
    assert harmful_value(values, lost, weights, "high") == pytest.approx(LEAST_LOSS, abs=0.03)
    assert harmful_value(-values, lost, weights, "low") == pytest.approx(-LEAST_LOSS, abs=0.03)


def test_classes_weigh_the_same() -> None:
    """Only the rare class loses answers, beyond 0.5; it is a hundredth of the images and half of the weight."""
    rng = np.random.default_rng(1)
    values = rng.uniform(0, 1, 40_000)
    rare = np.arange(40_000) % 100 == 0
    lost = (rare & (values > 0.5)).astype(float)
    weighted = np.where(rare, 1 / rare.sum(), 1 / (~rare).sum())
    assert harmful_value(values, lost, weighted, "high") == pytest.approx(0.5, abs=0.01)
    assert harmful_value(values, lost, np.ones(40_000), "high") == values.max()  # only 1 % of all answers is lost


def test_where_nothing_is_lost_the_limit_is_the_most_extreme_value() -> None:
    values = np.array([3.0, 9.0, 5.0, 1.0])
    assert harmful_value(values, np.zeros(4), np.ones(4), "high") == 9
    assert harmful_value(values, np.array([0, -1.0, 0, 0]), np.ones(4), "low") == 1


def test_each_measure_is_judged_by_its_own_degradation() -> None:
    """A model that fails below a brightness of 60, whatever the rest."""
    rng = np.random.default_rng(2)
    pixels = rng.integers(90, 200, (40, 32, 32, 3)).astype(np.uint8)
    labels = np.arange(40) % 2

    def measure(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean = pictures.mean((1, 2, 3))
        values = np.zeros((len(pictures), len(QUALITY)))
        values[:, 0] = mean
        fails = mean < 60
        answers = np.where(fails, 1 - labels, labels)
        return np.eye(2)[answers], values

    found = harmful_values(pixels, labels, measure)
    assert set(found) == set(QUALITY)
    assert 30 < found["brightness"] < 60  # the brightest of the darkened pictures that it fails on
    darkest = min(values.mean((1, 2, 3)).min() for name, values in degraded(pixels) if name == "brightness")
    assert darkest < found["brightness"]
    assert found["grain"] == 0  # noise costs nothing: the most extreme value, which this model's measure leaves at 0


def test_degrees_go_from_weak_to_strong() -> None:
    pixels = np.random.default_rng(3).integers(60, 180, (2, 96, 96, 3)).astype(np.uint8)
    change: dict[str, list[float]] = {}
    for name, pictures in degraded(pixels):
        assert pictures.shape == pixels.shape and pictures.dtype == np.uint8
        change.setdefault(name, []).append(float(np.abs(pictures.astype(int) - pixels).mean()))
    assert set(change) == set(QUALITY)
    for name, sizes in change.items():
        assert sizes == sorted(sizes) and sizes[0] > 0, name


def test_the_images_are_of_different_lesions_and_classes_equally_many() -> None:
    labels = np.repeat([0, 1, 2], [500, 200, 4])
    lesions = np.array([f"L{i // 2}" for i in range(704)])
    rows = choose_images(labels, lesions)
    assert np.bincount(labels[rows]).tolist() == [30, 30, 2]
    assert len(set(lesions[rows])) == len(rows)
    many = choose_images(np.arange(1000) % 100, np.arange(1000))
    assert np.bincount(np.arange(1000)[many] % 100).tolist() == [3] * 100
