"""Out-of-distribution images for evaluation: those shipped with installed packages, and synthetic ones.

No threshold is fitted to them.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from dermrw.datasets.sample_drawing import draw_lesion
from dermrw.errors import UserError
from dermrw.images.preprocess import read_image

ENDINGS = {".jpg", ".jpeg", ".png", ".gif", ".tif", ".bmp", ".webp"}
# package and folder, and the kind of its images unless their name states another
SHIPPED = {
    ("sklearn", "datasets/images"): "photograph",
    ("matplotlib", "mpl-data/sample_data"): "photograph",
    ("gradio", "media_assets/images"): "photograph",
    ("gradio", "test_data"): "photograph",
    ("skimage", "data"): "photograph",
    ("networkx", "drawing/tests/baseline"): "chart",
}
NAMED = {
    "logo": "drawing", "Minduka": "drawing", "hf-logo": "drawing", "avatar": "drawing", "screenshot": "document",
    "text": "document", "page": "document", "ihc": "histology", "cell": "microscopy", "blobs": "microscopy",
    "retina": "fundus", "brick": "texture", "grass": "texture", "gravel": "texture", "chessboard": "drawing",
    "rectangles": "drawing", "color": "drawing", "horse": "drawing", "moon": "photograph",
}  # fmt: skip
# faces, as fractions of the picture: left, top, right, bottom of a cheek or a forehead
SKIN = {
    "grace_hopper": [(0.40, 0.30, 0.56, 0.42), (0.44, 0.16, 0.60, 0.24)],
    "astronaut": [(0.36, 0.22, 0.45, 0.32), (0.40, 0.10, 0.48, 0.15)],
}
# kinds that contain dermoscopic images or imitate one
LIKENESSES = (
    "drawn lesion", "picture within a screenshot", "skin beside the lesion, enlarged 4.7 times, noise",
    "skin beside the lesion, enlarged 7.5 times", "skin beside the lesion, enlarged 7.5 times, noise",
    "two lesions side by side",
)  # fmt: skip
Picture = tuple[str, str, Image.Image]  # kind, name, pixels


def shipped() -> Iterator[Picture]:
    """Yields the images in the installed packages."""
    for (package, folder), usual in SHIPPED.items():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        for path in sorted((Path(spec.origin).parent / folder).rglob("*")):
            if path.suffix.lower() not in ENDINGS or path.stat().st_size < 6000:
                continue
            kind = next((kind for start, kind in NAMED.items() if start in path.stem), usual)
            try:
                image = read_image(path)
            except UserError:
                continue  # unreadable images never reach the model
            if min(image.size) >= 100:
                yield kind, f"{package}: {path.name}", image
                for name, boxes in SKIN.items():
                    for box in boxes if name in path.stem else []:
                        yield "phone's close-up of skin", f"{package}: {path.name}, enlarged", close_up(image, box)


def close_up(image: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """Returns a part of an image, enlarged like a phone's close-up."""
    w, h = image.size
    part = image.crop((round(box[0] * w), round(box[1] * h), round(box[2] * w), round(box[3] * h)))
    return part.resize((480, 480), Image.Resampling.BICUBIC)


def composed(count: int, seed: int = 0) -> Iterator[Picture]:
    """Yields `count` random images of each kind: documents, charts, noise, gradients and blanks."""
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        yield "document", f"document {i}", _document(rng)
        yield "chart", f"chart {i}", _chart(rng)
        yield "noise", f"noise {i}", _noise(rng)
        yield "gradient", f"gradient {i}", _gradient(rng)
        shade = rng.integers(0, 256, 3)
        yield "blank", f"blank {i}", Image.new("RGB", (450, 450), tuple(int(v) for v in shade))


def from_lesions(lesions: list[Image.Image]) -> Iterator[Picture]:
    """Yields images composed of dermoscopic images that are no valid image of a single lesion, and drawn lesions."""
    for i, image in enumerate(lesions):
        rng = np.random.default_rng([7, i])
        other = lesions[(i + 1) % len(lesions)]
        yield "skin beside the lesion, enlarged 7.5 times", f"corner of lesion {i}", _corner(image, i, 4, 0, rng)
        yield (
            "skin beside the lesion, enlarged 7.5 times, noise",
            f"corner of lesion {i}, noisy",
            _corner(image, i, 4, 3, rng),
        )
        yield "skin beside the lesion, enlarged 4.7 times, noise", f"half of lesion {i}", _corner(image, i, 2.5, 3, rng)
        yield "picture within a screenshot", f"screenshot of lesion {i}", _screenshot(image, rng)
        yield "two lesions side by side", f"lesion {i} and the next", _beside(image, other)
        drawn = draw_lesion("mel", rng, np.random.default_rng([8, i]), 450, 600)
        yield "drawn lesion", f"drawn lesion {i}", Image.fromarray(drawn)


def _corner(image: Image.Image, i: int, share: float, noise: float, rng: np.random.Generator) -> Image.Image:
    """Returns an enlarged corner, 1/`share` of the shorter side, lit from one side like a phone's close-up of skin."""
    w, h = image.size
    side = int(min(w, h) / share)
    left, top = [(0, 0), (w - side, 0), (0, h - side), (w - side, h - side)][i % 4]
    part = image.crop((left, top, left + side, top + side)).resize((450, 450), Image.Resampling.BICUBIC)
    light = np.linspace(0.75, 1.15, 450)[None, :, None]
    lit = np.asarray(part, dtype=np.float64) * light + rng.normal(0, noise, (450, 450, 3))
    return Image.fromarray(lit.clip(0, 255).astype(np.uint8))


def _screenshot(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Returns a screenshot of an image viewer that shows the image."""
    window = Image.new("RGB", (960, 600), (245, 245, 247))
    draw, font = ImageDraw.Draw(window), ImageFont.load_default(size=16)
    draw.rectangle((0, 0, 960, 44), fill=(52, 58, 70))
    for k in range(9):
        draw.text((24, 70 + 52 * k), "".join(rng.choice(list("abcdefgh "), 14)), fill=(40, 40, 40), font=font)
    window.paste(image.resize((680, 510)), (250, 66))
    return window


def _beside(one: Image.Image, other: Image.Image) -> Image.Image:
    both = Image.new("RGB", (900, 450))
    both.paste(one.resize((450, 450)), (0, 0))
    both.paste(other.resize((450, 450)), (450, 0))
    return both


def _document(rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (480, 640), (250, 250, 247))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=int(rng.integers(11, 22)))
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz      "))
    for y in range(30, 610, int(rng.integers(16, 30))):
        draw.text((30, y), "".join(rng.choice(letters, int(rng.integers(20, 60)))), fill=(20, 20, 30), font=font)
    return image


def _chart(rng: np.random.Generator) -> Image.Image:
    figure = Figure((5, 4), dpi=100)
    axes = figure.subplots()
    which = rng.integers(4)
    if which == 0:
        axes.plot(rng.normal(size=(50, 3)).cumsum(0))
    elif which == 1:
        axes.bar(range(8), rng.random(8))
    elif which == 2:
        axes.scatter(rng.normal(size=200), rng.normal(size=200), c=rng.random(200))
    else:
        axes.imshow(rng.random((12, 12)), cmap="viridis")
    axes.set_title("Title")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _noise(rng: np.random.Generator) -> Image.Image:
    if rng.random() < 0.5:
        return Image.fromarray(rng.integers(0, 256, (450, 450, 3), dtype=np.uint8))
    coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))  # clouds
    return coarse.resize((450, 450), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(4))


def _gradient(rng: np.random.Generator) -> Image.Image:
    a, b = rng.integers(0, 256, (2, 3))
    t = np.linspace(0, 1, 450)[None, :, None]
    pixels = np.broadcast_to(a * (1 - t) + b * t, (450, 450, 3))
    return Image.fromarray(pixels.astype(np.uint8))
