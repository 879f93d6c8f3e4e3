"""One picture in many encodings, colour spaces and orientations, drawn for the tests."""

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import tifffile
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from dermrw.images.colour import ADOBE_GAMMA, ADOBE_RGB, PRIMARIES, Chromaticities, _adapt, _to_xyz

P3 = PRIMARIES[12]
PROPHOTO: Chromaticities = (0.3457, 0.3585, 0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001)
SPACES = {"p3": (P3, 2.19921875), "adobe": (ADOBE_RGB, ADOBE_GAMMA), "prophoto": (PROPHOTO, 1.80078125)}
LOSSY = 4.0  # mean difference in levels of 255 that lossy compression may cause


def icc(primaries: Chromaticities, gamma: float) -> bytes:
    """A matrix profile of version 2, as ICC.1:2001-04 lays it out, written by hand."""
    d50 = np.array([0.9642, 1.0, 0.8249])
    xy = lambda x, y: np.array([x / y, 1.0, (1 - x - y) / y])  # noqa: E731
    white = xy(*primaries[:2])
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    adapt = np.linalg.inv(bradford) @ np.diag((bradford @ d50) / (bradford @ white)) @ bradford
    columns = np.stack([xy(*primaries[n : n + 2]) for n in (2, 4, 6)], 1)
    columns = adapt @ (columns * np.linalg.solve(columns, white))

    def number(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(values: np.ndarray) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(map(number, values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(11 + 67)
    tags = [(b"desc", text), (b"cprt", b"text\0\0\0\0none\0"), (b"wtpt", xyz(d50))]
    tags += [(name, xyz(columns[:, n])) for n, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))]
    tags += [(name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")]
    at, table, body = 132 + 12 * len(tags), b"", b""
    for name, content in tags:
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", at + len(body), len(content))
        body += content
    head = struct.pack(">I4sI4s4s4s12s4s", 0, b"", 0x02400000, b"mntr", b"RGB ", b"XYZ ", b"", b"acsp")
    head = head.ljust(68, b"\0") + b"".join(map(number, d50)) + bytes(48)
    whole = head + struct.pack(">I", len(tags)) + table + body
    return struct.pack(">I", len(whole)) + whole[4:]


def stored_as(pixels: np.ndarray, primaries: Chromaticities, gamma: float) -> Image.Image:
    """sRGB pixels as a file of other primaries stores them, in float64: the inverse of what is tested."""
    v = pixels / 255
    light = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    matrix = (
        np.linalg.inv(_to_xyz(primaries)) @ np.linalg.inv(_adapt((primaries[0], primaries[1]))) @ _to_xyz(PRIMARIES[1])
    )
    return Image.fromarray((255 * (light @ matrix.T).clip(0, 1) ** (1 / gamma)).round().astype(np.uint8))


def dicom(path: Path, pixels: Any, syntax: Any = ExplicitVRLittleEndian, **tags: Any) -> Path:
    """A DICOM file of these pixels, uint8 or uint16 `[H, W, 3]`, or of these bytes; `tags` name rows and columns."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.77.1.7")  # dermoscopy
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    data.PatientName, data.PatientBirthDate = "Smith^Mary", "19500101"
    data.add_new(0x00091010, "LO", "a private Mary")
    data.SamplesPerPixel = 3
    data.PhotometricInterpretation, data.PlanarConfiguration, data.PixelRepresentation = "RGB", 0, 0
    data.BitsAllocated = data.BitsStored = 16 if getattr(pixels, "dtype", None) == np.uint16 else 8
    data.HighBit = data.BitsStored - 1
    native = syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)
    data.PixelData = pixels.tobytes() if isinstance(pixels, np.ndarray) else pixels
    if not native:
        data["PixelData"].is_undefined_length = True
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def encodings(folder: Path, pixels: np.ndarray) -> Iterator[tuple[Path, float]]:
    """A file of each encoding, and how far the mean level may be from `pixels`, uint8 `[H, W, 3]`."""
    image, height, width = Image.fromarray(pixels), *pixels.shape[:2]
    grid = (pixels // 51 * 51).astype(np.uint8)  # 216 colours, for a palette

    def saved(name: str, kind: str, picture: Image.Image = image, **options: Any) -> Path:
        picture.save(folder / name, kind, **options)
        return folder / name

    def tiff(name: str, values: np.ndarray, **options: Any) -> Path:
        tifffile.imwrite(folder / name, values, photometric="rgb", **options)
        return folder / name

    def encoded(kind: str, **options: Any) -> bytes:
        file = io.BytesIO()
        image.save(file, kind, **options)
        return encapsulate([file.getvalue()])

    sixteen, size = pixels.astype(np.uint16) * 257, {"Rows": height, "Columns": width}
    yield saved("baseline.jpg", "JPEG", quality=95), LOSSY
    yield saved("progressive.jpe", "JPEG", quality=95, progressive=True), LOSSY
    yield saved("inks.jpg", "JPEG", image.convert("CMYK"), quality=95), LOSSY
    yield saved("two.mpo", "MPO", quality=95, save_all=True, append_images=[image.resize((32, 24))]), LOSSY
    yield saved("plain.png", "PNG"), 0
    yield saved("clear.png", "PNG", image.convert("RGBA")), 0
    yield saved("palette.png", "PNG", Image.fromarray(grid).convert("P", palette=Image.Palette.ADAPTIVE)), 30
    yield saved("strips.tif", "TIFF"), 0
    yield saved("lzw.tif", "TIFF", compression="tiff_lzw"), 0
    yield tiff("tiles.tif", pixels, tile=(32, 32)), 0
    yield tiff("planes.tif", np.moveaxis(pixels, 2, 0), planarconfig="separate"), 0
    yield tiff("sixteen.tif", sixteen), 0
    yield tiff("sixteen_planes.tif", np.moveaxis(sixteen, 2, 0), planarconfig="separate"), 0
    yield saved("lossless.webp", "WEBP", lossless=True), 0
    yield saved("plain.bmp", "BMP"), 0
    yield saved("plain.avif", "AVIF", quality=95), LOSSY
    yield dicom(folder / "native.dcm", pixels, **size), 0
    yield dicom(folder / "sixteen.dicom", sixteen, **size), 0
    jpeg = encoded("JPEG", quality=95)
    yield dicom(folder / "IM000001", jpeg, JPEGBaseline8Bit, PhotometricInterpretation="YBR_FULL_422", **size), LOSSY
    lossless = encoded("JPEG2000", irreversible=False)
    yield dicom(folder / "IM000002", lossless, JPEG2000Lossless, PhotometricInterpretation="YBR_RCT", **size), 0
    runs = pydicom.dcmread(dicom(folder / "runs.dcm", pixels, **size))
    runs.compress(RLELossless)
    runs.save_as(folder / "runs.dcm")
    yield folder / "runs.dcm", 0


def colour_spaces(folder: Path, pixels: np.ndarray) -> Iterator[tuple[Path, float]]:
    """The same colours in files of other colour spaces, each with its ICC profile."""
    best: dict[str, dict[str, Any]] = {"WEBP": {"lossless": True}, "AVIF": {"quality": 95}, "JPEG": {"quality": 95}}
    for name, (primaries, gamma) in SPACES.items():
        image, profile = stored_as(pixels, primaries, gamma), icc(primaries, gamma)
        for kind in ("JPEG", "PNG", "TIFF", "WEBP", "AVIF"):
            path = folder / f"{name}.{kind.lower()}"
            image.save(path, kind, icc_profile=profile, **best.get(kind, {}))
            yield path, LOSSY
        size = {"Rows": pixels.shape[0], "Columns": pixels.shape[1]}
        yield dicom(folder / f"{name}.dcm", np.asarray(image), ICCProfile=profile, **size), LOSSY


def orientations(folder: Path, pixels: np.ndarray) -> Iterator[tuple[Path, float]]:
    """The same picture as cameras store it in each of EXIF's orientations."""
    turn = Image.Transpose
    stored = {2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE}
    stored |= {6: turn.ROTATE_90, 7: turn.TRANSVERSE, 8: turn.ROTATE_270}
    for orientation, transpose in stored.items():
        for kind in ("JPEG", "PNG", "TIFF", "WEBP", "AVIF"):
            exif = Image.Exif()
            exif[0x0112] = orientation
            path = folder / f"turned{orientation}.{kind.lower()}"
            options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
            Image.fromarray(pixels).transpose(transpose).save(path, kind, exif=exif, **options)
            yield path, LOSSY
