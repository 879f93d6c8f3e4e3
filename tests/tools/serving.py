"""Starts the demo as a process, and the clients that the tests use: HTTP requests and a browser."""

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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 900  # limit for anything that is waited for: no test fails because a machine is slow
Form = Sequence[tuple[str, str | tuple[str, bytes]]]  # fields, and files as (name, content)


class Client:
    """An HTTP client of a demo."""

    def __init__(self, url: str, **headers: str) -> None:
        """`headers` are sent with every request."""
        self.url, self.headers = url, headers

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
        """Sends a request; returns status and body. It does not verify certificates."""
        scheme, _, place = self.url.partition("://")
        connection = (
            http.client.HTTPConnection(place, timeout=SECONDS)
            if scheme == "http"
            else http.client.HTTPSConnection(place, timeout=SECONDS, context=ssl._create_unverified_context())
        )
        with contextlib.closing(connection):
            named = {name.replace("_", "-").title(): value for name, value in {**self.headers, **headers}.items()}
            connection.request(method, path, body, named)
            reply = connection.getresponse()
            return reply.status, reply.read().decode()

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        """Sends a GET request, or with a body a POST request with JSON; returns status and body."""
        if body is None:
            return self.send("GET", path, None, **headers)
        return self.send("POST", path, json.dumps(body).encode(), content_type="application/json", **headers)

    def form(self, path: str, form: Form, **headers: str) -> tuple[int, str]:
        """Sends a form, as `curl -F` does; returns status and body."""
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
        """Returns the API's result for the images of a lesion."""
        form: list[Any] = [("image", (path.name, path.read_bytes())) for path in pictures]
        status, body = self.form("/classify", [*form, *fields.items()])
        assert status == 200, body
        answer: dict[str, Any] = json.loads(body)
        return answer

    def upload(self, name: str, content: bytes) -> str:
        """Uploads a file as the page does; returns its path on the server."""
        status, body = self.form("/gradio_api/upload", [("files", (name, content))])
        assert status == 200, body
        path: str = json.loads(body)[0]
        return path


class Server(Client):
    """`python -m app MODEL` in another process."""

    def __init__(
        self, model: Path, folder: Path, *options: str, program: Sequence[str] = ("-m", "app"), **variables: str
    ) -> None:
        """`folder` is the working directory; `variables` are added to the environment; `program` is for Python."""
        self.temporary = folder / "tmp"
        self.temporary.mkdir(exist_ok=True)
        # without the variables that disable the libraries' telemetry: the demo itself must do so
        hidden = ("CI", "ORT_DISABLE_TELEMETRY", "GRADIO_ANALYTICS_ENABLED")
        environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower() and k not in hidden}
        environment |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1", **variables}
        self.process = subprocess.Popen(
            [sys.executable, *program, str(model), "--port", "0", *options],
            cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        atexit.register(self.process.kill)  # also after a failed test
        self.output = ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if address := re.search(r"Serving http://[^ ]*?:(\d+)", line):
                super().__init__(f"http://127.0.0.1:{address[1]}")
                break
        else:
            raise AssertionError(self.output)
        wait_until(self._is_healthy)

    def _is_healthy(self) -> bool:
        with contextlib.suppress(OSError):
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{self.url}/health").read()
            return True
        assert self.process.poll() is None, self.output
        return False

    def files(self) -> list[str]:
        """Returns the names of all files in its temporary folder."""
        return sorted(path.name for path in self.temporary.rglob("*") if path.is_file())

    def end(self) -> str:
        """Stops the process as a service manager does; returns all of its output."""
        self.process.send_signal(signal.SIGTERM)
        rest, _ = self.process.communicate(timeout=SECONDS)
        return self.output + rest


def wait_until(condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Returns when the condition holds.

    Raises:
        AssertionError: it does not hold after this time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{condition} does not hold after {seconds:.0f} seconds"
        time.sleep(0.05)


def basic(user: str, password: str) -> str:
    """Returns the header of HTTP's Basic authentication."""
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


class Visit:
    """An open page in a browser, with the URLs that it requested and its error messages."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1180, "height": 900}, **options})
        self.context.set_default_timeout(1000 * SECONDS)
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)
        self.page.wait_for_selector("html[data-ready]", state="attached")

    def give(self, *paths: Path, selector: str = ".answer", place: str = "upload", result: str = "result") -> str:
        """Selects files in an upload field; returns the text of the result."""
        name = {"upload": "one"}.get(place, place)
        self.page.set_input_files(f"#{name}-input", [str(path) for path in paths])
        self.page.wait_for_selector(f"#{result} {selector}")
        return str(self.page.inner_text(f"#{result}"))

    def add(self, *paths: Path) -> str:
        """Adds pictures of the lesion that has an answer; returns the text of the new one."""
        before = self.page.get_attribute("#result .answer", "data-call")
        with self.page.expect_file_chooser() as chooser:
            self.page.click("#add")
        chooser.value.set_files([str(path) for path in paths])
        self.page.wait_for_selector(f"#result .answer:not([data-call='{before}'])")
        return str(self.page.inner_text("#result"))

    def open_table(self) -> None:
        """Opens the tab of many images, which Gradio builds when it is first opened."""
        self.page.click("button[role=tab]:has-text('Many images')")
        self.page.wait_for_selector("#many-input", state="attached")

    def clear(self) -> None:
        """Starts a new lesion."""
        self.page.click("#new")
        self.page.wait_for_selector("#result .answer", state="detached")
