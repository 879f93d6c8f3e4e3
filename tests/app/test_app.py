"""The demo's parts without a server: texts, names, errors."""

import os
import re
import socket
import subprocess
import sys
from html import escape
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tools.serving import ROOT, SECONDS

from app.engine import Engine, plain_name
from app.heatmap import SIDE, colour_scale, overlay, relative_evidence
from app.middleware import own_names
from app.page import selected_shares
from app.page_cache import MAX_PAGES, PageCache
from app.render import certainty, error_box, fixed_part, lesion_result, percent
from app.table import _cell
from app.uploads import Uploads
from dermrw.config import load_config
from dermrw.diagnoses import DX
from dermrw.errors import UserError
from dermrw.inference.classifier import Classifier, Explanation
from dermrw.inference.lesion import Lesion, combine_explanations
from dermrw.inference.verdict import Verdict, decide
from dermrw.reports.report_schema import DefinedReport
from export.card import model_card

NAMES = ("melanoma", "melanocytic nevus", "basal cell carcinoma", "dermatofibroma", "vascular lesion")


def test_names_of_a_server() -> None:
    default, everywhere, proxied = (own_names(*a) for a in (("127.0.0.1",), ("0.0.0.0",), ("::1", ["Demo.example"])))
    assert default("localhost") and default("::1") and not default("192.168.1.5") and not default("demo.example")
    assert everywhere("192.168.1.5") and everywhere("fe80::1") and not everywhere("demo.example")
    assert proxied("demo.example") and not proxied("other.demo.example")
    for wrong in ("http://demo.example", "demo.example:80", "", "*"):
        with pytest.raises(UserError, match="--allow-host takes a name"):
            own_names("127.0.0.1", [wrong])


@pytest.mark.slow
def test_mistakes_are_a_sentence(model: Path, tmp_path: Path) -> None:
    (tmp_path / "foreign.onnx").write_bytes(b"rubbish")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments, message in (
            (["absent.onnx"], "no model absent.onnx"),
            (["foreign.onnx"], "foreign.onnx is not a model"),
            ([str(model), "--host", "192.0.2.1"], "'192.0.2.1' is not an address of this machine: choose one with --h"),
            ([str(model), "--host", ""], "'' is not an address of this machine"),
            ([str(model), "--allow-host", "http://x"], "--allow-host takes a name"),
            ([str(model), "--port", port], f"port {port} of 127.0.0.1 can't be used"),
        ):
            ended = subprocess.run(
                [sys.executable, "-m", "app", *arguments], cwd=tmp_path, capture_output=True, text=True,
                timeout=SECONDS, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
            )  # fmt: skip
            assert ended.returncode == 2 and message in ended.stderr and "Traceback" not in ended.stderr, ended


@pytest.mark.slow
def test_it_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = sys.modules['torchvision'] = None\nimport app.page, app.__main__"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def explanation(engine: Engine, *p: float, refused: str | None = None) -> Explanation:
    """Returns a grey image's explanation with these probabilities."""
    codes = engine.info.codes[:2]
    size = len(engine.info.codes)
    values = np.array([*p, *[0] * (size - len(p))], np.float32)
    return Explanation(
        values, np.ones((size, 2, 2), np.float32), np.zeros(3, np.float32), np.zeros((8, 8, 3), np.uint8),
        Verdict(refused, codes, True),
    )  # fmt: skip


def result_page(engine: Engine, lesion: Lesion, *names: str) -> str:
    return lesion_result(lesion, names, engine, "equal", None)


def with_info(model: Path, **changes: object) -> Engine:
    classifier = Classifier(model)
    classifier.info = classifier.info.model_copy(update=changes)
    return Engine(classifier)


def test_nothing_given_gets_into_the_page(model: Path) -> None:
    engine = with_info(model, names=("<script>",) * 7, warning="<img src=x>")
    seen, bad = explanation(engine, 0.9, 0.1), explanation(engine, 0.9, 0.1, refused="<i>it is blurred")
    refused = result_page(engine, combine_explanations([bad], engine.info), "<b>.jpg")
    assert "&lt;i&gt;it is blurred" in refused and "%" not in refused and "script" not in refused
    page = result_page(engine, combine_explanations([seen, bad], engine.info), "<b>one.jpg", "<b>two.jpg")
    page += "".join(fixed_part(part, engine) for part in ("head", "waiting", "texts", "foot"))
    assert "<script>" not in page and "<img src=x>" not in page and "&lt;script&gt;" in page
    assert "<b>one" not in page and "<i>" not in page and "&lt;b&gt;two.jpg</strong> is refused" in page
    assert "<b>" not in error_box("<b>x")
    assert ">Only a" in error_box("only a picture") and ">one.jpg is" in error_box("one.jpg is no image", "one.jpg")


@pytest.mark.slow
def test_refused_pictures_have_no_say(model: Path) -> None:
    engine = with_info(model)
    one, two = explanation(engine, 0.9, 0.1), explanation(engine, 0.1, 0.9, refused="it is blurred")
    assert combine_explanations([one, two], engine.info).probabilities == pytest.approx(one.probabilities, abs=0)
    none = combine_explanations([two, two], engine.info)
    assert none.probabilities is None and none.verdict.refused == "each of the 2 pictures is refused"
    page = result_page(engine, none, "a.jpg", "b.jpg")
    assert "All images refused" in page and "<bdi>a.jpg</bdi>: it is blurred" in page and "melanoma" not in page
    with pytest.raises(ValueError, match="every picture is refused"):
        none.at(None)
    with pytest.raises(ValueError, match="no picture"):
        combine_explanations([], engine.info)


def test_one_suspicious_picture_is_not_lost_among_others(model: Path) -> None:
    engine = with_info(model)
    assert engine.info.triage is not None
    engine = with_info(model, triage=engine.info.triage.model_copy(update={"threshold": 0.3}), thresholds=(0.2,) * 7)
    calm, alarming = (
        picture._replace(verdict=decide(picture.probabilities, engine.info))
        for picture in (explanation(engine, 0.001, 0.999), explanation(engine, 0.4, 0.6))
    )
    lesion = combine_explanations([calm, calm, calm, alarming], engine.info)
    assert calm.verdict.refer is False and combine_explanations([calm, calm], engine.info).verdict.refer is False
    assert lesion.verdict.refer and lesion.probabilities is not None
    assert lesion.verdict.classes == ("nv", "mel") and lesion.probabilities[DX.index("mel")] == pytest.approx(0.4)
    page = result_page(engine, lesion, "a.jpg", "b.jpg", "c.jpg", "d.jpg").replace("\N{NO-BREAK SPACE}", " ")
    assert "4 images, combined as one lesion" in page and "Each image alone, at equal prevalence." in page
    for name, first, malignant, triage in (
        ("a.jpg", "melanocytic nevus > 99 %", "< 1 %", "no reason to refer seen"),
        ("d.jpg", "melanocytic nevus 60 %", "40 %", "refer"),
    ):
        cells = f"<td>{escape(first)}</td><td>{escape(malignant)}</td><td>{triage}</td>"
        assert f'<th scope="row"><bdi>{name}</bdi></th>{cells}' in page
    assert "Evidence for melanoma, the most probable (pre)malignant diagnosis" in page
    assert "combined as one lesion" not in result_page(engine, combine_explanations([calm], engine.info), "a.jpg")


def test_the_clinics_prevalence_can_be_checked(model: Path) -> None:
    engine = with_info(model)
    stated = selected_shares("own", ("4", "96", *["0"] * 5), engine)
    page = lesion_result(
        combine_explanations([explanation(engine, 0.9, 0.1)], engine.info), ["a.jpg"], engine, "own", stated
    ).replace("\N{NO-BREAK SPACE}", " ")
    assert "at your clinic’s prevalence (melanoma 4 %, melanocytic nevus 96 %, basal cell carcinoma 0 %" in page


def test_no_file_name_is_a_formula_in_the_csv() -> None:
    for name in ("=1+1", "+1", "-1", "@x", "\t=x", " =x", "＝x", "a;=x", "a,+x", "a\t -x", 'a;"@x', "';=x"):
        assert re.search(r"(?:^|[;,\t])[\s'\"]*[=+@＝-]", name) and not re.search(
            r"(?:^|[;,\t])[\s\"]*[=+@＝-]", _cell(name)
        )
    assert _cell("a=1 - b+c.jpg") == "a=1 - b+c.jpg"


def test_a_name_shows_what_it_is() -> None:
    assert plain_name("/x/mrs\u202egpj.exe\n.jpg") == "mrs\N{REPLACEMENT CHARACTER}gpj.exe\N{REPLACEMENT CHARACTER}.jpg"
    assert plain_name("/x/Muttermal Rücken, شامة.jpg") == "Muttermal Rücken, شامة.jpg"


def test_a_page_is_remembered_for_a_while(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("app.page_cache.time", SimpleNamespace(monotonic=lambda: now[0]))
    engine, cache = with_info(model), PageCache[Explanation](seconds=600)
    seen = {"/x/one.jpg": explanation(engine, 0.9, 0.1)}
    cache.put("hers", seen)
    assert cache.get("hers") == seen and cache.get("his") == {}
    now[0] += 601
    assert cache.get("hers") == {}
    for page in range(MAX_PAGES + 5):
        cache.put(str(page), seen)
    assert cache.get("0") == {} and cache.get(str(MAX_PAGES)) == seen
    cache.put("204", {})
    assert cache.get("204") == {}
    cache.close("hers")  # while its image was being classified
    cache.put("hers", seen)
    assert cache.get("hers") == {}
    assert cache.get("hers", reopen=True) == {}  # the connection broke, and the page is back
    cache.put("hers", seen)
    assert cache.get("hers") == seen


def test_uploads_are_taken_once_and_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    uploads = Uploads()
    path = uploads.folder / "digest" / "one.jpg"

    def give() -> None:
        path.parent.mkdir()
        path.write_bytes(b"picture")

    give()
    assert uploads.size() == 7 and uploads.take(str(path)) == b"picture"
    assert uploads.take(str(path)) is None and list(uploads.folder.iterdir()) == []
    give()
    uploads.sweep(60)
    assert path.exists()
    os.utime(path, (0, 0))
    uploads.sweep(60)
    assert list(uploads.folder.iterdir()) == []
    outside = tmp_path / "precious"
    outside.write_bytes(b"x")
    (uploads.folder / "link").symlink_to(outside)
    for there in (outside, uploads.folder / "link", uploads.folder / ".." / "precious", uploads.folder):
        assert uploads.take(str(there)) is None
        uploads.drop(str(there))
    assert outside.exists() and uploads.folder.exists()
    assert uploads.place(f"{uploads.folder}/x/../y") == f"{uploads.folder}/y" and uploads.place("a\0b") is None
    uploads.cleanup()
    assert not uploads.folder.exists()


def test_the_clinics_shares(model: Path) -> None:
    engine = with_info(model)
    assert selected_shares("equal", (), engine) is None
    training = selected_shares("training", (), engine)
    assert training is not None and training.sum() == pytest.approx(1) and training[1] == training.max()
    own = selected_shares("own", ("5", "80 %", "5,0", "2", "6.0", " 1", "1"), engine)
    assert own is not None and own[1] == 0.8
    thirds = selected_shares("own", ("33.3", "33.3", "33.3", *["0"] * 4), engine)
    assert thirds is not None and thirds.sum() == 1
    for shares, wrong in (
        (("5",) * 7, "sum to 100 %, not to 35 %"),
        (("-5", "105", *["0"] * 5), "enter the percentage"),
        (("",) * 7, "enter the percentage of your patients"),
        (("٥", "95", *["0"] * 5), "enter the percentage"),
        (("0",) * 7, "not to 0 %"),
    ):
        with pytest.raises(UserError, match=wrong):
            selected_shares("own", shares, engine)


def test_texts_about_skin_are_only_shown_for_models_of_skin(model: Path) -> None:
    drawn, skin = with_info(model), with_info(model, warning=None)
    sample, real = drawn.info, skin.info
    assert "trained on drawings" in fixed_part("texts", drawn) and "light skin" not in fixed_part("texts", drawn)
    report = DefinedReport.model_validate_json(model.with_name("report.json").read_text())
    card = model_card(report, sample, "0" * 64, load_config(None, ["train.epochs=7", "data.root=/secret/place"]))
    assert "train: {epochs: 7}" in card and "secret" not in card
    assert "learned from drawings" in card and not re.search("almost only light skin|histology|Vienna", card)
    assert "almost only light skin" in model_card(report, real, "0" * 64, load_config(None))
    assert "confirmed by histology" in model_card(report, real, "0" * 64, load_config(None))
    assert "drawings" not in fixed_part("texts", skin) and "almost only on light skin" in fixed_part("texts", skin)


def test_words_follow_the_probability() -> None:
    def headline(*p: float) -> str:
        return certainty(np.array(p, np.float32), NAMES, [True] * 5)[0]

    assert headline(0.4, 0.3, 0.3, 0, 0) == "No clear result"
    assert headline(0.1, 0.6, 0.3, 0, 0) == "Uncertain: most similar to melanocytic nevus"
    assert headline(0.9, 0.1, 0, 0, 0) == "Most similar to melanoma"
    inside = [True, False, True, False, False]
    sentence = certainty(np.array([0.6, 0.25, 0.1, 0.05, 0]), NAMES, inside)[1]  # the alternative is in the set, too
    assert NAMES[2] in sentence and NAMES[1] not in sentence
    headline_, sentence = certainty(np.array([0.3, 0.6, 0.1, 0, 0]), NAMES, inside)
    assert (
        headline_ == "No clear result"
        and f"{NAMES[1]} is the most probable diagnosis" in sentence
        and "not in the differential" in sentence
    )
    assert [percent(p).replace("\N{NO-BREAK SPACE}", " ") for p in (0.001, 0.5, 0.999)] == ["< 1 %", "50 %", "> 99 %"]


def test_the_map_lies_where_the_evidence_is() -> None:
    activation = np.full((4, 4), -1.0, np.float32)
    activation[0, 3] = 2
    strength = relative_evidence(activation, 64)
    assert strength[:16, 48:].mean() > 0.5 and strength[32:, :32].max() < 0.01 and strength.max() <= 1
    grey = np.full((8, 8, 3), 128, np.uint8)
    change = np.abs(np.asarray(overlay(grey, activation)).astype(int) - 128)
    assert change[SIDE // 2 :, : SIDE // 2].max() <= 1 and change[: SIDE // 4, -SIDE // 4 :].mean() > 20
    assert (np.asarray(overlay(grey, -np.ones((4, 4), np.float32))) == 128).all()


def test_the_colour_scale_shows_the_overlays_colours() -> None:
    grey = np.full((8, 8, 3), 128, np.uint8)
    colours = [bytes.fromhex(colour) for colour in re.findall("#([0-9a-f]{6})", colour_scale(grey))]
    full = np.asarray(overlay(grey, np.ones((4, 4), np.float32)))[0, 0]
    assert colours[0] == bytes([128] * 3) and colours[-1] == full.tobytes()
