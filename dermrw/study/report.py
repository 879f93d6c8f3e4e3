"""Writes the study's report from the result files alone: Markdown, HTML and figures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dermrw.errors import UserError
from dermrw.files import write_atomic
from dermrw.formatting import markdown_table
from dermrw.study.pictures import draw
from dermrw.study.plan import read_plan
from dermrw.study.result import results_folder
from dermrw.study.sections import ENOUGH, Row, Section, build_sections, load_results, verdict
from dermrw.study.statistics import Paired

HERE = Path(__file__).parent


def mean_sd(values: np.ndarray, scale: float = 100, digits: int = 1) -> str:
    """Returns `61.2 ± 0.8`, the mean alone for one value, or a dash for none; NaN is left out."""
    values = values[np.isfinite(values)] * scale
    if not len(values):
        return "–"
    text = f"{values.mean():.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {values.std(ddof=1):.{digits}f}"


def cells(section: Section) -> tuple[list[str], list[list[str]]]:
    """Returns a table's header and its rows as text."""
    wrong = any(row.results[0]["wrong_labels"] for row in section.rows)
    skin = "mel" in section.rows[0].results[0]["recalls"]
    comparison = ["difference", "95 %", "p, corrected"]
    header = ["row", "seeds", "validation, as trained", "test, as trained", *comparison]
    header += ["test, fitted", *comparison]
    header += ["melanoma sensitivity, fitted"] * skin + ["calibration error, fitted"]
    header += [
        "share of wrong labels",
        "AUROC",
        "AUROC of the class alone",
        "AUROC within the class",
        "wrong in the first 100",
        "wrong in the first 100 by the class alone",
    ] * wrong
    header += ["minutes"]
    body = []
    for row in section.rows:
        line = [row.name, ", ".join(map(str, row.seeds))]
        line.append(mean_sd(row.values("sets.validation.balanced_accuracy_as_trained")))
        line += [mean_sd(row.values("balanced_accuracy_as_trained")), *_comparison_cells(row, row.against)]
        line += [mean_sd(row.values("balanced_accuracy")), *_comparison_cells(row, row.against_fitted)]
        line += [mean_sd(row.values("recalls.mel"))] * skin
        line.append(mean_sd(row.values("calibration_error.training_prevalence"), 1, 3))
        line += _wrong_label_cells(row) if wrong else []
        line.append(mean_sd(row.values("training_seconds"), 1 / 60, 0))
        body.append(line)
    return header, body


def _comparison_cells(row: Row, paired: Paired | None) -> list[str]:
    if paired is None:
        return ["–", "–", "–"]
    some = "" if paired.seeds == len(row.results) else f" ({paired.seeds} of them)"  # the reference lacks the others
    difference = f"{100 * paired.difference:+.1f}{some}"
    if paired.seeds < ENOUGH:
        return [difference, "–", "–"]
    interval = f"{100 * paired.low:+.1f} to {100 * paired.high:+.1f}"
    return [difference, interval, "< 0.001" if paired.holm < 0.001 else f"{paired.holm:.3f}"]


def _wrong_label_cells(row: Row) -> list[str]:
    share, first = row.values("wrong_labels.share"), row.values("wrong_labels.precision_of_first_100")
    known = int(np.isfinite(first).sum())
    auroc_alone, first_alone = row.class_alone or (np.nan, np.nan)
    return [
        f"{100 * share.mean():.0f}" if np.isfinite(share).all() else "–",
        mean_sd(row.values("wrong_labels.auroc"), 1, 2),
        mean_sd(np.array([auroc_alone]), 1, 2),
        mean_sd(row.values("wrong_labels.auroc_within_class"), 1, 2),
        mean_sd(first) + (f" ({known} seeds)" if 0 < known < len(first) else ""),
        mean_sd(np.array([first_alone]), 100, 0),
    ]


def weights_cells(sections: list[Section]) -> tuple[list[str], list[list[str]]]:
    """Returns the table of the weights in the last epoch of every run that weighs its examples."""
    rows = {row.name: row for section in sections for row in section.rows if row.results[0]["weights_over_time"]}
    header = ["row", "weights of zero", "effective batch (1/Σw²)", "change of the classes' shares"]
    header += ["change of an image's weight", "each class's share of the weight (%)"]
    body = []
    for name, row in rows.items():
        last_epochs = [result["weights_over_time"][-1] for result in row.results]

        def cell(key: str, scale: float = 1, digits: int = 1, epochs: list[dict[str, Any]] = last_epochs) -> str:
            return mean_sd(np.array([epoch.get(key, np.nan) for epoch in epochs]), scale, digits)

        shares = np.mean([epoch["class_weight"] for epoch in last_epochs], axis=0)
        by_class = " ".join(f"{c} {100 * s:.0f}" for c, s in zip(row.results[0]["recalls"], shares, strict=True))
        body.append([name, cell("zero_share", 100, 0) + " %", cell("effective_batch"), cell("class_swing", 1, 2),
                     cell("example_swing", 1, 2), by_class])  # fmt: skip
    return header, body


def overhead_cells() -> tuple[list[str], list[list[str]]]:
    """Returns the table of the weights' cost, from docs/bench.json."""
    path = Path("docs/bench.json")
    header = ["network", "precision", "method", "time", "FLOPs", "memory"]
    if not path.is_file():
        return header, []
    body = []
    try:
        for network in json.loads(path.read_text(encoding="utf-8"))["networks"]:
            for method, row in network["rows"].items():
                name = f"{network['network']}, {network['size']} px, {network['batch']} + {network['meta']}"
                precision = network["precision"] + (", channels-last" if network["channels_last"] else "")
                ratios = [f"{row[key]:.2f}" for key in ("time_ratio", "flops_ratio", "memory_ratio")]
                body.append([name, precision, method, *ratios])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} was not written by `make bench`: restore it from version control") from None
    return header, body


def write_report(budget: str) -> str:
    """Writes docs/study/BUDGET/report.md, report.html and the pictures; returns a sentence that names the files.

    Raises:
        UserError: there is no result yet, or a table's rows can't be compared.
    """
    plan, folder = read_plan(), results_folder(budget)
    present = {path.stem for path in folder.glob("*-*.json")}  # listed first: a study under way may add to them
    results = load_results(plan, budget)
    sections = build_sections(plan, budget, results)
    if not sections:
        raise UserError(f"{folder} contains no result yet: run `make reproduce` first")
    drawn = []
    for section in sections:
        picture = draw(section)
        if picture is not None:
            write_atomic(folder / f"{section.key}.svg", picture.encode())
        drawn.append(section._replace(picture=f"{section.key}.svg" if picture is not None else None))
    finished_runs = {f"{row}-{r['seed']}" for row, runs in results.items() for r in runs}
    facts = {
        "budget": budget,
        "minutes": plan.budgets[budget].minutes,
        "sections": [(s, verdict(s), *cells(s)) for s in drawn],
        "weights": weights_cells(sections),
        "overhead": overhead_cells() if plan.budgets[budget].bench else ([], []),
        "finished": len(finished_runs),
        "wanted": len(plan.runs(budget)),
        "outdated": len(present - finished_runs),
    }
    environment = Environment(loader=FileSystemLoader(HERE), undefined=StrictUndefined, trim_blocks=True)
    text = environment.get_template("report.md.jinja").render(**facts, table=markdown_table)
    write_atomic(folder / "report.md", text.encode())
    environment.autoescape = True
    pictures = {s.key: Markup((folder / s.picture).read_text(encoding="utf-8")) for s in drawn if s.picture}
    page = environment.get_template("report.html.jinja").render(**facts, pictures=pictures)
    write_atomic(folder / "report.html", page.encode())
    return f"{folder / 'report.md'}, {folder / 'report.html'}: {facts['finished']} of {facts['wanted']} runs"
