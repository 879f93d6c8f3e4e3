"""Pixels in memory, on disk and decoded each time are the same."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from dermrw.config import NOT_PART_OF_A_RESULT, Data
from dermrw.datasets import pixel_cache as module
from dermrw.datasets.dataset import ImageSet, load_splits
from dermrw.datasets.pixel_cache import DecodedPixels, DiskPixels, choose_cache
from dermrw.datasets.pixels import ImageDataset, epoch_batches, in_order, loader
from dermrw.errors import UserError
from dermrw.images.preprocess import PLAIN, Framing, center_crop, evaluation_pixels, resized_pixels

DATA = Data(name="sample", size=32, meta="rule")


@pytest.fixture(scope="module")
def images(sample: Path) -> ImageSet:
    return load_splits(DATA, sample).train.part(lambda rows: rows[:50])


def cached(cache: str, folder: Path) -> Data:
    return DATA.model_copy(update={"cache": cache, "cache_folder": str(folder)})


@pytest.mark.slow
def test_all_three_give_the_same_batches(images: ImageSet, tmp_path: Path) -> None:
    batches = epoch_batches(images.labels, "shuffled", 16, 0, 1)
    augmented, plain = [], []
    for cache, workers in (("memory", 0), ("disk", 0), ("disk", 2), ("none", 0), ("none", 2)):
        pixels = ImageDataset(images, cached(cache, tmp_path), seed=3)
        augmented.append(torch.cat([batch[0] for batch in loader(pixels, batches, 1, workers)]))
        parts = list(in_order(ImageDataset(images, cached(cache, tmp_path)), 16))
        plain.append([torch.cat(part) for part in zip(*parts, strict=True)])
    assert all(torch.equal(augmented[0], other) for other in augmented[1:])
    assert all(torch.equal(a, b) for other in plain[1:] for a, b in zip(plain[0], other, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("framing", [Framing("find"), Framing("none", "whole"), Framing("find", "whole")])
def test_all_three_keep_the_pixels_of_a_framing(framing: Framing, images: ImageSet, tmp_path: Path) -> None:
    """Evaluation sees the same pixels as `evaluation_pixels`; augmentation starts from the uncropped content."""
    framed = tmp_path / "framed.png"
    with Image.open(images.sources[0]) as image:
        bordered = Image.new("RGB", (image.width + 40, image.height + 40))
        bordered.paste(image, (20, 20))
    bordered.save(framed)
    images = replace(images, sources=[str(framed), *images.sources[1:]])
    settings = {"field_of_view": framing.field_of_view, "crop": framing.crop}
    expected = np.stack([evaluation_pixels(source, 32, framing) for source in images.sources])
    assert not np.array_equal(expected[0], evaluation_pixels(str(framed), 32))
    start = [resized_pixels(source, 32, framing) for source in images.sources]
    for cache in ("memory", "disk", "none"):
        data = cached(cache, tmp_path).model_copy(update=settings)
        for pixels in (
            ImageDataset(images, data),
            ImageDataset(images, data.model_copy(update={"augment": "none"}), 0),
        ):
            assert np.array_equal(torch.cat([batch for batch, _, _ in in_order(pixels, 16)]), expected)
        augmented = ImageDataset(images, data, seed=3)
        assert all(np.array_equal(augmented.base[i], pixels) for i, pixels in enumerate(start))
    names = {DiskPixels(images.sources, 32, tmp_path, False, f).file for f in (PLAIN, framing)}
    assert len(names) == 2


def test_the_file_is_used_again_until_an_image_changes(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    first = DiskPixels(images.sources, 32, folder, False)
    assert {path.suffix for path in folder.iterdir()} >= {".pixels", ".npy"}
    with monkeypatch.context() as patch:
        patch.setattr(module, "resized_pixels", None)
        again = DiskPixels(images.sources, 32, folder, False)
    assert np.array_equal(again[7], first[7]) and not again[7].flags.writeable
    assert np.array_equal(pickle.loads(pickle.dumps(again))[7], first[7])
    copy = tmp_path / "a.png"
    for value in (1, 2):
        Image.new("RGB", (50, 40), (value, 0, 0)).save(copy)
        os.utime(copy, ns=(0, value))
        assert (DiskPixels([str(copy)], 32, folder, False)[0] == [value, 0, 0]).all()
    assert len(list(folder.glob("*.pixels"))) == 3
    assert DiskPixels(images.sources, 48, folder, False).file != first.file


def test_a_file_that_is_not_complete_is_written_again(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [0]

    def crashing(*arguments: object) -> np.ndarray:
        calls[0] += 1
        if calls[0] == 20:
            raise RuntimeError("power cut")
        return resized(*arguments)  # type: ignore[arg-type]

    resized = module.resized_pixels
    with monkeypatch.context() as patch:
        patch.setattr(module, "resized_pixels", crashing)
        with pytest.raises(RuntimeError, match="power cut"):
            DiskPixels(images.sources, 32, tmp_path, False)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".lock"}
    whole = DiskPixels(images.sources, 32, tmp_path, False)
    expected = DecodedPixels(images.sources, 32)
    content = whole.file.read_bytes()
    whole.file.write_bytes(content[:-1])
    with pytest.raises(UserError, match="cut short"):
        whole[len(images) - 1]
    again = DiskPixels(images.sources, 32, tmp_path, False)
    assert again.file.read_bytes() == content
    assert all(np.array_equal(again[i], expected[i]) for i in range(len(images)))


def test_old_files_are_removed(images: ImageSet, tmp_path: Path) -> None:
    first, second = (DiskPixels(images.sources[:n], 32, tmp_path, False) for n in (3, 4))
    os.utime(first.file.with_suffix(".npy"), (0, 0))
    DiskPixels(images.sources[:5], 32, tmp_path, False)
    assert not first.file.exists() and second.file.exists()


def test_a_full_disk_and_a_damaged_image(images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = tmp_path / "ISIC_1.jpg"
    bad.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"ISIC_1\.jpg"):
        ImageDataset(replace(images, sources=[str(bad), *images.sources[1:]]), cached("disk", tmp_path / "c"))
    monkeypatch.setattr(module, "free_bytes", lambda _: 1000)
    with pytest.raises(UserError, match=r"can't be written to .*c \(.* needed, 0 MB free\): .*data\.cache_folder"):
        ImageDataset(images, cached("disk", tmp_path / "c"))
    assert not list((tmp_path / "c").glob("*.pixels"))


@pytest.mark.parametrize(
    ("memory", "disk", "once", "expected"),
    [
        (1e9, 1e12, False, "memory"),
        (1e8, 1e12, False, "disk"),
        (1e8, 1e12, True, "none"),
        (1e8, 1e9, False, "none"),
    ],
)
def test_auto_takes_what_fits(
    memory: float, disk: float, once: bool, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "available_memory", lambda: memory)
    monkeypatch.setattr(module, "free_bytes", lambda _: disk)
    folder = tmp_path / "not" / "yet"
    choice = choose_cache("auto", 1000, 224, folder, once)  # 0.2 GB
    assert choice.where == expected and "\n" not in choice.sentence
    assert [choose_cache(where, 1000, 224, folder, once).where for where in ("memory", "disk", "none")] == [
        "memory", "disk", "none",
    ]  # fmt: skip
    assert not folder.exists()


def test_the_choice_is_printed(images: ImageSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for cache in ("memory", "disk", "none"):
        ImageDataset(images, cached(cache, tmp_path), progress="the training split")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Reading")]
    assert [line.partition("; ")[2].partition(" (")[0] for line in lines] == [
        "kept in memory", f"kept decoded in {tmp_path}", "decoded in each epoch",
    ]  # fmt: skip


def test_a_cgroup_and_several_processes_limit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = module.available_memory()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert 0 < module.available_memory() < whole / 2


def test_an_epoch_keeps_no_pixels(images: ImageSet, tmp_path: Path) -> None:
    """An epoch over pixels of 40 MB raises the memory of the process by far less."""
    many = ImageSet(images.table, np.zeros(400, np.int64), images.sources * 8)
    for cache in ("disk", "none"):
        data = cached(cache, tmp_path).model_copy(update={"size": 160})
        pixels = ImageDataset(many, data, seed=0)
        before = peak = resident()
        for batch in loader(pixels, np.arange(400).reshape(-1, 20), 0):
            peak = max(peak, resident())
            assert batch[0].shape == (20, 160, 160, 3)
        assert peak - before < 20e6, cache


def resident() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def test_the_cache_is_not_part_of_a_result() -> None:
    assert {"data.cache", "data.cache_folder"} <= NOT_PART_OF_A_RESULT


@pytest.mark.parametrize(("size", "framing"), [(32, PLAIN), (32, Framing("none", "whole")), (48, PLAIN), (64, PLAIN)])
def test_arrays_have_the_size_that_is_asked_for(size: int, framing: Framing, tmp_path: Path) -> None:
    """CIFAR-10's images are arrays of 32 px, whatever `data.size` is."""
    arrays = [np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8) for i in range(3)]
    table = pd.DataFrame({"image_id": list("abc"), "lesion_id": list("abc"), "dx": ["nv"] * 3})
    images = ImageSet(table, np.zeros(3, np.int64), arrays)
    expected = np.stack([evaluation_pixels(array, size, framing) for array in arrays])
    assert size != 32 or np.array_equal(expected, np.stack(arrays))
    for cache in ("memory", "disk", "none"):
        data = cached(cache, tmp_path).model_copy(update={"size": size, "crop": framing.crop})
        (batch,) = in_order(ImageDataset(images, data), 3)
        assert np.array_equal(batch[0], expected), cache


def test_pixels_that_are_too_small_have_no_middle() -> None:
    with pytest.raises(ValueError, match="pixels of 32 × 40 have no middle of 40 × 40"):
        center_crop(np.zeros((40, 32, 3), np.uint8), 40)
