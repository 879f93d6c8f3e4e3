"""What the loop and an objective say to each other."""

from typing import Any, NamedTuple

import numpy as np
import torch.distributed as dist
from torch import Tensor, nn

from dermrw.config import Config
from dermrw.objectives.losses import build_loss


class Batch(NamedTuple):
    """One step's data, or a process's part of it, and the whole meta set."""

    x: Tensor  # [B, 3, H, W]
    y: Tensor  # [B]
    row: Tensor  # of the training set [B], on the CPU
    meta_x: Tensor  # [M, 3, H, W]
    meta_y: Tensor  # [M]
    total: int  # examples of this step in all processes
    group: dist.ProcessGroup | None = None  # the processes that share the step; their losses add up


class Objective:
    """Empirical risk minimisation: the mean loss of the whole batch.

    The loop calls it with the model and a batch and gets a loss to call backward on and what to log; it does not know
    which objective it has.
    """

    def __init__(self, config: Config, labels: np.ndarray, classes: int, steps: int) -> None:
        """For a training set with these `labels` `[N]` and a training of so many `steps`."""
        self.config, self.classes, self.examples, self.steps = config.objective, classes, len(labels), steps
        self.counts = np.bincount(labels, minlength=classes)
        self.loss = build_loss(self.config.loss, self.counts)
        self.sampler = self.config.sampler
        self.step = 0  # steps that were taken before this one

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (a scalar with its graph), which adds up over the processes, and what to log."""
        found = self.compute_loss(model, batch)
        self.step += 1
        return found

    def compute_loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """What `__call__` gives."""
        return self.losses(model(batch.x), batch.y).sum() / batch.total, {}

    def losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """The loss of each example: logits `[B, C]`, labels `[B]` -> `[B]`."""
        return self.loss(logits, y, self.step / self.steps)

    def example_weights(self) -> np.ndarray | None:
        """The mean weight of each training image so far `[N]`, where 1 is the mean of a batch and NaN never seen."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What must survive a resume."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.step = state["step"]
