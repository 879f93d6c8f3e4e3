"""`dermrw predict` as people use it: folders, broken files, lesions, a clinic's prevalence, foreign models."""

import csv
import errno
import io
import json
import os
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from conftest import command
from PIL import Image

from dermrw.datasets.sample_drawing import draw_lesion
from dermrw.decisions.lesion_rule import combine
from dermrw.decisions.prevalence import at_prevalence
from dermrw.decisions.refusal import CHECKS
from dermrw.diagnoses import COLUMNS, DX, HAM_CLASSES
from dermrw.errors import UserError
from dermrw.images.field_of_view import Box
from dermrw.inference.classifier import Classifier, Picture
from dermrw.inference.find_images import find_images
from dermrw.inference.lesion import combine_explanations
from dermrw.inference.model_file import ModelInfo
from dermrw.inference.predict_files import decisions_file, read_lesions
from dermrw.inference.shipped import shipped_model
from dermrw.inference.verdict import verdict


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "more/c.PNG"):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    return folder


def draw_lesions(pictures: Path) -> None:
    """Replaces the pictures by drawn lesions, which are not refused."""
    for i, path in enumerate(("a.png", "b.jpg", "more/c.PNG")):
        drawn = draw_lesion(DX[i], np.random.default_rng([i, 0]), np.random.default_rng([i, 1]), 120, 160)
        Image.fromarray(drawn).save(pictures / path)


def read(path: Path) -> tuple[list[str], np.ndarray]:
    with path.open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image", *COLUMNS]
    return [r[0] for r in rows[1:]], np.array([[float(v) for v in r[1:]] for r in rows[1:]])


def test_every_readable_image_is_in_the_file(
    model_file: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = pictures / "out.csv"
    command(monkeypatch, "predict", str(model_file), str(pictures), "--csv", str(out))
    said = capsys.readouterr().out
    assert "3 images into" in said and "1 file that isn't an image skipped" in said and "drawn by dermrw" in said
    ids, values = read(out)
    assert ids == ["a", "b", "c"]
    expected = Classifier(model_file)([pictures / "a.png", pictures / "b.jpg", pictures / "more/c.PNG"])
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-6)


def test_unreadable_images_are_named_and_the_status_is_2(
    model_file: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "empty.jpg").write_bytes(b"")
    (pictures / "cut.png").write_bytes((pictures / "a.png").read_bytes()[:1000])
    out = pictures / "out.csv"
    with pytest.raises(SystemExit) as caught:
        command(monkeypatch, "predict", str(model_file), str(pictures), "--csv", str(out))
    error = capsys.readouterr().err
    assert caught.value.code == 2 and "empty.jpg" in error and "cut.png" in error and "2 images are not in" in error
    assert read(out)[0] == ["a", "b", "c"]


def triage_shares(model_file: Path) -> list[float]:
    """The prevalence of the model's triage `[C]`."""
    triage = Classifier(model_file, "cpu").info.triage
    assert triage is not None and triage.prevalence is not None
    return [triage.prevalence[code] for code in DX]


def test_prevalence_and_lesions(model_file: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lesions, out = pictures / "lesions.csv", pictures / "out.csv"
    lesions.write_text("image,lesion_id,more\na,L1,x\nb,L2,\nc,L1,\nz,L9,\n")
    draw_lesions(pictures)
    shares = dict.fromkeys(DX, 0.05) | {"nv": 0.7}
    text = ",".join(f"{code}={share}" for code, share in shares.items())
    arguments = ["predict", str(model_file), str(pictures), "--csv", str(out)]
    command(monkeypatch, *arguments)
    equal = read(out)[1]
    assert not any(row["refused"] for row in decisions(out).values())  # a refused picture would not be combined
    command(monkeypatch, *arguments, "--lesions", str(lesions), "--prevalence", text)
    combined = combine(equal, ["L1", "L2", "L1"], malignant=HAM_CLASSES.malignant, prevalence=triage_shares(model_file))
    expected = at_prevalence(combined, list(shares.values()))
    np.testing.assert_allclose(read(out)[1], expected, rtol=1e-6, atol=1e-9)
    command(monkeypatch, *arguments, "--prevalence", "training")
    training = Classifier(model_file).info.prevalence
    np.testing.assert_allclose(read(out)[1], at_prevalence(equal, [training[c] for c in DX]), rtol=1e-6, atol=1e-9)


def decisions(out: Path) -> dict[str, dict[str, str]]:
    with decisions_file(out).open() as file:
        return {row["image"]: row for row in csv.DictReader(file)}


def test_refusal_set_and_triage_lie_beside_the_probabilities(
    model_file: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Python class says the same; a refused picture has no say in its lesion."""
    Image.new("RGB", (60, 60), (8, 8, 8)).save(pictures / "dark.png")
    draw_lesions(pictures)
    out = pictures / "out.csv"
    arguments = ["predict", str(model_file), str(pictures), "--csv", str(out)]
    command(monkeypatch, *arguments)
    said = capsys.readouterr().out
    found, (ids, alone) = decisions(out), read(out)
    assert f"triage into {decisions_file(out)}" in said and sorted(found) == sorted(ids)
    assert found["dark"]["refused"] == "it is too dark" and found["dark"]["set"] == found["dark"]["triage"] == ""
    assert sum(not row["refused"] for row in found.values()) >= 2
    classifier = Classifier(model_file)
    for name, path in {"a": "a.png", "b": "b.jpg", "c": "more/c.PNG", "dark": "dark.png"}.items():
        v = classifier.explain(pictures / path).verdict
        assert (v.refused or "", v.triage) == (found[name]["refused"], found[name]["triage"])
        assert found[name]["set"].split() == ([] if v.refused else list(v.classes))

    (pictures / "lesions.csv").write_text("image,lesion_id\n" + "".join(f"{name},L1\n" for name in ids))
    command(monkeypatch, *arguments, "--lesions", str(pictures / "lesions.csv"))
    together = read(out)[1]
    accepted, shares = [i for i, name in enumerate(ids) if not found[name]["refused"]], triage_shares(model_file)
    for i in range(len(ids)):
        expected = combine(alone[accepted], ["L1"] * len(accepted), malignant=HAM_CLASSES.malignant, prevalence=shares)[
            0
        ]
        np.testing.assert_allclose(together[i], expected if i in accepted else alone[i], rtol=1e-6)


def test_lesions_get_the_answer_of_the_demo(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Same probabilities to the last digit, same set and triage; refused images keep their own row."""
    folder, out = tmp_path / "pictures", tmp_path / "out.csv"
    folder.mkdir()
    for i in range(9):
        drawn = draw_lesion(DX[i % 7], np.random.default_rng([i, 0]), np.random.default_rng([i, 1]), 120, 160)
        Image.fromarray(drawn // 30 if i % 4 == 3 else drawn).save(folder / f"{i}.png")
    lesion_of = {str(i): f"L{i % 3}" for i in range(9)}
    (tmp_path / "l.csv").write_text("image,lesion_id\n" + "".join(f"{k},{v}\n" for k, v in lesion_of.items()))
    command(
        monkeypatch, "predict", str(model_file), str(folder), "--csv", str(out), "--lesions", str(tmp_path / "l.csv")
    )
    classifier = Classifier(model_file, "cpu")
    explanations = {name: classifier.explain(folder / f"{name}.png") for name in lesion_of}
    rows, (ids, values) = decisions(out), read(out)
    assert {row["refused"] for row in rows.values()} >= {"", "it is too dark"}
    for name, probabilities in zip(ids, values, strict=True):
        images = [explanations[other] for other in lesion_of if lesion_of[other] == lesion_of[name]]
        lesion, own = combine_explanations(images, classifier.info), explanations[name]
        if own.verdict.refused:
            assert rows[name]["refused"] == own.verdict.refused and rows[name]["triage"] == ""
            np.testing.assert_allclose(probabilities, own.probabilities, rtol=1e-6)
        else:
            assert lesion.probabilities is not None
            # inference in batches and one by one may differ in the last digits
            np.testing.assert_allclose(probabilities, lesion.probabilities, rtol=1e-5, atol=1e-9)
            assert rows[name]["set"].split() == list(lesion.verdict.classes)
            assert rows[name]["triage"] == lesion.verdict.triage


def test_a_verdict_is_refusal_set_and_threshold(model_file: Path) -> None:
    info = Classifier(model_file).info
    assert info.triage is not None
    info = info.model_copy(
        update={
            "thresholds": (0.3,) * 7,
            "limits": dict(zip(CHECKS, (50.0, 0.1, 5.0, 0.05, 2.0, 5.0, 5.0, 3.0), strict=True)),
            "triage": info.triage.model_copy(update={"threshold": 0.25}),
        }
    )
    fine, p = np.array([150, 0, 20, 0.2, 5.0, 0.0, 0.0, 1.0]), np.array([0.35, 0.4, 0.05, 0.05, 0.05, 0.05, 0.05])
    by_code = dict(zip(info.codes, p, strict=True))
    said = verdict(p, fine, 300, 200, info)
    first, second = sorted(by_code, key=lambda c: -by_code[c])[:2]
    assert said.refused is None and said.classes == (first, second)
    shares = dict(zip(info.codes, triage_shares(model_file), strict=True))
    joint = {code: by_code[code] * shares[code] for code in info.codes}
    assert said.refer == (sum(joint[c] for c in ("mel", "bcc", "akiec")) / sum(joint.values()) >= 0.25)
    share = sum(joint[c] for c in ("mel", "bcc", "akiec")) / sum(joint.values())
    assert said.malignancy_score == pytest.approx(100 * share, rel=1e-12)
    assert info.triage is not None
    equal = info.triage.model_copy(update={"prevalence": None})  # of older files
    of_equal = verdict(p, fine, 300, 200, info.model_copy(update={"triage": equal}))
    assert of_equal.refer == (sum(by_code[c] for c in ("mel", "bcc", "akiec")) >= 0.25) != said.refer
    assert said.triage in ("refer", "no reason to refer seen")
    assert (verdict(p, fine, 20, 13, info.model_copy(update={"smallest": 14})).refused or "").startswith(
        "it is too small: 20 × 13 pixels"
    )
    strange = verdict(p, np.array([150, 0, 20, 0.2, 5.0, 0.0, 0.0, 3.1]), 300, 200, info)
    assert "isn't like" in (strange.refused or "")
    assert (strange.classes, strange.refer, strange.triage, strange.not_ruled_out) == ((), None, "", ())
    assert strange.malignancy_score is None
    assert info.triage is not None
    least = info.triage.model_copy(update={"threshold": 0.99})
    calm = verdict(p, fine, 300, 200, info.model_copy(update={"triage": least}))
    assert calm.triage == "no reason to refer seen" and calm.not_ruled_out == tuple(
        code for code in (first, second) if code in ("mel", "bcc", "akiec")
    )
    assert of_equal.not_ruled_out == () and said.not_ruled_out == calm.not_ruled_out
    without = verdict(p, fine, 300, 200, info.model_copy(update={"triage": None}))
    assert without.refer is None and without.malignancy_score is None


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize(
    "text", ["Image;lesion_id\r\na.jpg;L1\r\nb.HEIC;Rücken\r\n", "image_id,lesion_id,\na,L1,\nb,Rücken,\n"]
)
def test_lesions_of_other_programs(tmp_path: Path, text: str, encoding: str) -> None:
    (tmp_path / "l.csv").write_bytes(text.encode(encoding))
    assert read_lesions(tmp_path / "l.csv", ["a", "b"]) == ["L1", "Rücken"]
    for missing in ("NA", "unknown", ""):  # would be one lesion of unrelated images
        (tmp_path / "n.csv").write_text(f"image,lesion_id\na,{missing}\nb,{missing}\n")
        with pytest.raises(UserError, match="names no lesion for image a"):
            read_lesions(tmp_path / "n.csv", ["a", "b"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must have rows"),
        ("image,lesion\na,b\n", "columns image and lesion_id"),
        ("image,lesion_id\na,L1\n", "no lesion for image b: add"),
        ("image,lesion_id\na,L1\na,L2\nb,L1\n", "image a has two lesions"),
    ],
)
def test_lesions_that_dont_fit(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(UserError, match=said):
        read_lesions(tmp_path / "l.csv", ["a", "b"])
    (tmp_path / "l.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match=r"l\.csv"):
        read_lesions(tmp_path / "l.csv", ["a"])


def test_two_files_of_one_name(pictures: Path) -> None:
    (pictures / "more/a.jpg").write_bytes((pictures / "b.jpg").read_bytes())
    assert sorted(find_images([pictures]).images) == ["a.png", "b", "c", "more/a.jpg"]
    assert len(find_images([pictures / "a.png", pictures / "a.png"]).images) == 1  # named twice


def test_mistakes_are_a_sentence(
    model_file: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, run, notes = pictures / "empty", pictures / "run", pictures / "notes.txt"
    empty.mkdir()
    run.mkdir()
    (run / "config.yaml").touch()
    notes.write_text("not a model")
    out = str(pictures / "out.csv")
    cases = [
        (["absent.onnx", str(pictures), "--csv", out], "no model absent.onnx"),
        ([str(notes), str(pictures), "--csv", out], "notes.txt is not a model"),
        ([str(run), str(pictures), "--csv", out], f"no model {run / 'model.onnx'}"),
        ([str(model_file), "--csv", out], f"name the images to classify with {model_file}"),
        ([str(model_file), "nowhere", "--csv", out], "no file or folder nowhere"),
        ([str(model_file), str(empty), "--csv", out], "there is no image at"),
        ([str(model_file), str(pictures), "--csv", str(pictures)], "--csv takes a file"),
        ([str(model_file), str(pictures), "--csv", "absent/out.csv"], "--csv takes a file"),
        ([str(model_file), str(pictures), "--csv", out, "--prevalence", "mel=1"], "--prevalence"),
        ([str(model_file), str(pictures), "--csv", out, "--device", "tpu"], "--device takes"),
        ([str(model_file), str(pictures), "--csv", out, "--lesions", "absent.csv"], "absent.csv"),
    ]
    for arguments, said in cases:
        with pytest.raises(SystemExit) as caught:
            command(monkeypatch, "predict", *arguments)
        error = capsys.readouterr().err
        assert caught.value.code == 2 and said in error and "Traceback" not in error, (arguments, error)
    assert not (pictures / "out.csv").exists()


@pytest.mark.slow
def test_without_a_model_the_one_shipped_with_dermrw_is_used(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, folder, box = (tmp_path / f"{name}.csv" for name in ("first", "folder", "box"))
    command(monkeypatch, "predict", str(pictures / "a.png"), str(pictures / "b.jpg"), "--csv", str(first))
    name = Classifier(shipped_model()).info.name
    assert f"Using the model shipped with dermrw\nModel {name}" in capsys.readouterr().out
    command(monkeypatch, "predict", str(pictures), "--csv", str(folder))
    command(monkeypatch, "predict", str(shipped_model()), str(pictures), "--csv", str(box))
    assert "Using the model" not in capsys.readouterr().out.partition(str(folder))[2]
    assert folder.read_bytes() == box.read_bytes()
    assert first.read_text().splitlines() == box.read_text().splitlines()[:3]


def test_a_run_folder_stands_for_its_model(
    model_file: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, run = tmp_path / "file.csv", tmp_path / "run.csv"
    command(monkeypatch, "predict", str(model_file), str(pictures), "--csv", str(file))
    command(monkeypatch, "predict", str(model_file.parent), str(pictures), "--csv", str(run))
    assert file.read_bytes() == run.read_bytes()


def changed(model_file: Path, out: Path, **props: str | None) -> Path:
    """A copy of the model file with other metadata."""
    model = onnx.load(model_file)
    kept = {p.key: p.value for p in model.metadata_props} | props
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {k: v for k, v in kept.items() if v is not None})
    onnx.save(model, out)
    return out


@pytest.mark.slow
def test_foreign_and_forged_models(model_file: Path, tmp_path: Path) -> None:
    forged = tmp_path / "forged.onnx"
    for props in (
        {"format": None, "name": None}, {"codes": '["mel"]'}, {"codes": "rubbish"}, {"size": "1e9"}, {"size": '"x"'},
        {"temperature": "NaN"}, {"prevalence": '{"mel": 1}'}, {"codes": "[" * 100_000}, {"score": "{}"},
        {"format": '"dermrw 1"'}, {"format": None}, {"warning": None}, {"columns": json.dumps(["MEL"] * 7)},
        {"offsets": "[NaN, 0, 0, 0, 0, 0, 0]"}, {"prevalence": json.dumps(dict.fromkeys(DX, float("nan")))},
        {"score": '{"balanced_accuracy": 0.5, "interval_95": [NaN, Infinity], "scored_on": "x", "images": 3}'},
        {"warning": '"\\u001b[31mred"'}, {"name": '"two\\nlines"'}, {"licence": '"\\u202e"'},
        {"score": '{"balanced_accuracy": 0.5, "interval_95": [0, 1], "scored_on": "\\u0007", "images": 3}'},
        {"limits": "{}"}, {"limits": json.dumps(dict.fromkeys(CHECKS, float("nan")))}, {"thresholds": "[0.1]"},
        {"thresholds": "[0, 0, 0, 0, 0, 0, 2]"}, {"triage": '{"threshold": 7}'}, {"smallest": "0"},
    ):  # fmt: skip
        with pytest.raises(UserError, match=r"forged\.onnx is not a dermrw model"):
            Classifier(changed(model_file, forged, **props))
    identity = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["images"], ["probabilities"])],
        "foreign",
        [onnx.helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, ["N", "H", "W", 3])],
        [onnx.helper.make_tensor_value_info("probabilities", onnx.TensorProto.UINT8, ["N", "H", "W", 3])],
    )
    foreign = onnx.helper.make_model(identity, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.helper.set_model_props(foreign, Classifier(model_file).info.to_props())
    onnx.save(foreign, forged)
    with pytest.raises(UserError, match="other inputs or outputs"):
        Classifier(forged)
    whole = model_file.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(30):  # damaged somewhere: a sentence, or a model that works
        damaged = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for place in rng.integers(0, len(damaged), 20):
            damaged[place] = rng.integers(256)
        forged.write_bytes(damaged)
        try:
            Classifier(forged)(np.zeros((20, 20, 3), np.uint8))
        except UserError as error:
            assert "forged.onnx" in str(error)


def test_weights_elsewhere_on_the_disk_are_not_read(model_file: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"\x00" * 4 * 7)
    model = onnx.load(model_file)
    bias = next(t for t in model.graph.initializer if list(t.dims) == [7])
    bias.ClearField("raw_data")
    bias.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": str(secret), "offset": "0", "length": "28"}.items():
        entry = bias.external_data.add()
        entry.key, entry.value = key, value
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=r"x\.onnx is not a model"):
        Classifier(tmp_path / "x.onnx")


def test_the_metadata_survives(model_file: Path) -> None:
    info = Classifier(model_file).info
    assert ModelInfo.from_props(info.to_props(), "x") == info


@pytest.mark.parametrize("text", ["rubbish", "[" * 100_000, ""])
def test_metadata_that_is_not_json_is_named(model_file: Path, text: str) -> None:
    props = {**Classifier(model_file).info.to_props(), "codes": text}
    with pytest.raises(UserError, match=r"x\.onnx is not .* \(its metadata entry codes is not valid JSON\)"):
        ModelInfo.from_props(props, "x.onnx")


def test_what_a_classifier_takes(model_file: Path, pictures: Path) -> None:
    classifier = Classifier(model_file)
    path = pictures / "a.png"
    one = classifier(str(path))
    assert one.shape == (1, 7) and classifier([]).shape == (0, 7)
    with Image.open(path) as image:
        several: list[Picture] = [path, io.BytesIO(path.read_bytes()), image, np.asarray(image)]
        assert np.array_equal(classifier(several), np.repeat(one, 4, 0))
    with pytest.raises(UserError, match="absent"):
        classifier("absent.png")
    for odd in (5, None, path.read_bytes(), {"a": path}, [None], object(), io.StringIO("x")):
        with pytest.raises(UserError, match=r"picture is a path|not an image|damaged"):
            classifier(odd)  # type: ignore[call-overload]


RIGHT = {
    "probabilities": np.full((1, 7), 1 / 7, np.float32),
    "activation_map": np.zeros((1, 7, 2, 2), np.float32),
    "embedding": np.ones((1, 3), np.float32),
    "checks": np.ones((1, 8), np.float32),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("probabilities", np.full((1, 6), 1 / 6, np.float32)), ("probabilities", np.full((1, 7), 5, np.float32)),
        ("probabilities", np.zeros((1, 7), np.float32)), ("probabilities", np.float32(0.5)),
        ("probabilities", np.array([[-0.5, 1.5, 0, 0, 0, 0, 0]], np.float32)), ("probabilities", np.array(["a"] * 7)),
        ("probabilities", np.eye(7, dtype=np.int64)[:1]), ("probabilities", np.full((1, 8), np.nan, np.float32)),
        ("activation_map", np.zeros((1, 7), np.float32)), ("activation_map", np.full((1, 7, 2, 2), np.inf, np.float32)),
        ("embedding", np.ones((2, 3), np.float32)), ("embedding", np.ones((1, 3), np.int64)), (None, None),
        ("checks", np.ones((1, 4), np.float32)), ("checks", np.full((1, 8), np.nan, np.float32)),
    ],
)  # fmt: skip
def test_graphs_that_give_what_no_classifier_gives(
    name: str | None, value: np.ndarray, model_file: Path, tmp_path: Path
) -> None:
    nodes, outputs = [], []
    for key, right in RIGHT.items():
        tensor = onnx.numpy_helper.from_array(np.asarray(value if key == name else right))
        nodes.append(onnx.helper.make_node("Constant", [], [key], value=tensor))
        outputs.append(onnx.helper.make_tensor_value_info(key, tensor.data_type, None))
    given = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, ["N", "H", "W", 3])
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "constant", [given], outputs), ir_version=10,
        opset_imports=[onnx.helper.make_opsetid("", 20)],
    )  # fmt: skip
    onnx.helper.set_model_props(model, Classifier(model_file).info.to_props())
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(UserError, match=rf"x\.onnx gave {name or 'probabilities of shape'}.*export it again"):
        Classifier(tmp_path / "x.onnx").run(np.zeros((2, 40, 40, 3), np.uint8), "probabilities")


def test_importing_leaves_torch_out() -> None:
    code = (
        "import dermrw.inference.classifier, dermrw.__main__, sys;"
        "print(sorted({'torch', 'pandas', 'scipy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def precious(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_text("precious")
    return path


@pytest.fixture
def sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What `predict` says where it must fail well."""

    def run(*arguments: str | Path) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            command(monkeypatch, "predict", *map(str, arguments))
        said = capsys.readouterr().err
        assert caught.value.code == 2 and "Traceback" not in said
        return said

    return run


def test_the_csv_replaces_nothing_that_is_read(
    model_file: Path, pictures: Path, sentence: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lesions, link = pictures / "lesions.csv", pictures / "link.csv"
    lesions.write_text("image,lesion_id\na,L1\nb,L2\nc,L1\n")
    link.symlink_to("a.png")
    for out in (model_file, pictures / "a.png", pictures / "more/../a.png", link, lesions):
        before = out.read_bytes()
        said = sentence(model_file, pictures, "--csv", out, "--lesions", lesions)
        assert "would replace" in said and str(out) in said and out.read_bytes() == before
    assert link.is_symlink()
    os.mkfifo(pictures / "pipe")
    assert "not a regular file" in sentence(model_file, pictures, "--csv", pictures / "pipe")
    assert "not a regular file" in sentence(model_file, pictures, "--csv", os.devnull)
    assert (pictures / "pipe").is_fifo() and not Path(os.devnull).is_file()
    target = precious(pictures, "target.csv")
    link.unlink()
    link.symlink_to(target.name)
    command(monkeypatch, "predict", str(model_file), str(pictures), "--csv", str(link))
    assert link.is_symlink() and not target.is_symlink() and read(target)[0] == ["a", "b", "c"]


def test_a_place_that_cant_be_written_is_found_before_the_images_are_read(
    model_file: Path, pictures: Path, sentence: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dermrw.inference.predict_files.classify_missing", lambda *_: pytest.fail("an image was read"))
    said = sentence(model_file, pictures, "--csv", pictures / f"{'n' * 251}.csv")
    assert "can't be written" in said and "choose a shorter" in said and "space" not in said
    if sys.platform == "linux":  # where not even root can make a file
        assert "can't be written" in sentence(model_file, pictures, "--csv", "/proc/out.csv")


def test_without_a_readable_image_the_csv_stays(model_file: Path, tmp_path: Path, sentence: Callable[..., str]) -> None:
    bad, out = precious(tmp_path, "bad.jpg"), precious(tmp_path, "out.csv")
    said = sentence(model_file, bad, "--csv", out)
    assert "no image could be read" in said and "bad.jpg" in said and out.read_text() == "precious"
    assert sentence(model_file, bad, "--csv", tmp_path / "new.csv") and not (tmp_path / "new.csv").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every name is Unicode")
@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_names_of_any_bytes(model_file: Path, pictures: Path, locale: dict[str, str]) -> None:
    for name in (b"\xc3\xbc.png", b"latin\xe9.png", b"\xe6\xbc\xa2\x1b[31m.png"):
        shutil.copy(os.fsencode(pictures / "a.png"), os.fsencode(pictures) + b"/" + name)
    (pictures / "bad\N{LATIN SMALL LETTER O WITH DIAERESIS}.jpg").write_bytes(b"")
    arguments = ["predict", str(model_file), str(pictures), "--csv", str(pictures / "out.csv")]
    ended = subprocess.run(
        [sys.executable, "-m", "dermrw", *arguments], capture_output=True, check=False, env={**os.environ, **locale}
    )
    error = ended.stderr.decode()
    assert ended.returncode == 2 and "Traceback" not in error, error
    assert "2 images are not in" in error and "is not UTF-8" in error and "bad" in error
    assert sorted(read(pictures / "out.csv")[0]) == sorted(["a", "b", "c", "\xfc", "\u6f22\x1b[31m"])


def test_folders_behind_links_are_followed_and_loops_end(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "beside").mkdir()
    shutil.copy(pictures / "a.png", tmp_path / "beside/d.png")
    (pictures / "link").symlink_to(tmp_path / "beside")
    (pictures / "more/up").symlink_to(pictures)
    (pictures / "dangling.png").symlink_to("absent.png")
    assert list(find_images([pictures]).images) == ["a", "b", "dangling", "d", "c"]  # the dangling one can't be read


def test_pipes_and_devices_are_not_waited_for(model_file: Path, pictures: Path, sentence: Callable[..., str]) -> None:
    pipe, out = pictures / "pipe.jpg", pictures / "out.csv"
    os.mkfifo(pipe)
    said = f"{pipe} is a pipe or a device"
    assert said in sentence(pipe, pictures, "--csv", pictures / "first.csv")
    assert "/dev/zero is a pipe or a device" in sentence("/dev/zero", pictures, "--csv", out)
    assert said in sentence(model_file, pictures / "a.png", "--csv", out, "--lesions", pipe)
    assert said in sentence(model_file, pipe, "--csv", out) and not out.exists()
    assert said in sentence(model_file, pictures, "--csv", out) and read(out)[0] == ["a", "b", "c"]


def test_a_prevalence_that_rules_out_what_the_model_says(
    model_file: Path, pictures: Path, sentence: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = precious(pictures, "out.csv")
    monkeypatch.setattr(Classifier, "_require_size", lambda _: None)
    one = np.eye(7, dtype=np.float32)[[2]]
    monkeypatch.setattr(
        Classifier, "run", lambda _, pixels, *__: [one.repeat(len(pixels), 0), np.ones((len(pixels), 8), np.float32)]
    )
    shares = ",".join(f"{code}={code == 'nv':d}" for code in DX)
    said = sentence(model_file, pictures, "--csv", out, "--prevalence", shares)
    assert "image a and 2 more" in said and "--prevalence" in said and out.read_text() == "precious"


@pytest.mark.parametrize("out", ["", ".", "/", " "])
def test_a_csv_without_a_name(model_file: Path, pictures: Path, out: str, sentence: Callable[..., str]) -> None:
    assert "Traceback" not in sentence(model_file, pictures, "--csv", out)


def test_an_empty_argument_is_not_this_folder(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, sentence: Callable[..., str]
) -> None:
    monkeypatch.chdir(pictures)
    assert "it is empty: name a file or folder" in sentence("", "--csv", "out.csv") and not Path("out.csv").exists()


def test_a_full_disk_replaces_neither_file(
    model_file: Path, pictures: Path, sentence: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, decisions = precious(pictures, "out.csv"), precious(pictures, "out_decisions.csv")

    def fsync(file: int) -> None:
        if "_decisions" in str(Path(f"/proc/self/fd/{file}").readlink()):
            raise OSError(errno.ENOSPC, "No space left on device")

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("names of open files are those of Linux")
    monkeypatch.setattr(os, "fsync", fsync)
    assert "free some space" in sentence(model_file, pictures, "--csv", out)
    assert out.read_text() == decisions.read_text() == "precious"


def test_mistakes_in_python_are_a_sentence(model_file: Path, pictures: Path) -> None:
    classifier, path = Classifier(model_file), str(pictures / "a.png")
    expected = classifier([path])
    for several in (deque([path]), {"a": path}.values(), (path,)):
        assert np.array_equal(classifier(cast(Any, several)), expected)
    for table, said in (({"path": path}, "must be a list"), ({"path": [path] * 2, "image": ["a"]}, "1 values")):
        with pytest.raises(UserError, match=said):
            classifier(table)
    boxes: list[Any] = [(0, 0, 30, 30), Box(0, 0, 30, 30)]
    assert len({classifier.explain(path, box).probabilities.tobytes() for box in boxes}) == 1
    for box in ((30, 0, 0, 30), (0, 0, 10**4, 30), (-1, 0, 30, 30), (0, 0, 0.5, 30), (0, 0), "all!"):
        with pytest.raises(UserError, match="box"):
            classifier.explain(path, cast(Any, box))
    for threads in ("2", 1.5, True, -1, 10**6):
        with pytest.raises(UserError, match="threads must be a whole number"):
            Classifier(model_file, threads=cast(Any, threads))
