"""The page's results for programs: /classify, /classify_images and their description. Uploads stay in memory."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser

from dermrw.decisions.prevalence import parse_prevalence
from dermrw.errors import UserError
from dermrw.files import open_regular
from dermrw.inference.lesion import combine_explanations

from .engine import MAX_BYTES, MAX_PICTURES, Engine, Picture
from .middleware import MAX_REQUEST_BYTES
from .openapi import api_page, openapi

MAX_BATCH = 50  # images of /classify_images
MAX_WAITING = 40  # requests at once; further ones get status 503
MAX_COMPUTING = 2  # of them in a thread; the model computes one at a time, and the page needs threads, too
MAX_ARRIVING = 8  # of them, whose images are being received
ARRIVAL_SECONDS = 60  # that a request may take to arrive
MultiPartParser.spool_max_size = MAX_REQUEST_BYTES  # Starlette would write uploads over a megabyte to a file


class Form(NamedTuple):
    """A request's fields."""

    pictures: list[Picture]
    prevalence: str = "equal"
    heat_map: str | None = None  # the code of a class


def add_api(app: FastAPI, engine: Engine) -> None:
    """Adds /classify, /classify_images, /health, /openapi.json, the page /api and its examples to the app."""
    waiting = asyncio.Semaphore(MAX_WAITING)
    arriving = asyncio.Semaphore(MAX_ARRIVING)
    computing = asyncio.Semaphore(MAX_COMPUTING)
    description = openapi(engine.info, MAX_BATCH)
    page = api_page(description)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "model": engine.info.name, "sha256": engine.classifier.digest}

    @app.get("/openapi.json")
    def schema() -> JSONResponse:
        return JSONResponse(description)

    @app.get("/api")
    def api() -> HTMLResponse:
        return HTMLResponse(page)

    @app.get("/example/{place}")
    def example(place: int) -> Response:
        """An example of the page, as it is on the disk. Only the rows that the index names can be fetched."""
        index = engine.index
        if index is None or not 0 <= place < len(index.examples):
            return _error(404, "there is no such example")
        try:
            with open_regular(Path(str(index.paths[index.examples[place]]))) as file:
                return Response(file.read(), media_type="image/jpeg", headers={"Cache-Control": "no-store"})
        except (OSError, UserError):
            return _error(404, "the example's file was moved: write the index again with `make index`")

    @app.post("/classify")
    async def classify(request: Request) -> JSONResponse:
        return await answer(request, _classify, MAX_PICTURES)

    @app.post("/classify_images")
    async def classify_images(request: Request) -> JSONResponse:
        return await answer(request, _classify_images, MAX_BATCH)

    async def answer(request: Request, function: Callable[[Engine, Form], Any], most: int) -> JSONResponse:
        if waiting.locked():
            return _error(503, "too many requests are waiting: try again in a few seconds", {"Retry-After": "5"})
        async with waiting:
            try:
                async with arriving, asyncio.timeout(ARRIVAL_SECONDS):
                    form = await _read(request, engine, most)
                async with computing:
                    return JSONResponse(await run_in_threadpool(function, engine, form))
            except UserError as error:
                return _error(422, str(error).replace("--prevalence", "prevalence"))  # as on the command line
            except TimeoutError:
                return _error(408, f"the images did not arrive within {ARRIVAL_SECONDS} seconds")
            except HTTPException as error:
                return _error(error.status_code, str(error.detail))


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": message}, status, headers)


def _classify(engine: Engine, form: Form) -> dict[str, Any]:
    """Returns the answer for the pictures of one lesion."""
    shares = parse_prevalence(form.prevalence, engine.info.codes, engine.info.prevalence)
    lesion = combine_explanations([engine.explain(picture) for picture in form.pictures], engine.info)
    return engine.answer([p.name for p in form.pictures], lesion, form.prevalence, shares, form.heat_map)


def _classify_images(engine: Engine, form: Form) -> dict[str, Any]:
    """Returns the answer for each image alone, or the reason why it cannot be read."""
    parse_prevalence(form.prevalence, engine.info.codes, engine.info.prevalence)  # an error of the request
    images = []
    for picture in form.pictures:
        try:
            found = _classify(engine, form._replace(pictures=[picture]))
        except UserError as error:
            found = {"error": str(error)}
        images.append({"name": picture.name, **found})
    return {"images": images}


async def _read(request: Request, engine: Engine, most: int) -> Form:
    """Returns the fields of a form: `image` (one or more), and optionally `prevalence` and `heat_map`.

    Args:
        request: the request.
        engine: the model, whose classes `heat_map` may name.
        most: number of images.

    Raises:
        UserError: the form lacks an image or holds anything else.
        HTTPException: an image is too large, or there are too many.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise UserError("send a form (multipart/form-data) with one or more images: curl -F image=@one.jpg")
    async with request.form(max_files=most, max_fields=3) as form:
        pictures = []
        for file in form.getlist("image"):
            if not isinstance(file, UploadFile):
                raise UserError("image must be a file: curl -F image=@one.jpg")
            content = await file.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise HTTPException(413, f"an image is larger than {MAX_BYTES // 10**6} MB: reduce its size")
            pictures.append(Picture(file.filename or "image", content))
        unknown = set(form) - {"image", "prevalence", "heat_map"}
        if unknown or not pictures:
            raise UserError("send one or more fields named image, optionally prevalence and heat_map, and nothing else")
        prevalence, heat_map = form.get("prevalence", "equal"), form.get("heat_map")
        if not isinstance(prevalence, str):
            raise UserError("prevalence must be text: equal, training, or mel=0.05,nv=0.8,…")
        if heat_map is not None and (not isinstance(heat_map, str) or heat_map not in engine.info.codes):
            raise UserError(f"heat_map must be a class of the model: {', '.join(engine.info.codes)}"[:500])
        return Form(pictures, prevalence, heat_map)
