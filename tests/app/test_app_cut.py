"""A picture with a border: the page shows the cut, the API states the box, and the heat map lies on the input."""

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from app.api import add_api
from app.engine import Engine
from app.heatmap import data_uri, overlay
from app.render import lesion_result
from dermrw.datasets.sample_drawing import draw_lesion
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


def test_hashes_are_of_the_uncut_picture(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(BORDERED))
    (row,) = classify_batch(engine.classifier, ["a"], [path], hashed=True)
    assert row.hashes == image_hash(evaluation_pixels(BORDERED, engine.info.size))


@pytest.mark.slow
def test_the_page_shows_the_cut(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dermrw.inference.classifier.verdict", accepted(engine))
    explained = [engine.classifier.explain(pixels) for pixels in (BORDERED, LESION)]
    for explanation, cut in zip(explained, (True, False), strict=True):
        lesion = combine_explanations([explanation], engine.info)
        html = lesion_result(lesion, ["x<b>.png"], engine, "equal", None)
        assert ("only the part within the frame is used" in html) == cut
        assert ("without its border" in html) == cut and "x<b>" not in html
        assert ("squeezed to a square" in html) == (engine.info.crop == "whole")
        maps = [data_uri(overlay(explanation.pixels, values)) for values in explanation.activation_map]
        assert sum(uri in html for uri in maps) == 1  # the map lies on the pixels that the network saw
    shown = re.findall(r'src="data:image/png;base64,([^"]*)" alt="[^"]*frame', lesion_html(engine, explained[0]))
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown[0])))).astype(int)
    assert picture.shape == (240, 320, 3) and picture[:28].max() == 0  # the border is shown
    assert (picture[30:33, 60] == 255).all(1).any()  # the frame's line


def lesion_html(engine: Engine, explanation: object) -> str:
    lesion = combine_explanations([explanation], engine.info)  # type: ignore[list-item]
    return lesion_result(lesion, ["a"], engine, "equal", None)


def accepted(engine: Engine) -> object:
    """A verdict that refuses no picture."""
    from dermrw.inference.verdict import decide

    return lambda probabilities, checks, width, height, info: decide(probabilities, info)
