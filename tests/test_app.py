"""The demo: served as its command serves it, driven by a real browser and by Gradio's own client."""

import atexit
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from app.guard import own_names
from app.heatmap import SIDE, heat, overlay
from app.words import answer, doubt, fault, fixed, percent
from dermrw.config import load_config
from dermrw.drawing import draw_lesion
from dermrw.errors import UserError
from dermrw.predict import Classifier, Explanation
from dermrw.verdict import Verdict
from export.card import model_card
from export.report import Report

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NAMES = ("melanoma", "melanocytic nevus", "basal cell carcinoma", "dermatofibroma", "vascular lesion")


class Server:
    """`python -m app MODEL` as a process of its own."""

    def __init__(self, model: Path, folder: Path, *options: str) -> None:
        self.temporary = folder / "tmp"
        self.temporary.mkdir(exist_ok=True)
        # without what would switch off the libraries' reports home on a developer's machine only
        hidden = ("CI", "ORT_DISABLE_TELEMETRY", "GRADIO_ANALYTICS_ENABLED")
        environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower() and k not in hidden}
        environment |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app", str(model), "--port", "0", *options],
            cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        atexit.register(self.process.kill)  # one that hangs would outlive a failed test
        self.said = ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                self.url = found[0]
                break
        else:
            raise AssertionError(self.said)
        for _ in range(100):
            with contextlib.suppress(OSError):
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{self.url}/health").read()
                return
            time.sleep(0.1)

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        """A request that no browser and no client of Gradio's would send: status, and all that comes back."""
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=20)
        with contextlib.closing(connection):
            data = None if body is None else json.dumps(body)
            headers = {name.replace("_", "-").title(): value for name, value in headers.items()}
            headers |= {"Content-Type": "application/json"} if data else {}
            connection.request("POST" if data else "GET", path, data, headers)
            reply = connection.getresponse()
            return reply.status, reply.read().decode()

    def end(self) -> str:
        """Ends it as a service manager does; returns all that it said."""
        self.process.send_signal(signal.SIGTERM)
        rest, _ = self.process.communicate(timeout=30)
        return self.said + rest


@pytest.fixture(scope="module")
def model(_trained: Path) -> Path:
    # for the README's picture: DERMRW_SCREENSHOTS=docs DERMRW_MODEL=runs/NAME/model.onnx
    named = os.environ.get("DERMRW_MODEL")
    return Path(named).resolve() if named else next((_trained / "runs").glob("*/model.onnx"))


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(model, tmp_path_factory.mktemp("demo"))
    yield running
    if running.process.poll() is None:
        running.end()


@pytest.fixture(scope="module")
def lesion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lesion") / "mrs-smith.jpg"
    rng = np.random.default_rng
    exif = Image.Exif()
    exif[0x010E] = "Mrs Smith, born 1950"
    Image.fromarray(draw_lesion("mel", rng(4), rng(5), 300, 400)).save(path, quality=92, exif=exif)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine: apt install chromium")
    with sync_api.sync_playwright() as playwright:
        # no name but this machine's own is resolved: the network is cut
        rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", rules])
        yield launched
        launched.close()


class Visit:
    """A page that is open, with whatever it asked for and complained of."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.page = browser.new_context(viewport={"width": 1180, "height": 900}, **options).new_page()
        self.asked: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)
        self.page.wait_for_selector("#upload input[type=file]", state="attached")

    def give(self, path: Path, selector: str = ".answer") -> str:
        self.page.set_input_files("#upload input[type=file]", str(path))
        self.page.wait_for_selector(selector)
        return str(self.page.inner_text("#result"))


def test_a_lesion_in_the_browser(server: Server, browser: Any, lesion: Path, model: Path) -> None:
    visit = Visit(browser, server.url)
    before = visit.page.inner_text("body")
    assert "not a medical device" in before and "drawn by dermrw" in before and "refuses pictures" in before
    text = visit.give(lesion)
    classifier = Classifier(model)
    expected = classifier(lesion)[0]
    for name, p in zip(classifier.info.names, expected, strict=True):
        row = visit.page.inner_text(f"#result tr:has(th:has-text('{name}'))")
        assert percent(float(p)) in row
    # doubt stands before the diagnoses, and the word that would calm nobody's doubt nowhere
    assert text.index("Of each diagnosis’ cases") < text.index("Probability at equal prevalence")
    said = classifier.explain(lesion).verdict
    assert said.refused is None and text.lower().startswith(said.triage)
    for code, name in zip(classifier.info.codes, classifier.info.names, strict=True):
        assert (name in text[: text.index("Of each diagnosis’ cases")]) == (code in said.classes)
    assert "benign" not in visit.page.inner_text("body").lower()
    pictures = visit.page.eval_on_selector_all(
        "#result img", "all => all.map(i => [i.src.slice(0, 15), i.naturalWidth])"
    )
    assert pictures == [["data:image/png;", SIDE]] * 2
    # with the network cut it is whole, and it asked nobody else for anything
    assert {url.split("/")[2] for url in visit.asked if url.startswith(("http", "ws"))} == {server.url.split("/")[2]}
    assert visit.errors == []
    shots = os.environ.get("DERMRW_SCREENSHOTS")
    if shots:
        visit.page.wait_for_timeout(1500)
        visit.page.screenshot(path=Path(shots) / "demo.png", full_page=True)


def test_what_isnt_an_image_gets_a_sentence(server: Server, browser: Any, tmp_path: Path, lesion: Path) -> None:
    visit = Visit(browser, server.url, color_scheme="dark")
    (tmp_path / "letter<b>.jpg").write_text("Dear colleague")
    text = visit.give(tmp_path / "letter<b>.jpg", ".fault")
    # Gradio drops the brackets from a file's name; else it stays as it is
    assert "\nletterb.jpg is not an image in a format that is known" in text and "Traceback" not in text
    (tmp_path / "cut.jpg").write_bytes(lesion.read_bytes()[:2000])
    visit.page.click("[aria-label='Clear'], [aria-label='Remove Image']")
    visit.page.wait_for_selector(".fault", state="detached")
    assert "damaged" in visit.give(tmp_path / "cut.jpg", ".fault")
    assert str(server.temporary) not in visit.page.inner_text("body")


def test_a_tiff_on_a_narrow_screen(server: Server, browser: Any, lesion: Path, tmp_path: Path) -> None:
    visit = Visit(browser, server.url)
    Image.open(lesion).save(tmp_path / "lesion.tiff")
    for width in (360, 320):
        visit.page.set_viewport_size({"width": width, "height": 800})
        assert visit.page.evaluate("document.documentElement.scrollWidth") == width
    # no browser but Safari decodes it
    assert "Probability at equal prevalence" in visit.give(tmp_path / "lesion.tiff")
    assert visit.page.evaluate("document.documentElement.scrollWidth") == 320
    visit.page.wait_for_selector("#upload img.unseen", state="hidden")
    said = "[...document.querySelectorAll('#upload *')].map(e => getComputedStyle(e, '::after').content).join()"
    assert "browser can’t show this file" in visit.page.evaluate(said)
    visit.page.click("[aria-label='Clear'], [aria-label='Remove Image']")
    visit.page.set_input_files("#upload input[type=file]", str(lesion))
    visit.page.wait_for_function("document.querySelector('#upload img')?.naturalWidth == 400")
    assert "browser can’t" not in visit.page.evaluate(said) and visit.page.is_visible("#upload img")
    assert visit.errors == []


def test_the_api(server: Server, model: Path, lesion: Path, tmp_path: Path) -> None:
    client = Client(server.url, verbose=False)
    found = client.predict(handle_file(lesion), api_name="/classify")
    classifier = Classifier(model)
    assert list(found["probabilities"]) == list(classifier.info.codes)
    np.testing.assert_allclose(list(found["probabilities"].values()), classifier(lesion)[0], rtol=0, atol=1e-6)
    assert found["model"]["sha256"] == classifier.digest and "Not a medical device" in found["note"]
    (tmp_path / "x.jpg").write_bytes(b"")
    with pytest.raises(AppError, match=r"x\.jpg is not an image"):
        client.predict(handle_file(tmp_path / "x.jpg"), api_name="/classify")
    assert list(client.view_api(return_format="dict", print_info=False)["named_endpoints"]) == ["/classify"]


def test_it_ends_in_good_order_and_leaves_nothing(model: Path, tmp_path: Path, lesion: Path) -> None:
    running = Server(model, tmp_path)
    Client(running.url, verbose=False).predict(handle_file(lesion), api_name="/classify")
    assert any(p.is_file() for p in running.temporary.rglob("*"))
    said = running.end()
    assert running.process.returncode == 0
    assert [p for p in running.temporary.rglob("*") if p.is_file()] == []
    assert "Traceback" not in said and "smith" not in said.lower()


def test_it_opens_nothing_but_uploads(model: Path, tmp_path: Path) -> None:
    running = Server(model, tmp_path)
    folder = next(running.temporary.glob("dermrw-demo-*"))
    (folder / "link.jpg").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "fifo.jpg")
    os.mkfifo(folder / "fifo.jpg")
    meta = {"meta": {"_type": "gradio.FileData"}}
    given: list[Any] = [
        {"path": str(path), **more}
        for path in (
            "/etc/passwd", "/etc/absent-file", "/dev/zero", tmp_path / "fifo.jpg", folder / "fifo.jpg", folder,
            folder / "link.jpg", f"{folder}/../fifo.jpg", "https://example.com/x.jpg", "a\0b",
        )
        for more in (meta, {}, {"is_stream": True, **meta})
    ]  # fmt: skip
    given += [{"path": None, "url": "https://example.com/x.jpg", **meta}, "/etc/passwd", ["/etc/passwd"], 1]
    said = set()
    for value in given:
        _, event = running.ask("/gradio_api/call/classify", {"data": [value]})
        _, answered = running.ask(f"/gradio_api/call/classify/{json.loads(event)['event_id']}")
        said.add(answered)
        # the page's own, private function
        running.ask("/gradio_api/queue/join", {"data": [value], "fn_index": 0, "session_hash": "s"})
        assert "only a picture that was uploaded here" in running.ask("/gradio_api/queue/data?session_hash=s")[1]
    # of a file that is there and of one that isn't the same is said
    assert len(said) == 1 and "only a picture that was uploaded here" in said.pop()
    # nothing was copied either
    assert {p.name for p in running.temporary.rglob("*") if not p.is_dir()} == {"link.jpg", "fifo.jpg"}
    assert running.ask("/health")[0] == 200
    assert len(running.end().splitlines()) == 3  # the model, the sample's warning and the address


def test_it_answers_to_its_own_name_and_page(server: Server) -> None:
    own = server.url.removeprefix("http://")
    for host in (own, "localhost", "LOCALHOST:1", "[::1]:7860"):
        assert server.ask("/", host=host)[0] == 200
    for host in ("evil.example", "evil.example:7860", "127.0.0.1.evil.example", "8.8.8.8", "x@127.0.0.1", "", "["):
        status, said = server.ask("/", host=host)
        assert status == 400 and "isn't served by this name" in said and "evil" not in said
    assert server.ask("/health", origin=server.url)[0] == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", f"{server.url}.evil.example"):
        assert server.ask("/health", origin=origin) == (403, "The demo answers to its own page, not to another's.\n")
    assert server.ask("/health", host="evil.example", origin="http://evil.example")[0] == 400


def test_names_of_a_server() -> None:
    default, everywhere, proxied = (own_names(*a) for a in (("127.0.0.1",), ("0.0.0.0",), ("::1", ["Demo.example"])))
    assert default("localhost") and default("::1") and not default("192.168.1.5") and not default("demo.example")
    assert everywhere("192.168.1.5") and everywhere("fe80::1") and not everywhere("demo.example")
    assert proxied("demo.example") and not proxied("other.demo.example")
    for wrong in ("http://demo.example", "demo.example:80", "", "*"):
        with pytest.raises(UserError, match="--allow-host takes a name"):
            own_names("127.0.0.1", [wrong])


def test_it_serves_only_what_the_page_and_the_client_use(model: Path, tmp_path: Path) -> None:
    running = Server(model, tmp_path)
    # Gradio fetches such an address itself
    for path in ("file=https://example.com/x.jpg", "file=http://127.0.0.1:9/x", "file=/etc/passwd", "file=/etc/absent"):
        assert running.ask(f"/gradio_api/{path}") == (403, "There is no such upload here.\n")
    for path in ("proxy=https://x.hf.space/", "deep_link?session_hash=s", "file/etc/passwd"):
        assert running.ask(f"/gradio_api/{path}")[0] == 404
    for path in ("run/classify", "api/classify", "component_server", "process_recording", "vibe-edit"):
        assert running.ask(f"/gradio_api/{path}", {"data": [None]})[0] == 404
    # Gradio fails over this one
    assert running.ask("/gradio_api/queue/join", {"data": [], "fn_index": 99, "session_hash": "s"})[0] == 500
    said = running.end()
    assert "app: a request could not be answered (KeyError)" in said and "Traceback" not in said


def test_what_a_killed_demo_left_is_cleared(model: Path, tmp_path: Path, lesion: Path) -> None:
    killed, alive = Server(model, tmp_path), Server(model, tmp_path)
    for running in (killed, alive):
        Client(running.url, verbose=False).predict(handle_file(lesion), api_name="/classify")
    killed.process.kill()
    killed.process.wait()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").touch()
    (killed.temporary / "dermrw-demo-link").symlink_to(tmp_path / "mine")
    assert len(list(killed.temporary.rglob("mrs-smith.jpg"))) == 2
    Server(model, tmp_path).end()
    assert len(list(killed.temporary.rglob("mrs-smith.jpg"))) == 1 and (tmp_path / "mine" / "precious").exists()
    assert Client(alive.url, verbose=False).predict(handle_file(lesion), api_name="/classify")
    alive.end()
    assert [p for p in killed.temporary.glob("dermrw-demo-*") if not p.is_symlink()] == []


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_large_pictures_leave_no_memory_behind(model: Path, tmp_path: Path) -> None:
    running = Server(model, tmp_path)
    large = next(running.temporary.glob("dermrw-demo-*")) / "large.png"
    Image.new("RGBA", (7000, 7000), (200, 120, 100, 128)).save(large, compress_level=1)

    def megabytes(what: str) -> int:
        status = Path(f"/proc/{running.process.pid}/status").read_text()
        return int(re.findall(rf"{what}:\s+(\d+) kB", status)[0]) // 1000

    def give(count: int) -> None:
        for n in range(count):  # to the page's function and to the API's
            value = {"path": str(large), "meta": {"_type": "gradio.FileData"}}
            running.ask("/gradio_api/queue/join", {"data": [value], "fn_index": n % 2, "session_hash": f"{n}"})
        for n in range(count):
            assert "refused" in running.ask(f"/gradio_api/queue/data?session_hash={n}")[1]

    before = megabytes("VmRSS")
    give(1)
    most = megabytes("VmHWM")
    give(6)
    # one picture, of 200 MB when it is decoded, at a time, and afterwards none
    assert megabytes("VmHWM") < most + 200 and megabytes("VmRSS") < before + 200
    running.end()


def test_mistakes_are_a_sentence(model: Path, tmp_path: Path) -> None:
    (tmp_path / "foreign.onnx").write_bytes(b"rubbish")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments, fault_said in (
            (["absent.onnx"], "no model absent.onnx"),
            (["foreign.onnx"], "foreign.onnx is not a model"),
            ([str(model), "--host", "192.0.2.1"], "'192.0.2.1' is not an address of this machine: name one with --h"),
            ([str(model), "--host", ""], "'' is not an address of this machine"),
            ([str(model), "--allow-host", "http://x"], "--allow-host takes a name"),
            ([str(model), "--port", port], f"port {port} of 127.0.0.1 can't be used"),
        ):
            ended = subprocess.run(
                [sys.executable, "-m", "app", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60,
                env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
            )  # fmt: skip
            assert ended.returncode == 2 and fault_said in ended.stderr and "Traceback" not in ended.stderr, ended


def test_it_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = sys.modules['torchvision'] = None\nimport app.page, app.__main__"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_nothing_given_gets_into_the_page(model: Path) -> None:
    info = Classifier(model).info.model_copy(update={"names": ("<script>",) * 7, "warning": "<img src=x>"})
    p = np.array([0.9, 0.1, 0, 0, 0, 0, 0], np.float32)
    seen = Explanation(
        p, np.ones((7, 2, 2), np.float32), np.zeros(3, np.float32), np.zeros((8, 8, 3), np.uint8),
        Verdict(None, info.codes[:2], True),
    )  # fmt: skip
    refused = answer(seen._replace(verdict=Verdict("<i>it is blurred", info.codes[:2], True)), info)
    assert "&lt;i&gt;it is blurred" in refused and "%" not in refused and "script" not in refused
    page = answer(seen, info) + fixed("head", info, "0" * 64) + fixed("foot", info, "0" * 64)
    assert "<script>" not in page and "<img src=x>" not in page and "&lt;script&gt;" in page
    assert "<b>" not in fault("<b>x")
    assert ">Only a" in fault("only a picture") and ">one.jpg is" in fault("one.jpg is no image", "one.jpg")


def test_of_drawings_nothing_is_said_that_holds_of_skin(model: Path) -> None:
    sample = Classifier(model).info
    real = sample.model_copy(update={"warning": None})
    assert "learned from drawings" in fixed("texts", sample, "") and "light skin" not in fixed("texts", sample, "")
    report = Report.model_validate_json(model.with_name("report.json").read_text())
    card = model_card(report, sample, "0" * 64, load_config(None, ["train.epochs=7", "data.root=/secret/place"]))
    assert "train.epochs=7" in card and "secret" not in card
    assert "learned from drawings" in card and not re.search("light skin|histology|Vienna", card)
    assert "confirmed by histology" in model_card(report, real, "0" * 64, load_config(None))
    assert "drawings" not in fixed("texts", real, "") and "almost only light skin" in fixed("texts", real, "")


def test_words_follow_the_probability() -> None:
    def said(*p: float) -> str:
        return doubt(np.array(p, np.float32), NAMES)[0]

    assert said(0.4, 0.3, 0.3, 0, 0) == "No clear answer"
    assert said(0.1, 0.6, 0.3, 0, 0) == "Some likeness to melanocytic nevus"
    assert said(0.9, 0.1, 0, 0, 0) == "Looks most like melanoma"
    assert [percent(p).replace("\N{NO-BREAK SPACE}", " ") for p in (0.001, 0.5, 0.999)] == ["< 1 %", "50 %", "> 99 %"]


def test_the_map_lies_where_the_evidence_is() -> None:
    activation = np.full((4, 4), -1.0, np.float32)
    activation[0, 3] = 2
    strength = heat(activation, 64)
    assert strength[:16, 48:].mean() > 0.5 and strength[32:, :32].max() < 0.01 and strength.max() <= 1
    grey = np.full((8, 8, 3), 128, np.uint8)
    change = np.abs(np.asarray(overlay(grey, activation)).astype(int) - 128)
    assert change[SIDE // 2 :, : SIDE // 2].max() <= 1 and change[: SIDE // 4, -SIDE // 4 :].mean() > 20
    assert (np.asarray(overlay(grey, -np.ones((4, 4), np.float32))) == 128).all()
