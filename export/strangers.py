"""Pictures that are no dermoscopic images: those that installed packages ship, and composed ones. For measuring alone.

No threshold is fitted on them.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from dermrw.errors import UserError
from dermrw.pixels import read_image

ENDINGS = {".jpg", ".jpeg", ".png", ".gif", ".tif", ".bmp", ".webp"}
# package and folder, and what kind its pictures are where the name doesn't say another
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
Picture = tuple[str, str, Image.Image]  # kind, name, pixels


def shipped() -> Iterator[Picture]:
    """What lies in the packages that are installed here."""
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
                continue  # what can't be read needs no refusal
            if min(image.size) >= 100:
                yield kind, f"{package}: {path.name}", image
                for name, boxes in SKIN.items():
                    for box in boxes if name in path.stem else []:
                        yield "phone's close-up of skin", f"{package}: {path.name}, enlarged", close_up(image, box)


def close_up(image: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """A part of a picture, enlarged as a phone would show it."""
    w, h = image.size
    part = image.crop((round(box[0] * w), round(box[1] * h), round(box[2] * w), round(box[3] * h)))
    return part.resize((480, 480), Image.Resampling.BICUBIC)


def composed(count: int, seed: int = 0) -> Iterator[Picture]:
    """`count` each of documents, charts, noise, gradients and blanks, by chance alone."""
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        yield "document", f"document {i}", _document(rng)
        yield "chart", f"chart {i}", _chart(rng)
        yield "noise", f"noise {i}", _noise(rng)
        yield "gradient", f"gradient {i}", _gradient(rng)
        shade = rng.integers(0, 256, 3)
        yield "blank", f"blank {i}", Image.new("RGB", (450, 450), tuple(int(v) for v in shade))


def bare_skin(lesions: list[Image.Image]) -> Iterator[Picture]:
    """The skin at the corners of dermoscopic images, enlarged and lit from one side, as in a phone's picture."""
    for i, image in enumerate(lesions):
        w, h = image.size
        side = min(w, h) // 4
        left, top = [(0, 0), (w - side, 0), (0, h - side), (w - side, h - side)][i % 4]
        part = image.crop((left, top, left + side, top + side)).resize((450, 450), Image.Resampling.BICUBIC)
        light = np.linspace(0.75, 1.15, 450)[None, :, None]
        lit = (np.asarray(part, dtype=np.float64) * light).clip(0, 255).astype(np.uint8)
        yield "phone's close-up of skin", f"skin beside lesion {i}, enlarged", Image.fromarray(lit)


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
