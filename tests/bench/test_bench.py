"""Benchmark: all exact methods give the same weights, and FLOPs and memory fit the cost model."""

import json
import re
from pathlib import Path

import pytest
import torch

from dermrw.bench import __main__ as module
from dermrw.bench import report_rate
from dermrw.bench.distances import distance, measure
from dermrw.bench.measure import autocast, build, flops, peak_memory
from dermrw.bench.methods import EXACT, FROZEN_METHODS, METHODS, available_methods, run

CPU = torch.device("cpu")


def weights(name: str) -> torch.Tensor | None:
    case = build("resnet18", 32, 6, 5, CPU)
    case = case._replace(model=case.model.double(), x=case.x.double(), meta_x=case.meta_x.double())
    torch.set_default_dtype(torch.float64)
    try:
        return run({**FROZEN_METHODS, **available_methods()}[name], case, autocast(CPU, "fp32"))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(EXACT & {*available_methods(), "tangents"}))
def test_every_exact_method_gives_the_same_weights(name: str) -> None:
    """Includes the peers that are installed."""
    actual, true = weights(name), weights("double backward")
    assert actual is not None and true is not None and (true > 0).any()
    torch.testing.assert_close(actual.detach(), true.detach(), rtol=0, atol=1e-9)


@pytest.mark.slow
def test_costs() -> None:
    """Relative to plain training, FLOPs follow the cost model and memory is at most 1.3 times as much."""
    case = build("mobilenet_v2", 32, 64, 16, CPU)
    counted = {name: flops(METHODS[name], case, "fp32") for name in ("plain", "exact", "double backward")}
    assert counted["exact"] < module.predicted(64, 16) * counted["plain"]
    assert counted["double backward"] > 1.5 * counted["exact"]
    held = {name: peak_memory(METHODS[name], case, "fp32") for name in ("plain", "exact", "recorded tangents")}
    assert held["plain"] <= held["exact"] < 1.3 * held["plain"] and held["recorded tangents"] > 2 * held["plain"]


def test_distance() -> None:
    one, other = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.0, 0.25, 0.75])
    assert distance(one, one) == (0, pytest.approx(1))
    assert distance(one, other)[0] == pytest.approx(1.5) and distance(one, other)[1] < 0


@pytest.mark.slow
def test_distances_on_a_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = measure(run, batch=8, batches=2, refresh=(2,))
    assert set(found) == {"exact", "finite difference", "last stage", "exact, bf16", "refresh every 2 steps"}
    assert found["exact"]["l1"] < 0.05 < found["last stage"]["l1"]


@pytest.mark.slow
def test_the_command_keeps_what_it_does_not_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.GROWTH, "training batch", [{"batch": 4, "size": 32}])
    for what in set(module.GROWTH) - {"training batch"}:
        monkeypatch.delitem(module.GROWTH, what)
    common = ["bench", "--out", str(tmp_path), "--repeats", "1", "--batch", "4", "--networks", "resnet18"]
    monkeypatch.setattr(module, "available_methods", lambda: {name: METHODS[name] for name in ("plain", "exact")})
    monkeypatch.setattr(module, "IN_BF16", ("plain", "exact"))
    monkeypatch.setattr(module, "SIZE", 32)
    monkeypatch.setattr(module, "META", 2)
    monkeypatch.setattr("sys.argv", [*common, "networks"])
    module.main()
    monkeypatch.setattr(module, "FROZEN", {"names": ("resnet18",), "batch": 6, "size": 32})
    monkeypatch.setattr("sys.argv", [*common, "growth", "frozen"])
    module.main()
    report = json.loads((tmp_path / "bench.json").read_text())
    assert report["networks"][0]["rows"]["plain"]["time_ratio"] == 1
    assert set(report["measured"]) == {"networks", "growth", "frozen"}
    frozen = report["frozen"][0]
    assert 0 < frozen["zero_share"] < 1 and set(frozen["rows"]) == {"plain", "exact", "tangents"}
    assert frozen["rows"]["exact"]["flops_ratio"] < 4 / 3 + 2 / 6 < frozen["rows"]["tangents"]["flops_ratio"]
    assert report["growth"]["training batch"][0]["flops_ratio"] > 1
    assert (tmp_path / "bench.png").stat().st_size > 5000


def test_the_time_of_a_reports_figures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["report_rate", "--images", "60"])
    report_rate.main()
    assert re.fullmatch(r"60 images: \d+ s of CPU time, \d+ MB more memory\n", capsys.readouterr().out)
