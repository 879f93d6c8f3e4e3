"""The whole way on the embedded sample, by the commands that a user types."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, command
from sklearn.metrics import balanced_accuracy_score

from dermrw.diagnoses import HAM_CLASSES
from dermrw.errors import UserError
from dermrw.evaluation.evaluate import evaluate
from dermrw.reports.figures import class_styles
from dermrw.reports.predictions_csv import read_predictions, write_predictions
from dermrw.reports.report_html import training_figures
from dermrw.reports.report_json import ScoredSet, age_band, set_figures
from dermrw.reports.report_schema import Report
from dermrw.training.image_record import METADATA, ImageRecord
from dermrw.training.run_folder import read_log

COLUMNS = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]


def test_without_ham10000_the_sample_is_named_everywhere(run: Path) -> None:
    assert run.name.startswith("sample-")
    report = json.loads((run / "report.json").read_text())
    assert "Embedded sample" in report["warning"] and "make data" in report["warning"]
    assert (run / "report.html").read_text().count("Embedded sample") >= 2


def test_the_report_is_of_the_predictions_as_written(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    predictions = pd.read_csv(run / "predictions.csv")
    split = pd.read_csv(run / "split.csv")
    test = split[split["split"] == "test"]
    assert list(predictions.columns) == ["image", *COLUMNS]
    assert set(predictions["image"]) == set(test["image_id"])
    assert (predictions.dtypes.iloc[1:] == np.float64).all()
    values = predictions[COLUMNS].to_numpy()
    assert values.min() >= 0 and values.max() <= 1 and np.allclose(values.sum(1), 1)
    truth = [COLUMNS.index(dx.upper()) for dx in test.set_index("image_id").loc[predictions["image"], "dx"]]
    assert next(iter(report)) == "balanced_accuracy"
    assert report["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, values.argmax(1)), abs=1e-12)
    assert report["interval_95"][0] <= report["balanced_accuracy"] <= report["interval_95"][1]
    given = pd.read_csv(run / "ground_truth.csv").set_index("image").loc[predictions["image"]]
    assert given.to_numpy().argmax(1).tolist() == truth
    assert sum(group["images"] for group in report["groups"]["sex"]) == len(test)
    assert sum(group["images"] for group in report["decided"]["by_skin_tone"]) == len(test)


def test_the_validation_figure_is_what_the_network_itself_decides(run: Path) -> None:
    told = json.loads((run / "report.json").read_text())["validation"]
    split = pd.read_csv(run / "split.csv").set_index("image_id")
    decided = pd.read_csv(run / "predictions_validation_as_trained.csv").set_index("image")
    assert set(decided.index) == set(split.index[split["split"] == "validation"]) and told["images"] == len(decided)
    truth = [COLUMNS.index(dx.upper()) for dx in split.loc[decided.index, "dx"]]
    expected = balanced_accuracy_score(truth, decided[COLUMNS].to_numpy().argmax(1))
    assert told["balanced_accuracy_as_trained"] == pytest.approx(expected, abs=1e-12)
    assert told["interval_95"][0] <= expected <= told["interval_95"][1]


@pytest.mark.slow
def test_evaluating_again_gives_the_same(run: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    before = (run / "predictions.csv").read_bytes()
    report = evaluate(run)
    assert (run / "predictions.csv").read_bytes() == before
    assert json.loads((run / "report.json").read_text()) == report


def test_the_schema_names_all_that_a_report_holds(run: Path) -> None:
    text = (run / "report.json").read_text()
    assert Report.model_validate_json(text).to_dict() == json.loads(text)
    assert json.dumps(Report.model_validate_json(text).to_dict(), indent=1) == text  # the order too
    earlier = json.loads(text)
    del earlier["validation"]  # came with 25 November 2026
    assert Report.model_validate_json(json.dumps(earlier)).to_dict() == earlier


@pytest.mark.slow
def test_official_sets_are_scored_into_files_of_their_own(
    run: Path, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(sample, tmp_path / "ham10000"))
    official = tmp_path / "isic2018_task3_test"
    (official / "ISIC2018_Task3_Test_Input").mkdir(parents=True)
    table = pd.read_csv(sample / "HAM10000_metadata.csv").head(30)
    truth = pd.DataFrame(np.eye(7)[[COLUMNS.index(dx.upper()) for dx in table["dx"]]], columns=COLUMNS)
    truth.insert(0, "image", [f"ISIC_009{i:04}" for i in range(30)])
    missing = "ISIC_0035068,0,1,0,0,0,0,0\n"  # not among Dataverse's images
    (official / "ISIC2018_Task3_Test_GroundTruth.csv").write_text(truth.to_csv(index=False) + missing)
    for old, new in zip(table["image_id"], truth["image"], strict=True):
        shutil.copy(next(sample.rglob(f"{old}.jpg")), official / f"ISIC2018_Task3_Test_Input/{new}.jpg")
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    text = (copy / "config.yaml").read_text().replace("name: sample", "name: ham10000")
    (copy / "config.yaml").write_text(text)
    own = (copy / "predictions.csv").read_bytes()
    monkeypatch.chdir(tmp_path)
    evaluate(copy, [f"data.root={root}"])
    assert (copy / "predictions.csv").read_bytes() == own
    assert len(pd.read_csv(copy / "predictions_isic2018_test.csv")) == 30
    report = json.loads((copy / "report_isic2018_test.json").read_text())
    assert report["images"] == 30 and "official test" in report["scored_on"]
    sentence = "1 of 31 images is missing or unreadable and not scored: ISIC_0035068, which has weight 0"
    assert report["incomplete"].startswith(sentence) and sentence in capsys.readouterr().out
    assert sentence in (copy / "report_isic2018_test.html").read_text()
    assert "incomplete" not in json.loads((copy / "report.json").read_text())

    for path in copy.glob("*_isic2018_*"):
        path.unlink()
    record = ImageRecord.of_run(copy)
    # as of the weights that it started from
    record = record._replace(selected=record.selected.added(["ISIC_0090007"], record.selected.hashes))
    (copy / "images.json").write_text(record.to_text())
    state = torch.load(copy / "best.pt", weights_only=True)
    torch.save({**state, METADATA: record.to_text()}, copy / "best.pt")
    evaluate(copy, [f"data.root={root}"])
    assert "is not scored: 1 of its 30 images, such as ISIC_0090007" in capsys.readouterr().out
    assert not list(copy.glob("*_isic2018_*"))


@pytest.mark.slow
def test_mistakes_end_in_one_sentence(
    place: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(place)
    (tmp_path / "foreign").mkdir()
    cases = [
        (["eval", str(tmp_path / "foreign")], "is not a run"),
        (["eval", str(run), "train.epochs=3"], "eval can't change train.epochs=3"),
        (["train", "data.root=/nowhere"], "data.root is /nowhere"),
        (["train", "train.epoch=3"], "did you mean train.epochs"),
        (["train", "train.device=cuda:7"], "train.device=cuda:7"),
        (["train", *TINY, "model.backbone=resnet17"], "resnet17 is unknown"),
        (["train", "absent.yaml"], "no config file absent.yaml"),
        (["check"], "HAM10000 is not at"),
    ]
    for arguments, said in cases:
        with pytest.raises(SystemExit) as caught:
            command(monkeypatch, *arguments)
        err = capsys.readouterr().err
        assert caught.value.code == 2 and said in err and "Traceback" not in err, (arguments, err)
        assert err.strip().splitlines()[-1].startswith("dermrw: ")
    monkeypatch.setenv("HAM10000_DIR", "/nowhere")
    with pytest.raises(SystemExit):  # set but wrong: never the sample
        command(monkeypatch, "train")
    assert "HAM10000_DIR is /nowhere" in capsys.readouterr().err


def scored(probabilities: np.ndarray, labels: np.ndarray) -> ScoredSet:
    n = len(labels)
    table = pd.DataFrame({"image_id": [f"I{i}" for i in range(n)], "lesion_id": [f"L{i // 2}" for i in range(n)]})
    for column in ("sex", "age", "localization", "dx_type"):
        table[column] = ""
    return ScoredSet("a set", table, labels, [""] * n, HAM_CLASSES, probabilities)


def test_absent_classes_and_ties_are_null_and_wrong_not_nan() -> None:
    p = np.full((4, 7), 1 / 7)
    p[0] = np.eye(7)[0]
    figures = set_figures(scored(p, np.array([0, 0, 1, 1])), p, np.full(7, 1 / 7))
    assert figures.balanced_accuracy == 0.25  # half of class 0, none of class 1 (ties), five classes absent
    assert figures.classes["df"].recall is None and figures.classes["df"].auc is None
    json.dumps(figures.model_dump(), allow_nan=False)


def test_predictions_keep_every_digit(tmp_path: Path) -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(7), 50)
    p[0] = np.eye(7)[2]  # would be an integer column's row
    ids = pd.Series([f"I{i}" for i in range(50)])
    write_predictions(tmp_path / "p.csv", ids, HAM_CLASSES, p)
    assert np.array_equal(read_predictions(tmp_path / "p.csv", ids[::-1], HAM_CLASSES)[::-1], p)
    assert "1.0" in (tmp_path / "p.csv").read_text().splitlines()[1]


@pytest.mark.parametrize(
    ("value", "band"),
    [("0.0", "0–29"), ("30", "30–44"), ("85.0", "75 and over"), ("", None), ("nan", None), (None, None)],
)
def test_age_bands(value: object, band: str | None) -> None:
    assert age_band(value) == band


def test_a_run_without_a_best_epoch(tmp_path: Path, run: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    (copy / "best.pt").unlink()
    with pytest.raises(UserError, match="train first"):
        evaluate(copy)


@pytest.mark.parametrize(
    "text",
    ["5\n", '{"loss": 1, "step": 3}\n{"epoch": "x", "step": null, "validation": 5}\n[]\n', "[" * 100_000, "\xff\n"],
)
def test_a_log_that_training_didnt_write(text: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "metrics.jsonl").write_text(text)
    assert training_figures(read_log(run), 1, [], np.ones(7) / 7) is None
    assert ("rows that training does not write" in capsys.readouterr().out) == ("loss" in text)


@pytest.mark.slow
def test_a_log_with_odd_rows_among_its_own(run: Path) -> None:
    arguments = (1, class_styles(HAM_CLASSES), np.ones(7) / 7)
    figures = training_figures(read_log(run), *arguments)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('5\n"x"\n[1]\nnull\n')
    assert figures is not None and training_figures(read_log(run), *arguments) == figures


def test_weights_that_are_not_finite_are_told_in_a_sentence(
    run: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    state = torch.load(run / "best.pt", weights_only=True)
    state["model"]["0.weight"][0] = torch.nan
    torch.save(state, run / "best.pt")
    with pytest.raises(UserError, match="not finite"):
        evaluate(run)
