"""Recognise a picture's format by its first bytes, not by its file name. No torch."""

import errno
import re
from collections.abc import Iterator
from pathlib import Path

from dermrw.errors import UserError
from dermrw.files import open_regular
from dermrw.images.bombs import TIFF

HEAD = 160  # bytes that `format_of` needs
UNWRITTEN = 512  # zeros at a file's end, of a block of a disk that was not written

HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"mif2"}
AVIF_BRANDS = {b"avif", b"avis"}

# Pictures of other kinds, which are named as unreadable and not skipped
FOREIGN: dict[bytes, str] = {
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL \r\n\x87\n": "JPEG XL",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"II\xbc\x01": "JPEG XR",
    b"\x76\x2f\x31\x01": "OpenEXR",
    b"8BPS": "Photoshop",
    b"FUJIFILMCCD-RAW": "camera raw",
    b"IIRO": "camera raw",
    b"IIU\0": "camera raw",
}
# TIFF's header is also that of raw files, which name themselves a few bytes later
CANON_RAW = b"CR\x02\0"


def format_of(head: bytes) -> str | None:
    """The format of the picture that begins with these bytes, at least `HEAD` of them if the file has as many.

    Returns:
        A format that `preprocess.read_image` reads (JPEG, PNG, TIFF, WebP, BMP, DICOM, HEIC, AVIF); `foreign` and the
        name of a picture format that is not read, such as `foreign GIF`; None if the bytes begin no picture.
    """
    if head[128:132] == b"DICM" or _is_bare_dicom(head):
        return "DICOM"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head[:4] in TIFF:
        return "foreign camera raw" if head[8:12] == CANON_RAW else "TIFF"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[:2] == b"BM" and head[14:18] in {bytes([n, 0, 0, 0]) for n in (12, 40, 52, 56, 64, 108, 124)}:
        return "BMP"
    if head[4:8] == b"ftyp":
        return _iso_media(head)
    for magic, name in FOREIGN.items():
        if head.startswith(magic):
            return f"foreign {name}"
    return None


# Suffixes of pictures, for files whose content says nothing
IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".tif", ".tiff", ".webp", ".bmp"),
    *(".dcm", ".dicom", ".heic", ".heif", ".avif"),
}
# and of pictures that are not read, which are named
FOREIGN_SUFFIXES = {".gif", ".jp2", ".jxl", ".jxr", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw"}
# DICOM's media storage classes without a picture (PS3.4, B.5, and PS3.3, F): a DICOMDIR, which is a disc's list of
# files; presentation states, structured reports, encapsulated documents, waveforms, raw data, registrations, surfaces,
# measurements, plans of radiotherapy, procedure logs
STORAGE_CLASS = re.compile(rb"1\.2\.840\.10008\.(?:1\.3\.10|5\.1\.4\.(?:1\.1|34|38|43|44|45)\.[0-9.]+)")
NO_PICTURE = re.compile(
    rb"1\.2\.840\.10008\.(?:1\.3\.10|5\.1\.4\.(?:34|38|43|44|45)\..*"
    rb"|5\.1\.4\.1\.1\.(?:9|11|66|67|68|78|79|80|82|88|90|104|131|200|201)(?:\..*)?|5\.1\.4\.1\.1\.481\.[2-9].*)"
)


def is_image_file(path: Path) -> bool:
    """Whether a file in a folder is meant to be a picture: by its content or, if that is unknown, by its suffix.

    Hidden files are not, nor are DICOM files of a class without a picture, such as reports or a disc's DICOMDIR. A file
    that cannot be opened counts by its suffix; without one it counts as a picture, since DICOM files often have none.
    """
    if path.name.startswith("."):
        return False
    suffix = path.suffix.lower()
    try:
        with open_regular(path) as file:
            head = file.read(1024)
    except OSError as error:
        head = b""
        if not suffix and error.errno not in (errno.ENOENT, errno.ELOOP):  # of a broken link
            return True
    except UserError:
        head = b""
    kind = format_of(head)
    if kind == "DICOM" and (stated := STORAGE_CLASS.search(head)) and NO_PICTURE.fullmatch(stated[0].rstrip(b".")):
        return False
    return kind is not None or suffix in IMAGE_SUFFIXES | FOREIGN_SUFFIXES


def _iso_media(head: bytes) -> str | None:
    """HEIC and AVIF share their container with videos: the brands tell them apart (ISO 14496-12, 4.3)."""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4))]
    if AVIF_BRANDS & set(brands):
        return "AVIF"
    if HEIF_BRANDS & set(brands):
        return "HEIC"
    return "foreign Canon raw" if head[8:12] == b"crx " else None


def _is_bare_dicom(head: bytes) -> bool:
    """Whether the bytes begin a DICOM data set without the preamble of part 10, as old archives write it."""
    group, element = head[:2], int.from_bytes(head[2:4], "little")
    if group not in (b"\x08\0", b"\x02\0") or element > 0x1200 or len(head) < 12:
        return False
    if head[4:6] in (b"UL", b"UI", b"OB", b"CS", b"DA", b"TM", b"LO", b"SH"):
        return True
    # implicit: a length follows; the group length has 4 bytes, a UID or a code string at most 64
    return group == b"\x08\0" and element in (0, 1, 5, 8, 0x16) and 0 < int.from_bytes(head[4:8], "little") <= 64


# JPEG's start of frame, by marker (ITU-T T.81, table B.1; T.87 for JPEG-LS)
FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


FILL = re.compile(rb"\xff+")


def jpeg_segments(content: bytes) -> Iterator[tuple[int, int]]:
    """Marker of each segment of a JPEG, and the place of its length, until something else follows a segment."""
    at = 2
    while (fill := FILL.match(content, at)) and fill.end() + 3 <= len(content):  # fill bytes may come before a marker
        yield content[fill.end()], fill.end() + 1
        at = fill.end() + 1 + int.from_bytes(content[fill.end() + 1 : fill.end() + 3], "big")


def jpeg_fault(content: bytes) -> str | None:
    """The reason why a JPEG is not read, for `the image NAME …`; None if there is none, or it is damaged."""
    adobe = False
    for marker, at in jpeg_segments(content):
        if at + 8 > len(content):
            return None
        adobe |= marker == 0xEE and content[at + 2 : at + 7] == b"Adobe"
        if marker == 0xF7:
            return "is a JPEG-LS file, which is not read: save it as JPEG or PNG"
        if marker in FRAMES:
            bits, components = content[at + 2], content[at + 7]
            if bits != 8:
                return f"is a JPEG of {bits} bits a channel, which is not read: save it with 8 bits"
            if components == 4 and not adobe:
                return "is a CMYK JPEG without Adobe's marker, so its colours are ambiguous: save it as RGB"
            # a copy that was not finished may have its full size; decoders can take the zeros for grey blocks
            if content.endswith(b"\0" * UNWRITTEN) and b"\xff\xd9" not in content[at:]:  # the marker of its end
                return "ends in zeros instead of its picture: the copy was not finished, so copy it again"
            return None
    return None
