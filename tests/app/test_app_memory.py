"""The process holds nothing of an image and its name after the page was closed."""

import contextlib
import gc
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from conftest import draw
from tools.serving import SECONDS, Client, wait_until

from app.__main__ import bind_socket
from app.engine import Engine
from app.page import build_app
from dermrw.inference.classifier import Classifier

pytestmark = pytest.mark.slow
NAME = "-".join(["mrs", "smith", "4711"])  # joined, so that no constant of this file contains it
EQUAL, TRAINING = '{"prevalence": "equal"}', '{"prevalence": "training"}'


@contextlib.contextmanager
def serving(model: Path) -> Iterator[Client]:
    """Runs the demo in this process, so that its memory can be searched."""
    bound = bind_socket("127.0.0.1", 0)
    app = build_app(Engine(Classifier(model)), lambda name: name == "127.0.0.1")
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield Client(f"http://127.0.0.1:{bound.getsockname()[1]}")
    finally:
        server.should_exit = True
        thread.join(SECONDS)


def heartbeat(client: Client, page: str) -> socket.socket:
    """Opens the connection that an open page keeps."""
    host, _, port = client.url.removeprefix("http://").partition(":")
    opened = socket.create_connection((host, int(port)))
    opened.sendall(f"GET /gradio_api/heartbeat/{page} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
    assert b"200" in opened.recv(1000)
    return opened


def holders(text: str) -> list[str]:
    """Describes all objects known to the garbage collector that refer to a string or bytes containing `text`."""
    gc.collect()
    descriptions: list[str] = []
    for holder in gc.get_objects():
        if holder is globals() or type(holder).__name__ == "frame":  # of this test
            continue
        for value in gc.get_referents(holder):
            if (isinstance(value, str) and text in value) or (isinstance(value, bytes) and text.encode() in value):
                descriptions.append(f"{type(holder)}: {str(holder).replace(text, '<NAME>')[:400]}")
    return descriptions


def test_nothing_is_left_of_a_closed_page(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.gradio_hardening.UNREAD_SECONDS", 0.2)
    picture = draw(tmp_path / "x.jpg").read_bytes()
    with serving(model) as client:
        functions = json.loads(client.ask("/config")[1])["dependencies"]
        one, many = (f["id"] for f in functions if len(f["inputs"]) == 2)

        def upload() -> dict[str, Any]:
            return {"path": client.upload(f"{NAME}.jpg", picture), "meta": {"_type": "gradio.FileData"}}

        def join(number: int, data: list[Any], page: str) -> None:
            status, body = client.ask(
                "/gradio_api/queue/join", {"data": data, "fn_index": number, "session_hash": page}
            )
            assert status == 200, body

        def answer(number: int, data: list[Any], page: str) -> str:
            join(number, data, page)
            return client.ask(f"/gradio_api/queue/data?session_hash={page}")[1]

        open_pages = [heartbeat(client, page) for page in ("page", "another", "gone")]
        file = upload()
        assert "probability at equal prevalence" in answer(one, [[file], EQUAL], "page")
        # another prevalence needs no new upload, and another page has no access
        assert "probability at the training data" in answer(one, [[file], TRAINING], "page")
        assert "upload it again" in answer(one, [[file], EQUAL], "another")
        preview = '{"pictures": [{"turn": 1, "crop": [0, 0, 200, 200], "preview": true}]}'
        cropped = answer(one, [[upload()], preview], "page")
        assert "data:image/jpeg" in cropped and NAME in cropped
        assert "upload it again" in answer(one, [[file], EQUAL], "page")  # only the last lesion is kept
        assert NAME in answer(one, [[upload()], EQUAL], "page")
        assert NAME in answer(many, [[upload()], EQUAL], "page")
        join(one, [[upload()], EQUAL], "gone")  # whose result nobody reads
        time.sleep(1)
        del file
        assert holders(NAME)  # the page still has it
        for page in open_pages:
            page.close()
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not holders(NAME))
        assert holders(NAME) == []
