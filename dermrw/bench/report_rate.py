"""Time and memory of the figures of a report, by number of images: `python -m dermrw.bench.report_rate`."""

import argparse
import resource
import sys
import time

import numpy as np
import pandas as pd

from dermrw.diagnoses import HAM_CLASSES
from dermrw.errors import plain_endings
from dermrw.reports.report_json import OwnTable, ScoredSet, set_figures

SHARES = np.array([0.11, 0.67, 0.05, 0.03, 0.11, 0.01, 0.02])  # of HAM10000's classes
IMAGES_OF_A_PATIENT = 3  # on average


def draw(images: int) -> ScoredSet:
    """Draws labels, patients and probabilities of a set of images."""
    rng = np.random.default_rng(0)
    labels = rng.choice(len(SHARES), images, p=SHARES)
    odds = np.exp(rng.normal(size=(images, len(SHARES))) + 2 * np.eye(len(SHARES))[labels])
    table = pd.DataFrame(
        {
            "image_id": [f"image {i}" for i in range(images)],
            "lesion_id": [f"patient {i}" for i in rng.integers(max(1, images // IMAGES_OF_A_PATIENT), size=images)],
            "sex": rng.choice(["male", "female", ""], images),
            "age": rng.integers(20, 90, images).astype(str),
        }
    )
    probabilities = odds / odds.sum(axis=1, keepdims=True)
    return ScoredSet("drawn images", table, labels, [""] * images, HAM_CLASSES, probabilities, "patients")


def peak_memory() -> int:
    """Returns the largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Prints one line for each number of images."""
    parser = argparse.ArgumentParser("dermrw.bench.report_rate", description="Time and memory of a report's figures.")
    parser.add_argument("--images", type=int, nargs="+", default=[50_000, 400_000], help="default: %(default)s")
    with plain_endings("dermrw.bench.report_rate"):
        for images in parser.parse_args().images:
            scored = draw(images)
            before, cpu = peak_memory(), time.process_time()
            set_figures(scored, scored.probabilities, SHARES / SHARES.sum(), OwnTable("patients"))
            seconds, grown = time.process_time() - cpu, peak_memory() - before
            print(f"{images:,} images: {seconds:.0f} s of CPU time, {grown / 1e6:.0f} MB more memory", flush=True)


if __name__ == "__main__":
    main()
