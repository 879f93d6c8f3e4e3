"""Measures how well perceptual hashes find copies of images, and how often they match other images.

`PYTHONPATH=. HAM10000_DIR=FOLDER python tests/tools/copies.py` prints the table of docs/score.md: the share of changed
copies of 150 images that match, and the share of all images that match an image of another lesion.
"""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from dermrw.datasets.ham10000 import read_folder
from dermrw.datasets.hash_cache import SIDE, hash_images
from dermrw.images.preprocess import evaluation_pixels
from dermrw.inference.known_images import MOST_BITS, SAME_BITS, have_copy, image_hash

IMAGES = 150


def saved(image: Image.Image, kind: str, quality: int) -> Image.Image:
    """The image after lossy compression."""
    file = io.BytesIO()
    image.save(file, kind, quality=quality)
    return Image.open(file).convert("RGB")


def resized(image: Image.Image, width: int) -> Image.Image:
    """The image with another width and the same aspect ratio."""
    return image.resize((width, round(width * image.height / image.width)), Image.Resampling.BICUBIC)


def middle(image: Image.Image, width: float, height: float) -> Image.Image:
    """The middle of the image, of this width and height in pixels."""
    left, top = (image.width - width) / 2, (image.height - height) / 2
    return image.crop((round(left), round(top), round(left + width), round(top + height)))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG of quality 90": lambda x: saved(x, "JPEG", 90),
    "JPEG of quality 50": lambda x: saved(x, "JPEG", 50),
    "JPEG of quality 25": lambda x: saved(x, "JPEG", 25),
    "WebP of quality 60": lambda x: saved(x, "WEBP", 60),
    "resized to 112 px": lambda x: resized(x, 112),
    "resized to 450 px": lambda x: resized(x, 450),
    "resized to 768 px": lambda x: resized(x, 768),
    "168 px with JPEG of quality 75": lambda x: saved(resized(x, 168), "JPEG", 75),
    "the middle square alone": lambda x: middle(x, min(x.size), min(x.size)),
    "10 % brighter": lambda x: x.point(lambda value: min(255, int(1.1 * value))),
    "cropped by 5 %": lambda x: middle(x, 0.95 * x.width, 0.95 * x.height),
}


def main() -> None:
    """Prints the table."""
    table = read_folder(Path(os.environ["HAM10000_DIR"])).table
    chosen = np.random.default_rng(0).choice(table["path"].to_numpy(), IMAGES, replace=False)
    bits = (MOST_BITS, SAME_BITS)
    found = {name: np.zeros(len(bits)) for name in CHANGES}
    for path in chosen:
        own = np.array([image_hash(evaluation_pixels(path, SIDE))], dtype=np.uint64)
        with Image.open(path) as file:
            image = file.convert("RGB")
        for name, change in CHANGES.items():
            copy = np.array([image_hash(evaluation_pixels(np.asarray(change(image)), SIDE))], dtype=np.uint64)
            found[name] += [have_copy(copy, own, most)[0] for most in bits]
    for name, counts in found.items():
        print(f"{name}: " + "; ".join(f"{100 * count / IMAGES:.1f} %" for count in counts))

    hashes = hash_images(table["path"])
    table = table[table["path"].isin(hashes)]
    array = np.array([hashes[path] for path in table["path"]], dtype=np.uint64)
    lesions = table["lesion_id"].to_numpy()
    for most in bits:
        false = sum(have_copy(array[[i]], array[lesions != lesions[i]], most)[0] for i in range(len(array)))
        print(f"{most}: {false} of {len(array)} images match an image of another lesion ({false / len(array):.2%})")


if __name__ == "__main__":
    main()
