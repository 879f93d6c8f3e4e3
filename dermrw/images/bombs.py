"""Files that would take more memory or time than their size says, found before a decoder opens them. No torch in here.

What is large by its pixels is refused by its pixels (`preprocess.MOST_PIXELS`); here are the two that are not: tags
of a TIFF or an EXIF block that all point at the same bytes, each of which Pillow would copy, and a JPEG with thousands
of scans, each of which goes over all pixels again (libjpeg-turbo, "Two Issues with the JPEG Standard").
"""

import re
import struct
from typing import NamedTuple

MOST_SCANS = 40  # a progressive JPEG has some ten
MOST_EXIF = 2  # segments of one JPEG: of 64 kB each, and Pillow joins them
MOST_SEGMENTS = 10_000  # of one JPEG; an ICC profile or a thumbnail takes some tens

# bytes of a value, by its type's number (TIFF 6.0, section 2; BigTIFF has the last three)
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
COMPRESSION, TILE_WIDTH, TILE_LENGTH = 259, 322, 323
PIECES = ((273, 279), (324, 325))  # where strips and tiles lie, and how long they are
FURTHER = (330, 34665, 34853, 40965)  # tags that lead to a directory of their own
BY_JPEG = (6, 7)  # TIFF compressions
TIFF = tuple(mark + number for mark in (b"II", b"MM") for number in (b"*\0", b"\0*", b"+\0", b"\0+"))

# in compressed data 0xFF is followed by 0x00, a restart's number, or fill bytes; anything else begins a segment
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
_SOS, _EOI, _APP1 = 0xDA, 0xD9, 0xE1


class Tag(NamedTuple):
    """One entry of a directory."""

    number: int
    kind: int
    length: int
    value: bytes  # or, where it doesn't fit in, where it lies

    @property
    def size(self) -> int:
        """Bytes of the value, where it lies elsewhere."""
        size = self.length * SIZES.get(self.kind, 0)
        return size if size > len(self.value) else 0


class Directories:
    """What a TIFF or an EXIF block says that it holds, read as classic TIFF or as BigTIFF (`big`).

    An unreadable rest of a directory has no entries: Pillow reads it no further either.
    """

    def __init__(self, data: bytes, big: bool) -> None:
        self.data, self.order = data, "<" if data[:2] == b"II" else ">"
        self.word, self.number, self.entry = ("Q", "Q", "HHQ8s") if big else ("L", "H", "HHL4s")
        self.first = self._read(self._at(8 if big else 4))
        self.all = list(self.first)
        seen: set[int] = set()
        waiting = list(self.first)
        while waiting:
            tag = waiting.pop()
            start = int.from_bytes(tag.value, "little" if self.order == "<" else "big")
            if tag.number in FURTHER and tag.length == 1 and start not in seen and len(seen) < 20:
                seen.add(start)
                more = self._read(start)
                self.all += more
                waiting += more

    def _at(self, place: int) -> int:
        try:
            return int(struct.unpack_from(self.order + self.word, self.data, place)[0])
        except struct.error:
            return len(self.data)

    def _read(self, start: int) -> list[Tag]:
        entries: list[Tag] = []
        step = struct.calcsize(self.order + self.entry)
        try:
            (number,) = struct.unpack_from(self.order + self.number, self.data, start)
            start += struct.calcsize(self.order + self.number)
            for i in range(min(number, len(self.data) // step)):
                entries.append(Tag(*struct.unpack_from(self.order + self.entry, self.data, start + i * step)))
        except (struct.error, OverflowError):
            pass
        return entries

    def values(self, number: int) -> list[int]:
        """A tag's whole numbers; none where it has none."""
        for tag in self.first:
            kind = {3: "H", 4: "L", 16: "Q"}.get(tag.kind)
            if tag.number == number and kind:
                count = min(tag.length, len(self.data))
                size = struct.calcsize(self.order + kind)
                place = int.from_bytes(tag.value, "little" if self.order == "<" else "big")
                content = self.data[place : place + count * size] if tag.size else tag.value
                count = min(count, len(content) // size)
                return list(struct.unpack_from(f"{self.order}{count}{kind}", content))
        return []

    def wrong(self, most_pixels: int) -> str:
        """What is wrong with it; empty: nothing."""
        if sum(tag.size for tag in self.all) > len(self.data):
            return "has tags that lie in the same place"
        side = [max(self.values(number), default=0) for number in (TILE_WIDTH, TILE_LENGTH)]
        if side[0] * side[1] > most_pixels:
            return f"has tiles of {side[0]} × {side[1]} pixels"
        if set(self.values(COMPRESSION)) & set(BY_JPEG):
            for places, lengths in PIECES:
                for place, length in zip(self.values(places), self.values(lengths), strict=False):
                    if self.data.count(bytes([0xFF, _SOS]), place, place + length) > MOST_SCANS:
                        return "goes over its pixels too many times"
        return ""


def of_tiff(data: bytes, most_pixels: int) -> str:
    """What is wrong with a TIFF, or an EXIF block without its name; empty: nothing."""
    return Directories(data, data[2:3] == b"+").wrong(
        most_pixels
    )  # so Pillow tells BigTIFF from TIFF, big-endian or not


def of_jpeg(data: bytes) -> str:
    """What is wrong with a JPEG; empty: nothing."""
    scans = exif = segments = 0
    at = 2
    while found := _MARKER.search(data, at):
        kind, at = found[1][0], found.end()
        if kind == _EOI:
            break
        segments += 1
        if segments > MOST_SEGMENTS:
            return "has too many segments"
        if kind in (0x01, 0xD8):  # these stand alone
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        scans += kind == _SOS
        exif += kind == _APP1 and data[at + 2 : at + 8] == b"Exif\0\0"
        at += length
    if scans > MOST_SCANS:
        return f"goes over its pixels {scans} times"
    return f"has {exif} EXIF blocks" if exif > MOST_EXIF else ""


def reason(data: bytes, most_pixels: int) -> str:
    """What is wrong with a JPEG's, TIFF's or BMP's content; empty where nothing is, and for every other format."""
    if data[:2] == b"\xff\xd8":
        return of_jpeg(data)
    if data[:2] == b"BM" and int.from_bytes(data[30:34], "little") in (1, 2):
        return "is a BMP of run lengths, which takes long to be read"
    return of_tiff(data, most_pixels) if data[:4] in TIFF else ""
