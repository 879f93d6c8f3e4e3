"""What is answered at all: what the demo serves, asked of this server by its own name and from its own page."""

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import re
import time
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dermrw.errors import UserError

from .uploads import Uploads

# of Gradio's interface, what the page uses; the rest records, edits, proxies, fetches, and hands uploads out again
UPLOAD, PROGRESS = "/gradio_api/upload", "/gradio_api/upload_progress"
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
WRONG_SECONDS = 1  # that a wrong password takes, one after the other
WANTED = "The demo wants a password."
MOST_GUESSES = 20  # that wait for their turn
FIRST_SECONDS, LEAST_RATE = 10, 20_000  # a body must begin so soon, and then come with so many bytes a second
SILENT_SECONDS = 15  # at most, however much came before
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


class _Body:
    """A request's body, which ends where it comes too slowly: idle senders would keep others waiting."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._bytes, self._waited, self._whole = 0, 0.0, False
        self.gone = False

    async def __call__(self) -> Message:
        """The next part; whether the client is still there, once all has come."""
        if self._whole:
            return await self._receive()
        began = time.monotonic()
        try:
            allowed = max(0.0, FIRST_SECONDS + self._bytes / LEAST_RATE - self._waited)
            async with asyncio.timeout(min(allowed, SILENT_SECONDS)):
                message = await self._receive()
        except TimeoutError:
            message = {"type": "http.disconnect"}
        self._waited += time.monotonic() - began
        self._bytes += len(message.get("body", b""))
        self.gone = message["type"] == "http.disconnect"
        self._whole = self.gone or not message.get("more_body", False)
        return message


class Guard:
    """Refuses the rest, with a sentence, before Gradio sees it."""

    def __init__(self, app: ASGIApp, is_own: Callable[[str], bool], uploads: Uploads, password: str = "") -> None:
        self.app = app
        self.is_own = is_own
        self.uploads = uploads
        self.password = password.encode()
        self._known: set[bytes] = set()  # digests of the credentials that were right
        self._guessing, self._turn = 0, asyncio.Lock()
        self._announced = 0  # bytes of the uploads that are on their way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":  # starting and ending; websockets are off
            await self.app(scope, receive, send)
        elif refusal := self._refusal(scope):
            status, sentence = refusal
            await PlainTextResponse(f"{sentence}\n", status)(scope, receive, send)
        elif sentence := await self._stranger(scope):
            challenge = {"WWW-Authenticate": 'Basic realm="dermrw", charset="UTF-8"'}
            await PlainTextResponse(f"{sentence}\n", 401, challenge)(scope, receive, send)
        elif scope["path"].rstrip("/") == PROGRESS:
            await PlainTextResponse('data: {"msg": "done"}\n\n', media_type="text/event-stream")(scope, receive, send)
        else:
            announced = int(Headers(scope=scope).get("content-length", 0)) if scope["path"].rstrip("/") == UPLOAD else 0
            self._announced += announced
            try:
                await self._answer(scope, receive, send)
            finally:
                self._announced -= announced

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Gradio's answer; where it fails over a request that nobody's browser sends, no traceback of it is logged."""
        # Gradio would take its own address from this
        scope = {**scope, "headers": [(k, v) for k, v in scope["headers"] if k != b"x-forwarded-host"]}
        if (
            scope["path"].rstrip("/") == UPLOAD
        ):  # by its upload_id Gradio would keep how far each file has come, for good
            scope["query_string"] = b""
        begun, body = False, _Body(receive)

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, body, watched)
        except asyncio.CancelledError:  # the server ends; it would log where the request stood
            pass
        except Exception as error:
            if body.gone:
                if not begun:
                    await PlainTextResponse("The request came too slowly.\n", 408)(scope, receive, send)
                return
            print(f"app: a request could not be answered ({type(error).__name__})", flush=True)
            if not begun:
                await PlainTextResponse("The demo could not answer this request.\n", 500)(scope, receive, send)

    async def _stranger(self, scope: Scope) -> str:
        """Why it is refused where the request lacks the password (HTTP Basic, RFC 7617); nothing where it has it.

        The user's name is free. What was not seen to be right before waits for its turn, so that many guesses at once
        are no faster than one after the other.
        """
        if not self.password or scope["path"] == "/health":
            return ""
        given = Headers(scope=scope).get("authorization", "")
        digest = hashlib.sha256(given.encode()).digest()
        if digest in self._known:
            return ""
        if not given:
            return WANTED
        if self._guessing >= MOST_GUESSES:
            return "Too many wrong passwords: wait a minute."
        self._guessing += 1
        try:
            async with self._turn:
                if not self._is_right(given):
                    await asyncio.sleep(WRONG_SECONDS)
                    return WANTED
        finally:
            self._guessing -= 1
        if len(self._known) > 1000:  # names that somebody with the password makes up
            self._known.clear()
        self._known.add(digest)
        return ""

    def _is_right(self, given: str) -> bool:
        kind, _, coded = given.partition(" ")
        try:
            password = base64.b64decode(coded, validate=True).partition(b":")[2]
        except ValueError:
            return False
        return kind.lower() == "basic" and hmac.compare_digest(password, self.password)

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
        length, *more = headers.getlist("content-length") or [""]
        if "transfer-encoding" in headers:  # which would decide where the body ends, whatever the length says
            return 411, "A request must say how long it is, and not come in chunks."
        if more or not (length.isascii() and length.isdigit()):
            return 411, "A request must say how long it is (Content-Length)."
        most = {UPLOAD: MOST_UPLOAD, "/classify": MOST_REQUEST}.get(path, MOST_ELSE)
        if int(length) > most:
            return 413, f"A request of more than {most // 10**6:,} MB is not taken here."
        if path == UPLOAD and self.uploads.size() + self._announced + int(length) > MOST_KEPT:
            return 507, "Too many pictures wait for their answers: try again in a minute."
        if path == UPLOAD and self.uploads.room() < self._announced + int(length) + SPARE:
            return 507, "The demo has no room for this picture: whoever keeps it must make some on its disk."
        return None
