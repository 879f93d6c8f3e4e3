"""Fits the limits of refusal: on validation, other sources, skin tones, drawn artefacts, and the accuracy lost."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from dermrw.config import Config
from dermrw.datasets.dataset import ImageSet, Splits, resolve_root
from dermrw.datasets.extra import held_out, validation_sources
from dermrw.datasets.pixels import ImageDataset, in_order
from dermrw.decisions.refusal import LEAST_GROUP, PHOTOGRAPH, QUALITY, Group, fit_limits, refusal
from dermrw.diagnoses import shows_skin
from dermrw.errors import UserError
from dermrw.evaluation.calibration import EqualPrevalence
from dermrw.evaluation.image_checks import with_artefacts
from dermrw.evaluation.photograph_detector import is_held_out
from dermrw.evaluation.predict import Predicts
from dermrw.evaluation.quality_limits import choose_images, harmful_values
from dermrw.files import expand_home
from dermrw.images.preprocess import Framing, evaluation_pixels
from dermrw.images.skin_tone import skin_tones
from dermrw.inference.find_images import find_images
from dermrw.reports.report_schema import FittedRefusal, RefusedGroup, RefusedPhotographs

MOST_DRAWN = 400  # validation images that artefacts are drawn on
LEAST_PICTURES = 30  # pictures that the detector needs


class ToRefuse(NamedTuple):
    """The pictures of `data.refuse`."""

    fitted: list[Path]
    held_out: list[Path]


def pictures_to_refuse(folder: str | None) -> ToRefuse:
    """Returns the pictures of `data.refuse`, about a third of them held out, by their names.

    Raises:
        UserError: the folder is absent or has too few pictures.
    """
    if folder is None:
        return ToRefuse([], [])
    root = expand_home(folder)
    if not root.is_dir():
        raise UserError(f"data.refuse is {root}, which is not a folder: correct it, or leave it out")
    found = find_images([root]).images
    fitted = [path for name, path in found.items() if not is_held_out(name)]
    held_out = [path for name, path in found.items() if is_held_out(name)]
    if len(fitted) < LEAST_PICTURES or not held_out:
        raise UserError(
            f"data.refuse: {root} has {len(found)} pictures, too few for a detector: it needs about "
            f"{LEAST_PICTURES * 3 // 2}"
        )
    return ToRefuse(fitted, held_out)


def bounding_images(config: Config, splits: Splits) -> dict[str, pd.DataFrame]:
    """Returns the validation images of `data.extra`, by source, which bound the false refusals; none without it.

    Raises:
        UserError: they can't be read.
    """
    if config.data.extra is None:
        return {}
    held = held_out(resolve_root(config.data), splits.table)
    return validation_sources(config.data, splits.train.table, splits.train.sources, held)


def fit_refusal(
    predictor: Predicts,
    calibration: EqualPrevalence,
    config: Config,
    splits: Splits,
    checks: npt.NDArray[np.floating],
    unit: str,
    held_out: Sequence[Path] = (),
) -> tuple[dict[str, float], FittedRefusal]:
    """Returns the limit of each check, and the false refusals of the images that they were fitted on.

    Args:
        predictor: of the run.
        calibration: from its logits to probabilities.
        config: of the run.
        splits: its images.
        checks: of the validation images `[N, 8]` or `[N, 9]`.
        unit: of the groups: lesions, patients, groups or images.
        held_out: pictures to refuse that the detector was not fitted on.
    """
    valid, data = splits.validation, config.data
    lesions = valid.table["lesion_id"].to_numpy()
    groups = []
    if shows_skin(splits.classes, unit):
        tones = np.array(skin_tones(valid.sources), dtype=object)
        names = [f"estimated skin tone: {name}" for name in dict.fromkeys(tones)]
        members = [tones == name for name in dict.fromkeys(tones)]
        groups += [Group(name, checks[m]) for name, m in zip(names, members, strict=True)]
    if data.extra is not None:
        for name, table in bounding_images(config, splits).items():
            images = ImageSet(table, np.zeros(len(table), dtype=np.int64), table["path"].tolist())
            pixels = ImageDataset(images, data, progress=f"validation images of {name}", once=True)
            _, found = predictor.plain_view(_all_pixels(pixels))
            groups.append(Group(name, found))
    if config.draws_artefacts:
        part = valid.part(lambda rows: np.random.default_rng(0).permutation(rows)[:MOST_DRAWN])
        whole = _all_pixels(ImageDataset(part, data))
        _, found = predictor.plain_view(with_artefacts(whole))
        groups.append(Group("validation, with drawn artefacts", found))

    rows = choose_images(valid.labels, lesions)
    chosen = valid.part(lambda _: rows)
    print("Measuring the accuracy lost on degraded images", flush=True)

    def measure(pixels: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        logits, found = predictor.plain_view(pixels)
        return calibration(logits), found[:, : len(QUALITY)].astype(np.float64)

    harmful = harmful_values(_all_pixels(ImageDataset(chosen, data)), chosen.labels, measure)
    limits = fit_limits(checks, lesions, groups, harmful)
    shown = [Group("validation", checks), *(g for g in groups if len(g.checks) >= LEAST_GROUP)]
    return limits, FittedRefusal(
        harmful=harmful,
        groups=[
            RefusedGroup(name=g.name, images=len(g.checks), refused=_refused(g.checks, limits) / len(g.checks))
            for g in shown
        ],
        photographs=_photographs(predictor, limits, data.size, Framing.of(data), held_out) if held_out else None,
    )


def _refused(checks: npt.NDArray[np.floating], limits: dict[str, float]) -> int:
    """The number of images with these checks `[N, 8]` or `[N, 9]` that are refused."""
    return sum(refusal(row, limits) is not None for row in checks)


def _photographs(
    predictor: Predicts, limits: dict[str, float], size: int, framing: Framing, held_out: Sequence[Path]
) -> RefusedPhotographs:
    """Counts the held-out pictures to refuse that are refused, and those that the detector refuses."""
    _, checks = predictor.plain_view(np.stack([evaluation_pixels(path, size, framing) for path in held_out]))
    return RefusedPhotographs(
        pictures=len(held_out),
        refused=_refused(checks, limits),
        detected=int((checks[:, -1] > limits[PHOTOGRAPH]).sum()),
    )


def _all_pixels(pixels: ImageDataset) -> npt.NDArray[np.uint8]:
    """The evaluation pixels of a set `[N, S, S, 3]`; for sets of a few hundred images."""
    return np.concatenate([images.numpy() for images, _, _ in in_order(pixels, 64)])
