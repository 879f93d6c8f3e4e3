"""Measures runs under colour casts: `PYTHONPATH=.:tests python tests/tools/colour_casts.py RUN …`.

A cast multiplies red by a factor and divides blue by it, in the pixels that the network sees. For the average of the
runs and their validation images it prints balanced accuracy, AUC of malignant against the rest at the training data's
prevalence, and sensitivity and specificity of triage, whose threshold is fitted without a cast. One view.
`--colour-constancy shades_of_grey` changes what the networks see, for runs that were trained without.
`--table CSV --images FOLDER` adds the AUC of the same score for melanoma against the rest, without a cast, in a table
with the columns image_id, dx and challenge (`dermrw.datasets.hold_out --validation`).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tools.run_average import RunAverage, arguments, other_sources

from dermrw.decisions.triage import choose, measure
from dermrw.images.preprocess import Framing, evaluation_pixels
from dermrw.metrics import classification as metrics
from dermrw.network_input import normalisation_of, to_input

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
    parser = arguments(__doc__)
    parser.add_argument("--colour-constancy", choices=["none", "shades_of_grey"])
    options = parser.parse_args()
    average = RunAverage.read(options.runs)
    if options.colour_constancy:
        for model in average.models:
            changed = normalisation_of(model)._replace(colour_constancy=options.colour_constancy)
            model.normalisation = changed  # type: ignore[assignment]
    data, framing = average.data, Framing.of(average.data)

    def pixels(paths: Sequence[Path]) -> np.ndarray:
        return np.stack([evaluation_pixels(path, data.size, framing) for path in paths])

    validation, labels = average.validation(), np.asarray(average.splits.validation.labels)
    images = pixels(validation.paths)
    threshold = None
    print("cast: balanced accuracy, AUC, sensitivity, specificity")
    for cast in CASTS:
        factors = np.array([cast, 1, 1 / cast])
        p = probabilities(average.models, np.clip(np.rint(images * factors), 0, 255).astype(np.uint8))
        score = average.malignancy(p)
        if threshold is None:
            threshold = choose(score, validation.positive, validation.groups).threshold
        point = measure(score, validation.positive, validation.groups, threshold)
        figures = [metrics.balanced_accuracy(p, labels), metrics.auc(validation.positive, score)]
        figures += [point.sensitivity.value, point.specificity.value]
        print(f"{cast:.2f}:", *(f"{value:.4f}" for value in figures), flush=True)
    for source in other_sources(options.table, options.images):
        score = average.malignancy(probabilities(average.models, pixels(source.paths)))
        print(f"{source.name}: AUC {metrics.auc(source.positive, score):.4f}", flush=True)


if __name__ == "__main__":
    main()
