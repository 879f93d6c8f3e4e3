"""One picture in many files: predict, the API, the page and training's loader give the network the same pixels."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from tools.encodings import colour_spaces, encodings, orientations

from app.api import add_api
from app.engine import Engine
from app.gradio_hardening import UPLOADS, upload_field
from app.page import PageEvents, take_upload
from app.page_cache import PageCache
from app.table import classify_many
from dermrw.config import Data
from dermrw.datasets.dataset import ImageSet
from dermrw.datasets.pixels import ImageDataset
from dermrw.datasets.readable import read_all
from dermrw.datasets.sample_drawing import draw_lesion
from dermrw.images.preprocess import evaluation_pixels
from dermrw.inference.classifier import Classifier
from dermrw.inference.image_rows import classify_batch

MODEL = Path(__file__).parents[2] / "app/model.onnx"
LESION = draw_lesion("mel", np.random.default_rng(3), np.random.default_rng(4), 96, 128)
HEIC = Path(__file__).parents[1] / "images/lesion.heic"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(Classifier(MODEL, "cpu", threads=1))


@pytest.fixture
def seen(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The pixels of every image that the network is run on."""
    pixels: list[np.ndarray] = []
    run = engine.classifier.run

    def recorded(images: np.ndarray, *outputs: str) -> list[np.ndarray]:
        pixels.extend(images)
        return run(images, *outputs)

    monkeypatch.setattr(engine.classifier, "run", recorded)
    return pixels


def uploaded(path: Path) -> str:
    """The path of a copy among the page's uploads."""
    folder = UPLOADS.folder / "one"
    folder.mkdir(exist_ok=True)
    return str(shutil.copy(path, folder / path.name))


@pytest.mark.slow
@pytest.mark.parametrize("files", [encodings, colour_spaces, orientations])
def test_the_same_pixels_four_ways(
    files: Callable[[Path, np.ndarray], Iterator[tuple[Path, float]]],
    engine: Engine,
    seen: list[np.ndarray],
    tmp_path: Path,
) -> None:
    size, framing, app = engine.info.size, engine.classifier.framing, FastAPI()
    add_api(app, engine)
    client = TestClient(app)
    made = list(files(tmp_path, LESION))
    expected = evaluation_pixels(LESION, size).astype(int)
    for path, tolerance in made:
        assert np.abs(evaluation_pixels(path, size) - expected).mean() <= tolerance, path.name
    if files is orientations:
        made = made[::6]  # orientations and formats in turn
    paths = [path for path, _ in made]
    table = pd.DataFrame({"image_id": [path.name for path in paths]})
    training = ImageDataset(
        ImageSet(table, np.zeros(len(paths), np.int64), [str(path) for path in paths]),
        Data(size=size, field_of_view=framing.field_of_view, crop=framing.crop),
    )
    page = PageEvents(engine, PageCache(), PageCache())
    for index, (path, _) in enumerate(made):
        seen.clear()
        assert not classify_batch(engine.classifier, ["x"], [path])[0].error, path.name
        # a browser sends no type, or a wrong one, for most of these endings
        answer = client.post("/classify", files={"image": (path.name, path.read_bytes(), "application/octet-stream")})
        assert answer.status_code == 200, answer.text
        html, explanations = page._classify_lesion([uploaded(path)], {}, "")
        assert explanations and "cannot be read" not in html
        by_predict, by_api, by_page = seen
        by_training = training[0, index][0].numpy()
        for other in (by_api, by_page, by_training):
            np.testing.assert_array_equal(other, by_predict, err_msg=path.name)
    assert UPLOADS.size() == 0


def test_the_page_offers_every_file() -> None:
    """A filter by endings would hide DICOM files, which often have none; the server decides by content."""
    assert upload_field("Images", "test").file_types is None


def test_a_heic_and_notes_reach_every_answer(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app = FastAPI()
    add_api(app, engine)
    noted = tmp_path / "noted.HEIC"
    noted.write_bytes(HEIC.read_bytes().replace(b"irot", b"free"))
    note = "its EXIF orientation was ignored, as the HEIF standard asks"
    files = [("image", ("a.heic", HEIC.read_bytes())), ("image", ("noted.HEIC", noted.read_bytes()))]
    answer = TestClient(app).post("/classify", files=files).json()
    assert [picture["notes"] for picture in answer["pictures"]] == [[], [note]]
    page = PageEvents(engine, PageCache(), PageCache())
    html, _ = page._classify_lesion([uploaded(HEIC), uploaded(noted)], {}, "")
    assert html.count("Note on") == 1 and f"Note on <bdi>noted.HEIC</bdi>: {note}." in html
    assert classify_batch(engine.classifier, ["noted"], [noted])[0].notes == (note,)
    table = "".join(
        classify_many(engine, [uploaded(noted)], take_upload, UPLOADS.drop, UPLOADS.touch, "equal", None, {})
    )
    assert f"Note: {note}." in table
    read_all(pd.DataFrame({"image_id": ["a", "noted"], "path": [str(HEIC), str(noted)]}))  # of check and training
    assert f"Read with a note: 1 of 2 images, such as {noted}: {note}" in capsys.readouterr().out
