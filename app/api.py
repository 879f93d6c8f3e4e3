"""`POST /classify`: the page's answers for programs. Nothing that is sent touches the disk."""

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

from .engine import MOST_BYTES, MOST_PICTURES, Engine, Picture
from .middleware import MOST_REQUEST

MOST_WAITING = 40  # requests; one more is told to come back
SECONDS = 60  # that a request may take to arrive
MultiPartParser.spool_max_size = MOST_REQUEST  # in memory: Starlette would write what is over a megabyte to a file


def add_api(app: FastAPI, engine: Engine) -> None:
    """Adds /classify and /health to the app."""
    waiting = asyncio.Semaphore(MOST_WAITING)
    arriving = asyncio.Semaphore(8)

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok", "model": engine.info.name, "sha256": engine.classifier.digest}

    @app.post("/classify")
    async def classify(request: Request) -> JSONResponse:
        if waiting.locked():
            return _fault(503, "too many wait already: come back in a few seconds", {"Retry-After": "5"})
        async with waiting:
            try:
                async with arriving, asyncio.timeout(SECONDS):
                    pictures, prevalence = await _read(request)
                return JSONResponse(await run_in_threadpool(_classified, engine, pictures, prevalence))
            except UserError as error:
                return _fault(422, str(error).replace("--prevalence", "prevalence"))  # no command line here
            except TimeoutError:
                return _fault(408, f"the pictures did not arrive within {SECONDS} seconds")
            except HTTPException as error:
                return _fault(error.status_code, str(error.detail))


def _fault(status: int, sentence: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": sentence}, status, headers)


def _classified(engine: Engine, pictures: list[Picture], prevalence: str) -> object:
    stated = parse_prevalence(prevalence, engine.info.codes, engine.info.prevalence)
    lesion = combine_explanations([engine.explain(picture) for picture in pictures], engine.info)
    return engine.answer([picture.name for picture in pictures], lesion, prevalence, stated)


async def _read(request: Request) -> tuple[list[Picture], str]:
    """The pictures of a lesion and the prevalence, from a form with `image` (one or more) and `prevalence`."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise UserError("send a form (multipart/form-data) with one image or more: curl -F image=@one.jpg")
    async with request.form(max_files=MOST_PICTURES, max_fields=2) as form:
        pictures = []
        for file in form.getlist("image"):
            if not isinstance(file, UploadFile):
                raise UserError("image must be a file: curl -F image=@one.jpg")
            content = await file.read(MOST_BYTES + 1)
            if len(content) > MOST_BYTES:
                raise HTTPException(413, f"a picture has more than {MOST_BYTES // 10**6} MB: shrink it")
            pictures.append(Picture(file.filename or "image", content))
        unknown = set(form) - {"image", "prevalence"}
        if unknown or not pictures:
            raise UserError("send image, one or more, and prevalence where it isn't equal; nothing else")
        prevalence = form.get("prevalence", "equal")
        if not isinstance(prevalence, str):
            raise UserError("prevalence is text: equal, training, or mel=0.05,nv=0.8,…")
        return pictures, prevalence
