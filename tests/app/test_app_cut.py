"""A picture with a border: the page shows the cut, the API states the box, and the heat map lies on the input."""

import base64
import io
import json
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from app.api import add_api
from app.engine import Engine, Picture
from app.heatmap import relative_evidence
from app.region import Edit, seen_part
from app.render import lesion_result
from app.table import Row, Upload, classify_many
from dermrw.datasets.sample_drawing import draw_lesion
from dermrw.images.field_of_view import Box
from dermrw.images.preprocess import PLAIN, Framing, evaluation_pixels
from dermrw.inference.classifier import Classifier
from dermrw.inference.image_rows import classify_batch
from dermrw.inference.known_images import image_hash
from dermrw.inference.lesion import combine_explanations

MODEL = Path(__file__).parents[2] / "app/model.onnx"
LESION = draw_lesion("nv", np.random.default_rng(3), np.random.default_rng(4), 360, 480)
BORDERED = np.pad(LESION, ((60, 60), (80, 80), (0, 0)))


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier(MODEL, "cpu", threads=1)


@pytest.fixture(params=[Framing("find"), Framing("find", "whole")])
def engine(request: pytest.FixtureRequest, classifier: Classifier) -> Iterator[Engine]:
    """The shipped model as if it had this framing: its graph takes pixels of its own size as they are."""
    classifier.framing = request.param
    classifier.info = classifier.info.model_copy(
        update={"crop": request.param.crop, "limits": dict.fromkeys(classifier.info.limits, 0.0)}
    )
    yield Engine(classifier)
    classifier.framing = PLAIN


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_answer_states_the_box(engine: Engine) -> None:
    app = FastAPI()
    add_api(app, engine)
    files = [("image", (name, png(pixels))) for name, pixels in (("a.png", BORDERED), ("b.png", LESION))]
    first, second = TestClient(app).post("/classify", files=files).json()["pictures"]
    assert np.abs(np.array(first["box"]) - (80, 60, 560, 420)).max() <= 10
    assert second["box"] == [0, 0, 480, 360]


def test_the_network_sees_the_content(engine: Engine) -> None:
    classifier = engine.classifier
    seen = classifier.prepare(BORDERED)
    assert seen.box is not None and (seen.width, seen.height) == (640, 480)
    left, top, right, bottom = seen.box
    part = BORDERED[top:bottom, left:right]
    expected = evaluation_pixels(part, classifier.info.size, Framing("none", classifier.framing.crop))
    assert np.array_equal(seen.pixels, expected) and np.array_equal(classifier.pixels(BORDERED), expected)
    assert seen.content_size == (right - left, bottom - top)


def test_hashes_are_of_the_uncut_picture(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(BORDERED))
    (row,) = classify_batch(engine.classifier, ["a"], [path], hashed=True)
    assert row.hashes == image_hash(evaluation_pixels(BORDERED, engine.info.size))
    for listed in (True, False):  # of the table of many images, whose score leaves out training images by them
        monkeypatch.setattr(Classifier, "lists_known_images", listed)
        uploaded: dict[str, Upload] = {}
        take = lambda _: Picture("a.png", path.read_bytes())  # noqa: E731
        nothing = lambda _: None  # noqa: E731
        list(classify_many(engine, ["a.png"], take, nothing, nothing, "equal", None, uploaded))
        shown = uploaded["a.png"]
        assert isinstance(shown, Row) and shown.image is not None
        assert shown.image.hashes == (row.hashes if listed else None)


@pytest.mark.slow
def test_the_page_shows_the_cut(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dermrw.inference.classifier.verdict", accepted(engine))
    for pixels, is_cut in ((BORDERED, True), (LESION, False)):
        explanation = engine.classifier.explain(pixels)
        lesion = combine_explanations([explanation], engine.info)
        html = lesion_result(lesion, ["x<b>.png"], engine, "equal", None)
        (data,) = json.loads(unescape(re.findall('data-answer="([^"]*)"', html)[0]))["pictures"]
        height, width = pixels.shape[:2]
        assert data["size"] == [width, height] and (data["cut"] != [0, 0, width, height]) == is_cut
        assert data["seen"] == list(seen_part(Box(*data["cut"]), engine.info.crop))  # the map lies on what was seen
        assert (data["seen"] == data["cut"]) == (engine.info.crop == "whole")
        assert base64.b64decode(data["map"]["bytes"]) == relative_evidence(explanation.activation_map).tobytes()
        assert "x<b>" not in html


@pytest.mark.slow
def test_a_crop_by_hand_replaces_the_cut(engine: Engine) -> None:
    picture = Picture("a.png", png(BORDERED))
    automatic, whole = engine.examine(picture), engine.examine(picture, Edit(0, (0, 0, 640, 480)))
    assert automatic.explanation.box == engine.classifier.prepare(BORDERED).box
    expected = evaluation_pixels(BORDERED, engine.info.size, Framing("none", engine.info.crop))
    assert np.array_equal(whole.explanation.pixels, expected)


def accepted(engine: Engine) -> object:
    """A verdict that refuses no picture."""
    from dermrw.inference.verdict import decide

    return lambda probabilities, checks, width, height, info: decide(probabilities, info)
