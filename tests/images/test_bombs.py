"""Small files that would take gigabytes or minutes, and the ordinary ones that look a little like them."""

import io
import re
import struct
import tracemalloc

import pytest
from PIL import Image
from test_preprocess import picture, saved

from dermrw.errors import UserError
from dermrw.images.bombs import MOST_SCANS, Directories, of_jpeg, of_tiff
from dermrw.images.preprocess import read_image

MANY = 50_000_000


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
    assert len(Directories(bomb, big).first) == 1000 and not of_tiff(overlapping(order, 1, 100, big), MANY)
    tracemalloc.start()
    # Pillow knows no big-endian BigTIFF
    unknown = big and order == ">"
    reason = "not an image|tags that|its header cannot be read" if unknown else "tags that lie in the same"
    with pytest.raises(UserError, match=reason):
        read_image(io.BytesIO(bomb))
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
    # as EXIF of other formats: the picture is read and its EXIF is not
    for kind, names in (("PNG", 1), ("PNG", 3), ("WEBP", 1)):
        file = saved(picture(), kind, exif=b"Exif\0\0" * names + bomb)
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
    ordinary = rescanned(0).count(b"\xff\xda")
    assert read_image(io.BytesIO(rescanned(MOST_SCANS - ordinary))).size == (64, 64)
    with pytest.raises(UserError, match=f"goes over its pixels {ordinary + 5000} times"):
        read_image(io.BytesIO(rescanned(5000)))


def test_a_scan_is_no_chance_pair_of_bytes() -> None:
    """Neither in a segment, such as a thumbnail's, nor behind the picture, such as a film's."""
    plain = saved(picture(), "JPEG").getvalue()
    segment = b"\xff\xe5" + struct.pack(">H", 2002) + b"\xff\xda" * 1000
    assert read_image(io.BytesIO(plain[:2] + segment + plain[2:] + b"\xff\xda" * 1000))


def test_a_tiff_of_jpegs() -> None:
    file = saved(picture(), "TIFF", compression="jpeg")
    assert read_image(file).size == (60, 45)
    content, read = file.getvalue(), Directories(file.getvalue(), False)
    (place,), (length,) = read.values(273), read.values(279)
    # its one strip is a JPEG of many scans: put at the end, and the directory led there
    many = content[place : place + length - 2] + b"\xff\xda" * (MOST_SCANS + 1) + b"\xff\xd9"
    moved = content.replace(struct.pack("<HHLL", 273, 4, 1, place), struct.pack("<HHLL", 273, 4, 1, len(content)))
    moved = moved.replace(struct.pack("<HHLL", 279, 4, 1, length), struct.pack("<HHLL", 279, 4, 1, len(many)))
    assert moved != content
    with pytest.raises(UserError, match="too many times"):
        read_image(io.BytesIO(moved + many))
    # the scans of other pages do not count as the first page's: it is refused for its pages, not as a bomb
    pages = saved(picture(), "TIFF", compression="jpeg", save_all=True, append_images=[picture()] * 60)
    with pytest.raises(UserError, match="a TIFF of 61 pages"):
        read_image(pages)


def test_strips_of_jpegs_that_lie_in_the_same_place() -> None:
    """Each of them would be searched for scans."""
    strips, size = 12_000, 200_000
    offsets = 8 + 2 + 3 * 12 + 4
    head = struct.pack("<2sHLH", b"II", 42, 8, 3)
    head += struct.pack("<HHLHH", 259, 3, 1, 7, 0) + struct.pack("<HHLL", 273, 4, strips, offsets)
    head += struct.pack("<HHLL", 279, 4, strips, offsets + 4 * strips) + bytes(4)
    file = head + struct.pack(f"<{2 * strips}L", *[0] * strips, *[size] * strips) + bytes(size)
    assert "strips or tiles that lie in the same place" in of_tiff(file, MANY)


def test_a_directory_of_too_many_tags() -> None:
    tracemalloc.start()
    assert of_tiff(overlapping("<", 20_000, 10), MANY) == "has too many tags"
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("start", [b"MM*\0", b"II\0*", b"MM\0+", b"MM\0*", b"II*\0"])
def test_every_beginning_that_pillow_takes_for_a_tiff(start: bytes) -> None:
    bomb = start + overlapping("<" if start[:2] == b"II" else ">", 500, 100_000)[4:]
    with pytest.raises(UserError, match="tags that lie in the same place"):
        read_image(io.BytesIO(bomb))


def test_a_directory_within() -> None:
    content = saved(picture(), "TIFF").getvalue()
    (start,) = struct.unpack_from("<L", content, 4)
    (number,) = struct.unpack_from("<H", content, start)
    inner, place = overlapping("<", 500, 100_000)[8:], len(content)
    entries = content[start + 2 : start + 2 + 12 * number] + struct.pack("<HHLL", 34665, 4, 1, place)
    behind = struct.pack("<H", number + 1) + entries + bytes(4)
    whole = content[:4] + struct.pack("<L", place + len(inner)) + content[8:] + inner + behind
    with pytest.raises(UserError, match="tags that lie in the same place"):
        read_image(io.BytesIO(whole))


def test_a_bigtiff_is_not_read_as_a_tiff() -> None:
    pixels = saved(picture(), "TIFF", big_tiff=True).getvalue()
    (start,) = struct.unpack_from("<Q", pixels, 8)
    # the directory at the end, and pixels that as a TIFF's directory would claim four gigabytes an entry
    claims = bytes(6) + struct.pack("<HHLL", 40_000, 1, 4_000_000_000, 8) * 20
    moved = pixels[:8] + struct.pack("<Q", 16 + len(claims)) + claims + pixels[start:]
    assert "same place" in Directories(moved, False).wrong(MANY) and of_tiff(moved, MANY) == ""
    assert read_image(io.BytesIO(pixels)).size == (60, 45)


def test_run_lengths_in_a_bmp_are_not_read() -> None:
    plain = saved(picture(), "BMP").getvalue()
    assert read_image(io.BytesIO(plain)).size == (60, 45)
    with pytest.raises(UserError, match="BMP of run lengths"):
        read_image(io.BytesIO(plain[:30] + b"\1\0\0\0" + plain[34:]))


def test_a_tile_larger_than_the_picture() -> None:
    tags = [(256, 100), (257, 100), (258, 8), (259, 1), (262, 1), (322, 24_000), (323, 24_000), (324, 8), (325, 100)]
    entries = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags)
    with pytest.raises(UserError, match="tiles of 24000 × 24000"):
        read_image(io.BytesIO(b"II*\0" + struct.pack("<LH", 8, len(tags)) + entries + bytes(200)))


def test_fill_bytes_and_segments_without_end_take_no_time() -> None:
    assert of_jpeg(b"\xff\xd8" + b"\xff" * 20_000_000 + b"\0") == ""  # quadratic, it would take days
    assert of_jpeg(b"\xff\xd8" + b"\xff\xe5\0\2" * 1_000_000) == "has too many segments"


def test_an_orientation_is_still_read() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        assert read_image(saved(picture(), kind, exif=exif)).size == (45, 60)


def test_sizes_are_checked_before_decoding_in_every_format() -> None:
    image = picture(48, 64)
    tiff = saved(image, "TIFF").getvalue()
    for number, size in ((256, 64), (257, 48)):
        for kind, code in ((3, "H"), (4, "L")):
            entry = struct.pack("<HHL", number, kind, 1)
            tiff = tiff.replace(entry + struct.pack("<" + code, size), entry + struct.pack("<" + code, 20_000))
    webp = bytearray(saved(image, "WEBP", lossless=True).getvalue())
    place = webp.index(b"VP8L") + 9
    webp[place : place + 4] = struct.pack("<L", struct.unpack_from("<L", webp, place)[0] | (1 << 28) - 1)  # 16384²
    bmp = bytearray(saved(image, "BMP").getvalue())
    bmp[18:26] = struct.pack("<ll", 20_000, 20_000)
    avif = saved(image, "AVIF").getvalue().replace(struct.pack(">II", 64, 48), struct.pack(">II", 16_000, 16_000))
    for content in (tiff, bytes(webp), bytes(bmp), avif):
        with pytest.raises(UserError, match=r"more than 50,000,000( pixels)?: shrink it"):
            read_image(io.BytesIO(content))
