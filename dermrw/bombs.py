"""Files that would take more memory or time than their size says, found before a decoder opens them. No torch in here.

What is large by its pixels is refused by its pixels (`dermrw.pixels.MOST_PIXELS`); here are the two that are not: tags
of a TIFF or an EXIF block that all point at the same bytes, each of which Pillow would copy, and a JPEG with thousands
of scans, each of which goes over all pixels again (libjpeg-turbo, "Two Issues with the JPEG Standard").
"""

import re
import struct

MOST_SCANS = 40  # a progressive JPEG has some ten
MOST_EXIF = 2  # segments of one JPEG: of 64 kB each, and Pillow joins them

# bytes of a value, by its type's number (TIFF 6.0, section 2; BigTIFF has the last three)
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
STRIP_OFFSETS, COMPRESSION, TILE_OFFSETS = 273, 259, 324
BY_JPEG = (6, 7)  # TIFF compressions

# in compressed data 0xFF is followed by 0x00, a restart's number, or fill bytes; anything else begins a segment
_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])")
_SOS, _EOI, _APP1 = 0xDA, 0xD9, 0xE1


def tiff_tags(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """The first directory's entries: tag, type, count, and the four or eight bytes of its value or of where it lies.

    An unreadable directory, or the unreadable rest of one, has none: Pillow reads it no further either.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:
        return []
    big = data[2] == 43 or data[3] == 43
    at, entry, count = (8, "HHQ8s", "Q") if big else (4, "HHL4s", "H")
    entries = []
    try:
        (start,) = struct.unpack_from(order + ("Q" if big else "L"), data, at)
        (number,) = struct.unpack_from(order + count, data, start)
        start += struct.calcsize(order + count)
        step = struct.calcsize(order + entry)
        for i in range(min(number, len(data) // step)):
            entries.append(struct.unpack_from(order + entry, data, start + i * step))
    except struct.error:
        pass
    return entries


def tags_overlap(data: bytes) -> bool:
    """Whether the values of a TIFF's (or EXIF block's) first directory are larger than the whole of it together."""
    inline = 8 if data[2:3] == b"\x2b" or data[3:4] == b"\x2b" else 4
    sizes = [count * SIZES.get(kind, 0) for _, kind, count, _ in tiff_tags(data)]
    return sum(size for size in sizes if size > inline) > len(data)


def scans_of_tiff(data: bytes) -> float:
    """How often, at most, its pixels are gone over by JPEG scans."""
    tags = tiff_tags(data)
    order = "<" if data[:2] == b"II" else ">"
    if not any(tag == COMPRESSION and struct.unpack(order + "H", value[:2])[0] in BY_JPEG for tag, _, _, value in tags):
        return 0
    pieces = max((count for tag, _, count, _ in tags if tag in (STRIP_OFFSETS, TILE_OFFSETS)), default=1)
    return data.count(bytes([0xFF, _SOS])) / max(1, pieces)


def scans_of_jpeg(data: bytes) -> tuple[int, int]:
    """How often its pixels are gone over, and how many EXIF segments it has."""
    scans = exif = 0
    at = 2
    while found := _MARKER.search(data, at):
        kind, at = found[1][0], found.end()
        if kind == _EOI:
            break
        if kind in (0x01, 0xD8):  # these stand alone
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        scans += kind == _SOS
        exif += kind == _APP1 and data[at + 2 : at + 8] == b"Exif\0\0"
        at += length
    return scans, exif


def reason(data: bytes) -> str:
    """What is wrong with a JPEG's or TIFF's content; empty where nothing is, and for every other format."""
    if data[:2] == b"\xff\xd8":
        scans, exif = scans_of_jpeg(data)
        if scans > MOST_SCANS:
            return f"goes over its pixels {scans} times"
        if exif > MOST_EXIF:
            return f"has {exif} EXIF blocks"
    elif data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        if tags_overlap(data):
            return "has tags that lie in the same place"
        if scans_of_tiff(data) > MOST_SCANS:
            return "goes over its pixels too many times"
    return ""
