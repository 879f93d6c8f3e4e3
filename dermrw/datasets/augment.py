"""Augmentation of training images. No other module imports albumentations.

Dermoscopic images have no preferred orientation, so flips and quarter turns keep the diagnosis. Colour and scale vary
with the dermatoscope. The random numbers of an example depend on (seed, epoch, index) alone. They are therefore the
same for any number of worker processes and after a resume. This also avoids a flaw of albumentations 2.0.8, which
draws the same random stream in every worker and epoch.
"""

import os
from collections.abc import Callable

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no check for updates over the network

import albumentations
import cv2
import numpy as np

Augment = Callable[[np.ndarray, int], np.ndarray]


def dermoscopy(size: int) -> albumentations.Compose:
    """Returns random crop, flips, quarter turns and colour jitter: pixels `[H, W, 3]` -> `[size, size, 3]`."""
    return albumentations.Compose(
        [
            albumentations.RandomResizedCrop((size, size), scale=(0.5, 1.0), ratio=(0.8, 1.25)),
            albumentations.D4(p=1.0),
            albumentations.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.03, p=0.8),
        ]
    )


def strong(size: int) -> albumentations.Compose:
    """Returns `dermoscopy` with rotation, shear and shift before the crop and more colour jitter, for long training."""
    return albumentations.Compose(
        [
            albumentations.Affine(
                rotate=(-180, 180),
                shear=(-8, 8),
                scale=(0.9, 1.2),
                translate_percent=(-0.05, 0.05),
                border_mode=cv2.BORDER_REFLECT_101,  # black corners would reveal the angle of rotation
                p=0.8,
            ),
            albumentations.RandomResizedCrop((size, size), scale=(0.4, 1.0), ratio=(0.8, 1.25)),
            albumentations.D4(p=1.0),
            albumentations.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.04, p=0.8),
        ]
    )


def cutout(size: int) -> albumentations.Compose:
    """Returns `strong` with cutout (DeVries and Taylor, arXiv 1708.04552).

    With probability 0.7 a black square covers 3/8 of the side. Cutout keeps the network from memorising the few images
    of the rare classes by a detail. Size and probability are those of the winners of the ISIC 2020 challenge (Ha et
    al., arXiv 2010.05351).
    """
    hole = (0.375, 0.375)
    return albumentations.Compose(
        [
            strong(size),
            albumentations.CoarseDropout(num_holes_range=(1, 1), hole_height_range=hole, hole_width_range=hole, p=0.7),
        ]
    )


def cameras(size: int) -> albumentations.Compose:
    """Returns `strong` with the effects of other cameras: colour casts, pale colours, sharpening, noise and JPEG.

    A network trained with these is less certain on images with such effects. A network trained without them may
    classify such a melanoma as a nevus.
    """
    noises = [
        albumentations.GaussNoise(std_range=(0.005, 0.04), per_channel=each, noise_scale_factor=1, p=1.0)
        for each in (True, False)
    ]
    return albumentations.Compose(
        [
            strong(size),
            albumentations.ColorJitter(brightness=0, contrast=0, saturation=(0.3, 1.2), hue=0, p=0.3),
            albumentations.MultiplicativeNoise(multiplier=(0.85, 1.15), per_channel=True, elementwise=False, p=0.4),
            albumentations.UnsharpMask(blur_limit=(3, 7), alpha=(0.2, 1.0), threshold=0, p=0.25),
            albumentations.OneOf(noises, p=0.3),
            albumentations.ImageCompression(quality_range=(30, 90), p=0.3),
        ]
    )


def augmenter(name: str, size: int) -> Augment | None:
    """Returns a function (pixels uint8 `[H, W, 3]`, random seed) -> uint8 `[size, size, 3]`, or None for `none`."""
    if name == "none":
        return None
    compose = {"dermoscopy": dermoscopy, "strong": strong, "cutout": cutout, "cameras": cameras}[name](size)

    def augment(pixels: np.ndarray, seed: int) -> np.ndarray:
        compose.set_random_seed(seed)
        return compose(image=pixels)["image"]

    return augment


def example_seed(seed: int, epoch: int, index: int) -> int:
    """Returns a 32-bit seed for one example in one epoch, independent of all other seeds."""
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1)[0])
