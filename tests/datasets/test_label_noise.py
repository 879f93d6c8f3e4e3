from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dermrw.config import load_config
from dermrw.datasets.dataset import Splits, load_splits, true_labels
from dermrw.datasets.label_noise import MISTAKEN_FOR, with_wrong_labels
from dermrw.diagnoses import DX
from dermrw.errors import UserError


@pytest.fixture
def table() -> pd.DataFrame:
    """1,000 lesions of each class, the even ones with two images."""
    lesions = pd.DataFrame({"lesion_id": [f"L{i:05d}" for i in range(7000)], "dx": np.tile(DX, 1000)})
    return pd.concat([lesions, lesions.iloc[::2]], ignore_index=True)


def test_uniform_flips_give_each_other_class_the_same(table: pd.DataFrame) -> None:
    given = np.array(DX)[with_wrong_labels(table, DX, "uniform", 0.3, 0)]
    lesions = table.assign(given=given).drop_duplicates("lesion_id")
    for dx in DX:
        counts = lesions[lesions["dx"] == dx]["given"].value_counts()
        assert counts[dx] == 700
        assert (abs(counts.drop(dx) - 50) < 4 * np.sqrt(50)).all() and len(counts) == 7


def test_conditional_flips_go_to_the_class_that_each_is_mistaken_for(table: pd.DataFrame) -> None:
    given = np.array(DX)[with_wrong_labels(table, DX, "class_conditional", 0.2, 0)]
    lesions = table.assign(given=given).drop_duplicates("lesion_id")
    for dx in DX:
        counts = lesions[lesions["dx"] == dx]["given"].value_counts()
        assert counts.to_dict() == {dx: 800, MISTAKEN_FOR[dx]: 200}


def test_a_lesion_keeps_one_label_and_the_draw_rests_on_its_seed_alone(table: pd.DataFrame) -> None:
    given = with_wrong_labels(table, DX, "uniform", 0.4, 3)
    assert table.assign(given=given).groupby("lesion_id")["given"].nunique().max() == 1
    shuffled = table.sample(frac=1, random_state=0)
    np.testing.assert_array_equal(with_wrong_labels(shuffled, DX, "uniform", 0.4, 3), given[shuffled.index])
    assert (with_wrong_labels(table, DX, "uniform", 0.4, 4) != given).any()


def splits(sample: Path, *overrides: str) -> Splits:
    data = load_config(None, ["data.name=sample", f"data.root={sample}", "data.meta=rule", *overrides]).data
    return load_splits(data, sample)


def test_noise_is_in_the_training_labels_and_nowhere_else(sample: Path) -> None:
    clean, noisy = splits(sample), splits(sample, "data.noise_rate=0.4")
    for name in ("validation", "test", "meta"):
        np.testing.assert_array_equal(getattr(noisy, name).labels, getattr(clean, name).labels)
    pd.testing.assert_frame_equal(noisy.train.table, clean.train.table)
    share = (noisy.train.labels != clean.train.labels).mean()
    assert 0.25 < share < 0.55
    np.testing.assert_array_equal(true_labels(noisy.train.table, noisy.classes), clean.train.labels)


def test_wrong_labels_in_the_meta_set(sample: Path) -> None:
    clean, noisy = splits(sample), splits(sample, "data.meta_noise_rate=0.34")
    np.testing.assert_array_equal(noisy.train.labels, clean.train.labels)
    wrong = noisy.meta.labels != clean.meta.labels
    assert np.bincount(clean.meta.labels[wrong], minlength=7).tolist() == [1] * 7


def test_reserved_lesions_take_no_part(sample: Path, tmp_path: Path) -> None:
    clean = splits(sample)
    lesions = clean.train.table.drop_duplicates("lesion_id").iloc[:5]
    path = tmp_path / "reserve.csv"
    lesions[["image_id"]].to_csv(path, index=False)
    apart = splits(sample, f"data.reserve={path}")
    assert not apart.table["lesion_id"].isin(lesions["lesion_id"]).any()
    lost = len(clean.table) - len(apart.table)
    assert lost == clean.table["lesion_id"].isin(lesions["lesion_id"]).sum()


def test_a_reserve_that_is_not_there_is_a_sentence(sample: Path) -> None:
    with pytest.raises(UserError, match=r"the reserve's list nowhere\.csv can't be read"):
        splits(sample, "data.reserve=nowhere.csv")
