"""Model files of classes other than HAM10000's."""

from pathlib import Path

from tools.any_model import TRIAGE, model_info, write_model

from dermrw.diagnoses import HAM_CLASSES
from dermrw.inference.classifier import Classifier
from dermrw.inference.model_file import ModelInfo


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
