"""Malformed files of every format that is read, for `test_malformed.py`: the same numbers give the same files."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import tifffile
from PIL import Image, ImageCms
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, RLELossless
from test_depth import png
from test_dicom import PIXELS, dicom, encapsulate, encoded

from dermrw.datasets.sample_drawing import draw_lesion

LESION = draw_lesion("mel", np.random.default_rng(0), np.random.default_rng(1), 48, 64)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def whole_files(folder: Path) -> dict[str, bytes]:
    """A small file of each format and variant, by name."""
    image, exif = Image.fromarray(LESION), Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    interoperability = Image.Exif()
    interoperability[0x8769] = {0xA005: {1: "R03"}}
    files: dict[str, bytes] = {}

    def add(name: str, kind: str, picture: Image.Image = image, **options: Any) -> None:
        file = io.BytesIO()
        picture.save(file, kind, **options)
        files[name] = file.getvalue()

    add("jpeg", "JPEG", exif=exif, icc_profile=PROFILE)
    add("progressive", "JPEG", progressive=True, exif=interoperability)
    add("cmyk", "JPEG", image.convert("CMYK"))
    add("mpo", "MPO", save_all=True, append_images=[image])
    add("png", "PNG", exif=exif, icc_profile=PROFILE)
    add("palette", "PNG", image.convert("P"), transparency=3)
    add("apng", "PNG", save_all=True, append_images=[image.rotate(90)])
    add("webp", "WEBP", exif=exif, icc_profile=PROFILE)
    add("lossless webp", "WEBP", image.convert("RGBA"), lossless=True)
    add("bmp", "BMP")
    add("avif", "AVIF", exif=exif, icc_profile=PROFILE)
    add("avif of stated primaries", "AVIF")
    add("tiff", "TIFF", exif=exif, icc_profile=PROFILE)
    for compression in ("tiff_lzw", "jpeg", "packbits", "tiff_adobe_deflate"):
        add(f"tiff {compression}", "TIFF", compression=compression)
    add("bigtiff", "TIFF", big_tiff=True)
    add("lab", "TIFF", Image.new("LAB", (64, 48), (120, 30, 20)))
    add("pages", "TIFF", save_all=True, append_images=[image])
    sixteen = LESION.astype(np.uint16) * 16
    for name, values, options in (
        ("tiff of 16 bits", sixteen, {"photometric": "rgb"}),
        ("tiff of planes", np.moveaxis(sixteen, 2, 0), {"photometric": "rgb", "planarconfig": "separate"}),
        ("tiff of grey", sixteen[..., 0], {"photometric": "miniswhite"}),
        ("tiff of tiles", LESION, {"photometric": "rgb", "tile": (16, 16), "compression": "zlib"}),
    ):
        file = io.BytesIO()
        tifffile.imwrite(file, values, **options)
        files[name] = file.getvalue()
    files["png of 16 bits"] = png(sixteen, 2, (b"gAMA", struct.pack(">I", 45_455)), (b"cICP", b"\1\15\0\1")).getvalue()
    files["png of 16-bit grey"] = png(sixteen[..., 0], 0, (b"tRNS", b"\0\7")).getvalue()
    files["heic"] = Path(__file__).with_name("lesion.heic").read_bytes()
    table: dict[str, Any] = {}
    for colour in ("Red", "Green", "Blue"):
        table[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        table[f"{colour}PaletteColorLookupTableData"] = np.arange(256, dtype=np.uint16).tobytes()
    table |= {"SamplesPerPixel": 1, "PhotometricInterpretation": "PALETTE COLOR"}
    paths = [
        dicom(folder / "dicom", ICCProfile=PROFILE),
        dicom(folder / "dicom of a jpeg", encapsulate([encoded("JPEG")]), JPEGBaseline8Bit),
        dicom(folder / "dicom of jpeg 2000", encapsulate([encoded("JPEG2000", irreversible=False)]), JPEG2000Lossless),
        dicom(folder / "dicom of a palette", PIXELS[..., 0].copy(), **table),
        dicom(folder / "dicom of run lengths"),
    ]
    runs = pydicom.dcmread(paths[-1])
    runs.compress(RLELossless)
    runs.save_as(paths[-1])
    return files | {path.name: path.read_bytes() for path in paths}


def _cut(whole: bytes, rng: np.random.Generator) -> bytes:
    return whole[: rng.integers(1, len(whole))]


def _flip(whole: bytes, rng: np.random.Generator) -> bytes:
    damaged = np.frombuffer(whole, np.uint8).copy()
    reach = len(whole) if rng.random() < 0.5 else min(len(whole), 700)  # the headers lie in front
    for place in rng.integers(0, reach, rng.integers(1, 12)):
        damaged[place] ^= 1 << rng.integers(8)
    return damaged.tobytes()


def _lengths(whole: bytes, rng: np.random.Generator) -> bytes:
    """Two- and four-byte numbers that are far too large, zero or negative."""
    damaged = bytearray(whole)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(2, max(3, min(len(whole), 1500))))
        value = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xff", b"\0\0", b"\x80\0")[
            rng.integers(6)
        ]
        damaged[at : at + len(value)] = value
    return bytes(damaged[: len(whole)])


def _drop(whole: bytes, rng: np.random.Generator) -> bytes:
    at = int(rng.integers(1, len(whole)))
    return whole[:at] + whole[at + int(rng.integers(1, 64)) :]


def _repeat(whole: bytes, rng: np.random.Generator) -> bytes:
    at, length = int(rng.integers(1, len(whole))), int(rng.integers(1, 400))
    return whole[: at + length] + whole[at : at + length] * int(rng.integers(1, 30)) + whole[at + length :]


WAYS: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "cut": _cut,
    "flipped": _flip,
    "lengths": _lengths,
    "dropped": _drop,
    "repeated": _repeat,
}


def _valid_checksums(content: bytes) -> bytes:
    """A PNG whose chunks have the right checksums, so that a decoder does not stop at the first damaged one."""
    fixed, at = content[:8], 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        if at + 12 + length > len(content):
            break
        body = content[at + 4 : at + 8 + length]
        fixed += content[at : at + 8 + length] + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return fixed + content[at:]


def malformed(folder: Path, number: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Name and content of this number of files, each format and each kind of damage in turn."""
    whole = whole_files(folder)
    names, ways = list(whole), [*WAYS, "swapped"]
    for n in range(number):
        rng = np.random.default_rng([seed, n])
        name, way = names[n % len(names)], ways[n // len(names) % len(ways)]
        if way == "swapped":  # the beginning of one file, the rest of another
            head = int(rng.integers(4, 200))
            damaged = whole[names[rng.integers(len(names))]][:head] + whole[name][head:]
        else:
            damaged = WAYS[way](whole[name], rng)
        if damaged.startswith(b"\x89PNG") and rng.random() < 0.6:
            damaged = _valid_checksums(damaged)
        yield f"{n}: {name}, {way}", damaged
