"""The study's tables: which results stand in a row, how rows compare, and whether they may be compared at all."""

from typing import Any, NamedTuple

import numpy as np

from dermrw.errors import UserError
from dermrw.study.plan import Plan, Table
from dermrw.study.result import current_result, decisions, read_truth, results_folder, same_origin
from dermrw.study.statistics import Paired, paired_interval

ENOUGH = 3  # seeds, before a comparison has an interval and is called one


class Row(NamedTuple):
    """What the runs of a row gave, a number a seed."""

    name: str
    method: str
    condition: str
    results: list[dict[str, Any]]
    against: Paired | None  # the difference from the table's reference on the own test split, as trained

    def values(self, key: str) -> np.ndarray:
        """A figure of each seed's result file, by its path such as `recalls.mel`."""
        found = []
        for result in self.results:
            value: Any = result
            for part in key.split("."):
                value = None if value is None else value.get(part)
            found.append(np.nan if value is None else float(value))
        return np.array(found)

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
    samples: str  # what was made sure of: that all rows saw as many images


def load_results(plan: Plan, budget: str) -> dict[str, list[dict[str, Any]]]:
    """The results of a budget, by row, in the order of their seeds; not those of settings that it no longer has."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in plan.runs(budget):
        if (result := current_result(run)) is not None:
            found.setdefault(run.row, []).append(result)
    return found


def _decisions(results: list[dict[str, Any]], part: str, which: str) -> np.ndarray:
    """Decisions `[S, N]`, -1 where there was none."""
    return np.array([decisions(result["sets"][part][which]) for result in results])


def compare(
    a: list[dict[str, Any]], b: list[dict[str, Any]], budget: str, part: str = "test", which: str = "as_trained"
) -> Paired | None:
    """A minus B over the seeds that both have, where they were scored on the same images; else None."""
    seeds = sorted({r["seed"] for r in a} & {r["seed"] for r in b})
    one, other = ([r for r in results if r["seed"] in seeds] for results in (a, b))
    if not seeds or len({r["sets"][part]["truth"] for r in one + other}) != 1:
        return None
    truth = read_truth(results_folder(budget) / one[0]["sets"][part]["truth"], tuple(one[0]["recalls"]))
    return paired_interval(_decisions(one, part, which), _decisions(other, part, which), truth.labels, truth.lesions)


def build_sections(plan: Plan, budget: str, results: dict[str, list[dict[str, Any]]]) -> list[Section]:
    """Every table that has a finished run."""
    sections = []
    for key, table in plan.tables.items():
        rows = []
        for run in plan.runs_of(budget, table, 0):
            mine = results.get(run.row, [])
            if mine:
                reference = _reference(table, run.method, run.condition, plan, budget, results)
                against = compare(mine, reference, budget) if reference and reference is not mine else None
                rows.append(Row(run.row, run.method, run.condition, mine, against))
        if rows:
            sections.append(Section(key, table, rows, None, same_samples(rows)))
    return sections


def _reference(
    table: Table, config: str, condition: str, plan: Plan, budget: str, results: dict[str, list[dict[str, Any]]]
) -> list[dict[str, Any]] | None:
    """The row to compare with: the one that the table names, under the same condition where there is such a one.

    A table of one method compares its conditions, so there it is the row of that very name.
    """
    if len(table.rows) == 1:
        return results.get(table.against)
    names = {(run.method, run.condition): run.row for run in plan.runs_of(budget, table, 0)}
    row = names.get((table.against, condition), table.against)
    return results.get(row)


def same_samples(rows: list[Row]) -> str:
    """Makes sure that a table's rows drew as many images an epoch, lost the same lesions and began alike.

    With the same sampler, seed and labels they must have drawn the same of every class, too.

    Raises:
        UserError: they did not, so they can't be compared.
    """
    by_class: dict[tuple[str, int, str], list[dict[str, int]]] = {}
    for row in rows:
        for result in row.results:
            key = (row.condition, result["seed"], result["sampler"])
            if by_class.setdefault(key, result["samples"]) != result["samples"]:
                raise UserError(f"{row.name} with seed {result['seed']} drew other images than the rows beside it")
    by_condition: dict[str, set[tuple[int, str]]] = {}
    for row in rows:
        for result in row.results:
            drawn = {sum(epoch.values()) for epoch in result["samples"]}
            data = row.condition if row.name.startswith("cifar") else ""
            by_condition.setdefault(data, set()).update((n, result["training_lesions"]) for n in drawn)
    for condition, seen in by_condition.items():
        if len(seen) != 1:
            raise UserError(f"the rows of a table differ in what they trained on ({condition or 'all rows'}): {seen}")
    origins = {result["weights"] for row in rows for result in row.results}
    if len({same_origin(origin) for origin in origins}) > 1:
        raise UserError(f"the rows of a table started from different weights: {', '.join(sorted(origins))}")
    counts = sorted({n for seen in by_condition.values() for n, _ in seen})
    return (
        f"{' or '.join(f'{n:,}' for n in counts)} images an epoch drawn in every run, from the same training lesions."
    )


def verdict(section: Section) -> str:
    """Which rows are better or worse than the one that the table names, where the paired interval leaves zero out.

    Only rows that share `ENOUGH` seeds with it are spoken of: the interval of fewer holds too little of what another
    seed changes.
    """
    said: dict[str, list[str]] = {"better": [], "worse": [], "within chance": []}
    for row in section.rows:
        if row.against is None or row.against.seeds < ENOUGH:
            continue
        kind = "better" if row.against.low > 0 else "worse" if row.against.high < 0 else "within chance"
        said[kind].append(f"{row.name} ({100 * row.against.difference:+.1f})")
    lists = "; ".join(f"{kind}: {', '.join(rows)}" for kind, rows in said.items() if rows)
    return f"Against it, by {ENOUGH} seeds or more: {lists}." if lists else ""
