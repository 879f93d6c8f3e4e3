"""`dermrw score --refit`: thresholds fitted on the user's images, measured out of fold, in a new model file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import exit_status
from PIL import Image

from app.engine import Engine
from app.render import fixed_part
from dermrw.datasets.sample_drawing import draw_lesion
from dermrw.decisions.conformal import fit_thresholds
from dermrw.decisions.triage import choose, measure
from dermrw.diagnoses import DX, HAM_CLASSES
from dermrw.errors import UserError
from dermrw.inference.classifier import Classifier
from dermrw.inference.known_images import KnownImages
from dermrw.inference.model_file import ModelInfo
from dermrw.reports import report_json
from dermrw.scoring import refit
from dermrw.scoring.refit import FOLDS, Labelled, assign_folds, fit, plan
from export.training_images import add_list

SHIPPED = Path(__file__).parents[2] / "app/model.onnx"
BAD = np.array(HAM_CLASSES.malignant)


@pytest.fixture(scope="module")
def info() -> ModelInfo:
    """The shipped model's metadata, with triage at equal prevalence."""
    info = Classifier(SHIPPED, "cpu").info
    assert info.triage is not None
    return info.model_copy(update={"triage": info.triage.model_copy(update={"prevalence": None})})


def drawn(per_class: int = 60, classes: int = 7) -> tuple[np.ndarray, Labelled]:
    """Probabilities of classes with two images a group."""
    labels = np.repeat(np.arange(classes), per_class)
    logits = np.random.default_rng(0).normal(0, 1, (len(labels), 7))
    logits[np.arange(len(labels)), labels] += 2
    groups = np.array([f"g{i // 2}" for i in range(len(labels))])
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True), Labelled(labels, groups, False)


def test_folds_keep_groups_together_and_spread_classes() -> None:
    _, images = drawn()
    folds = assign_folds(images.labels, images.groups)
    for group in np.unique(images.groups):
        assert len(np.unique(folds[images.groups == group])) == 1
    for c in range(7):
        counts = np.bincount(folds[images.labels == c], minlength=FOLDS)
        assert counts.tolist() == [12] * FOLDS
    order = np.random.default_rng(1).permutation(len(folds))
    assert (assign_folds(images.labels[order], images.groups[order]) == folds[order]).all()


def test_thresholds_are_those_of_all_images_and_figures_out_of_fold(info: ModelInfo) -> None:
    p, images = drawn()
    planned = plan(images, info)
    assert planned.triage and planned.prevalence and planned.classes == list(range(7))
    fitted = fit(p, images, info, planned)
    y, groups = images.labels, images.groups
    np.testing.assert_allclose(fitted.thresholds, fit_thresholds(p, y, groups, info.coverage).values)
    assert fitted.triage_threshold == choose(p[:, BAD].sum(1), BAD[y], groups).threshold
    assert fitted.prevalence == pytest.approx(dict.fromkeys(DX, 1 / 7))
    refer, inside = np.zeros(len(y), bool), np.zeros(len(y), bool)
    for fold in range(FOLDS):
        here = planned.folds == fold
        refer[here] = p[here][:, BAD].sum(1) >= choose(p[~here][:, BAD].sum(1), BAD[y[~here]], groups[~here]).threshold
        values = fit_thresholds(p[~here], y[~here], groups[~here], info.coverage).values
        mine = p[here][np.arange(here.sum()), y[here]]
        inside[here] = (mine >= values[y[here]]) | (p[here].argmax(1) == y[here])
    assert fitted.sensitivity and fitted.specificity and fitted.covered
    assert fitted.sensitivity.value == pytest.approx(refer[BAD[y]].mean())
    assert fitted.specificity.value == pytest.approx((~refer[~BAD[y]]).mean())
    assert fitted.covered.value == pytest.approx(inside.mean())
    assert fitted.sensitivity.lesions == 90
    assert fit(p, images, info, plan(images, info)) == fitted


def test_too_few_groups_are_named(info: ModelInfo) -> None:
    _, images = drawn()
    few = np.flatnonzero((images.labels != 5) | (np.arange(len(images.labels)) % 60 < 20))
    planned = plan(Labelled(images.labels[few], images.groups[few], False), info)
    assert planned.classes == [0, 1, 2, 3, 4, 6] and planned.prevalence
    assert planned.kept[0] == (
        "The prediction-set threshold of df is kept, because images of df have 10 groups, and 12 are needed."
    )
    _, images = drawn(classes=2)
    planned = plan(images, info)
    assert planned.classes == [0, 1] and not planned.triage and not planned.prevalence
    assert "malignant images have 30 groups, and 57 are needed" in planned.kept[0]
    assert "no image shows bcc, akiec, bkl, df, vasc" in " ".join(planned.kept)
    _, images = drawn(per_class=10)
    with pytest.raises(
        UserError,
        match=r"nothing can be refitted .*malignant images have 15 groups.*images of mel have 5.*The prevalence alone",
    ):
        plan(images, info)
    benign_only = Labelled(np.zeros(100, np.int64), np.arange(100).astype(str), True)
    with pytest.raises(UserError, match="malignant images have 0 groups"):
        plan(benign_only, info)
    with pytest.raises(UserError, match="states no malignant classes"):
        plan(benign_only, info.model_copy(update={"malignant": None}))


def test_triage_keeps_its_prevalence(info: ModelInfo) -> None:
    p, images = drawn()
    assert info.triage is not None
    shares = np.array([0.03, 0.05, 0.1, 0.02, 0.1, 0.65, 0.05])
    triage = info.triage.model_copy(update={"prevalence": dict(zip(DX, shares.tolist(), strict=True))})
    info = info.model_copy(update={"format": "dermrw 3", "triage": triage})
    score = (p * shares)[:, BAD].sum(1) / (p * shares).sum(1)
    fitted = fit(p, images, info, plan(images, info))
    assert fitted.triage_threshold == choose(score, BAD[images.labels], images.groups).threshold
    assert fitted.before.sensitivity == measure(score, BAD[images.labels], images.groups, triage.threshold).sensitivity
    # the same for a file without triage, whose training prevalence is known
    untold = info.model_copy(update={"triage": None, "prevalence": triage.prevalence})
    assert fit(p, images, untold, plan(images, untold)).triage_threshold == fitted.triage_threshold
    older = untold.model_copy(update={"format": "dermrw 2"})
    equal = choose(p[:, BAD].sum(1), BAD[images.labels], images.groups).threshold
    assert fit(p, images, older, plan(images, older)).triage_threshold == equal


def test_binary_labels_refit_triage_alone(info: ModelInfo) -> None:
    p, images = drawn()
    binary = Labelled(BAD[images.labels].astype(np.int64), images.groups, True)
    planned = plan(binary, info)
    assert planned.triage and not planned.classes and not planned.prevalence
    fitted, of_classes = fit(p, binary, info, planned), fit(p, images, info, plan(images, info))
    assert fitted.thresholds == info.thresholds and fitted.covered is None
    assert fitted.triage_threshold == of_classes.triage_threshold


PER_CLASS = 12


@pytest.fixture
def run_score(model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the command on 84 drawn images, each a group, with a model that lists one other image."""
    monkeypatch.setattr(report_json, "REPLICATES", 20)
    monkeypatch.setattr(report_json, "FEW_REPLICATES", 20)
    monkeypatch.setattr(refit, "LEAST_POSITIVE", 20)
    lines, rng = ["image,label,group"], np.random.default_rng
    for i, code in enumerate(DX):
        lesion = draw_lesion(code, rng([i, 0]), rng([i, 1]), 60, 80)
        for n in range(PER_CLASS):
            Image.fromarray(np.roll(lesion, 5 * n, 1)).save(tmp_path / f"{code}{n}.png")
            lines.append(f"{code}{n}.png,{code},{code}{n}")
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    (tmp_path / "model.onnx").write_bytes(add_list(model_file.read_bytes(), KnownImages.of(["other"], [])))

    def run(model: str, *options: str) -> int:
        return exit_status(
            monkeypatch, "score", str(tmp_path / model), str(tmp_path / "mine.csv"), "--out", str(tmp_path / "out"),
            "--device", "cpu", *options,
        )  # fmt: skip

    return run


@pytest.mark.slow
def test_the_new_file_has_the_same_network(
    run_score: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "clinic.onnx"
    assert run_score("model.onnx", "--refit", str(new)) == 0
    assert "Triage sensitivity, out of fold: " in capsys.readouterr().out
    before, after = Classifier(tmp_path / "model.onnx", "cpu"), Classifier(new, "cpu")
    pictures = sorted(tmp_path.glob("*.png"))
    assert (before(pictures) == after(pictures)).all()
    old, info = before.info, after.info
    assert info.refit and info.refit.images == info.refit.groups == 84 and info.refit.source == "mine.csv"
    assert info.refit.model_sha256 == before.digest
    changed = {"prevalence", "thresholds", "covered", "triage", "score", "refused"}
    assert set(info.refit.fields) == changed and info.refit.classes == DX
    same = set(ModelInfo.model_fields) - changed - {"refit"}
    assert all(getattr(info, key) == getattr(old, key) for key in same)
    assert info.prevalence == pytest.approx(dict.fromkeys(DX, 1 / 7)) and info.triage and info.triage.sensitivity
    assert old.triage and old.triage.prevalence and info.triage.prevalence == old.triage.prevalence != info.prevalence
    assert info.score.scored_on == "mine.csv, thresholds out of fold" and info.covered == info.refit.covered
    assert (old.prevalence_images, info.prevalence_images) == ("the training data", "mine.csv (refitted)")
    assert "thresholds refitted on mine.csv" in fixed_part("foot", Engine(after))
    assert "refitted" not in fixed_part("foot", Engine(before))
    card = new.with_suffix(".md").read_text()
    for text in (
        after.digest, before.digest, "84 labelled images", "| mel | 12 | 12 |", "triage threshold", "mine.csv",
        "The refusal limits are kept",
    ):  # fmt: skip
        assert text in card, text
    assert not list(tmp_path.glob(".*.unchecked"))
    known = after.known_images()  # by their hashes alone: another picture may be named mel0, too
    assert known is not None and not known.match(["mel0"], [(2**64 - 1, 2**64 - 1)])[0]
    # the new file lists the images, so they cannot be scored with it
    assert run_score("clinic.onnx") == 2
    assert "trained, selected or calibrated on all of the 84 images" in capsys.readouterr().err


def test_targets_are_checked_first(
    run_score: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there.md").write_text("precious")
    for target, message in (
        ("model.onnx", "would replace"), ("there.onnx", "there.md"), ("x.bin", "ends in .onnx"),
        ("none/x.onnx", "can't be written"),
    ):  # fmt: skip
        assert run_score("model.onnx", "--refit", str(tmp_path / target)) == 2
        assert message in capsys.readouterr().err
    lines = (tmp_path / "mine.csv").read_text().splitlines()
    (tmp_path / "mine.csv").write_text("\n".join(lines[:5]))
    assert run_score("model.onnx", "--refit", str(tmp_path / "new.onnx")) == 2
    error = capsys.readouterr().err
    assert "nothing can be refitted on these images" in error and "images of mel have 4 groups, and 12" in error
    assert not (tmp_path / "out").exists() and not (tmp_path / "new.onnx").exists()


@pytest.mark.slow
def test_figures_of_replaced_thresholds_are_deleted_where_classes_are_absent(
    run_score: Callable[..., int], tmp_path: Path
) -> None:
    lines = (tmp_path / "mine.csv").read_text().splitlines()
    (tmp_path / "mine.csv").write_text("\n".join(lines[: 1 + 2 * PER_CLASS]))  # melanomas and nevi
    new = tmp_path / "two.onnx"
    assert run_score("model.onnx", "--refit", str(new)) == 0
    old, info = Classifier(tmp_path / "model.onnx", "cpu").info, Classifier(new, "cpu").info
    assert info.refit and info.refit.fields == ("covered", "thresholds") and info.refit.classes == ("mel", "nv")
    assert info.thresholds[2:] == old.thresholds[2:] and info.covered is None and info.refit.covered
    assert (info.score, info.triage, info.prevalence) == (old.score, old.triage, old.prevalence)
    assert info.triage and info.triage.prevalence
    card = new.with_suffix(".md").read_text()
    assert "triage threshold |" not in card and "malignant images have 12 groups, and 25 are needed" in card
