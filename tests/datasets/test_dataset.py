"""Sets, caching, sampling and augmentation."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dermrw.config import Data, Model, load_config
from dermrw.datasets.augment import augmenter, example_seed
from dermrw.datasets.dataset import Splits, load_splits
from dermrw.datasets.pixels import ImageDataset, epoch_batches, in_order, loader
from dermrw.errors import UserError
from dermrw.images.preprocess import evaluation_pixels
from dermrw.models import build_model
from dermrw.training.device import Placement
from dermrw.training.logits import predict_logits

DATA = Data(name="sample", size=32, meta="rule")


@pytest.fixture(scope="module")
def splits(sample: Path) -> Splits:
    return load_splits(DATA, sample)


def test_a_stored_split_gives_the_same_sets(sample: Path, splits: Splits) -> None:
    again = load_splits(DATA, sample, splits.table.sample(frac=1, random_state=0).sort_values("image_id"))
    for one, other in zip(splits[2:6], again[2:6], strict=True):
        assert one.sources == other.sources and np.array_equal(one.labels, other.labels)
    stranger = splits.table.copy()
    stranger.loc[0, "image_id"] = "ISIC_9"
    with pytest.raises(UserError, match="ISIC_9"):
        load_splits(DATA, sample, stranger)


def test_images_that_a_run_was_trained_on_and_that_are_gone(sample: Path, splits: Splits, tmp_path: Path) -> None:
    root = Path(shutil.copytree(sample, tmp_path / "ham"))
    image = splits.test.table["image_id"].iloc[0]
    next(root.rglob(f"{image}.jpg")).unlink()
    with pytest.raises(UserError, match=f"lacks 1 of the [0-9]+ images in the run's split.csv, such as {image}: put"):
        load_splits(DATA, root, splits.table)


def test_evaluation_pixels_are_the_networks_input(splits: Splits) -> None:
    images, labels, index = next(in_order(ImageDataset(splits.test, DATA), 8))
    assert images.dtype == torch.uint8 and index.tolist() == list(range(8))
    assert labels.tolist() == splits.test.labels[:8].tolist()
    for image, source in zip(images, splits.test.sources, strict=False):
        assert np.array_equal(image, evaluation_pixels(source, 32))


def test_the_order_covers_every_image_once(splits: Splits) -> None:
    seen = torch.cat([index for _, _, index in in_order(ImageDataset(splits.train, DATA), 7)])
    assert seen.tolist() == list(range(len(splits.train)))


def test_augmentation_depends_on_seed_epoch_and_index_alone(splits: Splits) -> None:
    pixels, again = ImageDataset(splits.train, DATA, seed=3), ImageDataset(splits.train, DATA, seed=3)
    first = pixels[(2, 5)][0]
    pixels[(0, 9)]  # another draw in between
    assert torch.equal(first, pixels[(2, 5)][0]) and torch.equal(first, again[(2, 5)][0])
    others = [pixels[(3, 5)][0], pixels[(2, 6)][0], ImageDataset(splits.train, DATA, seed=4)[(2, 5)][0]]
    assert not any(torch.equal(first, other) for other in others)
    assert first.shape == (32, 32, 3)


def test_workers_give_the_same_batches_and_leave_the_random_stream_alone(splits: Splits) -> None:
    batches = epoch_batches(splits.train.labels, "shuffled", 16, 0, 1)[:3]
    before = torch.get_rng_state()
    alone, helped = ([b[0] for b in loader(ImageDataset(splits.train, DATA, 0), batches, 1, n)] for n in (0, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))


def test_the_cache_holds_no_augmented_image(splits: Splits) -> None:
    pixels = ImageDataset(splits.train, DATA, seed=0)
    pixels[(0, 0)]
    plain = ImageDataset(splits.train, DATA)
    assert np.array_equal(pixels.base[0], plain.base[0])
    assert np.array_equal(plain[(0, 0)][0], evaluation_pixels(splits.train.sources[0], 32))


def test_a_damaged_image_is_named(splits: Splits, tmp_path: Path) -> None:
    bad = tmp_path / "ISIC_1.jpg"
    bad.write_bytes(b"no picture")
    images = replace(splits.test, sources=[str(bad), *splits.test.sources[1:]])
    with pytest.raises(UserError, match=r"ISIC_1\.jpg"):
        ImageDataset(images, DATA)


def test_shuffled_epochs_hold_each_example_once() -> None:
    labels = np.repeat([0, 1], [90, 13])
    one, two = (epoch_batches(labels, "shuffled", 10, seed=0, epoch=e) for e in (0, 1))
    assert one.shape == (10, 10) and len(np.unique(one)) == 100
    assert not np.array_equal(one, two)
    assert np.array_equal(one, epoch_batches(labels, "shuffled", 10, seed=0, epoch=0))


def test_balanced_epochs_draw_classes_evenly_and_as_many_images() -> None:
    labels = np.repeat(np.arange(4), [9000, 900, 90, 10])
    batches = epoch_batches(labels, "balanced", 100, seed=0, epoch=0)
    assert batches.size == len(labels)  # an epoch costs what a plain one costs; one weight per example, not per class
    counts = np.bincount(labels[batches.ravel()])
    # each count is binomial(10000, 1/4): sd 43
    assert (np.abs(counts - 2500) < 5 * 43).all()
    within = np.bincount(batches.ravel(), minlength=len(labels))[-10:]  # the rarest class's images: 250 each, sd 16
    assert (np.abs(within - 250) < 5 * 16).all()


def test_a_batch_larger_than_the_set_is_the_set() -> None:
    assert epoch_batches(np.zeros(5, int), "shuffled", 64, 0, 0).shape == (1, 5)


@pytest.mark.parametrize("name", ["dermoscopy", "strong", "cutout", "cameras", "devices"])
def test_augmented_pixels_rest_on_their_seed_alone(name: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 53, 3), dtype=np.uint8)
    change, again = augmenter(name, 32), augmenter(name, 32)
    assert change is not None and again is not None
    first = change(pixels, 5)
    assert first.shape == (32, 32, 3) and first.dtype == np.uint8
    assert (change(pixels, 6) != first).any()
    np.testing.assert_array_equal(again(pixels, 5), first)


def test_cutout_blackens_one_square_in_seven_of_ten() -> None:
    change = augmenter("cutout", 32)
    assert change is not None
    pale = np.full((40, 53, 3), 200, dtype=np.uint8)
    black = np.array([(change(pale, seed) == 0).all(axis=2) for seed in range(400)])
    holes = black.any(axis=(1, 2))
    assert abs(holes.mean() - 0.7) < 5 * np.sqrt(0.7 * 0.3 / 400)
    rows, columns = black[holes].any(axis=2).sum(axis=1), black[holes].any(axis=1).sum(axis=1)
    assert (black[holes].sum(axis=(1, 2)) == 12 * 12).all() and (rows == 12).all() and (columns == 12).all()


def test_augment_none_and_seeds() -> None:
    assert augmenter("none", 32) is None
    seeds = {example_seed(s, e, i) for s in range(3) for e in range(10) for i in range(30)}
    assert len(seeds) == 900 and all(0 <= s < 2**32 for s in seeds)


def test_a_process_without_an_image_predicts_nothing(sample: Path) -> None:
    """Two validation images have nothing for the third of three processes."""
    config = load_config(None, ["data.name=sample", "data.size=32", "data.meta=rule"])
    validation = load_splits(config.data, sample).validation.part(lambda rows: rows[:0])
    model, _ = build_model(Model(backbone="small_cnn", weights="none"), 7)
    placement = Placement(torch.device("cpu"), "fp32", False)
    found = predict_logits(model, ImageDataset(validation, config.data), placement, 16)
    assert found.shape == (0, 7) and found.dtype == np.float32
