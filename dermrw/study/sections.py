"""The study's tables: the results of each row, the comparisons of rows, and checks that they may be compared."""

from typing import Any, NamedTuple

import numpy as np

from dermrw.errors import UserError
from dermrw.study.plan import Plan, Run, Table
from dermrw.study.result import current_result, decisions, read_truth, results_folder, same_origin
from dermrw.study.statistics import Paired, holm, paired_interval

ENOUGH = 3  # seeds that a comparison needs for an interval and a verdict
SIGNIFICANT = 0.05  # after Holm's correction


class Row(NamedTuple):
    """The results of a row, one for each seed."""

    name: str
    method: str
    condition: str
    results: list[dict[str, Any]]
    against: Paired | None  # the difference from the table's reference on the own test split, as trained
    against_fitted: Paired | None = None  # the same with temperature and class offsets fitted on validation
    class_alone: tuple[float, float] | None = None  # `class_alone` of wrong labels: AUROC and share in the first 100

    def values(self, key: str) -> np.ndarray:
        """Returns a figure of each seed's result file, by its path such as `recalls.mel`; NaN where a file lacks it."""
        figures = []
        for result in self.results:
            value: Any = result
            for part in key.split("."):
                value = None if value is None else value.get(part)
            figures.append(np.nan if value is None else float(value))
        return np.array(figures)

    @property
    def seeds(self) -> list[int]:
        """The seeds that are finished."""
        return [result["seed"] for result in self.results]


class Section(NamedTuple):
    """A table, its rows and its picture's file name."""

    key: str
    table: Table
    rows: list[Row]
    picture: str | None
    samples: str  # a sentence: how many images every row saw


def load_results(plan: Plan, budget: str) -> dict[str, list[dict[str, Any]]]:
    """Returns a budget's results by row, in the order of their seeds, without those of settings that have changed."""
    by_row: dict[str, list[dict[str, Any]]] = {}
    for run in plan.runs(budget):
        if (result := current_result(run)) is not None:
            by_row.setdefault(run.row, []).append(result)
    return by_row


def _decisions(results: list[dict[str, Any]], part: str, which: str) -> np.ndarray:
    """Returns decisions `[S, N]`, -1 for a tie."""
    return np.array([decisions(result["sets"][part][which]) for result in results])


def compare(
    a: list[dict[str, Any]], b: list[dict[str, Any]], budget: str, part: str = "test", which: str = "as_trained"
) -> Paired | None:
    """Returns A minus B over the seeds that both have, or None if they were not scored on the same images."""
    seeds = sorted({r["seed"] for r in a} & {r["seed"] for r in b})
    a, b = ([r for r in results if r["seed"] in seeds] for results in (a, b))
    if not seeds or len({r["sets"][part]["truth"] for r in a + b}) != 1:
        return None
    truth = read_truth(results_folder(budget) / a[0]["sets"][part]["truth"], tuple(a[0]["recalls"]))
    return paired_interval(_decisions(a, part, which), _decisions(b, part, which), truth.labels, truth.lesions)


def build_sections(plan: Plan, budget: str, results: dict[str, list[dict[str, Any]]]) -> list[Section]:
    """Returns every table that has a finished run."""
    sections = []
    for key, table in plan.tables_of(budget).items():
        rows = []
        for run in plan.runs_of(budget, table, 0):
            own = results.get(run.row, [])
            if own:
                reference = _reference(table, run.method, run.condition, plan, budget, results)
                if not reference or reference is own:
                    against = fitted = None
                else:
                    against, fitted = (compare(own, reference, budget, which=w) for w in ("as_trained", "fitted"))
                trivial = _class_alone_of(run, own, results)
                rows.append(Row(run.row, run.method, run.condition, own, against, fitted, trivial))
        if rows:
            sections.append(Section(key, table, corrected(rows), None, same_samples(rows)))
    return sections


def corrected(rows: list[Row]) -> list[Row]:
    """Returns a table's rows with Holm's correction, for all comparisons as trained and for all with fitted offsets."""
    rows = list(rows)
    for name in ("against", "against_fitted"):
        compared = [
            (k, paired)
            for k, row in enumerate(rows)
            if (paired := getattr(row, name)) is not None and paired.seeds >= ENOUGH
        ]
        for (k, paired), p in zip(compared, holm([paired.p for _, paired in compared]), strict=True):
            rows[k] = rows[k]._replace(**{name: paired._replace(holm=float(p))})
    return rows


def class_alone(right: np.ndarray, wrong: np.ndarray, first: int = 100) -> tuple[float, float]:
    """Returns how well the label's class alone finds wrong labels, with the classes in the best order.

    Args:
        right: number of right labels of each class `[C]`.
        wrong: number of wrong labels of each class `[C]`.
        first: images to look at.

    Returns:
        The AUROC of the share of wrong labels in the label's class as a score (ties count half), and the share of wrong
        labels that `first` images in this order have.
    """
    order = np.argsort(-wrong / np.maximum(right + wrong, 1e-9), kind="stable")
    right, wrong = right[order], wrong[order]
    later = right.sum() - np.cumsum(right)  # right labels that the order puts after each class
    auroc = float((wrong * (later + right / 2)).sum() / (wrong.sum() * right.sum()))
    images = right + wrong
    taken = np.clip(first - (np.cumsum(images) - images), 0, images)
    return auroc, float((taken * wrong / np.maximum(images, 1e-9)).sum() / taken.sum())


def _class_alone_of(
    run: Run, own: list[dict[str, Any]], results: dict[str, list[dict[str, Any]]]
) -> tuple[float, float] | None:
    """`class_alone` from the images drawn of each label, with wrong labels and, by the same method, without.

    The noise is drawn by lesion and this counts images, so the figures are estimates (to 0.01 for the committed runs).
    """
    rate, clean = run.settings.get("data.noise_rate", 0.0), results.get(run.method)
    if not rate or not clean or own[0]["wrong_labels"] is None:
        return None
    given, true = (
        np.mean([list(epoch.values()) for result in rows for epoch in result["samples"]], axis=0)
        for rows in (own, clean)
    )
    right = (1 - rate) * true
    return class_alone(right, np.maximum(given - right, 0))


def _reference(
    table: Table, method: str, condition: str, plan: Plan, budget: str, results: dict[str, list[dict[str, Any]]]
) -> list[dict[str, Any]] | None:
    """Returns the results to compare with: the reference method of the table, under the same condition if it has it.

    A table of one method compares its conditions, so there the reference is the row of that name.
    """
    if len(table.rows) == 1:
        return results.get(table.against)
    names = {(run.method, run.condition): run.row for run in plan.runs_of(budget, table, 0)}
    row = names.get((table.against, condition), table.against)
    return results.get(row)


def same_samples(rows: list[Row]) -> str:
    """Checks that a table's rows drew equally many images, lost the same lesions and started from the same weights.

    Rows with the same sampler, seed and labels must also have drawn equally many images of each class.

    Returns:
        A sentence for the report.

    Raises:
        UserError: they differ, so they can't be compared.
    """
    by_class: dict[tuple[str, int, str], list[dict[str, int]]] = {}
    for row in rows:
        for result in row.results:
            key = (row.condition, result["seed"], result["sampler"])
            if by_class.setdefault(key, result["samples"]) != result["samples"]:
                name = f"{row.name}-{result['seed']}"
                raise UserError(f"{name} drew other images than the other rows of its table: delete it and repeat it")
    by_condition: dict[str, set[tuple[int, str]]] = {}
    for row in rows:
        for result in row.results:
            drawn = {sum(epoch.values()) for epoch in result["samples"]}
            data = row.condition if row.name.startswith("cifar") else ""
            by_condition.setdefault(data, set()).update((n, result["training_lesions"]) for n in drawn)
    for condition, seen in by_condition.items():
        if len(seen) != 1:
            raise UserError(
                f"the rows of a table ({condition or 'all conditions'}) differ in the number of images drawn or in the "
                f"training lesions, {seen}: repeat the runs that differ"
            )
    origins = {result["weights"] for row in rows for result in row.results}
    if len({same_origin(origin) for origin in origins}) > 1:
        raise UserError(
            f"the rows of a table started from different weights ({', '.join(sorted(origins))}): repeat them with the "
            "same --weights"
        )
    counts = sorted({n for seen in by_condition.values() for n, _ in seen})
    if len(counts) > 1:
        return (
            "Runs under the same condition draw the same number of images per epoch "
            f"({', '.join(f'{n:,}' for n in counts)})."
        )
    return f"Every run draws {counts[0]:,} images per epoch from the same training lesions."


def verdict(section: Section) -> str:
    """Returns which rows differ from the reference after Holm's correction, as trained and with fitted offsets.

    Only rows that share `ENOUGH` seeds with the reference are listed: the interval of fewer seeds holds too little of
    the variation over seeds.
    """
    sentences = []
    for measure, name in (("As trained", "against"), ("With fitted offsets", "against_fitted")):
        groups: dict[str, list[str]] = {"better": [], "worse": [], "no significant difference": []}
        for row in section.rows:
            paired = getattr(row, name)
            if paired is None or paired.seeds < ENOUGH:
                continue
            significant = paired.holm < SIGNIFICANT
            sign = "better" if paired.difference > 0 else "worse"
            group = groups[sign if significant else "no significant difference"]
            group.append(f"{row.name} ({100 * paired.difference:+.1f})")
        lists = "; ".join(f"{group}: {', '.join(names)}" for group, names in groups.items() if names)
        sentences += [f"{measure}, {lists}."] if lists else []
    return " ".join(sentences)
