"""`dermrw score` over many images: several processes, and interrupted runs that continue."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import exit_status
from PIL import Image

from dermrw.datasets.sample_drawing import draw_lesion
from dermrw.diagnoses import DX
from dermrw.inference import predict_files, workers
from dermrw.inference.known_images import KnownImages
from dermrw.reports import report_json
from dermrw.scoring import score
from export.training_images import add_list

IMAGES = 70
WRITTEN = ("predictions.csv", "predictions_decisions.csv", "left_out.csv")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images of 60 × 80 pixels with a table; one image cannot be read. A few images count as many."""
    monkeypatch.setattr(workers, "FEW", 1)
    monkeypatch.setattr(predict_files, "FEW", 1)
    monkeypatch.setattr(report_json, "REPLICATES", 20)
    monkeypatch.setattr(report_json, "FEW_REPLICATES", 20)
    rng = np.random.default_rng
    drawn = [draw_lesion(code, rng([i, 0]), rng([i, 1]), 60, 80) for i, code in enumerate(DX)]
    lines = ["image,label"]
    for i in range(IMAGES):
        Image.fromarray(np.roll(drawn[i % 7], 3 * i, 1)).save(tmp_path / f"{i:03}.png")
        lines.append(f"{i:03}.png,{DX[i % 7]}")
    (tmp_path / "040.png").write_bytes(b"\xff\xd8\xff cut short")
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    return tmp_path


@pytest.fixture
def run_score(model_file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the command with a model that lists one of the images, and returns its status."""
    model = folder / "listed.onnx"
    model.write_bytes(add_list(model_file.read_bytes(), KnownImages.of(["003"], [])))

    def run(out: str, *options: str) -> int:
        return exit_status(
            monkeypatch, "score", str(model), str(folder / "mine.csv"), "--out", str(folder / out),
            "--device", "cpu", *options,
        )  # fmt: skip

    return run


def interrupted(monkeypatch: pytest.MonkeyPatch, after: int = 1) -> None:
    """Ctrl-C after some batches."""
    real = predict_files.classify_files

    def stopping(*arguments: object) -> object:
        for i, batch in enumerate(real(*arguments)):  # type: ignore[arg-type]
            if i == after:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(predict_files, "classify_files", stopping)


def written(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in WRITTEN]


@pytest.mark.slow
def test_an_interrupted_score_continues(
    run_score: Callable[..., int], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_score("whole", "--workers", "2") == 2  # one image cannot be read
    partial = folder / "out" / score.PARTIAL
    with pytest.MonkeyPatch.context() as patch:
        interrupted(patch)
        assert run_score("out", "--workers", "1") == 130
    assert partial.exists() and not (folder / "out/report.json").exists()
    capsys.readouterr()
    (folder / "mine.csv").write_text((folder / "mine.csv").read_text().replace("001.png,nv", "001.png,mel"))
    assert run_score("out", "--workers", "1") == 2
    assert f"Continuing after 32 of {IMAGES} images" in capsys.readouterr().out
    assert not partial.exists() and written(folder / "out") == written(folder / "whole")
    assert b'003,"the model was trained' in written(folder / "out")[2]


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["image", "table", "model"])
def test_rows_of_something_else_are_not_used(
    run_score: Callable[..., int], folder: Path, capsys: pytest.CaptureFixture[str], changed: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupted(patch)
        assert run_score("out", "--workers", "1") == 130
    capsys.readouterr()
    if changed == "image":
        Image.new("RGB", (80, 60), (200, 120, 90)).save(folder / "001.png")
    elif changed == "table":
        (folder / "mine.csv").write_text((folder / "mine.csv").read_text().replace("001.png,nv\n", ""))
    else:
        content = (folder / "listed.onnx").read_bytes()
        (folder / "listed.onnx").write_bytes(add_list(content, KnownImages.of(["005"], [])))
    assert run_score("out", "--workers", "1") == 2
    assert f"{folder / 'out' / score.PARTIAL} is of another model, of other images or" in capsys.readouterr().out
