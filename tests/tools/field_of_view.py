"""Measures `find_field_of_view`: `PYTHONPATH=.:tests python tests/tools/field_of_view.py HAM10000 [FOLDER …]`.

Prints the share of the images in each folder that are cut. Draws frames around some images of the first folder, and
prints how well the boxes are recovered, and how the shipped model answers without and with the cut.
"""

import argparse
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dermrw.images.field_of_view import Box, find_field_of_view
from dermrw.images.preprocess import PLAIN, Framing, read_image
from dermrw.inference.classifier import Classifier

Framed = tuple[Image.Image, tuple[float, float, float, float]]


def border(image: Image.Image) -> Framed:
    """Returns the image with a black border of 2 % of its height over it, and the box within."""
    width, height = image.size
    depth = round(0.02 * height)
    framed = Image.new("RGB", image.size)
    framed.paste(image.crop((depth, depth, width - depth, height - depth)), (depth, depth))
    return framed, (depth, depth, width - depth, height - depth)


def letterbox(image: Image.Image) -> Framed:
    """Returns the image with black bars of 12 % of its height above and below it, and its own box."""
    width, height = image.size
    depth = round(0.12 * height)
    framed = Image.new("RGB", (width, height + 2 * depth))
    framed.paste(image, (0, depth))
    return framed, (0, depth, width, depth + height)


def round_field(image: Image.Image, radius: float = 0.5) -> Framed:
    """Returns the image within a circle on black, its radius a share of the width, and the largest box in it."""
    width, height = image.size
    x, y, r = width / 2, height / 2, radius * width
    away = np.hypot(*np.meshgrid(np.arange(width) + 0.5 - x, np.arange(height) + 0.5 - y))
    light = np.clip(r + 0.5 - away, 0, 1)[..., None]
    b = min(y, r / 2**0.5)
    a = min(x, (r * r - b * b) ** 0.5)
    return Image.fromarray((np.asarray(image) * light + 4 * (1 - light)).astype(np.uint8)), (x - a, y - b, x + a, y + b)


def ruler(image: Image.Image) -> Framed:
    """Returns the image with a ruler at its lower edge, and the whole box."""
    width, height = image.size
    drawn = image.copy()
    draw = ImageDraw.Draw(drawn)
    for i, x in enumerate(range(0, width, max(2, width // 40))):
        draw.line([x, height, x, height - height // (10 if i % 5 == 0 else 20)], (12, 12, 12), max(1, width // 300))
    return drawn, (0, 0, width, height)


FRAMES: dict[str, Callable[[Image.Image], Framed]] = {
    "none": lambda image: (image, (0, 0, *image.size)),
    "black border of 2 %": border,
    "letterbox": letterbox,
    "round field": round_field,
    "small round field": lambda image: round_field(image, 0.375),
    "ruler": ruler,
}


def cut_share(paths: list[Path]) -> dict[str, float]:
    """Returns how many of the images are cut, and the share of the area that is left of these."""

    def kept(path: Path) -> float:
        image = read_image(path)
        box = find_field_of_view(image)
        return box.width * box.height / (image.width * image.height)

    with ThreadPoolExecutor(2) as pool:
        left = np.array(list(pool.map(kept, paths)))
    cut = left[left < 1]
    quantiles = np.quantile(cut, [0.05, 0.5, 0.95]) if len(cut) else [1.0] * 3
    names = ("kept_5", "kept_median", "kept_95")
    return {"images": len(left), "cut": len(cut) / len(left), **dict(zip(names, map(float, quantiles), strict=True))}


def recovered(images: list[Image.Image]) -> dict[str, dict[str, float]]:
    """Returns the error of the boxes of each frame, as a share of the side, on images without a frame of their own."""
    rows = {}
    for name, frame in FRAMES.items():
        errors = []
        for image in images:
            framed, truth = frame(image)
            box: Box = find_field_of_view(framed)
            sides = np.array([framed.width, framed.height] * 2)
            errors.append(float((np.abs(np.array(box) - truth) / sides).max()))
        rows[name] = {
            "images": len(errors), "within_3": float(np.mean(np.array(errors) <= 0.03)), "largest": max(errors),
        }  # fmt: skip
    return rows


def answers(classifier: Classifier, images: list[Image.Image]) -> dict[str, dict[str, float]]:
    """Returns for each frame the share refused and the agreement with the unframed image, without and with the cut."""
    rows: dict[str, dict[str, float]] = {}
    classifier.framing = PLAIN
    plain = [classifier.explain(image) for image in images]
    for name, frame in FRAMES.items():
        for framing in (PLAIN, Framing("find")):
            classifier.framing = framing
            pairs = [(classifier.explain(frame(image)[0]), own) for image, own in zip(images, plain, strict=True)]
            new = [(e, own) for e, own in pairs if own.verdict.refused is None]
            both = [(e, own) for e, own in new if e.verdict.refused is None]
            refer = [(bool(e.verdict.refer), bool(own.verdict.refer)) for e, own in both]
            rows[f"{name}, {framing.field_of_view}"] = {
                "images": len(new),
                "refused": 1 - len(both) / len(new),
                "same_class": float(np.mean([e.probabilities.argmax() == o.probabilities.argmax() for e, o in both]))
                if both else float("nan"),
                "same_triage": float(np.mean([a == b for a, b in refer])) if refer else float("nan"),
                "no_longer_referred": sum(o and not e for e, o in refer) / max(1, sum(o for _, o in refer)),
            }  # fmt: skip
            print(f"{name}, {framing.field_of_view}", json.dumps(rows[f"{name}, {framing.field_of_view}"]), flush=True)
    return rows


def main() -> None:
    """Prints the figures as JSON, a line for each."""
    parser = argparse.ArgumentParser(description="Measure how the field of view is found.")
    parser.add_argument("folders", nargs="+", type=Path, help="folders of images, HAM10000 first")
    parser.add_argument("--images", type=int, default=200, help="number of images to draw frames on (default: 200)")
    parser.add_argument("--only", choices=["shares", "answers"], help="leave out the other half")
    arguments = parser.parse_args()
    endings = (".jpg", ".png", ".webp")
    files = [sorted(p for p in folder.rglob("*") if p.suffix in endings) for folder in arguments.folders]
    if arguments.only != "answers":
        for folder, paths in zip(arguments.folders, files, strict=True):
            print(folder.name, json.dumps(cut_share(paths)), flush=True)
    if arguments.only != "shares":
        rows = np.random.default_rng(0).permutation(len(files[0]))
        unframed = []
        for row in rows:
            image = read_image(files[0][row])
            if find_field_of_view(image) == (0, 0, *image.size):
                unframed.append(image)
            if len(unframed) == arguments.images:
                break
        for name, row in recovered(unframed).items():
            print(f"box: {name}", json.dumps(row), flush=True)
        answers(Classifier(None, "cpu", threads=1), unframed)


if __name__ == "__main__":
    main()
