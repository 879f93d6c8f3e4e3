"""Data folders with more in them than the data: copies, masks, thumbnails, backups, odd names."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dermrw.config import Data
from dermrw.datasets.dataset import load_splits
from dermrw.datasets.ham10000 import read_folder, read_ham10000
from dermrw.datasets.readable import is_colourless, read_all, unlike
from dermrw.datasets.verify import check
from dermrw.diagnoses import COLUMNS, DX
from dermrw.errors import UserError

TABLE = "HAM10000_metadata.csv"


@pytest.fixture
def copy(sample: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sample, tmp_path / "ham"))


def mask(path: Path, size: tuple[int, int] = (160, 120)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros(size[::-1], np.uint8)
    pixels[40:80, 50:100] = 255
    Image.fromarray(pixels).save(path)


def thumbnail(path: Path, source: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as image:
        image.resize((28, 28)).save(path)


def first_image(root: Path) -> Path:
    return min((root / "HAM10000_images_part_1").iterdir())


def paths_of(root: Path) -> list[str]:
    return [os.path.relpath(path, root) for path in read_ham10000(root)["path"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "place", ["GroundTruth_masks/{}.png", "28x28/{}.jpg", "AAA/{}", "HAM10000_images_part_1/{}.png"]
)
def test_a_different_file_of_the_same_id_is_an_error_that_names_both(
    copy: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    image = first_image(copy)
    other = copy / place.format(image.stem)
    if "mask" in place or "part_1" in place:
        mask(other)
    else:
        thumbnail(copy / "x.jpg", image)
        other.parent.mkdir()
        (copy / "x.jpg").rename(other)
    for read in (read_ham10000, check, lambda root: load_splits(Data(name="sample", meta="rule"), root)):
        with pytest.raises(UserError, match=f"different files of image {image.stem}") as caught:
            read(copy)
        message = str(caught.value)
        assert os.path.relpath(image, copy) in message and os.path.relpath(other, copy) in message
        assert "(160 × 120 pixels)" in message and ("greyscale" in message or "28 × 28" in message)
        fix = message.partition(": ")[2]
        assert fix.startswith("delete one of them" if "part_1" in place else "move ") and other.parent.name in message
    assert "Complete" not in capsys.readouterr().out
    other.unlink()
    check(copy)


def test_the_folder_of_the_other_images_is_not_to_be_moved(copy: Path) -> None:
    image = first_image(copy)
    mask(copy / f"{image.stem}.png")
    with pytest.raises(UserError, match=f"{image.stem}.png .*: delete one of them, or move it out of"):
        read_ham10000(copy)


def test_many_ambiguous_images_are_counted(copy: Path) -> None:
    for image in sorted(copy.rglob("*.jpg"))[:7]:
        mask(copy / "masks" / f"{image.stem}.png")
    with pytest.raises(UserError, match="and of 6 more images"):
        read_ham10000(copy)


def test_files_of_the_same_size_are_compared_byte_for_byte(copy: Path) -> None:
    image = first_image(copy)
    data = bytearray(image.read_bytes())
    data[-20] ^= 1
    (copy / "other").mkdir()
    (copy / "other" / image.name).write_bytes(data)
    with pytest.raises(UserError, match="different files"):
        read_ham10000(copy)


def test_identical_copies_are_harmless_and_said(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = paths_of(copy)
    shutil.copytree(copy / "HAM10000_images_part_1", copy / "HAM10000_images_part_1 copy")
    (copy / "linked").symlink_to(copy / "HAM10000_images_part_2")
    n = len(list((copy / "HAM10000_images_part_1").iterdir()))
    assert paths_of(copy) == expected
    check(copy)
    out = capsys.readouterr().out
    assert f"Not used: {n} image files that are identical" in out and "HAM10000_images_part_1 copy" in out
    assert out.rstrip().endswith("Complete.")


def test_hidden_files_resource_forks_and_other_names_are_not_images(copy: Path) -> None:
    expected, image = paths_of(copy), first_image(copy)
    places = (
        f"__MACOSX/._{image.name}", f"__MACOSX/HAM10000_images_part_1/{image.name}", f".download/unpacked/{image.name}",
        f".thumbnails/{image.stem}.png", f"HAM10000_images_part_1/._{image.name}",
        f"HAM10000_segmentations_lesion_tschandl/{image.stem}_segmentation.png", f"masks/{image.stem} (1).png",
        f"notes/{image.stem}.txt", f"notes/{image.stem}.json", f"scores/{image.stem}.pkl",
    )  # fmt: skip
    for place in places:
        (copy / place).parent.mkdir(parents=True, exist_ok=True)
        (copy / place).write_bytes(b"neither a picture nor a table")
    assert paths_of(copy) == expected


def test_the_nearest_table_wins_and_is_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = read_ham10000(copy)
    (copy / "Backup").mkdir()
    pd.read_csv(copy / TABLE).head(39).to_csv(copy / "Backup" / TABLE, index=False)
    (copy / ".ipynb_checkpoints").mkdir()
    shutil.copy(copy / "Backup" / TABLE, copy / ".ipynb_checkpoints" / TABLE)
    pd.testing.assert_frame_equal(read_ham10000(copy), expected)
    (copy / TABLE).rename(copy / "HAM10000_metadata")  # the backup's name comes first in the order of preference
    pd.testing.assert_frame_equal(read_ham10000(copy), expected)
    check(copy)
    out = capsys.readouterr().out
    assert "\ntable: HAM10000_metadata\n" in out and f"Not used: Backup/{TABLE}." in out
    load_splits(Data(name="sample", meta="rule"), copy, announce=True)
    out = capsys.readouterr().out
    line = "table HAM10000_metadata; images in HAM10000_images_part_1 (100), HAM10000_images_part_2 (100)"
    assert line in out and f"Not used: Backup/{TABLE}." in out


@pytest.mark.parametrize("names", [(TABLE, "HAM10000_metadata.tab"), (f"A/{TABLE}", f"B/{TABLE}")])
def test_equally_near_tables_must_agree(copy: Path, names: tuple[str, str]) -> None:
    table = pd.read_csv(copy / TABLE, dtype=str)
    (copy / TABLE).unlink()
    for name in names:
        (copy / name).parent.mkdir(exist_ok=True)
        table.sample(frac=1, random_state=0).to_csv(copy / name, sep="\t" if name.endswith("tab") else ",", index=False)
    assert len(read_folder(copy).table) == 200
    table.head(39).to_csv(copy / names[1], index=False)
    with pytest.raises(UserError, match=rf"two tables .* {names[0]} \(200 rows\) and {names[1]} \(39 rows\): move one"):
        read_ham10000(copy)


def test_tables_of_both_layouts_must_agree(copy: Path) -> None:
    table = pd.read_csv(copy / TABLE)
    truth = pd.DataFrame(np.eye(7)[[DX.index(dx) for dx in table["dx"]]], columns=list(COLUMNS))
    truth.insert(0, "image", table["image_id"])
    path = copy / "ISIC2018_Task3_Training_GroundTruth.csv"
    truth.to_csv(path, index=False)
    assert read_folder(copy).unused == [path]
    truth.head(100).to_csv(path, index=False)
    with pytest.raises(UserError, match="two tables with different contents"):
        read_ham10000(copy)
    (copy / TABLE).rename(copy / "HAM10000_metadata (1).csv")
    path.unlink()
    with pytest.raises(UserError, match=r"HAM10000_metadata \(1\)\.csv must be named HAM10000_metadata\.csv"):
        read_ham10000(copy)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPG", ".mpo", "", ".dat", ".photo"])
def test_images_are_found_by_content(copy: Path, suffix: str) -> None:
    for image in sorted(copy.rglob("*.jpg"))[:5]:
        image.rename(image.with_suffix(suffix))
    table = read_ham10000(copy)
    assert (table["path"] != "").all() and not read_all(table).unreadable


@pytest.mark.parametrize(("suffix", "form"), [(".avif", "AVIF"), ("", "AVIF"), (".WebP", "WEBP"), (".tif", "TIFF")])
def test_phones_formats_train(copy: Path, suffix: str, form: str) -> None:
    image = first_image(copy)
    with Image.open(image) as picture:
        picture.save(image.with_suffix(suffix), form)
    image.unlink()
    table = read_ham10000(copy)
    assert not read_all(table[table["image_id"] == image.stem]).unreadable


@pytest.mark.parametrize("suffix", [".HEIC", "", ".dat"])
def test_a_damaged_heic_file_is_named(copy: Path, suffix: str) -> None:
    image = first_image(copy)
    image.unlink()
    image.with_suffix(suffix).write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 400)
    (bad,) = read_all(read_ham10000(copy)).unreadable
    assert bad[0] == image.stem and image.with_suffix(suffix).name in bad[1]


def test_only_files_named_like_an_id_are_opened(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []

    def note(path: Path) -> bool:
        opened.append(path)
        return True

    monkeypatch.setattr("dermrw.labelled.folder.is_image_file", note)
    image = first_image(copy)
    image.rename(image.with_suffix(""))
    (copy / "HAM10000_images_part_1" / "Thumbs.db").write_bytes(b"")
    read_ham10000(copy)
    assert opened == [image.with_suffix("")]


def test_masks_and_thumbnails_in_the_place_of_images_are_warned_of(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = sorted(copy.rglob("*.jpg"))
    for image in images[:3]:
        mask(copy / "masks" / f"{image.stem}.png")
        image.unlink()
    for image in images[3:7]:
        thumbnail(copy / "28x28" / image.name, image)
        image.unlink()
    check(copy)  # a warning, since the user may have such images
    out = capsys.readouterr().out
    assert "200 images looked at" in out and "       3  masks" in out and "       4  28x28" in out
    assert f"warning: 3 of 200 images are grey or have only a few colours, as masks have: masks (3); the first is masks/{images[0].stem}.png (160 × 120" in out  # fmt: skip  # noqa: E501
    assert "warning: 4 of 200 images are less than half as large as most (160 × 120 pixels): 28x28 (4);" in out
    assert out.rstrip().endswith("Complete, with 2 warnings (above).")
    load_splits(Data(name="sample", meta="rule"), copy)
    assert capsys.readouterr().out.count("warning: ") == 2
    load_splits(Data(name="sample", meta="rule", skip_unreadable=True), copy)
    assert capsys.readouterr().out.count("warning: ") == 2


def test_a_folder_of_thumbnails_alone(copy: Path) -> None:
    for image in list(copy.rglob("*.jpg")):
        thumbnail(image, image)
    warnings = unlike(read_all(read_ham10000(copy)).pictures, copy)
    assert len(warnings) == 1 and "200 of 200 images are as small as thumbnails" in warnings[0]


def test_colourless_images() -> None:
    rng = np.random.default_rng(0)
    grey = np.repeat(rng.integers(0, 256, (90, 120, 1), np.uint8), 3, axis=2)
    labels = np.array([[200, 30, 30], [0, 90, 0], [0, 0, 90]], np.uint8)[rng.integers(0, 3, (90, 120))]
    assert is_colourless(grey) and is_colourless(labels) and is_colourless(np.zeros((2, 2, 3), np.uint8))
    assert not is_colourless(rng.integers(0, 256, (90, 120, 3), np.uint8))


def edited(change: Callable[[str], str | bytes]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        data = change(path.read_text())
        path.write_bytes(data if isinstance(data, bytes) else data.encode())

    return write


@pytest.mark.parametrize(
    "write",
    [
        edited(lambda text: text.replace("\n", ",\n")),
        edited(lambda text: text.replace(",", ";").replace(".0", ",0")),
        edited(lambda text: text.replace(",", "\t")),
        edited(lambda text: text.encode("utf-16")),
        edited(lambda text: text.encode("utf-8-sig")),
        edited(lambda text: text.replace("\n", "\r\n")),
        edited(lambda text: text.replace("\n", "\r")),
        edited(lambda text: "".join(",".join(f'"{c}"' for c in line.split(",")) + "\n" for line in text.splitlines())),
        edited(lambda text: text.replace(",nv,", ",NV,").replace(",mel,", ", Mel ,")),
        edited(lambda text: text.replace("image_id", "Image_ID").replace("dx,dx_type,age", "DX,DX_type,Age")),
    ],
    ids=["commas", "semicolons", "tabs", "UTF-16", "BOM", "CRLF", "CR", "quoted", "upper-case labels", "header"],
)
def test_metadata_as_other_programs_save_it(copy: Path, write: Callable[[Path], None]) -> None:
    expected = read_ham10000(copy)
    write(copy / TABLE)
    pd.testing.assert_frame_equal(read_ham10000(copy), expected)
