"""A table of four classes by patient with odd names: trained, evaluated, exported, predicted and scored."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import command
from PIL import Image

from dermrw.errors import UserError
from dermrw.inference.classifier import Classifier
from export.__main__ import export
from export.index import write_index
from export.stress_test import challenge

CODES = ("3rd class", "None", "naïve <b>|x", "Überbein, groß")
FOREIGN = re.compile(
    r"lesion|HAM10000|seven|dermatoscop|dermoscop|(?<!used for )diagnos[ie]s|ViDIR|ISIC", re.IGNORECASE
)
TINY = [
    "data.size=32", "model.backbone=small_cnn", "model.weights=none", "train.epochs=1", "train.batch_size=16",
    "train.first_share=0", "train.precision=fp32", "train.channels_last=false", "data.meta_per_class=1",
    "objective=reweight",
]  # fmt: skip


def write_table(folder: Path) -> Path:
    """Sixteen patients with four images each, of one or two classes."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(64):
        patient = i // 4
        label = CODES[(patient + (i % 2) * (patient % 3 == 0)) % 4]
        pixels = rng.integers(0, 255, (40, 36, 3)).astype(np.uint8)
        (folder / "pics").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / "pics" / f"bild {i:02d}.png")
        rows.append([f"bild {i:02d}", label, f"P {patient}", ["male", "female"][patient % 2], 30 + patient])
    with (folder / "table.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["image", "label", "patient", "sex", "age"], *rows])
    return folder / "table.csv"


def visible(path: Path) -> str:
    """The text of a page without styles and tags."""
    page = re.sub(r"<style>.*?</style>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.sub(r"<[^>]*>", " ", page)


@pytest.mark.slow
def test_the_whole_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    table = write_table(tmp_path)
    training = ["train", "configs/table.yaml", "data.root=table.csv", "data.images=pics", *TINY, "--run", "runs/t"]
    monkeypatch.setattr("dermrw.datasets.readable.THUMBNAIL", 8)
    command(monkeypatch, *training)
    run = Path("runs/t")
    command(monkeypatch, *training)  # resumes, and finds nothing left to do
    command(monkeypatch, "eval", "runs/t")
    export(run, [])
    command(monkeypatch, "audit", "runs/t", "--count", "3")
    printed = capsys.readouterr().out

    report = json.loads((run / "report.json").read_text())
    assert tuple(report["classes"]) == CODES and report["unit"] == "patients" and report["data"] == "table"
    assert list(report["groups"]) == ["sex", "age"] and "malignant" not in report
    assert "over patients" in report["interval"] and report["decided"]["triage"] is None
    card = (run / "MODEL_CARD.md").read_text()
    for text in (printed, visible(run / "report.html"), visible(run / "audit.html"), card):
        assert "does not state which classes are malignant" in text or "Audit of" in text
        assert not FOREIGN.findall(text)
    assert "Überbein, groß" in visible(run / "report.html") and r"naïve \<b\>\|x" in card

    classifier = Classifier(run / "model.onnx", "cpu")
    assert classifier.info.codes == CODES and classifier.info.malignant is None and classifier.info.triage is None
    assert "licence of the training images applies" in classifier.info.licence
    assert classifier.known_images() is not None
    command(monkeypatch, "predict", "runs/t", "pics", "--csv", "out.csv", "--device", "cpu")
    with Path("out.csv").open(encoding="utf-8") as file:
        assert next(csv.reader(file)) == ["image", *CODES]

    for i in range(64):  # the same labels on images that the model has not seen
        pixels = np.random.default_rng(100 + i).integers(0, 255, (40, 36, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pics" / f"new {i:02d}.png")
    Path("new.csv").write_text(table.read_text(encoding="utf-8").replace("bild", "new").replace("P ", "N "), "utf-8")
    command(monkeypatch, "score", "runs/t", "new.csv", "--images", "pics", "--out", "scored", "--device", "cpu")
    scored = json.loads(Path("scored/report.json").read_text())
    assert scored["images"] == 64 and scored["external"]["unit"] == "patients"
    assert not FOREIGN.findall(visible(Path("scored/report.html")))
    command(monkeypatch, "compare", "runs/t", "runs/t")
    assert "patients" in capsys.readouterr().out

    with pytest.raises(UserError, match="other classes than HAM10000"):
        challenge(run, [])
    with pytest.raises(UserError, match="other classes than HAM10000"):
        write_index(run / "model.onnx", None)
