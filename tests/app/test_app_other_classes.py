"""The page with models of classes other than HAM10000's: every word, without a server."""

import base64
import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tools.any_model import TRIAGE, model_info, write_model

from app.ask import Ask
from app.engine import Engine
from app.gradio_hardening import UPLOADS
from app.page import PageEvents, build_page, take_upload
from app.page_cache import PageCache
from app.render import fixed_part
from app.table import classify_many
from dermrw.diagnoses import HAM_CLASSES
from dermrw.errors import UserError
from dermrw.inference.classifier import Classifier
from dermrw.inference.lesion import Lesion
from dermrw.inference.model_file import ModelInfo
from dermrw.inference.verdict import Verdict

OF_LESIONS = re.compile(r"lesion|HAM10000|\bseven\b|\bskin\b|dermoscop|diagnoses|melanoma|nev[iu]", re.IGNORECASE)
OF_TRIAGE = re.compile(r"refer|no reason|malignan", re.IGNORECASE)
THREE = (("ash<1>", "b&irch", "céder"), ("Ash (Fraxinus)", "Birch, white", "Cedar of Lebanon"))
SIXTY = (tuple(f"c{i:02}" for i in range(60)), tuple(f"Species number {i}" for i in range(60)))


def engine_of(folder: Path, info: ModelInfo) -> Engine:
    return Engine(Classifier(write_model(folder / "tiny.onnx", info), "cpu"))


def upload(name: str, colour: tuple[int, int, int], side: int = 64) -> str:
    folder = UPLOADS.folder / name
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (side, side), colour).save(folder / f"{name}.png")
    return str(folder / f"{name}.png")


def whole_page(engine: Engine) -> str:
    """Everything that the page can show: fixed parts, labels, results of one and of several images, errors, a table."""
    events = PageEvents(engine, PageCache(), PageCache())
    parts = [
        fixed_part(part, engine) for part in ("head", "view", "tools", "result", "prevalence", "many", "texts", "foot")
    ]
    config = build_page(events).get_config_file()
    parts += [str(config["title"]), json.dumps([c["props"] for c in config["components"]], default=str)]
    red, green, tiny = (255, 40, 20), (30, 200, 60), (1, 2, 3)
    first, second = upload("first", red), upload("second", green)
    html, known = events._classify_lesion([first], {}, "")
    several, _ = events._classify_lesion(
        [first, second, upload("small", tiny, 16)], known, '{"prevalence": "training"}'
    )
    refused, _ = events._classify_lesion([upload("small", tiny, 16)], {}, "")
    unreadable, _ = events._classify_lesion([upload("speck", tiny, 8)], {}, "")
    assert "Cannot be judged" in refused and "Cannot be judged" in unreadable
    files = [upload("one", red), upload("two", green), upload("small", tiny, 16), upload("speck", tiny, 8)]
    *_, table = classify_many(engine, files, take_upload, UPLOADS.drop, UPLOADS.touch, "equal", None, {})
    return re.sub('base64,[^"]*', "", "\n".join([*parts, html, several, refused, unreadable, table]))


@pytest.mark.parametrize("names", [THREE, SIXTY], ids=["three", "sixty"])
def test_no_word_of_lesions_or_triage(names: tuple[tuple[str, ...], tuple[str, ...]], tmp_path: Path) -> None:
    page = whole_page(engine_of(tmp_path, model_info(*names)))
    assert [page[m.start() - 60 : m.end() + 40] for m in OF_LESIONS.finditer(page)] == []
    assert [page[m.start() - 60 : m.end() + 40] for m in OF_TRIAGE.finditer(page)] == []
    assert f"Image classifier: {len(names[0])} classes" in page and "Prediction set: " in page
    assert page.count("This model has no triage") == 5  # the text on the model (twice), two results and the table


def test_malignant_classes_are_named_where_they_are_stated(tmp_path: Path) -> None:
    info = model_info(*THREE, malignant=(True, False, False), triage=TRIAGE, subject="leaf")
    page = whole_page(engine_of(tmp_path, info))
    assert [page[m.start() - 60 : m.end() + 40] for m in OF_LESIONS.finditer(page)] == []
    assert "Leaf classifier: 3 classes" in page and "One leaf" in page and "combined as one leaf" in page
    assert 'class="decision refer"><span class="mark" aria-hidden="true">▲</span> Refer</h2>' in page
    assert (
        "Malignant classes together" in page
        and '<span class="tag">malignant</span>' in page
        and "has no triage" not in page
    )


@pytest.mark.parametrize("names", [THREE, (HAM_CLASSES.codes, HAM_CLASSES.names)], ids=["three", "ham10000"])
def test_the_reason_why_there_is_no_triage(names: tuple[tuple[str, ...], tuple[str, ...]], tmp_path: Path) -> None:
    reason = "only 12 malignant patients in validation; at least 45 are needed"
    stated = (True, *(False,) * (len(names[0]) - 1))
    engine = engine_of(tmp_path, model_info(*names, malignant=stated, no_triage=reason))
    page = whole_page(engine)
    assert page.count(f"This model has no triage: it gives probabilities and a {engine.words.prediction_set}") == 5
    assert (
        page.count(f"The reason: {reason}.") == 5 and "no reason to refer" not in page.lower() and " refer" not in page
    )
    answer = engine.answer([], Lesion((), None, Verdict("it is blurred", (), None)), "equal", None)
    assert answer["triage"] is None and answer["no_triage"] == reason


def test_the_command_for_other_labels(tmp_path: Path) -> None:
    plain = fixed_part("score", engine_of(tmp_path, model_info(*THREE)))
    assert '--map "ash&lt;1&gt;=LABEL|ANOTHER,b&amp;irch=A THIRD"'.replace('"', "&#34;") in plain.replace('"', "&#34;")
    assert "--by COLUMN" in plain and "--binary" not in plain and "patient" not in plain
    stated = model_info(*THREE, malignant=(True, False, False), triage=TRIAGE)
    assert "--binary" in fixed_part("score", engine_of(tmp_path, stated))


def test_sixty_classes_are_folded(tmp_path: Path) -> None:
    engine = engine_of(tmp_path, model_info(*SIXTY, thresholds=(0.0,) * 60))
    events = PageEvents(engine, PageCache(), PageCache())
    html, _ = events._classify_lesion([upload("one", (255, 40, 20))], {}, "")
    shown, _, folded = html.partition('<details class="others">')
    assert shown.count('<td class="bar">') == 10 and folded.count('<td class="bar">') == 50
    assert "Other classes (50), together" in folded
    assert re.search(r"<h2[^>]*>Prediction set: (Species number \d+, ){9}Species number \d+ and 50 more</h2>", html)
    *_, table = classify_many(
        engine, [upload("one", (255, 40, 20))], take_upload, UPLOADS.drop, UPLOADS.touch, "equal", None, {}
    )
    content = re.findall('base64,([^"]*)', table)[0]
    (row,) = csv.DictReader(io.StringIO(base64.b64decode(content).decode("utf-8-sig")))
    assert len(row["set"].split()) == 60 and row["triage"] == "" and float(row["C07"]) > 0


def test_a_prevalence_of_sixty_classes(tmp_path: Path) -> None:
    engine = engine_of(tmp_path, model_info(*SIXTY))
    page = fixed_part("prevalence", engine)
    assert page.count("data-share=") == 60 and page.count("<option") == 3  # equal, training data, own
    given = np.linspace(1, 2, 60)
    given /= given.sum()
    text = ",".join(f"{code}={share:.9f}" for code, share in zip(engine.info.codes, given, strict=True))
    key, shares = Ask(prevalence=text).shares(engine.info)
    assert key == "own" and shares == pytest.approx(given, abs=1e-8)
    with pytest.raises(UserError, match="prevalence takes equal, training"):
        Ask(prevalence="c00=1").shares(engine.info)
