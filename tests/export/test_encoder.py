"""The encoder as safetensors."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file

from dermrw.config import Model, load_config
from dermrw.diagnoses import HAM_CLASSES
from dermrw.errors import UserError
from dermrw.evaluation.predict import load_best
from dermrw.inference.classifier import Classifier
from dermrw.inference.shipped import shipped_model
from dermrw.models import build_model
from dermrw.weights import safetensors_metadata
from export.__main__ import main
from export.encoder import encoder_of_model_file


def test_an_export_writes_the_encoder_of_the_run(run: Path) -> None:
    config = load_config(run / "config.yaml")
    model, _ = load_best(run, config, HAM_CLASSES)
    tensors = load_file(run / "encoder.safetensors")
    faults = model.load_state_dict(tensors, strict=False)
    assert not faults.unexpected_keys and set(faults.missing_keys) == {"16.weight", "16.bias"}
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in tensors.items())
    metadata = safetensors_metadata(run / "encoder.safetensors")
    assert {**metadata, "backbone": "small_cnn", "size": "32", "embedding": "256"} == metadata
    again, _ = build_model(Model(backbone="small_cnn", weights=str(run / "encoder.safetensors")), 5)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in tensors.items())


def test_the_encoder_of_a_run_alone(run: Path, tmp_path: Path) -> None:
    main([str(run), "--encoder", str(tmp_path / "e.safetensors")])
    ours, theirs = load_file(tmp_path / "e.safetensors"), load_file(run / "encoder.safetensors")
    assert set(ours) == set(theirs) and all(torch.equal(tensor, ours[name]) for name, tensor in theirs.items())
    described = [safetensors_metadata(path) for path in (tmp_path / "e.safetensors", run / "encoder.safetensors")]
    assert described[0] == described[1]


@pytest.mark.slow
def test_the_encoder_of_the_shipped_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--encoder", str(tmp_path / "e.safetensors")])
    assert "agree with ONNX Runtime" in capsys.readouterr().out
    info = Classifier(shipped_model()).info
    backbone, prefix = (info.runs[0].backbone, "runs.0.model.") if info.runs else (info.backbone, "model.")
    model, _ = build_model(Model(backbone=backbone, weights=str(tmp_path / "e.safetensors")), 2)
    stored = {c.name: c for c in onnx.load(shipped_model()).graph.initializer}
    for name, tensor in model.state_dict().items():
        if "num_batches" not in name and not name.startswith("classifier."):
            assert np.array_equal(onnx.numpy_helper.to_array(stored[f"{prefix}{name}"]), tensor.numpy()), name


def test_a_model_file_whose_encoder_cannot_be_recovered(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The export merges batch norm into the convolutions of a model of one view."""
    with pytest.raises(SystemExit):
        main([str(model_file), "--encoder", str(tmp_path / "e")])
    message = capsys.readouterr().err
    assert "does not contain 1.weight of small_cnn, because its export merged batch norm" in message
    assert message.count("\n") == 1 and not (tmp_path / "e").exists()
    whole = onnx.load(shipped_model())
    for prop in whole.metadata_props:
        if prop.key in ("backbone", "runs"):
            prop.value = prop.value.replace("efficientnet_lite0", "resnet17")
    onnx.save(whole, tmp_path / "m.onnx")
    with pytest.raises(UserError, match="unknown backbone resnet17"):
        encoder_of_model_file(tmp_path / "m.onnx", tmp_path / "e")
