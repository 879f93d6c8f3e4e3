"""`dermrw score` on drawn pictures: figures against scikit-learn, tables, maps, and images that a model knows."""

import csv
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import REAL_DATA
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from dermrw.__main__ import main
from dermrw.datasets.sample_drawing import draw_lesion
from dermrw.diagnoses import DX, HAM_CLASSES
from dermrw.errors import UserError
from dermrw.images.skin_tone import skin_tones
from dermrw.inference.classifier import Classifier
from dermrw.inference.known_images import KEY, KnownImages, image_hash
from dermrw.reports import report_json
from dermrw.reports.report_schema import Report
from dermrw.scoring.score import score
from export.ship import MOST
from export.training_images import add_list

SHIPPED = Path(__file__).parents[2] / "app/model.onnx"
PER_CLASS = 3

MALIGNANT_CODES = {"mel", "bcc", "akiec"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_json, "REPLICATES", 100)
    monkeypatch.setattr(report_json, "FEW_REPLICATES", 20)


def picture(code: str, n: int) -> np.ndarray:
    rng = np.random.default_rng
    return draw_lesion(code, rng([n, DX.index(code)]), rng([n, 9]), 120, 160)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three drawn lesions of each class, as files."""
    folder = tmp_path_factory.mktemp("pictures")
    for code in DX:
        for n in range(PER_CLASS):
            Image.fromarray(picture(code, n)).save(folder / f"{code}-{n}.png")
    return folder


@pytest.fixture(scope="module")
def unlisted(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model without its list of training images."""
    import onnx

    graph = onnx.load(model)
    kept = {entry.key: entry.value for entry in graph.metadata_props if entry.key != KEY}
    del graph.metadata_props[:]
    onnx.helper.set_model_props(graph, kept)
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(graph, path)
    return path


def rows(label: Any = str) -> list[dict[str, str]]:
    """A table of the pictures: two images a patient, with sex and a device."""
    table = []
    for i, (code, n) in enumerate((code, n) for code in DX for n in range(PER_CLASS)):
        table.append(
            {"image": f"{code}-{n}.png", "label": label(code), "group": f"p{i // 2}", "sex": "fm"[i % 2],
             "age": str(20 + 3 * i), "device": "AB"[i % 2]}
        )  # fmt: skip
    return table


def write(path: Path, table: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return path


def stored(folder: Path) -> dict[str, Any]:
    contents: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return contents


def page(folder: Path) -> str:
    """The text of report.html, which must be well-formed and fetch nothing."""
    source = (folder / "report.html").read_text(encoding="utf-8")
    root = ElementTree.fromstring(source)
    assert not re.search(r'(src|href)="(?!data:image/jpeg|#|https://doi)', source)
    return " ".join("".join(root.itertext()).split())


def probabilities(folder: Path) -> dict[str, list[float]]:
    with (folder / "predictions.csv").open() as file:
        return {row["image"]: [float(row[d.upper()]) for d in DX] for row in csv.DictReader(file)}


@pytest.mark.slow
def test_the_figures_are_scikit_learns(unlisted: Path, pictures: Path, tmp_path: Path) -> None:
    table = write(tmp_path / "mine.csv", rows({code: f"My {code}" for code in DX}.get))
    label_map = ",".join(f"{code}=my_{code}" for code in DX)
    out = tmp_path / "out"
    report = score(unlisted, table, images=pictures, label_map=label_map, by=["device"], out=out, device="cpu")
    assert Report.model_validate_json((out / "report.json").read_text()) == report
    p = probabilities(out)
    direct = Classifier(unlisted, "cpu")([pictures / f"{name}.png" for name in p])
    np.testing.assert_allclose(list(p.values()), direct, rtol=0, atol=1e-6)
    y = np.array([DX.index(name.partition("-")[0]) for name in p])
    values = np.array(list(p.values()))
    found = stored(out)
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y, values.argmax(1)), abs=1e-12)
    for c, code in enumerate(DX):
        row = found["classes"][code]
        assert row["auc"] == pytest.approx(roc_auc_score(y == c, values[:, c]), abs=1e-12)
        assert row["auc_interval_95"][0] <= row["auc"] <= row["auc_interval_95"][1]
    bad = np.array(HAM_CLASSES.malignant)
    info = Classifier(unlisted, "cpu").info
    joint = values * [info.prevalence[code] for code in info.codes]
    expected = roc_auc_score(bad[y], joint[:, bad].sum(1) / joint.sum(1))
    assert found["malignant"]["auc"] == pytest.approx(expected, abs=1e-12)
    assert found["calibration_error"]["table_prevalence"]["nll"] > 0
    assert set(found["groups"]) == {"sex", "age", "device", "estimated_skin_tone"}
    mine = np.array([row["sex"] == "f" for row in rows()])
    female = next(row for row in found["groups"]["sex"] if row["name"] == "f")
    assert female["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y[mine], values[mine].argmax(1)))
    assert found["external"]["unit"] == "groups" and found["lesions"] == 11
    assert "training_seconds" not in found and not found["external"]["overlap_checked"]
    text = page(out)
    assert "11 groups" in text and "Overlap with the training images was not checked" in text
    assert "At the prevalence of these images" in text and "By estimated skin tone" in text


def test_skin_tones_are_measured_on_skin_alone(unlisted: Path, pictures: Path, tmp_path: Path) -> None:
    import onnx

    table = write(tmp_path / "mine.csv", rows())
    score(unlisted, table, images=pictures, out=tmp_path / "out", device="cpu")
    found = stored(tmp_path / "out")
    tones = skin_tones([pictures / f"{name}.png" for name in probabilities(tmp_path / "out")])
    decided = {row["name"]: row["images"] for row in found["decided"]["by_skin_tone"]}
    assert decided == dict(Counter(tones)) and set(decided) - {"not estimated"}
    assert [row["name"] for row in found["groups"]["estimated_skin_tone"]] == list(decided)  # in the same order
    graph = onnx.load(unlisted)
    props = {entry.key: entry.value for entry in graph.metadata_props} | {"subject": json.dumps("leaf")}
    del graph.metadata_props[:]
    onnx.helper.set_model_props(graph, props)
    onnx.save(graph, tmp_path / "leaf.onnx")
    score(tmp_path / "leaf.onnx", table, images=pictures, out=tmp_path / "leaves", device="cpu")
    found = stored(tmp_path / "leaves")
    assert found["decided"]["by_skin_tone"] is None and "estimated_skin_tone" not in found["groups"]
    assert "skin tone" not in page(tmp_path / "leaves")


def test_as_trained_inverts_the_calibration(unlisted: Path, pictures: Path, tmp_path: Path) -> None:
    from dermrw.evaluation.calibration import EqualPrevalence
    from dermrw.scoring.score import as_trained

    info = Classifier(unlisted, "cpu").info
    logits = np.random.default_rng(0).normal(0, 4, (20, 7))
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = as_trained(EqualPrevalence(info.temperature, info.offsets)(logits), info)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_binary_truth_has_no_figures_of_classes(unlisted: Path, pictures: Path, tmp_path: Path) -> None:
    table = write(tmp_path / "mine.csv", rows(lambda code: str(int(code in MALIGNANT_CODES))))
    with pytest.raises(UserError, match="--binary"):
        score(unlisted, table, images=pictures, out=tmp_path / "out", device="cpu")
    score(unlisted, table, images=pictures, binary=True, out=tmp_path / "out", device="cpu")
    found, p = stored(tmp_path / "out"), probabilities(tmp_path / "out")
    bad = np.array(HAM_CLASSES.malignant)
    positive = [name.partition("-")[0] in MALIGNANT_CODES for name in p]
    info = Classifier(unlisted, "cpu").info
    joint = np.array(list(p.values())) * [info.prevalence[code] for code in info.codes]  # at the training prevalence
    suspicion = joint[:, bad].sum(1) / joint.sum(1)
    assert found["malignant"]["summed_at"] == "the training data's prevalence"
    assert found["malignant"]["auc"] == pytest.approx(roc_auc_score(positive, suspicion), abs=1e-12)
    assert found["classes"] == {} and found["balanced_accuracy"] is None and found["decided"]["sets"] is None
    threshold = info.triage
    assert threshold is not None
    sensitivity = np.mean(suspicion[np.array(positive)] >= threshold.threshold)
    assert found["decided"]["triage"]["sensitivity"]["share"] == pytest.approx(sensitivity)
    assert set(found["decided"]["refused"]["by_class"]) == {"malignant", "benign"}
    text = page(tmp_path / "out")
    assert "Malignant against benign" in text and "Confusion" not in text and "Balanced accuracy" not in text


def test_a_table_of_malignant_images_alone_has_a_sensitivity(
    unlisted: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    melanomas = [row for row in rows() if row["label"] == "mel"]
    score(unlisted, write(tmp_path / "mine.csv", melanomas), images=pictures, out=tmp_path / "out", device="cpu")
    triage = stored(tmp_path / "out")["decided"]["triage"]
    info = Classifier(unlisted, "cpu").info
    assert info.triage is not None
    joint = np.array(list(probabilities(tmp_path / "out").values())) * [info.prevalence[code] for code in info.codes]
    suspicion = joint[:, np.array(HAM_CLASSES.malignant)].sum(1) / joint.sum(1)
    assert triage["sensitivity"]["share"] == pytest.approx(np.mean(suspicion >= info.triage.threshold))
    assert triage["specificity"] is None
    said = " ".join(capsys.readouterr().out.split())
    missing = "Every image is malignant, so triage has no specificity here, and there is no AUC."
    assert "Triage sensitivity" in said and missing in said and "Malignant against" not in said
    assert "Balanced accuracy is the recall of one class" in said and "balanced accuracy is" not in said
    assert missing in page(tmp_path / "out")
    nevi = [row for row in rows() if row["label"] == "nv"]
    score(unlisted, write(tmp_path / "nv.csv", nevi), images=pictures, out=tmp_path / "nv", device="cpu")
    said = " ".join(capsys.readouterr().out.split())
    assert "Triage specificity" in said and "No image is malignant, so triage has no sensitivity here" in said


def test_known_images_and_their_groups_do_not_count(unlisted: Path, pictures: Path, tmp_path: Path) -> None:
    """One image is known by its id, and one by its pixels: it is a smaller, recompressed copy under another name."""
    size = Classifier(unlisted, "cpu").info.size
    from dermrw.images.preprocess import evaluation_pixels

    known = KnownImages.of(["NV-1"], [image_hash(evaluation_pixels(picture("vasc", 2), size))])
    model = tmp_path / "listed.onnx"
    model.write_bytes(add_list(unlisted.read_bytes(), known))
    table = rows()
    Image.fromarray(picture("vasc", 2)).resize((120, 90)).save(tmp_path / "copy.jpg", quality=70)
    table[-1]["image"] = str(tmp_path / "copy.jpg")
    path = write(tmp_path / "mine.csv", table)
    score(model, path, images=pictures, out=tmp_path / "out", device="cpu")
    left = stored(tmp_path / "out")["external"]["left_out"]
    with (tmp_path / "out/left_out.csv").open() as file:
        reasons = {row["image"]: row["reason"] for row in csv.DictReader(file)}
    assert left["training_images"] == 2 and left["same_group"] == 1, reasons
    assert set(reasons) == {"nv-1", "copy", "nv-2"} or set(reasons) == {"nv-1", "copy", "nv-0"}
    assert not {"nv-1", "copy"} & set(probabilities(tmp_path / "out"))
    assert "Not scored: 2 images that are, or look like copies of, images that the model was trained" in page(
        tmp_path / "out"
    )


def test_one_picture_with_two_labels_is_named(unlisted: Path, pictures: Path, tmp_path: Path) -> None:
    model = tmp_path / "listed.onnx"
    model.write_bytes(add_list(unlisted.read_bytes(), KnownImages.of(["ISIC_0000000"], [])))
    copied = tmp_path / "copied.png"
    copied.write_bytes((pictures / "vasc-0.png").read_bytes())
    table = [*rows(), rows()[0] | {"image": str(copied)}]
    score(model, write(tmp_path / "mine.csv", table), images=pictures, out=tmp_path / "out", device="cpu")
    (note,) = [note for note in stored(tmp_path / "out")["external"]["notes"] if "another label" in note]
    assert "2 images look the same" in note and "copied (mel)" in note and "vasc-0 (vasc)" in note


def test_ids_of_the_archive_are_known_in_any_path() -> None:
    known = KnownImages.of(["ISIC_0030623", "ISIC_0012254_downsampled", "IMG_20240115"], [])
    same = ["isic_0030623", "mel/ISIC_0030623.png", r"C:\pics\ISIC_0030623.jpg", "ISIC_0030623_downsampled"]
    others = ["ISIC_00306230", "XISIC_0030623", "p2/IMG_20240115.jpg"]  # a path, since several files have this name
    names = [*same, "ISIC_0012254", "img_20240115", r"C:\pics\IMG_20240115", *others]
    assert known.match_ids(names).tolist() == [True] * 7 + [False] * 3


def test_rows_that_cannot_be_scored_tell_their_group(unlisted: Path, pictures: Path, tmp_path: Path) -> None:
    """A patient's image is not scored if the model knows another one, though that row has no label or no file."""
    table, names = rows(), ["ISIC_0000001", "ISIC_0000002", "ISIC_0000003"]
    model = tmp_path / "listed.onnx"
    model.write_bytes(add_list(unlisted.read_bytes(), KnownImages.of(names, [])))
    (tmp_path / "ISIC_0000003.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    faults = [("unclear", names[0]), ("nv", names[1]), ("nv", str(tmp_path / f"{names[2]}.png"))]
    partners = [table[0], table[4], table[8]]  # of three patients
    table += [row | {"label": label, "image": name} for row, (label, name) in zip(partners, faults, strict=True)]
    path = write(tmp_path / "mine.csv", table)
    with pytest.raises(UserError, match="2 images are not scored"):
        score(model, path, images=pictures, label_map="unclear=", out=tmp_path / "out", device="cpu")
    left = stored(tmp_path / "out")["external"]["left_out"]
    assert left["training_images"] == 0 and left["same_group"] == 6
    assert len(probabilities(tmp_path / "out")) == len(rows()) - 6


def test_the_list_does_not_change_answers(unlisted: Path, pictures: Path, tmp_path: Path) -> None:
    content = unlisted.read_bytes()
    hashes = [(2**63 + i, i) for i in range(1000)]
    listed = add_list(content, KnownImages.of([f"ISIC_{i:07d}" for i in range(1000)], hashes))
    assert len(listed) - len(content) < 40_000
    (tmp_path / "listed.onnx").write_bytes(listed)
    files = sorted(pictures.iterdir())[:3]
    one, other = Classifier(unlisted, "cpu"), Classifier(tmp_path / "listed.onnx", "cpu")
    assert (one(files) == other(files)).all() and one.info == other.info
    known = other.known_images()
    assert known is not None
    shown = [(0, 2**64 - 1), (2**63 + 7, 2**50 + 7), (2**63 + 7, 2**64 - 1), (2**63 - 1, 7)]
    assert known.match(["isic_0000007", "x", "y", "z"], shown).tolist() == [True, True, False, False]


def test_a_damaged_list_is_named(unlisted: Path) -> None:
    good = json.loads(KnownImages.of(["a"], [(1, 2)]).to_prop())
    bad = [json.dumps(good | {"ids": "é"}), json.dumps(good | {"hashes": good["ids"]})]
    for text in ("", "[]", '{"format": 2}', *bad):
        with pytest.raises(UserError, match="list of training images"):
            KnownImages.from_props({KEY: text}, "m.onnx")


def test_missing_and_unreadable_images_are_named(unlisted: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0broken")
    table = rows()
    table[0]["image"], table[1]["image"] = "gone.png", str(tmp_path / "broken.jpg")
    path = write(tmp_path / "mine.csv", table)
    with pytest.raises(UserError, match=r"2 images are not scored(.|\n)*gone(.|\n)*broken"):
        score(unlisted, path, images=pictures, out=tmp_path / "out", device="cpu")
    left = stored(tmp_path / "out")["external"]["left_out"]
    assert (left["missing"], left["unreadable"]) == (["gone"], ["broken"])
    assert "1 image that can't be read: broken" in page(tmp_path / "out")


def test_a_folder_per_class(unlisted: Path, pictures: Path, tmp_path: Path) -> None:
    for name, code in (("Melanoma", "mel"), ("naevus", "nv"), ("SCC", "bcc")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for n in range(2):
            Image.fromarray(picture(code, n)).save(tmp_path / "data" / name / f"{n}.png")
    with pytest.raises(UserError, match=r"SCC \(2\).*--map"):
        score(unlisted, tmp_path / "data", out=tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
    score(unlisted, tmp_path / "data", label_map="SCC=", out=tmp_path / "out", device="cpu")
    found = stored(tmp_path / "out")
    assert found["images"] == 4 and found["external"]["left_out"]["labels"] == {"SCC": 2}
    assert found["external"]["unit"] == "images"
    text = page(tmp_path / "out")
    assert "Intervals resample single images, because" in text and "over the 2 classes that are present" in text


@pytest.mark.slow
def test_a_worse_model_is_called_worse(pictures: Path, tmp_path: Path) -> None:
    """With rotated labels nearly all decisions are wrong."""
    turned = {code: DX[(i + 1) % 7] for i, code in enumerate(DX)}
    path = write(tmp_path / "mine.csv", rows(turned.get))
    report = score(SHIPPED, path, images=pictures, out=tmp_path / "out", device="cpu")
    assert report.external is not None
    row = report.external.card[0]
    assert row.worse and row.interval_95[1] is not None and row.interval_95[1] < row.card
    assert "Worse than on the card: balanced accuracy is" in page(tmp_path / "out")


@pytest.mark.slow
def test_the_command_runs_without_torch(unlisted: Path, pictures: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "mine.csv", rows()[:9])
    code = (
        "import sys\n"
        "class NoTorch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'torchvision', 'monai'): raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, NoTorch())\n"
        "from dermrw.__main__ import main\n"
        "main()\n"
    )
    arguments = ["score", str(unlisted), str(path), "--images", str(pictures), "--device", "cpu"]
    ended = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "score/mine/report.html").exists() and "Balanced accuracy" in ended.stdout


def test_the_shipped_model_lists_its_training_images_and_not_its_test_split() -> None:
    known = Classifier(SHIPPED, "cpu").known_images()
    # HAM10000's training, meta and validation images; of ISIC 2017 and 2020, training images and those of the limits
    assert known is not None and len(known.ids) == 8012 + 21 + 1476 + 2443 + 610
    assert SHIPPED.stat().st_size < MOST


@pytest.mark.slow
def test_real_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first 40 images of the official ISIC 2018 validation set, from its files as they are published."""
    folder = REAL_DATA / "isic2018_task3_validation"
    if not folder.is_dir():
        pytest.skip("the official ISIC 2018 validation set is not on this machine")
    name = "ISIC2018_Task3_Validation_GroundTruth.csv"
    head, *lines = (folder / name).read_text().splitlines()[:41]
    (tmp_path / name).write_text("\n".join([head, *lines]))
    for other in ("ISIC2018_Task3_Validation_Input", "lesions.csv"):
        (tmp_path / other).symlink_to(folder / other)
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["dermrw", "score", str(SHIPPED), str(tmp_path / name), "--out", str(out)])
    main()
    found, p = stored(out), probabilities(out)
    assert (found["images"], found["external"]["unit"]) == (40, "lesions") and found["lesions"] < 40
    assert found["external"]["left_out"]["training_images"] == 0
    columns = head.split(",")[1:]
    truth = {line.split(",")[0]: columns[line.split(",").index("1.0") - 1].lower() for line in lines}
    decided = [DX[int(np.argmax(values))] for values in p.values()]
    expected = balanced_accuracy_score([truth[image] for image in p], decided)
    assert found["balanced_accuracy"] == pytest.approx(expected, abs=1e-12) and expected > 0.6
