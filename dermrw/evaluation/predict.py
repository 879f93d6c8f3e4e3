"""From a run's best checkpoint to logits and image checks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from dermrw.config import Config, Data
from dermrw.datasets.dataset import ImageSet
from dermrw.datasets.pixels import ImageDataset
from dermrw.diagnoses import Classes
from dermrw.errors import UserError
from dermrw.evaluation.image_checks import Checks, fit_checks, logits_and_checks, logits_and_checks_of
from dermrw.models import build_model
from dermrw.training.checkpoint import load_checkpoint
from dermrw.training.device import Placement
from dermrw.training.image_record import FILE, require_own_images

BATCH = 64


class Predicts(Protocol):
    """A model that predicts a set of images: of one run, or the average of several."""

    def predict(self, images: ImageSet, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns logits `[N, C]` and checks `[N, 8]` or `[N, 9]`; `name` is for the progress message."""
        ...

    def plain_view(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns logits and checks of pixels uint8 `[N, S, S, 3]`, of the upright view alone."""
        ...


class Predictor(NamedTuple):
    """A network and its image checks, on a device."""

    model: nn.Module
    checks: Checks
    data: Data
    placement: Placement

    @classmethod
    def of(
        cls,
        model: nn.Module,
        train: ImageSet,
        config: Config,
        placement: Placement,
        refuse: Sequence[Path] = (),
        skin: bool = False,
    ) -> "Predictor":
        """Fits the checks to the training images and the pictures to refuse (`image_checks.fit_checks`)."""
        data = config.data
        checks = fit_checks(model, train, data, placement, BATCH, config.draws_artefacts, refuse, skin)
        return cls(model, checks.to(placement.device), data, placement)

    def predict(self, images: ImageSet, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Logits float32 `[N, C]` and checks float32 `[N, 8]` or `[N, 9]` of a set; `name` is for the progress."""
        pixels = ImageDataset(images, self.data, progress=name, once=True)
        return logits_and_checks(self.model, self.checks, pixels, self.placement, BATCH, self.data.views)

    def plain_view(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits and checks of pixels uint8 `[N, S, S, 3]`, of the upright view alone."""
        return logits_and_checks_of(self.model, self.checks, pixels, self.placement, BATCH)


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
    listed = run / FILE
    require_own_images(path, state, listed.read_text() if listed.is_file() else None)
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
