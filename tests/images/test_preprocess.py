"""The evaluation pixels against Pillow used by hand, and what people really feed them."""

import contextlib
import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from dermrw.errors import UserError
from dermrw.images.preprocess import evaluation_pixels, read_image, resize, resized_pixels


def picture(height: int = 45, width: int = 60) -> Image.Image:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def saved(image: Image.Image, form: str = "PNG", **options: object) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    buffer.seek(0)
    return buffer


def test_resize_and_crop_are_pillows() -> None:
    image = picture(450, 600)
    expected = np.asarray(image.resize((299, 224), Image.Resampling.BILINEAR))[:, 37 : 37 + 224]
    assert np.array_equal(evaluation_pixels(saved(image), 224), expected)


@pytest.mark.parametrize(("height", "width"), [(45, 60), (60, 45), (32, 32), (16, 16), (33, 330)])
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
    assert np.array_equal(np.asarray(read_image(saved(image, exif=exif))), np.asarray(upright))


def test_grey_becomes_rgb() -> None:
    grey = np.asarray(picture().convert("L"))
    as_rgb = np.stack([grey] * 3, axis=-1)
    assert np.array_equal(np.asarray(read_image(saved(Image.fromarray(grey)))), as_rgb)
    sixteen = grey.astype(np.uint16) * 257
    assert np.array_equal(np.asarray(read_image(saved(Image.fromarray(sixteen)))), as_rgb)
    assert np.array_equal(np.asarray(read_image(saved(Image.fromarray(sixteen), "TIFF"))), as_rgb)
    black_and_white = picture().convert("1")
    assert np.array_equal(np.asarray(read_image(saved(black_and_white))), np.asarray(black_and_white.convert("RGB")))


def test_transparency_is_laid_on_white() -> None:
    solid = np.asarray(picture(), dtype=np.float64)
    for alpha in (0, 51, 255):
        clear = picture().convert("RGBA")
        clear.putalpha(alpha)
        expected = solid * alpha / 255 + 255 * (1 - alpha / 255)
        assert np.abs(np.asarray(read_image(saved(clear)), dtype=np.float64) - expected).max() <= 1
    palette = picture().convert("P")
    first = np.asarray(palette) == 0
    assert (np.asarray(read_image(saved(palette, transparency=0)))[first] == 255).all()


def test_cmyk_becomes_rgb() -> None:
    rng = np.random.default_rng(1)
    inks = rng.integers(0, 256, (40, 60, 4), dtype=np.uint8)
    paper = 255 - inks.astype(np.float64)
    expected = paper[..., :3] * paper[..., 3:] / 255  # what is left of white light after the ink and the black
    actual = np.asarray(read_image(saved(Image.fromarray(inks, "CMYK"), "TIFF")), dtype=np.float64)
    assert np.abs(actual - expected).max() <= 1
    # Adobe's JPEGs hold inverted inks; Pillow writes them so
    actual = np.asarray(read_image(saved(Image.new("CMYK", (40, 40), (255, 0, 0, 0)), "JPEG", quality=100)))
    assert np.abs(actual.astype(int) - (0, 255, 255)).max() <= 3


def test_sixteen_bits_a_colour_become_eight() -> None:
    cv2 = pytest.importorskip("cv2")
    colour = np.asarray(picture())
    _, data = cv2.imencode(".png", colour[..., ::-1].astype(np.uint16) * 257)
    assert np.array_equal(np.asarray(read_image(io.BytesIO(data.tobytes()))), colour)


def test_pictures_and_arrays_are_taken_as_they_are() -> None:
    image = picture()
    assert np.array_equal(np.asarray(read_image(image)), np.asarray(image))
    assert np.array_equal(np.asarray(read_image(np.asarray(image))), np.asarray(image))
    image.load()  # still open
    with pytest.raises(UserError, match="uint8"):
        read_image(np.zeros((20, 20), np.float32))


def test_bad_files_are_named(tmp_path: Path) -> None:
    whole = saved(picture(), "JPEG").getvalue()
    for name, data in {"empty.jpg": b"", "text.jpg": b"hello", "cut.jpg": whole[: len(whole) // 2]}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(UserError, match="absent"):
        read_image(tmp_path / "absent.jpg")
    with pytest.raises(UserError, match=f"{tmp_path.name} is a folder"):
        read_image(tmp_path)


@pytest.mark.parametrize(("height", "width", "fault"), [(1, 1, "too few"), (1, 5000, "too few"), (20, 4000, "narrow")])
def test_what_no_photograph_is_like_is_refused(height: int, width: int, fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        read_image(picture(height, width))


def test_only_formats_of_photographs_are_opened(tmp_path: Path) -> None:
    picture().save(tmp_path / "drawing.jpg", "EPS")  # Pillow would call Ghostscript for it
    with pytest.raises(UserError, match=r"drawing\.jpg is not an image"):
        read_image(tmp_path / "drawing.jpg")
    Image.fromarray(np.zeros((20, 20), np.float32)).save(tmp_path / "real.tif")
    with pytest.raises(UserError, match=r"real\.tif holds floating-point"):
        read_image(tmp_path / "real.tif")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP", "BMP"])
def test_damaged_files_are_a_sentence(form: str) -> None:
    whole = bytearray(saved(picture(), form).getvalue())
    rng = np.random.default_rng(2)
    for _ in range(40):
        damaged = whole.copy()
        for place in rng.integers(0, len(whole), 8):
            damaged[place] = rng.integers(256)
        with contextlib.suppress(UserError):  # nothing but this, or a picture
            assert read_image(io.BytesIO(damaged[: rng.integers(1, len(whole) + 1)])).mode == "RGB"


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (12_000, 9_000)).save(path)
    with pytest.raises(UserError, match="bomb"):
        read_image(path)


@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0", b"Exif\0\0MM", b"xxxxxxxx", b"Exif\0\0II*\0\xff\xff\xff\xff", b""])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_exif_that_cant_be_read_leaves_the_picture_as_it_is(exif: bytes, form: str) -> None:
    file = saved(picture(), form, exif=exif)
    with Image.open(saved(picture(), form)) as plain:
        assert np.array_equal(np.asarray(read_image(file)), np.asarray(plain.convert("RGB")))


def test_whatever_a_decoder_raises_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise struct.error("required argument is not an integer")

    monkeypatch.setattr(PngImageFile, "load", broken)
    with pytest.raises(UserError, match="damaged or unreadable: required argument"):
        read_image(saved(picture()))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "TIFF"])
def test_empty_and_cut_files_are_named(form: str, tmp_path: Path) -> None:
    path = tmp_path / "a.picture"
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.picture is an empty file: copy it again"):
        read_image(path)
    content = saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 90, 3), np.uint8)), form).getvalue()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(UserError, match=r"damaged or unreadable: .*(ends too early|cannot be read)") as raised:
        read_image(path)
    assert "bytes" not in str(raised.value)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    for name, head in (("a.jpg", b"\xff\xd8\xff"), ("a.tif", b"II*\0"), ("a.dcm", bytes(128) + b"DICM")):
        with (tmp_path / name).open("wb") as file:
            file.write(head)
            file.truncate(2**36)  # sparse
        with pytest.raises(UserError, match=f"{name} has more than 500 MB"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("quality", [75, 100])
def test_a_copy_that_was_not_finished_is_named(quality: int, tmp_path: Path) -> None:
    """It has its full size. A decoder can take zeros for a grey picture."""
    whole = saved(picture(480, 640), "JPEG", quality=quality, subsampling=0).getvalue()
    path = tmp_path / "half.jpg"
    path.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    with pytest.raises(UserError, match=r"the copy was not finished|damaged or unreadable"):
        read_image(path)
    path.write_bytes(whole + bytes(5000))  # zeros after the end of the picture are harmless
    assert read_image(path).tobytes() == read_image(io.BytesIO(whole)).tobytes()


def test_an_image_of_the_caller_is_not_changed() -> None:
    image = picture()
    image.info = {"xmp": b"<x/>", "dpi": (72, 72)}
    read_image(image)
    assert image.info == {"xmp": b"<x/>", "dpi": (72, 72)} and image.mode == "RGB"
