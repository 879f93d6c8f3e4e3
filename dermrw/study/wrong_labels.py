"""Which methods withstand wrong labels? `python -m dermrw.study.wrong_labels RUN` compares them on fixed features.

RUN is a run of the study's embeddings budget, whose features of all HAM10000 images are used. Each repeat has another
split by lesion, draw of wrong labels and meta set of three images per class. A softmax regression is trained by each
method and scored on the test split, whose labels are right. Nothing is chosen by validation.

With cross-entropy:

- `cross_entropy`: equal weights. `logit_adjustment`: that head, with log π subtracted from its logits in the test,
  where π is the share of each class in the given labels.
- `class_balanced`: equal total weight of every class, as weighted sampling has in expectation.
- `one_step`: the weights of Ren et al. (2018), max(0, u), with the scores u of one step at the optimum of equal
  weights. `random`: max(0, z), z normal. Both are to be compared with `cross_entropy`.

With balanced softmax, the cross-entropy of the logits z + log π, where π is the share of each class in the total weight
(`dermrw.objectives.losses.weighted_shares`):

- `balanced_softmax`: equal weights. `stronger_penalty`: with three times the penalty.
- `balanced_softmax_meta`: the meta images train, too.
- `confident_learning` and `label_posterior`: the objectives of these names.
- `forward_correction`: v = p / (p + κ (1 − p)) with the odds κ of uniform noise at the true rate, as
  objective=noise_weights with `objective.odds`. p is the probability of the given label by the head itself. Head and
  weights are computed in turn.
- `gce`: the generalised cross-entropy (1 − p^q) / q of Zhang and Sabuncu (2018), q = 0.7, with π of the given labels.
  Its gradient is that of cross-entropy times p^q: head and weights are computed in turn.
- `right_labels_only`: the wrong labels are left out.

`forward_correction` uses the true rate of wrong labels, and `right_labels_only` the wrong labels: nobody knows them.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from dermrw.diagnoses import DX
from dermrw.errors import plain_endings
from dermrw.files import path_argument
from dermrw.formatting import markdown_table
from dermrw.objectives.confident_learning import require_cleanlab, suspect_labels
from dermrw.objectives.held_out import Labels
from dermrw.objectives.label_posterior import label_posterior
from dermrw.objectives.losses import weighted_shares
from dermrw.study.convex_head import Examples, fit, losses, one_step_scores
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
from dermrw.study.statistics import Paired, corrected_resampled, holm

NOISE = {
    "clean": ("uniform", 0.0),
    "uniform20": ("uniform", 0.2),
    "uniform40": ("uniform", 0.4),
    "conditional20": ("class_conditional", 0.2),
    "conditional40": ("class_conditional", 0.4),
}
REPEATS = 10
# λ: of 3e-4 to 3e-2 the best for `right_labels_only`, on clean labels and with uniform noise of 40 %, on three splits
# that are no repeats (100 to 102)
PENALTY = 3e-3
BIAS = 10.0  # the feature of the bias, so that its penalty is λ / 100: balanced softmax has an offset without penalty
STRONGER = 3  # times λ
ROUNDS = 20
GCE_POWER = 0.7
REFERENCE = "balanced_softmax"
RESULT = RESULTS / "embeddings" / "wrong_labels.json"
# the same with other sizes of the meta set; vasc has 98 lesions in all, df 73
META_NOISE = ("clean", "uniform40")
SIZES = (1, 3, 5, 10, 20)  # images of each class
META_CONDITIONS = tuple(f"{noise}-{size}" for noise in META_NOISE for size in SIZES)
META_RESULT = RESULTS / "embeddings" / "meta_set_size.json"


class Heads:
    """The heads that are trained on a repeat's images, with their figures by the name of the method."""

    def __init__(self, problem: Problem, penalty: float) -> None:
        self.labels = labels_of(problem)
        parts = (problem.train, problem.meta, problem.test)
        self.train, self.meta, test = (part._replace(x=_with_bias(part.x)) for part in parts)
        self.problem = problem._replace(train=self.train, meta=self.meta, test=test)
        self.counts = torch.bincount(self.train.y, minlength=len(DX)).numpy().astype(float)
        self.penalty, n = penalty, len(self.train.y)
        self.equal = torch.full((n,), 1 / n, dtype=torch.float64)
        zero = torch.zeros(self.train.x.shape[1], len(DX), dtype=torch.float64)
        self.start = fit(self.train, self.equal, penalty, zero)  # the optimum of cross-entropy
        self.figures: dict[str, dict[str, Any]] = {}

    def add(self, name: str, theta: Tensor, weights: Tensor, **more: float) -> None:
        """Adds a head θ `[D, C]` that was trained with these weights `[N]`."""
        self.figures[name] = figures_of(theta, weights / weights.sum(), self.problem) | more

    def add_cross_entropy(self, name: str, weights: Tensor) -> None:
        """Trains with weighted cross-entropy; `weights` `[N]` sum to 1."""
        self.add(name, fit(self.train, weights, self.penalty, self.start), weights)

    def add_balanced_softmax(self, name: str, weights: Tensor, stronger: float = 1) -> None:
        """Trains with weighted balanced softmax and `stronger` times λ; `weights` `[N]` are divided by their sum."""
        weights = weights / weights.sum()
        theta = fit(self.train, weights, stronger * self.penalty, self.start, self.log_shares(weights))
        self.add(name, theta, weights)

    def add_in_turn(self, name: str, rule: Callable[[Tensor], Tensor], follow: bool) -> None:
        """Trains with balanced softmax and weights that are a function of the probability of each given label.

        Args:
            name: of the method.
            rule: p `[N]` -> weights `[N]`.
            follow: π follows the weights, which are divided by their sum. Otherwise π is that of the labels, and the
                weights are divided by N, so that the fixed point is an optimum of the penalised loss.
        """
        weights = trained = self.equal
        theta, change = self.start, 1.0
        for _ in range(ROUNDS):
            log_shares = self.log_shares(weights if follow else self.equal)
            theta = fit(self.train, weights, self.penalty, theta, log_shares)
            trained, found = weights, rule(torch.exp(-losses(theta, self.train, log_shares)))
            weights = found / (found.sum() if follow else len(found))
            change = float((weights - trained).abs().sum() / trained.sum())
        self.add(name, theta, trained, last_change=change)

    def log_shares(self, weights: Tensor) -> Tensor:
        """Returns log π `[C]` for weights `[N]`."""
        return weighted_shares(self.train.y, weights.float(), self.counts, ()).double().log()

    def use_meta_images(self) -> float:
        """Trains by the methods that use the meta images; returns the estimated rate of wrong labels."""
        self.add_cross_entropy("one_step", clipped(one_step_scores(self.start, self.train, self.meta)))
        both = Examples(torch.cat([self.train.x, self.meta.x]), torch.cat([self.train.y, self.meta.y]))
        weights = torch.full((len(both.y),), 1 / len(both.y), dtype=torch.float64)
        shares = torch.bincount(both.y, minlength=len(DX)).double() / len(both.y)
        self.add("balanced_softmax_meta", fit(both, weights, self.penalty, self.start, shares.log()), self.equal)
        values, noise = label_posterior(self.labels)
        self.add_balanced_softmax("label_posterior", torch.from_numpy(values))
        return noise.rate

    def result(self, estimated_rate: float) -> dict[str, Any]:
        """Returns the result of the repeat."""
        images, wrong = len(self.problem.wrong), int(self.problem.wrong.sum())
        return {"images": images, "wrong": wrong, "estimated_rate": estimated_rate, "heads": self.figures}


def solve(problem: Problem, rate: float, repeat: int, penalty: float = PENALTY) -> dict[str, Any]:
    """Returns the figures of the heads that all methods train, by method, and the estimated rate of wrong labels.

    Args:
        problem: the repeat's images.
        rate: the share of wrong labels, which `forward_correction` uses.
        repeat: the seed of the random weights.
        penalty: λ.
    """
    heads = Heads(problem, penalty)
    equal, n, classes = heads.equal, len(problem.train.y), len(DX)
    heads.add("cross_entropy", heads.start, equal)
    adjusted = heads.start.clone()
    adjusted[-1] -= heads.log_shares(equal) / BIAS
    heads.add("logit_adjustment", adjusted, equal)
    heads.add_cross_entropy("class_balanced", class_balanced(problem.train.y, torch.ones(n)))
    heads.add_cross_entropy("random", clipped(torch.from_numpy(np.random.default_rng([repeat, 8]).normal(size=n))))
    heads.add_balanced_softmax(REFERENCE, equal)
    heads.add_balanced_softmax("stronger_penalty", equal, STRONGER)
    estimated = heads.use_meta_images()
    heads.add_balanced_softmax("confident_learning", torch.from_numpy(1 - suspect_labels(heads.labels)))
    odds = rate / ((classes - 1) * (1 - rate))
    heads.add_in_turn("forward_correction", lambda p: p / (p + odds * (1 - p)), follow=True)
    heads.add_in_turn("gce", lambda p: p**GCE_POWER, follow=False)
    heads.add_balanced_softmax("right_labels_only", torch.from_numpy(~problem.wrong).double())
    return heads.result(estimated)


def solve_meta(problem: Problem, penalty: float = PENALTY) -> dict[str, Any]:
    """Returns the part of `solve` that uses the meta images, beside balanced softmax."""
    heads = Heads(problem, penalty)
    heads.add_balanced_softmax(REFERENCE, heads.equal)
    return heads.result(heads.use_meta_images())


def _with_bias(x: Tensor) -> Tensor:
    """Returns features `[N, D]` with `BIAS` in place of the column of ones."""
    return torch.cat([x[:, :-1], BIAS * x[:, -1:]], 1)


def labels_of(problem: Problem) -> Labels:
    """Returns the training images as the objectives with held-out predictions take them."""
    groups = np.unique(problem.lesions, return_inverse=True)[1]
    x, y, right_x, right_y = (part.numpy() for part in (*problem.train, *problem.meta))
    return Labels(x, y, groups, right_x, right_y, len(DX))


def compare(repeats: list[dict[str, Any]]) -> dict[str, Paired]:
    """Returns each method's difference in balanced accuracy from balanced softmax, over the repeats of a condition."""
    scores = {
        name: np.array([row["heads"][name]["balanced_accuracy"] for row in repeats]) for name in repeats[0]["heads"]
    }
    found = {
        name: corrected_resampled(values - scores[REFERENCE], TEST_TO_TRAIN)
        for name, values in scores.items()
        if name != REFERENCE
    }
    corrected = holm([pair.p for pair in found.values()])
    return {name: pair._replace(holm=float(p)) for (name, pair), p in zip(found.items(), corrected, strict=True)}


def table(by_condition: dict[str, list[dict[str, Any]]]) -> str:
    """Returns the methods as a Markdown table.

    A cell has the mean balanced accuracy in per cent and, in brackets, the 95 % interval of the difference from
    balanced softmax; a star, if it is significant at 0.05 after Holm's correction for the methods of the column.
    """
    first = next(iter(by_condition.values()))
    compared = {name: compare(rows) for name, rows in by_condition.items()}
    body = []
    for method in first[0]["heads"]:
        cells = []
        for name, rows in by_condition.items():
            mean = np.mean([row["heads"][method]["balanced_accuracy"] for row in rows])
            pair = compared[name].get(method)
            star = "*" if pair and pair.holm < 0.05 else ""
            change = "" if pair is None else f" ({100 * pair.low:+.1f} to {100 * pair.high:+.1f}){star}"
            cells.append(f"{100 * mean:.1f}{change}")
        body.append([method, *cells])
    return markdown_table(["method", *by_condition], body)


def gains(by_condition: dict[str, list[dict[str, Any]]], first: int, last: int) -> str:
    """Returns how much each method gains from `first` to `last` meta images of each class, a line for each noise.

    Args:
        by_condition: the repeats by noise and size, such as `clean-3`.
        first, last: sizes.
    """
    lines = []
    for noise in dict.fromkeys(name.rpartition("-")[0] for name in by_condition):
        small, large = by_condition[f"{noise}-{first}"], by_condition[f"{noise}-{last}"]
        cells = []
        for method in small[0]["heads"]:
            scores = [np.array([row["heads"][method]["balanced_accuracy"] for row in rows]) for rows in (small, large)]
            gain = corrected_resampled(scores[1] - scores[0], TEST_TO_TRAIN)
            cells.append(f"{method} {100 * gain.difference:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})")
        lines.append(f"{noise}, from {first} to {last} of each class: {'; '.join(cells)}")
    return "\n".join(lines)


def main() -> None:
    """Runs the missing repeats, writes the result file after each, and prints the table."""
    parser = argparse.ArgumentParser("dermrw.study.wrong_labels", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "run", type=path_argument, nargs="?", help="folder of a run of the embeddings budget; none: only print"
    )
    parser.add_argument("--meta", action="store_true", help="compare sizes of the meta set instead of methods")
    parser.add_argument("--output", type=path_argument, help="the result file")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="number of repeats (default: %(default)s)")
    arguments = parser.parse_args()
    arguments.output = arguments.output or (META_RESULT if arguments.meta else RESULT)
    with plain_endings("dermrw.study.wrong_labels"):
        if arguments.run is not None:
            if not arguments.meta:
                require_cleanlab()
            features, images = stored_embeddings(arguments.run)
            settings = {
                **settings_of(features), "penalty": PENALTY, "bias": BIAS, "rounds": ROUNDS, "stronger": STRONGER,
                "gce_power": GCE_POWER, "noise": {name: list(noise) for name, noise in NOISE.items()},
            }  # fmt: skip

            def one(name: str, repeat: int) -> dict[str, Any]:
                kind, rate = NOISE[name]
                with threadpool_limits(1):
                    return solve(draw_problem(features, images, kind, rate, repeat), rate, repeat)

            def one_of_size(name: str, repeat: int) -> dict[str, Any]:
                noise, _, size = name.partition("-")
                with threadpool_limits(1):
                    return solve_meta(draw_problem(features, images, *NOISE[noise], repeat, int(size), max(SIZES)))

            if arguments.meta:
                settings |= {"meta_per_class": list(SIZES)}
                complete(arguments.output, settings, META_CONDITIONS, arguments.repeats, one_of_size)
            else:
                complete(arguments.output, settings, tuple(NOISE), arguments.repeats, one)
        repeats = read_repeats(arguments.output)
        print(table(repeats))
        if arguments.meta:
            print(gains(repeats, 3, max(SIZES)))


if __name__ == "__main__":
    main()
