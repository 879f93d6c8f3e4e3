"""The embedded sample: drawn images (`sample_drawing.py`) and synthetic metadata in the file layout of HAM10000.

It lets a user without HAM10000 train a model. Figures measured on it say nothing about real skin lesions.
"""

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from numpy.random import default_rng
from tqdm import tqdm

from dermrw.datasets.sample_drawing import draw_lesion
from dermrw.diagnoses import DX
from dermrw.errors import UserError

SAMPLE_VERSION = 1  # increase it when the same seed gives other images or metadata
HAM_IMAGES = {"mel": 1113, "nv": 6705, "bcc": 514, "akiec": 327, "bkl": 1099, "df": 115, "vasc": 142}
HAM_LESIONS = {"mel": 614, "nv": 5403, "bcc": 327, "akiec": 228, "bkl": 727, "df": 73, "vasc": 98}
LEAST_IMAGES, LEAST_LESIONS, LEAST_HISTO = 16, 11, 6  # per class, enough for every part of a split
# Approximate shares of HAM10000's lesions by kind of confirmation. All other classes are always histo.
DX_TYPES = {
    "nv": {"histo": 0.37, "follow_up": 0.55, "consensus": 0.07, "confocal": 0.01},
    "bkl": {"histo": 0.70, "consensus": 0.24, "confocal": 0.06},
    "df": {"histo": 0.48, "consensus": 0.52},
    "vasc": {"histo": 0.48, "consensus": 0.52},
}
MEAN_AGE = {"mel": 61, "nv": 47, "bcc": 67, "akiec": 67, "bkl": 64, "df": 52, "vasc": 52}  # years
TRUNK = ("back", "trunk", "abdomen", "lower extremity", "upper extremity", "chest")
SUNLIT = ("face", "scalp", "neck", "ear", "hand", "upper extremity", "back")
LIMBS = ("lower extremity", "upper extremity", "lower extremity", "trunk", "foot")
SITES = {"mel": (*TRUNK, "face"), "nv": (*TRUNK, "foot", "genital", "acral", "unknown"), "bcc": SUNLIT,
         "akiec": SUNLIT, "bkl": SUNLIT + TRUNK, "df": LIMBS, "vasc": TRUNK}  # fmt: skip
COLUMNS = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"]
PARTS = ("HAM10000_images_part_1", "HAM10000_images_part_2")
JPEG_QUALITY = 92


def sample_metadata(images: int, seed: int) -> pd.DataFrame:
    """Returns the sample's metadata, one row per image in random order: `COLUMNS`, `lesion` and `view` numbers.

    The numbers of images and lesions per class are in the proportions of HAM10000, except for the minimum counts above.

    Raises:
        ValueError: `images` is too small for the minimum counts.
    """
    least = LEAST_IMAGES * len(DX)
    if images < least:
        raise ValueError(f"images must be at least {least} ({LEAST_IMAGES} of each class), not {images}")
    rng = default_rng([seed, 0])
    share = images / sum(HAM_IMAGES.values())
    counts = {dx: max(LEAST_IMAGES, round(share * HAM_IMAGES[dx])) for dx in DX}
    counts["nv"] += images - sum(counts.values())  # the most frequent class compensates for the minimum counts

    lesions = []
    for dx in DX:
        number = max(LEAST_LESIONS, round(counts[dx] * HAM_LESIONS[dx] / HAM_IMAGES[dx]))
        # Every lesion has a first view. Each additional image is a second or third view of a lesion.
        further = rng.permutation(np.repeat(np.arange(number), 2))[: counts[dx] - number]
        views = 1 + np.bincount(further, minlength=number)
        shares = DX_TYPES.get(dx, {"histo": 1.0})
        dx_types = rng.choice(list(shares), number - LEAST_HISTO, p=list(shares.values()))
        for n, dx_type in zip(views, [*["histo"] * LEAST_HISTO, *dx_types], strict=True):
            age = float(np.clip(5 * round(rng.normal(MEAN_AGE[dx], 14) / 5), 5, 85))
            lesions.append({
                "dx": dx, "dx_type": str(dx_type), "age": age if rng.random() > 0.01 else None,
                "sex": str(rng.choice(["male", "female", "unknown"], p=[0.54, 0.455, 0.005])),
                "localization": str(rng.choice(SITES[dx])), "views": int(n),
            })  # fmt: skip
    frame = pd.DataFrame(lesions).sample(frac=1, random_state=rng).reset_index(drop=True)
    frame["lesion"] = frame.index + 1
    frame["lesion_id"] = [f"SAMPLELESION_{n:07d}" for n in frame["lesion"]]
    frame = frame.loc[frame.index.repeat(frame["views"])]
    frame["view"] = frame.groupby("lesion").cumcount() + 1
    frame = frame.sample(frac=1, random_state=rng).reset_index(drop=True)
    frame["image_id"] = [f"SAMPLE_{n + 1:07d}" for n in rng.permutation(images)]
    return frame[[*COLUMNS, "lesion", "view"]]


def _readme(images: int, seed: int) -> str:
    return f"""Drawn pictures of skin lesions. No patient, no photograph, no medical use.

dermrw (dermrw/drawing.py) drew everything in this folder and made up the metadata. It is NOT HAM10000: it
only has HAM10000's file layout and class proportions, so that the same programs read both. A figure measured
on it says nothing about real skin.

sample version {SAMPLE_VERSION}, images {images}, seed {seed}
"""


def _is_complete(root: Path, images: int, seed: int) -> bool:
    """Whether `root` already contains the sample with the same number of images and seed."""
    readme = root / "README.txt"
    drawn = sum(1 for part in PARTS for _ in (root / part).glob("SAMPLE_*.jpg"))
    same = readme.is_file() and readme.read_text(encoding="utf-8") == _readme(images, seed)
    return same and drawn == images and (root / "HAM10000_metadata.csv").is_file()


def write_sample(root: Path, images: int = 2000, seed: int = 0) -> Path:
    """Writes the sample to the folder `root` in HAM10000's layout unless it exists there; returns `root`.

    It is drawn in a temporary folder next to `root` and renamed at the end, so `root` is never incomplete.

    Raises:
        ValueError: `images` is too small.
        UserError: `root` contains other files, which are never overwritten.
    """
    root = Path(root)
    metadata = sample_metadata(images, seed)
    if _is_complete(root, images, seed):
        return root
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise UserError(f"{root} holds something other than this sample: delete it, or name another folder")

    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as scratch:
        built = Path(scratch) / "sample"
        for part in PARTS:
            (built / part).mkdir(parents=True)

        def draw(row: tuple[str, str, int, int]) -> None:
            image_id, dx, lesion, view = row
            # Each image has its own generators, so the result does not depend on the order of drawing or the threads.
            picture = draw_lesion(dx, default_rng([seed, lesion, 0]), default_rng([seed, lesion, view]))
            coded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
            part = PARTS[int(image_id[-7:]) * 2 > images + 1]
            (built / part / f"{image_id}.jpg").write_bytes(coded.tobytes())

        rows = list(metadata[["image_id", "dx", "lesion", "view"]].itertuples(index=False, name=None))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            drawn = pool.map(draw, rows)
            for _ in tqdm(drawn, total=images, desc="Drawing the embedded sample", unit="image"):
                pass
        metadata[COLUMNS].to_csv(built / "HAM10000_metadata.csv", index=False)
        (built / "README.txt").write_text(_readme(images, seed), encoding="utf-8")
        built.replace(root)
    return root
