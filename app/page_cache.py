"""What the open pages were told, for a while and in memory alone."""

import threading
import time
from collections import OrderedDict
from typing import Generic, TypeVar

REMEMBERED_SECONDS = 600  # so that another prevalence needs no other upload
MOST_PAGES = 200  # that are remembered at once: ten pictures of a lesion take some two megabytes

Said = TypeVar("Said")


class Memory(Generic[Said]):
    """What was said of each upload, by its path, on each open page. Only who knows a page's random name asks for it."""

    def __init__(self, seconds: float = REMEMBERED_SECONDS) -> None:
        self._seconds = seconds
        self._pages: OrderedDict[str, tuple[float, dict[str, Said]]] = OrderedDict()
        self._closed: dict[str, float] = {}
        self._turn = threading.Lock()

    def close(self, page: str) -> None:
        """Forgets it, and keeps nothing of what is on its way to it."""
        with self._turn:
            self._pages.pop(page, None)
            self._closed[page] = time.monotonic()

    def of(self, page: str, still_open: bool = False) -> dict[str, Said]:
        """What it has before it; nothing where that is too long ago. A page that asks anew is `still_open`."""
        self.sweep()
        with self._turn:
            if still_open:
                self._closed.pop(page, None)
            return dict(self._pages.get(page, (0.0, {}))[1])

    def keep(self, page: str, seen: dict[str, Said]) -> None:
        """In the place of what it had before; nothing: forgets it."""
        with self._turn:
            self._pages.pop(page, None)
            if seen and page not in self._closed:
                self._pages[page] = (time.monotonic(), seen)
            while len(self._pages) > MOST_PAGES:
                self._pages.popitem(last=False)

    def sweep(self) -> None:
        """Forgets what is too old."""
        with self._turn:
            for page, (since, _) in list(self._pages.items()):
                if time.monotonic() - since > self._seconds:
                    del self._pages[page]
            for page, since in list(self._closed.items()):
                if time.monotonic() - since > self._seconds:
                    del self._closed[page]
