"""What the process still holds of a picture and its name after the answer, and after the page was closed."""

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
from tools.serving import Client

from app.__main__ import free_port
from app.engine import Engine
from app.page import build_app
from dermrw.inference.classifier import Classifier

NAME = "-".join(["mrs", "smith", "4711"])  # so that no constant of this file holds it
REST = ["equal", *[None] * 7]


@contextlib.contextmanager
def serving(model: Path) -> Iterator[Client]:
    """The demo in this process, so that its memory can be looked through."""
    bound = free_port("127.0.0.1", 0)
    app = build_app(Engine(Classifier(model)), lambda name: name == "127.0.0.1")
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.05)
        yield Client(f"http://127.0.0.1:{bound.getsockname()[1]}")
    finally:
        server.should_exit = True
        thread.join(20)


def heartbeat(client: Client, page: str) -> socket.socket:
    """What an open page keeps open."""
    place, _, port = client.url.removeprefix("http://").partition(":")
    opened = socket.create_connection((place, int(port)))
    opened.sendall(f"GET /gradio_api/heartbeat/{page} HTTP/1.1\r\nHost: {place}:{port}\r\n\r\n".encode())
    assert b"200" in opened.recv(1000)
    return opened


def holders(text: str) -> list[str]:
    """What holds a string, or bytes, with this in it, of all that the garbage collector knows."""
    gc.collect()
    found: list[str] = []
    for one in gc.get_objects():
        if one is globals() or type(one).__name__ == "frame":  # this test's own
            continue
        for value in gc.get_referents(one):
            if isinstance(value, str | bytes) and (text if isinstance(value, str) else text.encode()) in value:
                found.append(f"{type(one)}: {str(one).replace(text, '<NAME>')[:400]}")
    return found


def test_nothing_is_left_of_a_closed_page(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.gradio_hardening.UNREAD_EVERY", 0.2)
    picture = draw(tmp_path / "x.jpg").read_bytes()
    with serving(model) as client:
        functions = json.loads(client.ask("/config")[1])["dependencies"]
        one, many = (f["id"] for f in functions if len(f["inputs"]) == 9)

        def give() -> dict[str, Any]:
            return {"path": client.upload(f"{NAME}.jpg", picture), "meta": {"_type": "gradio.FileData"}}

        def join(number: int, data: list[Any], page: str) -> None:
            status, said = client.ask(
                "/gradio_api/queue/join", {"data": data, "fn_index": number, "session_hash": page}
            )
            assert status == 200, said

        def answer(number: int, data: list[Any], page: str) -> str:
            join(number, data, page)
            return client.ask(f"/gradio_api/queue/data?session_hash={page}")[1]

        open_pages = [heartbeat(client, page) for page in ("page", "another", "gone")]
        file = give()
        assert "at equal prevalence" in answer(one, [[file], *REST], "page")
        # another prevalence needs no other upload, and another page has no part in it
        assert "at the training data" in answer(one, [[file], "training", *REST[1:]], "page")
        assert "upload it again" in answer(one, [[file], *REST], "another")
        assert NAME in answer(many, [[give()], *REST], "page")
        join(one, [[give()], *REST], "gone")  # nobody comes to read it
        time.sleep(1)
        del file
        assert holders(NAME)  # the page still has it
        for page in open_pages:
            page.close()
        for _ in range(10):
            if not (left := holders(NAME)):
                break
            time.sleep(2)
        assert not left
