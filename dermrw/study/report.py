"""The study's report, from the result files alone: Markdown, HTML and pictures, each figure with the runs behind it."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dermrw.errors import UserError
from dermrw.files import write_atomic
from dermrw.study.pictures import draw
from dermrw.study.plan import Plan, Table, read_plan
from dermrw.study.result import finished, result_path, results_folder
from dermrw.study.statistics import Paired, paired_interval

HERE = Path(__file__).parent


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
        if finished(run):
            found.setdefault(run.row, []).append(json.loads(result_path(run).read_text(encoding="utf-8")))
    return found


def _decisions(results: list[dict[str, Any]], part: str, which: str) -> np.ndarray:
    """Decisions `[S, N]`, -1 where there was none."""
    return np.array([[-1 if d == "-" else int(d) for d in result["sets"][part][which]] for result in results])


def compare(
    a: list[dict[str, Any]], b: list[dict[str, Any]], budget: str, part: str = "test", which: str = "as_trained"
) -> Paired | None:
    """A minus B over the seeds that both have, where they were scored on the same images; else None."""
    seeds = sorted({r["seed"] for r in a} & {r["seed"] for r in b})
    one, other = ([r for r in results if r["seed"] in seeds] for results in (a, b))
    if not seeds or len({r["sets"][part]["truth"] for r in one + other}) != 1:
        return None
    truth = pd.read_csv(results_folder(budget) / one[0]["sets"][part]["truth"], dtype=str)
    codes = list(one[0]["recalls"])
    labels = truth["dx"].map({code: i for i, code in enumerate(codes)}).to_numpy()
    first, second = _decisions(one, part, which), _decisions(other, part, which)
    return paired_interval(first, second, labels, truth["lesion_id"].to_numpy())


def build_sections(plan: Plan, budget: str, results: dict[str, list[dict[str, Any]]]) -> list[Section]:
    """Every table that has a finished run."""
    sections = []
    for key, table in plan.tables.items():
        rows = []
        for run in plan.runs_of(budget, table, 0):
            mine = results.get(run.row, [])
            if mine:
                reference = _reference(table, run.config, run.condition, plan, budget, results)
                against = compare(mine, reference, budget) if reference and reference is not mine else None
                rows.append(Row(run.row, run.config, run.condition, mine, against))
        if rows:
            sections.append(Section(key, table, rows, None, same_samples(rows)))
    return sections


def _reference(
    table: Table, config: str, condition: str, plan: Plan, budget: str, results: dict[str, list[dict[str, Any]]]
) -> list[dict[str, Any]] | None:
    """The row to compare with: the one that the table names, under the same condition where there is such a one."""
    names = {(run.config, run.condition): run.row for run in plan.runs_of(budget, table, 0)}
    row = names.get((table.against, condition), table.against)
    return results.get(row)


def same_samples(rows: list[Row]) -> str:
    """Makes sure that a table's rows drew as many images an epoch and lost the same lesions.

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
    counts = sorted({n for seen in by_condition.values() for n, _ in seen})
    return f"{' or '.join(f'{n:,}' for n in counts)} images an epoch in every run, from the same training lesions."


def mean_sd(values: np.ndarray, scale: float = 100, digits: int = 1) -> str:
    """`61.2 ± 0.8`, or the mean alone of one value, or a dash of none."""
    values = values[np.isfinite(values)] * scale
    if not len(values):
        return "–"
    text = f"{values.mean():.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {values.std(ddof=1):.{digits}f}"


def cells(section: Section) -> tuple[list[str], list[list[str]]]:
    """A table's header and its rows as text."""
    wrong = any(row.results[0]["wrong_labels"] for row in section.rows)
    skin = "mel" in section.rows[0].results[0]["recalls"]
    header = [
        "row",
        "validation, as trained",
        "test, as trained",
        "test, offsets fitted",
        "as trained, against",
        "95 %",
    ]
    header += ["melanoma sensitivity"] * skin + ["calibration error"]
    header += ["wrong labels: AUROC", "in the first 100"] * wrong + ["min", "seeds"]
    body = []
    for row in section.rows:
        line = [
            row.name,
            mean_sd(row.values("sets.validation.balanced_accuracy_as_trained")),
            mean_sd(row.values("balanced_accuracy_as_trained")),
            mean_sd(row.values("balanced_accuracy")),
        ]
        p = row.against
        line += (
            ["–", "–"] if p is None else [f"{100 * p.difference:+.1f}", f"{100 * p.low:+.1f} to {100 * p.high:+.1f}"]
        )
        line += [mean_sd(row.values("recalls.mel"))] * skin
        line.append(mean_sd(row.values("calibration_error.training_prevalence"), 1, 3))
        if wrong:
            line.append(mean_sd(row.values("wrong_labels.auroc_within_class"), 1, 2))
            line.append(mean_sd(row.values("wrong_labels.precision_of_first_100")))
        line += [mean_sd(row.values("training_seconds"), 1 / 60, 0), ", ".join(map(str, row.seeds))]
        body.append(line)
    return header, body


def weights_cells(sections: list[Section]) -> tuple[list[str], list[list[str]]]:
    """What the weights of every run that has some were like in its last epoch."""
    rows = {row.name: row for section in sections for row in section.rows if row.results[0]["weights_over_time"]}
    header = ["row", "zero", "images in effect (1/Σw²)", "shares move from step to step", "an image's weight moves"]
    header.append("each class's share of the weight, last epoch")
    body = []
    for name, row in rows.items():
        last = [result["weights_over_time"][-1] for result in row.results]

        def of(key: str, scale: float = 1, digits: int = 1, last: list[dict[str, Any]] = last) -> str:
            return mean_sd(np.array([epoch.get(key, np.nan) for epoch in last]), scale, digits)

        shares = np.mean([epoch["class_weight"] for epoch in last], axis=0)
        named = " ".join(f"{c} {100 * s:.0f}" for c, s in zip(row.results[0]["recalls"], shares, strict=True))
        body.append([name, of("zero_share", 100, 0) + " %", of("effective_batch"), of("class_swing", 1, 2),
                     of("example_swing", 1, 2), named])  # fmt: skip
    return header, body


def overhead_cells() -> tuple[list[str], list[list[str]]]:
    """What the weights cost, from the benchmark's own file."""
    path = Path("docs/bench.json")
    header = ["network", "precision", "way", "time", "FLOPs", "memory"]
    if not path.is_file():
        return header, []
    body = []
    for network in json.loads(path.read_text(encoding="utf-8"))["networks"]:
        for way, row in network["rows"].items():
            name = f"{network['network']}, {network['size']} px, {network['batch']} + {network['meta']}"
            ratios = [f"{row[key]:.2f}" for key in ("time_ratio", "flops_ratio", "memory_ratio")]
            body.append([name, network["precision"], way, *ratios])
    return header, body


def markdown(header: list[str], body: list[list[str]]) -> str:
    """A table in Markdown."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *body])


def write_report(budget: str) -> str:
    """Writes docs/study/BUDGET/report.md, report.html and the pictures; returns a sentence on what was written.

    Raises:
        UserError: there is no result yet, or a table's rows can't be compared.
    """
    plan, folder = read_plan(), results_folder(budget)
    results = load_results(plan, budget)
    sections = build_sections(plan, budget, results)
    if not sections:
        raise UserError(f"{folder} holds no result yet: `make reproduce` makes some")
    drawn = []
    for section in sections:
        picture = draw(section)
        if picture is not None:
            write_atomic(folder / f"{section.key}.svg", picture.encode())
        drawn.append(section._replace(picture=f"{section.key}.svg" if picture is not None else None))
    finished_runs = sum(map(len, results.values()))
    facts = {
        "budget": budget,
        "sections": [(s, *cells(s)) for s in drawn],
        "weights": weights_cells(sections),
        "overhead": overhead_cells(),
        "finished": finished_runs,
        "wanted": len(plan.runs(budget)),
        "outdated": len(list(folder.glob("*-*.json"))) - finished_runs,
    }
    environment = Environment(loader=FileSystemLoader(HERE), undefined=StrictUndefined, trim_blocks=True)
    text = environment.get_template("report.md.jinja").render(**facts, table=markdown)
    write_atomic(folder / "report.md", text.encode())
    environment.autoescape = True
    pictures = {s.key: Markup((folder / s.picture).read_text(encoding="utf-8")) for s in drawn if s.picture}
    page = environment.get_template("report.html.jinja").render(**facts, pictures=pictures)
    write_atomic(folder / "report.html", page.encode())
    return f"{folder / 'report.md'}, {folder / 'report.html'}: {facts['finished']} of {facts['wanted']} runs"
