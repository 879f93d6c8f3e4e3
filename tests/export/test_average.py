"""Several runs as one model file, against the average of their own files, and the runs that can't be averaged."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from dermrw.config import Data, Model
from dermrw.decisions.refusal import ALL_CHECKS
from dermrw.errors import UserError
from dermrw.evaluation.average import Average, joint_splits, require_alike
from dermrw.evaluation.calibration import EqualPrevalence
from dermrw.evaluation.compare import compare, config_differences, print_comparison
from dermrw.evaluation.image_checks import Checks
from dermrw.evaluation.ood_score import Familiarity, Watch, describe, middle
from dermrw.evaluation.photograph_detector import PhotographDetector
from dermrw.evaluation.predict import Predictor
from dermrw.inference.classifier import Classifier
from dermrw.models import build_model
from dermrw.training.checkpoint import load_checkpoint
from dermrw.training.device import Placement
from dermrw.training.image_record import FILE, ImageRecord
from dermrw.training.run_data import run_splits
from dermrw.training.run_folder import averaged_runs, open_run, read_split
from export.__main__ import export, main
from export.average import _member, export_average
from export.card import model_card
from export.encoder import encoder_of_model_file
from export.network import Averaged, Exported
from export.report import read_report

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
    assert [part["seed"] for part in report["runs"]] == [0, 0] and " 1 epoch, seed 0;" in card
    assert all(c.info.digest in card for c in single) and average.digest in card and report["notes"][0] in card
    images = sum(part["split"].eq("validation").sum() for part in (read_split(run), read_split(other)))
    both = set.intersection(*(set(read_split(r).query("split == 'validation'")["image_id"]) for r in (run, other)))
    assert report["validation"]["images"] == images - len(both)
    known = average.known_images()
    assert known is not None
    far = [(2**64 - 1, 2**64 - 1)] * len(read_split(run))
    matched = known.match(read_split(run)["image_id"].tolist(), far)
    assert matched.tolist() == (read_split(run)["split"] != "test").tolist()
    for first, second in ((run, path.parent), (path.parent, run)):
        rows = compare([first, second])
        assert [row.title for row in rows] == ["validation, as trained", "test split"]
        assert all(row.lesions is not None and row.lesions <= row.images for row in rows)
        stated = config_differences([first, second])[str(second)]
        assert stated == [f"{path.parent} is the average of {run.name}, other"]
        print_comparison([first, second])
        printed = capsys.readouterr().out
        assert f"{second} and {first}:" in printed and "Config of" not in printed and "unknown" not in printed
    alone = Path(shutil.copytree(path.parent, run.parent / "copy"))
    assert [(row.title, row.paired.difference) for row in compare([path.parent, alone])] == [
        ("validation, as trained", 0.0), ("test split", 0.0)
    ]  # fmt: skip
    assert all(row.lesions is not None for row in compare([path.parent, alone]))
    for name in ("ground_truth_validation.csv", "ground_truth.csv"):
        (alone / name).unlink()
        (path.parent / name).rename(path.parent / f"kept-{name}")
    with pytest.raises(UserError, match="export the average of runs again"):
        compare([path.parent, alone])
    for name in ("ground_truth_validation.csv", "ground_truth.csv"):
        (path.parent / f"kept-{name}").rename(path.parent / name)
    validation = read_split(other).query("split == 'validation'").set_index("image_id")
    written = pd.read_csv(path.parent / "lesions_validation.csv").set_index("image")["lesion_id"]
    assert (written[validation.index] == validation["lesion_id"]).all()
    assert averaged_runs(path.parent) == [run.resolve(), other.resolve()] and averaged_runs(run) is None
    for broken in ("[]", '[""]', '{"a": 1}', "[3]", "not JSON"):
        (alone / "averaged_runs.json").write_text(broken)
        with pytest.raises(UserError, match=r"averaged_runs\.json can't be read .*: export the average again"):
            averaged_runs(alone)
    with pytest.raises(UserError, match=r"merged batch norm .*: write the encoder from the run"):
        encoder_of_model_file(path, run / "e.safetensors")


def test_every_check_that_the_networks_compute_is_averaged() -> None:
    """Nine checks of an average, as its evaluation has them: the limits are fitted to these."""
    members, predictors = [], []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = build_model(Model(backbone="small_cnn", weights="none"), 7)[0].eval()
        names = middle(model, 32)
        with torch.no_grad(), Watch(model, names) as watch:
            model(torch.randn(40, 3, 32, 32))
            known = describe(watch.take()).numpy()
        detector = PhotographDetector.fit(names, known[:20], known[20:] + 1)
        checks = Checks(Familiarity.fit(names, known), detector).eval()
        members.append(Exported(model, EqualPrevalence(1.0, (0.0,) * 7), checks, 4))
        predictors.append(Predictor(model, checks, Data(size=32), Placement(torch.device("cpu"), "fp32", False)))
    pixels = RNG.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        found = Averaged(members, EqualPrevalence(1.0, (0.0,) * 7))(torch.from_numpy(pixels))[3].numpy()
    parts = [predictor.plain_view(pixels)[1] for predictor in predictors]
    assert found.shape == (5, len(ALL_CHECKS)) and np.abs(parts[0] - parts[1])[:, 7:].min() > 1e-3
    np.testing.assert_allclose(found, (parts[0] + parts[1]) / 2, rtol=1e-5, atol=1e-4)


def test_an_average_has_the_views_that_are_asked_for(
    run: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    path = run.parent / "average" / "model.onnx"
    export_average([run, sibling(run)], path, ["data.views=4"], "fp16")
    stored = {c.name: c.data_type for c in onnx.load(path).graph.initializer}
    half = [name for name, kind in stored.items() if kind == onnx.TensorProto.FLOAT16]
    assert {name.split(".")[1] for name in half} == {"0", "1"} and not any("checks" in name for name in half)
    report = json.loads((path.parent / "report.json").read_text())
    card = (path.parent / "MODEL_CARD.md").read_text()
    assert report["views"] == 4 and "mean of 4 views of each image" in card and "views: 4" in card
    info = Classifier(path, "cpu").info  # as the stress test writes the card, with the config of the first run
    assert "views: 4" in model_card(read_report(path.parent, info.classes), info, "0" * 64, open_run(run))
    rows = read_split(run).query("split == 'test'")["image_id"].to_numpy()
    sources = run_splits(run, open_run(run)).test.sources
    predicted = pd.read_csv(path.parent / "predictions.csv").set_index("image").loc[rows].to_numpy()
    np.testing.assert_allclose(Classifier(path, "cpu")(sources), predicted, atol=2e-3)
    capsys.readouterr()
    main([str(path), "--encoder", "average.safetensors"])
    assert "the first of its 2 networks. Its embeddings agree" in capsys.readouterr().out
    main([str(run), "--encoder", "run.safetensors"])
    first, alone = (load_file(name) for name in ("average.safetensors", "run.safetensors"))
    assert first.keys() == alone.keys()
    for key in alone:
        if "num_batches" not in key:
            torch.testing.assert_close(first[key], alone[key], rtol=1e-3, atol=1e-6)
    with pytest.raises(SystemExit):
        main([str(run), "data.views=4"])
    assert "was evaluated with data.views=1, not 4: export it with data.views=1, or" in capsys.readouterr().err


def test_validation_images_are_predicted_by_the_runs_that_were_not_trained_on_them(
    run: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    other = sibling(run)
    left = swap(other, "validation", "train")
    members = [_member(r, []) for r in (run, other)]
    require_alike(members)
    data = members[1].config.data.model_copy(update={"extra": "more/mine.csv"})
    with_extra = members[1]._replace(config=members[1].config.model_copy(update={"data": data}))
    with pytest.raises(UserError, match=r"differ in data\.extra: None and mine\.csv"):
        require_alike([members[0], with_extra])
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

    # the weights that the other run started from were trained on an image of the first run's validation split
    model = members[1].config.model.model_copy(update={"weights": "first.pt"})
    staged = members[1]._replace(config=members[1].config.model_copy(update={"model": model}))
    record = ImageRecord.of_split(read_split(other), staged.config, {}, None)
    rows = np.flatnonzero(count == 2)[:1]
    images = splits.validation.table["image_id"].iloc[rows]
    (other / FILE).write_text(record._replace(fitted=record.fitted.added(images, record.fitted.hashes)).to_text())
    _, _, fewer = Average([members[0], staged]).predict_held_out(splits.validation)
    of_lesion = lesions.isin(lesions.iloc[rows]).to_numpy()
    assert (fewer == count - of_lesion).all()


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
        (in_config("model", "colour_constancy", "shades_of_grey"), "differ in model.colour_constancy"),
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
