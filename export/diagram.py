"""The reliability diagram of a run's test predictions as a picture beside the model card."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dermrw.decisions.prevalence import at_prevalence
from dermrw.errors import UserError
from dermrw.inference.model_file import ModelInfo
from dermrw.metrics.calibration_error import expected_calibration_error, reliability_curve
from dermrw.metrics.classification import equal_prevalence_weights, prevalence_weights, score_weights


def reliability_diagram(run: Path, info: ModelInfo) -> bytes:
    """A PNG: how often decisions were right, by their probability; at equal and at the training data's prevalence.

    Raises:
        UserError: the run's predictions can't be read.
    """
    try:
        p, truth = (
            pd.read_csv(run / name, dtype={"image": str}).set_index("image")[list(info.columns)]
            for name in ("predictions.csv", "ground_truth.csv")
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{run}'s predictions can't be read ({error}): `make eval RUN={run}` writes them anew"
        ) from None
    y, w = truth.to_numpy().argmax(1), score_weights(p.index.to_numpy())
    shares = np.array([info.prevalence[code] for code in info.codes])
    shares = shares / shares.sum()
    sides = [
        ("at equal prevalence", p.to_numpy(), equal_prevalence_weights(y, w)),
        ("at the training data's prevalence", at_prevalence(p.to_numpy(), shares), prevalence_weights(y, shares, w)),
    ]
    figure = Figure((10, 4.8), layout="constrained")
    for axes, (title, q, weights) in zip(figure.subplots(1, 2), sides, strict=True):
        top = q.argmax(1)
        curve = reliability_curve(top == y, q[np.arange(len(y)), top], weights)
        ece = expected_calibration_error(q, y, weights)
        axes.plot([0, 1], [0, 1], color="0.75", linewidth=1)
        axes.plot(curve.score, curve.frequency, "o-", color="#0b5fae", markersize=4)
        axes.set(
            xlim=(0, 1), ylim=(0, 1), aspect="equal", title=f"{title}: error {100 * ece:.1f} %",
            xlabel="probability of the likeliest diagnosis", ylabel="share of them that were right",
        )  # fmt: skip
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    return buffer.getvalue()
