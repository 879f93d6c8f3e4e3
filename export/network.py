"""The network of a model file, from pixels to probabilities, activation map, embedding and checks."""

import torch
from torch import Tensor, nn

from dermrw.evaluation.calibration import EqualPrevalence
from dermrw.evaluation.image_checks import Checks
from dermrw.evaluation.ood_score import Watch
from dermrw.models import RecordedInputs, last_linear, pixel_statistics, to_input, views

from .backbone_head import cut, logits_and_map


class Exported(nn.Module):
    """Pixels uint8 `[N, size, size, 3]` -> probabilities `[N, C]`, map `[N, C, h, w]`, embedding, checks `[N, 8]`."""

    def __init__(
        self, model: nn.Module, calibration: EqualPrevalence, checks: Checks, every_view: bool = False
    ) -> None:
        """With `every_view`, logits are the mean over `dermrw.models.views`; other outputs use the upright view."""
        super().__init__()
        self.every_view = every_view
        self.model = model.eval()
        self.parts = cut(model)
        self.checks = checks.eval()
        self.offsets: Tensor
        self.temperature = calibration.temperature
        self.register_buffer("offsets", torch.tensor(calibration.offsets, dtype=torch.float32))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the four outputs that the class lists."""
        x = to_input(pixels, pixels.device, statistics=pixel_statistics(self.model))
        names = self.checks.familiarity.names
        with RecordedInputs(last_linear(self.model)) as entered, Watch(self.model, names) as watch:
            logits, activation_map = logits_and_map(self.parts, x)
        if self.every_view:
            others = self.model(torch.cat(views(x)[1:])).unflatten(0, (7, -1))  # [7, N, C]
            logits = (logits + others.sum(0)) / 8
        # The head first processes the whole map, then the maps with one position blanked out.
        probabilities = torch.softmax(logits / self.temperature + self.offsets, 1)
        return probabilities, activation_map, entered[0].flatten(1), self.checks(pixels, watch.take())
