"""`dermrw predict FOLDER`: phones' folders, archives and discs, decided by content. The tests draw every file."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from conftest import command
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from dermrw.datasets.sample_drawing import draw_lesion
from dermrw.errors import UserError
from dermrw.files import walk
from dermrw.inference.find_images import find_images

PIXELS = draw_lesion("nv", np.random.default_rng(0), np.random.default_rng(1), 60, 80)
STORAGE = "1.2.840.10008.5.1.4.1.1."
HEIC = Path(__file__).parents[1] / "images/lesion.heic"
NOT_PICTURES = {
    "SR000001": "88.11", "SR000002": "88.67", "PR000001": "11.1", "PDF00001": "104.1", "RT000001": "481.3",
    "RT000002": "481.5", "ECG00001": "9.1.1", "REG00001": "66.1", "KO000001": "88.59",
}  # fmt: skip


def encoded(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind, **options)
    return file.getvalue()


def dicom(storage_class: str, picture: bool = True) -> bytes:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = UID(storage_class)
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    data.PatientName = "Smith^Mary"
    if picture:
        data.Rows, data.Columns, data.SamplesPerPixel = 60, 80, 3
        data.PhotometricInterpretation, data.PlanarConfiguration, data.PixelRepresentation = "RGB", 0, 0
        data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7
        data.PixelData = PIXELS.tobytes()
    file = io.BytesIO()
    pydicom.dcmwrite(file, data, enforce_file_format=True)
    return file.getvalue()


def disc(root: Path) -> Path:
    """A CD as an archive writes it: a viewer, a list of files, pictures without endings, and other documents."""
    photograph = dicom(STORAGE + "77.1.4")
    files = {
        "DICOMDIR": dicom("1.2.840.10008.1.3.10", picture=False),
        "README.TXT": b"Insert the disc.\r\n", "autorun.inf": b"[autorun]\r\nopen=VIEWER.EXE\r\n",
        "VIEWER.EXE": b"MZ\x90\0" + bytes(400), "Thumbs.db": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(1000),
        ".DS_Store": b"\0\0\0\1Bud1" + bytes(100), "HELP/INDEX.HTM": b"<html><body>Help</body></html>",
        "DICOM/PA000001/ST000001/SE000001/IM000001": photograph,
        "DICOM/PA000001/ST000001/SE000001/IM000002": photograph,
        "DICOM/PA000001/ST000001/SE000002/IM000001": photograph,
        "DICOM/PA000001/ST000001/SE000002/LOCKFILE": b"",
    }  # fmt: skip
    for name, storage_class in NOT_PICTURES.items():
        files[f"DICOM/PA000001/ST000001/SE000003/{name}"] = dicom(STORAGE + storage_class, picture=False)
    return written(root, files)


def written(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def ids(out: Path) -> list[str]:
    return [line.split(",")[0] for line in out.read_text().splitlines()[1:]]


def test_a_disc(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = disc(tmp_path / "cd"), tmp_path / "out.csv"
    (root / "DICOM/LOOP").symlink_to(root / "DICOM", target_is_directory=True)
    (root / "SELF").symlink_to(root / "SELF")
    command(monkeypatch, "predict", str(model_file), str(root), "--csv", str(out))  # status 0
    series = "DICOM/PA000001/ST000001/SE00000"
    assert sorted(ids(out)) == [f"{series}1/IM000001", f"{series}2/IM000001", "IM000002"]
    printed = capsys.readouterr().out
    assert "3 images into" in printed and "18 files that aren't images skipped" in printed and "Mary" not in printed
    assert f"2 files share a name, so their paths are their ids ({series}1/IM000001 and 1 more)" in printed
    # a picture that is cut short and a link to itself are named, and the others are in the CSV
    (root / "SELF.jpg").symlink_to(root / "SELF.jpg")
    whole = (root / f"{series}1/IM000002").read_bytes()
    (root / f"{series}1/IM000002").write_bytes(whole[:-9000])
    with pytest.raises(SystemExit) as caught:
        command(monkeypatch, "predict", str(model_file), str(root), "--csv", str(out))
    error = capsys.readouterr().err
    assert caught.value.code == 2 and len(ids(out)) == 2
    assert "2 images are not in" in error and "SELF.jpg" in error
    assert "IM000002 is a DICOM file that is damaged" in error


def test_a_phones_folder(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jpeg, out = encoded("JPEG"), tmp_path / "out.csv"
    root = written(
        tmp_path / "DCIM/100APPLE",
        {
            "IMG_0001.JPG": jpeg, "IMG_0001.AAE": b"<?xml version='1.0'?><plist></plist>",
            "IMG_0001.MOV": b"\0\0\0\x14ftypqt  \0\0\0\0qt  " + bytes(500),
            "IMG_0002.HEIC": HEIC.read_bytes(), "._IMG_0002.HEIC": b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(200),
            "IMG_0003.jfif": jpeg, "PXL_4.MP.jpg": jpeg + b"\0\0\0\x1cftypmp42" + bytes(900),  # a motion photo
            "VID_5.MP4": b"\0\0\0\x1cftypmp42\0\0\0\0isommp42" + bytes(300), ".nomedia": b"",
            ".thumbdata4": b"\0" * 50,
        },
    )  # fmt: skip
    command(monkeypatch, "predict", str(model_file), str(root), "--csv", str(out))
    assert ids(out) == ["IMG_0001", "IMG_0002", "IMG_0003", "PXL_4.MP"]
    assert "6 files that aren't images skipped" in capsys.readouterr().out
    # what has a picture's ending and none in it
    written(root, {"IMG_0006.HEIC": bytes(524), "IMG_0007.JPG": b"", "IMG_0008.gif": b""})
    (root / "IMG_0009.jpg").symlink_to(root / "absent.jpg")
    with pytest.raises(SystemExit) as caught:
        command(monkeypatch, "predict", str(model_file), str(root), "--csv", str(out))
    error = capsys.readouterr().err
    assert caught.value.code == 2 and "4 images are not in" in error and len(ids(out)) == 4
    for name in ("IMG_0006.HEIC", "IMG_0007.JPG", "IMG_0008.gif", "IMG_0009.jpg"):
        assert name in error


def test_every_ending_and_none(tmp_path: Path) -> None:
    jpeg = encoded("JPEG")
    files = {
        "a.jpg": jpeg, "b.jfif": jpeg, "c.jpe": jpeg, "d.mpo": encoded("MPO", save_all=True, append_images=[]),
        "IM000001": dicom(STORAGE + "77.1.4"), "f.dicom": dicom(STORAGE + "7"), "g.HEIC": HEIC.read_bytes(),
        "h.avif": encoded("AVIF"), "i.heif": HEIC.read_bytes(), "j.PNG": encoded("PNG"), "k.txt": encoded("WEBP"),
        "l.tif": encoded("TIFF"), "m": encoded("BMP"), "1.2.840.113": dicom(STORAGE + "7"),
    }  # fmt: skip
    inputs = find_images([written(tmp_path, files)])
    assert sorted(inputs.images) == sorted(name if name[0] in "I1" else name[0] for name in files)
    assert not inputs.skipped and not inputs.misnamed and not inputs.by_path


def test_pictures_that_are_not_read_are_images_too(tmp_path: Path) -> None:
    files = {"a.gif": encoded("GIF"), "b.jxl": b"\xff\x0a" + bytes(200), "c.psd": b"8BPS" + bytes(200)}
    files |= {"d.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>", "e.pdf": b"%PDF-1.7\n", "f.docx": b"PK\3\4"}
    inputs = find_images([written(tmp_path, files)])
    assert list(inputs.images) == ["a", "b", "c"] and [path.name for path in inputs.skipped] == [
        "d.svg",
        "e.pdf",
        "f.docx",
    ]


def test_files_of_one_name_stay_apart(tmp_path: Path) -> None:
    jpeg, png = encoded("JPEG"), encoded("PNG")
    root = written(
        tmp_path / "r", {"a.jpg": jpeg, "a.png": png, "x/IMG_1.JPG": jpeg, "y/IMG_1.JPG": jpeg, "z.png": png}
    )
    inputs = find_images([root])
    assert inputs.images == {name: root / name for name in ("a.jpg", "a.png", "x/IMG_1.JPG", "y/IMG_1.JPG")} | {
        "z": root / "z.png"
    }
    assert inputs.by_path == ["a.jpg", "a.png", "x/IMG_1.JPG", "y/IMG_1.JPG"]
    # two folders with the same names below them
    assert list(find_images([root / "x", root / "y"]).images) == [f"{root.resolve()}/{s}/IMG_1.JPG" for s in "xy"]
    # named twice, or by the folder and by itself
    assert list(find_images([root / "x", root / "x", root / "x/IMG_1.JPG"]).images) == ["IMG_1"]
    # a name that is another file's path
    (root / "a.jpg.png").write_bytes(png)
    assert len(find_images([root]).images) == 6


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may read every file")
def test_a_file_without_permission_counts_as_a_picture(tmp_path: Path) -> None:
    root = written(tmp_path, {"IM000001": dicom(STORAGE + "7"), "notes.txt": b""})
    (root / "IM000001").chmod(0)
    assert list(find_images([root]).images) == ["IM000001"]


def test_an_absent_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file or folder"):
        find_images([tmp_path / "absent"])


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Except hidden folders and those of a disk's operating system. Administrators can read all, so it is imitated."""
    for name in ("seen", "shut"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"")
    scan = os.scandir

    def scandir(path: str) -> object:
        if Path(path).name in ("shut", "lost+found", ".Trash"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"the folder .*shut can't be read"):
        list(walk(tmp_path, strict=True))
    assert [path.parent.name for path in walk(tmp_path)] == ["seen"]
    for name in ("lost+found", ".Trash"):
        (tmp_path / name).mkdir()
    (tmp_path / "shut").rename(tmp_path / "open")
    assert [path.parent.name for path in walk(tmp_path, strict=True)] == ["open", "seen"]
