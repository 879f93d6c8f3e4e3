"""Runs that see the whole picture without its border, or with colour constancy: from training to the model file."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from dermrw.config import Model, load_config
from dermrw.datasets.dataset import load_splits
from dermrw.datasets.sample_drawing import draw_lesion
from dermrw.errors import UserError
from dermrw.evaluation.evaluate import evaluate
from dermrw.images.preprocess import PLAIN, Framing, evaluation_pixels
from dermrw.inference.classifier import Classifier
from dermrw.models import build_model
from dermrw.training.train import train
from dermrw.weights import safetensors_metadata
from export.__main__ import export, export_encoder

SETTINGS = [
    "name=tiny", "data.name=sample", "data.size=32", "data.meta=rule", "model.backbone=small_cnn", "model.weights=none",
    "objective=erm", "train.epochs=1", "train.batch_size=16", "train.precision=fp32", "train.channels_last=false",
    "train.device=cpu",
]  # fmt: skip
FRAMED = ["data.field_of_view=find", "data.crop=whole"]


@pytest.mark.slow
def test_a_run_on_whole_pictures_is_exported_with_its_framing(sample: Path, tmp_path: Path) -> None:
    config = load_config(None, [*SETTINGS, f"data.root={sample}", *FRAMED])
    run = train(config, tmp_path / "run")
    evaluate(run)
    export(run, [])  # compares ONNX Runtime with torch
    classifier = Classifier(run / "model.onnx", "cpu")
    assert classifier.framing == Framing("find", "whole")
    assert "squeezed" in classifier.info.resize and "cut its borders" in classifier.info.resize
    assert "cut its borders" in (run / "MODEL_CARD.md").read_text()

    source = load_splits(config.data, sample).test.sources[0]
    assert np.array_equal(classifier.pixels(source), evaluation_pixels(source, 32, Framing("find", "whole")))
    image = draw_lesion("mel", np.random.default_rng(0), np.random.default_rng(1), 300, 400)
    bordered = np.pad(image, ((30, 30), (40, 40), (0, 0)))
    box = classifier.explain(bordered).box
    assert box is not None
    part = bordered[box.top : box.bottom, box.left : box.right]
    given = classifier.run(part[None], "probabilities")[0][0]  # as someone who cuts it and feeds the graph
    np.testing.assert_allclose(classifier(bordered)[0], given, atol=1e-6)

    model = onnx.load(run / "model.onnx")
    for entry in model.metadata_props:
        if entry.key == "crop":
            entry.value = json.dumps("square")
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(UserError, match="another crop than square"):
        Classifier(tmp_path / "other.onnx", "cpu")


@pytest.mark.slow
def test_a_run_with_colour_constancy_is_exported_with_it(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(
        None, [*SETTINGS, f"data.root={sample}", "model.colour_constancy=shades_of_grey", "data.views=4"]
    )
    run = train(config, tmp_path / "run")
    evaluate(run)
    export(run, [])  # compares ONNX Runtime with torch
    classifier = Classifier(run / "model.onnx", "cpu")
    assert classifier.info.colour_constancy == "shades_of_grey"
    assert "normalised to a reference illuminant by shades of grey" in (run / "MODEL_CARD.md").read_text()
    lesion = 0.7 * np.asarray(draw_lesion("mel", np.random.default_rng(0), np.random.default_rng(1), 60, 80))
    warm = np.clip(np.rint(lesion * np.array([1.15, 1.0, 1 / 1.15])), 0, 255).astype(np.uint8)
    np.testing.assert_allclose(classifier(warm), classifier(lesion.astype(np.uint8)), atol=2e-3)

    encoder = run / "encoder.safetensors"
    assert safetensors_metadata(encoder)["colour_constancy"] == "shades_of_grey"
    export_encoder(run / "model.onnx", tmp_path / "again.safetensors")
    assert safetensors_metadata(tmp_path / "again.safetensors")["colour_constancy"] == "shades_of_grey"
    capsys.readouterr()
    for key in ("none", "shades_of_grey"):
        build_model(Model(backbone="small_cnn", weights=str(encoder), colour_constancy=key), 7)
        warned = "trained with model.colour_constancy=shades_of_grey, not none" in capsys.readouterr().out
        assert warned == (key == "none")


def test_older_files_keep_their_pixels(model_file: Path, tmp_path: Path) -> None:
    model = onnx.load(model_file)
    later = ("field_of_view", "crop", "colour_constancy")
    kept = [entry for entry in model.metadata_props if entry.key not in later]
    assert len(kept) == len(model.metadata_props) - 3
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    onnx.save(model, tmp_path / "old.onnx")
    old, new = (Classifier(path, "cpu") for path in (tmp_path / "old.onnx", model_file))
    assert old.framing == new.framing == PLAIN and old.info == new.info
    bordered = np.pad(np.full((60, 80, 3), 200, np.uint8), ((9, 9), (9, 9), (0, 0)))
    explanation = old.explain(bordered)
    assert explanation.box is None and np.array_equal(explanation.pixels, evaluation_pixels(bordered, old.info.size))
