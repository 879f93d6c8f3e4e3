"""Restricts Gradio: it opens only uploads, keeps nothing of a session, and logs nothing that a client sent.

Gradio is designed for trusted users. This page takes patients' images from anyone. All changes to Gradio are in this
file; the tests in `tests/app` show whether they work with another version.
"""

import asyncio
import contextlib
import os
import re
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from .uploads import Uploads

UPLOADS = Uploads()  # each file is removed when it is classified, the folder when the program ends
# before Gradio is imported: it reads this once. For the other variables, see `app/environment.py`
os.environ["GRADIO_TEMP_DIR"] = str(UPLOADS.folder)

import gradio
from gradio import route_utils
from gradio.block_function import BlockFunction
from gradio.data_classes import FileData, ListFiles

NOT_HERE = "this image is not among the uploads, or it was deleted: upload it again"
INVALID = "the request is not valid: use the page, or POST /classify from a program"
MAX_WAITING = 100  # calls in the queue; Gradio refuses further ones
UNREAD_SECONDS = 10  # a client that read nothing of its results for so long is gone
MAX_FILES = 1000  # per upload
SESSION = re.compile(r"\w{1,40}")


def refuse(message: str) -> NoReturn:
    """Raises an error that the page shows and Gradio does not log."""
    raise gradio.Error(message, print_exception=False)


class Page(gradio.Blocks):
    """Blocks that open only uploads and do not remember them. Gradio's own copy or fetch any path or URL."""

    def __init__(self, **named: Any) -> None:
        super().__init__(analytics_enabled=False, **named)
        self.state_session_capacity = MAX_WAITING
        self.upload_file_set = _EmptySet()
        # by `concurrency_id`: called with the session and the inputs of each call that enters the queue
        self.announce: dict[str, Callable[[str, list[Any]], None]] = {}

    def queue(self, *given: Any, **named: Any) -> "Page":
        """Creates the queue, which forgets a call once it is answered."""
        super().queue(*given, **named)
        queue = self._queue
        queue.ANALYTICS_MAX_EVENTS = 1
        push, process_events = queue.push, queue.process_events

        async def push_checked(body: Any, *rest: Any, **more: Any) -> Any:
            if body.session_hash is not None and not SESSION.fullmatch(body.session_hash):
                return False, INVALID, "error"
            pushed = await push(body, *rest, **more)
            if pushed[0] and body.session_hash is not None and body.fn_index in self.fns:
                announce = self.announce.get(self.fns[body.fn_index].concurrency_id)
                if announce is not None:
                    announce(body.session_hash, body.data)
            return pushed

        async def process_and_forget(events: list[Any], *rest: Any, **more: Any) -> None:
            try:
                await process_events(events, *rest, **more)
            finally:
                for event in events:  # Gradio keeps a reference to the last one
                    event.data = event.request = None

        queue.push, queue.process_events = push_checked, process_and_forget  # type: ignore[method-assign]
        return self

    async def process_api(
        self, block_fn: BlockFunction | int, inputs: list[Any], state: Any = None, *rest: Any, **named: Any
    ) -> dict[str, Any]:
        """Calls a function, without the session's `state`, in which Gradio keeps all inputs and outputs."""
        if (self.fns[block_fn] if isinstance(block_fn, int) else block_fn).fn is None:  # for the browser only
            refuse(INVALID)
        try:
            return await super().process_api(block_fn, inputs, None, *rest, **named)
        except gradio.Error as error:
            refuse(error.message)
        except Exception as error:
            print(f"app: a call failed ({type(error).__name__})", flush=True)
            refuse("the demo failed to answer this request")

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *rest: Any, **named: Any) -> Any:
        """Checks the inputs. Gradio calls this for every call of a function."""
        if len(inputs) != len(block_fn.inputs):
            refuse(INVALID)
        pairs = zip(block_fn.inputs, inputs, strict=True)
        checked = [_files(value) if isinstance(block, gradio.File) else _plain(block, value) for block, value in pairs]
        return await super().preprocess_data(block_fn, checked, *rest, **named)

    async def forget_unread(self) -> None:
        """Drops the results that no client fetches; runs until it is cancelled."""
        heads: dict[str, Any] = {}
        waiting = self._queue.pending_messages_per_session
        while True:
            await asyncio.sleep(UNREAD_SECONDS)
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


class _EmptySet(set[str]):
    """A set that stays empty. It replaces two sets in which Gradio keeps the name of every file that it received."""

    def update(self, *_: Iterable[str]) -> None:
        pass

    def add(self, _: str) -> None:
        pass


class _File(route_utils.GradioUploadFile):
    """An upload in its own folder. Gradio names folders by content: equal images of two users would be one file."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        if Path(self.filename or "").name in ("", ".."):
            self.filename = "picture"
        self.sha.update(secrets.token_bytes(32))


class _Parser(route_utils.GradioMultiPartParser):
    """Parses forms with files only, since Gradio keeps texts in memory, and removes the files of broken connections."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **{**named, "max_fields": 0, "max_files": MAX_FILES})

    async def parse(self) -> Any:
        """Returns the form."""
        kept: set[str] = set()
        try:
            form = await super().parse()
            kept = {item.file.name for field, item in self.items if field == "files" and not isinstance(item, str)}
            return form
        finally:
            for file in self._files_to_close_on_error:
                if file.name not in kept:
                    with contextlib.suppress(OSError):
                        file.close()
                        Path(file.name).unlink()


route_utils.GradioUploadFile = _File  # type: ignore[misc]
route_utils.GradioMultiPartParser = _Parser  # type: ignore[misc]


def upload_field(label: str, name: str) -> gradio.File:
    """Returns an upload field for several files, whose paths are passed to the event's function.

    Gradio's own preprocessing opens the files, and shows only "Error" if it can't read one.
    """
    # without file_types, since DICOM files often have no ending: the server decides by content
    files = gradio.File(file_count="multiple", label=label, height=170, elem_id=name)
    object.__setattr__(files, "preprocess", _paths)
    files.temp_files = _EmptySet()
    return files


def _paths(payload: ListFiles | FileData | None) -> list[str]:
    """Returns the paths in the order of the upload, without duplicates."""
    return [] if payload is None else list(dict.fromkeys(file.path for file in getattr(payload, "root", [payload])))


def _files(value: Any) -> list[dict[str, Any]]:
    """Returns uploads in Gradio's format, with only their paths taken from the client's request."""
    given = [] if value is None else value if isinstance(value, list) else [value]
    if len(given) > MAX_FILES:
        refuse(INVALID)
    paths = [UPLOADS.known(file.get("path") if isinstance(file, dict) else None) for file in given]
    for path in paths:
        if path is None:
            refuse(NOT_HERE)
        UPLOADS.touch(path)  # it is in use: not to be swept before its turn
    return [{"path": path, "meta": {"_type": "gradio.FileData"}} for path in paths]


def _plain(block: Any, value: Any) -> Any:
    """Returns the value if it is a number, a text or one of the options; anything else may name a file."""
    if isinstance(block, gradio.Radio) and value not in [option for _, option in block.choices]:
        refuse(INVALID)
    if not isinstance(value, str | int | float | None):
        refuse(INVALID)
    return value
