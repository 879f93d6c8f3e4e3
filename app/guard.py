"""What is answered at all: what the demo serves, asked of this server by its own name and from its own page."""

import asyncio
import base64
import hmac
import ipaddress
import re
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.uploads import Uploads
from dermrw.errors import UserError

# of Gradio's interface, what the page uses; the rest records, edits, proxies, fetches, and hands uploads out again
UPLOAD = "/gradio_api/upload"
INTERFACE = re.compile(
    r"/gradio_api/(upload|upload_progress|queue/(join|data|status)|info|app_id|startup-events|heartbeat/\w+|cancel"
    r"|reset|theme\.css)/?"
)
OWN = re.compile(r"/(|classify|health|config|theme\.css|favicon\.ico|manifest\.json|(assets|static)/[\w./-]+)")
MOST_REQUEST = 100_000_000  # bytes of a request with the pictures of one lesion
MOST_UPLOAD = 2_000_000_000  # of many at once
MOST_ELSE = 1_000_000
MOST_KEPT = 8_000_000_000  # of all uploads that wait for their answers
SPARE = 10_000_000  # bytes of the disk that are left to others
WRONG_SECONDS = 1  # before a wrong password is answered
HOST = re.compile(r"([\w.-]+|\[[0-9a-f:.]+\])(?::\d*)?")


def _name(host: str) -> str:
    """The name or address in a Host header's `name:port`; empty where it is neither."""
    found = HOST.fullmatch(host.lower())
    return found[1].strip("[]") if found else ""


def _address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def own_names(host: str, more: Sequence[str] = ()) -> Callable[[str], bool]:
    """Whether a name is one of this server's, which serves on the address `host`.

    A page elsewhere whose name was made to point to this machine (DNS rebinding) calls it by that name. On every
    interface (0.0.0.0 or ::) any address is fine: an address is no name, and can't be made to point elsewhere.

    Raises:
        UserError: one of `more` is more or less than a name.
    """
    for name in more:
        if not name or _name(name) != name.lower():
            raise UserError(
                f"--allow-host takes a name such as demo.example.org, without http:// and port, not {name!r}"
            )
    names = {"localhost", "127.0.0.1", "::1", host.lower(), *(name.lower() for name in more)}
    everywhere = host in ("0.0.0.0", "::")
    return lambda name: name in names or (everywhere and _address(name))


class Guard:
    """Refuses the rest, with a sentence, before Gradio sees it."""

    def __init__(self, app: ASGIApp, is_own: Callable[[str], bool], uploads: Uploads, password: str = "") -> None:
        self.app = app
        self.is_own = is_own
        self.uploads = uploads
        self.password = password.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":  # starting and ending; websockets are off
            await self.app(scope, receive, send)
        elif refusal := self._refusal(scope):
            status, sentence = refusal
            await PlainTextResponse(f"{sentence}\n", status)(scope, receive, send)
        elif not self._is_known(scope):
            await asyncio.sleep(WRONG_SECONDS)
            challenge = {"WWW-Authenticate": 'Basic realm="dermrw", charset="UTF-8"'}
            await PlainTextResponse("The demo wants a password.\n", 401, challenge)(scope, receive, send)
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Gradio's answer; where it fails over a request that nobody's browser sends, no traceback of it is logged."""
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:
            print(f"app: a request could not be answered ({type(error).__name__})", flush=True)
            if not begun:
                await PlainTextResponse("The demo could not answer this request.\n", 500)(scope, receive, send)

    def _is_known(self, scope: Scope) -> bool:
        """Whether the request has the password (HTTP Basic, RFC 7617), if there is one. The user's name is free."""
        if not self.password or scope["path"] == "/health":
            return True
        kind, _, coded = Headers(scope=scope).get("authorization", "").partition(" ")
        try:
            given = base64.b64decode(coded, validate=True).partition(b":")[2]
        except ValueError:
            return False
        return kind.lower() == "basic" and hmac.compare_digest(given, self.password)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers, path = Headers(scope=scope), scope["path"]
        host, origin = headers.get("host", "").lower(), headers.get("origin")
        if not self.is_own(_name(host)):
            return 400, "The demo isn't served by this name: `python -m app --allow-host NAME` adds one."
        if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
            return 403, "The demo answers to its own page, not to another's."
        if not (OWN.fullmatch(path) or INTERFACE.fullmatch(path)):
            return 404, "The demo has no such interface."
        return self._too_large(path.rstrip("/"), headers) if scope["method"] not in ("GET", "HEAD") else None

    def _too_large(self, path: str, headers: Headers) -> tuple[int, str] | None:
        """Before anything of a body is read. A server behind a proxy gets a length from it."""
        length = headers.get("content-length", "")
        if "transfer-encoding" in headers:  # which would decide where the body ends, whatever the length says
            return 411, "A request must say how long it is, and not come in chunks."
        if not (length.isascii() and length.isdigit()):
            return 411, "A request must say how long it is (Content-Length)."
        most = {UPLOAD: MOST_UPLOAD, "/classify": MOST_REQUEST}.get(path, MOST_ELSE)
        if int(length) > most:
            return 413, f"A request of more than {most // 10**6:,} MB is not taken here."
        if path == UPLOAD and self.uploads.size() + int(length) > MOST_KEPT:
            return 507, "Too many pictures wait for their answers: try again in a minute."
        if path == UPLOAD and self.uploads.room() < int(length) + SPARE:
            return 507, "The demo has no room for this picture: whoever keeps it must make some on its disk."
        return None
