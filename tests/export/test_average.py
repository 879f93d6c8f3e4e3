"""Several runs as one model file, against the average of their own files, and the runs that can't be averaged."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from dermrw.errors import UserError
from dermrw.evaluation.average import Average, joint_splits, require_alike
from dermrw.inference.classifier import Classifier
from dermrw.training.checkpoint import load_checkpoint
from dermrw.training.run_folder import read_split
from export.__main__ import export, main
from export.average import _member, averaged_runs, export_average
from export.encoder import encoder_of_model_file

RNG = np.random.default_rng(0)


def sibling(run: Path, name: str = "other") -> Path:
    """A copy of a run with other weights, whose report claims to be of these weights."""
    other = Path(shutil.copytree(run, run.with_name(name)))
    state = load_checkpoint(other / "best.pt")
    torch.manual_seed(1)
    for tensor in state["model"].values():
        if tensor.ndim > 1:
            tensor += 0.1 * tensor.std() * torch.randn_like(tensor)
    torch.save(state, other / "best.pt")
    report = json.loads((other / "report.json").read_text())
    report["checkpoint_sha256"] = hashlib.sha256((other / "best.pt").read_bytes()).hexdigest()
    (other / "report.json").write_text(json.dumps(report))
    return other


def swap(run: Path, first: str, second: str) -> set[str]:
    """Exchanges the first lesion of each class between two parts of a run's split; returns the lesions from `first`."""
    split = read_split(run)
    moved = set()
    for _, rows in split.groupby("dx"):
        one, two = (rows["lesion_id"][rows["split"] == part].iloc[0] for part in (first, second))
        split.loc[split["lesion_id"] == one, "split"] = second
        split.loc[split["lesion_id"] == two, "split"] = first
        moved.add(one)
    split.to_csv(run / "split.csv", index=False, lineterminator="\n")
    return moved


@pytest.mark.slow
def test_the_file_is_the_average_of_the_files_of_two_folds(
    run: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    other = sibling(run)
    swap(other, "validation", "train")
    export(other, [])
    path = run.parent / "average" / "model.onnx"
    main([str(run), str(other), "-o", str(path), "--weights", "fp32"])
    assert "ONNX Runtime agrees with torch" in capsys.readouterr().out
    single, average = [Classifier(r / "model.onnx", "cpu") for r in (run, other)], Classifier(path, "cpu")

    pictures = RNG.integers(0, 256, (6, 48, 60, 3), dtype=np.uint8)
    outputs = ("probabilities", "activation_map", "embedding", "checks")
    parts = [c.run(pictures, *outputs) for c in single]
    logits = [
        c.info.temperature * (np.log(p[0].astype(np.float64)) - np.array(c.info.offsets))
        for c, p in zip(single, parts, strict=True)
    ]
    logits = [z - z.mean(1, keepdims=True) for z in logits]
    scores = np.exp(np.mean(logits, 0) / average.info.temperature + np.array(average.info.offsets))
    probabilities, activation_map, embedding, checks = average.run(pictures, *outputs)
    np.testing.assert_allclose(probabilities, scores / scores.sum(1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(activation_map, (parts[0][1] + parts[1][1]) / 2, atol=1e-4)
    units = [p[2] / np.linalg.norm(p[2], axis=1, keepdims=True) for p in parts]
    np.testing.assert_allclose(embedding, np.concatenate(units, 1), atol=1e-5)
    np.testing.assert_array_equal(checks[:, :7], parts[0][3][:, :7])
    np.testing.assert_allclose(checks[:, 7], (parts[0][3][:, 7] + parts[1][3][:, 7]) / 2, rtol=1e-4)
    assert not np.allclose(parts[0][3][:, 7], parts[1][3][:, 7], rtol=1e-3)

    info, report = average.info, json.loads((path.parent / "report.json").read_text())
    assert [part.name for part in info.runs] == [run.name, "other"] and info.name == "average"
    assert [part.digest for part in info.runs] == [c.info.digest for c in single]
    assert info.temperature == report["calibration"]["temperature"]
    assert set(single[0].info.to_props()) == set(info.to_props())
    assert "by the 1 to 2 of 2 runs that were not trained on its lesion" in report["notes"][0]
    card = (path.parent / "MODEL_CARD.md").read_text()
    assert all(c.info.digest in card for c in single) and average.digest in card and report["notes"][0] in card
    images = sum(part["split"].eq("validation").sum() for part in (read_split(run), read_split(other)))
    both = set.intersection(*(set(read_split(r).query("split == 'validation'")["image_id"]) for r in (run, other)))
    assert report["validation"]["images"] == images - len(both)
    known = average.known_images()
    assert known is not None
    far = [(2**64 - 1, 2**64 - 1)] * len(read_split(run))
    matched = known.match(read_split(run)["image_id"].tolist(), far)
    assert matched.tolist() == (read_split(run)["split"] != "test").tolist()
    assert averaged_runs(path.parent) == [run.resolve(), other.resolve()] and averaged_runs(run) is None
    with pytest.raises(UserError, match=r"averages 2 runs: write the encoder of one"):
        encoder_of_model_file(path, run / "e.safetensors")


def test_validation_images_are_predicted_by_the_runs_that_were_not_trained_on_them(
    run: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    other = sibling(run)
    left = swap(other, "validation", "train")
    members = [_member(r, []) for r in (run, other)]
    require_alike(members)
    splits, average = joint_splits(members), Average(members)
    assert splits.validation.table["image_id"].is_unique and splits.train.table["image_id"].is_unique
    logits, checks, count = average.predict_held_out(splits.validation)
    single = [m.predictor.predict(splits.validation, "validation") for m in members]
    lesions = splits.validation.table["lesion_id"]
    own = set(members[0].splits.validation.table["lesion_id"])
    for row, lesion in enumerate(lesions):
        used = [0] if lesion in left else [0, 1] if lesion in own else [1]
        assert count[row] == len(used)
        for found, of_run in ((logits, 0), (checks, 1)):
            expected = np.mean([single[k][of_run][row] for k in used], 0)
            np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-4)
    assert set(count) == {1, 2}


def in_config(section: str, key: str, value: object) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        config = yaml.safe_load((run / "config.yaml").read_text())
        config[section][key] = value
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        report = json.loads((run / "report.json").read_text())
        (run / "report.json").write_text(json.dumps(report | ({key: value} if key in report else {})))

    return change


def without_warning(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps(report | {"warning": None}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_config("data", "crop", "whole"), "differ in data.crop: square and whole"),
        (in_config("data", "field_of_view", "find"), "differ in data.field_of_view: none and find"),
        (in_config("data", "size", 64), "differ in data.size: 32 and 64"),
        (without_warning, "differ in warning"),
        (lambda run: swap(run, "test", "train"), "their test splits differ"),
    ],
)
def test_runs_that_cannot_be_averaged(
    run: Path, place: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object], message: str
) -> None:
    monkeypatch.chdir(place)
    other = sibling(run)
    change(other)
    with pytest.raises(UserError, match=message):
        export_average([run, other], run.parent / "average" / "model.onnx", [])
    assert not (run.parent / "average").exists()


def test_mistakes_with_several_runs(
    run: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    with pytest.raises(UserError, match="hold the same checkpoint"):
        export_average([run, run], run.parent / "average" / "model.onnx", [])
    with pytest.raises(UserError, match=r"must end in \.onnx"):
        export_average([run, run], run.parent / "average", [])
    with pytest.raises(UserError, match="holds other files: name a file in a folder of its own"):
        export_average([run, run], run / "average.onnx", [])
    for arguments, said in (
        ([str(run), str(run)], "name the model file with -o FILE"),
        ([str(run), "-o", "x.onnx"], "-o is for the average of several runs"),
        ([str(run), str(run), "--encoder", "x"], "--encoder takes one run or model file"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert said in capsys.readouterr().err
