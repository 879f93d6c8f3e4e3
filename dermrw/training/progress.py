"""The progress output of the training loop, time estimates, and stopping by a signal."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from dermrw.config import Config
from dermrw.diagnoses import Classes
from dermrw.formatting import duration

REWEIGHTED = 1.6  # time of a step with exact weights, in steps of plain training (docs/cost.md)
WARM_UP = 3  # steps that the first time estimate leaves out


@contextmanager
def stoppable(patient: bool = False) -> Iterator[threading.Event]:
    """Yields an event that SIGINT (Ctrl-C) or SIGTERM sets, so that the loop can finish the current step and stop.

    A second signal stops the program at once, unless `patient`. Each of several processes receives one signal from the
    terminal and one from its launcher, which kills it after 30 seconds.
    """
    stop = threading.Event()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: object) -> None:
        stop.set()
        if not patient:
            signal.signal(number, handlers[signal.Signals(number)])

    in_main = threading.current_thread() is threading.main_thread()
    if in_main:
        for number in handlers:
            signal.signal(number, handle)
    try:
        yield stop
    finally:
        if in_main:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def average(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the mean of each value (a number or a list of numbers) over the rows that contain it."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: np.mean([row[key] for row in rows if key in row], axis=0).tolist() for key in keys}


def describe(row: dict[str, Any], classes: Classes) -> str:
    """Returns the text at the right end of the progress bar."""
    text = f"loss {row['loss']:.3f}"
    if "class_weight" in row:
        weights = " ".join(f"{c} {w:.2f}" for c, w in zip(classes.codes, row["class_weight"], strict=True))
        text += f" | {weights} | zero {row['zero_share']:.0%} | effective {row['effective_batch']:.1f}"
    return text


class TimeEstimate:
    """Estimates the remaining time of a training from the speed of this process.

    The time of a step is taken as proportional to the number of pixels, and a step with weights of the examples as
    REWEIGHTED times as long as one of the warm-up.
    """

    def __init__(self, config: Config, steps_per_epoch: int) -> None:
        self.config, self.steps_per_epoch = config, steps_per_epoch
        self.start_step, self.start_time = 0, time.monotonic()
        self.warm_time = self.start_time  # when the first WARM_UP steps were finished

    def start(self, step: int) -> None:
        """Starts the clock of a process that resumes after `step` steps."""
        self.start_step, self.start_time = step, time.monotonic()

    def cost(self, steps: int) -> float:
        """Cost of the first `steps` steps of the run, in full-size steps of plain training.

        Without a warm-up, all steps cost the same, and plain training stands for the run's own method.
        """
        plain, total = self._pixels(steps), self.steps_per_epoch * self.config.train.epochs
        warm_up = self.config.objective.warm_up
        if not warm_up or self.config.objective.name not in ("reweight", "meta_weight_net"):
            return plain
        before = self._pixels(min(steps, math.ceil(warm_up * total)))
        return before + REWEIGHTED * (plain - before)

    def _pixels(self, steps: int) -> float:
        """Returns the number of pixels of the first `steps` steps, in those of a full-size step."""
        small = min(steps, self.config.first_epochs * self.steps_per_epoch)
        return small * (self.config.train.first_size / self.config.data.size) ** 2 + steps - small

    def seconds_left(self, step: int) -> float | None:
        """Returns the time from `step` to the end, at the speed since the start; None before the first step."""
        if step <= self.start_step:
            return None
        return self._seconds_left(step, self.start_step, self.start_time)

    def first_estimate(self, step: int) -> str | None:
        """Returns the estimate to print after the first steps, with hints if it exceeds an hour; None at other steps.

        Call it after every step. The first WARM_UP steps are slower and are left out.
        """
        done = step - self.start_step
        if done == WARM_UP:
            self.warm_time = time.monotonic()
        if done != 3 * WARM_UP:
            return None
        seconds = self._seconds_left(step, self.start_step + WARM_UP, self.warm_time)
        text = f"About {duration(seconds)} left on this machine."
        if seconds > 3600:
            epochs = max(1, int(self.config.train.epochs * 1800 / seconds))
            size = max(64, self.config.data.size // 2)
            text += f' Faster, but less accurate: ARGS="train.epochs={epochs}" (about half an hour)'
            text += f' or ARGS="data.size={size}".'
        return text

    def _seconds_left(self, step: int, since_step: int, since_time: float) -> float:
        total = self.cost(self.steps_per_epoch * self.config.train.epochs)
        seconds_per_step = (time.monotonic() - since_time) / (self.cost(step) - self.cost(since_step))
        return seconds_per_step * (total - self.cost(step))
