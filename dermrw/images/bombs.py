"""Detects decompression bombs before a decoder opens the file. Does not need torch.

`preprocess.MOST_PIXELS` limits the number of pixels. This module detects two other kinds of files that need far more
memory or time than their size suggests. The first are TIFF files or EXIF blocks with many tags that point to the same
bytes, which Pillow would copy for each tag. The second are JPEG files with thousands of scans, each of which processes
all pixels again (libjpeg-turbo, "Two Issues with the JPEG Standard").
"""

import re
import struct
from typing import NamedTuple

MOST_SCANS = 40  # a progressive JPEG has about ten
MOST_EXIF = 2  # segments of one JPEG, 64 kB each, which Pillow joins
MOST_TAGS = 4096  # of a directory; a picture has some dozens
MOST_SEGMENTS = 10_000  # of one JPEG; an ICC profile or a thumbnail needs a few dozen

# bytes of a value by type number (TIFF 6.0, section 2; the last three are BigTIFF's)
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
COMPRESSION, TILE_WIDTH, TILE_LENGTH = 259, 322, 323
PIECES = ((273, 279), (324, 325))  # tags of the offsets and lengths of strips and of tiles
FURTHER = (330, 34665, 34853, 40965)  # tags that point to another directory
BY_JPEG = (6, 7)  # TIFF compressions
TIFF = tuple(mark + number for mark in (b"II", b"MM") for number in (b"*\0", b"\0*", b"+\0", b"\0+"))

# in compressed data 0xFF is followed by 0x00, a restart marker or fill bytes; any other byte starts a segment
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
_SOS, _EOI, _APP1 = 0xDA, 0xD9, 0xE1


class Tag(NamedTuple):
    """An entry of a directory."""

    number: int
    kind: int
    length: int
    value: bytes  # or its offset if it does not fit

    @property
    def size(self) -> int:
        """Size in bytes of a value that is stored outside the entry."""
        size = self.length * SIZES.get(self.kind, 0)
        return size if size > len(self.value) else 0


class Directories:
    """The directories of a TIFF or an EXIF block, read as classic TIFF or as BigTIFF (`big`).

    Entries after an unreadable one are ignored, as in Pillow.
    """

    def __init__(self, data: bytes, big: bool) -> None:
        self.data, self.order = data, "<" if data[:2] == b"II" else ">"
        self.word, self.number, self.entry = ("Q", "Q", "HHQ8s") if big else ("L", "H", "HHL4s")
        self.many = False  # whether a directory has more entries than `MOST_TAGS`
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
            self.many |= number > MOST_TAGS
            for i in range(min(number, MOST_TAGS, len(self.data) // step)):
                entries.append(Tag(*struct.unpack_from(self.order + self.entry, self.data, start + i * step)))
        except (struct.error, OverflowError):
            pass
        return entries

    def values(self, number: int) -> list[int]:
        """Returns the integers of a tag; empty if there are none."""
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
        """Returns the reason to refuse the file, or an empty string."""
        if self.many:
            return "has too many tags"
        if sum(tag.size for tag in self.all) > len(self.data):
            return "has tags that lie in the same place"
        side = [max(self.values(number), default=0) for number in (TILE_WIDTH, TILE_LENGTH)]
        if side[0] * side[1] > most_pixels:
            return f"has tiles of {side[0]} × {side[1]} pixels"
        if set(self.values(COMPRESSION)) & set(BY_JPEG):
            for places, lengths in PIECES:
                pieces = list(zip(self.values(places), self.values(lengths), strict=False))
                if sum(max(0, min(length, len(self.data) - place)) for place, length in pieces) > len(self.data):
                    return "has strips or tiles that lie in the same place"
                for place, length in pieces:
                    if self.data.count(bytes([0xFF, _SOS]), place, place + length) > MOST_SCANS:
                        return "goes over its pixels too many times"
        return ""


def of_tiff(data: bytes, most_pixels: int) -> str:
    """Returns the reason to refuse a TIFF, or an EXIF block without its name, or an empty string."""
    return Directories(data, data[2:3] == b"+").wrong(
        most_pixels
    )  # the test by which Pillow distinguishes BigTIFF from TIFF in either byte order


def of_jpeg(data: bytes) -> str:
    """Returns the reason to refuse a JPEG, or an empty string."""
    scans = exif = segments = 0
    at = 2
    while found := _MARKER.search(data, at):
        kind, at = found[1][0], found.end()
        if kind == _EOI:
            break
        segments += 1
        if segments > MOST_SEGMENTS:
            return "has too many segments"
        if kind in (0x01, 0xD8):  # markers without a length
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        scans += kind == _SOS
        exif += kind == _APP1 and data[at + 2 : at + 8] == b"Exif\0\0"
        at += length
    if scans > MOST_SCANS:
        return f"goes over its pixels {scans} times"
    return f"has {exif} EXIF blocks" if exif > MOST_EXIF else ""


def reason(data: bytes, most_pixels: int) -> str:
    """Returns the reason to refuse a JPEG, TIFF or BMP; an empty string if there is none, and for other formats."""
    if data[:2] == b"\xff\xd8":
        return of_jpeg(data)
    if data[:2] == b"BM" and int.from_bytes(data[30:34], "little") in (1, 2):
        return "is a BMP of run lengths, which takes long to be read"
    return of_tiff(data, most_pixels) if data[:4] in TIFF else ""
