"""Compares crops with quarter turns at test time: `PYTHONPATH=.:tests python tests/tools/crops_at_test_time.py RUN …`.

For runs with `data.crop=whole`. Predicts their validation images from the whole picture in four quarter turns, from the
middle crop in two, and from four overlapping corner crops, each crop with 80 % of both sides. For each combination it
prints the class-balanced loss at the best temperature, balanced accuracy, and AUC of malignant against the rest at the
training data's prevalence. With several runs, the figures are of their average. `--table CSV --images FOLDER` adds the
AUC on a table with the columns image_id, dx and challenge (`dermrw.datasets.hold_out --validation`).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tools.run_average import RunAverage, arguments, other_sources

from dermrw.images.field_of_view import Box
from dermrw.images.preprocess import Framing, content, cut, network_pixels
from dermrw.metrics import classification as metrics
from dermrw.metrics.resampling import bootstrap_counts, interval_of
from dermrw.models import views
from dermrw.network_input import normalisation_of, to_input

SHARE = 0.8  # of a crop's sides
COMBINATIONS = {  # columns of `logits_of`
    "whole": [0], "whole, 2 turns": [0, 2], "whole, 4 turns": [0, 1, 2, 3], "middle, 2 turns": [4, 5],
    "whole, 2 turns, and middle, 2 turns": [0, 2, 4, 5], "corners": [6, 7, 8, 9], "whole and corners": [0, 6, 7, 8, 9],
    "whole, 4 turns, and corners": [0, 1, 2, 3, 6, 7, 8, 9], "all": list(range(10)),
}  # fmt: skip


def boxes(width: int, height: int) -> list[Box]:
    """The whole picture, its middle, and its corners."""
    a, b = round(width * SHARE), round(height * SHARE)
    x, y = width - a, height - b
    places = [(x // 2, y // 2), (0, 0), (x, 0), (0, y), (x, y)]
    return [Box(0, 0, width, height), *(Box(left, top, left + a, top + b) for left, top in places)]


def crops(image: Image.Image, size: int, framing: Framing) -> list[np.ndarray]:
    """Pixels uint8 `[size, size, 3]` of each box."""
    return [network_pixels(cut(image, box), size, framing) for box in boxes(*image.size)]


@torch.inference_mode()
def logits_of(
    models: Sequence[torch.nn.Module], paths: Sequence[Path], size: int, framing: Framing, batch: int = 32
) -> np.ndarray:
    """Logits `[M, N, 10, C]`: the whole picture in four quarter turns, the middle in two, and each corner in one."""
    parts = []
    for start in range(0, len(paths), batch):
        pixels = np.array([crops(content(path, framing), size, framing) for path in paths[start : start + batch]])
        outputs = []
        for model in models:
            normalisation, cpu = normalisation_of(model), torch.device("cpu")
            x = [to_input(torch.from_numpy(part), cpu, normalisation, True) for part in pixels.swapaxes(0, 1)]
            seen = [*views(x[0], 4), *views(x[1], 4)[:2], *(views(x[2 + turn], 4)[turn] for turn in range(4))]
            outputs.append(torch.stack([model(view) for view in seen], 1).numpy())
        parts.append(np.stack(outputs))
        print(f"{start + len(pixels)} of {len(paths)} images", flush=True)
    return np.concatenate(parts, 1).astype(np.float64)


def averaged(logits: np.ndarray, columns: Sequence[int]) -> np.ndarray:
    """Logarithms of the probabilities `[N, C]`: the mean of the networks' probabilities, each of its mean logits."""
    mean = torch.from_numpy(logits[:, :, list(columns)].mean(2))
    log_mean: np.ndarray = torch.softmax(mean, -1).mean(0).log().numpy()
    return log_mean


def difference(positive: np.ndarray, one: np.ndarray, other: np.ndarray, groups: np.ndarray) -> str:
    """The interval of the AUC of `one` minus that of `other`, both `[N]`, paired, over groups `[N]`."""
    _, group = np.unique(groups, return_inverse=True)
    counts = np.concatenate(list(bootstrap_counts(int(group.max()) + 1, 1000)))
    pairs = [metrics.auc(positive, one, w) - metrics.auc(positive, other, w) for w in counts[:, group]]
    return "{:+.4f} to {:+.4f}".format(*interval_of(pairs))


def main() -> None:
    """Predicts and prints the table."""
    options = arguments(__doc__).parse_args()
    average = RunAverage.read(options.runs)
    models, data, labels = average.models, average.data, np.asarray(average.splits.validation.labels)
    sets = {
        images.name: (images.positive, images.groups, logits_of(models, images.paths, data.size, Framing.of(data)))
        for images in (average.validation(), *other_sources(options.table, options.images))
    }
    logits = sets["validation"][2]
    scores = {
        (name, key): average.malignancy(np.exp(averaged(values, columns)))
        for key, (_, _, values) in sets.items()
        for name, columns in COMBINATIONS.items()
    }
    print(f"{'crops':36}n  class-balanced loss, balanced accuracy, AUC of {', '.join(sets)}")
    for name, columns in COMBINATIONS.items():
        log_p = averaged(logits, columns)
        loss = min(metrics.balanced_loss(log_p / t, labels) for t in np.arange(0.6, 1.6, 0.02))
        figures = [loss, metrics.balanced_accuracy(np.exp(log_p), labels)]
        figures += [metrics.auc(positive, scores[name, key]) for key, (positive, _, _) in sets.items()]
        print(f"{name:36}{len(columns):3}", *(f"{value:.4f}" for value in figures))
    for key, (positive, groups, _) in sets.items():
        interval = difference(positive, scores["corners", key], scores["whole, 4 turns", key], groups)
        print(f"AUC of corners minus whole, 4 turns, {key}: {interval}")


if __name__ == "__main__":
    main()
