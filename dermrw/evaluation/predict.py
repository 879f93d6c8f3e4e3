"""From a run's best checkpoint to logits and image checks."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from dermrw.config import Config, Data
from dermrw.datasets.dataset import ImageSet
from dermrw.datasets.pixels import ImageDataset
from dermrw.diagnoses import Classes
from dermrw.errors import UserError
from dermrw.evaluation.image_checks import Checks, fit_familiarity, logits_and_checks
from dermrw.models import build_model
from dermrw.training.checkpoint import load_checkpoint
from dermrw.training.device import Placement

BATCH = 64


class Predictor(NamedTuple):
    """A network and its image checks, on a device."""

    model: nn.Module
    checks: Checks
    data: Data
    placement: Placement

    @classmethod
    def of(cls, model: nn.Module, train: ImageSet, data: Data, placement: Placement) -> "Predictor":
        """Fits the out-of-distribution score of the checks to the training images."""
        checks = Checks(fit_familiarity(model, train, data, placement, BATCH))
        return cls(model, checks.to(placement.device), data, placement)

    def predict(self, images: ImageSet, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Logits float32 `[N, C]` and checks float32 `[N, 8]` of a set; `name` is for the progress message."""
        pixels = ImageDataset(images, self.data, progress=name, once=True)
        return logits_and_checks(self.model, self.checks, pixels, self.placement, BATCH, self.data.views == 8)


def softmax(logits: np.ndarray) -> np.ndarray:
    """The network's own probabilities, before calibration: logits `[N, C]` -> float64 `[N, C]`."""
    return torch.softmax(torch.from_numpy(logits).double(), 1).numpy()


def load_best(run: Path, config: Config, classes: Classes) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a run's best epoch, on the CPU, and its checkpoint.

    Raises:
        UserError: best.pt is absent, damaged or of another run.
    """
    path = run / "best.pt"
    state = load_checkpoint(path)
    if state["classes"] != list(classes.codes):
        raise UserError(
            f"{path} was trained on the classes {state['classes']}, not on this run's: restore it, or train again"
        )
    model, _ = build_model(config.model.model_copy(update={"weights": "none"}), len(classes.codes))
    try:
        model.load_state_dict(state["model"])
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} does not contain the weights of {config.model.backbone} ({reason}): restore it, or train again"
        ) from None
    if not all(tensor.isfinite().all() for tensor in model.state_dict().values()):
        raise UserError(
            f"{path} contains weights that are not finite, so the training diverged: start a new run with a lower "
            "learning rate"
        )
    return model, state
