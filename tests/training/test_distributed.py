"""Two processes against one: the weights, the training, and a worker that is killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.multiprocessing as mp
from conftest import command
from PIL import Image
from tools import two_processes

from dermrw.config import load_config
from dermrw.datasets.sample_drawing import draw_lesion
from dermrw.reweight.meta_step import reweighted_losses
from dermrw.training.checkpoint import load_checkpoint
from dermrw.training.distributed import Job
from dermrw.training.run_folder import read_log
from dermrw.training.train import train

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_weights_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    mp.spawn(two_processes.weigh, (2, str(tmp_path)), nprocs=2)
    model = two_processes.network()
    data = two_processes.data()
    model(data[0])
    losses, weights = reweighted_losses(model, *data)
    (weights * losses).sum().backward()
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    torch.testing.assert_close(torch.cat([w for w, _ in found]), weights, rtol=0, atol=1e-12)
    for _, gradients in found:
        for p, gradient in zip(model.parameters(), gradients, strict=True):
            torch.testing.assert_close(gradient, p.grad, rtol=1e-9, atol=1e-12)


def test_parts_cover_every_row_once() -> None:
    rows = np.arange(17)
    parts = [Job(rank, 3).part(rows) for rank in range(3)]
    assert np.concatenate(parts).tolist() == rows.tolist()
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


# SGD: Adam's first steps divide rounding by rounding
SETTINGS = [
    "data.name=sample", "data.size=32", "data.meta=rule", "model.backbone=small_cnn", "model.weights=none",
    "model.freeze=batch_norm",
    "train.optimizer=sgd", "train.lr=1e-3", "train.batch_size=17", "train.precision=fp32", "train.channels_last=false",
    "train.device=cpu", "objective.refresh_every=3",
]  # fmt: skip


def start(sample: Path, run: Path, processes: int, *overrides: str) -> subprocess.Popen:
    arguments = [*SETTINGS, f"data.root={sample}", *overrides, "--run", str(run), "--processes", str(processes)]
    environment = {k: v for k, v in os.environ.items() if k != "HAM10000_DIR"}
    return subprocess.Popen(
        [sys.executable, "-m", "dermrw", "train", "sample", *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def assert_same_validation(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Compares two rows of metrics.jsonl; the loss, unlike the decisions, shows how the sums were rounded."""
    losses = [row["validation"].pop("balanced_loss") for row in (one, other)]
    assert one == other and losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_training_in_two_processes_is_training_in_one(sample: Path, tmp_path: Path) -> None:
    more = ["train.epochs=2", "data.meta_views=2", "objective.warm_up=0.2"]
    job = start(sample, tmp_path / "two", 2, *more)
    train(load_config(None, ["name=sample", *SETTINGS, f"data.root={sample}", *more]), tmp_path / "one")
    out = job.communicate(timeout=1200)[0]
    assert job.returncode == 0, out
    assert out.count("Run ") == 1 and "2 processes" in out  # one of them speaks
    one, two = (load_checkpoint(tmp_path / name / "last.pt") for name in ("one", "two"))
    for key, value in one["model"].items():
        torch.testing.assert_close(two["model"][key], value, rtol=0, atol=2e-5)
    assert torch.equal(two["objective"]["seen"], one["objective"]["seen"])
    first, second = (pd.read_csv(tmp_path / name / "weights.csv") for name in ("one", "two"))
    assert first["weight"].to_numpy() == pytest.approx(second["weight"].to_numpy(), abs=0.1, nan_ok=True)
    for a, b in zip(read_log(tmp_path / "one"), read_log(tmp_path / "two"), strict=True):
        assert a.keys() == b.keys()
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        if "class_weight" in a:
            assert a["class_weight"] == pytest.approx(b["class_weight"], abs=2e-3)
            assert a["zero_share"] == pytest.approx(b["zero_share"], abs=0.02)
        if "loss" not in a:
            assert_same_validation(a, b)


@pytest.mark.slow
def test_images_of_a_set_of_classes_in_two_processes(sample: Path, tmp_path: Path) -> None:
    """With weights from the label noise: the shares of the classes follow the weights of all processes."""
    rows = ["image,label"]
    for n in range(40):
        pixels = draw_lesion("nv", np.random.default_rng([n, 5]), np.random.default_rng([n, 6]), 60, 80)
        Image.fromarray(pixels).save(tmp_path / f"b{n}.png")
        rows.append(f"b{n},benign")
    (tmp_path / "benign.csv").write_text("\n".join(rows))
    keys = ["data.name=ham10000", f"data.extra={tmp_path / 'benign.csv'}", "data.extra_benign=sum", "train.epochs=2"]
    keys += ["objective=noise_weights", "objective.loss=balanced_softmax", f"data.root={sample}"]
    settings = [item for item in SETTINGS if not item.startswith(("data.name", "objective"))]
    one, two = (tmp_path / "one", tmp_path / "two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(two_processes.train_part, (2, port, [*settings, *keys], str(two)), nprocs=2)
    train(load_config(None, [*settings, *keys]), one)
    states = [load_checkpoint(run / "last.pt")["objective"] for run in (one, two)]
    assert not torch.equal(states[0]["values"], torch.ones_like(states[0]["values"]))
    for key in ("values", "shares", "log_odds"):
        torch.testing.assert_close(states[1][key], states[0][key], rtol=1e-3, atol=1e-4)
    for a, b in zip(read_log(one), read_log(two), strict=True):
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
            assert a["class_weight"] == pytest.approx(b["class_weight"], abs=2e-3) and sum(a["class_weight"]) < 1
        else:
            assert_same_validation(a, b)
            assert a["samples"]["benign"] > 30


def worker(job: subprocess.Popen, rank: int) -> int:
    """The process id of a worker."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if parent == job.pid and f"RANK={rank}".encode() in environment:
            return int(folder.name)
    raise LookupError(rank)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the worker in /proc")
def test_a_killed_worker_ends_the_job_and_one_process_resumes_it(sample: Path, tmp_path: Path) -> None:
    run, settings = tmp_path / "run", ["train.epochs=3", "train.checkpoint_seconds=0.001"]
    job = start(sample, run, 2, *settings)
    deadline = time.monotonic() + 1200
    while not (run / "last.pt").exists() and time.monotonic() < deadline and job.poll() is None:
        time.sleep(0.01)
    os.kill(worker(job, 1), signal.SIGKILL)
    out = job.communicate(timeout=1200)[0]
    assert job.returncode not in (0, None)
    assert "process 1 of 2 was ended by SIGKILL" in out and "to resume from the last checkpoint" in out, out
    assert "Traceback" not in out
    assert load_checkpoint(run / "last.pt")["epoch"] < 3, "the run was over before the signal"
    train(load_config(None, ["name=sample", *SETTINGS, f"data.root={sample}", *settings]), run)
    steps = [row["step"] for row in read_log(run) if "loss" in row]
    assert load_checkpoint(run / "last.pt")["epoch"] == 3 and steps == sorted(set(steps))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.batch_size=2", "train.batch_size=2 must be at least the number of processes, 3"),
        ("train.device=cuda:99", "train.device=cuda:99 can't be used here"),
        ("train.epoch=3", "did you mean train.epochs"),
    ],
)
def test_mistakes_are_named_before_the_processes_start(
    override: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dermrw.training.launch.launch", lambda *_: pytest.fail("the processes were started"))
    with pytest.raises(SystemExit) as caught:
        command(monkeypatch, "train", "sample", *SETTINGS, override, "--processes", "3")
    assert caught.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.slow
def test_a_mistake_that_the_processes_find_ends_in_their_sentence(tmp_path: Path) -> None:
    """The launcher adds no message of its own and exits with their status."""
    ended = subprocess.run(
        [sys.executable, "-c", "from dermrw.training.launch import launch; launch(2, ['train', 'absent.yaml'])"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=1200,
    )  # fmt: skip
    assert ended.returncode == 2 and "there is no config file absent.yaml" in ended.stderr, ended.stderr
    assert "Traceback" not in ended.stderr and "RUN" not in ended.stderr, ended.stderr
