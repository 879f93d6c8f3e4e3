"""`POST /classify`: the page's results for programs. Uploads stay in memory."""

import asyncio

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser

from dermrw.decisions.prevalence import parse_prevalence
from dermrw.errors import UserError
from dermrw.inference.lesion import combine_explanations

from .engine import MAX_BYTES, MAX_PICTURES, Engine, Picture
from .middleware import MAX_REQUEST_BYTES

MAX_WAITING = 40  # requests at once; further ones get status 503
MAX_ARRIVING = 8  # of them, whose images are being received
ARRIVAL_SECONDS = 60  # that a request may take to arrive
MultiPartParser.spool_max_size = MAX_REQUEST_BYTES  # Starlette would write uploads over a megabyte to a file


def add_api(app: FastAPI, engine: Engine) -> None:
    """Adds /classify and /health to the app."""
    waiting = asyncio.Semaphore(MAX_WAITING)
    arriving = asyncio.Semaphore(MAX_ARRIVING)

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok", "model": engine.info.name, "sha256": engine.classifier.digest}

    @app.post("/classify")
    async def classify(request: Request) -> JSONResponse:
        if waiting.locked():
            return _error(503, "too many requests are waiting: try again in a few seconds", {"Retry-After": "5"})
        async with waiting:
            try:
                async with arriving, asyncio.timeout(ARRIVAL_SECONDS):
                    pictures, prevalence = await _read(request)
                return JSONResponse(await run_in_threadpool(_classify, engine, pictures, prevalence))
            except UserError as error:
                return _error(422, str(error).replace("--prevalence", "prevalence"))  # as on the command line
            except TimeoutError:
                return _error(408, f"the images did not arrive within {ARRIVAL_SECONDS} seconds")
            except HTTPException as error:
                return _error(error.status_code, str(error.detail))


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": message}, status, headers)


def _classify(engine: Engine, pictures: list[Picture], prevalence: str) -> object:
    shares = parse_prevalence(prevalence, engine.info.codes, engine.info.prevalence)
    lesion = combine_explanations([engine.explain(picture) for picture in pictures], engine.info)
    return engine.answer([picture.name for picture in pictures], lesion, prevalence, shares)


async def _read(request: Request) -> tuple[list[Picture], str]:
    """Returns the images and the prevalence from a form with `image` (one or more) and `prevalence` (optional).

    Raises:
        UserError: the form lacks an image or holds anything else.
        HTTPException: an image is too large, or there are too many.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise UserError("send a form (multipart/form-data) with one or more images: curl -F image=@one.jpg")
    async with request.form(max_files=MAX_PICTURES, max_fields=2) as form:
        pictures = []
        for file in form.getlist("image"):
            if not isinstance(file, UploadFile):
                raise UserError("image must be a file: curl -F image=@one.jpg")
            content = await file.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise HTTPException(413, f"an image is larger than {MAX_BYTES // 10**6} MB: reduce its size")
            pictures.append(Picture(file.filename or "image", content))
        unknown = set(form) - {"image", "prevalence"}
        if unknown or not pictures:
            raise UserError("send one or more fields named image, optionally prevalence, and nothing else")
        prevalence = form.get("prevalence", "equal")
        if not isinstance(prevalence, str):
            raise UserError("prevalence must be text: equal, training, or mel=0.05,nv=0.8,…")
        return pictures, prevalence
