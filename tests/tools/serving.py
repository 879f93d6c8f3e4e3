"""The demo as its command serves it, and what speaks to it: a browser, a program, an attacker."""

import atexit
import base64
import contextlib
import http.client
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
Form = Sequence[tuple[str, str | tuple[str, bytes]]]  # fields, and files as (name, content)


class Client:
    """What a program asks of a demo."""

    def __init__(self, url: str, **headers: str) -> None:
        """`headers` are sent with every request."""
        self.url, self.headers = url, headers

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
        """Any request: status, and all that comes back. A certificate is not looked at."""
        scheme, _, place = self.url.partition("://")
        connection = (
            http.client.HTTPConnection(place, timeout=1200)
            if scheme == "http"
            else http.client.HTTPSConnection(place, timeout=1200, context=ssl._create_unverified_context())
        )
        with contextlib.closing(connection):
            named = {name.replace("_", "-").title(): value for name, value in {**self.headers, **headers}.items()}
            connection.request(method, path, body, named)
            reply = connection.getresponse()
            return reply.status, reply.read().decode()

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        """A request that no browser would send: POST where there is a body, as JSON."""
        if body is None:
            return self.send("GET", path, **headers)
        return self.send("POST", path, json.dumps(body).encode(), content_type="application/json", **headers)

    def form(self, path: str, form: Form, **headers: str) -> tuple[int, str]:
        """A form, as `curl -F` sends it."""
        mark, parts = uuid.uuid4().hex, b""
        for name, value in form:
            at = (
                f'; filename="{value[0]}"\r\nContent-Type: application/octet-stream' if isinstance(value, tuple) else ""
            )
            content = value[1] if isinstance(value, tuple) else value.encode()
            parts += (
                f'--{mark}\r\nContent-Disposition: form-data; name="{name}"{at}\r\n\r\n'.encode() + content + b"\r\n"
            )
        parts += f"--{mark}--\r\n".encode()
        return self.send("POST", path, parts, content_type=f"multipart/form-data; boundary={mark}", **headers)

    def classify(self, *pictures: Path, **fields: str) -> dict[str, Any]:
        """The API's answer to the pictures of a lesion."""
        form: list[Any] = [("image", (path.name, path.read_bytes())) for path in pictures]
        status, said = self.form("/classify", [*form, *fields.items()])
        assert status == 200, said
        answer: dict[str, Any] = json.loads(said)
        return answer

    def upload(self, name: str, content: bytes) -> str:
        """An upload as the page makes it: its path on the server."""
        status, said = self.form("/gradio_api/upload", [("files", (name, content))])
        assert status == 200, said
        path: str = json.loads(said)[0]
        return path


class Server(Client):
    """`python -m app MODEL` as a process of its own."""

    def __init__(self, model: Path, folder: Path, *options: str, **variables: str) -> None:
        self.temporary = folder / "tmp"
        self.temporary.mkdir(exist_ok=True)
        # without what would switch off the libraries' reports home on a developer's machine only
        hidden = ("CI", "ORT_DISABLE_TELEMETRY", "GRADIO_ANALYTICS_ENABLED")
        environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower() and k not in hidden}
        environment |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1", **variables}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app", str(model), "--port", "0", *options],
            cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        atexit.register(self.process.kill)  # one that hangs would outlive a failed test
        self.said = ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if found := re.search(r"http://[^ ]*?:(\d+)", line):
                super().__init__(f"http://127.0.0.1:{found[1]}")
                break
        else:
            raise AssertionError(self.said)
        for _ in range(12_000):
            with contextlib.suppress(OSError):
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{self.url}/health").read()
                return
            time.sleep(0.1)

    def files(self) -> list[str]:
        """The names of all files that it keeps."""
        return sorted(path.name for path in self.temporary.rglob("*") if path.is_file())

    def end(self) -> str:
        """Ends it as a service manager does; returns all that it said."""
        self.process.send_signal(signal.SIGTERM)
        rest, _ = self.process.communicate(timeout=1200)
        return self.said + rest


def basic(user: str, password: str) -> str:
    """HTTP's Basic credentials."""
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


class Visit:
    """A page that is open, with whatever it asked for and complained of."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1180, "height": 900}, **options})
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)
        self.page.wait_for_selector("#upload input[type=file]", state="attached")

    def give(self, *paths: Path, selector: str = ".answer", place: str = "upload", result: str = "result") -> str:
        """Gives files, as a choice in the file dialogue does; returns the answer's words."""
        self.page.set_input_files(f"#{place} input[type=file]", [str(path) for path in paths])
        self.page.wait_for_selector(f"#{result} {selector}")
        return str(self.page.inner_text(f"#{result}"))

    def clear(self) -> None:
        """Takes the files away."""
        self.page.click("#upload button[aria-label='Clear']")
        self.page.wait_for_selector("#result .answer", state="detached")
