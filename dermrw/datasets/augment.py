"""Random changes to training pixels. The only file that knows albumentations.

Dermoscopic pictures have no up or down, so flips and quarter turns are free; colour and scale vary with the
dermatoscope. Each example's randomness comes from (seed, epoch, index) alone: it is the same
in any number of worker processes and after a resume, and albumentations 2.0.8's habit of drawing one and the same
stream in every worker and epoch can't show.
"""

import os
from collections.abc import Callable

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no look for updates over the network

import albumentations
import cv2
import numpy as np

Augment = Callable[[np.ndarray, int], np.ndarray]


def dermoscopy(size: int) -> albumentations.Compose:
    """Crop, flips, quarter turns and colour: pixels `[H, W, 3]` -> `[size, size, 3]`."""
    return albumentations.Compose(
        [
            albumentations.RandomResizedCrop((size, size), scale=(0.5, 1.0), ratio=(0.8, 1.25)),
            albumentations.D4(p=1.0),
            albumentations.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.03, p=0.8),
        ]
    )


def strong(size: int) -> albumentations.Compose:
    """`dermoscopy` with any rotation, some shear and shift before the crop, and more colour, for long training."""
    return albumentations.Compose(
        [
            albumentations.Affine(
                rotate=(-180, 180),
                shear=(-8, 8),
                scale=(0.9, 1.2),
                translate_percent=(-0.05, 0.05),
                border_mode=cv2.BORDER_REFLECT_101,  # black corners would say how far a picture was turned
                p=0.8,
            ),
            albumentations.RandomResizedCrop((size, size), scale=(0.4, 1.0), ratio=(0.8, 1.25)),
            albumentations.D4(p=1.0),
            albumentations.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.04, p=0.8),
        ]
    )


def cutout(size: int) -> albumentations.Compose:
    """`strong`, and in seven pictures of ten a black square of 3/8 of the side (DeVries and Taylor, arXiv 1708.04552).

    It keeps the network from remembering the rare classes' few pictures by a detail. The size and the share are those
    of the ISIC 2020 challenge's winners (Ha et al., arXiv 2010.05351).
    """
    hole = (0.375, 0.375)
    return albumentations.Compose(
        [
            strong(size),
            albumentations.CoarseDropout(num_holes_range=(1, 1), hole_height_range=hole, hole_width_range=hole, p=0.7),
        ]
    )


def cameras(size: int) -> albumentations.Compose:
    """`strong`, and what other cameras and files do to a picture: colour casts, pale colours, sharpening, noise, JPEG.

    What a network has seen of these it is less sure of, where one that hasn't calls a melanoma a nevus.
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
    """(pixels uint8 `[H, W, 3]`, random seed) -> uint8 `[size, size, 3]`, or None for `none`."""
    if name == "none":
        return None
    compose = {"dermoscopy": dermoscopy, "strong": strong, "cutout": cutout, "cameras": cameras}[name](size)

    def augment(pixels: np.ndarray, seed: int) -> np.ndarray:
        compose.set_random_seed(seed)
        return compose(image=pixels)["image"]

    return augment


def example_seed(seed: int, epoch: int, index: int) -> int:
    """A 32-bit seed for one example of one epoch, independent of any other's."""
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1)[0])
