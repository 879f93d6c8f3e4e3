"""How far is one gradient step from the bilevel problem? `python -m dermrw.study.bilevel RUN` compares on features.

RUN is a run of the study's embeddings budget, whose features of all HAM10000 images are used. For each label noise and
each repeat (another split by lesion, draw of wrong labels and meta set of three images per class):

1. Agreement: the scores of one step and the exact ones (`convex_head`) at the optimum of uniform weights.
2. Accuracy: a head is trained with the weights that each gives. *Clipped*: wᵢ = max(sᵢ, 0) / Σ max(sⱼ, 0), the rule of
   Ren et al. (2018), once. *Repeated*: w ← w exp(s / σ), normalised, where s / σ are the scores in units of their
   standard deviation, limited to ±1. The head is trained to its optimum after each round, so with exact scores these
   rounds descend the bilevel objective.

The features are standardised and projected on their first principal components; nothing of the test split is used.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from sklearn.metrics import recall_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from dermrw.datasets.label_noise import with_wrong_labels
from dermrw.datasets.split import split_lesions
from dermrw.diagnoses import DX
from dermrw.errors import plain_endings
from dermrw.files import write_atomic
from dermrw.study.convex_head import Examples, exact_scores, fit, losses, one_step_scores
from dermrw.study.laboratory import stored_embeddings
from dermrw.study.plan import RESULTS
from dermrw.study.result import rounded
from dermrw.training.example_weights import auroc_within_class

NOISE = {
    "clean": ("uniform", 0.0),
    "uniform40": ("uniform", 0.4),
    "conditional40": ("class_conditional", 0.4),
}
REPEATS = 5
PER_CLASS = 3  # meta images
COMPONENTS = 128
PENALTY = 1e-2  # λ: of 1e-4 to 1e-1 the best for class-balanced weights and right labels, on a split that is no repeat
ROUNDS = (1, 3, 10)  # after which the repeated rule is scored
Scores = Callable[[Tensor, Tensor], Tensor]  # θ, w -> scores [N]


class Problem(NamedTuple):
    """One repeat: the training, meta and test examples, and which training labels are wrong `[N]`."""

    train: Examples
    meta: Examples
    test: Examples
    wrong: np.ndarray


def draw_problem(features: np.ndarray, table: pd.DataFrame, kind: str, rate: float, repeat: int) -> Problem:
    """Returns a repeat's problem from the features `[N, D]` of the rows of `table` (image_id, lesion_id, dx)."""
    one_per_lesion = table.sort_values("image_id").drop_duplicates("lesion_id")
    rng = np.random.default_rng([repeat, 7])
    meta = pd.concat(
        [
            rows.iloc[np.sort(rng.permutation(len(rows))[:PER_CLASS])]
            for rows in (one_per_lesion[one_per_lesion["dx"] == dx] for dx in DX)
        ]
    )
    split = split_lesions(table, meta, 0.15, 0.15, repeat)
    row_of = {image: row for row, image in enumerate(table["image_id"])}
    part = {name: rows.reset_index(drop=True) for name, rows in split.groupby("split")}
    rows = {name: features[[row_of[image] for image in found["image_id"]]] for name, found in part.items()}
    true = {name: found["dx"].map(DX.index).to_numpy(np.int64) for name, found in part.items()}
    given = with_wrong_labels(part["train"], DX, kind, rate, repeat)
    project = make_pipeline(
        StandardScaler(), PCA(min(COMPONENTS, *rows["train"].shape), random_state=0), StandardScaler(with_std=False)
    ).fit(rows["train"])
    scale = project.transform(rows["train"]).std()

    def examples(name: str, labels: np.ndarray) -> Examples:
        x = project.transform(rows[name]) / scale
        return Examples(torch.from_numpy(np.column_stack([x, np.ones(len(x))])), torch.from_numpy(labels.copy()))

    return Problem(
        examples("train", given), examples("meta", true["meta"]), examples("test", true["test"]), given != true["train"]
    )


def solve(problem: Problem, penalty: float, rounds: tuple[int, ...] = ROUNDS) -> dict[str, Any]:
    """Returns the agreement of the scores and the figures of the heads that each way of weighting trains."""
    train, meta, wrong = problem.train, problem.meta, problem.wrong
    n, right = len(train.y), torch.from_numpy(~problem.wrong)
    zero = torch.zeros(train.x.shape[1], len(DX), dtype=torch.float64)
    uniform = torch.full((n,), 1 / n, dtype=torch.float64)
    start = fit(train, uniform, penalty, zero)

    def one_step(theta: Tensor, weights: Tensor) -> Tensor:
        return one_step_scores(theta, train, meta)

    def exact(theta: Tensor, weights: Tensor) -> Tensor:
        return exact_scores(theta, train, weights, penalty, meta)

    def figures(weights: Tensor) -> tuple[dict[str, Any], Tensor]:
        theta = fit(train, weights, penalty, start)
        return _figures(theta, weights, problem), theta

    found: dict[str, Any] = {"images": n, "wrong": int(wrong.sum()), "heads": {}, "agreement": {}}
    heads = found["heads"]
    heads["uniform"] = _figures(start, uniform, problem)
    heads["class_balanced"] = figures(_balanced(train.y, torch.ones_like(right)))[0]
    heads["class_balanced_right_labels_only"] = figures(_balanced(train.y, right))[0]
    scores = {"one_step": one_step(start, uniform), "exact": exact(start, uniform)}
    found["agreement"] = {
        "at_optimum": agreement(scores["one_step"], scores["exact"], train.y),
        "one_step_at_zero": agreement(one_step(zero, uniform), scores["exact"], train.y),
    }
    rules: dict[str, Scores] = {"one_step": one_step, "exact": exact}
    for name, rule in rules.items():
        heads[f"{name}_clipped"] = figures(clipped(scores[name]))[0]
        heads[f"{name}_repeated"] = repeated(rule, uniform, start, figures, rounds)
    return found


def repeated(
    rule: Scores,
    weights: Tensor,
    theta: Tensor,
    figures: Callable[[Tensor], tuple[dict[str, Any], Tensor]],
    rounds: tuple[int, ...],
) -> dict[str, Any]:
    """Returns the figures after some of the rounds of w ← w exp(s / σ), by the number of the round."""
    found = {}
    for done in range(1, max(rounds) + 1):
        scores = rule(theta, weights)
        weights = weights * torch.exp((scores / scores.std()).clamp(-1, 1))
        weights = weights / weights.sum()
        now, theta = figures(weights)
        if done in rounds:
            found[str(done)] = now
    return found


def clipped(scores: Tensor) -> Tensor:
    """Returns max(sᵢ, 0) / Σ max(sⱼ, 0) `[N]`, the weights of Ren et al. (2018)."""
    positive = scores.clamp(min=0)
    return positive / positive.sum()


def agreement(one: Tensor, other: Tensor, labels: Tensor) -> dict[str, float]:
    """Compares two vectors of scores `[N]`.

    Returns Spearman's correlation over all images, its mean over the classes of the labels, the share of scores with
    the same sign, and the total variation distance of the clipped weights (0: equal, 1: no image in common).
    """
    a, b, y = one.numpy(), other.numpy(), labels.numpy()
    within = [spearmanr(a[y == c], b[y == c]).statistic for c in np.unique(y) if (y == c).sum() > 1]
    return {
        "spearman": float(spearmanr(a, b).statistic),
        "spearman_within_class": float(np.mean(within)),
        "same_sign": float(np.mean((a > 0) == (b > 0))),
        "weight_distance": float((clipped(one) - clipped(other)).abs().sum() / 2),
    }


def _balanced(labels: Tensor, kept: Tensor) -> Tensor:
    """Returns weights `[N]` that sum to 1, are equal over the classes, and are zero where `kept` is."""
    counts = torch.bincount(labels, weights=kept.double())
    weights = kept.double() / counts.clamp(min=1)[labels]
    return weights / weights.sum()


def _figures(theta: Tensor, weights: Tensor, problem: Problem) -> dict[str, Any]:
    decided = (problem.test.x @ theta).argmax(1).numpy()
    found = {
        "balanced_accuracy": float(recall_score(problem.test.y.numpy(), decided, average="macro")),
        "meta_loss": float(losses(theta, problem.meta).mean()),
        "meta_accuracy": float(((problem.meta.x @ theta).argmax(1) == problem.meta.y).double().mean()),
        "effective_images": float(1 / weights.square().sum()),
    }
    if problem.wrong.any():
        w, y = weights.numpy(), problem.train.y.numpy()
        found["wrong_weight"] = float(w[problem.wrong].sum())
        found["auroc"] = float(roc_auc_score(problem.wrong, -w))
        found["auroc_within_class"] = auroc_within_class(problem.wrong, -w, y)
    return found


def _lines(done: dict[str, Any]) -> bytes:
    """Returns JSON with one line for each repeat."""
    rows = ",\n".join(
        f"  {json.dumps(key)}: {json.dumps(row, allow_nan=False)}" for key, row in done["repeats"].items()
    )
    return f'{{\n "settings": {json.dumps(done["settings"])},\n "repeats": {{\n{rows}\n }}\n}}\n'.encode()


def main() -> None:
    """Runs the comparison and writes docs/study/embeddings/bilevel.json after each repeat; finished ones are kept."""
    parser = argparse.ArgumentParser("dermrw.study.bilevel", description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a run of the study's embeddings budget")
    parser.add_argument("--output", type=Path, default=RESULTS / "embeddings" / "bilevel.json")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    arguments = parser.parse_args()
    with plain_endings("dermrw.study.bilevel"):
        features, table = stored_embeddings(arguments.run)
        done = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {}
        settings = {
            "components": COMPONENTS,
            "penalty": PENALTY,
            "meta_per_class": PER_CLASS,
            "features": len(table),
        }
        if done.get("settings") != settings:
            done = {"settings": settings, "repeats": {}}
        for repeat in range(arguments.repeats):
            for name, (kind, rate) in NOISE.items():
                key = f"{name}-{repeat}"
                if key in done["repeats"]:
                    continue
                done["repeats"][key] = rounded(solve(draw_problem(features, table, kind, rate, repeat), PENALTY))
                write_atomic(arguments.output, _lines(done))
                print(key, json.dumps(done["repeats"][key]["agreement"]["at_optimum"]), flush=True)


if __name__ == "__main__":
    main()
