"""What the open pages were told, for a while and in memory alone."""

import threading
import time
from collections import OrderedDict

from dermrw.predict import Explanation

REMEMBERED_SECONDS = 600  # so that another prevalence needs no other upload
MOST_PAGES = 200  # that are remembered at once: ten pictures of a lesion take some two megabytes

Seen = dict[str, Explanation]  # by the upload's path


class Memory:
    """What each open page has before it. Only who knows a page's random name asks for it."""

    def __init__(self, seconds: float = REMEMBERED_SECONDS) -> None:
        self._seconds = seconds
        self._pages: OrderedDict[str, tuple[float, Seen]] = OrderedDict()
        self._turn = threading.Lock()

    def of(self, page: str) -> Seen:
        """What it has before it; nothing where that is too long ago."""
        self.sweep()
        with self._turn:
            return dict(self._pages.get(page, (0.0, {}))[1])

    def keep(self, page: str, seen: Seen) -> None:
        """In the place of what it had before; nothing: forgets it."""
        with self._turn:
            self._pages.pop(page, None)
            if seen:
                self._pages[page] = (time.monotonic(), seen)
            while len(self._pages) > MOST_PAGES:
                self._pages.popitem(last=False)

    def sweep(self) -> None:
        """Forgets what is too old."""
        with self._turn:
            for page, (since, _) in list(self._pages.items()):
                if time.monotonic() - since > self._seconds:
                    del self._pages[page]
