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

from app.heatmap import SIDE
from app.page import MAX_PICTURES
from app.render import percent
from dermrw.decisions.prevalence import at_prevalence
from dermrw.inference.classifier import Classifier

pytestmark = pytest.mark.slow
WIDE, NARROW = {"width": 1180, "height": 900}, {"width": 360, "height": 780}
LOOKS = [(size, theme) for size in (WIDE, NARROW) for theme in ("light", "dark")]
SHOTS = os.environ.get("DERMRW_SCREENSHOTS")


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


def test_a_lesion(visit: Visit, server: Server, lesion: Path, model: Path) -> None:
    before = visit.page.inner_text("body")
    assert "not a medical device" in before and "drawn by dermrw" in before and "refuses images" in before
    text = visit.give(lesion)
    classifier = Classifier(model)
    expected = classifier(lesion)[0]
    for name, p in zip(classifier.info.names, expected, strict=True):
        assert percent(float(p)) in visit.page.inner_text(f"#result tr:has(th:has-text('{name}'))")
    # referral and differential come before the probabilities, and nothing is called benign
    assert text.index("The differential lists") < text.index("Probability at equal prevalence")
    verdict = classifier.explain(lesion).verdict
    assert verdict.refused is None and text.lower().startswith(verdict.triage)
    for code, name in zip(classifier.info.codes, classifier.info.names, strict=True):
        assert (name in text[: text.index("The differential lists")]) == (code in verdict.classes)
    assert "benign" not in visit.page.inner_text("body").lower()
    pictures = visit.page.eval_on_selector_all(
        "#result img", "all => all.map(i => [i.src.slice(0, 15), i.naturalWidth])"
    )
    assert pictures == [["data:image/png;", SIDE]] * 2
    assert server.files() == []  # while the page still shows the answer
    if SHOTS:
        visit.page.wait_for_timeout(1500)
        visit.page.screenshot(path=Path(SHOTS) / "demo.png", full_page=True)


def test_another_prevalence_and_another_picture_of_it(visit: Visit, lesion: Path, tmp_path: Path, model: Path) -> None:
    visit.give(lesion)
    classifier = Classifier(model)
    p, share = classifier(lesion).astype(float), classifier.info.prevalence
    training = np.array([share[code] for code in classifier.info.codes]) / sum(share.values())
    visit.page.click("#one-prevalence label:has-text('training data')")
    visit.page.wait_for_selector("#result caption:has-text('at the training data’s prevalence')")
    for name, q in zip(classifier.info.names, at_prevalence(p, training)[0], strict=True):
        assert percent(q) in visit.page.inner_text(f"#result tr:has(th:has-text('{name}'))")
    visit.page.click("#one-prevalence label:has-text('my clinic')")
    visit.page.wait_for_selector("#result .fault:has-text('enter the percentage')")
    assert visit.page.locator("#result .remark").count() == 0
    for percentage, name in zip((90, 4, 1, 1, 1, 1, 1), reversed(classifier.info.names), strict=True):
        field = visit.page.get_by_label(f"{name}, %").first
        field.fill(str(percentage))
        field.blur()
    visit.page.wait_for_selector("#result .fault:has-text('must sum to 100 %, not to 99 %')")
    field.fill("2")
    field.blur()
    visit.page.wait_for_selector("#result caption:has-text('vascular lesion 90')")
    visit.page.get_by_label("Reference").fill("patient 7")
    field.fill("3")
    field.blur()
    visit.page.wait_for_selector("#result .fault:has-text('must sum to 100 %')")
    visit.page.click("#one-prevalence label:has-text('equally often')")
    visit.page.wait_for_selector("#result caption:has-text('at equal prevalence')")
    assert visit.page.input_value("#result .remark input") == "patient 7"
    visit.page.set_input_files("#upload input[type=file]", str(draw(tmp_path / "second.png", 9)))
    visit.page.wait_for_selector("#result figcaption:has-text('second.png')")
    assert visit.page.locator("#result .views img").count() == 4
    assert "2 images, combined as one lesion" in visit.page.inner_text("#result")
    assert visit.page.input_value("#result .remark input") == ""


def test_many_images(visit: Visit, server: Server, lesion: Path, tmp_path: Path, model: Path) -> None:
    visit.page.click("button[role=tab]:has-text('Many images')")
    dark = draw(tmp_path / "dark.png")
    Image.open(dark).point(lambda v: v // 30).save(dark)
    (tmp_path / "letter.jpg").write_text("Dear colleague")
    given = [lesion, draw(tmp_path / "=two.png", 9), dark, tmp_path / "letter.jpg"]
    text = visit.give(*given, selector="a[download]", place="many", result="table")
    assert text.startswith("4 images") and "2 not classified" in text and server.files() == []
    address = visit.page.get_attribute("#table a[download]", "href")
    assert address is not None
    rows = list(csv.DictReader(io.StringIO(base64.b64decode(address.partition(",")[2]).decode("utf-8-sig"))))
    classifier = Classifier(model)
    assert [row["image"] for row in rows] == ["mrs-smith.jpg", "'=two.png", "dark.png", "letter.jpg"]
    for row, path in zip(rows[:2], given, strict=False):
        assert [float(row[c]) for c in classifier.info.columns] == classifier(path)[0].astype(float).tolist()
        verdict = classifier.explain(path).verdict
        assert (row["set"], row["triage"]) == (" ".join(verdict.classes), verdict.triage)
    assert "dark" in rows[2]["refused"] and "not an image" in rows[3]["refused"] and rows[3]["MEL"] == ""
    with visit.page.expect_download() as download:
        visit.page.click("#table a[download]")
    assert re.fullmatch(r"dermrw-20[0-9-]{8}\.csv", download.value.suggested_filename)
    # another prevalence and another image need no new upload of the first ones
    visit.page.click("#many-prevalence label:has-text('training data')")
    visit.page.wait_for_selector("#table caption:has-text('at the training data’s prevalence')")
    labels = tmp_path / "labels.csv"
    labels.write_text("image,label\nmrs-smith.jpg,melanoma\nthird,mel\nabsent,nv\n")
    visit.page.set_input_files("#many input[type=file]", [str(draw(tmp_path / "third.png", 5)), str(labels)])
    visit.page.wait_for_selector("#table .score h3:has-text('Score on 2 labelled images')")
    assert "5 images" in visit.page.inner_text("#table h2") and "2 not classified" in visit.page.inner_text("#table h2")
    assert "1 image in labels.csv was not uploaded" in visit.page.inner_text("#table") and server.files() == []
    visit.page.click("#many button[aria-label='Clear']")
    visit.page.wait_for_selector("#table .answer", state="detached")


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
    page.wait_for_selector("#result .views")


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
    visit.page.wait_for_selector("#result figcaption:has-text('dropped.png')")
    assert visit.page.locator("#result .views img").count() == 2


@pytest.mark.parametrize("count", [1, 3, MAX_PICTURES])
def test_the_report_is_one_page(count: int, visit: Visit, lesion: Path, tmp_path: Path) -> None:
    visit.give(lesion, *(draw(tmp_path / f"a long name of a picture, number {n}.png", n) for n in range(1, count)))
    assert visit.page.locator("#result .views img").count() == 2 * count
    visit.page.get_by_label("Reference").fill("patient 7")
    visit.page.emulate_media(media="print")
    assert visit.page.is_visible(".report-head") and not visit.page.is_visible("#upload")
    assert len(re.findall(rb"/Type\s*/Page\b", visit.page.pdf(prefer_css_page_size=True))) == 1
    assert not any("patient" in (url or "") for url in visit.asked)


def test_accessible(visit: Visit, lesion: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    visit.give(lesion)
    visit.page.wait_for_timeout(500)
    # Gradio 6.31 nests the button that adds files in another button
    options = {"runOnly": ["wcag2a", "wcag2aa", "wcag21aa"], "rules": {"nested-interactive": {"enabled": False}}}
    violations = axe.run(visit.page, options=options).response["violations"]
    assert [(rule["id"], [node["html"][:150] for node in rule["nodes"]]) for rule in violations] == []
