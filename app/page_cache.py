"""Results of the open pages, kept for a limited time and in memory only."""

import threading
import time
from collections import OrderedDict
from typing import Generic, TypeVar

KEPT_SECONDS = 600  # so that selecting another prevalence needs no new upload
MAX_PAGES = 200  # ten images of a lesion take about two megabytes

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
