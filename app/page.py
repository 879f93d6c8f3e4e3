"""The page and its server: Gradio inside an app of our own, which nothing but this machine serves."""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from app.uploads import Uploads

# before Gradio is imported: it reads these once
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
UPLOADS = Uploads()  # emptied by age, and removed when the program ends
os.environ["GRADIO_TEMP_DIR"] = str(UPLOADS.folder)

import gradio
from fastapi import FastAPI, Request, Response
from gradio.data_classes import ImageData

from app.guard import Guard
from app.words import answer, fault, fixed
from dermrw.errors import UserError
from dermrw.neighbours import Index
from dermrw.predict import Classifier

CSS = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
# what the browser has no decoder for (TIFF) it would show as a broken image: page.css puts a sentence there
UNSEEN = """() => {
    const mark = ({target, type}) => target.closest?.("#upload") && target.classList.toggle("unseen", type == "error");
    for (const type of ["error", "load"]) addEventListener(type, mark, true);
}"""
LARGEST_UPLOAD = "30mb"
KEEP_SECONDS = 60  # uploads older than this are deleted, every so many seconds
# the browser itself refuses whatever would be fetched from, or sent to, another place
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' ws: wss: blob: data:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)


NOT_HERE = "only a picture that was uploaded here, and is not yet deleted, can be classified: upload it first"


class Page(gradio.Blocks):
    """Blocks that open uploads alone: Gradio's copy or fetch whatever path or URL a client names."""

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *rest: Any, **named: Any) -> Any:
        """Every way from a client to a function leads through here."""
        if len(inputs) != len(block_fn.inputs):
            raise gradio.Error("give one picture", print_exception=False)
        return await super().preprocess_data(block_fn, [_own(value) for value in inputs], *rest, **named)


def _own(value: Any) -> dict[str, Any] | None:
    """An upload as Gradio describes it, with nothing in it that the client said but its checked path."""
    if value is None:
        return None
    path = UPLOADS.own(value.get("path") if isinstance(value, dict) else None)
    if path is None:
        raise gradio.Error(NOT_HERE, print_exception=False)
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def _path(payload: ImageData | None) -> str | None:
    """The path of the uploaded file."""
    return payload.path if payload else None


def build_page(classifier: Classifier, index: Index | None = None) -> gradio.Blocks:
    """The page for this model."""

    def show(path: str | None) -> str:
        if path is None:
            return ""
        try:
            seen = classifier.explain(_present(path))
            return answer(
                seen, classifier.info, index.nearest(seen.embedding) if index and not seen.verdict.refused else []
            )
        except UserError as error:
            return fault(_without_place(str(error), path), Path(path).name)

    def classify(path: str | None) -> dict[str, Any]:
        """Refusal, triage, prediction set, and probabilities for equal prevalence, by diagnosis."""
        if path is None:
            raise gradio.Error("no image was sent", print_exception=False)
        try:
            seen = classifier.explain(_present(path))
        except UserError as error:
            raise gradio.Error(_without_place(str(error), path), print_exception=False) from None
        info = classifier.info
        return {
            "refused": seen.verdict.refused,
            "triage": seen.verdict.triage,
            "set": [] if seen.verdict.refused else list(seen.verdict.classes),
            "probabilities": dict(zip(info.codes, map(float, seen.probabilities), strict=True)),
            "prevalence": "equal",
            "model": {"name": info.name, "created": info.created, "sha256": classifier.digest},
            "warning": info.warning,
            "note": "For research. Not a medical device; not a diagnosis.",
        }

    with Page(
        title="dermrw: seven diagnoses, with doubt", analytics_enabled=False, delete_cache=(KEEP_SECONDS, KEEP_SECONDS)
    ) as page:
        gradio.HTML(fixed("head", classifier.info, classifier.digest))
        with gradio.Row(equal_height=False):
            with gradio.Column(scale=2, min_width=280):
                image = gradio.Image(
                    sources=["upload", "clipboard"], type="filepath", label="Dermoscopic image", height=320, buttons=[],
                    elem_id="upload",
                )  # fmt: skip
                # the file as it was sent: Gradio's own way opens it, and says of one that it can't read "Error"
                object.__setattr__(image, "preprocess", _path)
            with gradio.Column(scale=3, min_width=280):
                result = gradio.HTML("<p class='lead'>The answer appears here.</p>", elem_id="result", padding=False)
        gradio.HTML(fixed("texts", classifier.info, classifier.digest))
        gradio.HTML(fixed("foot", classifier.info, classifier.digest))
        # of 90 megapixels one takes a gigabyte while it is decoded
        one_at_a_time: dict[str, Any] = {"concurrency_id": "picture", "concurrency_limit": 1}
        image.change(show, image, result, api_visibility="private", show_progress="minimal", **one_at_a_time)
        # the API: the same answer as JSON
        gradio.Button(visible=False).click(
            classify, image, gradio.JSON(visible=False), api_name="classify", **one_at_a_time
        )
    page.has_launched = True  # Gradio's own check of paths: off in a page that is mounted, as this is, and not launched
    return page


def _present(path: str) -> str:
    if (own := UPLOADS.own(path)) is None:
        raise UserError(NOT_HERE)
    return own


def _without_place(message: str, path: str) -> str:
    """The sentence without our temporary folder's name."""
    return message.replace(path, Path(path).name)


def build_app(classifier: Classifier, is_own: Callable[[str], bool], index: Index | None = None) -> FastAPI:
    """The server's app: the page at /, a health check at /health.

    Args:
        classifier: the model.
        is_own: whether a host's name is one that this server is served by.
        index: labelled cases, of which the nearest are shown.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok", "model": classifier.info.name, "sha256": classifier.digest}

    @app.middleware("http")
    async def headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    app.add_middleware(Guard, is_own=is_own, uploads=UPLOADS)  # the last that is added comes first
    theme = gradio.themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "Arial", "sans-serif"],
        font_mono=["ui-monospace", "Consolas", "monospace"],
    )
    return gradio.mount_gradio_app(
        app, build_page(classifier, index), "/", css=CSS, js=UNSEEN, theme=theme, footer_links=["api"],
        show_error=False, max_file_size=LARGEST_UPLOAD, ssr_mode=False, run_history=False, enable_monitoring=False,
        pwa=False, mcp_server=False,
    )  # fmt: skip
