"""Figure of the benchmark: time and memory of each method, and the measured against the predicted overhead."""

from collections.abc import Callable
from io import BytesIO
from typing import Any

from matplotlib.figure import Figure

from dermrw.bench.methods import EXACT


def plot(report: dict[str, Any], predicted: Callable[[int, int], float]) -> bytes:
    """Returns a PNG. Left: each method on each network in fp32. Right: overhead of exact weights and the cost model."""
    figure = Figure((13, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    groups = [g for g in report["networks"] if g["precision"] == "fp32" and not g["channels_last"]]
    names = [n for n in dict.fromkeys(name for g in groups for name in g["rows"]) if n != "plain"]
    height = 0.8 / max(1, len(groups))
    for k, group in enumerate(groups):
        rows = [(names.index(name), row) for name, row in group["rows"].items() if name != "plain"]
        places = [y + k * height for y, _ in rows]
        left.barh(
            places,
            [row["time_ratio"] for _, row in rows],
            height * 0.9,
            label=f"{group['network']}, {group['batch']} + {group['meta']} images",
            color=f"C{k}",
        )
        left.plot([row["memory_ratio"] for _, row in rows], places, "k|", markersize=9)
    left.axvline(1, color="0.6", linewidth=1)
    left.set_yticks(
        [i + 0.4 - height / 2 for i in range(len(names))], [f"{n}{'' if n in EXACT else ' *'}" for n in names]
    )
    left.invert_yaxis()
    left.set_xlabel("time of a training step, plain = 1 (black mark: peak memory, plain = 1; *: not the exact weights)")
    left.set_title("Cost of each method relative to plain training, fp32")
    left.legend(frameon=False)
    for k, (what, points) in enumerate(report["growth"].items()):
        xs = [predicted(p["batch"], p["meta"]) for p in points]
        right.plot(xs, [p["time_ratio"] for p in points], "o", color=f"C{k}", label=what)
        right.plot(xs, [p["flops_ratio"] for p in points], "x", color=f"C{k}")
    ends = [1.6, 3.1]
    right.plot(ends, ends, color="0.6", linewidth=1)
    right.set_xlabel("predicted: 5/3 + M/B")
    right.set_ylabel("measured (o time, × FLOPs), plain = 1")
    right.set_title("Overhead of the exact weights")
    right.legend(frameon=False)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
