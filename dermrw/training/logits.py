"""Logits of a set of images, for validation during training and for every later evaluation."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from dermrw.datasets.pixels import ImageDataset, in_order
from dermrw.models import views
from dermrw.network_input import normalisation_of, to_input
from dermrw.training.device import Placement


@torch.no_grad()
def predict_logits(
    model: nn.Module,
    pixels: ImageDataset,
    placement: Placement,
    batch_size: int,
    number_of_views: int = 1,
    after_plain_view: Callable[[Tensor], None] | None = None,
) -> np.ndarray:
    """Returns the logits of a set of images as float32 `[N, C]`, in the order of the set.

    The model runs in eval mode and in fp32.

    Args:
        model: maps inputs `[B, 3, S, S]` to logits `[B, C]`.
        pixels: the images.
        placement: the device and memory layout of the inputs.
        batch_size: images per forward pass.
        number_of_views: return the mean over this many views of each image (`dermrw.models.views`).
        after_plain_view: called with each batch's pixels uint8 `[B, S, S, 3]` directly after the forward pass of the
            unrotated images, so that it can read the activations of that pass.
    """
    model.eval()
    if not len(pixels):  # the part of a small set of one of many processes
        blank = torch.zeros(1, pixels.size, pixels.size, 3, dtype=torch.uint8)
        return model(to_input(blank, placement.device, normalisation_of(model)))[:0].float().cpu().numpy()
    parts = []
    for images, _, _ in in_order(pixels, batch_size):
        x = to_input(images, placement.device, normalisation_of(model), placement.channels_last)
        outputs = [model(x)]
        if after_plain_view is not None:
            after_plain_view(images)
        outputs += [model(view) for view in views(x, number_of_views)[1:]]
        parts.append(torch.stack(outputs).mean(0).float().cpu())
    return torch.cat(parts).numpy()
