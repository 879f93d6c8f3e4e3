"""`data.refuse`: a detector of pictures to refuse, from evaluation to the model file."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dermrw.datasets.composed_photographs import compose
from dermrw.errors import UserError
from dermrw.evaluation.evaluate import evaluate
from dermrw.evaluation.refusal_fit import pictures_to_refuse
from dermrw.inference.classifier import Classifier
from dermrw.reports.report_schema import Report
from export.__main__ import export


def cloth(n: int) -> Image.Image:
    """Crossed stripes in two colours: no quality measure refuses them, and a small network tells them from lesions."""
    rng = np.random.default_rng([n, 50])
    rows, columns = np.mgrid[:150, :200]
    wave = np.sin(rows * rng.uniform(0.3, 0.6)) + np.sin(columns * rng.uniform(0.3, 0.6))
    first, second = rng.uniform(60, 200, (2, 3))
    return Image.fromarray((first + (second - first) * (wave[..., None] + 2) / 4).astype(np.uint8))


def test_the_pictures_to_refuse_are_divided_by_name(tmp_path: Path) -> None:
    for n in range(60):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{n}.png")
    found = pictures_to_refuse(str(tmp_path))
    assert len(found.fitted) + len(found.held_out) == 60 and 10 < len(found.held_out) < 30
    assert pictures_to_refuse(None) == ([], [])
    with pytest.raises(UserError, match=r"data.refuse is .*missing, which is not a folder"):
        pictures_to_refuse(str(tmp_path / "missing"))
    for path in sorted(tmp_path.iterdir())[20:]:
        path.unlink()
    with pytest.raises(UserError, match="has 20 pictures, too few for a detector"):
        pictures_to_refuse(str(tmp_path))


def test_a_composed_photograph_shows_mostly_the_skin_of_its_source() -> None:
    lesion = np.full((60, 80, 3), (220, 160, 140), np.uint8)
    lesion[20:40, 25:55] = (60, 30, 20)
    rng = np.random.default_rng(0)
    for _ in range(20):
        found = compose(lesion, rng)
        assert found.dtype == np.uint8 and found.shape[0] == found.shape[1] and 300 <= len(found) < 500
        assert (np.abs(found.astype(int) - lesion[0, 0]).max(2) < 130).mean() > 0.4
    assert np.array_equal(compose(lesion, np.random.default_rng(3)), compose(lesion, np.random.default_rng(3)))


@pytest.mark.slow
def test_a_run_learns_to_refuse_other_pictures(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "cloth"
    folder.mkdir()
    for n in range(60):
        cloth(n).save(folder / f"{n}.png")
    before = Classifier(run / "model.onnx", "cpu")
    assert len(before.info.limits) == 8
    evaluate(run, [f"data.refuse={folder}"])
    report = Report.model_validate_json((run / "report.json").read_text())
    assert report.decisions is not None and report.decisions.fitted.refusal is not None
    fitted = report.decisions.fitted.refusal
    held_out = pictures_to_refuse(str(folder)).held_out
    assert fitted.photographs is not None and fitted.photographs.pictures == len(held_out)
    assert fitted.photographs.detected > 0.5 * len(held_out)
    assert fitted.groups[0].name == "validation" and fitted.groups[0].refused < 0.05
    assert "held-out pictures are refused" in (run / "report.html").read_text()

    export(run, [f"data.refuse={folder}"])
    card = (run / "MODEL_CARD.md").read_text()
    assert "A detector takes it for a clinical photograph" in card and "9 checks for refusal" in card
    classifier = Classifier(run / "model.onnx", "cpu")
    assert len(classifier.info.limits) == 9
    reasons = [classifier.explain(path).verdict.refused for path in held_out]
    named = [reason for reason in reasons if reason and "ordinary photograph" in reason]
    assert sum(reason is not None for reason in reasons) == fitted.photographs.refused
    assert 0 < len(named) <= fitted.photographs.detected  # the others are refused for their quality first
    stored = json.loads((run / "report.json").read_text())["decisions"]
    assert classifier.info.limits == stored["limits"]
