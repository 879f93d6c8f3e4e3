from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from numpy.random import default_rng

from dermrw.datasets import sample as synthetic
from dermrw.datasets.sample import (
    HAM_IMAGES,
    HAM_LESIONS,
    sample_metadata,
    write_sample,
)
from dermrw.datasets.sample_drawing import contact_sheet, draw_lesion
from dermrw.diagnoses import DX
from dermrw.errors import UserError

FEWEST = 112
LESION_COLUMNS = ["dx", "dx_type", "age", "sex", "localization"]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample(tmp_path_factory.mktemp("sample") / "new" / "drawn", FEWEST, seed=3)


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("dx", DX)
def test_a_picture_follows_from_its_two_generators_alone(dx: str) -> None:
    first, again, other_view, other_lesion = (
        draw_lesion(dx, default_rng(a), default_rng(b)) for a, b in ((1, 2), (1, 2), (1, 3), (4, 2))
    )
    assert first.shape == (120, 160, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other_view)
    assert not np.array_equal(first, other_lesion)


def test_a_lesion_is_there_and_its_background_is_skin() -> None:
    for dx in DX:
        pictures = [draw_lesion(dx, default_rng([5, i]), default_rng([6, i])) for i in range(6)]
        centre = np.mean([p[45:75, 60:100].mean((0, 1)) for p in pictures], 0)
        left = np.mean([p[30:90, 5:20].mean((0, 1)) for p in pictures], 0)
        assert np.abs(centre - left).max() > 8, dx
        assert left[0] > left[1] >= left[2] - 12, dx  # reddish


def test_pictures_of_other_sizes() -> None:
    assert draw_lesion("nv", default_rng(0), default_rng(1), height=45, width=60).shape == (45, 60, 3)


def test_an_unknown_class_is_refused() -> None:
    with pytest.raises(KeyError):
        draw_lesion("NV", default_rng(0), default_rng(1))


def test_contact_sheet_is_a_grid_of_one_class_per_row() -> None:
    sheet = contact_sheet(rows=("vasc", "nv"), columns=3, gap=4)
    assert sheet.shape == (2 * 124 - 4, 3 * 164 - 4, 3)
    assert (sheet[120:124] == 255).all()
    assert (sheet[:, 160:164] == 255).all()
    assert np.array_equal(contact_sheet(rows=("nv",), columns=3), sheet[124:])


@pytest.mark.parametrize("images", [112, 113, 250, 2000, 10015])
def test_counts_keep_ham10000s_proportions_above_the_least(images: int) -> None:
    metadata = sample_metadata(images, seed=0)
    assert len(metadata) == images == metadata["image_id"].nunique()
    by_class = metadata.groupby("dx")
    counts, lesions = by_class.size(), by_class["lesion_id"].nunique()
    assert set(counts.index) == set(DX)
    assert counts.min() >= 16
    assert lesions.min() >= 11
    assert metadata.groupby("lesion_id").size().between(1, 3).all()
    if images >= 2000:
        for dx in DX:
            assert counts[dx] == pytest.approx(images / 10015 * HAM_IMAGES[dx], abs=2)
            assert lesions[dx] == pytest.approx(images / 10015 * HAM_LESIONS[dx], abs=2)


@pytest.mark.parametrize("images", [112, 2000])
def test_metadata_is_consistent_within_a_lesion_and_plausible(images: int) -> None:
    metadata = sample_metadata(images, seed=1)
    assert (metadata.groupby("lesion_id")[LESION_COLUMNS].nunique(dropna=False) == 1).all(axis=None)
    assert metadata["image_id"].str.fullmatch(r"SAMPLE_\d{7}").all()
    assert metadata["lesion_id"].str.fullmatch(r"SAMPLELESION_\d{7}").all()
    ages = metadata["age"].dropna()
    assert (ages % 5 == 0).all()
    assert ages.between(5, 85).all()
    assert set(metadata["sex"]) <= {"male", "female", "unknown"}
    histo = metadata[metadata["dx_type"] == "histo"].groupby("dx")["lesion_id"].nunique()
    assert (histo.reindex(DX, fill_value=0) >= 6).all()
    assert set(metadata.loc[metadata["dx"].isin(["mel", "bcc", "akiec"]), "dx_type"]) == {"histo"}
    assert set(metadata.loc[metadata["dx_type"] == "follow_up", "dx"]) <= {"nv"}
    assert set(metadata["dx_type"]) <= {"histo", "follow_up", "consensus", "confocal"}


def test_the_order_of_rows_and_of_ids_tells_no_class() -> None:
    metadata = sample_metadata(2000, seed=0)
    nevus = (metadata["dx"] == "nv").to_numpy()
    for order in (np.arange(2000), metadata["image_id"].str[-7:].astype(int), metadata["lesion"]):
        assert abs(np.corrcoef(nevus, order)[0, 1]) < 0.1


def test_too_few_images_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 112"):
        write_sample(tmp_path / "drawn", FEWEST - 1)
    assert not any(tmp_path.iterdir())


def test_layout_is_ham10000s(sample: Path) -> None:
    names = {p.name for p in sample.iterdir()}
    parts = ["HAM10000_images_part_1", "HAM10000_images_part_2"]
    assert names == {*parts, "HAM10000_metadata.csv", "README.txt"}
    metadata = pd.read_csv(sample / "HAM10000_metadata.csv")
    assert list(metadata.columns) == [
        "lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization",
    ]  # fmt: skip
    files = [sorted((sample / part).glob("*.jpg")) for part in parts]
    assert [len(f) for f in files] == [FEWEST // 2] * 2
    assert {p.stem for f in files for p in f} == set(metadata["image_id"])
    picture = cv2.imread(str(files[0][0]))
    assert picture is not None
    assert picture.shape == (120, 160, 3)


def test_readme_says_that_it_is_drawn(sample: Path) -> None:
    readme = (sample / "README.txt").read_text(encoding="utf-8")
    for words in ("Drawn", "No patient", "NOT HAM10000", "no medical use", "sample version", "seed 3"):
        assert words in readme


def test_files_hold_the_pictures_of_their_lesion_and_view(sample: Path) -> None:
    row = sample_metadata(FEWEST, seed=3).iloc[7]
    drawn = draw_lesion(row["dx"], default_rng([3, row["lesion"], 0]), default_rng([3, row["lesion"], row["view"]]))
    stored = cv2.imread(str(next(sample.rglob(f"{row['image_id']}.jpg"))))
    assert stored is not None
    assert np.abs(stored[..., ::-1].astype(int) - drawn).mean() < 5  # JPEG's loss, and RGB not BGR


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(sample: Path, tmp_path: Path) -> None:
    assert contents(write_sample(tmp_path / "again", FEWEST, seed=3)) == contents(sample)
    assert not sample_metadata(FEWEST, seed=4).equals(sample_metadata(FEWEST, seed=3))


def test_a_complete_sample_is_returned_as_it_is(sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "draw_lesion", lambda *_: pytest.fail("drawn again"))
    assert write_sample(sample, FEWEST, seed=3) == sample


def test_anything_else_at_root_is_refused_and_kept(sample: Path, tmp_path: Path) -> None:
    (tmp_path / "HAM10000_metadata.csv").write_text("real")
    with pytest.raises(UserError, match="something other"):
        write_sample(tmp_path, FEWEST)
    assert contents(tmp_path) == {"HAM10000_metadata.csv": b"real"}
    before = contents(sample)
    with pytest.raises(UserError):
        write_sample(sample, FEWEST, seed=4)
    assert contents(sample) == before


def test_an_interrupted_sample_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> np.ndarray:
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "draw_lesion", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_sample(tmp_path / "drawn", FEWEST)
    assert not any(tmp_path.iterdir())
