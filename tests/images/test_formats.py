"""A picture's format is recognised by its content."""

import contextlib
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from dermrw.datasets.sample_drawing import draw_lesion
from dermrw.errors import UserError
from dermrw.images.colour import jpeg_states_profile
from dermrw.images.formats import HEAD, format_of, jpeg_fault
from dermrw.images.iso_media import nclx, turned
from dermrw.images.preprocess import read_image


def lesion() -> Image.Image:
    return Image.fromarray(draw_lesion("bcc", np.random.default_rng(1), np.random.default_rng(2), 90, 120))


def saved(image: Image.Image, kind: str, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("JPEG", "JPEG"),
        ("PNG", "PNG"),
        ("TIFF", "TIFF"),
        ("WEBP", "WebP"),
        ("BMP", "BMP"),
        ("AVIF", "AVIF"),
        ("MPO", "JPEG"),
    ],
)
def test_every_readable_format(kind: str, name: str) -> None:
    file = saved(lesion(), kind)
    assert format_of(file.read(HEAD)) == name
    file.seek(0)
    assert np.abs(np.asarray(read_image(file), dtype=int) - np.asarray(lesion(), dtype=int)).mean() < 4


@pytest.mark.parametrize(
    "head", [b"", b"\0" * HEAD, b"image,label\n" * 20, b"BM is no bitmap" * 20, b"\x08\0text" * 30, b"%PDF-1.7"]
)
def test_what_is_no_picture(head: bytes) -> None:
    assert format_of(head) is None


def test_a_format_that_is_not_read_is_named() -> None:
    with pytest.raises(UserError, match="is a GIF file, which is not read: save it as JPEG or PNG"):
        read_image(saved(lesion(), "GIF"))
    with pytest.raises(UserError, match="is a JPEG 2000 file"):
        read_image(saved(lesion(), "JPEG2000"))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "AVIF"])
def test_an_animation_is_refused(kind: str) -> None:
    with pytest.raises(UserError, match="an animation of 2 pictures"):
        read_image(saved(lesion(), kind, save_all=True, append_images=[lesion().rotate(90)]))


def test_a_heic_file_that_is_cut_short() -> None:
    head = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 400
    assert format_of(head) == "HEIC"
    with pytest.raises(UserError, match="damaged or unreadable"):
        read_image(io.BytesIO(head))


HEIC = Path(__file__).with_name("lesion.heic")  # 48 × 32 pixels, stored on its side, with `irot` and EXIF orientation 6


def test_a_heic_file() -> None:
    drawn = Image.fromarray(draw_lesion("mel", np.random.default_rng(3), np.random.default_rng(4), 96, 128))
    expected = np.asarray(drawn.resize((48, 32), Image.Resampling.BICUBIC), dtype=int)
    content = HEIC.read_bytes()
    assert nclx(content) == (1, 13) and turned(content)
    image = read_image(HEIC)
    assert np.abs(np.asarray(image, dtype=int) - expected).mean() < 4 and not image.info
    # without EXIF, and with a rotation that decoders do not apply
    without = read_image(io.BytesIO(content.replace(b"Exif", b"none")))
    assert np.abs(np.asarray(without, dtype=int) - expected).mean() < 4
    ignored = read_image(io.BytesIO(content.replace(b"irot", b"free")))
    assert ignored.size == (32, 48) and ignored.info["notes"] == [
        "its EXIF orientation was ignored, as the HEIF standard asks"
    ]
    at = content.index(b"colrnclx") + 8
    other = read_image(io.BytesIO(content[:at] + struct.pack(">HH", 12, 13) + content[at + 4 :]))
    assert np.abs(np.asarray(other, dtype=int) - np.asarray(image, dtype=int)).mean() > 2
    with pytest.raises(UserError, match=r"is an HDR picture \(HLG\)"):
        read_image(io.BytesIO(content[:at] + struct.pack(">HH", 9, 18) + content[at + 4 :]))
    # the same file twice: it is read from its beginning
    with HEIC.open("rb") as file:
        assert read_image(file) == read_image(file)


def test_a_heic_file_whose_pixels_are_larger_than_it_states() -> None:
    content = HEIC.read_bytes()
    small = content.replace(struct.pack(">II", 64, 64), struct.pack(">II", 16, 16))
    small = small.replace(struct.pack(">II", 32, 48), struct.pack(">II", 16, 16))
    large = content.replace(struct.pack(">II", 64, 64), struct.pack(">II", 60_000, 60_000))
    large = large.replace(struct.pack(">II", 32, 48), struct.pack(">II", 60_000, 60_000))
    assert small != content != large
    with pytest.raises(UserError, match=r"60000 × 60000 pixels, more than|damaged or unreadable"):
        read_image(io.BytesIO(large))
    with contextlib.suppress(UserError):
        assert max(read_image(io.BytesIO(small)).size) <= 64


def test_pages_of_a_tiff() -> None:
    with pytest.raises(UserError, match="a TIFF of 2 pages"):
        read_image(saved(lesion(), "TIFF", save_all=True, append_images=[lesion().rotate(90)]))


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize(("top", "note"), [(65535, None), (4095, "its 16-bit values use 12 bits alone")])
def test_sixteen_bits(planar: str, top: int, note: str | None) -> None:
    import tifffile

    pixels = np.asarray(lesion(), dtype=np.float64)
    values = (pixels / 255 * top).round().astype(np.uint16)
    file = io.BytesIO()
    tifffile.imwrite(
        file, values if planar == "contig" else np.moveaxis(values, 2, 0), photometric="rgb", planarconfig=planar
    )
    file.seek(0)
    image = read_image(file)
    assert np.abs(np.asarray(image, dtype=int) - pixels).max() <= 1
    assert (note is None) == (not image.info)
    assert note is None or image.info["notes"][0].startswith(note)


def test_fill_bytes_before_a_marker_are_skipped_at_once() -> None:
    """A loop in Python over 30 MB of them would take ten seconds."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(
        buffer, "JPEG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    )
    plain = buffer.getvalue()
    calls = 0

    class Counted(bytes):
        def __getitem__(self, key: Any) -> Any:
            nonlocal calls
            calls += 1
            return super().__getitem__(key)

    filled = Counted(plain[:2] + b"\xff" * 100_000 + plain[2:])
    assert jpeg_fault(filled) is None and jpeg_states_profile(filled) and calls < 500
    assert jpeg_fault(plain[:2] + b"\xff" * 9) is None  # nothing but fill bytes
