"""The official sets as ISIC and Dataverse publish them, with images missing."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dermrw.datasets.official import OfficialSet, find_official
from dermrw.datasets.verify import check
from dermrw.diagnoses import COLUMNS, DX
from dermrw.errors import UserError

TRUTH = "ISIC2018_Task3_Test_GroundTruth"
ZERO_WEIGHT = "ISIC_0035068"  # in the ground truth, with weight 0, and not among Dataverse's images


@pytest.fixture
def root(sample: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sample, tmp_path / "data" / "ham10000"))


def images_in(root: Path, folder: Path, n: int = 20) -> pd.DataFrame:
    """Copies n images of the sample under other ids; returns their rows, as HAM10000_metadata has them."""
    folder.mkdir(parents=True)
    table = pd.read_csv(root / "HAM10000_metadata.csv", dtype=str, keep_default_na=False).head(n)
    for i, image in enumerate(table["image_id"]):
        shutil.copy(next(root.glob(f"HAM*/{image}.jpg")), folder / f"ISIC_{i:07d}.jpg")
    table["image_id"] = [f"ISIC_{i:07d}" for i in range(n)]
    table["lesion_id"] = "HAMTEST_" + table["lesion_id"]
    table["dataset"] = "vidir_modern"
    return table


def as_tab(table: pd.DataFrame, path: Path) -> None:
    """Writes a table as Dataverse exports it: text in quotation marks, separated by tabs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    quoted = [
        [f'"{cell}"' if name != "age" else cell for name, cell in row.items()] for row in table.to_dict("records")
    ]
    path.write_text("\n".join(["\t".join(table.columns), *("\t".join(row) for row in quoted)]) + "\n")


def one_hot(table: pd.DataFrame) -> pd.DataFrame:
    values = pd.DataFrame(np.eye(7)[[DX.index(dx) for dx in table["dx"]]], columns=list(COLUMNS))
    values.insert(0, "image", table["image_id"].to_numpy())
    return values


def found(root: Path) -> OfficialSet:
    official = find_official(root, "Test")
    assert official is not None
    return official


@pytest.mark.parametrize("beside", [False, True])
def test_dataverses_own_ground_truth(root: Path, beside: bool, capsys: pytest.CaptureFixture[str]) -> None:
    folder = root.parent / "isic2018" if beside else root
    table = images_in(root, folder / "ISIC2018_Task3_Test_Images")
    unpublished = dict.fromkeys(table.columns, "") | {"image_id": ZERO_WEIGHT, "dx": "nv"}
    as_tab(pd.concat([table, pd.DataFrame([unpublished])]), folder / f"{TRUTH}.tab")
    official = found(root)
    assert official.source == folder / f"{TRUTH}.tab" and official.missing == [ZERO_WEIGHT]
    columns = ["image_id", "lesion_id", "dx", "dx_type", "age", "sex", "localization"]
    pd.testing.assert_frame_equal(official.table[columns], table[columns])
    sentence = official.incomplete()
    missing = f"1 of 21 images is missing or unreadable and not scored: {ZERO_WEIGHT}"
    assert sentence == f"{missing}, which has weight 0 in the official score"
    check(root)
    out = capsys.readouterr().out
    assert "official test set: 20 images; ground truth" in out and f"warning: ISIC 2018's official test set: {sentence}" in out  # fmt: skip  # noqa: E501
    assert out.rstrip().endswith("Complete, with 1 warning (above).")


def test_missing_and_unreadable_images_are_counted_and_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = root / "ISIC2018_Task3_Test_Images"
    table = images_in(root, images)
    one_hot(table).to_csv(root / f"{TRUTH}.csv", index=False)
    assert found(root).incomplete() is None
    for image in table["image_id"][3:10]:
        (images / f"{image}.jpg").unlink()
    official = found(root)
    assert len(official.table) == 13 and official.missing == table["image_id"][3:10].tolist()
    names = ", ".join(table["image_id"][3:8])
    assert official.incomplete() == f"7 of 20 images are missing or unreadable and not scored: {names}, …"
    (images / "ISIC_0000019.jpg").write_bytes(b"\xff\xd8\xff cut short")
    check(root)
    assert "8 of 20 images are missing or unreadable and not scored" in capsys.readouterr().out


def test_the_most_complete_of_several_is_used(root: Path) -> None:
    table = images_in(root, root.parent / "isic2018_task3_test" / "ISIC2018_Task3_Test_Input")
    one_hot(table).to_csv(root.parent / "isic2018_task3_test" / f"{TRUTH}.csv", index=False)
    as_tab(table.head(19), root / f"{TRUTH}.tab")  # its images are in the other folder
    assert found(root).source.suffix == ".csv" and len(found(root).table) == 20
    as_tab(table, root / f"{TRUTH}.tab")
    assert found(root).source.suffix == ".tab" and not found(root).missing
    as_tab(table.assign(dx="df"), root / f"{TRUTH}.tab")
    with pytest.raises(UserError, match=r"\.(csv|tab) and .*\.(csv|tab) give image ISIC_\d+ different diagnoses"):
        find_official(root, "Test")


def test_labels_without_images(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.DataFrame({"image_id": ["ISIC_1"], "lesion_id": ["L"], "dx": ["nv"]})
    as_tab(table, root / f"{TRUTH}.tab")
    assert len(found(root).table) == 0
    check(root)
    out = capsys.readouterr().out
    assert f"{TRUTH}.tab" in out and "1 of 1 images is missing or unreadable and not scored: ISIC_1" in out


def test_lesions_are_read_from_a_table_next_to_the_ground_truth(root: Path) -> None:
    folder = root.parent / "isic2018_task3_test"
    table = images_in(root, folder / "ISIC2018_Task3_Test_Input")
    one_hot(table).to_csv(folder / f"{TRUTH}.csv", index=False)
    table[["image_id", "lesion_id"]].to_csv(folder / "lesions.csv", index=False, sep=";", encoding="utf-16")
    (folder / "hmnist_28_28_RGB.csv").write_text("pixel0000," * 500 + '"')  # not read
    assert found(root).table["lesion_id"].tolist() == table["lesion_id"].tolist()
