"""`dermrw compare`, on run folders written by the test."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dermrw import __main__ as command_line
from dermrw.config import load_config
from dermrw.diagnoses import COLUMNS, DX, HAM_CLASSES
from dermrw.errors import UserError
from dermrw.evaluation.compare import compare, config_differences, print_comparison
from dermrw.metrics.classification import balanced_accuracy
from dermrw.metrics.paired import paired_difference
from dermrw.reports.predictions_csv import write_predictions
from dermrw.training.run_folder import start_run

IMAGES = 140
SPLIT = pd.DataFrame(
    {
        "image_id": [f"ISIC_{i:07}" for i in range(IMAGES)],
        "lesion_id": [f"HAM_{i // 2:07}" for i in range(IMAGES)],
        "dx": [DX[i // 2 % 7] for i in range(IMAGES)],
        "split": ["train"] * 14 + ["meta"] * 14 + ["validation"] * 70 + ["test"] * 42,
    }
)
CLASS_OF = {code: c for c, code in enumerate(DX)}


def answers(labels: np.ndarray, right: float, seed: int) -> np.ndarray:
    """Returns probabilities of which about a share is right."""
    rng = np.random.default_rng(seed)
    decided = np.where(rng.random(len(labels)) < right, labels, (labels + 1) % 7)
    return np.eye(7)[decided] * 0.3 + 0.1


def write_run(
    path: Path, right: float, seed: int, *overrides: str, split: pd.DataFrame = SPLIT, eval_: bool = True
) -> Path:
    """Writes a run folder as training and `eval` leave it."""
    path.mkdir()
    start_run(path, load_config(None, [f"train.seed={seed}", *overrides]), split)
    for part, name in [("validation", "predictions_validation_as_trained.csv"), ("test", "predictions.csv")]:
        rows = split[split["split"] == part]
        labels = rows["dx"].map(CLASS_OF).to_numpy()
        if eval_:
            write_predictions(path / name, rows["image_id"], HAM_CLASSES, answers(labels, right, seed))
            if part == "test":
                write_predictions(path / "ground_truth.csv", rows["image_id"], HAM_CLASSES, np.eye(7)[labels])
    return path


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs on the same split."""
    return write_run(tmp_path / "a", 0.8, 0), write_run(tmp_path / "b", 0.5, 1, "objective=erm", "data.workers=2")


def test_the_figures_are_those_of_the_metrics(two: tuple[Path, Path]) -> None:
    validation, test = compare(two)
    for row, part in [(validation, "validation"), (test, "test")]:
        rows = SPLIT[SPLIT["split"] == part]
        labels = rows["dx"].map(CLASS_OF).to_numpy()
        pa, pb = answers(labels, 0.8, 0), answers(labels, 0.5, 1)
        assert (row.score, row.first_score) == (balanced_accuracy(pb, labels), balanced_accuracy(pa, labels))
        assert row.paired == paired_difference(pb, pa, labels, rows["lesion_id"].to_numpy(str))
        assert (row.images, row.lesions, row.only_here, row.only_there) == (len(rows), len(rows) // 2, 0, 0)
        assert row.paired.low < row.paired.difference < row.paired.high
    assert [row.title for row in (validation, test)] == ["validation, as trained", "test split"]


def test_the_config_keys_that_affect_a_result_are_compared(two: tuple[Path, Path]) -> None:
    expected = ["objective.name: erm, was reweight", "train.seed: 1, was 0"]
    assert config_differences(two) == {str(two[1]): expected}
    (two[1] / "report.json").write_text('{"views": 4}')  # evaluated with data.views=4
    assert sorted(config_differences(two)[str(two[1])]) == sorted([*expected, "data.views: 4, was 1"])
    (two[1] / "report.json").write_text("[]")
    assert config_differences(two) == {str(two[1]): expected}


def test_the_printed_table(two: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison([*two, two[0]])
    text = capsys.readouterr().out
    assert "  objective.name: erm, was reweight" in text and "no difference that affects a result" in text
    lines = [line for line in text.splitlines() if line.startswith("test split")]
    assert len(lines) == 2 and " 42 " in lines[0] and "+0.0    +0.0 to +0.0" in lines[1]
    assert "do not cover" in text and "only in" not in text


def test_different_images_are_compared_on_the_shared_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = SPLIT.assign(split=["train"] * 14 + ["meta"] * 14 + ["test"] * 20 + ["validation"] * 70 + ["test"] * 22)
    runs = [write_run(tmp_path / "a", 0.8, 0), write_run(tmp_path / "b", 0.6, 1, split=moved)]
    validation, test = compare(runs)
    assert (validation.images, validation.only_here, validation.only_there) == (50, 20, 20)
    assert (test.images, test.only_here, test.only_there) == (22, 20, 20)
    shared = SPLIT[48:98]
    assert validation.lesions == shared["lesion_id"].nunique()
    print_comparison(runs)
    text = capsys.readouterr().out
    assert "compared on the 50 images that both predicted; 20 are only in" in text


def test_other_splits_and_classes_are_one_sentence(tmp_path: Path, two: tuple[Path, Path]) -> None:
    swapped = SPLIT.assign(split=["validation"] * 14 + ["test"] * 14 + ["train"] * 70 + ["meta"] * 42)
    with pytest.raises(UserError, match=r"no evaluated image in common, because their splits differ: .*split_seed"):
        compare([two[0], write_run(tmp_path / "c", 0.8, 0, split=swapped)])
    path = two[1] / "predictions.csv"
    path.write_text(path.read_text().replace("VASC", "OTHER"))
    with pytest.raises(UserError, match="only models of the same classes can be compared"):
        compare([two[0], two[1]])
    with pytest.raises(UserError, match=r"d has not been evaluated: run `dermrw eval .*d` first"):
        compare([two[0], write_run(tmp_path / "d", 0.8, 0, eval_=False)])
    with pytest.raises(UserError, match="at least two"):
        compare([two[0]])
    with pytest.raises(UserError, match="there is no run or file"):
        compare([two[0], tmp_path / "absent"])
    with pytest.raises(UserError, match="is not a run"):
        compare([two[0], tmp_path])


def test_an_official_set_with_and_without_lesions(two: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    ids = pd.Series([f"ISIC_1{i:06}" for i in range(28)] + ["ISIC_0035068"])  # the last has weight 0
    labels = np.arange(29) % 7
    for run, right in zip(two, (0.9, 0.4), strict=True):
        write_predictions(run / "predictions_isic2018_test.csv", ids, HAM_CLASSES, answers(labels, right, 5))
        write_predictions(run / "ground_truth_isic2018_test.csv", ids, HAM_CLASSES, np.eye(7)[labels])
    assert compare(two)[2].lesions is None
    print_comparison(two)
    assert "each image counts as its own lesion" in capsys.readouterr().out
    lesions = pd.DataFrame({"image": ids, "lesion_id": [f"l{i // 14}" for i in range(29)]})
    lesions.to_csv(two[0] / "lesions_isic2018_test.csv", index=False)
    row = compare(two)[2]
    assert (row.title, row.images, row.lesions) == ("official test set", 29, 3)
    assert row.score == balanced_accuracy(answers(labels, 0.4, 5)[:28], labels[:28])


def test_files_of_predictions(two: tuple[Path, Path], tmp_path: Path) -> None:
    (row,) = compare([run / "predictions.csv" for run in two])
    assert row[4:] == compare(two)[1][4:] and row.images == 42
    (row,) = compare([two[0], two[1] / "predictions_validation_as_trained.csv"])
    assert row.title == "validation, as trained" and row[2:] == compare(two)[0][2:]
    ids, labels = SPLIT["image_id"][98:], SPLIT["dx"][98:].map(CLASS_OF).to_numpy()
    mine = tmp_path / "mine.csv"
    write_predictions(mine, ids, HAM_CLASSES, answers(labels, 0.5, 1))
    (row,) = compare([two[0], mine])
    assert row[2:] == compare(two)[1][2:]
    other = tmp_path / "other.csv"
    write_predictions(other, ids, HAM_CLASSES, answers(labels, 0.7, 2))
    with pytest.raises(UserError, match=r"true classes of .*mine.csv are not known: name a file with --truth"):
        compare([mine, other])
    (row,) = compare([mine, other], truth=two[0] / "ground_truth.csv")
    assert row.lesions is None
    lesions = tmp_path / "lesions.csv"
    SPLIT.rename(columns={"image_id": "image"}).to_csv(lesions, index=False)
    (row,) = compare([mine, other], truth=two[0] / "ground_truth.csv", lesions=lesions)
    assert row.lesions == 21


@pytest.mark.parametrize(("damage", "sentence"), [
    (lambda text: text.replace("image,", "picture,"), "must have the column image"),
    (lambda text: text + text.splitlines()[1] + "\n", "twice"),
    (lambda text: text.replace("0.1", "x", 1), "not a number"),
    (lambda text: text.replace("0.1", "nan", 1), "not finite"),
    (lambda text: text.replace("0.1", "-3", 1), "outside 0 to 1"),
])  # fmt: skip
def test_a_damaged_file_is_named(damage: Callable[[str], str], sentence: str, two: tuple[Path, Path]) -> None:
    path = two[1] / "predictions.csv"
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=sentence) as caught:
        compare(two)
    assert str(path) in str(caught.value)


def test_contradictory_truths_are_named(two: tuple[Path, Path]) -> None:
    path = two[1] / "ground_truth.csv"
    frame = pd.read_csv(path).set_index("image")
    frame.iloc[0] = np.roll(frame.iloc[0], 1)
    frame.to_csv(path)
    with pytest.raises(UserError, match=f"different true classes of {frame.index[0]}"):
        compare(two)
    frame.iloc[0] = 1
    frame.to_csv(path)
    with pytest.raises(UserError, match=f"must have a single 1 .* but {frame.index[0]} does not"):
        compare(two)
    frame.drop(columns=COLUMNS[0]).to_csv(path)


@pytest.mark.slow
def test_the_command_needs_no_torch(two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        f"import sys; sys.argv = ['dermrw', 'compare', {str(two[0])!r}, {str(two[1])!r}]\n"
        "from dermrw.__main__ import main; main(); assert not {'torch', 'monai'} & set(sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert ended.returncode == 0 and "test split" in ended.stdout, ended.stderr
    monkeypatch.setattr(sys, "argv", ["dermrw", "compare", str(two[0]), "absent"])
    with pytest.raises(SystemExit) as caught:
        command_line.main()
    assert caught.value.code == 2


def test_files_of_an_earlier_evaluation_are_left_out(
    two: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ids, labels = pd.Series([f"ISIC_1{i:06}" for i in range(28)]), np.arange(28) % 7
    for run in two:
        write_predictions(run / "predictions_isic2018_test.csv", ids, HAM_CLASSES, answers(labels, 0.5, 5))
        write_predictions(run / "ground_truth_isic2018_test.csv", ids, HAM_CLASSES, np.eye(7)[labels])
        (run / "best.pt").write_bytes(b"weights")
        digest = hashlib.sha256(b"weights").hexdigest()
        for name in ("report.json", "report_isic2018_test.json"):
            (run / name).write_text(json.dumps({"checkpoint_sha256": digest, "views": 8}))
    titles = ["validation, as trained", "test split", "official test set"]
    assert [row.title for row in compare(two)] == titles and not capsys.readouterr().out
    for change in ({"views": 1}, {"checkpoint_sha256": "0" * 64}):
        other = {"checkpoint_sha256": digest, "views": 8} | change
        (two[1] / "report_isic2018_test.json").write_text(json.dumps(other))
        assert [row.title for row in compare(two)] == titles[:2]
        assert f"official test set: left out for {two[1]}" in capsys.readouterr().out
    (two[0] / "best.pt").write_bytes(b"later weights")
    compare(two)
    assert f"{two[0]} was trained further after its evaluation" in capsys.readouterr().out


def test_lesions_that_the_list_lacks(
    two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each image without a lesion counts as its own, and the number is printed; two lesions are a mistake."""
    files = [run / "predictions.csv" for run in two]
    rows = SPLIT[SPLIT["split"] == "test"]
    cells = rows.rename(columns={"image_id": "image"})[["image", "lesion_id"]]
    cells.iloc[:4, 1] = ["", "NA", "-", ""]  # of two lesions
    cells.iloc[:-2].to_csv(tmp_path / "list.csv", index=False)
    (row,) = compare(files, two[0] / "ground_truth.csv", tmp_path / "list.csv")
    assert row.lesions == len(rows) // 2 - 3 + 6 and row.alone == 6
    print_comparison(files, two[0] / "ground_truth.csv", tmp_path / "list.csv")
    assert "6 images have no lesion in the list, so each counts as its own" in capsys.readouterr().out
    cells.iloc[:0].to_csv(tmp_path / "empty.csv", index=False)
    (row,) = compare(files, two[0] / "ground_truth.csv", tmp_path / "empty.csv")
    assert row.alone == row.images == row.lesions == len(rows)
    pd.concat([cells, cells.iloc[-1:].assign(lesion_id="other")]).to_csv(tmp_path / "two.csv", index=False)
    with pytest.raises(UserError, match="has two lesions"):
        compare(files, two[0] / "ground_truth.csv", tmp_path / "two.csv")
