"""The reliability diagram of a run's test predictions, for the model card."""

from pathlib import Path

import numpy as np
import pandas as pd

from dermrw.errors import UserError
from dermrw.inference.model_file import ModelInfo
from dermrw.metrics.classification import score_weights
from dermrw.reports.figures import reliability_png
from dermrw.reports.report_json import BINS, both_prevalences

TITLES = {"equal_prevalence": "at equal prevalence", "training_prevalence": "at the training set's prevalence"}


def reliability_diagram(run: Path, info: ModelInfo) -> bytes:
    """Returns a PNG of accuracy by predicted probability, at equal prevalence and at the training set's prevalence.

    Raises:
        UserError: the run's predictions can't be read.
    """
    try:
        p, truth = (
            pd.read_csv(run / name, dtype={"image": str}, keep_default_na=False).set_index("image")[list(info.columns)]
            for name in ("predictions.csv", "ground_truth.csv")
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{run / 'predictions.csv'} or ground_truth.csv can't be read ({error}): write them again with "
            f"`make eval RUN={run}`"
        ) from None
    y, w = truth.to_numpy().argmax(1), score_weights(p.index.to_numpy())
    shares = np.array([info.prevalence[code] for code in info.codes])
    return reliability_png(both_prevalences(p.to_numpy(), y, w, shares / shares.sum()), y, TITLES, BINS)
