"""Interface between the training loop and an objective."""

from typing import Any, NamedTuple

import numpy as np
import torch.distributed as dist
from torch import Tensor, nn

from dermrw.config import Config
from dermrw.diagnoses import BENIGN_CLASSES
from dermrw.objectives.losses import Sets, build_loss, expected_counts


class Batch(NamedTuple):
    """The data of one step, or this process's part of it."""

    x: Tensor  # [B, 3, H, W]
    y: Tensor  # [B]; a class, or a set of classes (`losses`)
    row: Tensor  # rows in the training set [B], on the CPU
    meta_x: Tensor  # [M, 3, H, W]; several processes hold parts of the meta set, or each holds all of it
    meta_y: Tensor  # [M]
    total: int  # number of examples of this step over all processes
    group: dist.ProcessGroup | None = None  # the processes that share the step; their losses add up


class Objective:
    """Empirical risk minimisation: the mean loss of the whole batch.

    The training loop calls the objective with the model and a batch. The objective returns the loss for the backward
    pass and the values to log. The loop is the same for every objective.
    """

    def __init__(self, config: Config, labels: np.ndarray, classes: int, steps: int) -> None:
        """Creates the objective for a training set with `labels` `[N]` and a training of `steps` steps in total."""
        self.config, self.classes, self.examples, self.steps = config.objective, classes, len(labels), steps
        self.sets: Sets = (BENIGN_CLASSES,) if config.data.extra_benign == "sum" else ()
        counts = np.bincount(labels, minlength=classes + len(self.sets))
        self.counts = expected_counts(counts[:classes], counts[classes:], self.sets) if self.sets else counts
        deferred = self.config.warm_up if self.config.name == "erm" else 0.0  # otherwise that of the example weights
        self.loss = build_loss(self.config.loss, self.counts, self.sets, deferred)
        self.sampler = self.config.sampler
        self.step = 0  # number of steps completed so far

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss (a scalar with its graph) and the values to log, and counts the step.

        The loss of the step is the sum of the losses of all processes.
        """
        found = self.compute_loss(model, batch)
        self.step += 1
        return found

    def compute_loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss and the values to log, as `__call__`."""
        return self.losses(model(batch.x), batch.y).sum() / batch.total, {}

    def losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """Returns the loss of each example: logits `[B, C]`, labels `[B]` -> `[B]`."""
        return self.loss(logits, y, self.step / self.steps)

    def example_weights(self) -> np.ndarray | None:
        """Returns the mean weight of each training image so far `[N]`, or None for an objective without weights.

        A weight of 1 is the mean weight of a batch. NaN marks images that were never drawn.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        """Returns the state that a checkpoint stores."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self.step = state["step"]
