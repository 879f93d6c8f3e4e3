"""`make bench`: measures the cost of example weights by each method; writes a table, bench.json and bench.png."""

import argparse
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torchvision.models import list_models

from dermrw.bench.distances import measure
from dermrw.bench.measure import autocast, build, compare
from dermrw.bench.methods import FROZEN_METHODS, METHODS, Step, available_methods, run
from dermrw.bench.pipeline import images_per_second, waiting_share
from dermrw.bench.plot import plot
from dermrw.config import find_config, load_config
from dermrw.datasets.ham10000 import find_ham10000
from dermrw.errors import UserError, plain_endings
from dermrw.files import path_argument, write_atomic
from dermrw.training.device import choose_device, computes_bf16, environment, keep_freed_memory

META, SIZE = 21, 64
PARTS = ("networks", "frozen", "growth", "pipeline")
NETWORKS = ("resnet18", "efficientnet_b0", "resnet50", "convnext_tiny")
IN_BF16 = ("plain", "exact", "last stage", "double backward, shared")  # finite differences need fp32
FROZEN: dict[str, Any] = {"names": ("resnet18", "efficientnet_lite0"), "batch": 128, "size": 96}
# quantities that the overhead may depend on, varied one at a time
BASE: dict[str, Any] = {"name": "resnet18", "size": SIZE, "batch": 64, "meta": META}
GROWTH: dict[str, list[dict[str, Any]]] = {
    "training batch": [{"batch": n} for n in (16, 32, 64, 128)],
    "meta set": [{"meta": n} for n in (7, 42, 64)],
    "resolution": [{"size": n} for n in (32, 96, 128)],
    "depth": [{"name": f"resnet{n}"} for n in (34, 50)],
    "width": [{"name": "mobilenet_v2", "width_mult": w} for w in (0.5, 1.0, 1.5)],
}


def predicted(batch: int, meta: int) -> float:
    """Returns the predicted time ratio of exact weights to plain training, 5/3 + M/B.

    In the cost model, a forward pass over one example costs F and a backward pass 2F. Plain training costs 3F·B, and
    the exact weights cost 5F·B + 3F·M. The ratio does not depend on the network or the resolution. It does not depend
    on the size of the data set either, because a step uses only its batch and the meta set.
    """
    return 5 / 3 + meta / batch


def show(title: str, rows: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """Prints a table of the ratios to plain training, with one row per method."""
    table = Table(title=title, title_justify="left")
    for heading in ("method", "ms", "time", "quartiles", "FLOPs", "memory"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for name, row in rows.items():
        low, high = row["time_ratio_quartiles"]
        table.add_row(
            name, f"{1000 * row['seconds']:.0f}", f"{row['time_ratio']:.2f}", f"{low:.2f}–{high:.2f}",
            f"{row['flops_ratio']:.2f}", f"{row['memory_ratio']:.2f}",
        )  # fmt: skip
    console.print(table)


def bench_networks(
    names: Sequence[str], batch: int, repeats: int, device: torch.device, console: Console
) -> list[dict[str, Any]]:
    """Measures every method on every network in fp32, and some methods in channels-last, with fp32 and with bf16."""
    groups = []
    settings = [("fp32", False), ("fp32", True)]
    if computes_bf16(device):
        settings.append(("bf16", True))
    else:
        console.print("bf16 is left out: this CPU has no instructions for it")
    for name in names:
        for precision, channels_last in settings:
            steps: Mapping[str, Step] = available_methods()
            if channels_last:
                chosen = [m for m in IN_BF16 if m != "double backward, shared" or precision == "bf16"]
                steps = {method: METHODS[method] for method in chosen}
            rows = compare(steps, build(name, SIZE, batch, META, device, channels_last), precision, repeats)
            layout = ", channels-last" if channels_last else ""
            show(f"{name}, {SIZE} px, {batch} + {META} images, {precision}{layout}", rows, console)
            setting = {"network": name, "size": SIZE, "batch": batch, "meta": META, "precision": precision}
            groups.append({**setting, "channels_last": channels_last, "rows": rows})
    return groups


def against_the_fastest(groups: Sequence[Mapping[str, Any]], console: Console) -> dict[str, dict[str, Any]]:
    """Returns, for each network, the time ratio of the fastest exact weights to the fastest plain training.

    The fastest of each is taken over the precisions and memory layouts.
    """
    fastest: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(group["network"] for group in groups):
        rows_of = {
            f"{g['precision']}{', channels-last' if g['channels_last'] else ''}": g["rows"]
            for g in groups
            if g["network"] == name
        }
        plain, exact = (
            {setting: rows[method]["seconds"] for setting, rows in rows_of.items()} for method in ("plain", "exact")
        )
        best, best_exact = min(plain, key=plain.__getitem__), min(exact, key=exact.__getitem__)
        ratio = exact[best_exact] / plain[best]
        fastest[name] = {"plain": best, "exact": best_exact, "time_ratio": ratio}
        console.print(
            f"{name}: a step with the fastest exact weights ({best_exact}) takes {ratio:.2f} times as long as the "
            f"fastest plain step ({best})"
        )
    return fastest


def bench_frozen(repeats: int, device: torch.device, console: Console) -> list[dict[str, Any]]:
    """Measures exact weights where the statistics of batch norm are fixed (`model.freeze=batch_norm`)."""
    groups = []
    for name in FROZEN["names"]:
        batch, size = FROZEN["batch"], FROZEN["size"]
        case = build(name, size, batch, META, device, channels_last=True, frozen=True)
        rows = compare(FROZEN_METHODS, case, "fp32", repeats)
        weights = run(METHODS["exact"], case, autocast(device, "fp32"))
        assert weights is not None
        zero = float((weights == 0).float().mean())
        show(f"{name}, fixed batch norm, {size} px, {batch} + {META} images, {zero:.0%} of weights zero", rows, console)
        groups.append({"network": name, "size": size, "batch": batch, "meta": META, "zero_share": zero, "rows": rows})
    return groups


def bench_growth(repeats: int, device: torch.device, console: Console) -> dict[str, list[dict[str, Any]]]:
    """Measures the overhead of the exact weights while one quantity at a time varies."""
    growth: dict[str, list[dict[str, Any]]] = {}
    table = Table("varied", "value", "predicted", "FLOPs", "time", title="Overhead of the exact weights, fp32")
    steps = {name: METHODS[name] for name in ("plain", "exact")}
    for quantity, values in GROWTH.items():
        for value in values:
            setting = {**BASE, **value}
            row = compare(steps, build(**setting, device=device), "fp32", repeats)["exact"]
            growth.setdefault(quantity, []).append({**setting, **row})
            table.add_row(
                quantity, ", ".join(map(str, value.values())), f"{predicted(setting['batch'], setting['meta']):.2f}",
                f"{row['flops_ratio']:.2f}", f"{row['time_ratio']:.2f}",
            )  # fmt: skip
    console.print(table)
    return growth


def bench_pipeline(console: Console) -> dict[str, Any]:
    """Measures the input pipeline at 224 px, and the share of a step of `configs/ham.yaml` that waits for images.

    The data are HAM10000 if it is available, and otherwise the embedded sample.
    """
    config = load_config(find_config("configs/ham.yaml"))
    if find_ham10000(config.data.root) is None:
        data = load_config(find_config("configs/sample.yaml")).data.model_copy(update={"size": config.data.size})
        config = config.model_copy(update={"data": data})
    # the same size and augmentation as the MONAI and torchvision pipelines
    alike = config.data.model_copy(update={"augment": "dermoscopy", "size": 224})
    rates, share = images_per_second(config.model_copy(update={"data": alike})), waiting_share(config)
    table = Table("pipeline", "images per second", title=f"One process, {config.data.name}, {alike.size} px")
    for name, rate in rates.items():
        table.add_row(name, f"{rate:.0f}")
    console.print(table)
    console.print(
        f"A step of configs/ham.yaml takes {share['seconds_a_step']:.1f} s, of which {share['waiting_share']:.1%} is "
        "spent waiting for its images"
    )
    return {"data": config.data.name, "size": alike.size, "images_per_second": rates, **share}


def _read(file: Path) -> dict[str, Any]:
    """Returns the earlier results in bench.json, or empty results if there is no file.

    Raises:
        UserError: the file is not a bench.json.
    """
    try:
        report = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"networks": [], "growth": {}}
        if {"networks", "growth"} <= set(report):
            return report
    except (OSError, ValueError, TypeError):
        pass
    raise UserError(f"{file} was not written by dermrw.bench: move it, or name another folder with --out")


def main() -> None:
    """Runs the requested parts, by default all of them. The results of other parts in bench.json are kept."""
    parser = argparse.ArgumentParser(
        "dermrw.bench", description="Measure the cost of reweighting, relative to plain training."
    )
    parser.add_argument("parts", nargs="*", help=f"{', '.join(PARTS)} or none (default: all of them)")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=128, help="training images per step (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="number of timed rounds (default: %(default)s)")
    parser.add_argument(
        "--run", type=path_argument, help="a run on which to compare the cheaper weights with the exact ones"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    parser.add_argument(
        "--out", type=path_argument, default=Path("runs/bench"), help="output folder (default: %(default)s)"
    )
    arguments = parser.parse_args()
    parts = arguments.parts or list(PARTS)
    if set(parts) - {*PARTS, "none"}:
        parser.error(f"choose the parts from {', '.join(PARTS)}, or give none")
    if unknown := set(arguments.networks.split(",")) - set(list_models(module=torchvision.models)):
        parser.error(f"--networks names {', '.join(sorted(unknown))}, which torchvision does not have")
    if arguments.batch < 2 or arguments.repeats < 1:
        parser.error("--batch must be at least 2, and --repeats at least 1")
    with plain_endings("dermrw.bench"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keep_freed_memory()
        device, console = choose_device(arguments.device), Console(width=110)
        arguments.out.mkdir(parents=True, exist_ok=True)
        file = arguments.out / "bench.json"
        report = _read(file)
        facts = {"date": time.strftime("%Y-%m-%d"), "device": str(device), "environment": environment()}
        report.setdefault("measured", {}).update(dict.fromkeys(parts, facts))
        if "networks" in parts:
            names = arguments.networks.split(",")
            others = [group for group in report["networks"] if group["network"] not in names]
            report["networks"] = others + bench_networks(names, arguments.batch, arguments.repeats, device, console)
            report["against_the_fastest_plain"] = against_the_fastest(report["networks"], console)
        if "frozen" in parts:
            report["frozen"] = bench_frozen(arguments.repeats, device, console)
        if "growth" in parts:
            report["growth"] = bench_growth(arguments.repeats, device, console)
        if "pipeline" in parts:
            report["pipeline"] = bench_pipeline(console)
        if arguments.run:
            report["distances"] = {"run": arguments.run.name, "rows": measure(arguments.run)}
            for name, row in report["distances"]["rows"].items():
                console.print(f"{name:24} L1 {row['l1']:.4f}   rank correlation {row['rank_correlation']:.3f}")
        write_atomic(file, json.dumps(report, indent=1).encode())
        write_atomic(arguments.out / "bench.png", plot(report, predicted))
        print(f"{file}, {arguments.out / 'bench.png'}")


if __name__ == "__main__":
    main()
