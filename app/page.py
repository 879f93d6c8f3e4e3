"""The page and its server: Gradio inside an app of our own, which nothing but this machine serves."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from .gradio_hardening import MOST_WAITING, NOT_HERE, UPLOADS, Page, upload  # isort: skip  (before Gradio, which it restrains)

import gradio
import numpy as np
from fastapi import FastAPI, Request, Response

from dermrw.decisions.prevalence import parse_prevalence
from dermrw.diagnoses import DIAGNOSES
from dermrw.errors import UserError
from dermrw.inference.classifier import Explanation
from dermrw.inference.lesion import combine_explanations

from .api import add_api
from .engine import MOST_BYTES, MOST_PICTURES, Engine, Picture, plain_name
from .middleware import MOST_REQUEST, Guard
from .page_cache import Memory
from .render import answer, fault, fixed
from .table import MOST_IMAGES, Row, classify_many

HERE = Path(__file__).parent
CSS = (HERE / "page.css").read_text(encoding="utf-8")
SCRIPT = (HERE / "page.js").read_text(encoding="utf-8")
SWEEP_EVERY, UNASKED_SECONDS = 20, 600  # seconds: what was uploaded and never asked about is removed so late
# the browser itself refuses whatever would be fetched from, or sent to, another place
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' ws: wss: blob: data:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
SHARES = "Your patients’ shares"
SHARE = re.compile(r" *[0-9]{1,3}([.,][0-9]+)? *%? *")
EQUAL, TRAINING, OWN = "equal", "training", "own"
Paths = list[str]


def _take(path: str) -> Picture:
    content = UPLOADS.take(path)
    if content is None:
        raise UserError(NOT_HERE)
    name = plain_name(path)
    if len(content) > MOST_BYTES:
        raise UserError(f"{name} has more than {MOST_BYTES // 10**6} MB: shrink it")
    return Picture(name, content)


def _stated(choice: str, shares: tuple[str, ...], engine: Engine) -> np.ndarray | None:
    """The prevalence that was chosen `[C]`; None for equal."""
    if choice in (EQUAL, TRAINING):
        return parse_prevalence(choice, engine.info.codes, engine.info.prevalence)
    if not all(map(SHARE.fullmatch, shares)):
        raise UserError("say what share of your patients has each diagnosis, such as 2.5 or 0; all together 100 %")
    values = np.array([float(share.strip(" %").replace(",", ".")) for share in shares])
    if abs(values.sum() - 100) > 0.5:  # thirds, rounded
        raise UserError(f"the shares must sum to 100 %, not to {values.sum():.4g} %")
    return values / values.sum()


def _prevalence(engine: Engine, name: str) -> list[Any]:
    """The choice of a prevalence, and a number for each diagnosis."""
    nevi = engine.info.prevalence.get("nv", 0) / sum(engine.info.prevalence.values())
    choice = gradio.Radio(
        [
            ("Each diagnosis equally often", EQUAL),
            (f"As in the training data ({100 * nevi:.0f} % nevi)", TRAINING),
            ("As in my clinic", OWN),
        ],
        value=EQUAL, label="Probabilities for patients who come with", elem_id=f"{name}-prevalence",
    )  # fmt: skip
    with gradio.Group(visible=False) as group:
        shares = [
            # a text, since Gradio's number begins with 0: what nobody typed would pass for the clinic's
            gradio.Textbox("", label=f"{d.name}, %", max_lines=1, max_length=10)
            for d in DIAGNOSES
        ]  # fmt: skip
    choice.change(lambda value: gradio.Group(visible=value == OWN), choice, group, api_visibility="private")
    return [choice, *shares]


def build_page(engine: Engine, memory: Memory[Explanation], rows: Memory[Row]) -> Page:
    """The page for this model; what it remembers of pictures of a lesion, and of many lesions'."""

    def show(request: gradio.Request, paths: Paths, choice: str, *shares: str) -> Iterator[str]:
        page = request.session_hash or ""
        before = memory.of(page, still_open=True)
        if any(path not in before for path in paths):
            yield fixed("judging", engine)  # no older answer stands beside a new picture
        said, seen = judge(paths, before, choice, shares)
        memory.keep(page, seen)
        yield said

    def judge(
        paths: Paths, before: dict[str, Explanation], choice: str, shares: tuple[str, ...]
    ) -> tuple[str, dict[str, Explanation]]:
        if not paths:
            return "", {}
        wrong, names = [], []
        seen: dict[str, Explanation] = {}
        for path in paths[:MOST_PICTURES]:
            name = plain_name(path)
            try:
                seen[path] = before[path] if path in before else engine.explain(_take(path))
                names.append(name)
            except UserError as error:
                wrong.append((str(error), name))
        if len(paths) > MOST_PICTURES:
            for path in paths[MOST_PICTURES:]:
                UPLOADS.drop(path)
            others = ", ".join(map(plain_name, paths[MOST_PICTURES:]))
            wrong.append((f"of one lesion {MOST_PICTURES} pictures are taken, and not {others}", ""))
        if not seen:
            return "".join(fault(message, name) for message, name in wrong), {}
        faults = [fault(message, name, title="Left out") for message, name in wrong]
        try:
            lesion = combine_explanations(list(seen.values()), engine.info)
            said = answer(lesion, names, engine, choice, _stated(choice, shares, engine))
        except UserError as error:
            return "".join([*faults, fault(str(error), title=SHARES)]), seen
        return "".join([*faults, said]), seen

    def show_many(request: gradio.Request, paths: Paths, choice: str, *shares: str) -> Iterator[str]:
        page = request.session_hash or ""
        before = rows.of(page, still_open=True)
        said = {path: before[path] for path in paths if path in before}
        try:
            stated = _stated(choice, shares, engine)
        except UserError as error:
            rows.keep(page, said)
            yield fault(str(error), title=SHARES)
            return
        try:
            yield from classify_many(engine, paths, _take, UPLOADS.drop, UPLOADS.touch, choice, stated, said)
        finally:
            rows.keep(page, said)

    def forget(request: gradio.Request) -> None:
        memory.close(request.session_hash or "")
        rows.close(request.session_hash or "")

    with Page(title="dermrw: seven diagnoses, with doubt") as page:
        gradio.HTML(fixed("head", engine))
        with gradio.Tabs():
            with gradio.Tab("One lesion"), gradio.Row(equal_height=False):
                with gradio.Column(scale=2, min_width=280, elem_id="asking"):
                    one = upload("Dermoscopic image, or several of one lesion", "upload")
                    how_often = _prevalence(engine, "one")
                with gradio.Column(scale=3, min_width=280):
                    result = gradio.HTML(fixed("waiting", engine), elem_id="result", padding=False)
            with gradio.Tab("Many images"):
                how_often_many = _prevalence(engine, "many")
                many = upload(f"Up to {MOST_IMAGES} dermoscopic images of different lesions", "many")
                table = gradio.HTML(fixed("waiting", engine), elem_id="table", padding=False)
        gradio.HTML(fixed("texts", engine))
        gradio.HTML(fixed("foot", engine))
        answers: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
        gradio.on(
            [one.change, *_changes(how_often)], show, [one, *how_often], result,
            concurrency_id="picture", concurrency_limit=2, trigger_mode="always_last", **answers,
        )  # fmt: skip
        gradio.on(
            [many.change, *_changes(how_often_many)], show_many, [many, *how_often_many], table,
            concurrency_id="many", concurrency_limit=2, trigger_mode="always_last", **answers,
        )  # fmt: skip
        page.unload(forget)
    page.queue(max_size=MOST_WAITING)
    page.has_launched = True  # Gradio's own check of paths: off in a page that is mounted, as this is, and not launched
    return page


def _changes(how_often: list[Any]) -> list[Any]:
    """When another prevalence was chosen: not at each sign that is typed."""
    choice, *shares = how_often
    return [choice.change, *(event for share in shares for event in (share.blur, share.submit))]


def build_app(engine: Engine, is_own: Callable[[str], bool], password: str = "") -> FastAPI:
    """The server's app: the page at /, /classify for programs, a health check at /health.

    Args:
        engine: the model, and the labelled cases.
        is_own: whether a host's name is one that this server is served by.
        password: that every request must have, but for the health check; empty: none.
    """
    memory: Memory[Explanation] = Memory()
    rows: Memory[Row] = Memory()
    page = build_page(engine, memory, rows)

    @contextlib.asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        forgetting = asyncio.create_task(page.forget_unread())
        yield
        forgetting.cancel()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=running)
    add_api(app, engine)

    @app.middleware("http")
    async def headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    app.add_middleware(Guard, is_own=is_own, uploads=UPLOADS, password=password)  # the last that is added comes first
    UPLOADS.keep_sweeping(SWEEP_EVERY, UNASKED_SECONDS, memory.sweep, rows.sweep)
    theme = gradio.themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "Arial", "sans-serif"],
        font_mono=["ui-monospace", "Consolas", "monospace"],
    )
    return gradio.mount_gradio_app(
        app, page, "/", css=CSS, js=SCRIPT, theme=theme, footer_links=[], show_error=False,
        max_file_size=MOST_REQUEST, ssr_mode=False, run_history=False, enable_monitoring=False, pwa=False,
        mcp_server=False,
    )  # fmt: skip
