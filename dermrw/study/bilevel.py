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
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from dermrw.diagnoses import DX
from dermrw.errors import plain_endings
from dermrw.files import path_argument
from dermrw.formatting import markdown_table
from dermrw.study.convex_head import exact_scores, fit, one_step_scores
from dermrw.study.laboratory import stored_embeddings
from dermrw.study.plan import RESULTS
from dermrw.study.repeats import (
    TEST_TO_TRAIN,
    Problem,
    class_balanced,
    clipped,
    complete,
    draw_problem,
    figures_of,
    read_repeats,
    settings_of,
)
from dermrw.study.statistics import Paired, corrected_resampled

NOISE = {
    "clean": ("uniform", 0.0),
    "uniform40": ("uniform", 0.4),
    "conditional40": ("class_conditional", 0.4),
}
REPEATS = 5
PENALTY = 1e-2  # λ: of 1e-4 to 1e-1 the best for class-balanced weights and right labels, on a split that is no repeat
ROUNDS = (1, 3, 10)  # after which the repeated rule is scored
RESULT = RESULTS / "embeddings" / "bilevel.json"
# pairs of heads whose difference in balanced accuracy is printed; a tuple names a key and the number of rounds
Head = str | tuple[str, str]
PAIRS: dict[str, tuple[Head, Head]] = {
    "exact − one step, clipped": ("exact_clipped", "one_step_clipped"),
    "exact − one step, 10 rounds": (("exact_repeated", "10"), ("one_step_repeated", "10")),
    "equal for every class − one step, clipped": ("class_balanced", "one_step_clipped"),
    "equal for every class − exact, clipped": ("class_balanced", "exact_clipped"),
    "equal for every class − one step, 10 rounds": ("class_balanced", ("one_step_repeated", "10")),
    "equal for every class − exact, 10 rounds": ("class_balanced", ("exact_repeated", "10")),
}
Scores = Callable[[Tensor, Tensor], Tensor]  # θ, w -> scores [N]


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
        return figures_of(theta, weights, problem), theta

    found: dict[str, Any] = {"images": n, "wrong": int(wrong.sum()), "heads": {}, "agreement": {}}
    heads = found["heads"]
    heads["uniform"] = figures_of(start, uniform, problem)
    heads["class_balanced"] = figures(class_balanced(train.y, torch.ones_like(right)))[0]
    heads["class_balanced_right_labels_only"] = figures(class_balanced(train.y, right))[0]
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


def compare(repeats: list[dict[str, Any]], one: Head, other: Head) -> Paired:
    """Returns the difference in balanced accuracy between two heads, over the repeats of a condition."""

    def accuracy(row: dict[str, Any], head: Head) -> float:
        found = row["heads"][head] if isinstance(head, str) else row["heads"][head[0]][head[1]]
        return float(found["balanced_accuracy"])

    return corrected_resampled([accuracy(row, one) - accuracy(row, other) for row in repeats], TEST_TO_TRAIN)


def differences(by_condition: dict[str, list[dict[str, Any]]]) -> str:
    """Returns the differences of `PAIRS` in points with their 95 % intervals, not corrected, as a Markdown table."""
    body = []
    for name, (one, other) in PAIRS.items():
        pairs = [compare(rows, one, other) for rows in by_condition.values()]
        cells = [f"{100 * p.difference:+.1f} ({100 * p.low:+.1f} to {100 * p.high:+.1f})" for p in pairs]
        body.append([name, *cells])
    return markdown_table(["balanced accuracy", *by_condition], body)


def main() -> None:
    """Runs the missing repeats, writes the result file after each, and prints the differences."""
    parser = argparse.ArgumentParser("dermrw.study.bilevel", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "run", type=path_argument, nargs="?", help="folder of a run of the embeddings budget; none: only print"
    )
    parser.add_argument("--output", type=path_argument, default=RESULT, help="the result file")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="number of repeats (default: %(default)s)")
    arguments = parser.parse_args()
    with plain_endings("dermrw.study.bilevel"):
        if arguments.run is not None:
            features, table = stored_embeddings(arguments.run)

            def one(name: str, repeat: int) -> dict[str, Any]:
                return solve(draw_problem(features, table, *NOISE[name], repeat), PENALTY)

            complete(
                arguments.output, {**settings_of(features), "penalty": PENALTY}, tuple(NOISE), arguments.repeats, one
            )
        print(differences(read_repeats(arguments.output)))


if __name__ == "__main__":
    main()
