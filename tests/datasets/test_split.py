"""The split by lesion and the curated meta set."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from dermrw.config import CONFIGS, Data
from dermrw.datasets.dataset import load_splits
from dermrw.datasets.ham10000 import read_ham10000
from dermrw.datasets.split import SPLIT_COLUMNS, curated_list, meta_set, split_lesions
from dermrw.diagnoses import DX
from dermrw.errors import UserError

CURATED = "ham10000_meta_3_per_class.csv"


@pytest.fixture(scope="module")
def table(sample: Path) -> pd.DataFrame:
    return read_ham10000(sample)


def divide(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    return split_lesions(table, meta_set(table, "rule", 3), 0.15, 0.15, seed)


def assert_sound(split: pd.DataFrame, table: pd.DataFrame) -> None:
    """What must hold of every split.csv."""
    assert list(split.columns) == SPLIT_COLUMNS
    assert set(split["split"]) == {"train", "validation", "test", "meta"}
    assert (split.groupby("lesion_id")["split"].nunique() == 1).all()
    assert split["image_id"].is_unique
    meta = split[split["split"] == "meta"]
    assert meta["dx"].value_counts().to_dict() == dict.fromkeys(DX, 3)
    assert meta["lesion_id"].is_unique
    known = table.set_index("image_id")
    assert (known.loc[meta["image_id"].tolist(), "dx_type"] == "histo").all()
    assert (known.loc[split["image_id"].tolist(), "dx"].to_numpy() == split["dx"].to_numpy()).all()
    # the meta lesions' other images have no row; every other image has one
    gone = set(table["image_id"]) - set(split["image_id"])
    others = table[table["lesion_id"].isin(meta["lesion_id"]) & ~table["image_id"].isin(meta["image_id"])]
    assert gone == set(others["image_id"])
    for part in ("train", "validation", "test"):
        assert set(split.loc[split["split"] == part, "dx"]) == set(DX)


def test_split_of_the_sample(table: pd.DataFrame) -> None:
    split = divide(table)
    assert_sound(split, table)
    pd.testing.assert_frame_equal(split, divide(table.sample(frac=1, random_state=1)))  # not of the rows' order
    assert not split.equals(divide(table, seed=1))
    # the meta set doesn't move with the seed
    assert set(split.query("split == 'meta'").image_id) == set(divide(table, 1).query("split == 'meta'").image_id)


def test_shares_are_of_lesions_and_stratified(table: pd.DataFrame) -> None:
    lesions = divide(table).query("split != 'meta'").drop_duplicates("lesion_id")
    shares = lesions["split"].value_counts(normalize=True)
    assert shares["validation"] == pytest.approx(0.15, abs=0.03) and shares["test"] == pytest.approx(0.15, abs=0.03)


def test_lists_of_the_users_own(table: pd.DataFrame, tmp_path: Path) -> None:
    rows = table.groupby("dx").head(1)
    own = tmp_path / "own.csv"
    rows[["image_id"]].to_csv(own, index=False)
    assert set(meta_set(table, str(own), 3)["image_id"]) == set(rows["image_id"])
    own.write_text("image_id\nISIC_1\nISIC_2\n")
    with pytest.raises(UserError, match=r"ISIC_1, ISIC_2.*make data.*data\.meta=rule"):
        meta_set(table, str(own), 3)
    rows.iloc[1:][["image_id"]].to_csv(own, index=False)
    with pytest.raises(UserError, match=f"no image of {rows.iloc[0].dx}"):
        meta_set(table, str(own), 3)
    own.write_text("name\nx\n")
    with pytest.raises(UserError, match="lacks the column image_id"):
        meta_set(table, str(own), 3)
    with pytest.raises(UserError, match=r"absent\.csv"):
        meta_set(table, str(tmp_path / "absent.csv"), 3)
    with pytest.raises(UserError, match="21 of the 21"):
        meta_set(table, CURATED, 3)  # HAM10000's list on the sample


def test_too_little_is_said(table: pd.DataFrame) -> None:
    with pytest.raises(UserError, match="histology-confirmed lesions of"):
        meta_set(table, "rule", 500)
    with pytest.raises(UserError, match="no dx_type"):
        meta_set(table.assign(dx_type=""), "rule", 3)
    with pytest.raises(UserError, match="of df only 0 lesions"):
        divide_without = table[table["dx"] != "df"]
        split_lesions(divide_without, meta_set(table, "rule", 3), 0.15, 0.15, 0)


def test_the_curated_list_states_21_images() -> None:
    listed = pd.read_csv(CONFIGS / CURATED, comment="#")
    assert listed["dx"].value_counts().to_dict() == dict.fromkeys(DX, 3)
    assert listed["image_id"].is_unique and listed["lesion_id"].is_unique and (listed["dx_type"] == "histo").all()


def test_the_curated_list_is_reproduced_from_the_real_data(ham10000: Path) -> None:
    table = read_ham10000(ham10000)
    assert curated_list(table) == (CONFIGS / CURATED).read_text()
    split = split_lesions(table, meta_set(table, CURATED, 3), 0.15, 0.15, 0)
    assert_sound(split, table)


@pytest.mark.slow
def test_the_former_module_paths_work(sample: Path, table: pd.DataFrame) -> None:
    from dermrw import prevalence
    from dermrw.decisions.prevalence import at_prevalence

    assert prevalence.at_prevalence is at_prevalence
    printed = [
        subprocess.run([sys.executable, "-m", module, sample], capture_output=True, text=True, check=True).stdout
        for module in ("dermrw.split", "dermrw.datasets.split")
    ]
    assert printed[0] == printed[1] == curated_list(table)


def test_the_curated_list_names_its_rule_and_command(table: pd.DataFrame) -> None:
    def comments(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.startswith("#")]

    assert comments((CONFIGS / CURATED).read_text()) == comments(curated_list(table))


def metadata(root: Path, counts: dict[str, int], images: int = 1) -> Path:
    """A folder with metadata of this many lesions per class, without images."""
    root.mkdir(exist_ok=True)
    rows = [
        {"lesion_id": f"{dx}{i}", "image_id": f"{dx}{i}_{k}", "dx": dx, "dx_type": "histo"}
        for dx, n in counts.items() for i in range(n) for k in range(images)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(root / "HAM10000_metadata.csv", index=False)
    return root


def split_error(root: Path, per_class: int, validation: float = 0.15, test: float = 0.15) -> str:
    table = read_ham10000(root)
    with pytest.raises(UserError) as caught:
        split_lesions(table, meta_set(table, "rule", per_class), validation, test, 0)
    message = str(caught.value)
    assert "test_size" not in message and "n_splits" not in message and "\n" not in message
    return message


@pytest.mark.parametrize("n", [4, 5, 6, 9])
@pytest.mark.parametrize(("validation", "test"), [(0.05, 0.05), (0.02, 0.1), (0.15, 0.15), (0.01, 0.4), (0.45, 0.45)])
def test_too_few_lesions_for_the_shares_name_their_keys(tmp_path: Path, n: int, validation: float, test: float) -> None:
    table = read_ham10000(metadata(tmp_path / "ham", dict.fromkeys(DX, n)))
    try:
        split = split_lesions(table, meta_set(table, "rule", 1), validation, test, 0)
    except UserError as error:
        message = str(error)
        assert "data.validation" in message or "data.test" in message
        assert ("lower" if validation + test > 0.5 else "raise") in message
        assert "test_size" not in message and "\n" not in message
    else:
        assert_part = split.groupby("split")["dx"].nunique()
        assert (assert_part == 7).all()


def test_classes_that_are_too_small_or_absent(tmp_path: Path) -> None:
    plenty = dict.fromkeys(DX, 30)
    root = metadata(tmp_path / "ham", plenty | {"df": 5})
    assert "of df only 2 lesions remain" in split_error(root, 3) and "data.meta_per_class" in split_error(root, 3)
    table = read_ham10000(root)
    with pytest.raises(
        UserError, match=r"needs 6 histology-confirmed lesions of df, but there are 5: lower data\.meta_per"
    ):
        meta_set(table, "rule", 6)
    metadata(root, {dx: n for dx, n in plenty.items() if dx not in ("df", "vasc")})
    with pytest.raises(UserError, match=r"HAM10000_metadata\.csv has images of mel \(30\).* and none of df, vasc: add"):
        load_splits(Data(meta="rule"), root)
    metadata(root, {"nv": 50})
    with pytest.raises(UserError, match=r"has images of nv \(50\) and none of mel, bcc, akiec, bkl, df, vasc"):
        load_splits(Data(), root)


def test_lists_with_file_names_and_of_other_programs(table: pd.DataFrame, tmp_path: Path) -> None:
    ids = table.groupby("dx").head(1)["image_id"].tolist()
    own = tmp_path / "own.csv"
    for data in (
        "\n".join(["image_id;note", *(f"{i};x" for i in ids)]).encode("utf-16"),
        "\r\n".join(["# a, b", "Image_ID,", *(f'"{i}",' for i in ids)]).encode("utf-8-sig"),
    ):
        own.write_bytes(data)
        assert meta_set(table, str(own), 3)["image_id"].tolist() == ids
    own.write_text("\n".join(["image_id", *(f"{i}.jpg" for i in ids)]))
    with pytest.raises(UserError, match=rf"own\.csv: write {ids[0]} instead of {ids[0]}\.jpg, likewise in all rows"):
        meta_set(table, str(own), 3)
