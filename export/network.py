"""The network of a model file, from pixels to probabilities, activation map, embedding and checks."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from dermrw.decisions.refusal import QUALITY
from dermrw.evaluation.calibration import EqualPrevalence
from dermrw.evaluation.image_checks import Checks, maps_in_own_colours
from dermrw.evaluation.ood_score import Watch
from dermrw.models import RecordedInputs, last_linear, views
from dermrw.network_input import normalisation_of, to_input

from .backbone_head import cut, logits_and_map


class Exported(nn.Module):
    """Pixels uint8 `[N, size, size, 3]` -> probabilities `[N, C]`, map `[N, C, h, w]`, embedding, checks `[N, K]`."""

    def __init__(
        self, model: nn.Module, calibration: EqualPrevalence, checks: Checks, number_of_views: int = 1
    ) -> None:
        """The logits are the mean over `dermrw.models.views`; the other outputs use the upright view."""
        super().__init__()
        self.number_of_views = number_of_views
        self.model = model.eval()
        self.parts = cut(model)
        self.checks = checks.eval()
        self.offsets: Tensor
        self.temperature = calibration.temperature
        self.register_buffer("offsets", torch.tensor(calibration.offsets, dtype=torch.float32))

    @property
    def members(self) -> tuple["Exported", ...]:
        """The networks whose logits are averaged: this one alone."""
        return (self,)

    def outputs(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the logits `[N, C]`, and the other three outputs that the class lists."""
        x = to_input(pixels, pixels.device, normalisation_of(self.model))
        names = self.checks.names
        with RecordedInputs(last_linear(self.model)) as entered, Watch(self.model, names) as watch:
            logits, activation_map = logits_and_map(self.parts, x)
            maps = maps_in_own_colours(self.model, watch, pixels)
        if self.number_of_views > 1:
            turned = torch.cat(views(x, self.number_of_views)[1:])
            others = self.model(turned).unflatten(0, (self.number_of_views - 1, -1))  # [V - 1, N, C]
            logits = (logits + others.sum(0)) / self.number_of_views
        # The head first processes the whole map, then the maps with one position blanked out.
        return logits, activation_map, entered[0].flatten(1), self.checks(pixels, maps)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the four outputs that the class lists."""
        logits, activation_map, embedding, checks = self.outputs(pixels)
        return torch.softmax(logits / self.temperature + self.offsets, 1), activation_map, embedding, checks


class Averaged(nn.Module):
    """Several networks as one, with the inputs and outputs of `Exported`.

    The logits, the activation maps, and the checks that a network computes are averaged. The map of the averaged logits
    is the average of the maps. The embedding is the concatenation of the embeddings, each scaled to unit length, so
    that the cosine similarity of two images is the mean of the cosine similarities in the networks.
    """

    def __init__(self, members: Sequence[Exported], calibration: EqualPrevalence) -> None:
        """With the calibration of the average; those of the members are not used."""
        super().__init__()
        self.runs = nn.ModuleList(members)
        self.offsets: Tensor
        self.temperature = calibration.temperature
        self.register_buffer("offsets", torch.tensor(calibration.offsets, dtype=torch.float32))

    @property
    def members(self) -> tuple[Exported, ...]:
        """The networks whose logits are averaged."""
        return tuple(self.runs)  # type: ignore[arg-type]

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the outputs of `Exported`."""
        logits, maps, embeddings, checks = zip(*(member.outputs(pixels) for member in self.members), strict=True)
        mean = torch.stack(logits).mean(0)
        embedding = torch.cat([functional.normalize(vector) for vector in embeddings], 1)
        computed = torch.stack([values[:, len(QUALITY) :] for values in checks]).mean(0)  # the others use pixels alone
        return (
            torch.softmax(mean / self.temperature + self.offsets, 1),
            torch.stack(maps).mean(0),
            embedding,
            torch.cat([checks[0][:, : len(QUALITY)], computed], 1),
        )
