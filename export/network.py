"""The network as the model file holds it: pixels in, probabilities, activation map and embedding out."""

from typing import Any

import torch
from torch import Tensor, nn

from dermrw.calibration import EqualPrevalence
from dermrw.models import to_input
from export.parts import cut, last_linear, logits_and_map


class Exported(nn.Module):
    """Pixels uint8 `[N, size, size, 3]` -> probabilities `[N, C]`, map `[N, C, h, w]`, embedding `[N, D]`."""

    def __init__(self, model: nn.Module, calibration: EqualPrevalence) -> None:
        super().__init__()
        self.model = model.eval()
        self.parts = cut(model)
        self.offsets: Tensor
        self.temperature = calibration.temperature
        self.register_buffer("offsets", torch.tensor(calibration.offsets, dtype=torch.float32))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        entered: list[Tensor] = []

        def note(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            entered.append(inputs[0])

        handle = last_linear(self.model).register_forward_pre_hook(note)
        try:
            logits, activation_map = logits_and_map(self.parts, to_input(pixels, pixels.device))
        finally:
            handle.remove()
        # the head runs on the whole map first, then on maps with a position blanked out
        probabilities = torch.softmax(logits / self.temperature + self.offsets, 1)
        return probabilities, activation_map, entered[0].flatten(1)
