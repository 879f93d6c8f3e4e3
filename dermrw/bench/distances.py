"""Distance of approximate weights from the exact ones, on a trained network and its own data."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from dermrw.bench.methods import METHODS, Case, run
from dermrw.config import load_config
from dermrw.datasets.pixels import ImageDataset, epoch_batches, in_order, loader
from dermrw.evaluation.predict import load_best
from dermrw.network_input import normalisation_of, to_input
from dermrw.objectives import Batch, Reweight
from dermrw.reweight.meta_step import normalize
from dermrw.training.optim import build_optimizer
from dermrw.training.run_data import run_splits
from dermrw.training.run_folder import open_run

CPU = torch.device("cpu")


def distance(weights: Tensor, true: Tensor) -> tuple[float, float]:
    """Returns the L1 distance (0 to 2) and Spearman's rank correlation."""
    return float((weights.double() - true.double()).abs().sum()), float(spearmanr(weights, true).statistic)


def measure(folder: Path, batch: int = 32, batches: int = 3, refresh: tuple[int, ...] = (2, 4)) -> dict[str, dict]:
    """Returns the mean distance of each method's weights from the exact ones in float64, over several batches.

    The network is the best epoch of the run. The images are its training images, with augmentation. For weights that
    are refreshed every n steps, the network continues to train on these batches with a tenth of the run's learning
    rate, and the reference is the exact weights in fp32.

    Args:
        folder: the run folder.
        batch: images per batch.
        batches: number of batches.
        refresh: the values of n.
    """
    config = open_run(folder)
    splits = run_splits(folder, config)
    model, _ = load_best(folder, config, splits.classes)
    some = splits.train.part(lambda rows: np.random.default_rng(0).permutation(rows)[: batch * batches])
    pixels, meta = ImageDataset(some, config.data, seed=1), ImageDataset(splits.meta, config.data)
    images, labels, _ = next(in_order(meta, len(meta)))
    meta_x, meta_y = to_input(images, CPU, normalisation_of(model)), labels
    model.train()
    optimizer = build_optimizer(config.train.model_copy(update={"lr": config.train.lr / 10}), model)
    distances: dict[str, list[tuple[float, float]]] = {}
    configs = {n: load_config(None, [f"objective.refresh_every={n}"]) for n in refresh}
    objectives = {n: Reweight(configs[n], some.labels, len(splits.classes.codes), 1000) for n in refresh}
    for epoch in range(1 + 2 * max(refresh) // batches + 1):
        for images, labels, rows in loader(pixels, epoch_batches(some.labels, "shuffled", batch, 0, epoch), epoch):
            case = Case(model, to_input(images, CPU, normalisation_of(model)), labels, meta_x, meta_y)
            true = _weights(METHODS["exact"], case, torch.float32 if epoch else torch.float64)
            if epoch == 0:
                for name in ("exact", "finite difference", "last stage"):
                    distances.setdefault(name, []).append(distance(_weights(METHODS[name], case), true))
                in_bf16 = _weights(METHODS["exact"], case, autocast=True)
                distances.setdefault("exact, bf16", []).append(distance(in_bf16, true))
            for n, objective in objectives.items():
                stale = objective.last[rows]
                if epoch and objective.step % n:
                    distances.setdefault(f"refresh every {n} steps", []).append(distance(normalize(stale), true))
                objective(copy.deepcopy(model), Batch(case.x, case.y, rows, meta_x, meta_y, len(rows)))
            optimizer.zero_grad()
            run(METHODS["exact"], case, torch.autocast("cpu", enabled=False))
            optimizer.step()
    means = {name: np.mean(values, axis=0).tolist() for name, values in distances.items()}
    return {name: {"l1": l1, "rank_correlation": rank} for name, (l1, rank) in means.items()}


def _weights(step: Callable, case: Case, dtype: torch.dtype = torch.float32, autocast: bool = False) -> Tensor:
    """Returns the weights that a method computes on a copy of the network."""
    model: nn.Module = copy.deepcopy(case.model).to(dtype)
    torch.manual_seed(0)
    copied = Case(model, case.x.to(dtype), case.y, case.meta_x.to(dtype), case.meta_y)
    weights = run(step, copied, torch.autocast("cpu", torch.bfloat16, enabled=autocast))
    assert weights is not None
    return weights.detach().double()
