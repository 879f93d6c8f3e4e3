"""TIFF, PNG and JPEG files whose values are not plain 8-bit RGB: read right, or named."""

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from dermrw.datasets.sample_drawing import draw_lesion
from dermrw.errors import UserError
from dermrw.images.depth import eight_bits
from dermrw.images.preprocess import read_image

PIXELS = draw_lesion("mel", np.random.default_rng(3), np.random.default_rng(4), 60, 80)  # [60, 80, 3]
GREY = np.asarray(Image.fromarray(PIXELS).convert("L"))
SIXTEEN = PIXELS.astype(np.uint16) * 257
ALPHA = np.full((60, 80, 1), 128 * 257, np.uint16)
NARROW_NOTE = ["its 16-bit values use 12 bits alone and were scaled to the full range"]


def narrow(pixels: np.ndarray, bits: int) -> np.ndarray:
    return (pixels / 255 * (2**bits - 1)).round().astype(np.uint16)


def tiff(values: np.ndarray, **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    file.seek(0)
    return file


def packed_tiff(bits: Sequence[int], photometric: int, data: bytes, *more: tuple[int, int, int]) -> io.BytesIO:
    """An uncompressed little-endian TIFF of 80 × 60 pixels, from its tags; `more` are (number, type, value)."""
    tags = [(256, 4, 80), (257, 4, 60), (259, 3, 1), (262, 3, photometric), (273, 4, 8), (277, 3, len(bits))]
    tags += [(278, 4, 60), (279, 4, len(data)), *more]
    data += bytes(len(data) % 2)
    outside = 8 + len(data) + 2 + 12 * (len(tags) + 1) + 4
    stored = struct.pack(f"<{len(bits)}H", *bits)
    value = stored.ljust(4, b"\0") if len(bits) < 3 else struct.pack("<L", outside)
    entries = [struct.pack("<HHLL", number, kind, 1, content) for number, kind, content in tags]
    entries.append(struct.pack("<HHL", 258, 3, len(bits)) + value)
    entries.sort(key=lambda entry: struct.unpack_from("<H", entry))
    directory = struct.pack("<H", len(entries)) + b"".join(entries)
    return io.BytesIO(b"II*\0" + struct.pack("<L", 8 + len(data)) + data + directory + bytes(4) + stored)


def png(values: np.ndarray, colour_type: int, *chunks: tuple[bytes, bytes]) -> io.BytesIO:
    """A PNG of 16 bits a channel."""
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        content += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return io.BytesIO(content)


def difference(file: io.BytesIO, expected: np.ndarray) -> int:
    actual = np.asarray(read_image(file), dtype=int)
    if expected.ndim == 2:
        expected = np.stack([expected] * 3, 2)
    return int(np.abs(actual - expected).max())


@pytest.mark.parametrize(
    ("largest", "top"), [(0, 65535), (200, 255), (255, 255), (900, 1023), (4000, 4095), (9000, 16383)]
)
def test_the_number_of_bits_that_values_use(largest: int, top: int) -> None:
    values = np.linspace(0, largest, 48).astype(np.uint16).reshape(4, 4, 3)
    eight, note = eight_bits(values)
    np.testing.assert_array_equal(eight, values.astype(int) * 255 // top)
    assert (note is None) == (largest == 0)
    assert eight_bits(values + 20_000)[1] is None and eight_bits(values, 16383)[1] is None


def test_transparency_in_a_tiff_of_sixteen_bits() -> None:
    on_white = PIXELS * (128 / 255) + 255 * (1 - 128 / 255)
    premultiplied = (SIXTEEN * (128 / 255)).round().astype(np.uint16)
    for colours, kind, expected in (
        (SIXTEEN, "unassalpha", on_white),
        (premultiplied, "assocalpha", on_white),
        (SIXTEEN, "unspecified", PIXELS),  # a fourth channel, such as infrared, is no transparency
    ):
        file = tiff(np.concatenate([colours, ALPHA], 2), photometric="rgb", extrasamples=[kind])
        assert difference(file, expected) <= 2, kind


def test_grey_tiffs() -> None:
    for values, photometric in (
        (GREY, "minisblack"), (255 - GREY, "miniswhite"),
        (GREY.astype(np.uint16) * 257, "minisblack"), (65535 - GREY.astype(np.uint16) * 257, "miniswhite"),
    ):  # fmt: skip
        assert difference(tiff(values, photometric=photometric), GREY) == 0, photometric
    image = read_image(tiff(narrow(GREY, 12), photometric="minisblack"))
    assert np.abs(np.asarray(image, dtype=int)[..., 0] - GREY).max() <= 1 and image.info["notes"] == NARROW_NOTE


def test_twelve_bits_without_gaps() -> None:
    pairs = narrow(GREY, 12).reshape(-1, 2)
    data = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1)
    file = packed_tiff([12], 1, data.astype(np.uint8).tobytes())
    assert difference(file, GREY) <= 1 and not read_image(file).info


@pytest.mark.parametrize("scale", [1, 257])
def test_a_palette_tiff_of_8_or_16_bits(scale: int) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (3, 256)).astype(np.uint16)
    file = tiff(GREY, photometric="palette", colormap=colours * scale)
    assert difference(file, colours.T[GREY]) == 0


def test_tiffs_that_are_named() -> None:
    rgb, eight = PIXELS.tobytes(), [8, 8, 8]
    for file, reason in (
        (packed_tiff(eight, 2, rgb, (50706, 1, 1)), "is a camera's raw file, which is not read"),
        (packed_tiff([8], 32803, GREY.tobytes()), "is a camera's raw file, which is not read"),
        (packed_tiff(eight, 2, rgb, (254, 4, 1)), "holds only a reduced copy of its picture or a mask"),
        (packed_tiff([8], 1, GREY.tobytes(), (254, 4, 4)), "holds only a reduced copy of its picture or a mask"),
        (packed_tiff(eight, 6, rgb), "is a TIFF of uncompressed YCbCr"),
        (packed_tiff([12] * 3, 2, rgb * 2), r"of a kind that is not read \(BitsPerSample 12 12 12, Compression 1, "),
        (tiff(PIXELS.astype(np.float32), photometric="rgb"), "holds floating-point numbers"),
        (tiff(PIXELS.astype(np.uint32), photometric="rgb"), "holds signed or 32-bit numbers"),
        (tiff(GREY.astype(np.int32), photometric="minisblack"), "holds signed or 32-bit numbers"),
        (tiff(GREY.astype(np.int16), photometric="minisblack"), "holds signed or 32-bit numbers"),
    ):
        with pytest.raises(UserError, match=reason):
            read_image(file)


def test_a_compressed_tiff_of_twelve_bits_is_named() -> None:
    """Pillow reads its upper eight bits alone, and tifffile lacks the codec."""
    cv2 = pytest.importorskip("cv2")
    _, data = cv2.imencode(".tif", narrow(PIXELS, 12)[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 5])
    with pytest.raises(UserError, match="16-bit TIFF whose values use 14 bits or fewer"):
        read_image(io.BytesIO(data.tobytes()))
    _, data = cv2.imencode(".tif", SIXTEEN[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 5])
    assert difference(io.BytesIO(data.tobytes()), PIXELS) == 0


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_a_png_whose_values_use_fewer_bits(bits: int) -> None:
    alpha = np.full((60, 80, 1), 65535, np.uint16)
    for file, expected in (
        (png(narrow(PIXELS, bits), 2), PIXELS),
        (png(np.concatenate([narrow(PIXELS, bits), alpha], 2), 6), PIXELS),
        (png(narrow(GREY, bits), 0), GREY),
    ):
        assert difference(file, expected) <= 1
        assert read_image(file).info["notes"][0].startswith(f"its 16-bit values use {bits} bits alone")
    assert difference(png(SIXTEEN, 2), PIXELS) == 0 and not read_image(png(SIXTEEN, 2)).info


def test_sixteen_bit_grey_with_a_gamma_or_a_transparent_value() -> None:
    linear = (65535 * (GREY / 255) ** 2.2).round().astype(np.uint16)
    file = png(linear, 0, (b"gAMA", struct.pack(">I", 100_000)))
    assert difference(file, GREY) <= 8  # a power of 2.2 is not quite sRGB's curve
    assert np.abs(np.asarray(read_image(file), dtype=int)[..., 0] - GREY).mean() < 2
    values = GREY.astype(np.uint16) * 257
    expected = np.where(GREY[0, 0] == GREY, 255, GREY)
    assert difference(png(values, 0, (b"tRNS", struct.pack(">H", int(values[0, 0])))), expected) == 0


def test_jpegs_that_are_named() -> None:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "JPEG")
    plain = file.getvalue()
    frame = plain.index(b"\xff\xc0")
    file = io.BytesIO()
    Image.fromarray(PIXELS).convert("CMYK").save(file, "JPEG")
    inks = file.getvalue()
    adobe = inks.index(b"\xff\xee")
    for content, reason in (
        (plain[: frame + 4] + b"\x0c" + plain[frame + 5 :], "is a JPEG of 12 bits a channel"),
        (plain[:frame] + b"\xff\xf7" + plain[frame + 2 :], "is a JPEG-LS file"),
        (inks[:adobe] + inks[adobe + 16 :], "is a CMYK JPEG without Adobe's marker"),
    ):
        with pytest.raises(UserError, match=reason):
            read_image(io.BytesIO(content))
