"""Augmentation of training images. No other module imports albumentations.

Dermoscopic images have no preferred orientation, so flips and quarter turns keep the diagnosis. Colour and scale vary
with the dermatoscope. The random numbers of an example depend on (seed, epoch, index) alone. They are therefore the
same for any number of worker processes and after a resume. This also avoids a flaw of albumentations 2.0.8, which
draws the same random stream in every worker and epoch.
"""

import os
from collections.abc import Callable, Sequence

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no check for updates over the network

import albumentations
import cv2
import numpy as np

from dermrw.datasets import artefacts

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


# artefacts of `devices` and their probabilities
SCENE: tuple[tuple[artefacts.Draw, float], ...] = (
    (artefacts.hairs, 0.2),
    (artefacts.ink, 0.06),
    (artefacts.bubbles, 0.08),
    (artefacts.sticker, 0.05),
    (artefacts.glare, 0.04),
    (artefacts.vignette, 0.15),
    (artefacts.dark_corners, 0.1),
    (artefacts.round_field, 0.03),
)
FILE: tuple[tuple[artefacts.Draw, float], ...] = (
    (artefacts.ruler, 0.1),
    (artefacts.border, 0.07),
    (artefacts.letterbox, 0.02),
)


class Drawn(albumentations.ImageOnlyTransform):
    """Draws each artefact with its probability. One transform for all of them costs less than one for each."""

    def __init__(self, draws: Sequence[tuple[artefacts.Draw, float]]) -> None:
        super().__init__(p=1.0)
        self.draws = draws

    def apply(self, img: np.ndarray, **params: object) -> np.ndarray:
        """Returns the picture with artefacts, from the random generator of the composition."""
        rng = self.random_generator
        chosen = rng.random(len(self.draws)) < [p for _, p in self.draws]
        for (draw, _), take in zip(self.draws, chosen, strict=True):
            img = draw(img, rng) if take else img
        return img


def devices(size: int) -> albumentations.Compose:
    """Returns `strong` with the effects of other dermatoscopes, cameras, files and framing, for images of any source.

    In the order of a photograph: the frame; hairs, ink, gel, light fall-off and dark corners; focus, white balance,
    exposure, noise and sharpening; ruler, borders, resolution and JPEG. Some sources hold whole pictures and others
    their middle squares, in which a lesion is a third larger: the scales and proportions of the crops cover both.
    Drawn borders are rare and thin: they stand for the remains of borders that are cut off before augmentation.
    """
    noises = [
        albumentations.GaussNoise(std_range=(0.005, 0.04), per_channel=each, noise_scale_factor=1, p=1.0)
        for each in (True, False)
    ]
    coarsest = min(0.9, max(0.5, 160 / size))  # copies of 160 px and more
    return albumentations.Compose(
        [
            albumentations.Affine(
                rotate=(-180, 180),
                shear=(-8, 8),
                scale=(0.72, 1.25),
                translate_percent=(-0.05, 0.05),
                border_mode=cv2.BORDER_REFLECT_101,
                p=0.8,
            ),
            albumentations.RandomResizedCrop((size, size), scale=(0.4, 1.0), ratio=(0.75, 1.34)),
            albumentations.D4(p=1.0),
            Drawn(SCENE),
            albumentations.GaussianBlur(blur_limit=0, sigma_limit=(0.4, 1.5), p=0.15),
            albumentations.MultiplicativeNoise(multiplier=(0.85, 1.15), per_channel=True, elementwise=False, p=0.4),
            albumentations.RandomGamma(gamma_limit=(75, 135), p=0.25),
            albumentations.ColorJitter(brightness=0.25, contrast=0.3, saturation=(0.5, 1.3), hue=0.02, p=0.8),
            albumentations.OneOf(noises, p=0.2),
            albumentations.UnsharpMask(blur_limit=(3, 7), alpha=(0.2, 1.0), threshold=0, p=0.2),
            Drawn(FILE),
            albumentations.Downscale(
                scale_range=(coarsest, 0.95),
                interpolation_pair={"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_LINEAR},
                p=0.2,
            ),
            albumentations.ImageCompression(quality_range=(25, 95), p=0.35),
        ]
    )


def augmenter(name: str, size: int) -> Augment | None:
    """Returns a function (pixels uint8 `[H, W, 3]`, random seed) -> uint8 `[size, size, 3]`, or None for `none`."""
    if name == "none":
        return None
    named = {"dermoscopy": dermoscopy, "strong": strong, "cutout": cutout, "cameras": cameras, "devices": devices}
    compose = named[name](size)

    def augment(pixels: np.ndarray, seed: int) -> np.ndarray:
        compose.set_random_seed(seed)
        return compose(image=pixels)["image"]

    return augment


def example_seed(seed: int, epoch: int, index: int) -> int:
    """Returns a 32-bit seed for one example in one epoch, independent of all other seeds."""
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1)[0])
