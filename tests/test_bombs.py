"""Small files that would take gigabytes or minutes, and the ordinary ones that look a little like them."""

import io
import re
import struct
import tracemalloc

import pytest
from PIL import Image
from test_pixels import picture, saved

from dermrw.bombs import MOST_SCANS, scans_of_jpeg, scans_of_tiff, tags_overlap, tiff_tags
from dermrw.errors import UserError
from dermrw.pixels import read_image


def overlapping(order: str, tags: int, size: int, big: bool = False) -> bytes:
    """A TIFF header and a directory whose tags all claim the same `size` bytes."""
    mark, word = ({"<": b"II", ">": b"MM"}[order], "Q" if big else "L")
    head = mark + struct.pack(order + "H", 43 if big else 42) + (struct.pack(order + "HH", 8, 0) if big else b"")
    start = len(head) + (8 if big else 4)
    head += struct.pack(order + word, start) + struct.pack(order + ("Q" if big else "H"), tags)
    for i in range(tags):
        head += struct.pack(order + "HH" + 2 * word, 40_000 + i, 1, size, 8)
    return head + bytes(8 + size)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_tags_that_share_their_bytes(order: str, big: bool) -> None:
    bomb = overlapping(order, 1000, 100_000, big)
    assert len(tiff_tags(bomb)) == 1000 and tags_overlap(bomb) and not tags_overlap(overlapping(order, 1, 100, big))
    tracemalloc.start()
    with pytest.raises(UserError, match="tags that lie in the same place"):
        read_image(io.BytesIO(bomb))
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
    # as EXIF of other formats: the picture is read and its EXIF is not
    for kind in ("PNG", "WEBP"):
        file = saved(picture(), kind, exif=b"Exif\0\0" + bomb)
        tracemalloc.start()
        assert read_image(file).size == (60, 45)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
        tracemalloc.stop()


def test_exif_in_many_segments() -> None:
    segment = b"\xff\xe1" + struct.pack(">H", 65_535) + b"Exif\0\0" + bytes(65_527)
    plain = saved(picture(), "JPEG").getvalue()
    assert read_image(io.BytesIO(plain[:2] + 2 * segment + plain[2:]))
    with pytest.raises(UserError, match="has 20 EXIF blocks"):
        read_image(io.BytesIO(plain[:2] + 20 * segment + plain[2:]))


def rescanned(times: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    plain = saved(picture(64, 64), "JPEG", progressive=True).getvalue()
    last = plain[[m.start() for m in re.finditer(b"\xff\xda", plain)][-1] : -2]
    return plain[:-2] + times * last + b"\xff\xd9"


def test_a_jpeg_of_thousands_of_scans() -> None:
    ordinary = scans_of_jpeg(rescanned(0))[0]
    assert 6 <= ordinary <= 12 and scans_of_jpeg(rescanned(7))[0] == ordinary + 7
    assert read_image(io.BytesIO(rescanned(MOST_SCANS - ordinary))).size == (64, 64)
    with pytest.raises(UserError, match=f"goes over its pixels {ordinary + 5000} times"):
        read_image(io.BytesIO(rescanned(5000)))


def test_a_scan_is_no_chance_pair_of_bytes() -> None:
    """Neither in a segment, such as a thumbnail's, nor behind the picture, such as a film's."""
    plain = saved(picture(), "JPEG").getvalue()
    segment = b"\xff\xe5" + struct.pack(">H", 2002) + b"\xff\xda" * 1000
    assert scans_of_jpeg(plain[:2] + segment + plain[2:] + b"\xff\xda" * 1000)[0] == 1
    assert read_image(io.BytesIO(plain[:2] + segment + plain[2:] + b"\xff\xda" * 1000))


def test_a_tiff_of_jpegs() -> None:
    file = saved(picture(), "TIFF", compression="jpeg")
    assert 0 < scans_of_tiff(file.getvalue()) <= 3 and read_image(file).size == (60, 45)
    with pytest.raises(UserError, match="too many times"):
        read_image(io.BytesIO(file.getvalue() + b"\xff\xda" * 1000))
    deflated = saved(picture(), "TIFF", compression="tiff_deflate")
    assert scans_of_tiff(deflated.getvalue() + b"\xff\xda" * 1000) == 0


def test_an_orientation_is_still_read() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        assert read_image(saved(picture(), kind, exif=exif)).size == (45, 60)
