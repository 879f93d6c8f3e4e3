"""The evaluation pixels against Pillow used by hand, and what people really feed them."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dermrw.errors import UserError
from dermrw.pixels import evaluation_pixels, read_image, resize, resized_pixels


def picture(height: int = 45, width: int = 60) -> Image.Image:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def saved(image: Image.Image, form: str = "PNG", **options: object) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)  # type: ignore[arg-type]
    buffer.seek(0)
    return buffer


def test_resize_and_crop_are_pillows() -> None:
    image = picture(450, 600)
    expected = np.asarray(image.resize((299, 224), Image.Resampling.BILINEAR))[:, 37 : 37 + 224]
    assert np.array_equal(evaluation_pixels(saved(image), 224), expected)


@pytest.mark.parametrize(("height", "width"), [(45, 60), (60, 45), (32, 32), (1, 1), (33, 400)])
def test_shapes(height: int, width: int) -> None:
    image = picture(height, width)
    assert min(resize(image, 32).size) == 32
    pixels = evaluation_pixels(saved(image), 32)
    assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8 and pixels.flags["C_CONTIGUOUS"]


def test_proportions_are_kept() -> None:
    assert resized_pixels(saved(picture(450, 600)), 96).shape == (96, 128, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    upright = picture()
    stored = {  # how a camera that holds the picture this way would have stored it
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = upright if stored is None else upright.transpose(stored)
    assert np.array_equal(read_image(saved(image, exif=exif)), upright)


def test_other_modes_become_rgb() -> None:
    grey = np.asarray(picture().convert("L"))
    as_rgb = np.stack([grey] * 3, axis=-1)
    assert np.array_equal(read_image(saved(Image.fromarray(grey))), as_rgb)
    sixteen = grey.astype(np.uint16) * 257
    assert np.array_equal(read_image(saved(Image.fromarray(sixteen))), as_rgb)
    clear = picture().convert("RGBA")
    clear.putalpha(0)
    assert (np.asarray(read_image(saved(clear))) == 255).all()
    assert read_image(saved(picture().convert("CMYK"), "TIFF")).mode == "RGB"
    assert read_image(saved(picture().convert("P"))).mode == "RGB"


def test_bad_files_are_named(tmp_path: Path) -> None:
    whole = saved(picture(), "JPEG").getvalue()
    for name, data in {"empty.jpg": b"", "text.jpg": b"hello", "cut.jpg": whole[: len(whole) // 2]}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(UserError, match="absent"):
        read_image(tmp_path / "absent.jpg")
    with pytest.raises(UserError, match=tmp_path.name):
        read_image(tmp_path)


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (12_000, 9_000)).save(path)
    with pytest.raises(UserError, match="bomb"):
        read_image(path)
