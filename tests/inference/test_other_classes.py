"""Model files of classes other than HAM10000's."""

import csv
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from conftest import command
from PIL import Image
from tools.any_model import TRIAGE, model_info, write_model

from dermrw.diagnoses import HAM_CLASSES
from dermrw.inference.classifier import Classifier
from dermrw.inference.model_file import ModelInfo
from dermrw.inference.verdict import verdict


def test_an_older_file_of_ham10000s_classes_is_of_lesions() -> None:
    info = model_info(HAM_CLASSES.codes, HAM_CLASSES.names, columns=HAM_CLASSES.columns)
    props = {key: value for key, value in info.to_props().items() if key not in ("malignant", "subject")}
    old = ModelInfo.from_props(props, "old.onnx")
    assert old.subject == "lesion" and old.malignant == HAM_CLASSES.malignant and old.is_ham10000
    named = ModelInfo.from_props(props | {"subject": '"mole"'}, "new.onnx")
    assert named.subject == "mole"


def test_a_model_that_states_no_malignant_classes(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny.onnx", model_info(("a", "b", "c"), ("Ash", "Birch", "Cedar")))
    info = Classifier(path, "cpu").info
    assert (info.subject, info.malignant, info.triage, info.is_ham10000) == ("image", None, None, False)
    stated = model_info(("a", "b"), malignant=(False, True), triage=TRIAGE, subject="leaf")
    assert Classifier(write_model(tmp_path / "two.onnx", stated), "cpu").info == stated


def test_a_refusal_names_dermoscopy_only_for_models_of_it() -> None:
    strange = np.array([0.5] * 7 + [2.0])
    for info, images in (
        (model_info(("a", "b")), "the images"),
        (model_info(HAM_CLASSES.codes), "the dermoscopic images"),
    ):
        assert (
            verdict(np.array([0.5, 0.5]), strange, 64, 64, info).refused
            == f"it isn't like {images} that the model knows"
        )


def test_a_prediction_set_of_names_with_spaces_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = ("Süßes Muttermal", "a, b", "nan", "it's")
    model = write_model(tmp_path / "tiny.onnx", model_info(codes))
    Image.new("RGB", (40, 40), (255, 0, 0)).save(tmp_path / "one.png")
    command(monkeypatch, "predict", str(model), str(tmp_path / "one.png"), "--csv", str(tmp_path / "out.csv"))
    with (tmp_path / "out_decisions.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert tuple(shlex.split(row["set"])) == Classifier(model, "cpu").explain(tmp_path / "one.png").verdict.classes
    assert " " in row["set"]


def test_predict_of_any_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tmp_path / "tiny.onnx", model_info(("a", "b", "c"), ("Ash", "Birch", "Cedar")))
    images = tmp_path / "images"
    images.mkdir()
    for name, colour in (("one", (255, 0, 0)), ("two", (0, 255, 0))):
        Image.new("RGB", (40, 40), colour).save(images / f"{name}.png")
    Image.new("RGB", (40, 8)).save(images / "thin.png")
    groups, out = tmp_path / "groups.csv", tmp_path / "out.csv"
    groups.write_text("image,group\none,G1\ntwo,G1\nthin,G2\n")
    arguments = ["predict", str(model), str(images), "--csv", str(out), "--lesions", str(groups)]
    with pytest.raises(SystemExit):
        command(monkeypatch, *arguments)
    printed = "".join(capsys.readouterr()).replace(str(tmp_path), "")
    assert "the images of 1 group combined" in printed and "too few to classify" in printed
    assert "Refusals (0) and prediction sets into" in printed and "The model has no triage" in printed
    assert not re.search("lesion|HAM10000|skin|refer|malignan|seven", printed)
    table, decisions = out.read_text().splitlines(), (tmp_path / "out_decisions.csv").read_text().splitlines()
    assert table[0] == "image,A,B,C" and table[1].partition(",")[2] == table[2].partition(",")[2]
    assert decisions[0] == "image,refused,set,triage,not_ruled_out,malignancy_score"
    assert decisions[1].endswith(",,,")
    reason = "only 2 malignant images in validation; at least 45 are needed"
    write_model(model, model_info(("a", "b", "c"), malignant=(True, False, False), no_triage=reason))
    with pytest.raises(SystemExit):
        command(monkeypatch, *arguments)
    assert f"The model has no triage ({reason}), so the columns from triage on are empty" in capsys.readouterr().out
    assert (tmp_path / "out_decisions.csv").read_text().splitlines()[1].endswith(",,")
    groups.write_text("image,group\none,G1\n")
    with pytest.raises(SystemExit):
        command(monkeypatch, *arguments)
    assert "names no group for image thin and 1 more" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command(monkeypatch, *arguments[:-2], "--prevalence", "a=1")
    assert "a share of each of a, b, c: a=0.05" in capsys.readouterr().err
