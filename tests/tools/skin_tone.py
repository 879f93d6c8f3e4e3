"""Measures `individual_typology_angle`: `PYTHONPATH=. python tests/tools/skin_tone.py FOLDER… [--images N]`.

Prints the number of images of each folder in each group of skin tone, the share that stays in its group after JPEG of
quality 60 and at half size, and the time of an estimate. FOLDER is searched with its subfolders.
"""

import argparse
import io
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from dermrw.images.formats import IMAGE_SUFFIXES
from dermrw.images.preprocess import Framing, content
from dermrw.images.skin_tone import NOT_ESTIMATED, ORDER, individual_typology_angle, tone_group


def group(image: Image.Image) -> tuple[str, float]:
    """Returns the group of an image, and the CPU time of the estimate in milliseconds."""
    pixels = np.asarray(content(image, Framing(field_of_view="find")))
    start = time.thread_time()
    angle = individual_typology_angle(pixels)
    spent = 1000 * (time.thread_time() - start)
    return NOT_ESTIMATED if angle is None else tone_group(angle), spent


def jpeg(image: Image.Image) -> Image.Image:
    """Returns the image after JPEG of quality 60."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=60)
    return Image.open(file)


def main() -> None:
    """Prints a line for each folder."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--images", type=int, default=1000, help="random images of each folder")
    arguments = parser.parse_args()
    for folder in arguments.folders:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        order = np.random.default_rng(0).permutation(len(paths))[: arguments.images]
        groups, same = Counter[str](), Counter[str]()
        times: list[float] = []
        for i in order:
            image = content(paths[i])
            name, spent = group(image)
            groups[name] += 1
            same["JPEG 60"] += group(jpeg(image))[0] == name
            half = image.resize((image.width // 2, image.height // 2), Image.Resampling.BILINEAR)
            same["half size"] += group(half)[0] == name
            times.append(spent)
        counts = ", ".join(f"{name} {groups[name]}" for name in ORDER)
        kept = ", ".join(f"{way} {count / len(order):.1%}" for way, count in same.items())
        print(f"{folder}: {len(order)} images: {counts}; same group: {kept}; {np.median(times):.2f} ms", flush=True)


if __name__ == "__main__":
    main()
