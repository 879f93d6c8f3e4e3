"""What a user does while the page still reads, sends or classifies something else: the last action counts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import draw
from tools.serving import Server, Visit

pytestmark = pytest.mark.slow

# The first picture is read late, as a large one is.
READ_LATE = """() => {
    const decode = HTMLImageElement.prototype.decode;
    let first = true;
    HTMLImageElement.prototype.decode = async function () {
        if (first) { first = false; await new Promise((resolve) => { window.readNow = resolve; }); }
        return decode.call(this);
    };
}"""
# The first upload is sent late, as a large one is.
SEND_LATE = """() => {
    const send = XMLHttpRequest.prototype.send;
    let first = true;
    XMLHttpRequest.prototype.send = function (form) {
        if (first) { first = false; window.sendNow = () => send.call(this, form); } else send.call(this, form);
    };
}"""


@pytest.fixture
def visit(server: Server, browser: Any) -> Iterator[Visit]:
    opened = Visit(browser, server.url, viewport={"width": 1280, "height": 800})
    yield opened
    assert opened.errors == []
    opened.context.close()


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return draw(tmp_path / "other.png", 9)


def test_a_picture_that_is_read_late_joins_no_other_lesion(visit: Visit, lesion: Path, other: Path) -> None:
    page = visit.page
    page.evaluate(READ_LATE)
    page.set_input_files("#one-input", str(lesion))
    visit.give(other)
    page.evaluate("readNow()")
    page.wait_for_timeout(500)
    assert page.get_attribute("#picture", "alt") == "other.png" and page.locator("#thumbs li").count() == 0
    assert "combined" not in page.inner_text("#result")


def test_a_new_lesion_stays_empty(visit: Visit, lesion: Path) -> None:
    page = visit.page
    page.evaluate(READ_LATE)
    page.set_input_files("#one-input", str(lesion))
    page.keyboard.press("Alt+KeyN")
    page.evaluate("readNow()")
    page.wait_for_timeout(500)
    assert page.is_visible("#upload") and page.inner_text("#result") == ""
    assert page.inner_text("#status") == "The answer appears here."


def test_an_earlier_answer_gets_no_picture_of_another_lesion(visit: Visit, lesion: Path, other: Path) -> None:
    page, first = visit.page, visit.give(lesion)
    page.keyboard.press("Alt+KeyN")
    page.evaluate(READ_LATE)
    page.set_input_files("#one-input", str(other))
    page.click("#recent li button")
    page.evaluate("readNow()")
    page.wait_for_timeout(500)
    assert page.inner_text("#result") == first and page.locator("#thumbs li").count() == 0


def test_a_double_click_on_an_example_gives_one_picture_as_a_whole(visit: Visit) -> None:
    page = visit.page
    page.dblclick("[data-example='drawn-nv.jpg']", delay=30)
    page.wait_for_selector("#result .answer")
    page.wait_for_timeout(300)
    assert page.locator("#thumbs li").count() == 0 and "scale(1)" in page.locator("#stage .layer").get_attribute(
        "style"
    )
    page.dblclick("#stage .layer")
    assert "scale(3)" in page.locator("#stage .layer").get_attribute("style")


def test_the_answer_is_brought_into_sight(visit: Visit, lesion: Path, other: Path) -> None:
    page = visit.page
    visit.give(lesion)
    for scroll in (60, 120, 400):
        page.evaluate(f"scrollTo(0, {scroll})")
        page.click("#new", force=True) if scroll == 60 else page.keyboard.press("Alt+KeyN")
        page.evaluate(f"scrollTo(0, {scroll})")
        visit.give(other if scroll == 120 else lesion)
        heading, picture = (page.locator(part).bounding_box() for part in ("#result h2", "#picture"))
        assert heading["y"] >= 0 and picture["y"] >= 0 and picture["y"] + picture["height"] <= 800, scroll


def test_another_prevalence_moves_nothing_above_the_table(visit: Visit, lesion: Path) -> None:
    visit.give(lesion)
    page = visit.page
    places = """() => ["#one-prevalence select", "#result h2", "#frame"].map((part) =>
        document.querySelector(part).getBoundingClientRect().top)"""
    before = page.evaluate(places)
    page.evaluate(
        """(places) => {
            window.seen = [];
            new MutationObserver(() => window.seen.push(eval(places)())).observe(
                document.querySelector("#answer"), { childList: true, subtree: true, attributes: true });
        }""",
        places,
    )
    for preset in ("training", "equal"):
        call = page.get_attribute("#result .answer", "data-call")
        page.select_option("#one-prevalence select", preset)
        page.wait_for_selector(f"#result .answer:not([data-call='{call}'])")
    assert page.evaluate("seen.length") > 2
    assert page.evaluate(f"seen.every((row) => row.every((y, i) => Math.abs(y - {before}[i]) < 1))")


def test_few_words_at_an_own_prevalence(visit: Visit, lesion: Path) -> None:
    text = visit.give(lesion)
    page = visit.page
    page.click("#one-prevalence summary")
    page.locator("#one-prevalence [data-share='0']").press("ArrowRight")
    page.wait_for_selector("#result caption:has-text('your own prevalence')")
    assert len(page.inner_text("#result").split()) < len(text.split()) + 15
    # printed, and seen on request
    assert "Shares at your own prevalence: melanoma 1" in page.text_content("#result .basis")


def test_uploads_of_the_table_that_overlap(visit: Visit, lesion: Path, other: Path) -> None:
    page = visit.page
    visit.open_table()
    page.evaluate(SEND_LATE)
    page.set_input_files("#many-input", str(lesion))
    page.set_input_files("#many-input", str(other))
    page.wait_for_timeout(500)
    page.select_option("#many-prevalence select", "training")
    page.evaluate("sendNow()")
    page.wait_for_selector("#table h2:has-text('2 images')")
    assert {row.inner_text() for row in page.locator("#table bdi").all()} == {lesion.name, other.name}


def test_an_upload_that_fails_can_be_repeated(visit: Visit, lesion: Path, other: Path) -> None:
    page = visit.page
    page.route("**/gradio_api/upload", lambda route: route.abort())
    page.set_input_files("#one-input", str(lesion))
    page.wait_for_selector("#status button")
    assert page.inner_text("#status").startswith("The server cannot be reached.")
    page.unroute("**/gradio_api/upload")
    page.click("#status button")
    page.wait_for_selector("#result .answer")
    visit.open_table()
    page.route("**/gradio_api/upload", lambda route: route.abort())
    page.set_input_files("#many-input", str(lesion))
    page.wait_for_selector("#many-status button")
    assert page.inner_text("#many-status").startswith("1 file was not sent.")
    page.unroute("**/gradio_api/upload")
    page.set_input_files("#many-input", str(other))  # the first file is sent with it
    page.wait_for_selector("#table h2:has-text('2 images')")
    visit.errors[:] = [error for error in visit.errors if "ERR_FAILED" not in error]


def test_the_table_follows_the_prevalence_of_an_earlier_answer(visit: Visit, lesion: Path, other: Path) -> None:
    page = visit.page
    visit.give(lesion)
    visit.clear()
    visit.open_table()
    visit.give(other, selector="a[download]", place="many", result="table")
    page.select_option("#many-prevalence select", "training")
    page.wait_for_selector("#table caption:has-text('at the training data’s prevalence')")
    page.click("button[role=tab] >> nth=0")
    page.click("#recent li button")
    page.wait_for_selector("#table caption:has-text('at equal prevalence')", state="attached")
    assert page.input_value("#one-prevalence select") == page.input_value("#many-prevalence select") == "equal"


def test_back_to_the_row_that_was_opened(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    visit.open_table()
    given = [draw(tmp_path / f"{n:02}.png", n % 4) for n in range(24)]
    visit.give(*given, selector="a[download]", place="many", result="table")
    page.click("#table .opener:has-text('20.png')")
    page.wait_for_selector("#result .answer")
    page.click("button[role=tab]:has-text('Many images')")
    page.wait_for_function("document.activeElement.matches('#table .opener')")
    assert "20.png" in page.evaluate("document.activeElement.innerText")
    place = page.locator("#table .opener:has-text('20.png')").bounding_box()
    assert 0 <= place["y"] <= 800


def test_a_cleared_table_does_not_delay_the_next_one(visit: Visit, server: Server, tmp_path: Path, other: Path) -> None:
    page = visit.page
    visit.open_table()
    given = [draw(tmp_path / f"{n:03}.png", n % 4) for n in range(100)]
    # as soon as the call is queued: a fast server may be ready before a browser has shown any progress
    with page.expect_response("**/gradio_api/queue/join*"):
        page.set_input_files("#many-input", [str(path) for path in given])
    page.click("#many-clear")
    page.wait_for_selector("#table .answer", state="detached")
    visit.give(other, selector="a[download]", place="many", result="table")
    assert page.inner_text("#table h2").startswith("1 image") and server.files() == []


def test_a_file_that_is_far_too_large_stops_no_other(visit: Visit, tmp_path: Path, other: Path) -> None:
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(101_000_000)
    text = visit.give(tmp_path / "huge.jpg", other)
    assert "Left out: huge.jpg is larger than 30 MB: reduce its size." in text
    page = visit.page
    order = [
        page.locator(part).bounding_box()["y"] for part in ("#result .left-out", "#result table", "#result .remark")
    ]
    assert order == sorted(order)


def test_a_file_that_cannot_be_shown_has_no_controls(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    visit.give(tmp_path / "empty.jpg", selector=".fault")
    assert not visit.page.is_visible("#stage .zoom") and not visit.page.is_visible("#crop")


def test_a_cleared_upload_does_not_hold_up_the_next_table(visit: Visit, lesion: Path, other: Path) -> None:
    page = visit.page
    visit.open_table()
    page.evaluate(SEND_LATE)
    page.set_input_files("#many-input", str(lesion))
    page.click("#many-clear")
    page.set_input_files("#many-input", str(other))
    page.wait_for_selector("#table h2:has-text('1 image')")
    assert page.inner_text("#table bdi") == other.name and page.inner_text("#many-status") == ""


def test_another_picture_ends_the_crop_of_the_first(visit: Visit, lesion: Path, other: Path, tmp_path: Path) -> None:
    page = visit.page
    visit.give(lesion, other)
    thumbs = page.locator("#thumbs li").all_inner_texts()
    page.click("#crop")
    page.click("[aria-label='Rotate right']")
    page.wait_for_function("document.querySelector('#picture').naturalWidth === 300")
    page.click("#thumbs li:nth-child(2) button")
    assert not page.is_visible("#crop-cancel") and page.get_attribute("#picture", "alt") == other.name
    page.wait_for_function("document.querySelectorAll('#thumbs li').length === 2")
    page.select_option("#one-prevalence select", "training")
    page.wait_for_selector("#result caption:has-text('training data')")
    page.select_option("#one-prevalence select", "equal")
    page.wait_for_selector("#result caption:has-text('at equal prevalence')")
    assert page.locator("#thumbs li").all_inner_texts() == thumbs
    assert "2 images, combined" in page.inner_text("#result")
    page.click("#crop")
    visit.add(draw(tmp_path / "third.png", 5))
    assert not page.is_visible("#crop-cancel") and "3 images, combined" in page.inner_text("#result")


def test_a_rotation_that_was_not_applied_is_undone_with_its_answer(visit: Visit, lesion: Path) -> None:
    page, before = visit.page, visit.give(lesion)
    page.click("#crop")
    page.click("[aria-label='Rotate right']")
    page.wait_for_function("document.querySelector('#picture').naturalWidth === 300")
    page.select_option("#one-prevalence select", "training")
    page.wait_for_selector("#result caption:has-text('training data')")
    page.click("#crop-cancel")
    page.select_option("#one-prevalence select", "equal")
    page.wait_for_selector("#result caption:has-text('at equal prevalence')")
    page.wait_for_timeout(500)
    assert page.inner_text("#result") == before
    assert page.evaluate("document.querySelector('#picture').naturalWidth") == 400


def test_a_call_that_fails_once_is_sent_again(visit: Visit, lesion: Path) -> None:
    page = visit.page
    visit.give(lesion)
    failed: list[str] = []

    def fail_once(route: Any) -> None:
        failed.append(route.request.url)
        route.abort() if len(failed) == 1 else route.continue_()

    page.route("**/gradio_api/queue/join*", fail_once)
    page.select_option("#one-prevalence select", "training")
    page.wait_for_selector("#result caption:has-text('training data')")
    assert len(failed) == 2 and page.get_attribute("#picture", "alt") == lesion.name
    visit.errors[:] = [error for error in visit.errors if "ERR_FAILED" not in error]


def test_an_earlier_answer_has_the_prevalence_that_it_was_given_at(visit: Visit, lesion: Path) -> None:
    page = visit.page
    visit.give(lesion)
    page.route("**/gradio_api/queue/join*", lambda route: None)  # the answer never comes
    page.select_option("#one-prevalence select", "training")
    page.wait_for_timeout(300)
    page.keyboard.press("Alt+KeyN")
    page.unroute("**/gradio_api/queue/join*")
    page.click("#recent li button")
    assert "at equal prevalence" in page.inner_text("#result caption")
    assert page.input_value("#one-prevalence select") == "equal"


def test_files_that_the_server_refuses_hold_up_no_others(visit: Visit, lesion: Path, other: Path) -> None:
    page = visit.page
    visit.open_table()
    page.route("**/gradio_api/upload", lambda route: route.fulfill(status=413, body="Too large."))
    page.set_input_files("#many-input", str(lesion))
    page.wait_for_selector("#many-status:has-text('1 file was not sent. Too large.')")
    assert not page.is_visible("#many-status button")
    page.unroute("**/gradio_api/upload")
    page.set_input_files("#many-input", str(other))
    page.wait_for_selector("#table h2:has-text('1 image')")
    visit.errors[:] = [error for error in visit.errors if "413" not in error]


def test_the_filter_survives_another_prevalence(visit: Visit, lesion: Path, tmp_path: Path) -> None:
    page = visit.page
    visit.open_table()
    (tmp_path / "letter.jpg").write_text("Dear colleague")
    visit.give(lesion, tmp_path / "letter.jpg", selector="a[download]", place="many", result="table")
    page.select_option("#filter-decision", "refused")
    page.select_option("#many-prevalence select", "training")
    page.wait_for_selector("#table caption:has-text('training data')")
    assert page.input_value("#filter-decision") == "refused" and "1 of 2" in page.inner_text("#filter-count")


def test_the_last_example_counts(visit: Visit) -> None:
    page = visit.page
    page.click("[data-example='drawn-nv.jpg']")
    page.evaluate("document.querySelector(\"[data-example='drawn-mel.jpg']\").click()")
    page.wait_for_selector("#result .answer")
    page.wait_for_timeout(300)
    assert page.get_attribute("#picture", "alt") == "drawn-mel.jpg" and page.locator("#thumbs li").count() == 0


def test_another_picture_ends_a_crop_whose_rotation_is_still_computed(visit: Visit, lesion: Path, other: Path) -> None:
    page = visit.page
    visit.give(lesion, other)
    thumbs = page.locator("#thumbs li").all_inner_texts()
    page.evaluate(
        """() => {
            const toBlob = HTMLCanvasElement.prototype.toBlob;
            HTMLCanvasElement.prototype.toBlob = function (...given) {
                window.turnNow = () => toBlob.call(this, ...given);
            };
        }"""
    )
    page.click("#crop")
    page.click("[aria-label='Rotate right']")
    page.wait_for_function("Boolean(window.turnNow)")
    page.click("#thumbs li:nth-child(2) button")
    assert not page.is_visible("#crop-cancel") and page.get_attribute("#picture", "alt") == other.name
    page.evaluate("() => { const turn = turnNow; window.turnNow = null; turn(); }")
    page.wait_for_function("Boolean(window.turnNow)")  # the rotation is undone
    page.evaluate("turnNow()")
    page.wait_for_timeout(300)
    assert not page.is_visible("#crop-cancel") and page.get_attribute("#picture", "alt") == other.name
    assert page.locator("#thumbs li").all_inner_texts() == thumbs
    page.click("#thumbs li:nth-child(1) button")
    assert page.evaluate("document.querySelector('#picture').naturalWidth") == 400


def test_results_that_the_server_has_lost_are_computed_again(visit: Visit, lesion: Path, other: Path) -> None:
    """After ten minutes without use; here the page names uploads that are not there."""
    page = visit.page
    visit.open_table()
    visit.give(lesion, other, selector="a[download]", place="many", result="table")
    rows = page.locator("#table tbody tr").all_inner_texts()
    lost = page.evaluate(
        """() => {
            const many = window.dermrw.many;
            many.paths = many.paths.map((path) => path.replace(/[^/]*[/]([^/]*)$/, "gone/$1"));
            many.ask();
            return many.paths;
        }"""
    )
    page.wait_for_function("(lost) => !window.dermrw.many.paths.some((path) => lost.includes(path))", arg=lost)
    page.wait_for_selector("#table a[download]")
    assert page.locator("#table tbody tr").all_inner_texts() == rows and len(rows) == 2


def test_more_files_than_a_call_can_name_are_refused_by_the_page(visit: Visit, lesion: Path, other: Path) -> None:
    page = visit.page
    visit.open_table()
    page.evaluate("window.dermrw.many.files = Array.from({ length: 999 }, () => new File([], 'x.txt'))")
    page.set_input_files("#many-input", [str(lesion), str(other)])
    page.wait_for_selector("#many-status:has-text('1 file was not sent: the table takes at most 1000.')")
