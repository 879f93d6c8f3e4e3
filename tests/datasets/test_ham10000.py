"""HAM10000 in the layouts that people have, drawn by the embedded sample."""

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dermrw.datasets.ham10000 import find_ham10000, read_ham10000, with_images
from dermrw.datasets.official import find_official
from dermrw.datasets.readable import read_all, readable
from dermrw.datasets.split import meta_set
from dermrw.datasets.verify import check
from dermrw.diagnoses import COLUMNS, DX
from dermrw.errors import UserError


@pytest.fixture
def copy(sample: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sample, tmp_path / "ham"))


def one_hot(table: pd.DataFrame) -> pd.DataFrame:
    values = pd.DataFrame(np.eye(7)[[DX.index(dx) for dx in table["dx"]]], columns=list(COLUMNS))
    values.insert(0, "image", table["image_id"].to_numpy())
    return values


def as_isic(sample: Path, root: Path) -> pd.DataFrame:
    """The sample in ISIC 2018 Task 3's layout, as its zips unpack."""
    table = pd.read_csv(sample / "HAM10000_metadata.csv")
    (root / "ISIC2018_Task3_Training_Input").mkdir(parents=True)
    for image in sample.rglob("*.jpg"):
        shutil.copy(image, root / "ISIC2018_Task3_Training_Input")
    (root / "ISIC2018_Task3_Training_GroundTruth").mkdir()
    one_hot(table).to_csv(
        root / "ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv", index=False
    )
    words = {
        "histo": "histopathology",
        "follow_up": "serial imaging showing no change",
        "consensus": "single image expert consensus",
        "confocal": "confocal microscopy with consensus dermoscopy",
    }
    groups = pd.DataFrame({"image": table["image_id"], "lesion_id": table["lesion_id"]})
    groups["diagnosis_confirm_type"] = table["dx_type"].map(words)
    groups.to_csv(root / "ISIC2018_Task3_Training_LesionGroupings.csv", index=False)
    return table


def test_every_layout_gives_the_same_table(sample: Path, copy: Path, tmp_path: Path) -> None:
    expected = read_ham10000(sample)
    assert len(expected) == 200 and (expected["path"] != "").all()

    one_folder = Path(shutil.copytree(copy, tmp_path / "one"))
    for image in (one_folder / "HAM10000_images_part_2").iterdir():
        image.rename(one_folder / "HAM10000_images_part_1" / image.name)
    (one_folder / "HAM10000_metadata.csv").rename(one_folder / "HAM10000_metadata")

    twice = Path(shutil.copytree(copy, tmp_path / "twice"))  # Kaggle's archive holds the folders twice
    shutil.copytree(twice / "HAM10000_images_part_1", twice / "ham10000_images_part_1")

    tab = Path(shutil.copytree(copy, tmp_path / "tab"))
    pd.read_csv(tab / "HAM10000_metadata.csv").to_csv(tab / "HAM10000_metadata.tab", sep="\t", index=False)
    (tab / "HAM10000_metadata.csv").unlink()

    for root in (one_folder, twice, tab):
        table = with_images(read_ham10000(root), root)
        pd.testing.assert_frame_equal(table.drop(columns="path"), expected.drop(columns="path"))

    as_isic(sample, tmp_path / "isic")
    columns = ["image_id", "lesion_id", "dx", "dx_type"]
    isic = with_images(read_ham10000(tmp_path / "isic"), tmp_path / "isic")
    pd.testing.assert_frame_equal(isic[columns], expected[columns])


def test_isic_without_lesions_is_refused(sample: Path, tmp_path: Path) -> None:
    as_isic(sample, tmp_path)
    (tmp_path / "ISIC2018_Task3_Training_LesionGroupings.csv").unlink()
    with pytest.raises(UserError, match="LesionGroupings"):
        read_ham10000(tmp_path)


def test_where_it_is_looked_for(sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_ham10000(None) is None
    (tmp_path / "data/ham10000").mkdir(parents=True)
    assert find_ham10000(None) == (tmp_path / "data/ham10000").resolve()
    monkeypatch.setenv("HAM10000_DIR", str(sample))
    assert find_ham10000(None) == sample.resolve()
    assert find_ham10000(str(tmp_path)) == tmp_path.resolve()
    with pytest.raises(UserError, match=r"data\.root"):
        find_ham10000("/nowhere")
    monkeypatch.setenv("HAM10000_DIR", "/nowhere")
    with pytest.raises(UserError, match="HAM10000_DIR"):
        find_ham10000(None)
    with pytest.raises(UserError, match="holds neither"):
        read_ham10000(tmp_path)


def edit(root: Path, change: object) -> None:
    path = root / "HAM10000_metadata.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table = change(table)  # type: ignore[operator]
    table.to_csv(path, index=False)


def row0(column: str, value: str) -> object:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[0, column] = value
        return table

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (row0("dx", "wart"), "'wart'"),
        (row0("dx", ""), "''"),
        (row0("image_id", "../x"), "not an image id"),
        (row0("image_id", ""), "no image_id"),
        (row0("lesion_id", ""), "no lesion_id"),
        (lambda t: t.drop(columns="dx"), "lacks the column dx"),
        (lambda t: pd.concat([t, t.iloc[[3]]]), "twice"),
        (lambda t: t.assign(lesion_id="L1"), "two diagnoses"),
        (lambda t: t.iloc[:0], "lists no image"),
    ],
)
def test_bad_metadata_is_named(copy: Path, change: object, named: str) -> None:
    edit(copy, change)
    with pytest.raises(UserError, match=named) as caught:
        read_ham10000(copy)
    assert "HAM10000_metadata.csv" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"\x00\xff\xfe" * 50, b'a,"b\nc'])
def test_metadata_that_is_no_table(copy: Path, data: bytes) -> None:
    (copy / "HAM10000_metadata.csv").write_bytes(data)
    with pytest.raises(UserError, match="HAM10000_metadata"):
        read_ham10000(copy)


def test_official_sets_beside_and_below(sample: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(sample, tmp_path / "ham10000"))
    assert find_official(root, "Validation") is None
    table = pd.read_csv(sample / "HAM10000_metadata.csv").head(20)
    for folder in (tmp_path / "isic2018_task3_validation", root / "below"):
        inputs = folder / "ISIC2018_Task3_Validation_Input"
        inputs.mkdir(parents=True)
        one_hot(table).to_csv(folder / "ISIC2018_Task3_Validation_GroundTruth.csv", index=False)
        for name in table["image_id"]:
            shutil.copy(next(sample.rglob(f"{name}.jpg")), inputs)
        found = find_official(root, "Validation")
        assert found is not None
        expected = table.sort_values("image_id")
        assert found.table["image_id"].tolist() == expected["image_id"].tolist()
        assert found.table["dx"].tolist() == expected["dx"].tolist()
        assert found.table["lesion_id"].tolist() == expected["image_id"].tolist()  # unknown: each image its own
        shutil.rmtree(folder)


def test_check(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(copy)
    out = capsys.readouterr().out
    assert "200 images" in out and "missing: 0" in out and "Complete" in out
    images = sorted(copy.rglob("*.jpg"))
    shutil.copy(images[0], images[1])
    images[2].write_bytes(images[2].read_bytes()[:300])
    images[3].unlink()
    with pytest.raises(UserError, match="1 image and 1 can't be read"):
        check(copy)
    out = capsys.readouterr().out
    assert f"{images[0].stem} = {images[1].stem}" in out
    assert images[2].stem in out and images[3].stem in out


def test_folders_behind_links_are_read(copy: Path, tmp_path: Path) -> None:
    expected = read_ham10000(copy)
    for name in ("HAM10000_images_part_2", "HAM10000_metadata.csv"):
        (copy / name).rename(tmp_path / name)
    (copy / "HAM10000_images_part_2").symlink_to(tmp_path / "HAM10000_images_part_2")
    (tmp_path / "tables").mkdir()
    (tmp_path / "HAM10000_metadata.csv").rename(tmp_path / "tables/HAM10000_metadata.csv")
    (copy / "tables").symlink_to(tmp_path / "tables")
    (copy / "HAM10000_images_part_1/up").symlink_to(copy)  # ends
    found = read_ham10000(copy)
    assert (found["path"] != "").all()
    pd.testing.assert_frame_equal(found.drop(columns="path"), expected.drop(columns="path"))


def test_ids_that_carry_a_files_ending(copy: Path) -> None:
    edit(copy, lambda t: t.assign(image_id=t["image_id"] + ".jpg"))
    with pytest.raises(UserError, match=r"HAM10000_metadata\.csv: the image id (\S+)\.jpg ends in .* write \1,"):
        read_ham10000(copy)


def test_sentences_name_what_was_typed(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for typed in ("/nowhere", "~nobodyx/y"):
        with pytest.raises(UserError, match=f"the folder to check is {typed}"):
            check(Path(typed))
        monkeypatch.setenv("HAM10000_DIR", typed)
        with pytest.raises(UserError, match=f"HAM10000_DIR is {typed}"):
            find_ham10000(None)
        monkeypatch.delenv("HAM10000_DIR")
    as_isic(copy, tmp_path / "isic")
    groups = tmp_path / "isic/ISIC2018_Task3_Training_LesionGroupings.csv"
    lines = groups.read_text().splitlines()
    groups.write_text("\n".join(lines[:-1]))
    with pytest.raises(UserError, match=r"names no lesion for \w+: is it"):
        read_ham10000(tmp_path / "isic")


def test_nothing_is_left_to_train_on(copy: Path) -> None:
    for image in copy.rglob("*.jpg"):
        image.unlink()
    with pytest.raises(UserError, match="200 are missing and 0 can't be read, which leaves none"):
        readable(read_ham10000(copy), copy)


def test_pipes_among_the_data(copy: Path) -> None:
    image = sorted(copy.rglob("*.jpg"))[0]
    image.unlink()
    os.mkfifo(image)
    assert "is a pipe or a device" in read_all(read_ham10000(copy))[0][0][1]
    os.mkfifo(copy / "list.csv")
    with pytest.raises(UserError, match="is a pipe or a device"):
        meta_set(read_ham10000(copy), str(copy / "list.csv"), 3)
