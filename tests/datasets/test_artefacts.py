"""The drawn artefacts, and `data.augment=devices`, which uses them."""

from collections import Counter
from typing import Any

import albumentations
import numpy as np
import pytest
import torch

from dermrw.config import load_config
from dermrw.datasets import artefacts
from dermrw.datasets.augment import FILE, SCENE, augmenter, devices, example_seed
from dermrw.datasets.dataset import Splits, load_splits
from dermrw.datasets.pixels import ImageDataset, epoch_batches, loader
from dermrw.datasets.sample_drawing import draw_lesion
from dermrw.images.preprocess import center_crop

DRAWS = [draw for draw, _ in SCENE + FILE]


def lesion(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng
    return draw_lesion("nv", rng(1), rng(2), height, width)


@pytest.mark.parametrize("draw", DRAWS, ids=lambda draw: draw.__name__)
@pytest.mark.parametrize("shape", [(32, 32), (90, 120), (161, 97)])
def test_an_artefact_changes_the_picture_and_rests_on_the_generator_alone(
    draw: artefacts.Draw, shape: tuple[int, int]
) -> None:
    pixels = lesion(*shape)
    before, changed = pixels.copy(), 0
    for seed in range(20):
        drawn = draw(pixels, np.random.default_rng(seed))
        assert drawn.shape == pixels.shape and drawn.dtype == np.uint8
        assert np.array_equal(draw(pixels, np.random.default_rng(seed)), drawn)
        changed += not np.array_equal(drawn, pixels)
    assert np.array_equal(pixels, before)  # a cached picture stays as it is
    assert changed >= 14


def area(draw: artefacts.Draw, seed: int) -> float:
    """Share of the pixels that an artefact changes visibly."""
    pixels = lesion(120, 160)
    drawn = draw(pixels, np.random.default_rng(seed))
    return float((np.abs(drawn.astype(int) - pixels) > 8).any(2).mean())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("draw", "most"),
    [
        (artefacts.hairs, 0.25), (artefacts.ink, 0.2), (artefacts.ruler, 0.15), (artefacts.bubbles, 0.3),
        (artefacts.sticker, 0.3), (artefacts.border, 0.25), (artefacts.letterbox, 0.3),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_most_of_the_picture_stays_visible(draw: artefacts.Draw, most: float) -> None:
    areas = [area(draw, seed) for seed in range(60)]
    assert max(areas) < most and np.median(areas) > 0.001


def test_round_fields_and_dark_corners() -> None:
    pixels = np.full((100, 100, 3), 180, np.uint8)
    for seed in range(30):
        rng = np.random.default_rng
        for drawn in (artefacts.dark_corners(pixels, rng(seed), white=0), artefacts.round_field(pixels, rng(seed))):
            assert (drawn[45:55, 45:55] == 180).all()
        assert artefacts.dark_corners(pixels, rng(seed), radius=(0.45, 0.5), white=0)[0, 0].max() < 40
        assert artefacts.dark_corners(pixels, rng(seed), radius=(0.45, 0.5), white=1)[0, 0].min() > 220


@pytest.mark.parametrize(("colour", "low", "high"), [("black", 0, 15), ("white", 240, 255)])
def test_borders_of_a_colour(colour: Any, low: int, high: int) -> None:
    pixels = np.full((200, 300, 3), 128, np.uint8)
    for seed in range(30):
        for drawn in (
            artefacts.border(pixels, np.random.default_rng(seed), (0.02, 0.02), colour),
            artefacts.letterbox(pixels, np.random.default_rng(seed), colour),
        ):
            framed = drawn[(drawn != 128).any(2)]
            assert low <= framed.min(initial=high) and framed.max(initial=low) <= high
        drawn = artefacts.border(pixels, np.random.default_rng(seed), (0.02, 0.02), colour)
        assert (drawn[4:-4, 4:-4] == 128).all()  # 2 % of 200 pixels


def test_each_effect_has_its_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in 600 pictures; the tolerance is five standard deviations."""
    n, counts = 600, Counter[str]()

    def counted(name: str, function: Any) -> Any:
        def count(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return function(*args, **kwargs)

        return count

    expected = {"D4": 1.0, "RandomResizedCrop": 1.0}
    compose = devices(32)
    for transform in compose.transforms:
        parts = transform.transforms if isinstance(transform, albumentations.OneOf) else [transform]
        for part in parts:
            if hasattr(part, "draws"):
                expected |= {draw.__name__: p for draw, p in part.draws}
                part.draws = [(counted(draw.__name__, draw), p) for draw, p in part.draws]
            else:
                name = type(part).__name__
                expected[name] = transform.p
                monkeypatch.setattr(part, "apply_with_params", counted(name, part.apply_with_params))
    pixels = lesion(32, 43)
    for seed in range(n):
        compose.set_random_seed(example_seed(0, 0, seed))
        assert compose(image=pixels)["image"].shape == (32, 32, 3)
    for name, p in expected.items():
        assert abs(counts[name] / n - p) <= 5 * np.sqrt(p * (1 - p) / n), name
    assert len(expected) == 22 and min(expected.values()) >= 0.02


def test_devices_rest_on_the_seed_alone_whatever_the_number_of_workers(splits: Splits) -> None:
    pixels = lesion(48, 64)
    change, again = augmenter("devices", 48), augmenter("devices", 48)
    assert change is not None and again is not None
    seeds = [example_seed(1, 2, i) for i in range(60)]
    drawn = [change(pixels, seed) for seed in seeds]
    assert all(picture.shape == (48, 48, 3) and picture.dtype == np.uint8 for picture in drawn)
    for i in reversed(range(60)):
        np.testing.assert_array_equal(again(pixels, seeds[i]), drawn[i])
    assert len({picture.tobytes() for picture in drawn}) == 60
    data = load_config(None, ["data.size=32", "data.augment=devices"]).data
    batches = epoch_batches(splits.train.labels, "shuffled", 16, 0, 1)[:4]
    alone, helped = ([b[0] for b in loader(ImageDataset(splits.train, data, 0), batches, 1, n)] for n in (0, 2))
    assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))


@pytest.fixture
def splits(sample: Any) -> Splits:
    return load_splits(load_config(None, ["data.meta=rule"]).data, sample)


def test_a_lesion_stays_recognisable() -> None:
    """On average the middle of the picture stays darker than the rim of skin, as the drawn lesion is."""
    pixels, change = lesion(96, 128), augmenter("devices", 96)
    assert change is not None
    original = center_crop(pixels, 96).mean(2)
    pictures = np.stack([change(pixels, example_seed(3, 0, i)) for i in range(80)]).mean(3)
    contrast = [picture[:8].mean() - picture[40:56, 40:56].mean() for picture in (original, np.median(pictures, 0))]
    assert contrast[0] > 20 and contrast[1] > 0.4 * contrast[0]
