"""Checks every request before Gradio sees it: host, origin, route, size, speed and password."""

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

# the part of Gradio's interface that the page uses; other routes record, edit, proxy, fetch, or return uploads
UPLOAD, PROGRESS = "/gradio_api/upload", "/gradio_api/upload_progress"
CLASSIFY = ("/classify", "/classify_images")
INTERFACE = re.compile(
    r"/gradio_api/(upload|upload_progress|queue/(join|data|status)|info|app_id|startup-events|heartbeat/\w+|cancel"
    r"|reset|theme\.css)/?"
)
OWN = re.compile(
    r"/(|classify(_images)?|health|api|openapi\.json|config|theme\.css|favicon\.ico|manifest\.json"
    r"|example/\d{1,3}|(assets|static)/[\w./-]+)"
)
MAX_REQUEST_BYTES = 100_000_000  # of a request to /classify or /classify_images
MAX_HELD_BYTES = 400_000_000  # of all requests to them, which are held in memory
MAX_UPLOAD_BYTES = 2_000_000_000  # of an upload by the page
MAX_OTHER_BYTES = 1_000_000  # of any other request
MAX_KEPT_BYTES = 8_000_000_000  # of all uploads that wait to be classified
RESERVED_BYTES = 100_000_000  # of the rest of an upload, so that one that is announced but not sent blocks no others
SPARE_BYTES = 10_000_000  # of the disk's space that stay free
WRONG_SECONDS = 1  # that the check of a wrong password takes; passwords are checked one after the other
PASSWORD_REQUIRED = "This demo requires a password."
MAX_GUESSES = 20  # passwords that wait to be checked
FIRST_SECONDS, MIN_RATE = 10, 20_000  # a body must start within this time, then arrive at this rate (bytes per second)
SILENT_SECONDS = 15  # longest pause, whatever has arrived before
HOST = re.compile(r"([\w.-]+|\[[0-9a-f:.]+\])(?::\d*)?")


def _name(host: str) -> str:
    """Returns the name or address in a Host header's `name:port`; empty if the header is not valid."""
    match = HOST.fullmatch(host.lower())
    return match[1].strip("[]") if match else ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def own_names(host: str, allowed: Sequence[str] = ()) -> Callable[[str], bool]:
    """Returns a function that tells whether a host name is one of this server's, which listens on `host`.

    This stops DNS rebinding: a foreign page whose name points to this machine sends that name in its requests. A server
    on every interface (0.0.0.0 or ::) accepts any IP address, since an address cannot be rebound.

    Args:
        host: the address that the server listens on.
        allowed: further names.

    Raises:
        UserError: one of `allowed` is not a plain name.
    """
    for name in allowed:
        if not name or _name(name) != name.lower():
            raise UserError(
                f"--allow-host takes a name such as demo.example.org, without http:// and port, not {name!r}"
            )
    names = {"localhost", "127.0.0.1", "::1", host.lower(), *(name.lower() for name in allowed)}
    everywhere = host in ("0.0.0.0", "::")
    return lambda name: name in names or (everywhere and _is_address(name))


class _Body:
    """Receives a request's body, and disconnects clients that send too slowly: they would block others."""

    def __init__(self, receive: Receive, announced: int) -> None:
        self._receive, self._announced = receive, announced
        self._bytes, self._waited, self._complete = 0, 0.0, False
        self.disconnected = False

    async def __call__(self) -> Message:
        """Returns the next message: a part of the body, then the server's own messages."""
        if self._complete:
            return await self._receive()
        began = time.monotonic()
        try:
            allowed = max(0.0, FIRST_SECONDS + self._bytes / MIN_RATE - self._waited)
            async with asyncio.timeout(min(allowed, SILENT_SECONDS)):
                message = await self._receive()
        except TimeoutError:
            message = {"type": "http.disconnect"}
        self._waited += time.monotonic() - began
        self._bytes += len(message.get("body", b""))
        self.disconnected = message["type"] == "http.disconnect"
        self._complete = self.disconnected or not message.get("more_body", False)
        return message

    @property
    def reserved(self) -> int:
        """Bytes that are still to be stored: of what was announced at most `RESERVED_BYTES`."""
        return max(0, min(self._announced - self._bytes, RESERVED_BYTES))


class Guard:
    """Refuses requests that the demo does not serve, each with a status and a sentence."""

    def __init__(self, app: ASGIApp, is_own: Callable[[str], bool], uploads: Uploads, password: str = "") -> None:
        self.app = app
        self.is_own = is_own
        self.uploads = uploads
        self.password = password.encode()
        self._accepted: set[bytes] = set()  # digests of correct credentials
        self._guesses, self._lock = 0, asyncio.Lock()
        self._arriving: set[_Body] = set()  # uploads that are being received
        self._held = 0  # bytes of the requests to /classify and /classify_images

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":  # startup and shutdown; websockets are off
            await self.app(scope, receive, send)
        elif refusal := self._refusal(scope):
            status, message = refusal
            later = {"Retry-After": "5"} if status == 503 else None
            await PlainTextResponse(f"{message}\n", status, later)(scope, receive, send)
        elif message := await self._unauthorised(scope):
            challenge = {"WWW-Authenticate": 'Basic realm="dermrw", charset="UTF-8"'}
            await PlainTextResponse(f"{message}\n", 401, challenge)(scope, receive, send)
        elif scope["path"].rstrip("/") == PROGRESS:
            await PlainTextResponse('data: {"msg": "done"}\n\n', media_type="text/event-stream")(scope, receive, send)
        else:
            path, length = scope["path"].rstrip("/"), int(Headers(scope=scope).get("content-length", 0))
            body, held = _Body(receive, length), length if path in CLASSIFY else 0
            self._held += held
            if path == UPLOAD:
                self._arriving.add(body)
            try:
                await self._answer(scope, body, send)
            finally:
                self._held -= held
                self._arriving.discard(body)

    async def _answer(self, scope: Scope, body: _Body, send: Send) -> None:
        """Passes the request to Gradio. If Gradio fails, no traceback is logged: it may contain the request."""
        # Gradio would take its own address from this header
        scope = {**scope, "headers": [(k, v) for k, v in scope["headers"] if k != b"x-forwarded-host"]}
        if scope["path"].rstrip("/") == UPLOAD:  # Gradio would never delete the progress that it keeps by upload_id
            scope["query_string"] = b""
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, body, send_and_note)
        except asyncio.CancelledError:  # shutdown: a traceback would be logged
            pass
        except Exception as error:
            if body.disconnected:
                if not started:
                    await PlainTextResponse("The request arrived too slowly.\n", 408)(scope, body, send)
                return
            print(f"app: a request failed ({type(error).__name__})", flush=True)
            if not started:
                await PlainTextResponse("The demo failed to answer this request.\n", 500)(scope, body, send)

    async def _unauthorised(self, scope: Scope) -> str:
        """Returns why the request is refused for lack of the password (HTTP Basic, RFC 7617); empty if it is accepted.

        Any user name is accepted. Credentials that were not accepted before are checked one after the other, so that
        many simultaneous guesses are no faster.
        """
        if not self.password or scope["path"] == "/health":
            return ""
        credentials = Headers(scope=scope).get("authorization", "")
        digest = hashlib.sha256(credentials.encode()).digest()
        if digest in self._accepted:
            return ""
        if not credentials:
            return PASSWORD_REQUIRED
        if self._guesses >= MAX_GUESSES:
            return "Too many attempts: wait a minute."
        self._guesses += 1
        try:
            async with self._lock:
                if not self._is_correct(credentials):
                    await asyncio.sleep(WRONG_SECONDS)
                    return PASSWORD_REQUIRED
        finally:
            self._guesses -= 1
        if len(self._accepted) > 1000:  # bounds the memory: each user name is another entry
            self._accepted.clear()
        self._accepted.add(digest)
        return ""

    def _is_correct(self, credentials: str) -> bool:
        scheme, _, encoded = credentials.partition(" ")
        try:
            password = base64.b64decode(encoded, validate=True).partition(b":")[2]
        except ValueError:
            return False
        return scheme.lower() == "basic" and hmac.compare_digest(password, self.password)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Returns the status and the reason if the request is refused, whatever its password."""
        headers, path = Headers(scope=scope), scope["path"]
        host, origin = headers.get("host", "").lower(), headers.get("origin")
        if not self.is_own(_name(host)):
            return 400, "The demo is not served under this name: `python -m app --allow-host NAME` adds one."
        if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
            return 403, "The demo does not accept requests from other sites' pages."
        if not (OWN.fullmatch(path) or INTERFACE.fullmatch(path)):
            return 404, "Not found."
        return self._too_large(path.rstrip("/"), headers) if scope["method"] not in ("GET", "HEAD") else None

    def _too_large(self, path: str, headers: Headers) -> tuple[int, str] | None:
        """Checks the announced length before the body is read. Proxies send one, too."""
        length, *others = headers.getlist("content-length") or [""]
        if "transfer-encoding" in headers:  # it would override Content-Length
            return 411, "Chunked requests are not accepted: send Content-Length."
        if others or not (length.isascii() and length.isdigit()):
            return 411, "The request needs one valid Content-Length."
        limits = {UPLOAD: MAX_UPLOAD_BYTES} | dict.fromkeys(CLASSIFY, MAX_REQUEST_BYTES)
        limit = limits.get(path, MAX_OTHER_BYTES)
        if int(length) > limit:
            return 413, f"The request is larger than {limit // 10**6:,} MB."
        if path in CLASSIFY and self._held + int(length) > MAX_HELD_BYTES:
            return 503, "Too many requests are waiting: try again in a few seconds."
        reserved = sum(body.reserved for body in self._arriving)
        if path == UPLOAD and self.uploads.size() + reserved + int(length) > MAX_KEPT_BYTES:
            return 507, "Too many images are waiting: try again in a minute."
        if path == UPLOAD and self.uploads.free_space() < reserved + int(length) + SPARE_BYTES:
            return 507, "The server's disk is full: its administrator must free some space."
        return None
