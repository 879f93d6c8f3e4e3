"""What is answered at all: what the demo serves, asked of this server by its own name and from its own page."""

import ipaddress
import re
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.uploads import Uploads
from dermrw.errors import UserError

# of Gradio's interface, what the page and gradio_client use; the rest records, edits, proxies and fetches
INTERFACE = re.compile(
    r"/gradio_api/(upload|upload_progress|queue/(join|data|status)|call/(v2/)?classify(/\w+)?|info|openapi\.json"
    r"|app_id|startup-events|heartbeat/\w+|cancel|reset|theme\.css)/?"
)
HOST = re.compile(r"([\w.-]+|\[[0-9a-f:.]+\])(?::\d*)?")
FILE = "/gradio_api/file="


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

    def __init__(self, app: ASGIApp, is_own: Callable[[str], bool], uploads: Uploads) -> None:
        self.app = app
        self.is_own = is_own
        self.uploads = uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":  # starting and ending; websockets are off
            await self.app(scope, receive, send)
        elif refusal := self._refusal(scope):
            status, sentence = refusal
            await PlainTextResponse(f"{sentence}\n", status)(scope, receive, send)
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

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers, path = Headers(scope=scope), scope["path"]
        host, origin = headers.get("host", "").lower(), headers.get("origin")
        if not self.is_own(_name(host)):
            return 400, "The demo isn't served by this name: `python -m app --allow-host NAME` adds one."
        if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
            return 403, "The demo answers to its own page, not to another's."
        if path.startswith(FILE):
            if self.uploads.own(path.removeprefix(FILE)) is None:
                return 403, "There is no such upload here."
        elif path.startswith("/gradio_api") and not INTERFACE.fullmatch(path):
            return 404, "The demo has no such interface."
        return None
