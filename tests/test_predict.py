"""`dermrw predict` as people use it: folders, broken files, lesions, a clinic's prevalence, foreign models."""

import csv
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import command
from PIL import Image

from dermrw.batch import find_images, read_lesions
from dermrw.diagnoses import COLUMNS, DX
from dermrw.errors import UserError
from dermrw.model_file import ModelInfo
from dermrw.predict import Classifier
from dermrw.prevalence import at_prevalence, combine


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "more/c.PNG"):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    return folder


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
    assert "3 images into" in said and "1 files that aren't images skipped" in said and "drawn by dermrw" in said
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


def test_prevalence_and_lesions(model_file: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lesions, out = pictures / "lesions.csv", pictures / "out.csv"
    lesions.write_text("image,lesion_id,more\na,L1,x\nb,L2,\nc,L1,\nz,L9,\n")
    shares = dict.fromkeys(DX, 0.05) | {"nv": 0.7}
    text = ",".join(f"{code}={share}" for code, share in shares.items())
    arguments = ["predict", str(model_file), str(pictures), "--csv", str(out)]
    command(monkeypatch, *arguments)
    equal = read(out)[1]
    command(monkeypatch, *arguments, "--lesions", str(lesions), "--prevalence", text)
    rule = Classifier(model_file).info.lesion_rule
    expected = at_prevalence(combine(equal, ["L1", "L2", "L1"], rule), list(shares.values()))
    np.testing.assert_allclose(read(out)[1], expected, rtol=1e-6, atol=1e-9)
    command(monkeypatch, *arguments, "--prevalence", "training")
    training = Classifier(model_file).info.prevalence
    np.testing.assert_allclose(read(out)[1], at_prevalence(equal, [training[c] for c in DX]), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must have rows"),
        ("image,lesion\na,b\n", "columns image and lesion_id"),
        ("image,lesion_id\na,L1\n", "no lesion for image b"),
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
    with pytest.raises(UserError, match="would both be image a"):
        find_images([pictures])
    assert len(find_images([pictures / "a.png", pictures / "a.png"]).images) == 1  # named twice


def test_mistakes_are_a_sentence(
    model_file: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = pictures / "empty"
    empty.mkdir()
    out = str(pictures / "out.csv")
    cases = [
        (["absent.onnx", str(pictures), "--csv", out], "no model absent.onnx"),
        ([str(pictures / "a.png"), str(pictures), "--csv", out], "a.png is not a model"),
        ([str(pictures), str(pictures), "--csv", out], "can't be read"),
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


def changed(model_file: Path, out: Path, **props: str | None) -> Path:
    """A copy of the model file with other metadata."""
    model = onnx.load(model_file)
    kept = {p.key: p.value for p in model.metadata_props} | props
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {k: v for k, v in kept.items() if v is not None})
    onnx.save(model, out)
    return out


def test_foreign_and_forged_models(model_file: Path, tmp_path: Path) -> None:
    forged = tmp_path / "forged.onnx"
    for props in (
        {"format": None, "name": None}, {"codes": '["mel"]'}, {"codes": "rubbish"}, {"size": "1e9"}, {"size": '"x"'},
        {"temperature": "NaN"}, {"prevalence": '{"mel": 1}'}, {"codes": "[" * 100_000}, {"score": "{}"},
        {"format": '"dermrw 2"'},
    ):  # fmt: skip
        with pytest.raises(UserError, match=r"forged\.onnx is not a model of dermrw"):
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
    with pytest.raises(UserError, match="doesn't take and give"):
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


def test_what_a_classifier_takes(model_file: Path, pictures: Path) -> None:
    classifier = Classifier(model_file)
    path = pictures / "a.png"
    one = classifier(str(path))
    assert one.shape == (1, 7) and classifier([]).shape == (0, 7)
    with Image.open(path) as image:
        several = [path, io.BytesIO(path.read_bytes()), image, np.asarray(image)]
        assert np.array_equal(classifier(several), np.repeat(one, 4, 0))
    with pytest.raises(UserError, match="absent"):
        classifier("absent.png")


def test_importing_leaves_torch_out() -> None:
    code = "import dermrw.predict, dermrw.__main__, sys; print(sorted({'torch', 'pandas', 'scipy'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
