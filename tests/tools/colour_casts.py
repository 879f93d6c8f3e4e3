"""Measures runs under colour casts: `PYTHONPATH=. python tests/tools/colour_casts.py RUN …`.

A cast multiplies red by a factor and divides blue by it, in the pixels that the network sees. For the average of the
runs and their validation images it prints balanced accuracy, AUC of malignant against the rest at the training data's
prevalence, and sensitivity and specificity of triage, whose threshold is fitted without a cast. One view.
`--colour-constancy shades_of_grey` changes what the networks see, for runs that were trained without.
`--table CSV --images FOLDER` adds the AUC of the same score for melanoma against the rest, without a cast, in a table
with the columns image_id, dx and challenge (`dermrw.datasets.hold_out --validation`).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dermrw.config import load_config
from dermrw.decisions.prevalence import at_prevalence
from dermrw.decisions.triage import choose, measure
from dermrw.evaluation.predict import load_best
from dermrw.images.preprocess import Framing, evaluation_pixels
from dermrw.metrics import classification as metrics
from dermrw.network_input import normalisation_of, to_input
from dermrw.training.run_data import run_splits

CASTS = (1.0, 1.1, 1.15, 1.3, 1 / 1.1, 1 / 1.15)
BATCH = 64


@torch.inference_mode()
def probabilities(models: Sequence[torch.nn.Module], images: np.ndarray) -> np.ndarray:
    """The probabilities `[N, C]` of the models' mean logits for pixels uint8 `[N, H, W, 3]`."""
    parts = []
    for model in models:
        inputs = (
            to_input(torch.from_numpy(images[i : i + BATCH]), torch.device("cpu"), normalisation_of(model), True)
            for i in range(0, len(images), BATCH)
        )
        parts.append(torch.cat([model(x).double() for x in inputs]))
    mean: np.ndarray = torch.stack(parts).mean(0).softmax(-1).numpy()
    return mean


def main() -> None:
    """Predicts and prints the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--colour-constancy", choices=["none", "shades_of_grey"])
    parser.add_argument("--table", type=Path)
    parser.add_argument("--images", type=Path)
    options = parser.parse_args()
    configs = [load_config(run / "config.yaml") for run in options.runs]
    splits, data = run_splits(options.runs[0], configs[0]), configs[0].data
    models = [load_best(run, c, splits.classes)[0].eval() for run, c in zip(options.runs, configs, strict=True)]
    if options.colour_constancy:
        for model in models:
            changed = normalisation_of(model)._replace(colour_constancy=options.colour_constancy)
            model.normalisation = changed  # type: ignore[assignment]
    framing, labels = Framing.of(data), np.asarray(splits.validation.labels)
    bad = np.array(splits.classes.malignant)
    counts = np.bincount(splits.train.labels, minlength=len(bad))[: len(bad)]

    def pixels(paths: Sequence[Path]) -> np.ndarray:
        return np.stack([evaluation_pixels(path, data.size, framing) for path in paths])

    images, lesions = pixels(splits.validation.sources), splits.validation.table["lesion_id"].to_numpy()
    threshold = None
    print("cast: balanced accuracy, AUC, sensitivity, specificity")
    for cast in CASTS:
        factors = np.array([cast, 1, 1 / cast])
        p = probabilities(models, np.clip(np.rint(images * factors), 0, 255).astype(np.uint8))
        score = at_prevalence(p, counts / counts.sum())[:, bad].sum(1)
        if threshold is None:
            threshold = choose(score, bad[labels], lesions).threshold
        point = measure(score, bad[labels], lesions, threshold)
        figures = [metrics.balanced_accuracy(p, labels), metrics.auc(bad[labels], score)]
        figures += [point.sensitivity.value, point.specificity.value]
        print(f"{cast:.2f}:", *(f"{value:.4f}" for value in figures), flush=True)
    if options.table:
        table, found = pd.read_csv(options.table), {path.stem: path for path in options.images.iterdir()}
        for name, rows in table.groupby("challenge"):
            p = probabilities(models, pixels([found[i] for i in rows["image_id"]]))
            score = at_prevalence(p, counts / counts.sum())[:, bad].sum(1)
            print(f"{name}: AUC {metrics.auc(rows['dx'].to_numpy() == 'mel', score):.4f}", flush=True)


if __name__ == "__main__":
    main()
