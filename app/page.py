"""The web page and its server: Gradio mounted in a FastAPI app. The browser loads nothing from other servers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any

from .gradio_hardening import MAX_WAITING, NOT_HERE, UPLOADS, Page, upload_field  # isort: skip  (before Gradio, see there)

import gradio
from fastapi import FastAPI, Request, Response

from dermrw.errors import UserError
from dermrw.inference.lesion import combine_explanations
from dermrw.inference.messages import adapted

from .api import add_api
from .ask import parse
from .engine import MAX_BYTES, MAX_PICTURES, Engine, Examined, Picture, plain_name
from .middleware import MAX_REQUEST_BYTES, Guard
from .page_cache import LatestCalls, PageCache
from .render import Given, error_box, fixed_part, lesion_result
from .table import Row, Upload, classify_many

HERE = Path(__file__).parent
CSS = (HERE / "page.css").read_text(encoding="utf-8")
# one scope for all; the first file explains the others
SCRIPTS = ("page", "heat", "files", "viewer", "crop", "prevalence", "lesion", "recent", "many", "start")
SCRIPT = "() => {\n" + "\n".join((HERE / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS) + "\n}"
SWEEP_SECONDS, UNUSED_SECONDS = (
    20,
    600,
)  # how often uploads are swept, and how long one is kept without a request for it
# with this policy, the browser itself refuses to load anything from, or send anything to, another server
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' ws: wss: blob: data:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)


def take_upload(path: str) -> Picture:
    """Returns an upload and removes it from the disk.

    Raises:
        UserError: there is no such upload, or it is too large.
    """
    content = UPLOADS.take(path)
    if content is None:
        raise UserError(NOT_HERE)
    name = plain_name(path)
    if len(content) > MAX_BYTES:
        raise UserError(f"{name} is larger than {MAX_BYTES // 10**6} MB: reduce its size")
    return Picture(name, content)


def carried(html: str) -> str:
    """Returns a result as it is sent to the page: in an attribute, so that only the page's script shows it."""
    return f'<div data-html="{escape(html)}"></div>'


class PageEvents:
    """The functions that the page's events call, with the results of the open pages."""

    def __init__(self, engine: Engine, lesions: PageCache[Examined], rows: PageCache[Upload]) -> None:
        """`lesions` keeps the results of the first tab, `rows` those of the second, and its tables."""
        self.engine, self.lesions, self.rows = engine, lesions, rows
        self.tables = LatestCalls()

    def show_lesion(self, request: gradio.Request, paths: list[str], text: str) -> str:
        """Returns the result for the uploaded images of one lesion, as HTML; `text` is an `Ask`."""
        page = request.session_hash or ""
        html, examined = self._classify_lesion(paths, self.lesions.get(page, reopen=True), text)
        self.lesions.put(page, examined)
        return carried(html)

    def _classify_lesion(
        self, paths: list[str], known: dict[str, Examined], text: str
    ) -> tuple[str, dict[str, Examined]]:
        """Returns the result as HTML, and each image's result by path; `known` are those from before."""
        try:
            ask = parse(text)
        except UserError as error:
            return error_box(str(error)), {}
        if not paths:
            return "", {}
        errors: list[tuple[str, str]] = []  # message, file name
        examined: dict[str, Examined] = {}
        places: list[int] = []
        for place, path in enumerate(paths[:MAX_PICTURES]):
            changes = ask.picture(place)
            before = known.get(path)
            try:
                if before is None or before.edit != changes.edit or changes.preview > bool(before.preview):
                    before = self.engine.examine(take_upload(path), changes.edit, changes.preview)
                examined[path] = before
                places.append(place)
            except UserError as error:
                errors.append((str(error), plain_name(path)))
        surplus = paths[MAX_PICTURES:]
        if surplus:
            for path in surplus:
                UPLOADS.drop(path)
            left_out = ", ".join(map(plain_name, surplus))
            one = f"one {self.engine.words.thing}"
            errors.append((f"at most {MAX_PICTURES} images of {one} are used, without {left_out}", ""))
        code = "gone" if any(message == NOT_HERE for message, _ in errors) else ""
        if not examined:
            return "".join(error_box(message, name, call=ask.call, code=code) for message, name in errors), {}
        try:
            prevalence, shares = ask.shares(self.engine.info)
            lesion = combine_explanations([one.explanation for one in examined.values()], self.engine.info)
            given = Given(ask.call, places, [one.preview for one in examined.values()], errors, code)
            names = list(map(plain_name, examined))
            html = lesion_result(lesion, names, self.engine, prevalence, shares, given)
        except UserError as error:
            message = adapted(str(error), self.engine.info)
            html = error_box(message, title=self.engine.words.own_prevalence, call=ask.call)
        return html, examined

    def announce_table(self, page: str, inputs: list[Any]) -> None:
        """Stops a page's older call of `show_table` when a newer one enters the queue."""
        with contextlib.suppress(UserError, IndexError, TypeError, AttributeError):
            self.tables.announce(page, parse(inputs[1]).call)

    def show_table(self, request: gradio.Request, paths: list[str], text: str) -> Iterator[str]:
        """Yields the table of many uploaded images, as HTML, again and again while it grows; `text` is an `Ask`."""
        page = request.session_hash or ""
        try:
            ask = parse(text)
        except UserError as error:
            yield carried(error_box(str(error)))
            return
        with self.tables.turn(page, ask.call, paths) as (superseded, abandoned):
            for path in abandoned:
                UPLOADS.drop(path)
            known = self.rows.get(page, reopen=True)
            rows = {path: known[path] for path in paths if path in known}
            try:
                prevalence, shares = ask.shares(self.engine.info)
                for html in classify_many(
                    self.engine, paths, take_upload, UPLOADS.drop, UPLOADS.touch, prevalence, shares, rows, superseded
                ):
                    lost = any(isinstance(row, Row) and row.error == NOT_HERE for row in rows.values())
                    code = ' data-code="gone"' if lost else ""  # then the script sends the files again
                    yield carried(f'<div data-call="{ask.call}"{code}>{html}</div>')
            except UserError as error:
                yield carried(error_box(adapted(str(error), self.engine.info), title=self.engine.words.own_prevalence))
            finally:
                self.rows.put(page, rows)

    def close_page(self, request: gradio.Request) -> None:
        """Deletes the results of a page that was closed."""
        page = request.session_hash or ""
        self.lesions.close(page)
        self.rows.close(page)
        for path in self.tables.close(page):
            UPLOADS.drop(path)


def build_page(events: PageEvents) -> Page:
    """Returns the Gradio page, whose events call the methods of `events`.

    The page's own scripts upload the files and show the results. Gradio's components only carry the calls: hidden
    fields, which are checked, hidden buttons, and hidden results.
    """
    engine, words = events.engine, events.engine.words
    with Page(title=f"dermrw: {'skin ' * words.ham10000}{words.subject} classifier") as page:
        gradio.HTML(fixed_part("head", engine), padding=False)
        with gradio.Tabs():
            with gradio.Tab(f"One {words.subject}"), gradio.Row(equal_height=False, elem_id="desk"):
                with gradio.Column(scale=3, min_width=0, elem_id="left"):
                    gradio.HTML(fixed_part("view", engine), elem_id="view", padding=False)
                    gradio.HTML(fixed_part("tools", engine), elem_id="tools", padding=False)
                with gradio.Column(scale=2, min_width=0, elem_id="right"):
                    # above the answer, whose length would move it
                    gradio.HTML(fixed_part("prevalence", engine), elem_id="one-prevalence", padding=False)
                    gradio.HTML(fixed_part("result", engine), elem_id="answer", padding=False)
            with gradio.Tab("Many images"):
                gradio.HTML(fixed_part("many", engine), padding=False)
                gradio.HTML(fixed_part("prevalence", engine), elem_id="many-prevalence", padding=False)
                gradio.HTML(fixed_part("score", engine), padding=False)
                gradio.HTML('<div id="table"></div>', padding=False)
        gradio.HTML(fixed_part("texts", engine))
        gradio.HTML(fixed_part("foot", engine))
        # a newer call of the table stops the older one on the server; one of the lesion waits for it in the browser
        events_of = (("one", events.show_lesion, "always_last", 2), ("many", events.show_table, "multiple", 8))
        page.announce["many"] = events.announce_table
        for name, function, mode, most in events_of:
            with gradio.Column(elem_id=f"{name}-carrier", elem_classes="carrier"):
                files = upload_field(name, f"{name}-files")
                text = gradio.Textbox("", label=name, elem_id=f"{name}-ask")
                result = gradio.HTML("", elem_id=f"{name}-raw")
                go = gradio.Button("go", elem_id=f"{name}-go")
            called = go.click(
                function, [files, text], result, js=f"() => window.dermrw.{name}.call()", api_visibility="private",
                show_progress="hidden", concurrency_limit=most, concurrency_id=name, trigger_mode=mode,
            )  # fmt: skip
            called.failure(None, js=f"() => window.dermrw.{name}.failed()", api_visibility="private")
        page.unload(events.close_page)
    page.queue(max_size=MAX_WAITING)
    page.has_launched = True  # Gradio checks paths only in a page that was launched; this one is mounted
    return page


async def add_security_headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Middleware: adds the content security policy and other headers to every response."""
    response = await call_next(request)
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


@contextlib.asynccontextmanager
async def _forgetting_unread(page: Page) -> AsyncIterator[None]:
    """Drops the results that no client fetches, while the server runs."""
    task = asyncio.create_task(page.forget_unread())
    yield
    task.cancel()


def build_app(engine: Engine, is_own: Callable[[str], bool], password: str = "") -> FastAPI:
    """Returns the server's app: the page at /, the API at /classify, a health check at /health.

    Args:
        engine: the model and the labelled cases.
        is_own: returns whether a host name is one that this server is served by.
        password: required for every request except the health check; empty for none.
    """
    events = PageEvents(engine, PageCache(), PageCache())
    page = build_page(events)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lambda _: _forgetting_unread(page))
    add_api(app, engine)
    app.middleware("http")(add_security_headers)
    app.add_middleware(Guard, is_own=is_own, uploads=UPLOADS, password=password)  # added last: it runs first
    UPLOADS.keep_sweeping(SWEEP_SECONDS, UNUSED_SECONDS, events.lesions.sweep, events.rows.sweep)
    theme = gradio.themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "Arial", "sans-serif"],
        font_mono=["ui-monospace", "Consolas", "monospace"],
    )
    return gradio.mount_gradio_app(
        app, page, "/", css=CSS, js=SCRIPT, theme=theme, footer_links=[], show_error=False,
        max_file_size=MAX_REQUEST_BYTES, ssr_mode=False, run_history=False, enable_monitoring=False, pwa=False,
        mcp_server=False,
    )  # fmt: skip
