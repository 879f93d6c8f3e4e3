"""Draws the study's figures: a point per seed and the mean as a line or bar. SVG files in which text stays text."""

import io
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from dermrw.study.sections import Section

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dermrw",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#d5dbe3",
    "grid.linewidth": 0.6,
}
MARKERS = "osD^vPX*<>"
LABEL = "balanced accuracy on the run's own test split, as trained (%)"


def draw(section: "Section") -> str | None:
    """Returns the SVG figure of a table: one line per method over its conditions, or rows of points."""
    methods = list(dict.fromkeys(row.method for row in section.rows))
    conditions = list(dict.fromkeys(row.condition for row in section.rows))
    if len(section.rows) < 2:
        return None
    with mpl.rc_context(STYLE):
        lines = len(methods) > 1 and len(conditions) > 1
        figure = Figure(figsize=(7.2, 4.0 if lines else 0.9 + 0.28 * len(section.rows)), layout="constrained")
        axes = figure.add_subplot()
        if lines:
            _lines(axes, section, methods, conditions)
        else:
            _points(axes, section)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None}, facecolor="white")
        return file.getvalue().decode()


def _points(axes: Axes, section: "Section") -> None:
    rows = sorted(section.rows, key=lambda row: float(np.mean(row.values("balanced_accuracy_as_trained"))))
    for at, row in enumerate(rows):
        values = 100 * row.values("balanced_accuracy_as_trained")
        axes.plot(values, [at] * len(values), "o", color="#0b5fae", alpha=0.45, markersize=5)
        axes.plot([values.mean()] * 2, [at - 0.32, at + 0.32], color="#0b5fae", linewidth=2)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(LABEL)


def _lines(axes: Axes, section: "Section", methods: list[str], conditions: list[str]) -> None:
    for k, method in enumerate(methods):
        mine = {row.condition: 100 * row.values("balanced_accuracy_as_trained") for row in section.rows
                if row.method == method}  # fmt: skip
        at = [conditions.index(condition) for condition in mine]
        (line,) = axes.plot(at, [v.mean() for v in mine.values()], marker=MARKERS[k % 10], markersize=5, label=method)
        for x, values in zip(at, mine.values(), strict=True):
            axes.plot([x] * len(values), values, MARKERS[k % 10], color=line.get_color(), alpha=0.35, markersize=4)
    axes.set_xticks(range(len(conditions)), conditions)
    axes.set_ylabel("balanced accuracy,\nas trained (%)")
    axes.legend(fontsize=8.5, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
