"""The page in a real browser, wide and light.

With DERMRW_ALL_LOOKS=1 (`make test-all`) also narrow and dark.
"""

import base64
import csv
import io
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import draw
from PIL import Image
from tools.serving import Server, Visit

from app.decision import DECISIONS, decision_of
from app.engine import MAX_PICTURES
from app.presets import presets
from app.render import percent
from dermrw.decisions.prevalence import at_prevalence
from dermrw.inference.classifier import Classifier

pytestmark = pytest.mark.slow
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
LOOKS = [(size, theme) for size in (WIDE, NARROW) for theme in ("light", "dark")]
MOST_WORDS = 60  # of an answer for one picture with five diagnoses, before anything is unfolded
MOST_WORDS_MORE = 7  # for each further diagnosis


@pytest.fixture(
    params=LOOKS if os.environ.get("DERMRW_ALL_LOOKS") else LOOKS[:1],
    ids=lambda look: f"{look[0]['width']}-{look[1]}",
)
def visit(request: Any, server: Server, browser: Any) -> Any:
    """Opens the page; checks at the end that it had no errors and sent no request to another server."""
    size, theme = request.param
    opened = Visit(browser, server.url, viewport=size, color_scheme=theme)
    yield opened
    assert opened.errors == []
    assert {url.split("/")[2] for url in opened.asked if url.startswith(("http", "ws"))} == {server.url.split("/")[2]}
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    opened.context.close()


def unfolded_rows(visit: Visit) -> dict[str, str]:
    """Returns the probability of each class in the answer."""
    visit.page.evaluate("for (const d of document.querySelectorAll('#result details')) d.open = true")
    rows = visit.page.locator("#result tr").all()
    return {row.locator("th").inner_text().split(" (pre)")[0].strip(): row.inner_text().split("\t")[-1] for row in rows}


def test_a_lesion(visit: Visit, server: Server, lesion: Path, model: Path) -> None:
    before = visit.page.inner_text("body")
    assert "not a medical device" in before and "drawn by dermrw" in before and "refuses images" in before
    place = visit.page.locator("#frame").bounding_box()
    text = visit.give(lesion)
    listed = visit.page.locator("#result .answer > table tr").count()
    most = MOST_WORDS + MOST_WORDS_MORE * max(0, listed - 5)
    assert listed >= 1 and len(text.split()) + len(visit.page.inner_text("#caption").split()) <= most, text
    # picture and decision on the first screen, nothing has moved, and the focus is on the answer
    height = visit.page.viewport_size["height"]
    for selector in ("#picture", "#result h2", "#result .why"):
        box = visit.page.locator(selector).bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= height, selector
    assert visit.page.evaluate("scrollY") == 0 and visit.page.locator("#frame").bounding_box() == place
    assert visit.page.evaluate("document.activeElement.matches('#result h2')")
    # the original at its own resolution, read by the browser
    shown = visit.page.evaluate(
        "(() => { const i = document.querySelector('#picture'); return [i.src, i.naturalWidth]; })()"
    )
    assert shown[0].startswith("blob:") and shown[1] == Image.open(lesion).width
    classifier = Classifier(model)
    expected = classifier(lesion)[0]
    verdict = classifier.explain(lesion).verdict
    differential = text.partition("Other diagnoses")[0]
    for code, name in zip(classifier.info.codes, classifier.info.names, strict=True):
        assert (name in differential) == (code in verdict.classes)
    labels = {"refer": "▲ Refer", "no reason to refer seen": "○ No reason to refer seen"}
    if verdict.not_ruled_out:
        labels["no reason to refer seen"] = "◆ Malignancy not ruled out"
    assert verdict.refused is None and text.startswith(labels[verdict.triage])
    shown_rows = unfolded_rows(visit)
    assert {name: percent(float(p)) for name, p in zip(classifier.info.names, expected, strict=True)} == shown_rows
    assert "benign" not in visit.page.inner_text("body").lower()
    assert server.files() == []  # while the page still shows the answer


def test_the_heat_map_lies_where_the_evidence_is(visit: Visit, lesion: Path, model: Path) -> None:
    visit.give(lesion)
    page, explained = visit.page, Classifier(model).explain(lesion)
    assert not page.is_visible("#stage .heat")
    for index in (0, 3):
        page.select_option("#heat-class", str(index))
        page.wait_for_selector("#stage .heat")
        opacity, width = page.evaluate(
            """() => {
                const canvas = document.querySelector("#stage .heat"), context = canvas.getContext("2d");
                const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
                return [[...data].filter((_, i) => i % 4 === 3), canvas.width];
            }"""
        )
        drawn = np.array(opacity).reshape(-1, width) / 255
        positive = np.maximum(explained.activation_map[index], 0)
        side = (width, drawn.shape[0])
        expected = Image.fromarray(positive / max(positive.max(), 1e-9)).resize(side, Image.Resampling.BICUBIC)
        assert np.abs(drawn - np.asarray(expected).clip(0, 1)).max() < 0.02
    # it lies on the part that the model saw: the middle square of 400 × 300
    heat, whole = (page.locator(selector).bounding_box() for selector in ("#stage .heat", "#picture"))
    assert heat["width"] == pytest.approx(0.75 * whole["width"], abs=1) and heat["height"] == pytest.approx(
        whole["height"]
    )
    page.locator("#heat-opacity").fill("30")
    assert page.evaluate("document.querySelector('#stage .heat').style.opacity") == "0.3"


def test_zoom_by_keyboard(visit: Visit, lesion: Path) -> None:
    visit.give(lesion)
    width = visit.page.locator("#picture").bounding_box()["width"]
    visit.page.focus("#stage")
    for key, factor in (("+", 1.5), ("ArrowLeft", 1.5), ("+", 2.25), ("-", 1.5), ("0", 1)):
        visit.page.keyboard.press(key)
        assert visit.page.locator("#picture").bounding_box()["width"] == pytest.approx(factor * width, abs=1)


def test_another_prevalence_and_another_picture_of_it(visit: Visit, lesion: Path, tmp_path: Path, model: Path) -> None:
    visit.give(lesion)
    page, classifier = visit.page, Classifier(model)
    p = classifier(lesion).astype(float)
    page.get_by_label("Reference").fill("patient 7")
    assert page.input_value("#one-prevalence select") == "equal"
    for preset in presets(classifier.info)[1:]:
        assert preset.shares is not None
        page.select_option("#one-prevalence select", preset.key)
        page.wait_for_selector(f"#result caption:has-text('{preset.phrase}')")
        expected = at_prevalence(p, preset.shares)[0]
        assert unfolded_rows(visit) == {n: percent(q) for n, q in zip(classifier.info.names, expected, strict=True)}
        assert "Decision and differential do not depend on the selected prevalence." in page.inner_text("#result")
        assert preset.source in page.text_content("#one-prevalence .source")
    # a slider keeps the sum at 100 %
    page.click("#one-prevalence summary")
    slider = page.locator("#one-prevalence [data-share='0']")
    slider.focus()
    for _ in range(3):
        slider.press("ArrowRight")
    page.wait_for_selector("#result caption:has-text('your own prevalence')")
    shares = page.evaluate(
        "[...document.querySelectorAll('#one-prevalence output')].map((o) => parseFloat(o.textContent))"
    )
    assert sum(shares) == pytest.approx(100, abs=0.35)
    assert page.input_value("#result .remark input") == "patient 7"
    # another picture of the same lesion is an action of its own
    visit.add(draw(tmp_path / "second.png", 9))
    assert "2 images, combined as one lesion" in page.inner_text("#result") and page.locator("#thumbs li").count() == 2
    assert page.input_value("#result .remark input") == ""
    page.click("#thumbs li:nth-child(1) .remove")
    page.wait_for_selector("#result .answer")
    assert "combined" not in page.inner_text("#result") and page.locator("#thumbs li").count() == 0
    page.click("button[role=tab]:has-text('Many images')")  # which has the same prevalence
    page.wait_for_selector("#many-prevalence select")
    assert page.input_value("#many-prevalence select") == "own"


def test_the_next_lesion(visit: Visit, lesion: Path, tmp_path: Path) -> None:
    page, first = visit.page, visit.give(lesion)
    page.keyboard.press("Alt+KeyN")
    assert page.is_visible("#upload") and page.inner_text("#result") == "" and page.is_disabled("#add")
    assert page.evaluate("document.activeElement.id") == "one-input"
    visit.give(draw(tmp_path / "second.png", 9))
    assert "combined" not in page.inner_text("#result") and page.locator("#recent li").count() == 1
    page.click("#recent li button")
    assert page.inner_text("#result") == first and page.locator("#recent li").count() == 1
    assert page.get_attribute("#picture", "alt") == lesion.name
    assert page.evaluate("Object.keys(localStorage).length + Object.keys(sessionStorage).length") == 0
    page.reload()
    page.wait_for_selector("html[data-ready]", state="attached")
    assert page.locator("#recent li").count() == 0


def test_a_crop_and_a_turn_by_keyboard(visit: Visit, lesion: Path, model: Path, server: Server) -> None:
    visit.give(lesion)
    page, classifier = visit.page, Classifier(model)
    page.click("#crop")
    page.click("[aria-label='Rotate right']")
    turned = Image.open(lesion).height
    page.wait_for_function(f"document.querySelector('#picture').naturalWidth === {turned}")
    for edge, value in enumerate((20, 40, 280, 360)):
        page.fill(f"[data-edge='{edge}']", str(value))
    page.focus("#stage .cropping")
    call = page.get_attribute("#result .answer", "data-call")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"#result .answer:not([data-call='{call}'])")
    upright = Image.open(lesion).transpose(Image.Transpose.ROTATE_270)
    expected = classifier.explain(upright.crop((20, 40, 280, 360)))
    if expected.verdict.refused:
        assert "Cannot be judged" in page.inner_text("#result")
    else:
        p = {name: percent(float(q)) for name, q in zip(classifier.info.names, expected.probabilities, strict=True)}
        assert unfolded_rows(visit) == p
    assert page.evaluate("document.querySelector('#picture').naturalWidth") == upright.width
    assert "your crop" in page.inner_text("#caption") and server.files() == []
    page.click("#crop")
    page.focus("#stage .cropping")
    page.keyboard.press("Shift+ArrowLeft")
    assert page.input_value("[data-edge='2']") == "276"
    page.keyboard.press("Escape")
    assert page.is_visible("#crop") and "your crop" in page.inner_text("#caption")


def test_an_example_and_a_file_that_the_browser_cannot_show(visit: Visit, lesion: Path, tmp_path: Path) -> None:
    visit.page.click("[data-example='drawn-nv.jpg']")
    visit.page.wait_for_selector("#result .answer")
    assert visit.page.get_attribute("#picture", "alt") == "drawn-nv.jpg"
    Image.open(lesion).save(tmp_path / "lesion.tif")
    visit.give(tmp_path / "lesion.tif")
    assert visit.page.get_attribute("#picture", "src").startswith("data:image/jpeg")
    assert visit.page.evaluate("document.querySelector('#picture').naturalWidth") == Image.open(lesion).width


def test_many_images(visit: Visit, server: Server, lesion: Path, tmp_path: Path, model: Path) -> None:
    page = visit.page
    page.click("button[role=tab]:has-text('Many images')")
    dark = draw(tmp_path / "dark.png")
    Image.open(dark).point(lambda v: v // 30).save(dark)
    (tmp_path / "letter.jpg").write_text("Dear colleague")
    given = [lesion, draw(tmp_path / "=two.png", 9), dark, tmp_path / "letter.jpg"]
    text = visit.give(*given, selector="a[download]", place="many", result="table")
    assert text.startswith("4 images") and "2 not judged" in text and server.files() == []
    address = page.get_attribute("#table a[download]", "href")
    assert address is not None
    rows = list(csv.DictReader(io.StringIO(base64.b64decode(address.partition(",")[2]).decode("utf-8-sig"))))
    classifier = Classifier(model)
    assert [row["image"] for row in rows] == ["mrs-smith.jpg", "'=two.png", "dark.png", "letter.jpg"]
    for row, path in zip(rows[:2], given, strict=False):
        assert [float(row[c]) for c in classifier.info.columns] == classifier(path)[0].astype(float).tolist()
        verdict = classifier.explain(path).verdict
        assert (row["set"], row["triage"]) == (" ".join(verdict.classes), verdict.triage)
        assert float(row["malignancy_score"]) == verdict.malignancy_score
    assert rows[2]["malignancy_score"] == "" == rows[3]["malignancy_score"]
    assert "dark" in rows[2]["refused"] and "not an image" in rows[3]["refused"] and rows[3]["MEL"] == ""
    with page.expect_download() as download:
        page.click("#table a[download]")
    assert re.fullmatch(r"dermrw-20[0-9-]{8}\.csv", download.value.suggested_filename)
    # thumbnails, order and filter
    assert page.locator("#table .opener img").count() == 3
    page.select_option("#filter-decision", "refused")
    assert page.locator("#table tbody tr:visible").count() == 2 and "2 of 4" in page.inner_text("#filter-count")
    page.select_option("#filter-decision", "")
    if page.is_visible("#table thead button"):
        for order, name in (("ascending", "=two.png"), ("descending", "mrs-smith.jpg")):
            page.click("#table [data-sort=name]")
            assert page.inner_text("#table tbody tr:first-child bdi") == name
            assert page.get_attribute("#table th:has([data-sort=name])", "aria-sort") == order
        page.click("#table [data-sort=rank]")  # within a decision, the highest malignancy score is the first
        verdicts = {path.name: classifier.explain(path).verdict for path in given[:2]}
        order_of = {n: (DECISIONS.index(decision_of(v)), -(v.malignancy_score or 0)) for n, v in verdicts.items()}
        expected = sorted(verdicts, key=lambda name: order_of[name])
        assert page.locator("#table tbody bdi").all_inner_texts() == [*expected, "dark.png", "letter.jpg"]
    # on a narrow screen, a field sorts instead of the headings
    narrow = page.viewport_size
    assert narrow is not None
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.is_visible("#sort-rows")
    page.select_option("#sort-rows", "name")
    assert page.text_content("#table tbody tr:first-child bdi") == "=two.png"
    page.select_option("#sort-rows", "")
    assert page.text_content("#table tbody tr:first-child bdi") == "mrs-smith.jpg"
    page.set_viewport_size({"width": 1000, "height": 844})
    assert not page.is_visible("#sort-rows")
    page.set_viewport_size(narrow)
    # another prevalence and another image need no new upload of the first ones
    page.select_option("#many-prevalence select", "training")
    page.wait_for_selector("#table caption:has-text('at the training data’s prevalence')")
    labels = tmp_path / "labels.csv"
    labels.write_text("image,label\nmrs-smith.jpg,melanoma\nthird,mel\nabsent,nv\n")
    page.set_input_files("#many-input", [str(labels), str(draw(tmp_path / "third.png", 5))])
    page.wait_for_selector("#table .score h3:has-text('Score on 2 labelled images')")
    assert "5 images" in page.inner_text("#table h2") and "2 not judged" in page.inner_text("#table h2")
    assert "1 image in labels.csv was not uploaded" in page.inner_text("#table") and server.files() == []
    # a row opens the answer
    page.click("#table .opener:has-text('third.png')")
    page.wait_for_selector("#result .answer")
    assert page.get_attribute("#picture", "alt") == "third.png" and page.is_visible("#result h2")
    page.click("button[role=tab]:has-text('Many images')")
    page.click("#many-clear")
    page.wait_for_selector("#table .answer", state="detached")


def test_a_file_that_is_no_image_gives_an_error_message(
    visit: Visit, server: Server, tmp_path: Path, lesion: Path
) -> None:
    (tmp_path / "letter<b>.jpg").write_text("Dear colleague")
    text = visit.give(tmp_path / "letter<b>.jpg", selector=".fault")
    # Gradio removes the brackets from the file's name; the rest stays as it is
    assert "\nletterb.jpg is not an image in a format that is known" in text and "Traceback" not in text
    (tmp_path / "cut.jpg").write_bytes(lesion.read_bytes()[:2000])
    visit.clear()
    assert "damaged" in visit.give(tmp_path / "cut.jpg", selector=".fault")
    assert str(server.temporary) not in visit.page.inner_text("body")


def test_by_keyboard_and_by_pasting(visit: Visit, lesion: Path) -> None:
    page, reached = visit.page, []
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("""() => {
            const e = document.activeElement;
            return [e.getAttribute('role'), e.closest('#upload') !== null, e.getAttribute('aria-label') ?? e.innerText];
        }""")
        )
    assert any(role == "tab" for role, _, _ in reached)
    assert any(inside for _, inside, _ in reached), reached
    page.evaluate(
        """(content) => {
            const data = new DataTransfer();
            const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
            data.items.add(new File([bytes], "pasted.jpg", {type: "image/jpeg"}));
            dispatchEvent(new ClipboardEvent("paste", {clipboardData: data}));
        }""",
        base64.b64encode(lesion.read_bytes()).decode(),
    )
    page.wait_for_selector("#result .answer")
    assert page.get_attribute("#picture", "alt") == "pasted.jpg"


def test_a_dropped_folder_gives_its_files(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "folder/inner").mkdir(parents=True)
    draw(tmp_path / "folder/inner/dropped.png", 9)
    (tmp_path / "folder/.hidden").write_text("x")
    box = visit.page.locator("#upload").bounding_box()
    where = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    data = {"items": [], "files": [str(tmp_path / "folder")], "dragOperationsMask": 1}
    session = visit.context.new_cdp_session(visit.page)
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, **where, "data": data})
    visit.page.wait_for_selector("#result .answer")
    assert (
        visit.page.get_attribute("#picture", "alt") == "dropped.png" and visit.page.locator("#thumbs li").count() == 0
    )


@pytest.mark.parametrize("count", [1, 3, MAX_PICTURES])
def test_the_report_is_one_page(count: int, visit: Visit, lesion: Path, tmp_path: Path) -> None:
    visit.give(lesion, *(draw(tmp_path / f"a long name of a picture, number {n}.png", n) for n in range(1, count)))
    visit.page.get_by_label("Reference").fill("patient 7")
    visit.page.emulate_media(media="print")
    visit.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert visit.page.locator("#result .views figure").count() == count
    assert visit.page.is_visible(".report-head") and not visit.page.is_visible("#upload")
    assert visit.page.is_visible("#result .basis p") and visit.page.is_visible("#result .views img")
    assert len(re.findall(rb"/Type\s*/Page\b", visit.page.pdf(prefer_css_page_size=True))) == 1
    assert not any("patient" in (url or "") for url in visit.asked)


def test_accessible(visit: Visit, lesion: Path, tmp_path: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()

    def check() -> None:
        visit.page.wait_for_timeout(500)
        options = {"runOnly": ["wcag2a", "wcag2aa", "wcag21aa"]}
        violations = axe.run(visit.page, options=options).response["violations"]
        assert [(rule["id"], [node["html"][:150] for node in rule["nodes"]]) for rule in violations] == []

    check()
    visit.give(lesion, draw(tmp_path / "second.png", 9))
    visit.page.select_option("#heat-class", "0")
    visit.page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    check()
    visit.page.click("#crop")
    check()
    visit.page.click("#crop-cancel")
    visit.page.click("#new")
    check()
    visit.page.click("button[role=tab]:has-text('Many images')")
    visit.give(lesion, selector="a[download]", place="many", result="table")
    check()
