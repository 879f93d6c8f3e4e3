"""Gradio, made strict: it opens uploads alone, remembers nothing of a session, and logs nothing that a client said.

It is written for pages that are its author's own; this one takes patients' pictures from strangers. What is changed of
it is all in here; the tests in `tests/app` show whether another version still obeys.
"""

import asyncio
import contextlib
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from .uploads import Uploads

# before Gradio is imported: it reads these once
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
UPLOADS = Uploads()  # emptied as the answers are given, and removed when the program ends
os.environ["GRADIO_TEMP_DIR"] = str(UPLOADS.folder)

import gradio
from gradio import route_utils
from gradio.block_function import BlockFunction
from gradio.data_classes import FileData, ListFiles

NOT_HERE = "only a picture that was uploaded here, and is not yet deleted, can be classified: upload it again"
STRANGE = "give what the page gives"
MOST_WAITING = 100  # calls; one more is told to come back
UNREAD_EVERY = (
    10  # seconds: of an answer that waits for its reader, who is gone if nothing was read since the last look
)
MOST_FILES = 1000  # of one upload
SESSION = re.compile(r"\w{1,40}")


def refuse(sentence: str) -> NoReturn:
    """Answers with this sentence; nothing is logged."""
    raise gradio.Error(sentence, print_exception=False)


class Page(gradio.Blocks):
    """Blocks that open uploads alone (Gradio's copy or fetch whatever path or URL a client names) and forget them."""

    def __init__(self, **named: Any) -> None:
        super().__init__(analytics_enabled=False, **named)
        self.state_session_capacity = MOST_WAITING
        self.upload_file_set = _Nothing()

    def queue(self, *given: Any, **named: Any) -> "Page":
        """The queue, which forgets a call once it is answered."""
        super().queue(*given, **named)
        queue = self._queue
        queue.ANALYTICS_MAX_EVENTS = 1
        push, process = queue.push, queue.process_events

        async def checked(body: Any, *rest: Any, **more: Any) -> Any:
            if body.session_hash is not None and not SESSION.fullmatch(body.session_hash):
                return False, STRANGE, "error"
            return await push(body, *rest, **more)

        async def forgotten(events: list[Any], *rest: Any, **more: Any) -> None:
            try:
                await process(events, *rest, **more)
            finally:
                for event in events:  # the queue's loop holds the last one until another comes
                    event.data = event.request = None

        queue.push, queue.process_events = checked, forgotten  # type: ignore[method-assign]
        return self

    async def process_api(
        self, block_fn: BlockFunction | int, inputs: list[Any], state: Any = None, *rest: Any, **named: Any
    ) -> dict[str, Any]:
        """One call of a function. Without the session's `state`, in which Gradio keeps all inputs and outputs."""
        try:
            return await super().process_api(block_fn, inputs, None, *rest, **named)
        except gradio.Error as error:
            refuse(error.message)
        except Exception as error:
            print(f"app: a call could not be answered ({type(error).__name__})", flush=True)
            refuse("the demo could not answer this")

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *rest: Any, **named: Any) -> Any:
        """Every way from a client to a function leads through here."""
        if len(inputs) != len(block_fn.inputs):
            refuse(STRANGE)
        pairs = zip(block_fn.inputs, inputs, strict=True)
        plain = [_files(value) if isinstance(block, gradio.File) else _plain(block, value) for block, value in pairs]
        return await super().preprocess_data(block_fn, plain, *rest, **named)

    async def forget_unread(self) -> None:
        """Without end: drops the answers that nobody comes for."""
        heads: dict[str, Any] = {}
        waiting = self._queue.pending_messages_per_session
        while True:
            await asyncio.sleep(UNREAD_EVERY)
            before, heads = heads, {}
            for session, messages in list(waiting.items()):
                head = next(iter(messages._queue), None)
                if head is not None and before.get(session) is head:
                    waiting.pop(session, None)
                    await self._queue.clean_events(session_hash=session)
                elif head is not None:
                    heads[session] = head
            for session, calls in list(self._queue.pending_event_ids_session.items()):
                if not calls and session not in heads:
                    self._queue.pending_event_ids_session.pop(session, None)


class _Nothing(set[str]):
    """A set that stays empty, in the place of two in which Gradio keeps the name of every file that it ever got."""

    def update(self, *_: Iterable[str]) -> None:
        pass

    def add(self, _: str) -> None:
        pass


class _File(route_utils.GradioUploadFile):
    """An upload in a folder of its own: by its content alone, two people's copies would be one file."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        if Path(self.filename or "").name in ("", ".."):
            self.filename = "picture"
        self.sha.update(secrets.token_bytes(32))


class _Parser(route_utils.GradioMultiPartParser):
    """Of a form with files alone, since a text would be held in memory; what is torn off leaves nothing behind."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **{**named, "max_fields": 0, "max_files": MOST_FILES})

    async def parse(self) -> Any:
        """The form."""
        kept: set[str] = set()
        try:
            form = await super().parse()
            kept = {one.file.name for field, one in self.items if field == "files" and not isinstance(one, str)}
            return form
        finally:
            for file in self._files_to_close_on_error:
                if file.name not in kept:
                    with contextlib.suppress(OSError):
                        file.close()
                        Path(file.name).unlink()


route_utils.GradioUploadFile = _File  # type: ignore[misc]
route_utils.GradioMultiPartParser = _Parser  # type: ignore[misc]


def upload(label: str, name: str) -> gradio.File:
    """A place for several files, of which a function gets the paths.

    Gradio's own way opens them, and says "Error" of what it can't read.
    """
    files = gradio.File(file_count="multiple", label=label, height=170, elem_id=name)
    object.__setattr__(files, "preprocess", _paths)
    files.temp_files = _Nothing()
    return files


def _paths(payload: ListFiles | FileData | None) -> list[str]:
    """Each once, as they were sent."""
    return [] if payload is None else list(dict.fromkeys(file.path for file in getattr(payload, "root", [payload])))


def _files(value: Any) -> list[dict[str, Any]]:
    """Uploads as Gradio describes them, with nothing in it that the client said but their paths."""
    given = [] if value is None else value if isinstance(value, list) else [value]
    if len(given) > MOST_FILES:
        refuse(STRANGE)
    paths = [UPLOADS.known(one.get("path") if isinstance(one, dict) else None) for one in given]
    for path in paths:
        if path is None:
            refuse(NOT_HERE)
        UPLOADS.touch(path)  # it was asked about, and isn't swept before its turn
    return [{"path": path, "meta": {"_type": "gradio.FileData"}} for path in paths]


def _plain(block: Any, value: Any) -> Any:
    """A number, or one of the words that can be chosen; anything else may name a file."""
    if isinstance(block, gradio.Radio) and value not in [word for _, word in block.choices]:
        refuse(STRANGE)
    if not isinstance(value, str | int | float | None):
        refuse(STRANGE)
    return value
