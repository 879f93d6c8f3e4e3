"""The API's description holds for its answers, and its page needs no other machine."""

import io
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from conftest import draw
from fastapi.openapi.models import OpenAPI
from fastapi.testclient import TestClient
from PIL import Image

from app.api import MAX_BATCH
from app.engine import Engine
from app.page import build_app
from dermrw.inference.classifier import Classifier

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client(model: Path) -> TestClient:
    return TestClient(build_app(Engine(Classifier(model, "cpu")), lambda _: True))


@pytest.fixture(scope="module")
def description(client: TestClient) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def valid(answer: Any, name: str, description: dict[str, Any]) -> None:
    """Checks an answer against its schema; no field may be missing from the schema."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": description["components"]}
    jsonschema.validate(answer, schema)
    listed = description["components"]["schemas"][name].get("properties")
    assert listed is None or set(answer) <= set(listed)


def test_the_description_is_openapi(description: dict[str, Any]) -> None:
    OpenAPI.model_validate(description)
    assert set(description["paths"]) == {"/classify", "/classify_images", "/health"}
    for schema in description["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_answers_are_as_described(client: TestClient, description: dict[str, Any], tmp_path: Path) -> None:
    one, two, dark = (draw(tmp_path / f"{name}.png", seed) for name, seed in (("one", 4), ("two", 9), ("dark", 1)))
    Image.open(dark).point(lambda v: v // 30).save(dark)
    files = [("image", (path.name, path.read_bytes())) for path in (one, two, dark)]
    valid(client.get("/health").json(), "Health", description)
    for form in ({}, {"prevalence": "training", "heat_map": "mel"}):
        answer = client.post("/classify", files=files, data=form).json()
        valid(answer, "Answer", description)
        for picture in answer["pictures"]:
            valid(picture, "Picture", description)
            assert ("heat_map" in picture) == bool(form)
    refused = client.post("/classify", files=files[2:]).json()
    assert refused["refused"]
    valid(refused, "Answer", description)
    wrong = client.post("/classify", files=[("image", ("x.jpg", b"words"))])
    assert str(wrong.status_code) in description["paths"]["/classify"]["post"]["responses"]
    valid(wrong.json(), "Error", description)


def test_several_images_have_the_answers_that_each_has_alone(
    client: TestClient, description: dict[str, Any], tmp_path: Path
) -> None:
    paths = [draw(tmp_path / f"{seed}.png", seed) for seed in (4, 9)]
    files = [("image", (path.name, path.read_bytes())) for path in paths]
    files.insert(1, ("image", ("broken.jpg", b"no picture")))
    form = {"prevalence": "training", "heat_map": "nv"}
    found = client.post("/classify_images", files=files, data=form).json()
    valid(found, "Answers", description)
    first, broken, last = found["images"]
    assert broken["name"] == "broken.jpg" and "is not an image" in broken["error"] and set(broken) == {"name", "error"}
    for path, answer in zip(paths, (first, last), strict=True):
        alone = client.post("/classify", files=[("image", (path.name, path.read_bytes()))], data=form).json()
        assert answer == {"name": path.name, **alone}
    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, "PNG")
    many = [("image", (f"{n}.png", small.getvalue())) for n in range(MAX_BATCH + 1)]
    assert client.post("/classify_images", files=many).status_code == 400
    assert len(client.post("/classify_images", files=many[:-1]).json()["images"]) == MAX_BATCH
    for wrong in ({"prevalence": "rare"}, {"heat_map": "cat"}):
        got = client.post("/classify_images", files=files, data=wrong)
        assert got.status_code == 422 and next(iter(wrong)) in got.json()["error"]


def test_thresholds_and_heat_map_are_the_models(client: TestClient, model: Path, tmp_path: Path) -> None:
    path, classifier = draw(tmp_path / "one.png"), Classifier(model, "cpu")
    info, explanation = classifier.info, classifier.explain(path)
    form = {"heat_map": "bkl"}
    answer = client.post("/classify", files=[("image", (path.name, path.read_bytes()))], data=form).json()
    assert info.triage is not None and info.triage.prevalence is not None
    assert answer["thresholds"].pop("triage_prevalence") == pytest.approx(info.triage.prevalence)
    assert answer["thresholds"] == {
        "set": dict(zip(info.codes, info.thresholds, strict=True)),
        "coverage": info.coverage,
        "triage": info.triage.threshold,
    }
    evidence = np.maximum(explanation.activation_map[info.codes.index("bkl")], 0)
    np.testing.assert_allclose(answer["pictures"][0]["heat_map"], evidence / (evidence.max() or 1), atol=0.003)


def test_the_page_loads_nothing_from_elsewhere(client: TestClient, description: dict[str, Any]) -> None:
    response = client.get("/api")
    page = response.text
    assert (
        response.headers["content-type"].startswith("text/html")
        and "default-src 'self'" in response.headers["content-security-policy"]
    )
    assert "<script" not in page and not re.search(r"(src|href)=.?(https?:)?//", page)
    for name, schema in description["components"]["schemas"].items():
        assert f'id="{name}"' in page or not schema.get("properties")
        assert all(f"<code>{field}</code>" in page for field in schema.get("properties", {}) if name != "Probabilities")
