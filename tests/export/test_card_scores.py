"""The card's section on images of other sources, from reports of `dermrw score`."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dermrw.config import load_config
from dermrw.datasets.sample_drawing import draw_lesion
from dermrw.diagnoses import DX, HAM_CLASSES
from dermrw.errors import UserError
from dermrw.inference.classifier import Classifier
from dermrw.reports import report_json
from dermrw.reports.report_schema import DefinedReport
from dermrw.scoring.score import score
from export.card import model_card
from export.report import parsed_report, score_reports


@pytest.fixture(scope="module")
def scored(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with the reports `scores/classes` and `scores/binary` of 14 drawn lesions."""
    folder = tmp_path_factory.mktemp("run")
    rows = {"classes": ["image,label"], "binary": ["image,label"]}
    assert HAM_CLASSES.malignant
    for number, code in enumerate(DX * 2):
        rng = np.random.default_rng
        path = folder / f"{number}.png"
        Image.fromarray(draw_lesion(code, rng([number, 31]), rng([number, 32]), 120, 160)).save(path)
        rows["classes"].append(f"{path},{code}")
        rows["binary"].append(f"{path},{'malignant' if HAM_CLASSES.malignant[DX.index(code)] else 'benign'}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_json, "REPLICATES", 50)
        patch.setattr(report_json, "FEW_REPLICATES", 20)
        for name, lines in rows.items():
            table = folder / f"{name}.csv"
            table.write_text("\n".join(lines))
            score(model, table, out=folder / "scores" / name, device="cpu", workers=1)
    return folder


def test_the_card_shows_scores_of_its_own_file(scored: Path, model: Path) -> None:
    classifier = Classifier(model)
    scores = score_reports(scored, classifier.digest)
    report: DefinedReport = parsed_report(model.with_name("report.json").read_bytes(), HAM_CLASSES)
    card = model_card(report, classifier.info, classifier.digest, load_config(None), scores=scores)
    rows = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in card.splitlines()}
    shown, found = rows["classes"], scores["classes"]
    assert found.malignant and found.malignant.auc is not None and found.balanced_accuracy is not None
    assert shown[1:3] == ["14", "6"] and shown[3].startswith(f"{found.malignant.auc:.3f} (")
    assert shown[7].startswith(f"{100 * found.balanced_accuracy:.1f} %")
    assert rows["binary"][:4] == ["binary", *shown[1:4]] and rows["binary"][7] == "–"
    assert "## Images of other sources" not in model_card(report, classifier.info, "0" * 64, load_config(None))


@pytest.mark.parametrize("malignant", [True, False])
def test_scores_of_one_side_alone(scored: Path, model: Path, tmp_path: Path, malignant: bool) -> None:
    assert HAM_CLASSES.malignant
    lines = (scored / "classes.csv").read_text().splitlines()
    kept = [line for line in lines[1:] if HAM_CLASSES.malignant[DX.index(line.rpartition(",")[2])] is malignant]
    table, run = tmp_path / "one.csv", tmp_path / "run"
    table.write_text("\n".join([lines[0], *kept]))
    score(model, table, out=run / "scores/one side", device="cpu", workers=1)
    classifier = Classifier(model)
    report: DefinedReport = parsed_report(model.with_name("report.json").read_bytes(), HAM_CLASSES)
    scores = score_reports(run, classifier.digest)
    card = model_card(report, classifier.info, classifier.digest, load_config(None), scores=scores)
    (row,) = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| one side")]
    triage = scores["one side"].decided.triage
    assert triage is not None
    shown = [f"{100 * part.share:.1f} %" if part else "–" for part in (triage.sensitivity, triage.specificity)]
    assert row[1:4] == [str(len(kept)), str(len(kept) if malignant else 0), "–"]
    assert row[4].startswith(shown[0]) and row[5].startswith(shown[1]) and shown.index("–") == malignant


def test_scores_of_another_file_are_left_out_and_named(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score_reports(scored, "0" * 64) == {}
    assert "binary/report.json is of another model file and does not enter the card" in capsys.readouterr().out
    assert score_reports(scored.parent, "0" * 64) == {}


def test_a_damaged_score_is_named(scored: Path, tmp_path: Path) -> None:
    shutil.copytree(scored / "scores", tmp_path / "scores")
    damaged = tmp_path / "scores/binary/report.json"
    damaged.write_text(damaged.read_text()[:100])
    with pytest.raises(UserError, match=r"binary/report.json can't be read .*: score the images again"):
        score_reports(tmp_path, "0" * 64)
