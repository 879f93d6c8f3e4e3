"""Results of the open pages, kept for a limited time and in memory only, and their calls that replace one another."""

import contextlib
import dataclasses
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

KEPT_SECONDS = 600  # so that selecting another prevalence needs no new upload
MAX_PAGES = 200  # ten images of a lesion take about two megabytes
PATIENCE_SECONDS = 60  # that a call waits for the one that it replaces, which ends after the image that it classifies

Result = TypeVar("Result")


class PageCache(Generic[Result]):
    """The results of each open page, by upload path. A page is known by Gradio's random session name."""

    def __init__(self, seconds: float = KEPT_SECONDS) -> None:
        self._seconds = seconds
        self._pages: OrderedDict[str, tuple[float, dict[str, Result]]] = OrderedDict()
        self._closed: dict[str, float] = {}
        self._lock = threading.Lock()

    def close(self, page: str) -> None:
        """Deletes the page's results. Results that arrive later are not stored."""
        with self._lock:
            self._pages.pop(page, None)
            self._closed[page] = time.monotonic()

    def get(self, page: str, reopen: bool = False) -> dict[str, Result]:
        """Returns a copy of the page's results, empty if they have expired. `reopen` undoes `close`."""
        self.sweep()
        with self._lock:
            if reopen:
                self._closed.pop(page, None)
            return dict(self._pages.get(page, (0.0, {}))[1])

    def put(self, page: str, results: dict[str, Result]) -> None:
        """Replaces the page's results; an empty dict deletes them."""
        with self._lock:
            self._pages.pop(page, None)
            if results and page not in self._closed:
                self._pages[page] = (time.monotonic(), results)
            while len(self._pages) > MAX_PAGES:
                self._pages.popitem(last=False)

    def sweep(self) -> None:
        """Deletes expired results."""
        with self._lock:
            now = time.monotonic()
            for page, (since, _) in list(self._pages.items()):
                if now - since > self._seconds:
                    del self._pages[page]
            for page, since in list(self._closed.items()):
                if now - since > self._seconds:
                    del self._closed[page]


@dataclasses.dataclass
class _Calls:
    """The calls of one page that wait or run."""

    newest: int = 0
    number: int = 0
    closed: bool = False
    paths: Sequence[str] = ()  # of the uploads of the call that ran last
    running: threading.Lock = dataclasses.field(default_factory=threading.Lock)


class LatestCalls:
    """Lets a page's newest call replace the one that runs: the older one stops, and the newer one starts then."""

    def __init__(self) -> None:
        self._pages: dict[str, _Calls] = {}
        self._lock = threading.Lock()

    def announce(self, page: str, call: int) -> None:
        """Stops the page's older calls, although this one may still wait in a queue."""
        with self._lock:
            if page in self._pages:
                self._pages[page].newest = max(self._pages[page].newest, call)

    @contextlib.contextmanager
    def turn(self, page: str, call: int, paths: Sequence[str]) -> Iterator[tuple[Callable[[], bool], list[str]]]:
        """Context of one call: waits until the page's earlier one has ended.

        Args:
            page: the page's name.
            call: the number of the call, higher than that of earlier ones.
            paths: of the uploads that it uses.

        Yields:
            A function that returns whether a newer call waits, and the uploads of the earlier call that this one does
            not use.
        """
        with self._lock:
            calls = self._pages.setdefault(page, _Calls())
            calls.newest = max(calls.newest, call)
            calls.number += 1
        acquired = calls.running.acquire(timeout=PATIENCE_SECONDS)
        try:
            used = set(paths)
            abandoned = [path for path in calls.paths if path not in used]
            calls.paths = paths
            yield lambda: call < calls.newest, abandoned
        finally:
            if acquired:
                calls.running.release()
            with self._lock:
                calls.number -= 1
                # an announced call that has not started yet still has to learn the uploads of this one
                if not calls.number and (calls.newest <= call or calls.closed):
                    self._pages.pop(page, None)

    def close(self, page: str) -> Sequence[str]:
        """Forgets a page that was closed; returns the uploads that no call uses any more."""
        with self._lock:
            calls = self._pages.get(page)
            if calls is None:
                return ()
            if calls.number:
                calls.closed = True  # forgotten when the running call ends
                return ()
            del self._pages[page]
            return calls.paths
