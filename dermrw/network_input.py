"""The input of a network: 8-bit pixels, normalised, with colour constancy if the network has it."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dermrw.images.preprocess import MEAN, STD, ColourConstancy

POWER = 6  # of the Minkowski mean; the value of Finlayson and Trezzi
SATURATED = 250  # grey level of a channel from which a pixel says nothing about the light: glare, ink, a white border
LEAST_SHARE = 0.01  # of the pixels that must not be saturated; otherwise a picture keeps its colours
# The medians of the channels' Minkowski means over 1,476 pictures of HAM10000 (the validation images of
# configs/ham.yaml). With this reference illuminant, most pictures hardly change, and pretrained weights see the colours
# that they know.
REFERENCE = (0.794, 0.584, 0.615)
LARGEST_FACTOR = 1.7  # beyond any camera's; limits what happens to pictures that show no skin


class Normalisation(NamedTuple):
    """How pixels become the input of a network.

    Attributes:
        mean: of pixels in [0, 1], subtracted from each channel.
        std: of pixels in [0, 1], by which each channel is divided.
        colour_constancy: `shades_of_grey` normalises each picture to a reference illuminant first.
    """

    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    colour_constancy: ColourConstancy = "none"


IMAGENET = Normalisation()


def normalisation_of(network: nn.Module) -> Normalisation:
    """Returns the attribute `normalisation` of a network of `build_model`; that of ImageNet if it has none."""
    own = getattr(network, "module", network)  # module: of a moving average
    return getattr(own, "normalisation", IMAGENET)


def shades_of_grey(x: Tensor) -> Tensor:
    """Scales the channels of each picture so that its illuminant becomes the reference.

    The illuminant is estimated by shades of grey (Finlayson and Trezzi, Color and Imaging Conference 2004): the
    Minkowski mean of each channel, (mean x⁶)^(1/6), between the mean of the channel (grey world) and its maximum (white
    patch). Pixels with a channel of at least `SATURATED` are left out. The factors from this illuminant to `REFERENCE`
    are divided by their geometric mean, so that the brightness stays. A colour cast, which multiplies the channels by
    constants, then changes next to nothing unless it saturates a channel.

    Args:
        x: pixels from 0 to 255, float `[N, 3, H, W]`.

    Returns:
        float `[N, 3, H, W]`, from 0; bright pixels may exceed 255.
    """
    known = (x.amax(1, keepdim=True) < SATURATED).float()  # [N, 1, H, W]
    share = known.mean((2, 3), keepdim=True)
    cubed = (x / 255) ** 3
    power = (cubed * cubed * known).mean((2, 3), keepdim=True) / share.clamp_min(LEAST_SHARE)
    reference = torch.tensor(REFERENCE, device=x.device).view(1, 3, 1, 1)
    logs = torch.log(reference) - torch.log(power.clamp_min(1e-12)) / POWER  # [N, 3, 1, 1]
    factors = torch.exp(logs - logs.mean(1, keepdim=True)).clamp(1 / LARGEST_FACTOR, LARGEST_FACTOR)
    return x * torch.where(share < LEAST_SHARE, torch.ones_like(factors), factors)


def to_input(pixels: Tensor, device: torch.device, normalisation: Normalisation, channels_last: bool = False) -> Tensor:
    """Converts pixels uint8 `[N, H, W, 3]` to the network's input, float `[N, 3, H, W]`.

    Args:
        pixels: the images.
        device: of the result.
        normalisation: that of the network, see `normalisation_of`.
        channels_last: the memory layout of the result.
    """
    x = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).float()  # [N, 3, H, W], channels last in memory
    if normalisation.colour_constancy == "shades_of_grey":
        x = shades_of_grey(x)
    mean = torch.tensor(normalisation.mean, device=device).view(1, 3, 1, 1) * 255
    std = torch.tensor(normalisation.std, device=device).view(1, 3, 1, 1) * 255
    x = (x - mean) / std
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
