"""The page and its server: Gradio inside an app of our own, which nothing but this machine serves."""

import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from app.uploads import Uploads

# before Gradio is imported: it reads these once
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
UPLOADS = Uploads()  # emptied as the answers are given, and removed when the program ends
os.environ["GRADIO_TEMP_DIR"] = str(UPLOADS.folder)

import gradio
import numpy as np
from fastapi import FastAPI, Request, Response
from gradio.data_classes import FileData, ListFiles

from app.api import add_api
from app.engine import MOST_BYTES, MOST_PICTURES, Engine, Picture
from app.guard import MOST_REQUEST, Guard
from app.many import MOST_IMAGES, classify_many
from app.words import answer, fault, fixed
from dermrw.diagnoses import DIAGNOSES
from dermrw.errors import UserError
from dermrw.lesion import together
from dermrw.predict import Explanation
from dermrw.prevalence import parse_prevalence

HERE = Path(__file__).parent
CSS = (HERE / "page.css").read_text(encoding="utf-8")
SCRIPT = (HERE / "page.js").read_text(encoding="utf-8")
SWEEP_EVERY, UNASKED_SECONDS = 20, 600  # seconds: what was uploaded and never asked about is removed so late
REMEMBERED_SECONDS = 600  # in memory, so that another prevalence needs no other upload
# the browser itself refuses whatever would be fetched from, or sent to, another place
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' ws: wss: blob: data:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
NOT_HERE = "only a picture that was uploaded here, and is not yet deleted, can be classified: upload it again"
EQUAL, TRAINING, OWN = "equal", "training", "own"
Paths = list[str]
Memory = dict[str, Explanation]  # by the upload's path, which holds a digest of its content


class Page(gradio.Blocks):
    """Blocks that open uploads alone: Gradio's copy or fetch whatever path or URL a client names."""

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *rest: Any, **named: Any) -> Any:
        """Every way from a client to a function leads through here."""
        if len(inputs) != len(block_fn.inputs):
            raise gradio.Error("give what the page gives", print_exception=False)
        pairs = zip(block_fn.inputs, inputs, strict=True)
        plain = [_files(value) if isinstance(block, gradio.File) else _plain(value) for block, value in pairs]
        return await super().preprocess_data(block_fn, plain, *rest, **named)


def _files(value: Any) -> list[dict[str, Any]]:
    """Uploads as Gradio describes them, with nothing in it that the client said but their paths."""
    given = [] if value is None else value if isinstance(value, list) else [value]
    paths = [UPLOADS.known(one.get("path") if isinstance(one, dict) else None) for one in given]
    if None in paths:
        raise gradio.Error(NOT_HERE, print_exception=False)
    return [{"path": path, "meta": {"_type": "gradio.FileData"}} for path in paths]


def _plain(value: Any) -> Any:
    """A number or a word; anything else may name a file."""
    if not isinstance(value, str | int | float | None):
        raise gradio.Error("give what the page gives", print_exception=False)
    return value


def _paths(payload: ListFiles | FileData | None) -> Paths:
    """The uploaded files as they were sent: Gradio's own way opens them, and says of what it can't read "Error"."""
    return [] if payload is None else [file.path for file in getattr(payload, "root", [payload])]


def _take(path: str) -> Picture:
    content = UPLOADS.take(path)
    if content is None:
        raise UserError(NOT_HERE)
    name = Path(path).name
    if len(content) > MOST_BYTES:
        raise UserError(f"{name} has more than {MOST_BYTES // 10**6} MB: shrink it")
    return Picture(name, content)


def _stated(choice: str, shares: tuple[float | None, ...], engine: Engine) -> np.ndarray | None:
    """The prevalence that was chosen `[C]`; None for equal."""
    if choice in (EQUAL, TRAINING):
        return parse_prevalence(choice, engine.info.codes, engine.info.prevalence)
    values = np.array([np.nan if share is None else share for share in shares], np.float64)
    if not np.isfinite(values).all() or (values < 0).any():
        raise UserError("every diagnosis needs a share of 0 % or more")
    if abs(values.sum() - 100) > 0.1:
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
            gradio.Number(
                round(100 * engine.info.prevalence[d.dx] / sum(engine.info.prevalence.values()), 1),
                label=f"{d.name}, %", minimum=0, maximum=100,
            )
            for d in DIAGNOSES
        ]  # fmt: skip
    choice.change(lambda value: gradio.Group(visible=value == OWN), choice, group, api_visibility="private")
    return [choice, *shares]


def build_page(engine: Engine) -> gradio.Blocks:
    """The page for this model."""

    def show(paths: Paths, memory: Memory, choice: str, *shares: float | None) -> Iterator[tuple[str, Memory]]:
        if any(path not in memory for path in paths):
            yield fixed("judging", engine), memory  # no older answer stands beside a new picture
        yield judge(paths, memory, choice, shares)

    def judge(paths: Paths, memory: Memory, choice: str, shares: tuple[float | None, ...]) -> tuple[str, Memory]:
        if not paths:
            return "", {}
        faults, seen, names = [], {}, []
        for path in paths[:MOST_PICTURES]:
            try:
                seen[path] = memory[path] if path in memory else engine.explain(_take(path))
                names.append(Path(path).name)
            except UserError as error:
                faults.append(fault(str(error), Path(path).name))
        if len(paths) > MOST_PICTURES:
            for path in paths[MOST_PICTURES:]:
                UPLOADS.drop(path)
            faults.append(fault(f"of one lesion {MOST_PICTURES} pictures are taken: the others are left out"))
        if not seen:
            return "".join(faults), {}
        try:
            lesion = together(list(seen.values()), engine.info)
            said = answer(lesion, names, engine, choice, _stated(choice, shares, engine))
        except UserError as error:
            return "".join([*faults, fault(str(error))]), seen
        return "".join([*faults, said]), seen

    def show_many(paths: Paths, choice: str, *shares: float | None) -> Iterator[str]:
        try:
            stated = _stated(choice, shares, engine)
        except UserError as error:
            for path in paths:
                UPLOADS.drop(path)
            yield fault(str(error))
            return
        yield from classify_many(engine, paths, _take, UPLOADS.drop, choice, stated)

    with Page(title="dermrw: seven diagnoses, with doubt", analytics_enabled=False) as page:
        gradio.HTML(fixed("head", engine))
        memory = gradio.State({}, time_to_live=REMEMBERED_SECONDS)
        with gradio.Tabs():
            with gradio.Tab("One lesion"), gradio.Row(equal_height=False):
                with gradio.Column(scale=2, min_width=280, elem_id="asking"):
                    one = _upload("Dermoscopic image, or several of one lesion", "upload")
                    how_often = _prevalence(engine, "one")
                with gradio.Column(scale=3, min_width=280):
                    result = gradio.HTML(fixed("waiting", engine), elem_id="result", padding=False)
            with gradio.Tab("Many images"):
                how_often_many = _prevalence(engine, "many")
                many = _upload(f"Up to {MOST_IMAGES} dermoscopic images of different lesions", "many")
                table = gradio.HTML(fixed("waiting", engine), elem_id="table", padding=False)
        gradio.HTML(fixed("texts", engine))
        gradio.HTML(fixed("foot", engine))
        answers: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
        gradio.on(
            [one.change, *(part.change for part in how_often)], show, [one, memory, *how_often], [result, memory],
            concurrency_id="picture", concurrency_limit=2, trigger_mode="always_last", **answers,
        )  # fmt: skip
        many.upload(show_many, [many, *how_often_many], table, concurrency_id="many", concurrency_limit=2, **answers)
    page.has_launched = True  # Gradio's own check of paths: off in a page that is mounted, as this is, and not launched
    return page


def _upload(label: str, name: str) -> gradio.File:
    files = gradio.File(file_count="multiple", label=label, height=170, elem_id=name)
    object.__setattr__(files, "preprocess", _paths)
    return files


def build_app(engine: Engine, is_own: Callable[[str], bool], password: str = "") -> FastAPI:
    """The server's app: the page at /, /classify for programs, a health check at /health.

    Args:
        engine: the model, and the labelled cases.
        is_own: whether a host's name is one that this server is served by.
        password: that every request must have, but for the health check; empty: none.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    add_api(app, engine)

    @app.middleware("http")
    async def headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    app.add_middleware(Guard, is_own=is_own, uploads=UPLOADS, password=password)  # the last that is added comes first
    UPLOADS.keep_sweeping(SWEEP_EVERY, UNASKED_SECONDS)
    theme = gradio.themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "Arial", "sans-serif"],
        font_mono=["ui-monospace", "Consolas", "monospace"],
    )
    return gradio.mount_gradio_app(
        app, build_page(engine), "/", css=CSS, js=SCRIPT, theme=theme, footer_links=[], show_error=False,
        max_file_size=MOST_REQUEST, ssr_mode=False, run_history=False, enable_monitoring=False, pwa=False,
        mcp_server=False,
    )  # fmt: skip
