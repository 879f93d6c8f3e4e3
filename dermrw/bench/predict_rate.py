"""Images per second of `dermrw predict` by number of worker processes: `python -m dermrw.bench.predict_rate`."""

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from dermrw.datasets.sample_drawing import draw_lesion
from dermrw.errors import plain_endings
from dermrw.files import path_argument
from dermrw.inference.classifier import Classifier
from dermrw.inference.find_images import find_images
from dermrw.inference.workers import classify_files, usable_cpus

HEIGHT, WIDTH = 450, 600  # of HAM10000's images


def draw_images(folder: Path, count: int) -> Path:
    """Draws lesions as JPEG files of HAM10000's size."""
    for i in range(count):
        pixels = draw_lesion("nv", np.random.default_rng([i, 0]), np.random.default_rng([i, 1]), HEIGHT, WIDTH)
        Image.fromarray(pixels).save(folder / f"{i:06}.jpg", quality=90)
    return folder


def measure(classifier: Classifier, images: dict[str, Path], workers: int) -> tuple[float, float]:
    """Returns the seconds until the first rows, and the images per second afterwards."""
    begun, first, rows = time.perf_counter(), 0.0, 0
    for batch in classify_files(classifier, list(images), list(images.values()), workers):
        if first == 0:
            first = time.perf_counter() - begun
        else:
            rows += len(batch)
    return first, rows / (time.perf_counter() - begun - first)


def main() -> None:
    """Prints one line for each number of workers."""
    parser = argparse.ArgumentParser("dermrw.bench.predict_rate", description="Images per second of dermrw predict.")
    parser.add_argument(
        "model", nargs="?", type=path_argument, default=Path("app/model.onnx"), help="default: %(default)s"
    )
    parser.add_argument("folder", nargs="?", type=path_argument, help="images (default: drawn ones of HAM10000's size)")
    parser.add_argument("--images", type=int, default=1000, help="number of drawn images (default: %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", help="numbers of processes (default: 1 and all CPUs)")
    arguments = parser.parse_args()
    with plain_endings("dermrw.bench.predict_rate"), TemporaryDirectory() as temporary:
        classifier = Classifier(arguments.model, "cpu")
        folder = arguments.folder or draw_images(Path(temporary), arguments.images)
        images = find_images([folder]).images
        for workers in arguments.workers or sorted({1, usable_cpus()}):
            first, rate = measure(classifier, images, workers)
            print(f"workers {workers}: {rate:.1f} images per second; first rows after {first:.1f} s", flush=True)


if __name__ == "__main__":
    main()
