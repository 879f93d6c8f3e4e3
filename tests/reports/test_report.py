"""report.html on made-up sets: well-formed, self-contained, safe with hostile names, honest about what is missing."""

import base64
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import f1_score, precision_score

from dermrw.datasets.cifar10 import CIFAR_CLASSES
from dermrw.diagnoses import HAM_CLASSES, Classes
from dermrw.errors import UserError
from dermrw.formatting import NO_BREAK, duration, number, percent
from dermrw.images.skin_tone import TONE_COLUMN
from dermrw.images.thumbnail import thumbnail
from dermrw.reports import figures
from dermrw.reports import report_html as page
from dermrw.reports import report_json as scores
from dermrw.reports.report_html import TrainingHistory
from dermrw.reports.report_json import ScoredSet, build_report
from dermrw.reports.report_schema import (
    Decided,
    DecidedGroup,
    MeasuredTriage,
    Refused,
    Report,
    ShareWithInterval,
)
from dermrw.reports.report_text import FAIR_SKIN, SKIN_TONE
from dermrw.training.run_folder import read_log

HOSTILE = "<script src='http://evil.example/x.js'>alert(\"1\")</script>&"
HTML = "{http://www.w3.org/1999/xhtml}"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "REPLICATES", 50)


def scored_set(classes: Classes, n: int = 60, absent: tuple[int, ...] = (), seed: int = 0) -> ScoredSet:
    rng = np.random.default_rng(seed)
    present = [c for c in range(len(classes.codes)) if c not in absent]
    labels = np.array([present[i % len(present)] for i in range(n)])
    logits = rng.normal(size=(n, len(classes.codes))) + np.eye(len(classes.codes))[labels]
    p = np.exp(logits)
    ids = [f"image_{i}" for i in range(n)]
    table = pd.DataFrame({"image_id": ids, "lesion_id": [f"lesion_{i // 2}" for i in range(n)]})
    if classes != CIFAR_CLASSES:
        table = table.assign(sex="female", age=40.0, localization="back", dx_type="histo")
    pixels = list(rng.integers(0, 255, (n, 32, 32, 3)).astype(np.uint8))
    probabilities = p / p.sum(1, keepdims=True)
    unit = "images" if classes == CIFAR_CLASSES else "lesions"
    return ScoredSet("the run's own test split", table, labels, pixels, classes, probabilities, unit)


def made(scored: ScoredSet, **about: Any) -> Report:
    codes = scored.classes.codes
    prevalence = np.full(len(codes), 1 / len(codes))
    tried = {"nll": 1.0, "standard_error": 0.1, "behind": 0.0, "behind_error": 0.0}
    facts = {
        "run": "a-run",
        "warning": None,
        "objective": "reweight",
        "backbone": "resnet18",
        "weights": "trained from scratch",
        "size": 32,
        "epoch": 2,
        "epochs": 3,
        "training_seconds": 100,
        "training_images": 700,
        # rounded, as eval writes it: the sum is not 1
        "training_prevalence": dict(zip(codes, prevalence.round(6).tolist(), strict=True)),
        "calibration": {
            "temperature": 1.5,
            "offsets": [0.0] * len(codes),
            "fitted_on": "70 validation images",
            "strength": None,
            "cross_validation": [{"strength": None, **tried}, {"strength": 0.1, **tried}],
        },
        "decisions": {
            "thresholds": dict.fromkeys(codes, 0.1),
            "triage_threshold": None,
            "limits": {},
            "fitted": {"sets": {"coverage": 0.9, "validation_lesions": {}, "likely_coverage": {}}, "triage": None},
        },
        "lesion_rule": {"rule": "most_suspicious", "lesions_with_several_images": 0, "compared": {}},
        "checkpoint_sha256": "0" * 64,
        "evaluated": "2026-01-31",
        "environment": {"python": "3.11", "gpu": "none"},
    }
    decided = Decided(refused=None, sets=None, triage=None, by_lesion=None)
    return build_report(scored, scored.probabilities, prevalence, decided, {**facts, **about})


def write_log(
    run: Path, classes: int, reweight: bool = True, epochs: int = 3, steps: int = 4, validation_loss: bool = False
) -> None:
    rows: list[dict[str, Any]] = []
    for epoch in range(epochs):
        for i in range(1, steps + 1):
            row = {"epoch": epoch, "step": epoch * steps + i, "loss": 1.0, "lr": 1e-3}
            weighed = {"class_weight": [1 / classes] * classes, "zero_share": 0.5, "effective_batch": 7.0}
            rows.append({**row, **(weighed if reweight else {})})
        found = {"balanced_accuracy": 0.5, **({"balanced_loss": 1.2} if validation_loss else {})}
        rows.append({"epoch": epoch + 1, "step": (epoch + 1) * steps, "validation": found})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"cut sho')


def html(run: Path, report: Report, scored: ScoredSet) -> str:
    log = read_log(run) if (run / "metrics.jsonl").exists() else []
    page.write_html(run / "report.html", report, scored, TrainingHistory(log), official=False)
    return (run / "report.html").read_text(encoding="utf-8")


def parse(text: str) -> ElementTree.Element:
    """The page as XML, after checking that nothing in it is fetched and that no id comes twice."""
    assert text.startswith("<!DOCTYPE html>")
    root = ElementTree.fromstring(text)
    ids = [e.attrib["id"] for e in root.iter() if "id" in e.attrib]
    assert len(ids) == len(set(ids))
    for element in root.iter():
        tag = element.tag.rpartition("}")[2]
        assert tag not in ("script", "link", "iframe", "object", "embed", "base"), tag
        for key, value in element.attrib.items():
            assert not key.lower().startswith("on"), key
            if key.rpartition("}")[2] in ("src", "href", "srcset", "data", "poster") and tag != "a":
                assert value.startswith(("data:image/jpeg;base64,", "#")), value[:80]
                assert not value.startswith("#") or value[1:] in ids
            for target in re.findall(r"url\(([^)]*)\)", value):
                assert target[1:] in ids
    assert not re.search(r"@import|@font-face|url\((?!#)", text)
    return root


def words(root: ElementTree.Element) -> str:
    return " ".join("".join(root.itertext()).split())


@pytest.mark.slow
def test_ham_page_is_whole_and_self_contained(tmp_path: Path) -> None:
    scored = scored_set(HAM_CLASSES)
    write_log(tmp_path, 7)
    source = html(tmp_path, made(scored), scored)
    root = parse(source)
    text = words(root)
    assert len(source) < 1_500_000
    for title in ("Class by class", "ROC curves", "Training", "learned weights", "confident mistakes", "Subgroups"):
        assert title in text
    assert "CC BY-NC 4.0, ViDIR Group, Medical University of Vienna" in text
    assert "Not a medical device" in text
    assert "The images are from this test split" in text
    assert all(image.attrib["alt"] for image in root.iter(f"{HTML}img"))
    assert "Not a result" not in text
    assert list(tmp_path.glob(".*")) == []


def test_precision_operating_points_and_intervals_are_in_the_report(tmp_path: Path) -> None:
    scored = scored_set(HAM_CLASSES, 84)
    report = made(scored)
    row, p, y = report.classes["mel"], scored.probabilities, scored.labels
    decided = p.argmax(1)
    assert row.precision == pytest.approx(precision_score(y == 0, decided == 0))
    assert row.f1 == pytest.approx(f1_score(y == 0, decided == 0))
    assert row.auc is not None and row.auc_interval_95[0] is not None and row.auc_interval_95[1] is not None
    assert row.auc_interval_95[0] < row.auc < row.auc_interval_95[1]
    assert row.sensitivity_at_95_specificity is not None and row.sensitivity_at_90_specificity is not None
    assert row.sensitivity_at_80_specificity is not None
    assert row.sensitivity_at_95_specificity <= row.sensitivity_at_90_specificity <= row.sensitivity_at_80_specificity
    assert report.malignant is not None and report.malignant.partial_auc is not None
    assert 0 < report.malignant.partial_auc < 0.2
    assert report.groups is not None
    for group in (g for members in report.groups.values() for g in members):
        low, high = group.interval_95
        assert low is not None and high is not None and low < high
    text = words(parse(html(tmp_path, report, scored)))
    for title in ("Precision", "F1", "Partial AUC above 80", "Precision and recall"):
        assert title in text


def test_a_class_of_few_images_has_no_interval_of_width_zero(tmp_path: Path) -> None:
    scored = scored_set(HAM_CLASSES, 14)
    scored = scored._replace(probabilities=np.eye(7)[scored.labels] * 0.93 + 0.01)  # all right
    report = made(scored)
    ends = [row.recall_interval_95 for row in report.classes.values()] + [report.interval_95]
    ends += [row.auc_interval_95 for row in report.classes.values()]
    assert report.groups is not None
    ends += [g.interval_95 for members in report.groups.values() for g in members]
    for low, high in ends:
        assert low is not None and high is not None and low < high
    assert "An interval of width 0" not in words(parse(html(tmp_path, report, scored)))


def test_reports_without_the_newer_figures_load(tmp_path: Path) -> None:
    scored = scored_set(HAM_CLASSES, 28)
    old = made(scored).to_dict()
    newer = ("auc_interval", "precision", "f1", "specificity_at_90", "sensitivity_at_80", "partial_auc")
    del old["auc_interval"]
    for row in [*old["classes"].values(), old["malignant"]]:
        for key in [key for key in row if key.startswith(newer)]:
            del row[key]
    for row in (row for rows in old["groups"].values() for row in rows):
        del row["interval_95"]
    report = Report.model_validate_json(json.dumps(old))
    assert report.to_dict() == old
    text = words(parse(html(tmp_path, report, scored)))
    assert "Partial AUC" not in text and "F1" not in text


def test_figures_by_skin_tone(tmp_path: Path) -> None:
    scored = scored_set(HAM_CLASSES)
    tones = [("dark", "very light", "light")[i // 2 % 3] for i in range(60)]
    scored = scored._replace(table=scored.table.assign(**{TONE_COLUMN: tones}))
    share = ShareWithInterval(share=0.5, interval_95=(0.2, 0.8), images=4, lesions=4)
    row = DecidedGroup(name="very light", images=20, lesions=10, refused=share, sensitivity=share, specificity=None)
    decided = Decided(
        refused=Refused(**share.model_dump(), reasons={}, by_class={}),
        sets=None,
        triage=MeasuredTriage(threshold=0.3, sensitivity=share, specificity=share),
        by_lesion=None,
        by_skin_tone=[row],
    )
    report = made(scored, decided=decided)
    assert report.groups is not None
    assert [group.name for group in report.groups[TONE_COLUMN]] == ["very light", "light", "dark"]
    text = words(parse(html(tmp_path, report, scored)))
    assert text.count("Skin tone (estimated)") == 2 and SKIN_TONE in text and FAIR_SKIN in text
    assert text.count("50.0 % (20.0 to 80.0 %) of 4") == 2  # refused, sensitivity

    old = report.to_dict()  # of dermrw before there were skin tones
    del old["decided"]["by_skin_tone"], old["groups"][TONE_COLUMN]
    report = Report.model_validate_json(json.dumps(old))
    assert report.to_dict() == old
    assert "skin tone" not in words(parse(html(tmp_path, report, scored))).casefold()


def test_same_input_same_bytes(tmp_path: Path) -> None:
    scored = scored_set(CIFAR_CLASSES, 20)
    report = made(scored)
    assert html(tmp_path, report, scored) == html(tmp_path, report, scored)


def test_warning_stands_at_both_ends_and_sample_needs_no_licence(tmp_path: Path) -> None:
    scored = scored_set(HAM_CLASSES, 14)
    text = words(parse(html(tmp_path, made(scored, warning="Embedded sample: <drawn>."), scored)))
    assert text.count("Embedded sample: <drawn>.") == 2
    assert text.endswith("Embedded sample: <drawn>.")
    assert "ViDIR" not in text


def test_hostile_names_are_text(tmp_path: Path) -> None:
    scored = scored_set(HAM_CLASSES)
    scored.table["image_id"] = [f"{HOSTILE}{i}" for i in range(60)]
    scored.table["localization"] = HOSTILE
    text = words(parse(html(tmp_path, made(scored, run=HOSTILE, weights=HOSTILE), scored)))
    assert text.count(HOSTILE) > 10


def test_hostile_class_is_text_in_figures_too(tmp_path: Path) -> None:
    codes = (HOSTILE, '"b', "c<")
    scored = scored_set(Classes(codes, codes, codes, None), 12)
    write_log(tmp_path, 3)
    parse(html(tmp_path, made(scored), scored))


def test_ten_classes_without_groups(tmp_path: Path) -> None:
    scored = scored_set(CIFAR_CLASSES)
    write_log(tmp_path, 10)
    root = parse(html(tmp_path, made(scored), scored))
    text = words(root)
    assert "automobile" in text and "guessing, 10.0" in text
    for word in ("lesion", "ViDIR", "malignant against", "Subgroups", "diagnoses"):
        assert word not in text
    assert any("pixelated" in image.get("class", "") for image in root.iter(f"{HTML}img"))


def test_absent_classes_are_dashes(tmp_path: Path) -> None:
    scored = scored_set(HAM_CLASSES, absent=(0, 2, 3))  # all that is malignant: no curve for it either
    report = made(scored)
    assert report.malignant is not None and report.malignant.auc is None
    root = parse(html(tmp_path, report, scored))
    row = next(e for e in root.iter(f"{HTML}tr") if "melanoma" in "".join(e.itertext()))
    cells = ["".join(cell.itertext()).strip() for cell in row.iter(f"{HTML}td")]
    assert cells == ["0", "0", "–", "", "–", "–", "–", "–"]
    assert not re.search(r"\b(nan|None|inf)\b", words(root))


def test_no_weight_at_all(tmp_path: Path) -> None:
    scored = scored_set(HAM_CLASSES, 1)
    scored.table["image_id"] = "ISIC_0035068"  # which the official scorer does not count
    report = made(scored)
    assert report.images == 0 and report.accuracy is report.balanced_accuracy is report.mean_auc is None
    assert report.interval_95 == (None, None)
    assert "No decision was wrong" in words(parse(html(tmp_path, report, scored)))


def test_erm_run_shows_no_weights_and_no_log_shows_no_training(tmp_path: Path) -> None:
    scored = scored_set(HAM_CLASSES, 21)
    report = made(scored, objective="erm")
    assert "Training loss" not in words(parse(html(tmp_path, report, scored)))
    write_log(tmp_path, 7, reweight=False)
    text = words(parse(html(tmp_path, report, scored)))
    assert "Training loss" in text and "learned weights" not in text and "Loss on validation" not in text
    write_log(tmp_path, 7, reweight=False, validation_loss=True)
    assert "Loss on validation images" in words(parse(html(tmp_path, report, scored)))


def test_undecided_column_only_where_used(tmp_path: Path) -> None:
    scored = scored_set(HAM_CLASSES, 21)
    assert "undecided" not in html(tmp_path, made(scored), scored)
    scored.probabilities[0] = 1 / 7
    assert "undecided" in html(tmp_path, made(scored), scored)


def test_mistakes_are_the_most_confident_one_a_lesion() -> None:
    scored = scored_set(HAM_CLASSES)
    styles = figures.class_styles(HAM_CLASSES)
    found = page.mistakes(scored, np.ones(60), styles, 12)
    assert len(found) == 12
    assert [m.probability for m in found] == sorted((m.probability for m in found), reverse=True)
    lesion = dict(zip(scored.table["image_id"], scored.table["lesion_id"], strict=True))
    assert len({lesion[m.image_id] for m in found}) == 12
    wrong = scored.probabilities.argmax(1) != scored.labels
    assert found[0].probability == scored.probabilities.max(1)[wrong].max()
    missed = page.mistakes(scored, np.ones(60), styles, 6, missed=True)
    assert missed and all(m.truth.malignant and not m.decision.malignant for m in missed)


def test_thumbnail_is_upright_small_and_may_fail(tmp_path: Path) -> None:
    picture = Image.new("RGB", (600, 400))
    exif = picture.getexif()
    exif[0x0112] = 6  # lies on its side
    picture.save(tmp_path / "a.jpg", exif=exif)
    url, pixelated = thumbnail(str(tmp_path / "a.jpg"))
    assert url is not None and not pixelated
    assert Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size == (107, 160)
    assert thumbnail(str(tmp_path / "missing.jpg")) == (None, False)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored = scored_set(HAM_CLASSES, 14)
    report = made(scored)
    (tmp_path / "report_x.html").write_text("old")

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError):
        page.write_html(tmp_path / "report_x.html", report, scored, TrainingHistory(), official=True)
    assert [p.name for p in tmp_path.iterdir()] == ["report_x.html"]
    assert (tmp_path / "report_x.html").read_text() == "old"


def test_numbers_for_people() -> None:
    assert percent(None) == number(None) == "–"
    assert percent(0.2566, space=NO_BREAK) == "25.7\u202f%"
    assert number(-0.5) == "−0.500"
    assert [duration(s, NO_BREAK) for s in (66, 600, 9000)] == ["66\u202fs", "10\u202fmin", "2.5\u202fh"]


@pytest.mark.slow
def test_reports_need_no_torch() -> None:
    modules = ["figures", "predictions_csv", "report_html", "report_json", "report_schema"]
    imports = "".join(f"import dermrw.reports.{name}\n" for name in modules)
    code = f"import sys\n{imports}import dermrw.metrics.calibration_error\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
