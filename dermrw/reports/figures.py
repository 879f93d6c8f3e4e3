"""The report's figures: matplotlib without pyplot, as inline SVG that takes its ink and font from the page around it.

Text stays text, so that it can be searched and is set in the reader's own font; the ink is the page's `currentColor`,
so that one drawing serves light and dark. The same input gives the same bytes.
"""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from sklearn.metrics import roc_curve

from dermrw.diagnoses import DIAGNOSES
from dermrw.metrics import calibration_error as reliability
from dermrw.metrics import classification as metrics

Floats = npt.NDArray[np.float64]

# stand-ins that no other element uses, replaced after drawing: matplotlib knows no CSS
INK, GRID, ACCENT = "#010203", "#040506", "#070809"
CSS = {INK: "currentColor", GRID: "var(--grid)", ACCENT: "var(--accent)"}
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dermrw",
    "font.size": 9.5,
    "axes.linewidth": 0.8,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
}
MORE_COLOURS = ("#7f7f7f", "#bcbd22", "#6a3d9a", "#17becf", "#b15928")
# on, off in units of the line's width; colour is never the only thing that tells lines apart
DASHES = ((), (5, 1.5), (2.2, 1.1), (6, 1.4, 1.2, 1.4), (9, 2), (4, 1.2, 1, 1.2, 1, 1.2), (1, 1))
POINTS = 240  # of a curve over training: more can't be seen and makes the file large
HALF, THIRD = (4.4, 3.9), (4.4, 2.7)  # inches; 72 to the inch in the SVG's units


class Look(NamedTuple):
    """How a class looks in every figure."""

    code: str
    name: str
    colour: str
    dashes: tuple[float, ...]
    malignant: bool


def looks(codes: Sequence[str]) -> list[Look]:
    """A look for each class: HAM10000's diagnoses keep their colours, others draw from one palette."""
    known = {d.dx: d for d in DIAGNOSES}
    palette = (*(d.colour for d in DIAGNOSES), *MORE_COLOURS)
    found = []
    for i, code in enumerate(codes):
        d = known.get(code)
        colour, dashes = palette[i % len(palette)], DASHES[i % len(DASHES)]
        found.append(Look(code, d.name, d.colour, dashes, d.malignant) if d else Look(code, "", colour, dashes, False))
    return found


def draw(name: str, alt: str, size: tuple[float, float], paint: Callable[[Axes], None]) -> Markup:
    """One figure as an `<svg>` element; `name` keeps its ids apart from the other figures' on the page."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'( id="|url\(#|xlink:href="#)', rf"\g<1>{name}-", svg)
    for stand_in, css in CSS.items():
        svg = svg.replace(stand_in, css)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1).strip())


def _unit_square(axes: Axes, x: str, y: str) -> None:
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel=x, ylabel=y, aspect="equal")
    ticks = np.linspace(0, 1, 6)
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, dashes=(3, 3), alpha=0.55)


def _roc(positive: npt.NDArray[np.bool_], score: Floats, weights: Floats) -> tuple[Floats, Floats] | None:
    kept = weights > 0
    if not positive[kept].any() or positive[kept].all():
        return None
    # points on a straight line are dropped: the curve is the same and the file smaller
    false, true, _ = roc_curve(positive[kept], score[kept], sample_weight=weights[kept], drop_intermediate=True)
    return false, true


def roc(probabilities: Floats, labels: npt.NDArray[Any], weights: Floats, classes: Sequence[Look]) -> Markup:
    """Every class against the rest."""

    def paint(axes: Axes) -> None:
        _unit_square(axes, "1 − specificity", "sensitivity")
        for c, look in enumerate(classes):
            curve = _roc(labels == c, probabilities[:, c], weights)
            if curve:
                line = axes.plot(*curve, color=look.colour)[0]
                if look.dashes:
                    line.set_dashes(look.dashes)

    return draw("roc", "ROC curves of each class against the rest; their areas are in the legend", HALF, paint)


def malignant_roc(
    probabilities: Floats, labels: npt.NDArray[Any], weights: Floats, report: dict[str, Any]
) -> Markup | None:
    """Malignant against the rest, with the two operating points that the report names."""
    positive, score = metrics.malignant(probabilities, labels)
    curve = _roc(positive, score, weights)
    if curve is None:
        return None

    def paint(axes: Axes) -> None:
        _unit_square(axes, "1 − specificity", "sensitivity")
        axes.plot(*curve, color=ACCENT)
        sensitivity, specificity = report["sensitivity_at_90_specificity"], report["specificity_at_95_sensitivity"]
        # of different depth, so that the labels stay apart where a good curve brings the points together
        for x, y, mark, depth, text in (
            (0.1, sensitivity, "o", -12, f"sensitivity {100 * sensitivity:.0f} %"),
            (1 - specificity, 0.95, "s", -26, f"specificity {100 * specificity:.0f} %"),
        ):
            axes.plot([x], [y], mark, color=INK, markersize=6)
            axes.annotate(text, (x, y), (9, depth), textcoords="offset points", ha="left" if x < 0.6 else "center")

    return draw("malignant", "ROC curve of malignant or pre-malignant diagnoses against the rest", HALF, paint)


def reliability_diagram(
    name: str, probabilities: Floats, labels: npt.NDArray[Any], weights: Floats, classes: Sequence[Look], bins: int
) -> Markup | None:
    """Top-label reliability in ink, each class's own thinly behind it."""
    if not weights.any():
        return None
    top = probabilities.argmax(axis=1)
    curve = reliability.reliability_curve(labels == top, probabilities[np.arange(len(top)), top], weights, bins=bins)

    def paint(axes: Axes) -> None:
        _unit_square(axes, "probability given", "share that came true")
        for c, look in enumerate(classes):
            own = reliability.reliability_curve(labels == c, probabilities[:, c], weights, bins=bins)
            line = axes.plot(own.score, own.frequency, color=look.colour, linewidth=1, alpha=0.6)[0]
            if look.dashes:
                line.set_dashes(look.dashes)
        axes.plot(curve.score, curve.frequency, "o-", color=INK, markersize=4, linewidth=1.5)

    return draw(f"reliability-{name}", f"Reliability diagram at {name} prevalence", HALF, paint)


def _thinned(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Means of neighbours where there are more points than can be seen."""
    size = -(-len(x) // POINTS)
    starts = np.arange(0, len(x), size)
    counts = np.diff([*starts, len(x)])
    return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts


def _over_epochs(axes: Axes, epochs: float) -> None:
    axes.set_xlabel("epoch")
    axes.set_xlim(0, epochs)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=epochs > 2))


def over_training(
    name: str, alt: str, x: Floats, y: Floats, epochs: float, *, percent: bool = False, best: int | None = None
) -> Markup:
    """One quantity over training; `best` marks the epoch that was kept."""

    def paint(axes: Axes) -> None:
        many = len(x) > 60
        axes.plot(*_thinned(x, y), "-" if many else "o-", color=ACCENT, markersize=3.2, clip_on=False)
        kept = np.flatnonzero(x == (-1 if best is None else best))
        if len(kept):
            at, value = float(x[kept[0]]), float(y[kept[0]])
            axes.axvline(at, color=INK, linewidth=0.8, dashes=(3, 3), alpha=0.6)
            axes.plot([at], [value], "o", color=INK, markersize=6, clip_on=False, zorder=5)
            right = at > epochs / 2
            axes.annotate(
                f"kept: epoch {best}, {100 * value:.1f} %",
                (at, 0),  # at the foot, where no curve runs
                (-8 if right else 8, 8),
                textcoords="offset points",
                ha="right" if right else "left",
            )
        _over_epochs(axes, epochs)
        top = float(np.nanmax(y)) if np.isfinite(y).any() else 1.0
        axes.set_ylim(0, 1.18 * top if top > 0 else 1)
        if percent:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:g} %"))

    return draw(name, alt, THIRD, paint)


def class_weight(
    look: Look, number: int, x: Floats, share: Floats, trained: float, epochs: float, top: float
) -> Markup:
    """The share of the weight that one class receives, and (dashed) its share of the training images."""

    def paint(axes: Axes) -> None:
        thin_x, thin_y = _thinned(x, share)
        axes.fill_between(thin_x, thin_y, color=look.colour, alpha=0.18, linewidth=0)
        axes.plot(thin_x, thin_y, color=look.colour, linewidth=1.6)
        axes.axhline(trained, color=INK, linewidth=1, dashes=(3, 2.5))
        _over_epochs(axes, epochs)
        axes.set_ylim(0, top)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.0f} %"))

    alt = f"Share of the weight that {look.code} receives during training, against its share of the training images"
    return draw(f"weight-{number}", alt, (2.7, 1.9), paint)
