"""Runs whose average a tool measures on their validation images, and on a table of other sources."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from dermrw.config import Data, load_config
from dermrw.datasets.dataset import Splits, class_shares
from dermrw.decisions.prevalence import at_prevalence
from dermrw.evaluation.predict import load_best
from dermrw.training.device import Placement
from dermrw.training.run_data import run_splits


class Measured(NamedTuple):
    """Images to measure on: whether each is malignant `[N]`, its lesion or patient `[N]`, and its path."""

    name: str
    positive: np.ndarray
    groups: np.ndarray
    paths: Sequence[Path]


class RunAverage(NamedTuple):
    """Networks in eval mode, and the splits and pixels of the first run."""

    models: list[nn.Module]
    splits: Splits
    data: Data

    @classmethod
    def read(cls, runs: Sequence[Path]) -> "RunAverage":
        """Loads the best epoch of each run."""
        configs = [load_config(run / "config.yaml") for run in runs]
        splits = run_splits(runs[0], configs[0])
        placement = Placement(torch.device("cpu"), "fp32", channels_last=True)
        networks = [load_best(run, config, splits.classes)[0] for run, config in zip(runs, configs, strict=True)]
        models = [placement.place(network).eval() for network in networks]
        return cls(models, splits, configs[0].data)

    def malignancy(self, probabilities: np.ndarray) -> np.ndarray:
        """The summed probability `[N]` of the malignant classes at the training data's prevalence."""
        shares = class_shares(self.splits.train.table, self.splits.classes)
        summed: np.ndarray = at_prevalence(probabilities, shares)[:, np.array(self.splits.classes.malignant)].sum(1)
        return summed

    def validation(self) -> Measured:
        """The validation images of the first run."""
        images = self.splits.validation
        positive = np.array(self.splits.classes.malignant)[np.asarray(images.labels)]
        return Measured("validation", positive, images.table["lesion_id"].to_numpy(), images.sources)


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """The arguments RUN …, --table CSV and --images FOLDER."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--images", type=Path)
    return parser


def other_sources(table: Path | None, images: Path) -> Iterator[Measured]:
    """The images of each challenge in a table with the columns image_id, patient_id, dx and challenge."""
    if table is None:
        return
    found = {path.stem: path for path in images.iterdir()}
    for name, rows in pd.read_csv(table).groupby("challenge"):
        groups = rows["patient_id"].fillna(rows["image_id"]).astype(str).to_numpy()
        paths = [found[image] for image in rows["image_id"]]
        yield Measured(str(name), rows["dx"].to_numpy() == "mel", groups, paths)
