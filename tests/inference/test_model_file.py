"""The metadata of a model file."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from dermrw.diagnoses import DX
from dermrw.errors import UserError
from dermrw.inference.classifier import Classifier
from dermrw.inference.model_file import ModelInfo

SHARES = dict(zip(DX, (0.1, 0.6, 0.05, 0.05, 0.1, 0.05, 0.05), strict=True))


def test_an_exported_triage_has_the_prevalence_of_training(model_file: Path) -> None:
    info = Classifier(model_file, "cpu").info
    assert info.triage is not None and info.format == "dermrw 3"
    assert info.triage.prevalence == pytest.approx(info.prevalence) and info.triage.at.startswith("at the training")
    assert info.triage_shares == pytest.approx([info.prevalence[code] for code in DX])


def test_older_files_have_triage_at_equal_prevalence(model_file: Path) -> None:
    props = Classifier(model_file, "cpu").info.to_props()
    triage = '{"threshold": 0.2, "sensitivity": null, "specificity": null}'
    old = ModelInfo.from_props(props | {"format": '"dermrw 2"', "triage": triage}, "old.onnx")
    assert old.triage is not None and old.triage_shares is None and old.triage.at == "at equal prevalence"


def test_a_version_that_would_overlook_the_prevalence_cannot_read_the_file(model_file: Path) -> None:
    info = Classifier(model_file, "cpu").info
    assert info.triage is not None
    values = info.model_dump()
    for changed, message in (
        ({"format": "dermrw 2"}, "a file of the format dermrw 2 must not state a prevalence of triage"),
        ({"triage": {**values["triage"], "prevalence": {"mel": 1.0}}}, "must name the classes of codes"),
        ({"triage": {**values["triage"], "prevalence": SHARES | {"df": 0.0}}}, "greater than 0"),
        ({"triage": {**values["triage"], "prevalence": SHARES | {"df": 0.5}}}, "must be shares that sum to 1"),
    ):
        with pytest.raises(ValidationError, match=message):
            ModelInfo.model_validate(values | changed)
    with pytest.raises(UserError, match=r"new\.onnx has the format dermrw 4, which a newer version of dermrw reads"):
        ModelInfo.from_props(info.to_props() | {"format": '"dermrw 4"'}, "new.onnx")
