"""The demo's parts without a server: texts, names, errors."""

import base64
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tools.serving import ROOT, SECONDS

from app.advice import ADVICE, advice
from app.ask import Ask, parse
from app.decision import decision_of
from app.engine import Engine, plain_name
from app.engine import Picture as EnginePicture
from app.examples import drawn_examples
from app.heatmap import encoded, ramp, relative_evidence
from app.middleware import own_names
from app.page_cache import MAX_PAGES, LatestCalls, PageCache
from app.presets import presets
from app.region import UNCHANGED, Edit, seen_part
from app.render import compared, error_box, fixed_part, lesion_result, outside_note, percent
from app.table import Row, _cell, _table
from app.uploads import Uploads
from dermrw.config import load_config
from dermrw.datasets.sample_drawing import draw_lesion
from dermrw.decisions.refusal import NOT_DERMOSCOPIC, RULES
from dermrw.diagnoses import DX
from dermrw.errors import UserError
from dermrw.images.field_of_view import Box
from dermrw.images.preprocess import network_pixels
from dermrw.inference.classifier import Classifier, Explanation
from dermrw.inference.lesion import Lesion, combine_explanations
from dermrw.inference.verdict import Verdict, decide
from dermrw.reports.report_schema import DefinedReport
from export.card import model_card

PARTS = ("head", "view", "tools", "result", "prevalence", "many", "texts", "foot")
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
    page += "".join(
        fixed_part(part, engine) for part in ("head", "view", "tools", "result", "prevalence", "many", "texts", "foot")
    )
    assert "<script>" not in page and "<img src=x>" not in page and "&lt;script&gt;" in page
    assert "<b>one" not in page and "<i>it" not in page and "&lt;b&gt;two.jpg</bdi> cannot be judged" in page
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
    assert "Cannot be judged" in page and "<bdi>a.jpg</bdi>: it is blurred" in page and "melanoma" not in page
    with pytest.raises(ValueError, match="every picture is refused"):
        none.at(None)
    with pytest.raises(ValueError, match="no picture"):
        combine_explanations([], engine.info)


def test_one_suspicious_picture_is_not_lost_among_others(model: Path) -> None:
    engine = with_info(model)
    assert engine.info.triage is not None
    equal = engine.info.triage.model_copy(update={"threshold": 0.3, "prevalence": None})
    engine = with_info(model, triage=equal, thresholds=(0.2,) * 7)
    calm, alarming = (
        picture._replace(verdict=decide(picture.probabilities, engine.info))
        for picture in (explanation(engine, 0.001, 0.999), explanation(engine, 0.4, 0.6))
    )
    lesion = combine_explanations([calm, calm, calm, alarming], engine.info)
    assert calm.verdict.refer is False and combine_explanations([calm, calm], engine.info).verdict.refer is False
    assert lesion.verdict.refer and lesion.probabilities is not None
    assert lesion.verdict.malignancy_score == pytest.approx(40) and calm.verdict.malignancy_score == pytest.approx(0.1)
    assert lesion.verdict.classes == ("nv", "mel") and lesion.probabilities[DX.index("mel")] == pytest.approx(0.4)
    page = result_page(engine, lesion, "a.jpg", "b.jpg", "c.jpg", "d.jpg").replace("\N{NO-BREAK SPACE}", " ")
    assert "4 images, combined as one lesion" in page
    data = json.loads(unescape(re.findall('data-answer="([^"]*)"', page)[0]))
    own = [(p["place"], p["name"], p["text"].replace("\N{NO-BREAK SPACE}", " "), p["label"]) for p in data["pictures"]]
    assert own[0] == (0, "a.jpg", "melanocytic nevus > 99 %", "No reason to refer seen")
    assert own[3] == (3, "d.jpg", "melanocytic nevus 60 %", "Refer")
    assert data["classes"][0]["name"] == "melanoma" and len(data["classes"]) == 7  # of the heat map
    assert "combined as one lesion" not in result_page(engine, combine_explanations([calm], engine.info), "a.jpg")


def test_what_depends_on_the_prevalence_changes_together(model: Path) -> None:
    engine = with_info(model)
    assert engine.info.triage is not None
    engine = with_info(model, triage=engine.info.triage.model_copy(update={"prevalence": None}))  # as in older files
    lesion = combine_explanations([explanation(engine, 0.9, 0.1)], engine.info)
    equal = result_page(engine, lesion, "a.jpg").replace("\N{NO-BREAK SPACE}", " ")
    assert "probability at equal prevalence" in equal and "depend on the selected prevalence.<" not in equal
    assert [text.replace("\N{NO-BREAK SPACE}", " ") for text in compared(0.219, 0.221)] == ["21.9 %", "22.1 %"]
    assert [text.replace("\N{NO-BREAK SPACE}", " ") for text in compared(0.004, 0.221)] == ["< 1 %", "22 %"]
    for share, threshold, texts in (
        (0.2, 0.0031, ["20 %", "0.3 %"]), (0.9, 0.997, ["90 %", "99.7 %"]), (0.00004, 0.0001, ["0.00 %", "0.01 %"]),
        (0.03091, 0.0311, ["3.09 %", "3.11 %"]), (0.6, 0.034, ["60 %", "3.4 %"]),
    ):  # fmt: skip
        assert [text.replace("\N{NO-BREAK SPACE}", " ") for text in compared(share, threshold)] == texts
    key, shares = Ask(prevalence="mel=0.04,nv=0.96,bcc=0,akiec=0,bkl=0,df=0,vasc=0").shares(engine.info)
    page = lesion_result(lesion, ["a.jpg"], engine, key, shares).replace("\N{NO-BREAK SPACE}", " ")
    assert "probability at your own prevalence<" in page
    assert "Shares at your own prevalence: melanoma 4 %, melanocytic nevus 96 %, basal cell carcinoma 0 %" in page
    mel = 0.9 * 0.04 / (0.9 * 0.04 + 0.1 * 0.96)
    preset = lesion_result(lesion, ["a.jpg"], engine, *Ask(prevalence="screening").shares(engine.info))
    assert "Shares at a screening prevalence: melanoma 1.76 %, " in preset.replace("\N{NO-BREAK SPACE}", " ")
    assert "Shares at" not in lesion_result(lesion, ["a.jpg"], engine, *Ask().shares(engine.info))
    assert page.count(f"{100 * mel:.0f} %") >= 2  # the table, and the sum of the malignant diagnoses
    assert "Malignant and pre-malignant diagnoses, at equal prevalence: 90 %" in page  # what the decision uses
    assert "Decision and differential do not depend on the selected prevalence." in page


def test_the_page_states_the_prevalence_of_triage(model: Path) -> None:
    triage = with_info(model).info.triage
    assert triage is not None and triage.prevalence is not None
    shares = dict(zip(DX, (0.03, 0.05, 0.1, 0.01, 0.1, 0.7, 0.01), strict=True))
    engine = with_info(model, triage=triage.model_copy(update={"prevalence": shares, "threshold": 0.5}))
    one = explanation(engine, 0.9, 0.1)
    one = one._replace(verdict=decide(one.probabilities, engine.info))
    lesion = combine_explanations([one], engine.info)
    mel, nv = 0.9 * shares["mel"], 0.1 * shares["nv"]
    assert lesion.verdict.refer is (mel / (mel + nv) >= 0.5)
    page = result_page(engine, lesion, "a.jpg").replace("\N{NO-BREAK SPACE}", " ")
    said = " ".join(re.sub("<[^>]*>", " ", unescape(page)).split())
    line = f"Malignancy score {100 * mel / (mel + nv):.0f} of 100, mostly melanoma (referral from 50)."
    assert line in said
    assert (
        "in per cent, of the malignant and pre-malignant diagnoses together, at the training data’s prevalence." in said
    )
    assert "Malignant and pre-malignant diagnoses together at equal prevalence: 90 %." in said
    assert "triage always uses the training data’s prevalence, and the differential equal prevalence" in " ".join(
        unescape(page).split()
    )
    chosen = lesion_result(lesion, ["a.jpg"], engine, "own", np.array(list(shares.values())))
    assert line in unescape(chosen)
    captions = {
        True: "The differential always uses equal prevalence, triage the training data’s.",
        False: "The differential always uses equal prevalence, triage too.",
    }
    for stated, caption in captions.items():
        asked = with_info(model, triage=triage.model_copy(update={"prevalence": shares if stated else None}))
        table = " ".join(unescape(_table(asked, [], 0, 0, "equal", None)).split())
        assert f"{caption} Triage refers from a malignancy score of {100 * triage.threshold:.2f} of 100 on." in table
    full = engine.answer(["a.jpg"], lesion, "equal", None)
    assert full["malignancy_score"] == pytest.approx(100 * mel / (mel + nv), rel=1e-6)
    answer = full["thresholds"]
    assert answer["triage"] == 0.5 and answer["triage_prevalence"] == pytest.approx(shares)


def test_the_table_ranks_by_decision_and_then_by_score(model: Path) -> None:
    engine = with_info(model)
    assert engine.info.triage is not None
    engine = with_info(model, triage=engine.info.triage.model_copy(update={"threshold": 0.25}))
    p = np.full(7, 1 / 7)

    def row(name: str, refer: bool, score: float, malignant: tuple[str, ...] = ()) -> Row:
        return Row(name, Lesion((), p, Verdict(None, ("nv", *malignant), refer, malignant, score)), "")

    in_order = [
        row("a", True, 99.97), row("b", True, 60.04), row("c", True, 25.03), row("d", False, 24.97, ("mel",)),
        row("e", False, 2, ("mel",)), row("f", False, 24.5), row("g", False, 0.0008),
        Row("h", Lesion((), None, Verdict("it is blurred", (), None)), ""), Row("i", None, "i is no image"),
    ]  # fmt: skip
    table = _table(engine, in_order, 9, 0, "equal", None)
    ranks = [float(rank) for rank in re.findall(r'data-rank="([^"]*)"', table)]
    assert len(ranks) == 9 and ranks[:8] == sorted(set(ranks)) and ranks[8] == ranks[7]
    shown = [unescape(text) for text in re.findall(r"<small>malignancy score ([^<]*)</small>", table)]
    expected = ["> 99.9", "60.0", "25.03", "24.97", "2.0", "24.5", "< 0.1"]  # with decimals next to the threshold
    assert [text.replace("\N{NO-BREAK SPACE}", " ") for text in shown] == expected


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


def test_presets_and_own_shares(model: Path) -> None:
    info = with_info(model).info
    assert Ask().shares(info) == ("equal", None)
    for preset in presets(info)[1:]:
        key, shares = Ask(prevalence=preset.key).shares(info)
        assert key == preset.key and shares is not None and shares.sum() == pytest.approx(1) and (shares > 0).all()
    screening, specialist = (Ask(prevalence=key).shares(info)[1] for key in ("screening", "specialist"))
    assert screening is not None and specialist is not None
    assert screening[0] == pytest.approx(0.0176, abs=1e-4) and specialist[1] == pytest.approx(6705 / 10015)
    assert screening[1:] / screening[1] == pytest.approx(specialist[1:] / specialist[1])
    own = "mel=0.05,nv=0.8,bcc=0.05,akiec=0.02,bkl=0.06,df=0.01,vasc=0.01"
    key, shares = Ask(prevalence=own).shares(info)
    assert key == "own" and shares is not None and shares[1] == pytest.approx(0.8)
    for text, wrong in (
        ("mel=0.5,nv=0.5", "prevalence takes equal, training"),
        (own.replace("0.8", "0.9"), "sum to 1, not to 1.1"),
        (own.replace("0.05,nv", "-0.05,nv"), "at least 0"),
        (own.replace("0.8", "x"), "must be a number"),
        ("x" * 5000, "prevalence takes equal"),
    ):
        with pytest.raises(UserError, match=wrong) as raised:
            Ask(prevalence=text).shares(info)
        assert "--" not in str(raised.value) and len(str(raised.value)) <= 300


def test_a_call_is_checked() -> None:
    assert parse("") == parse(None) == parse("{}") == Ask()
    ask = parse(
        '{"call": 3, "prevalence": "training", "pictures": [{"turn": 1, "crop": [1, 2, 30, 40]}, {"preview": true}]}'
    )
    assert (
        ask.picture(0).edit == Edit(1, (1, 2, 30, 40)) and ask.picture(1).preview and ask.picture(9).edit == UNCHANGED
    )
    for text in (
        "mrs-smith", "[]", "1", 1, "{" * 100_000, '{"call": "smith"}', '{"call": -1}', '{"unknown": 1}',
        '{"call": true}', '{"pictures": [{"turn": 4}]}', '{"pictures": [{"crop": [1, 2, 3]}]}',
        '{"pictures": [{"crop": [1, 2, 3.5, 4]}]}',
        '{"pictures": [{"crop": ["/etc/passwd", 2, 3, 4]}]}', '{"pictures": [' + "{}," * 1000 + "{}]}",
    ):  # fmt: skip
        with pytest.raises(UserError, match=r"^the request is not valid: reload the page$"):
            parse(text)


def test_the_decision_in_words() -> None:
    assert [decision_of(verdict).label for verdict in (
        Verdict(None, ("mel",), True, ("mel",)), Verdict(None, ("nv", "mel"), False, ("mel",)),
        Verdict(None, ("nv",), False), Verdict("it is blurred", (), None), Verdict(None, ("nv",), None),
    )] == ["Refer", "Malignancy not ruled out", "No reason to refer seen", "Cannot be judged", ""]  # fmt: skip


def test_a_malignant_class_in_the_differential_does_not_reassure(model: Path) -> None:
    engine = with_info(model)
    assert engine.info.triage is not None
    equal = engine.info.triage.model_copy(update={"threshold": 0.9, "prevalence": None})
    engine = with_info(model, triage=equal, thresholds=(0.2,) * 7)
    one = explanation(engine, 0.3, 0.7)
    one = one._replace(verdict=decide(one.probabilities, engine.info))
    assert one.verdict.triage == "no reason to refer seen" and one.verdict.not_ruled_out == ("mel",)
    page = result_page(engine, combine_explanations([one], engine.info), "a.jpg")
    assert "No reason to refer" not in page and "no reason to refer" not in page
    assert "The differential includes <strong>melanoma</strong>." in page
    assert re.search(r'<h2[^>]*class="decision open"><span[^>]*>◆</span> Malignancy not ruled out</h2>', page)
    engine = with_info(model, triage=engine.info.triage, thresholds=(0.0,) * 7)
    one = one._replace(verdict=decide(one.probabilities, engine.info))
    assert one.verdict.not_ruled_out and set(one.verdict.not_ruled_out) == {"mel", "bcc", "akiec"}
    page = result_page(engine, combine_explanations([one], engine.info), "a.jpg")
    said = " ".join(re.sub("<[^>]*>", "", page.partition('<p class="why">')[2].partition("</p>")[0]).split())
    assert re.fullmatch(
        r"The differential includes all malignant and pre-malignant diagnoses: together 30 % \(referral from 90 %\)\.",
        said,
    )


def test_every_refusal_has_its_advice() -> None:
    assert set(ADVICE) == set(RULES)
    for name, (_, reason, _) in RULES.items():
        other = NOT_DERMOSCOPIC.get(name, reason)
        assert (advice(other, False, "leaf") != "Use another picture.") == (name != "photograph")
        assert advice(reason, True, "lesion").endswith(".") and "lesion" not in advice(reason, False, "leaf")
        assert advice(reason, True, "lesion") != "Use another picture."
    assert "original" in advice("it is too small: 9 × 9 pixels, and the shorter side must have 24", True, "lesion")


def test_the_examples_are_drawings_of_each_diagnosis(model: Path) -> None:
    assert [example.file for example in drawn_examples()] == [f"drawn-{code}.jpg" for code in DX]
    page = fixed_part("view", with_info(model))
    assert page.count("data-example=") == 7 and "not a photograph" in page


def test_a_crop_is_applied_to_the_original_pixels(model: Path) -> None:
    engine = with_info(model)
    pixels = draw_lesion("mel", np.random.default_rng(1), np.random.default_rng(2), 300, 400)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    picture, size, framing = EnginePicture("a.png", buffer.getvalue()), engine.info.size, engine.classifier.framing
    plain, box = engine.examine(picture), (40, 30, 340, 280)
    assert np.array_equal(plain.explanation.pixels, engine.explain(picture).pixels) and not plain.preview
    cropped = engine.examine(picture, Edit(0, box)).explanation
    part = Image.fromarray(pixels[30:280, 40:340])
    assert cropped.box == box and np.array_equal(cropped.pixels, network_pixels(part, size, framing))
    turned = engine.examine(picture, Edit(1, (10, 20, 290, 380)), preview=True)
    part = Image.fromarray(np.rot90(pixels, -1)[20:380, 10:290].copy())
    assert turned.explanation.size == (300, 400) and Image.open(io.BytesIO(turned.preview)).size == (300, 400)
    assert np.array_equal(turned.explanation.pixels, network_pixels(part, size, framing))
    for outside in ((-1, 0, 50, 50), (0, 0, 401, 50), (50, 50, 50, 90), (90, 0, 50, 50)):
        with pytest.raises(UserError, match="outside the picture"):
            engine.examine(picture, Edit(0, outside))
    with pytest.raises(UserError, match="too small or too narrow"):
        engine.examine(picture, Edit(0, (0, 0, 300, 20)))


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


def test_a_class_outside_the_differential_is_named() -> None:
    inside = [True, False, True, False, False]
    assert outside_note(np.array([0.6, 0.25, 0.1, 0.05, 0]), NAMES, inside) == ""
    sentence = outside_note(np.array([0.3, 0.6, 0.1, 0, 0]), NAMES, inside)
    assert f"{NAMES[1]} is most probable" in sentence and "not in the differential" in sentence
    assert [percent(p).replace("\N{NO-BREAK SPACE}", " ") for p in (0.001, 0.5, 0.999)] == ["< 1 %", "50 %", "> 99 %"]


def test_the_evidence_of_each_class() -> None:
    activation = np.full((2, 4, 4), -1.0, np.float32)
    activation[0, 0, 3], activation[0, 1, 1] = 2, 1
    evidence = relative_evidence(activation)
    assert evidence[0, 0, 3] == 255 and evidence[0, 1, 1] == 128 and (evidence > 0).sum() == 2
    sent = encoded(activation)
    assert sent["shape"] == [2, 4, 4] and base64.b64decode(str(sent["bytes"])) == evidence.tobytes()
    lightness = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in ramp()]
    assert lightness == sorted(lightness)  # so the scale can be read without colour vision


def test_the_part_that_the_network_sees() -> None:
    assert seen_part(Box(0, 0, 400, 300), "square") == (50, 0, 350, 300)
    assert seen_part(Box(10, 20, 110, 320), "square") == (10, 120, 110, 220)
    assert seen_part(Box(0, 0, 400, 300), "whole") == (0, 0, 400, 300)
    assert seen_part(Box(0, 0, 900, 300), "whole") == (150, 0, 750, 300)


def test_a_newer_call_replaces_the_running_one() -> None:
    calls = LatestCalls()
    order: list[Any] = []

    def newer() -> None:
        with calls.turn("page", 2, ["b"]) as (superseded, abandoned):
            order.append(("newer", superseded(), abandoned))

    with calls.turn("page", 1, ["a", "b"]) as (superseded, abandoned):
        assert not superseded() and abandoned == []
        calls.announce("page", 2)
        assert superseded()
        calls.announce("another page", 3)
        thread = threading.Thread(target=newer)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()  # it waits
        order.append("older")
    thread.join()
    assert order == ["older", ("newer", False, ["a"])]
    with calls.turn("page", 1, []) as (superseded, abandoned):  # nothing is remembered once no call runs or waits
        assert not superseded() and abandoned == []


def test_a_call_that_waits_in_a_queue_learns_what_the_older_one_left() -> None:
    calls = LatestCalls()
    with calls.turn("page", 1, ["a", "b"]) as (superseded, _):
        calls.announce("page", 2)
        assert superseded()
    with calls.turn("page", 2, ["b"]) as (superseded, abandoned):
        assert not superseded() and abandoned == ["a"]
        calls.announce("page", 3)
    assert calls.close("page") == ["b"] and calls.close("page") == ()
    with calls.turn("page", 4, ["c"]):
        assert calls.close("page") == ()  # the running call still uses them
    with calls.turn("page", 5, []) as (_, abandoned):
        assert abandoned == []
