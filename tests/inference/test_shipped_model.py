"""The answers of app/model.onnx on drawn pictures, against the committed ones.

When a new model replaces app/model.onnx, write its answers and commit them:

    python tests/inference/test_shipped_model.py
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw

from dermrw.datasets.sample_drawing import draw_lesion
from dermrw.decisions.refusal import RULES
from dermrw.diagnoses import DX
from dermrw.inference.classifier import Classifier

MODEL = Path(__file__).parents[2] / "app/model.onnx"
ANSWERS = Path(__file__).with_name("shipped_model_answers.json")

Pixels = npt.NDArray[np.uint8]


def pictures() -> Iterator[tuple[str, Pixels]]:
    """Four drawn lesions of each diagnosis, the first of them damaged in several ways, and pictures of no lesion."""
    rng = np.random.default_rng
    for i, code in enumerate(DX):
        for n in range(4):
            yield f"{code} {n}", draw_lesion(code, rng(100 * i + n), rng(7 + n), 300 + 20 * n, 400)
    lesion = draw_lesion(DX[0], rng(0), rng(7), 300, 400)
    yield "dark", lesion // 8
    yield "overexposed", np.minimum(lesion.astype(np.uint16) * 3, 255).astype(np.uint8)
    yield "grey", np.repeat(lesion[:, :, 1:2], 3, 2)
    yield "pixelated", np.repeat(np.repeat(lesion[::25, ::25], 25, 0), 25, 1)
    yield "too small", lesion[::10, ::10]
    yield "noise", rng(1).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    yield "blank", np.full((300, 400, 3), 180, np.uint8)
    ramp = np.linspace(0, 255, 400).astype(np.uint8)
    yield "gradient", np.broadcast_to(ramp[None, :, None], (300, 400, 3)).copy()
    rows, columns = np.mgrid[:300, :400]
    board = ((rows // 30 + columns // 30) % 2).astype(bool)[:, :, None]
    yield "checkerboard", np.where(board, [200, 40, 60], [30, 90, 190]).astype(np.uint8)


def broken_rule(reason: str | None) -> str | None:
    """The check that this reason for a refusal belongs to, so that the answers don't depend on its wording."""
    if reason is None:
        return None
    return next((check for check, rule in RULES.items() if rule[1] == reason), "too small")


def answers(classifier: Classifier) -> dict[str, dict[str, Any]]:
    """By the picture's name: a digest of its pixels, probabilities in the order of the codes, and the verdict."""
    rows = {}
    for name, picture in pictures():
        explanation = classifier.explain(picture)
        verdict = explanation.verdict
        rows[name] = {
            "pixels": hashlib.sha256(picture.tobytes()).hexdigest()[:16],
            "probabilities": [round(float(p), 7) for p in explanation.probabilities],
            "refused": broken_rule(verdict.refused),
            "classes": list(verdict.classes),
            "triage": verdict.triage,
        }
    return rows


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    contents: dict[str, Any] = json.loads(ANSWERS.read_text())
    return contents


@pytest.mark.slow
def test_the_shipped_models_answers_are_the_committed_ones(committed: dict[str, Any]) -> None:
    classifier = Classifier(MODEL, "cpu")
    assert classifier.digest == committed["model_sha256"], (
        f"{MODEL.name} was replaced: run python tests/inference/{Path(__file__).name} and commit {ANSWERS.name}"
    )
    now = answers(classifier)
    assert now.keys() == committed["pictures"].keys()
    for name, row in committed["pictures"].items():
        # on other processors, drawing may round a pixel differently
        tolerance = 1e-5 if now[name]["pixels"] == row["pixels"] else 1e-3
        np.testing.assert_allclose(
            now[name]["probabilities"], row["probabilities"], rtol=0, atol=tolerance, err_msg=name
        )
        assert {key: now[name][key] for key in ("refused", "classes", "triage")} == {
            key: row[key] for key in ("refused", "classes", "triage")
        }, name


def test_the_committed_answers_hold_refusals_and_referrals(committed: dict[str, Any]) -> None:
    rows = committed["pictures"].values()
    assert sum(row["refused"] is None for row in rows) >= 3
    assert {row["triage"] for row in rows} == {"", "refer", "no reason to refer seen"}
    assert len({row["refused"] for row in rows}) >= 5


def test_a_screenshot_is_refused_as_white_or_grey() -> None:
    screenshot = Image.new("RGB", (1280, 800), "white")
    pen = ImageDraw.Draw(screenshot)
    for line in range(40):
        pen.text((40, 20 + 19 * line), "Pathology report: compound nevus, fully excised. " * 3, fill="black")
    reason = Classifier(MODEL, "cpu").explain(screenshot).verdict.refused
    assert reason in {RULES["overexposed"][1], RULES["colour"][1]}, reason


def write() -> None:
    """Writes the answers of the model that is there now."""
    classifier = Classifier(MODEL, "cpu")
    lines = [f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in answers(classifier).items()]
    head = f'{{\n "model_sha256": "{classifier.digest}",\n "pictures": {{\n'
    ANSWERS.write_text(head + ",\n".join(lines) + "\n }\n}\n")


def test_the_demo_answers_its_examples() -> None:
    classifier = Classifier(MODEL)
    for code in DX:
        explained = classifier.explain(MODEL.parent / f"examples/drawn-{code}.jpg")
        assert explained.verdict.refused is None and code in explained.verdict.classes, f"{code}: run `make examples`"
        assert DX[int(np.argmax(explained.probabilities))] == code


if __name__ == "__main__":
    write()
