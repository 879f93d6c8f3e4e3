"""What the loop says while it runs, and how it is stopped."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from dermrw.diagnoses import Classes


@contextmanager
def stoppable(patient: bool = False) -> Iterator[threading.Event]:
    """An event that Ctrl-C or a scheduler's SIGTERM sets, so that the step under way ends before the loop does.

    A second signal acts at once, unless `patient`: one of several processes gets a signal from the terminal and
    another from its launcher, which itself loses patience after 30 seconds.
    """
    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: object) -> None:
        stop.set()
        if not patient:
            signal.signal(number, before[signal.Signals(number)])

    in_main = threading.current_thread() is threading.main_thread()
    if in_main:
        for number in before:
            signal.signal(number, handle)
    try:
        yield stop
    finally:
        if in_main:
            for number, handler in before.items():
                signal.signal(number, handler)


def average(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each value (a number or a list of numbers) over those of some steps that have it."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: np.mean([row[key] for row in rows if key in row], axis=0).tolist() for key in keys}


def describe(row: dict[str, Any], classes: Classes) -> str:
    """The progress bar's right end."""
    text = f"loss {row['loss']:.3f}"
    if "class_weight" in row:
        weights = " ".join(f"{c} {w:.2f}" for c, w in zip(classes.codes, row["class_weight"], strict=True))
        text += f" | {weights} | zero {row['zero_share']:.0%} | effective {row['effective_batch']:.1f}"
    return text


def duration(seconds: float) -> str:
    """Seconds in words: 45 s, 12 min, 3.4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
