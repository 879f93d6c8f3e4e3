"""Logits of a set of images, as validation during training and every later evaluation compute them."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from dermrw.datasets.dataset import ImageDataset, in_order
from dermrw.models import to_input, views
from dermrw.training.device import Placement


@torch.no_grad()
def predict_logits(
    model: nn.Module,
    pixels: ImageDataset,
    placement: Placement,
    batch_size: int,
    all_views: bool = False,
    after_plain_view: Callable[[Tensor], None] | None = None,
) -> np.ndarray:
    """Logits float32 `[N, C]` of a set, in its order, in eval mode and fp32; with `all_views`, their mean over 8 views.

    Args:
        model: maps inputs `[B, 3, S, S]` to logits `[B, C]`.
        pixels: the set.
        placement: the device and memory layout of the inputs.
        batch_size: images per forward pass.
        all_views: average over the eight turns and flips of each image.
        after_plain_view: called with each batch's pixels uint8 `[B, S, S, 3]` directly after the forward pass of the
            unturned images, so that it can read that pass's activations.
    """
    model.eval()
    parts = []
    for images, _, _ in in_order(pixels, batch_size):
        x = to_input(images, placement.device, placement.channels_last)
        outputs = [model(x)]
        if after_plain_view is not None:
            after_plain_view(images)
        if all_views:
            outputs += [model(view) for view in views(x)[1:]]
        parts.append(torch.stack(outputs).mean(0).float().cpu())
    return torch.cat(parts).numpy()
