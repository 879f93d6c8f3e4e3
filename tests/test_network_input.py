"""The input of a network: normalisation against torchvision, colour constancy against NumPy in float64."""

import numpy as np
import pytest
import torch
from torchvision.transforms import functional

from dermrw.config import Model
from dermrw.models import build_model
from dermrw.network_input import (
    IMAGENET,
    LARGEST_FACTOR,
    REFERENCE,
    Normalisation,
    normalisation_of,
    shades_of_grey,
    to_input,
)

CPU = torch.device("cpu")
CONSTANT = IMAGENET._replace(colour_constancy="shades_of_grey")


def pictures(count: int = 3, side: int = 40, seed: int = 0) -> np.ndarray:
    """Skin-coloured pictures uint8 `[N, H, W, 3]` with a darker spot and noise, no channel saturated."""
    rng = np.random.default_rng(seed)
    skin = np.array([190, 140, 130]) * rng.uniform(0.85, 1.05, (count, 1, 1, 3))
    x, y = np.meshgrid(*[np.linspace(-1, 1, side)] * 2)
    spot = 1 - 0.6 * np.exp(-4 * (x**2 + y**2))
    return np.clip(skin * spot[None, :, :, None] + rng.normal(0, 4, (count, side, side, 3)), 1, 254).astype(np.uint8)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("normalisation", [IMAGENET, Normalisation((0.5,) * 3, (0.5,) * 3)])
def test_the_input_is_normalised_as_torchvision_does(channels_last: bool, normalisation: Normalisation) -> None:
    pixels = torch.randint(0, 256, (2, 5, 6, 3), dtype=torch.uint8)
    x = to_input(pixels, CPU, normalisation, channels_last)
    scaled = pixels.permute(0, 3, 1, 2).double() / 255
    expected = functional.normalize(scaled, list(normalisation.mean), list(normalisation.std))
    torch.testing.assert_close(x.double(), expected, rtol=0, atol=1e-5)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert x.is_contiguous(memory_format=layout)


def test_the_light_is_the_minkowski_mean_of_each_channel() -> None:
    pixels = pictures()
    x = pixels.astype(np.float64)
    light = ((x / 255) ** 6).mean((1, 2)) ** (1 / 6)  # [N, 3]
    factors = np.array(REFERENCE) / light
    factors /= np.prod(factors, 1, keepdims=True) ** (1 / 3)
    expected = x * factors[:, None, None]
    found = shades_of_grey(torch.from_numpy(pixels).permute(0, 3, 1, 2).float()).permute(0, 2, 3, 1)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-2)
    after = ((found.double().numpy() / 255) ** 6).mean((1, 2)) ** (1 / 6)
    np.testing.assert_allclose(
        after / after.mean(1, keepdims=True), np.array([REFERENCE] * 3) / np.mean(REFERENCE), atol=1e-3
    )


@pytest.mark.parametrize("cast", [(1.15, 1.0, 1 / 1.15), (0.9, 1.0, 1.1), (0.8, 0.95, 0.9)])
def test_a_colour_cast_has_no_effect(cast: tuple[float, float, float]) -> None:
    pixels = pictures()
    changed = np.clip(np.rint(pixels * np.array(cast)), 0, 255).astype(np.uint8)
    plain, seen = (to_input(torch.from_numpy(p), CPU, CONSTANT) for p in (pixels, changed))
    assert (to_input(torch.from_numpy(changed), CPU, IMAGENET) - plain).abs().mean() > 0.05
    brightness = float(np.prod(cast)) ** (1 / 3)  # is not corrected
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET.mean, IMAGENET.std))
    torch.testing.assert_close(seen * std + mean, (plain * std + mean) * brightness, atol=5e-3, rtol=0)


def test_a_picture_depends_on_no_other_of_the_batch() -> None:
    pixels = torch.from_numpy(pictures())
    together = to_input(pixels, CPU, CONSTANT)
    alone = torch.cat([to_input(pixel[None], CPU, CONSTANT) for pixel in pixels])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 0, 3), (128, 128, 128)])
def test_no_channel_changes_by_more_than_the_largest_factor(colour: tuple[int, int, int]) -> None:
    pixels = np.full((1, 8, 8, 3), colour, np.uint8)
    seen = shades_of_grey(torch.from_numpy(pixels).permute(0, 3, 1, 2).float())[0, :, 0, 0].numpy()
    assert np.isfinite(seen).all()
    assert (seen <= np.array(colour) * LARGEST_FACTOR + 1e-3).all()
    assert (seen >= np.array(colour) / LARGEST_FACTOR - 1e-3).all()
    if max(colour) == 255:  # a picture without unsaturated pixels keeps its colours
        assert np.array_equal(seen, colour)


@pytest.mark.parametrize("white", [0.02, 0.3])
def test_glare_and_a_white_border_do_not_change_the_light(white: float) -> None:
    pixels = pictures(1)
    with_white = pixels.copy()
    with_white[:, : round(white * pixels.shape[1])] = 255
    plain, seen = (
        shades_of_grey(torch.from_numpy(p).permute(0, 3, 1, 2).float())[0, :, -1, -1] for p in (pixels, with_white)
    )
    torch.testing.assert_close(seen, plain, rtol=0.02, atol=0)


@pytest.mark.parametrize("backbone", ["small_cnn", "efficientnet_lite0"])
def test_the_network_states_its_normalisation(backbone: str) -> None:
    plain, constant = (
        normalisation_of(build_model(Model(backbone=backbone, weights="none", colour_constancy=key), 7)[0])
        for key in ("none", "shades_of_grey")
    )
    assert plain.colour_constancy == "none" and constant == plain._replace(colour_constancy="shades_of_grey")
    assert plain.mean == ((0.5,) * 3 if backbone == "efficientnet_lite0" else (0.485, 0.456, 0.406))
