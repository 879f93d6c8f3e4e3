"""The study's report, from the result files alone: Markdown, HTML and pictures, each figure with the runs behind it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dermrw.errors import UserError
from dermrw.files import write_atomic
from dermrw.study.pictures import draw
from dermrw.study.plan import read_plan
from dermrw.study.result import results_folder
from dermrw.study.sections import ENOUGH, Section, build_sections, load_results, verdict

HERE = Path(__file__).parent


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
        "seeds",
        "validation, as trained",
        "test, as trained",
        "as trained, against",
        "95 %",
        "test, offsets fitted",
    ]
    header += ["melanoma sensitivity, fitted"] * skin + ["calibration error, fitted"]
    header += ["wrong labels: share", "AUROC", "within the class", "in the first 100"] * wrong + ["min"]
    body = []
    for row in section.rows:
        line = [
            row.name,
            ", ".join(map(str, row.seeds)),
            mean_sd(row.values("sets.validation.balanced_accuracy_as_trained")),
            mean_sd(row.values("balanced_accuracy_as_trained")),
        ]
        p = row.against
        if p is None:
            line += ["–", "–"]
        else:
            over = "" if p.seeds == len(row.results) else f" ({p.seeds} of them)"  # the reference lacks the others
            line.append(f"{100 * p.difference:+.1f}{over}")
            line.append("–" if p.seeds < ENOUGH else f"{100 * p.low:+.1f} to {100 * p.high:+.1f}")
        line.append(mean_sd(row.values("balanced_accuracy")))
        line += [mean_sd(row.values("recalls.mel"))] * skin
        line.append(mean_sd(row.values("calibration_error.training_prevalence"), 1, 3))
        if wrong:
            share = row.values("wrong_labels.share")
            line.append(f"{100 * share.mean():.0f}" if np.isfinite(share).all() else "–")
            line.append(mean_sd(row.values("wrong_labels.auroc"), 1, 2))
            line.append(mean_sd(row.values("wrong_labels.auroc_within_class"), 1, 2))
            line.append(mean_sd(row.values("wrong_labels.precision_of_first_100")))
        line.append(mean_sd(row.values("training_seconds"), 1 / 60, 0))
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
    try:
        for network in json.loads(path.read_text(encoding="utf-8"))["networks"]:
            for way, row in network["rows"].items():
                name = f"{network['network']}, {network['size']} px, {network['batch']} + {network['meta']}"
                precision = network["precision"] + (", channels-last" if network["channels_last"] else "")
                ratios = [f"{row[key]:.2f}" for key in ("time_ratio", "flops_ratio", "memory_ratio")]
                body.append([name, precision, way, *ratios])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is not what `make bench` writes: take it back from version control") from None
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
    there = {path.stem for path in folder.glob("*-*.json")}  # listed first: a study under way may add to them
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
    finished_runs = {f"{row}-{r['seed']}" for row, mine in results.items() for r in mine}
    facts = {
        "budget": budget,
        "sections": [(s, verdict(s), *cells(s)) for s in drawn],
        "weights": weights_cells(sections),
        "overhead": overhead_cells(),
        "finished": len(finished_runs),
        "wanted": len(plan.runs(budget)),
        "outdated": len(there - finished_runs),
    }
    environment = Environment(loader=FileSystemLoader(HERE), undefined=StrictUndefined, trim_blocks=True)
    text = environment.get_template("report.md.jinja").render(**facts, table=markdown)
    write_atomic(folder / "report.md", text.encode())
    environment.autoescape = True
    pictures = {s.key: Markup((folder / s.picture).read_text(encoding="utf-8")) for s in drawn if s.picture}
    page = environment.get_template("report.html.jinja").render(**facts, pictures=pictures)
    write_atomic(folder / "report.html", page.encode())
    return f"{folder / 'report.md'}, {folder / 'report.html'}: {facts['finished']} of {facts['wanted']} runs"
