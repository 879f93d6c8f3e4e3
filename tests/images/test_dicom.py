"""DICOM files: made here, one of each way of storing a picture; and the samples that pydicom ships."""

import io
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)
from tools.encodings import dicom as written_dicom

from dermrw.datasets.sample_drawing import draw_lesion
from dermrw.errors import UserError
from dermrw.images.preprocess import read_image

PIXELS = draw_lesion("mel", np.random.default_rng(0), np.random.default_rng(1), 60, 80)  # [60, 80, 3]


def dicom(path: Path, pixels: Any = PIXELS, syntax: Any = ExplicitVRLittleEndian, **tags: Any) -> Path:
    """A DICOM file of these pixels, uint8 or uint16 `[H, W, 3]`, or of these bytes, of 80 × 60 pixels."""
    return written_dicom(path, pixels, syntax, **{"Rows": 60, "Columns": 80} | tags)


def encoded(kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(PIXELS).save(out, kind, **options)
    return out.getvalue()


def test_every_way_of_storing_a_picture(tmp_path: Path) -> None:
    jpeg = encoded("JPEG", quality=95)
    lossless = encoded("JPEG2000", irreversible=False)
    rle = dicom(tmp_path / "r.dcm")
    compressed = pydicom.dcmread(rle)
    compressed.compress(RLELossless)
    compressed.save_as(rle)
    for path in (
        dicom(tmp_path / "a.dcm"),
        dicom(tmp_path / "b.dcm", syntax=ImplicitVRLittleEndian),
        dicom(tmp_path / "c.dcm", PIXELS.transpose(2, 0, 1), PlanarConfiguration=1),
        dicom(tmp_path / "d.dcm", PIXELS.astype(np.uint16) * 257),
        dicom(tmp_path / "e.dcm", encapsulate([lossless]), JPEG2000Lossless, PhotometricInterpretation="YBR_RCT"),
        dicom(tmp_path / "no-ending-like-it", PIXELS),
        rle,
    ):
        image = read_image(path)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), PIXELS)
        assert not image.info and "Smith" not in repr(image.__dict__)
    lossy = dicom(tmp_path / "j.dcm", encapsulate([jpeg]), JPEGBaseline8Bit, PhotometricInterpretation="YBR_FULL_422")
    expected = np.asarray(Image.open(io.BytesIO(jpeg)))
    np.testing.assert_allclose(np.asarray(read_image(lossy), int), expected, atol=2)  # another rounding of YCbCr
    with lossy.open("rb") as file:
        assert read_image(file).size == (80, 60)


def test_a_palette(tmp_path: Path) -> None:
    index = np.arange(4800).reshape(60, 80) % 256
    table = np.random.default_rng(0).integers(0, 256, (3, 256)).astype(np.uint16)
    tags = {}
    for colour, row in zip(("Red", "Green", "Blue"), table, strict=True):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"{colour}PaletteColorLookupTableData"] = (row * 257).tobytes()
    path = dicom(
        tmp_path / "p.dcm", index.astype(np.uint8), SamplesPerPixel=1, PhotometricInterpretation="PALETTE COLOR", **tags
    )
    np.testing.assert_array_equal(np.asarray(read_image(path)), table.T[index])


@pytest.mark.parametrize("factor", [1, 16, 256, 257])
def test_a_palette_of_8_or_12_bits_in_words_of_16(tmp_path: Path, factor: int) -> None:
    index = (np.arange(4800).reshape(60, 80) % 256).astype(np.uint8)
    table = np.random.default_rng(0).integers(0, 256, (3, 256)).astype(np.uint16)
    tags = {}
    for colour, row in zip(("Red", "Green", "Blue"), table, strict=True):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"{colour}PaletteColorLookupTableData"] = (row * factor).tobytes()
    path = dicom(tmp_path / "p.dcm", index, SamplesPerPixel=1, PhotometricInterpretation="PALETTE COLOR", **tags)
    assert np.abs(np.asarray(read_image(path), int) - table.T[index]).max() <= 1


def test_bits_that_a_file_does_not_use(tmp_path: Path) -> None:
    twelve = (PIXELS / 255 * 4095).round().astype(np.uint16)
    stated = read_image(dicom(tmp_path / "a.dcm", twelve, BitsStored=12, HighBit=11))
    unstated = read_image(dicom(tmp_path / "b.dcm", twelve))
    for image, notes in (
        (stated, None),
        (unstated, ["its 16-bit values use 12 bits alone and were scaled to the full range"]),
    ):
        assert np.abs(np.asarray(image, int) - PIXELS).max() <= 1 and image.info.get("notes") == notes
    with pytest.raises(UserError, match=r"values do not end at their lowest bit \(HighBit 15, BitsStored 12\)"):
        read_image(dicom(tmp_path / "c.dcm", twelve * 16, BitsStored=12, HighBit=15))


@pytest.mark.parametrize(
    ("modality", "notes"),
    [
        ("DMS", None),
        ("XC", None),
        ("US", ["its modality is US, not dermoscopy"]),
        ("Mary", ["its modality is unknown, not dermoscopy"]),
    ],
)
def test_another_modality_is_noted(tmp_path: Path, modality: str, notes: list[str] | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = dicom(tmp_path / "m.dcm", Modality=modality)
    assert read_image(path).info.get("notes") == notes


def test_colours_by_the_stated_interpretation(tmp_path: Path) -> None:
    ycbcr = np.asarray(Image.fromarray(PIXELS).convert("YCbCr"))
    half = np.stack([ycbcr[:, ::2, 0], ycbcr[:, 1::2, 0], ycbcr[:, ::2, 1], ycbcr[:, ::2, 2]], -1)
    for name, pixels, tags in (
        ("a", ycbcr, {"PhotometricInterpretation": "YBR_FULL"}),
        ("b", ycbcr.transpose(2, 0, 1).copy(), {"PhotometricInterpretation": "YBR_FULL", "PlanarConfiguration": 1}),
        ("c", half.copy(), {"PhotometricInterpretation": "YBR_FULL_422"}),
        ("d", PIXELS, {"RescaleSlope": "2", "WindowCenter": "10", "WindowWidth": "20"}),  # for grey pictures only
    ):
        actual = np.asarray(read_image(dicom(tmp_path / name, pixels, **tags)), int)
        assert np.abs(actual - PIXELS).mean() < 2, name
    for kind in ("HSV", "YBR_PARTIAL_422"):
        with pytest.raises(UserError, match=f"is a DICOM file in {kind}, which is not read"):
            read_image(dicom(tmp_path / "e", PhotometricInterpretation=kind))


def test_what_is_not_read_gets_a_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def made(name: str, *arguments: Any, **tags: Any) -> Path:
        return dicom(tmp_path / name, *arguments, **tags)

    jpeg = encapsulate([encoded("JPEG")])
    cut = made("cut.dcm")
    cut.write_bytes(cut.read_bytes()[:-5000])
    empty = made("empty.dcm")
    data = pydicom.dcmread(empty)
    del data.PixelData
    data.save_as(empty)
    deflated = made("deflated.dcm", np.zeros((60, 80, 3), np.uint8), Rows=60)
    data = pydicom.dcmread(deflated)
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.save_as(deflated)
    noise = tmp_path / "noise.dcm"
    noise.write_bytes(bytes(128) + b"DICM" + np.random.default_rng(0).bytes(5000))
    for path, reason in (
        (cut, "damaged or breaks the standard"),
        (noise, "is a DICOM file"),
        (empty, "without a picture"),
        (deflated, "deflated"),
        (made("two.dcm", np.stack([PIXELS] * 2), NumberOfFrames=2), "of 2 pictures"),
        (made("grey.dcm", PIXELS[..., 0], SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2"), "grey"),
        (made("large.dcm", Rows=50_000, Columns=50_000), "50000 × 50000 pixels, more than"),
        # a JPEG that is larger than the file says
        (made("bomb.dcm", jpeg, JPEGBaseline8Bit, Rows=30), "damaged or breaks the standard"),
        (
            made("runs.dcm", encapsulate([bytes(64) + b"\x81\0" * 200_000]), RLELossless),
            "damaged or breaks the standard",
        ),
        (made("wide.dcm", PIXELS.astype(np.uint16), BitsAllocated=32), "damaged or breaks the standard"),
        (
            made("items.dcm", encapsulate([b"xy"] * 11_000), JPEGBaseline8Bit),
            "more than 10,000 items",
        ),
        (made("ls.dcm", jpeg, JPEGLSLossless), "in JPEG-LS Lossless Image Compression, which isn't read here"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            read_image(path)
        assert path.name in str(caught.value) and "Mary" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_deflated_bomb_is_not_unpacked(tmp_path: Path) -> None:
    whole = dicom(tmp_path / "x.dcm").read_bytes()
    head = whole[: whole.index(b"\x08\x00\x16\x00")].replace(b"1.2.840.10008.1.2.1\x00", b"1.2.840.10008.1.2.1.99"[:20])
    squeezed = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = tmp_path / "bomb.dcm"
    # the syntax stands behind a long private element, where no look at the first bytes would find it
    bomb.write_bytes(head + bytes(100_000) + b"1.2.840.10008.1.2.1.99" + squeezed.compress(bytes(10**8)))
    with pytest.raises(UserError, match="deflated"):
        read_image(bomb)


SAMPLES = sorted((Path(pydicom.__file__).parent / "data/test_files").glob("*.dcm"))


def test_nothing_in_a_file_is_printed(tmp_path: Path) -> None:
    odd = dicom(tmp_path / "odd.dcm")
    odd.write_bytes(odd.read_bytes().replace(b"19500101", b"Mary1950"))
    code = "import sys; from dermrw.images.preprocess import read_image; read_image(sys.argv[1])"
    for path in (odd, next(p for p in SAMPLES if p.name == "SC_rgb_jpeg.dcm")):  # pydicom warns of both
        ended = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
        assert (ended.stdout, ended.stderr) == ("", "")


@pytest.mark.parametrize("path", SAMPLES, ids=lambda p: p.name)
def test_pydicoms_own_samples_are_read_or_refused(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    try:
        image = read_image(path)
    except UserError as error:
        assert path.name in str(error)
    else:
        assert image.mode == "RGB" and path.name.startswith(("SC_", "examples_", "ExplVR"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("options", [{"mct": 1, "no_jp2": True}, {"mct": 1}, {"mct": 0}])
@pytest.mark.parametrize("kind", ["YBR_FULL", "YBR_FULL_422"])
def test_jpeg_2000_that_states_rgb_against_the_tag(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    frame = encapsulate([encoded("JPEG2000", irreversible=False, **options)])
    image = read_image(dicom(tmp_path / "a.dcm", frame, JPEG2000Lossless, PhotometricInterpretation=kind))
    assert np.array_equal(np.asarray(image), PIXELS)


def test_jpeg_2000_of_ycbcr(tmp_path: Path) -> None:
    out = io.BytesIO()
    ycbcr = np.asarray(Image.fromarray(PIXELS).convert("YCbCr"))
    Image.fromarray(ycbcr).save(out, "JPEG2000", irreversible=False, mct=0, no_jp2=True)
    frame = encapsulate([out.getvalue()])
    image = read_image(dicom(tmp_path / "a.dcm", frame, JPEG2000Lossless, PhotometricInterpretation="YBR_FULL"))
    assert np.abs(np.asarray(image, dtype=int) - PIXELS).mean() < 2
