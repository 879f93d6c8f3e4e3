"""Time, FLOPs and memory of one training step for each method, measured alternately with plain training."""

import contextlib
import statistics
import time
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dermrw.bench.methods import Case, Step, run
from dermrw.config import Model
from dermrw.models import build_model, train_mode

CLASSES = 7
MEBIBYTE = 2**20


def build(
    name: str,
    size: int,
    batch: int,
    meta: int,
    device: torch.device,
    channels_last: bool = False,
    frozen: bool = False,
    **options: Any,
) -> Case:
    """Returns a network with random weights and random images; the cost of a step hardly depends on either.

    `frozen` keeps the statistics of batch norm fixed. `options` are those of the torchvision model.
    """
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    if options:
        model = torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **options)
    else:
        model, _ = build_model(Model(backbone=name, weights="none"), CLASSES)
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():  # parameters initialised to zero (ConvNeXt, residual branches) would make all weights equal
                p.normal_(std=0.1)
    train_mode(model, "batch_norm" if frozen else "none")
    x, meta_x = (torch.randn(n, 3, size, size).to(memory_format=layout) for n in (batch, meta))
    y, meta_y = torch.arange(batch) % CLASSES, torch.arange(meta) % CLASSES
    return Case(model.to(device).to(memory_format=layout), *(t.to(device) for t in (x, y, meta_x, meta_y)))


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Returns the autocast context for a step in `fp32` or `bf16`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def _forget(model: nn.Module) -> None:
    for p in model.parameters():
        p.grad = None


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def times(steps: Mapping[str, Step], case: Case, precision: str, repeats: int) -> dict[str, list[float]]:
    """Returns the seconds of each method's steps, in rounds over all methods after one warm-up round.

    A method that fails is left out.
    """
    device = case.x.device
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name in list(seconds):
            _forget(case.model)
            _wait(device)
            start = time.perf_counter()
            try:
                run(steps[name], case, autocast(device, precision))
            except (RuntimeError, NotImplementedError, TypeError, AttributeError) as error:
                print(f"  {name} is left out, because a step failed: {' '.join(str(error).split())[:100]}")
                del seconds[name]
                continue
            _wait(device)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def flops(step: Step, case: Case, precision: str) -> int:
    """Returns the FLOPs of a step, counted by PyTorch for each operator."""
    _forget(case.model)
    with FlopCounterMode(display=False) as counter:
        run(step, case, autocast(case.x.device, precision))
    return int(counter.get_total_flops())


def peak_memory(step: Step, case: Case, precision: str) -> float:
    """Returns the peak memory of a step in MiB, gradients included, beyond the memory allocated before the step."""
    device = case.x.device
    _forget(case.model)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run(step, case, autocast(device, precision))
        return (torch.cuda.max_memory_allocated(device) - before) / MEBIBYTE
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run(step, case, autocast(device, precision))
    assert profile.profiler is not None
    events = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(0, int(np.cumsum([n for _, n in changes]).max())) / MEBIBYTE


def compare(
    steps: Mapping[str, Step], case: Case, precision: str, repeats: int, costs: bool = True
) -> dict[str, dict[str, Any]]:
    """Returns seconds, FLOPs and memory of each method, each also as a ratio to plain training.

    The time ratio is the median of the ratios within each round, with its quartiles. A period in which the machine is
    slow then affects both times of a ratio.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seconds = times(steps, case, precision, repeats)
        rows: dict[str, dict[str, Any]] = {}
        for name, values in seconds.items():
            ratios = [v / p for v, p in zip(values, seconds["plain"], strict=True)]
            quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
            rows[name] = {
                "seconds": statistics.median(values),
                "time_ratio": statistics.median(ratios),
                "time_ratio_quartiles": [quartiles[0], quartiles[2]],
            }
            if costs:
                rows[name]["flops"] = flops(steps[name], case, precision)
                rows[name]["memory_mib"] = peak_memory(steps[name], case, precision)
        for row in rows.values():
            for key in ("flops", "memory_mib") if costs else ():
                row[f"{key.removesuffix('_mib')}_ratio"] = row[key] / rows["plain"][key]
    return rows
