"""The page and its server: Gradio inside an app of our own, which nothing but this machine serves."""

import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

# before Gradio is imported: it reads these once
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
UPLOADS = tempfile.TemporaryDirectory(prefix="dermrw-demo-")  # emptied by age, and removed when the program ends
os.environ["GRADIO_TEMP_DIR"] = UPLOADS.name

import gradio
from fastapi import FastAPI, Request, Response
from gradio.data_classes import ImageData

from app.words import answer, fault, fixed
from dermrw.errors import UserError
from dermrw.predict import Classifier

CSS = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
LARGEST_UPLOAD = "30mb"
KEEP_SECONDS = 60  # uploads older than this are deleted, every so many seconds
# the browser itself refuses whatever would be fetched from, or sent to, another place
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' ws: wss: blob: data:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)


def _path(payload: ImageData | None) -> str | None:
    """The path of the uploaded file."""
    return payload.path if payload else None


def build_page(classifier: Classifier) -> gradio.Blocks:
    """The page for this model."""

    def show(path: str | None) -> str:
        if path is None:
            return ""
        try:
            return answer(classifier.explain(_present(path)), classifier.info)
        except UserError as error:
            return fault(_without_place(str(error), path))

    def classify(path: str | None) -> dict[str, Any]:
        """Probabilities for equal prevalence, by diagnosis."""
        if path is None:
            raise gradio.Error("no image was sent", print_exception=False)
        try:
            probabilities = classifier(_present(path))[0]
        except UserError as error:
            raise gradio.Error(_without_place(str(error), path), print_exception=False) from None
        info = classifier.info
        return {
            "probabilities": dict(zip(info.codes, map(float, probabilities), strict=True)),
            "prevalence": "equal",
            "model": {"name": info.name, "created": info.created, "sha256": classifier.digest},
            "warning": info.warning,
            "note": "For research. Not a medical device; not a diagnosis.",
        }

    with gradio.Blocks(
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
            with gradio.Column(scale=3, min_width=320):
                result = gradio.HTML("<p class='lead'>The answer appears here.</p>", elem_id="result", padding=False)
        gradio.HTML(fixed("texts", classifier.info, classifier.digest))
        gradio.HTML(fixed("foot", classifier.info, classifier.digest))
        image.change(show, image, result, api_visibility="private", show_progress="minimal")
        # the API: the same answer as JSON
        gradio.Button(visible=False).click(classify, image, gradio.JSON(visible=False), api_name="classify")
    return page


def _present(path: str) -> str:
    if not Path(path).is_file():
        raise UserError("the picture was deleted, as every upload is after a minute: give it again")
    return path


def _without_place(message: str, path: str) -> str:
    """The sentence without our temporary folder's name."""
    return message.replace(path, Path(path).name)


def build_app(classifier: Classifier) -> FastAPI:
    """The server's app: the page at /, a health check at /health."""
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

    theme = gradio.themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "Arial", "sans-serif"],
        font_mono=["ui-monospace", "Consolas", "monospace"],
    )
    return gradio.mount_gradio_app(
        app, build_page(classifier), "/", css=CSS, theme=theme, footer_links=["api"], show_error=False,
        max_file_size=LARGEST_UPLOAD, ssr_mode=False, run_history=False, enable_monitoring=False, pwa=False,
        mcp_server=False,
    )  # fmt: skip
