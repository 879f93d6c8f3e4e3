"""Attacks by other sites, other users and hostile files."""

import asyncio
import io
import json
import os
import re
import socket
import time
import zlib
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from conftest import draw
from PIL import Image
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send
from tools.serving import SECONDS, Form, Server, basic, wait_until

from app.middleware import MAX_HELD_BYTES, RESERVED_BYTES, Guard, _Body, own_names
from app.uploads import Uploads

META = {"meta": {"_type": "gradio.FileData"}}


def functions(server: Server) -> list[tuple[int, int]]:
    """Returns the number of each of the page's functions, and how many inputs it takes."""
    config = json.loads(server.ask("/config")[1])
    return [(function["id"], len(function["inputs"])) for function in config["dependencies"]]


def call(server: Server, number: int, data: list[Any], session: str = "s") -> str:
    """Calls one of the page's functions with arbitrary data; returns its answer."""
    status, body = server.ask("/gradio_api/queue/join", {"data": data, "fn_index": number, "session_hash": session})
    return body if status != 200 else server.ask(f"/gradio_api/queue/data?session_hash={session}")[1]


@pytest.fixture(scope="module")
def attacked(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A demo whose output is checked after the tests that share it."""
    running = Server(model, tmp_path_factory.mktemp("attacked"))
    yield running
    started, later = running.output, running.end().removeprefix(running.output)
    assert len(started.splitlines()) == 4  # the start, the model, the sample's warning and the address
    assert "Traceback" not in later and "smith" not in later
    assert all(line.startswith("app: a request failed (") for line in later.splitlines()), later


@pytest.mark.slow
def test_it_opens_nothing_but_uploads(attacked: Server, tmp_path: Path) -> None:
    running = attacked
    folder = next(running.temporary.glob("dermrw-demo-*"))
    (folder / "link.jpg").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "fifo.jpg")
    os.mkfifo(folder / "fifo.jpg")
    places = (
        "/etc/passwd", "/etc/absent-file", "/dev/zero", tmp_path / "fifo.jpg", folder / "fifo.jpg", folder,
        folder / "link.jpg", f"{folder}/../fifo.jpg", "https://example.com/x.jpg", "a\0b", folder / "absent.jpg",
    )  # fmt: skip
    given: list[Any] = [
        {"path": str(path), **more} for path in places for more in (META, {}, {"is_stream": True, **META})
    ]
    given += [{"path": None, "url": "https://example.com/x.jpg", **META}, "/etc/passwd", ["/etc/passwd"], 1]
    messages = set()
    for number, inputs in functions(running):
        if inputs < 2:
            continue  # no upload field
        for value in given:
            data = [[value], ""]
            answered = unescape(call(running, number, data)).lower()
            messages.update(re.findall(r"this image is not among the uploads[^\"<]*", answered) or [answered])
    # existing and absent files give the same message
    assert messages == {"this image is not among the uploads, or it was deleted: upload it again"}
    assert {p.name for p in running.temporary.rglob("*") if not p.is_dir()} == {"link.jpg", "fifo.jpg"}
    for name in ("link.jpg", "fifo.jpg"):
        (folder / name).unlink()
    assert running.ask("/health")[0] == 200


@pytest.mark.slow
def test_files_are_taken_in_no_other_place(server: Server) -> None:
    file = {"path": "/etc/passwd", **META}
    for number, inputs in functions(server):
        for place in range(inputs):
            answered = call(server, number, [file if i == place else None for i in range(inputs)])
            assert "root:" not in answered and '"success":true' not in answered.replace(" ", "")


@pytest.mark.slow
def test_nobody_gets_anothers_picture(server: Server, lesion: Path) -> None:
    path = server.upload("hers.jpg", lesion.read_bytes())
    assert server.files() == ["hers.jpg"]
    # no upload is served, even to somebody who knows its path
    for way in (
        f"file={path}",
        f"file/{path}",
        f"stream/{path}",
        f"download/{path}",
        "file=hers.jpg",
        f"file%3D{path}",
    ):
        assert server.ask(f"/gradio_api/{way}") == (404, "Not found.\n")
    for way in (path, f"/..{path}", f"/static{path}", f"/assets/../../../../../../..{path}", f"/%2e%2e{path}"):
        status, body = server.ask(way)
        assert status in (400, 404) or "JFIF" not in body


@pytest.mark.slow
def test_it_answers_to_its_own_name_and_page(server: Server) -> None:
    own = server.url.removeprefix("http://")
    for host in (own, "localhost", "LOCALHOST:1", "[::1]:7860"):
        assert server.ask("/", host=host)[0] == 200
    for host in ("evil.example", "evil.example:7860", "127.0.0.1.evil.example", "8.8.8.8", "x@127.0.0.1", "", "["):
        status, body = server.ask("/", host=host)
        assert status == 400 and "is not served under this name" in body and "evil" not in body
    assert server.ask("/health", origin=server.url)[0] == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", f"{server.url}.evil.example"):
        assert server.ask("/health", origin=origin) == (
            403,
            "The demo does not accept requests from other sites' pages.\n",
        )
        assert server.form("/classify", [("image", ("x", b""))], origin=origin)[0] == 403
    assert server.ask("/health", host="evil.example", origin="http://evil.example")[0] == 400


@pytest.mark.slow
def test_it_serves_only_what_the_page_uses(attacked: Server) -> None:
    running = attacked
    # Gradio would fetch these addresses itself
    for path in ("file=https://example.com/x.jpg", "file=http://127.0.0.1:9/x", "file=/etc/passwd", "file=/etc/absent"):
        assert running.ask(f"/gradio_api/{path}") == (404, "Not found.\n")
    for path in ("proxy=https://x.hf.space/", "deep_link?session_hash=s", "file/etc/passwd", "openapi.json"):
        assert running.ask(f"/gradio_api/{path}")[0] == 404
    for path in ("run/classify", "api/classify", "call/show", "component_server", "process_recording", "vibe-edit"):
        assert running.ask(f"/gradio_api/{path}", {"data": [None]})[0] == 404
    # Gradio raises an error for this one
    assert running.ask("/gradio_api/queue/join", {"data": [], "fn_index": 99, "session_hash": "s"})[0] == 500


def png_of(side: int) -> bytes:
    """Returns a PNG of side × side black pixels in a few kilobytes: a decompression bomb."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    rows = zlib.compressobj(9)
    body = b"".join(rows.compress(bytes(side // 8 + 1)) for _ in range(side)) + rows.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.slow
def test_hostile_files_get_a_sentence_or_an_answer(server: Server, lesion: Path, tmp_path: Path) -> None:
    picture, before = lesion.read_bytes(), server.files()
    script = b"<script>alert(1)</script>"
    exif = Image.Exif()
    exif[0x010E] = exif[0x9286] = script.decode()
    named = io.BytesIO()
    Image.open(lesion).save(named, "JPEG", exif=exif, comment=script)
    for name, content, status in (
        ("bomb.png", png_of(40_000), 422),
        ("page.svg", b"<svg xmlns='http://www.w3.org/2000/svg'>" + script + b"</svg>", 422),
        ("page.html", script, 422),
        ("program.jpg", b"MZ" + bytes(1000), 422),
        ("archive.jpg", b"PK\3\4" + bytes(1000), 422),
        ("pdf.jpg", b"%PDF-1.7" + picture, 422),
        ("both.jpg", picture + b"PK\3\4" + script, 200),  # a picture, and an archive behind it
        ("said.jpg", named.getvalue(), 200),
        ("../../../etc/cron.d/x.jpg", picture, 200),
        ("<img src=x onerror=alert(1)>.jpg", picture, 200),
        ("a" * 5000 + ".jpg", picture, 400),
        ("=cmd|' /C calc'!A0.jpg", picture, 200),
        ("\u202egpj.exe", picture, 200),
    ):
        got, body = server.form("/classify", [("image", (name, content))])
        assert got == status, (name, body)
        assert "Traceback" not in body and "alert(1)" not in body.replace(name, "")
    assert server.files() == before


def test_many_guesses_are_no_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.middleware.WRONG_SECONDS", 0.2)
    uploads = Uploads()
    guarded = Guard(PlainTextResponse("in"), own_names("localhost"), uploads, "long enough")

    async def guess(password: str) -> str:
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": b""}

        async def send(message: Message) -> None:
            sent.append(message)

        headers = [(b"host", b"localhost"), (b"authorization", basic("x", password).encode())]
        await guarded({"type": "http", "method": "GET", "path": "/", "headers": headers}, receive, send)
        return str(sent[1]["body"].decode())

    async def attack(guesses: int) -> tuple[list[str], float, float]:
        assert await guess("long enough") == "in"
        began = time.monotonic()
        tasks = [asyncio.create_task(guess(f"wrong {i}")) for i in range(guesses)]
        await asyncio.sleep(0)
        assert await guess("long enough") == "in"  # accepted credentials need not wait
        meanwhile = time.monotonic() - began
        return await asyncio.gather(*tasks), meanwhile, time.monotonic() - began

    statuses, meanwhile, all_in_all = asyncio.run(attack(5))
    assert statuses == ["This demo requires a password.\n"] * 5 and meanwhile < all_in_all and all_in_all >= 1
    guarded = Guard(PlainTextResponse("in"), own_names("localhost"), uploads, "long enough")
    assert asyncio.run(attack(30))[0].count("Too many attempts: wait a minute.\n") == 10
    uploads.cleanup()


def test_clients_that_send_too_slowly_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.middleware.FIRST_SECONDS", 0.3)
    monkeypatch.setattr("app.middleware.MIN_RATE", 20)
    monkeypatch.setattr("app.middleware.SILENT_SECONDS", SECONDS)

    async def read_body(scope: Scope, receive: Receive, send: Send) -> None:
        size = len(await Request(scope, receive).body())
        await PlainTextResponse(str(size))(scope, receive, send)

    async def post(parts: list[bytes], first_pause: float, pause: float) -> tuple[int, bytes]:
        waiting, sent = list(parts), []

        async def receive() -> Message:
            seconds = first_pause if len(waiting) == len(parts) else pause
            if seconds:
                await asyncio.sleep(seconds)
            return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

        async def send(message: Message) -> None:
            sent.append(message)

        headers = [(b"host", b"localhost"), (b"content-length", b"%d" % sum(map(len, parts)))]
        scope = {"type": "http", "method": "POST", "path": "/classify", "headers": headers}
        await Guard(read_body, own_names("localhost"), uploads)(scope, receive, send)
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)

    uploads = Uploads()
    # the first part allows 1000 seconds for the others
    assert asyncio.run(post([b"x" * 20_000] * 3, 0, 0.4)) == (200, b"60000")
    assert asyncio.run(post([b"x"] * 3, 0, SECONDS)) == (408, b"The request arrived too slowly.\n")
    assert asyncio.run(post([b"x"], SECONDS, 0)) == (408, b"The request arrived too slowly.\n")
    uploads.cleanup()


@pytest.mark.slow
def test_the_same_picture_twice_is_two_uploads(server: Server, lesion: Path) -> None:
    one, two = (server.upload("a.jpg", lesion.read_bytes()) for _ in range(2))
    assert one != two and server.files().count("a.jpg") == 2


@pytest.mark.slow
def test_an_upload_holds_files_alone(server: Server, lesion: Path) -> None:
    before = server.files()
    form: Form = [("files", ("a.jpg", lesion.read_bytes())), ("text", "a" * 1000)]
    assert server.form("/gradio_api/upload", form)[0] == 400
    assert server.files() == before
    # a connection that breaks in the middle
    place, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((place, int(port))) as torn:
        head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {place}:{port}\r\nContent-Length: 900000\r\n"
        part = '--b\r\nContent-Disposition: form-data; name="files"; filename="torn.jpg"\r\n\r\n'
        torn.sendall(f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n{part}".encode() + bytes(200_000))
        wait_until(lambda: len(server.files()) == len(before) + 1)
    wait_until(lambda: server.files() == before)


@pytest.mark.slow
def test_headers_that_proxies_and_attackers_add(server: Server) -> None:
    body = server.ask("/config", x_forwarded_host="evil.example", x_forwarded_proto="https")[1]
    assert "evil" not in body and json.loads(body)["root"].startswith("https://127.0.0.1:")
    place, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((place, int(port))) as raw:
        lengths = "Content-Length: 5\r\nContent-Length: 4\r\n"
        raw.sendall(f"POST /classify HTTP/1.1\r\nHost: {place}:{port}\r\n{lengths}\r\nhello".encode())
        assert raw.recv(100).split()[1] in (b"400", b"411")


@pytest.mark.slow
def test_what_the_page_never_sends_leaves_no_traceback(attacked: Server, lesion: Path) -> None:
    running = attacked
    for number, inputs in functions(running):
        for word in ("mrs-smith", "", 1, None):
            given: list[Any] = [[], *[word] * (inputs - 1)] if inputs > 1 else [word]
            body = call(running, number, given[:inputs])
            assert "smith" not in body.replace("mrs-smith is", "") or "Traceback" not in body
        assert "the request is not valid" in call(running, number, ["x"] * inputs, "s" * 100)
        path = running.upload("mrs-smith.jpg", lesion.read_bytes())
        if inputs == 2:  # the same picture twice in a lesion
            assert "the request is not valid" in call(running, number, [[{"path": path, **META}] * 2000, ""])
            body = call(running, number, [[{"path": path, **META}] * 2, ""])
            assert "process_completed" in body and '"success":true' in body.replace(" ", "")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.slow
def test_large_pictures_leave_no_memory_behind(model: Path, tmp_path: Path) -> None:
    running = Server(model, tmp_path)
    large = tmp_path / "large.png"
    Image.new("RGBA", (7000, 7000), (200, 120, 100, 128)).save(large, compress_level=1)

    def megabytes(what: str) -> int:
        status = Path(f"/proc/{running.process.pid}/status").read_text()
        return int(re.findall(rf"{what}:\s+(\d+) kB", status)[0]) // 1000

    def give(count: int) -> None:
        for _ in range(count):
            assert running.classify(large)["refused"]

    before = megabytes("VmRSS")
    give(1)
    most = megabytes("VmHWM")
    give(4)
    # one picture, of 200 MB when it is decoded, at a time, and afterwards none
    assert megabytes("VmHWM") < most + 200 and megabytes("VmRSS") < before + 250
    running.end()


@pytest.mark.slow
def test_what_a_killed_demo_left_is_cleared(model: Path, tmp_path: Path, lesion: Path) -> None:
    killed, alive = Server(model, tmp_path), Server(model, tmp_path)
    for running in (killed, alive):
        running.upload("mrs-smith.jpg", lesion.read_bytes())
    killed.process.kill()
    killed.process.wait()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").touch()
    (killed.temporary / "dermrw-demo-link").symlink_to(tmp_path / "mine")
    assert len(list(killed.temporary.rglob("mrs-smith.jpg"))) == 2
    Server(model, tmp_path).end()
    assert len(list(killed.temporary.rglob("mrs-smith.jpg"))) == 1 and (tmp_path / "mine" / "precious").exists()
    assert alive.classify(draw(tmp_path / "another.jpg"))["probabilities"]
    alive.end()
    assert [p for p in killed.temporary.glob("dermrw-demo-*") if not p.is_symlink()] == []


@pytest.mark.parametrize(("waiting", "free", "status"), [(0, 10**9, 200), (8 * 10**9, 10**10, 507), (0, 10**7, 507)])
def test_uploads_without_disk_space_are_refused(
    waiting: int, free: int, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = Uploads()
    monkeypatch.setattr(uploads, "size", lambda: waiting)
    monkeypatch.setattr(uploads, "free_space", lambda: free)
    guarded = Guard(PlainTextResponse("taken"), own_names("testserver", ["testserver"]), uploads)
    response = TestClient(guarded).post("/gradio_api/upload", content=b"x" * 1000)
    assert response.status_code == status
    assert {200: "taken", 507: "waiting" if waiting else "disk is full"}[status] in response.text
    uploads.cleanup()


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [("/classify", 503, "Too many requests are waiting"), ("/gradio_api/upload", 200, "taken")],
)
def test_requests_in_memory_have_a_limit(path: str, status: int, message: str) -> None:
    uploads = Uploads()
    guarded = Guard(PlainTextResponse("taken"), own_names("testserver", ["testserver"]), uploads)
    guarded._held = MAX_HELD_BYTES - 500
    response = TestClient(guarded).post(path, content=b"x" * 1000)
    assert (response.status_code, response.headers.get("retry-after")) == (status, "5" if status == 503 else None)
    assert message in response.text and guarded._held == MAX_HELD_BYTES - 500
    uploads.cleanup()


def test_uploads_that_are_announced_and_not_sent_block_no_others() -> None:
    uploads = Uploads()
    guarded = Guard(PlainTextResponse("taken"), own_names("testserver", ["testserver"]), uploads)

    async def nothing() -> Message:
        raise AssertionError

    guarded._arriving = {_Body(nothing, 2 * 10**9) for _ in range(4)}  # 8 GB, of which nothing has arrived
    assert sum(body.reserved for body in guarded._arriving) == 4 * RESERVED_BYTES
    assert TestClient(guarded).post("/gradio_api/upload", content=b"x" * 1000).status_code == 200
    uploads.cleanup()
