from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageFilter

from dermrw.datasets.sample_drawing import draw_lesion
from dermrw.decisions.refusal import ALL_CHECKS, CHECKS, Group, fit_limits, refusal, too_small
from dermrw.diagnoses import DX
from dermrw.evaluation.image_checks import quality


def drawn(n: int = 40) -> np.ndarray:
    return np.stack(
        [
            draw_lesion(DX[i % 7], np.random.default_rng([i, 0]), np.random.default_rng([i, 1]), 96, 96)[:96, :96]
            for i in range(n)
        ]
    )


def measures(pixels: np.ndarray) -> np.ndarray:
    """The seven of quality and a strangeness of 1."""
    found = quality(torch.from_numpy(pixels)).numpy()
    return np.column_stack([found, np.ones(len(found))])


def left_of(channel: np.ndarray, luminance: np.ndarray) -> np.ndarray:
    """What a regression on the luminance leaves of a channel."""
    return channel - np.poly1d(np.polyfit(luminance.ravel(), channel.ravel().astype(float), 1))(luminance)


def grain_of(maps: list[np.ndarray], quantile: float, normal: float) -> float:
    """The noise of maps by Immerkær's mask and a quantile, where a standard normal variable's is `normal`."""
    from scipy.ndimage import convolve

    mask = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]]) / 6
    found = [convolve(one, mask)[1:-1, 1:-1][::2, ::2] for one in maps]
    return float(np.quantile(np.abs(found), quantile) / normal)


def noisy(pixels: np.ndarray, deviation: float = 25, grey: bool = False) -> np.ndarray:
    """With noise of each channel's own, or the same in all."""
    noise = np.random.default_rng(0).normal(0, deviation, (*pixels.shape[:3], 1 if grey else 3))
    return (pixels + noise).clip(0, 255).astype(np.uint8)


SEPIA = np.array([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]])


def test_quality_against_numpy_and_scipy() -> None:
    from scipy.ndimage import laplace

    pixels = drawn(5)
    y = pixels.astype(np.float64) @ [0.299, 0.587, 0.114]
    expected = np.column_stack(
        [
            y.mean((1, 2)),
            (y >= 250).mean((1, 2)),
            y.std((1, 2)),
            [np.sqrt((laplace(one)[1:-1, 1:-1] ** 2).mean()) / (one.std() + 1) for one in y],
            [
                np.sqrt(np.mean([left_of(x[..., c], one) ** 2 for c in (0, 2)]))
                for x, one in zip(pixels, y, strict=True)
            ],
            [grain_of([one], 0.25, 0.3186) for one in y],
            [grain_of([x[..., 0] - one, x[..., 2] - one], 0.5, 0.6745) for x, one in zip(pixels, y, strict=True)],
        ]
    )
    np.testing.assert_allclose(quality(torch.from_numpy(pixels)).numpy(), expected, rtol=2e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda p: (p * 0.15).astype(np.uint8), "too dark"),
        (lambda p: np.minimum(p * 3.0, 255).astype(np.uint8), "overexposed"),
        (lambda p: np.full_like(p, 150), "nearly of one colour"),
        (
            lambda p: np.stack([np.asarray(Image.fromarray(one).filter(ImageFilter.GaussianBlur(6))) for one in p]),
            "blurred",
        ),
        (lambda p: np.repeat((p @ [0.299, 0.587, 0.114]).astype(np.uint8)[..., None], 3, 3), "it is grey"),
        (noisy, "too grainy"),
        (lambda p: noisy(p, 12, grey=True), "too grainy"),
        (lambda p: ((p @ SEPIA.T) / 1.25).astype(np.uint8), "it is grey, or toned"),
    ],
)
def test_damaged_pictures_are_refused_for_what_ails_them(
    damage: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]], reason: str
) -> None:
    whole = drawn()
    limits = fit_limits(measures(whole), np.arange(len(whole)))
    assert all(refusal(row, limits) is None for row in measures(whole))
    said = [refusal(row, limits) for row in measures(damage(whole))]
    assert np.mean([reason in (text or "") for text in said]) > 0.8


def test_at_most_the_stated_shares_of_lesions_lie_beyond_the_limits() -> None:
    rng = np.random.default_rng(0)
    values, lesions = rng.normal(50, 1, size=(6000, 8)), np.repeat(np.arange(3000), 2)
    limits = fit_limits(values, lesions)
    beyond = {
        name: np.mean(
            values[:, i] < limits[name]
            if name in ("brightness", "contrast", "sharpness", "colour")
            else values[:, i] > limits[name]
        )
        for i, name in enumerate(CHECKS)
    }
    assert (
        all(beyond[name] <= (0.002 if name == "grain" else 0.001) for name in CHECKS[:7])
        and 0.004 < beyond["strangeness"] <= 0.006
    )
    assert np.mean([refusal(row, limits) is not None for row in values]) < 0.011


def test_limits_refuse_few_images_of_any_group() -> None:
    rng = np.random.default_rng(0)
    values, lesions = rng.normal(50, 1, size=(2000, 9)), np.arange(2000)
    camera = rng.normal(50, 10, size=(1000, 9))
    few = rng.normal(50, 1000, size=(99, 9))
    alone = fit_limits(values, lesions)
    groups = [Group("camera", camera), Group("few", few)]
    limits = fit_limits(values, lesions, groups)
    assert list(limits) == list(ALL_CHECKS)
    for column, name in enumerate(ALL_CHECKS):
        sign = 1 if name in ("brightness", "contrast", "sharpness", "colour") else -1
        beyond = sign * camera[:, column] < sign * limits[name]
        relaxed = name == "colour_grain"  # its limit for the validation images is far laxer
        assert beyond.sum() == 0 if relaxed else beyond.sum() == {"strangeness": 5, "photograph": 20}.get(name, 3)
        assert relaxed or (sign * camera[:, column] < sign * alone[name]).mean() > 0.02
        assert (sign * few[:, column] < sign * limits[name]).mean() > 0.3  # too few lesions to count


def test_limits_refuse_only_where_answers_get_worse() -> None:
    values = np.random.default_rng(0).normal(50, 1, size=(2000, 8))
    alone = fit_limits(values, np.arange(2000))
    limits = fit_limits(values, np.arange(2000), harmful={"brightness": 20.0, "grain": 51.0})
    assert limits["brightness"] == pytest.approx(20, rel=1e-3) and limits["brightness"] < 20
    assert limits["grain"] == alone["grain"] > 51  # the stricter value has no effect
    assert {name: limits[name] for name in CHECKS[1:]} == {name: alone[name] for name in CHECKS[1:]}


def test_photographs_are_refused_by_models_with_a_detector() -> None:
    limits = dict(zip(ALL_CHECKS, (50.0, 0.1, 8.0, 0.05, 2.0, 5.0, 5.0, 3.0, 1.5), strict=True))
    good = [120, 0, 20, 0.2, 5, 0, 0, 1]
    assert refusal([*good, 1.5], limits) is None
    assert refusal([*good, 1.6], limits) == "it looks like an ordinary photograph, not like dermoscopy"
    assert refusal([*good, 1.6], limits, dermoscopic=False) == "it looks like the pictures that the model is to refuse"
    assert "ordinary photograph" in (refusal([*good[:7], 9, 1.6], limits) or "")
    assert "blurred" in (refusal([120, 0, 20, 0.01, 5, 0, 0, 9, 1.6], limits) or "")
    assert refusal([120, 0, 20, 0.2, 5, 0, 0, 9], dict(list(limits.items())[:8]), dermoscopic=False) == (
        "it isn't like the images that the model knows"
    )


def test_the_plainest_reason_comes_first() -> None:
    limits = dict(zip(CHECKS, (50.0, 0.1, 8.0, 0.05, 2.0, 5.0, 5.0, 3.0), strict=True))
    assert refusal([20, 0, 1, 0.01, 0, 9, 9, 99], limits) == "it is too dark"
    assert "like the dermoscopic images" in (refusal([120, 0, 20, 0.2, 5, 0, 0, 3.1], limits) or "")
    assert refusal([120, 0, 20, 0.2, 5, 0, 0, 3.0], limits) is None


def test_small_pictures_are_refused_with_their_size() -> None:
    assert too_small(104, 300, 104) is None
    assert too_small(300, 103, 104) == "it is too small: 300 × 103 pixels, and the shorter side must have 104"


def test_what_is_not_finite_has_no_limits() -> None:
    with pytest.raises(ValueError, match="not finite"):
        fit_limits(np.full((3, 8), np.nan), np.arange(3))
    with pytest.raises(ValueError, match="checks"):
        fit_limits(np.zeros((3, 4)), np.arange(3))


def test_grain_is_the_standard_deviation_of_white_noise_and_spares_hair() -> None:
    grey = noisy(np.full((1, 128, 128, 3), 128, np.uint8), 10)
    # red less luminance, and blue less it: 0.701 R - 0.587 G - 0.114 B and -0.299 R - 0.587 G + 0.886 B
    expected = 10 * np.mean([np.hypot(0.701, np.hypot(0.587, 0.114)), np.hypot(0.299, np.hypot(0.587, 0.886))])
    measured = quality(torch.from_numpy(grey))[0]
    assert measured[6].item() == pytest.approx(expected, rel=0.03)
    assert measured[5].item() == pytest.approx(10 * np.sqrt(0.299**2 + 0.587**2 + 0.114**2), rel=0.05)
    hairy = np.full((1, 128, 128, 3), 200, np.uint8)
    hairy[:, :, ::9] = (60, 40, 30)
    assert quality(torch.from_numpy(hairy))[0, 5:].max().item() < 1e-4
