"""The web page and its server: Gradio mounted in a FastAPI app. The browser loads nothing from other servers."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from .gradio_hardening import MAX_WAITING, NOT_HERE, UPLOADS, Page, upload_field  # isort: skip  (before Gradio, see there)

import gradio
import numpy as np
from fastapi import FastAPI, Request, Response

from dermrw.decisions.prevalence import parse_prevalence
from dermrw.errors import UserError
from dermrw.inference.classifier import Explanation
from dermrw.inference.lesion import combine_explanations
from dermrw.inference.messages import adapted
from dermrw.inference.model_file import ModelInfo
from dermrw.published import fold

from .api import add_api
from .engine import MAX_BYTES, MAX_PICTURES, Engine, Picture, plain_name
from .middleware import MAX_REQUEST_BYTES, Guard
from .page_cache import PageCache
from .render import error_box, fixed_part, lesion_result
from .table import MAX_IMAGES, Upload, classify_many

HERE = Path(__file__).parent
CSS = (HERE / "page.css").read_text(encoding="utf-8")
SCRIPT = (HERE / "page.js").read_text(encoding="utf-8")
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
PERCENTAGE = re.compile(r" *[0-9]{1,3}([.,][0-9]+)? *%? *")
CLASS_LINE = re.compile(r"(?P<name>.+?)[\s:=]+(?P<number>[0-9]{1,3}([.,][0-9]+)?)\s*%?")
MOST_FIELDS = 12  # classes with a text field each; more share one field with a line per class
EQUAL, TRAINING, OWN = "equal", "training", "own"


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


def selected_shares(choice: str, percentages: tuple[str, ...], engine: Engine) -> np.ndarray | None:
    """Returns the selected prevalence `[C]`; None for equal prevalence.

    Args:
        choice: `equal`, `training` or `own`.
        percentages: the texts that the user entered for `own`: one for each class, or for many classes a single text.
        engine: the model, which knows the training data's prevalence.

    Raises:
        UserError: a percentage is missing or not a number, or they do not sum to 100.
    """
    if choice in (EQUAL, TRAINING):
        return parse_prevalence(choice, engine.info.codes, engine.info.prevalence)
    if len(engine.info.codes) > MOST_FIELDS:
        return shares_of_lines(percentages[0], engine.info)
    if not all(map(PERCENTAGE.fullmatch, percentages)):
        whose = "your patients with each diagnosis" if engine.words.ham10000 else "each class"
        raise UserError(f"enter the percentage of {whose}, such as 2.5 or 0; they must sum to 100 %")
    values = np.array([_number(text) for text in percentages])
    if abs(values.sum() - 100) > 0.5:  # tolerance for rounded values, such as thirds
        raise UserError(f"the percentages must sum to 100 %, not to {values.sum():.4g} %")
    return values / values.sum()


def _number(percentage: str) -> float:
    return float(percentage.strip(" %").replace(",", "."))


def shares_of_lines(text: str, info: ModelInfo) -> np.ndarray:
    """Returns the prevalence `[C]` from lines such as `Ash 2.5`; the other classes share the rest equally.

    Raises:
        UserError: a line is not of this form, a class is unknown or named twice, or the sum is not possible.
    """
    index = {fold(name): c for names in (info.names, info.columns, info.codes) for c, name in enumerate(names)}
    values: dict[int, float] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        match = CLASS_LINE.fullmatch(line)
        if match is None:
            raise UserError(
                f"write a class and its percentage in each line, such as {info.names[0]} 2.5, not {line[:60]}"
            )
        c = index.get(fold(match["name"]))
        if c is None or c in values:
            problem = "no class of the model" if c is None else "named twice"
            raise UserError(f"{match['name'][:60]} is {problem}: write each class once, by its name or code")
        values[c] = _number(match["number"])
    if not values:
        raise UserError(f"enter a class and its percentage in each line, such as {info.names[0]} 2.5")
    total, others = sum(values.values()), len(info.codes) - len(values)
    if total > 100.5 or (not others and total < 99.5):
        raise UserError(f"the percentages must sum to 100 %, not to {total:.4g} %")
    rest = max(0.0, 100 - total) / max(1, others)
    shares = np.array([values.get(c, rest) for c in range(len(info.codes))])
    return shares / shares.sum()


def prevalence_fields(engine: Engine, name: str) -> list[Any]:
    """Creates and returns the selection of a prevalence, and the text fields for the user's own."""
    info, ham10000 = engine.info, engine.words.ham10000
    common = "nv" if ham10000 else max(info.prevalence, key=lambda code: info.prevalence[code])
    share = info.prevalence.get(common, 0) / sum(info.prevalence.values())
    common_name = "nevi" if ham10000 else dict(zip(info.codes, info.names, strict=True))[common]
    decisions = f"the {engine.words.prediction_set}"
    if info.triage:
        decisions = "the referral or the differential" if ham10000 else "triage or the prediction set"
    choice = gradio.Radio(
        [
            (f"Equal: each {engine.words.category} equally often", EQUAL),
            (f"As in {info.prevalence_images} ({100 * share:.0f} % {common_name})", TRAINING),
            ("As in my clinic" if ham10000 else "My own", OWN),
        ],
        value=EQUAL, elem_id=f"{name}-prevalence", label=f"Prevalence (changes the probabilities, not {decisions})",
    )  # fmt: skip
    with gradio.Group(visible=False) as group:
        # text fields, since Gradio's number field starts at 0, which would pass for the user's input
        if len(info.codes) <= MOST_FIELDS:
            percentages = [gradio.Textbox("", label=f"{name}, %", max_lines=1, max_length=10) for name in info.names]
        else:
            label = "Percentages: a class in each line, by its name or code. The other classes share the rest equally."
            examples = "\n".join([f"{info.names[0]} 2.5", f"{info.names[1]} 10"])
            percentages = [
                gradio.Textbox("", label=label, placeholder=examples, lines=6, max_lines=12, max_length=20_000)
            ]
    choice.change(lambda value: gradio.Group(visible=value == OWN), choice, group, api_visibility="private")
    return [choice, *percentages]


class PageEvents:
    """The functions that the page's events call, with the results of the open pages."""

    def __init__(self, engine: Engine, lesions: PageCache[Explanation], rows: PageCache[Upload]) -> None:
        """`lesions` keeps the results of the first tab, `rows` those of the second, and its tables."""
        self.engine, self.lesions, self.rows = engine, lesions, rows

    def show_lesion(self, request: gradio.Request, paths: list[str], choice: str, *percentages: str) -> Iterator[str]:
        """Yields the result for the uploaded images of one lesion, as HTML."""
        page = request.session_hash or ""
        known = self.lesions.get(page, reopen=True)
        if any(path not in known for path in paths):
            yield fixed_part("classifying", self.engine)  # an older result must not stand next to a new image
        html, explanations = self._classify_lesion(paths, known, choice, percentages)
        self.lesions.put(page, explanations)
        yield html

    def _classify_lesion(
        self, paths: list[str], known: dict[str, Explanation], choice: str, percentages: tuple[str, ...]
    ) -> tuple[str, dict[str, Explanation]]:
        """Returns the result as HTML, and each image's explanation by path; `known` are those from before."""
        if not paths:
            return "", {}
        errors: list[tuple[str, str]] = []  # message, file name
        explanations: dict[str, Explanation] = {}
        for path in paths[:MAX_PICTURES]:
            try:
                explanations[path] = known[path] if path in known else self.engine.explain(take_upload(path))
            except UserError as error:
                errors.append((str(error), plain_name(path)))
        surplus = paths[MAX_PICTURES:]
        if surplus:
            for path in surplus:
                UPLOADS.drop(path)
            left_out = ", ".join(map(plain_name, surplus))
            one = f"one {self.engine.words.thing}"
            errors.append((f"at most {MAX_PICTURES} images of {one} are used, without {left_out}", ""))
        if not explanations:
            return "".join(error_box(message, name) for message, name in errors), {}
        boxes = [error_box(message, name, title="Left out") for message, name in errors]
        try:
            shares = selected_shares(choice, percentages, self.engine)
            lesion = combine_explanations(list(explanations.values()), self.engine.info)
            boxes.append(lesion_result(lesion, list(map(plain_name, explanations)), self.engine, choice, shares))
        except UserError as error:
            boxes.append(error_box(adapted(str(error), self.engine.info), title=self.engine.words.own_prevalence))
        return "".join(boxes), explanations

    def show_table(self, request: gradio.Request, paths: list[str], choice: str, *percentages: str) -> Iterator[str]:
        """Yields the table of many uploaded images, as HTML, again and again while it grows."""
        page = request.session_hash or ""
        known = self.rows.get(page, reopen=True)
        rows = {path: known[path] for path in paths if path in known}
        try:
            shares = selected_shares(choice, percentages, self.engine)
            yield from classify_many(self.engine, paths, take_upload, UPLOADS.drop, UPLOADS.touch, choice, shares, rows)
        except UserError as error:
            yield error_box(adapted(str(error), self.engine.info), title=self.engine.words.own_prevalence)
        finally:
            self.rows.put(page, rows)

    def close_page(self, request: gradio.Request) -> None:
        """Deletes the results of a page that was closed."""
        self.lesions.close(request.session_hash or "")
        self.rows.close(request.session_hash or "")


def build_page(events: PageEvents) -> Page:
    """Returns the Gradio page, whose events call the methods of `events`."""
    engine, words = events.engine, events.engine.words
    kind = words.images[:1].upper() + words.images[1:]
    with Page(title=f"dermrw: {'skin ' * words.ham10000}{words.subject} classifier") as page:
        gradio.HTML(fixed_part("head", engine))
        with gradio.Tabs():
            with gradio.Tab(f"One {words.subject}"), gradio.Row(equal_height=False):
                with gradio.Column(scale=2, min_width=280, elem_id="input"):
                    lesion_files = upload_field(f"{kind} of one {words.thing}", "upload")
                    lesion_prevalence = prevalence_fields(engine, "one")
                with gradio.Column(scale=3, min_width=280):
                    result = gradio.HTML(fixed_part("waiting", engine), elem_id="result", padding=False)
            with gradio.Tab("Many images"):
                table_prevalence = prevalence_fields(engine, "many")
                table_files = upload_field(f"Up to {MAX_IMAGES} {words.images} of different {words.things}", "many")
                gradio.HTML(fixed_part("score", engine), padding=False)
                table = gradio.HTML(fixed_part("waiting", engine), elem_id="table", padding=False)
        gradio.HTML(fixed_part("texts", engine))
        gradio.HTML(fixed_part("foot", engine))
        options: dict[str, Any] = {
            "api_visibility": "private", "show_progress": "minimal",
            "concurrency_limit": 2, "trigger_mode": "always_last",
        }  # fmt: skip
        gradio.on(
            [lesion_files.change, *_change_events(lesion_prevalence)], events.show_lesion,
            [lesion_files, *lesion_prevalence], result, concurrency_id="picture", **options,
        )  # fmt: skip
        gradio.on(
            [table_files.change, *_change_events(table_prevalence)], events.show_table,
            [table_files, *table_prevalence], table, concurrency_id="many", **options,
        )  # fmt: skip
        page.unload(events.close_page)
    page.queue(max_size=MAX_WAITING)
    page.has_launched = True  # Gradio checks paths only in a page that was launched; this one is mounted
    return page


def _change_events(prevalence: list[Any]) -> list[Any]:
    """Returns the events after which the prevalence has changed: not every keystroke in a text field."""
    choice, *percentages = prevalence
    return [choice.change, *(event for field in percentages for event in (field.blur, field.submit))]


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
