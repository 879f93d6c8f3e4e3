"""The figures of report.html, as inline SVG that takes its colours and font from the page.

Text stays text, so that it can be searched and uses the reader's font. Lines and text use the page's `currentColor`, so
that one drawing works on light and dark backgrounds. The same input gives the same bytes.
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
from sklearn.metrics import precision_recall_curve, roc_curve

from dermrw.diagnoses import DIAGNOSES, DX, Classes
from dermrw.metrics import calibration_error as reliability
from dermrw.reports.report_schema import Malignant

Floats = npt.NDArray[np.float64]

# placeholder colours that no other element uses, replaced by CSS after drawing, which matplotlib does not support
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
# on, off in line widths; lines differ in dashes as well as colour
DASHES = ((), (5, 1.5), (2.2, 1.1), (6, 1.4, 1.2, 1.4), (9, 2), (4, 1.2, 1, 1.2, 1, 1.2), (1, 1))
POINTS = 240  # at most, of a curve over training: more would not be visible
HALF, THIRD = (4.4, 3.9), (4.4, 2.7)  # inches; 72 to the inch in the SVG's units


class ClassStyle(NamedTuple):
    """Name, colour and dashes of a class in every figure."""

    code: str
    name: str
    colour: str
    dashes: tuple[float, ...]
    malignant: bool


def class_styles(classes: Classes) -> list[ClassStyle]:
    """A style for each class: HAM10000's diagnoses keep their colours, other classes take theirs from one palette."""
    known = {d.dx: d.colour for d in DIAGNOSES} if set(classes.codes) <= set(DX) else {}
    palette = (*(d.colour for d in DIAGNOSES), *MORE_COLOURS)
    styles = []
    for i, (code, name) in enumerate(zip(classes.codes, classes.names, strict=True)):
        colour, dashes = known.get(code, palette[i % len(palette)]), DASHES[i % len(DASHES)]
        malignant = classes.malignant is not None and classes.malignant[i]
        styles.append(ClassStyle(code, "" if name == code else name, colour, dashes, malignant))
    return styles


def draw(name: str, alt: str, size: tuple[float, float], paint: Callable[[Axes], None]) -> Markup:
    """One figure as an `<svg>` element; `name` makes its ids unique on the page."""
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
    for placeholder, css in CSS.items():
        svg = svg.replace(placeholder, css)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1).strip())


def _unit_square(axes: Axes, x: str, y: str, diagonal: bool = True) -> None:
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel=x, ylabel=y, aspect="equal")
    ticks = np.linspace(0, 1, 6)
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    if diagonal:
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, dashes=(3, 3), alpha=0.55)


def _roc(positive: npt.NDArray[np.bool_], score: Floats, weights: Floats) -> tuple[Floats, Floats] | None:
    kept = weights > 0
    if not positive[kept].any() or positive[kept].all():
        return None
    # points on a straight line are dropped: the curve is the same and the file smaller
    false, true, _ = roc_curve(positive[kept], score[kept], sample_weight=weights[kept], drop_intermediate=True)
    return false, true


def roc(probabilities: Floats, labels: npt.NDArray[Any], weights: Floats, classes: Sequence[ClassStyle]) -> Markup:
    """ROC curves of each class against the rest."""

    def paint(axes: Axes) -> None:
        _unit_square(axes, "1 − specificity", "sensitivity")
        for c, style in enumerate(classes):
            curve = _roc(labels == c, probabilities[:, c], weights)
            if curve:
                line = axes.plot(*curve, color=style.colour)[0]
                if style.dashes:
                    line.set_dashes(style.dashes)

    return draw("roc", "ROC curves of each class against the rest; their areas are in the legend", HALF, paint)


def precision_recall(
    probabilities: Floats, labels: npt.NDArray[Any], weights: Floats, classes: Sequence[ClassStyle]
) -> Markup:
    """Precision-recall curves of each class against the rest, as steps: their areas are the average precisions."""

    def paint(axes: Axes) -> None:
        _unit_square(axes, "recall (sensitivity)", "precision", diagonal=False)
        kept = weights > 0
        for c, style in enumerate(classes):
            positive = labels[kept] == c
            if not positive.any() or positive.all():
                continue
            precision, recall, _ = precision_recall_curve(
                positive, probabilities[kept, c], sample_weight=weights[kept], drop_intermediate=True
            )
            line = axes.step(recall, precision, where="post", color=style.colour)[0]
            if style.dashes:
                line.set_dashes(style.dashes)

    alt = "Precision-recall curves of each class against the rest; the average precisions are in the table of classes"
    return draw("precision-recall", alt, HALF, paint)


def malignant_roc(positive: npt.NDArray[np.bool_], score: Floats, weights: Floats, report: Malignant) -> Markup | None:
    """Malignant against the rest, with the report's two operating points; None if either side has no images."""
    curve = _roc(positive, score, weights)
    if curve is None:
        return None

    def paint(axes: Axes) -> None:
        _unit_square(axes, "1 − specificity", "sensitivity")
        axes.plot(*curve, color=ACCENT)
        sensitivity, specificity = report.sensitivity_at_90_specificity, report.specificity_at_95_sensitivity
        assert sensitivity is not None and specificity is not None  # both are defined where the curve is
        # at different heights, so that the labels do not overlap where the points are close together
        for x, y, mark, depth, text in (
            (0.1, sensitivity, "o", -12, f"sensitivity {100 * sensitivity:.0f} %"),
            (1 - specificity, 0.95, "s", -26, f"specificity {100 * specificity:.0f} %"),
        ):
            axes.plot([x], [y], mark, color=INK, markersize=6)
            axes.annotate(text, (x, y), (9, depth), textcoords="offset points", ha="left" if x < 0.6 else "center")

    return draw("malignant", "ROC curve of malignant or pre-malignant diagnoses against the rest", HALF, paint)


def top_label_curve(
    probabilities: Floats, labels: npt.NDArray[Any], weights: Floats, bins: int
) -> reliability.Reliability:
    """The reliability curve of the decided class, from probabilities `[N, C]`."""
    top = probabilities.argmax(axis=1)
    return reliability.reliability_curve(labels == top, probabilities[np.arange(len(top)), top], weights, bins=bins)


def reliability_diagram(
    name: str,
    probabilities: Floats,
    labels: npt.NDArray[Any],
    weights: Floats,
    classes: Sequence[ClassStyle],
    bins: int,
) -> Markup | None:
    """Reliability of the decided class (bold) and of each class (thin); None if all weights are 0."""
    if not weights.any():
        return None
    curve = top_label_curve(probabilities, labels, weights, bins)

    def paint(axes: Axes) -> None:
        _unit_square(axes, "predicted probability", "observed frequency")
        for c, style in enumerate(classes):
            own = reliability.reliability_curve(labels == c, probabilities[:, c], weights, bins=bins)
            line = axes.plot(own.score, own.frequency, color=style.colour, linewidth=1, alpha=0.6)[0]
            if style.dashes:
                line.set_dashes(style.dashes)
        axes.plot(curve.score, curve.frequency, "o-", color=INK, markersize=4, linewidth=1.5)

    return draw(f"reliability-{name}", f"Reliability diagram at {name.replace('_', ' ')}", HALF, paint)


def reliability_png(
    panels: dict[str, tuple[Floats, Floats]], labels: npt.NDArray[Any], titles: dict[str, str], bins: int
) -> bytes:
    """A PNG with a reliability diagram of the decided class for each of `both_prevalences`' two panels."""
    figure = Figure((10, 4.8), layout="constrained")
    for axes, (name, (p, weights)) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        curve = top_label_curve(p, labels, weights, bins)
        ece = reliability.expected_calibration_error(p, labels, weights, bins=bins)
        axes.plot([0, 1], [0, 1], color="0.75", linewidth=1)
        axes.plot(curve.score, curve.frequency, "o-", color="#0b5fae", markersize=4)
        axes.set(
            xlim=(0, 1), ylim=(0, 1), aspect="equal", title=f"{titles[name]}: error {100 * ece:.1f} %",
            xlabel="probability of the most likely class", ylabel="share that was correct",
        )  # fmt: skip
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    return buffer.getvalue()


def _thinned(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """The curve, neighbouring points averaged until at most `POINTS` are left."""
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
    """One quantity over training; `best` is the epoch that was kept, which is marked."""

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
                f"kept: epoch {best}, " + (f"{100 * value:.1f} %" if percent else f"{value:.2f}"),
                (at, 0),  # at the bottom, clear of the curve
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
    style: ClassStyle, number: int, x: Floats, share: Floats, trained: float, epochs: float, top: float
) -> Markup:
    """The share of the total weight that one class receives, and (dashed) its share of the training images."""

    def paint(axes: Axes) -> None:
        thin_x, thin_y = _thinned(x, share)
        axes.fill_between(thin_x, thin_y, color=style.colour, alpha=0.18, linewidth=0)
        axes.plot(thin_x, thin_y, color=style.colour, linewidth=1.6)
        axes.axhline(trained, color=INK, linewidth=1, dashes=(3, 2.5))
        _over_epochs(axes, epochs)
        axes.set_ylim(0, top)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.0f} %"))

    alt = f"Share of the total weight that {style.code} receives during training, and its share of the training images"
    return draw(f"weight-{number}", alt, (2.7, 1.9), paint)
