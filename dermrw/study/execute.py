"""Executes the runs of a plan: one at a time, in parallel on this machine, or as Ray tasks."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dermrw.config import settings_of
from dermrw.datasets.dataset import resolve_root
from dermrw.diagnoses import DIAGNOSES
from dermrw.errors import UserError
from dermrw.evaluation.evaluate import evaluate
from dermrw.models import build_model
from dermrw.study.laboratory import evaluate_head, shared_embeddings
from dermrw.study.plan import Run, read_plan
from dermrw.study.result import (
    collect,
    current_result,
    finished,
    read_result,
    results_folder,
    same_again,
    same_origin,
    summarise,
)
from dermrw.training.run_folder import RUNS, open_run
from dermrw.training.train import train


class Options(NamedTuple):
    """Options of every run of a study."""

    weights: str | None  # a file of ImageNet weights, used instead of torchvision's download
    keep: bool  # keep the checkpoints of finished runs


def command(run: Run, options: Options) -> list[str]:
    """Returns the command of a run. It does not depend on other runs."""
    line = [sys.executable, "-m", "dermrw.study", "--budget", run.budget, "--run", run.name]
    line += ["--weights", options.weights] if options.weights else []
    return [*line, "--keep"] if options.keep else line


def folder_of(run: Run) -> Path:
    """Returns the run's folder."""
    return RUNS / "study" / run.budget / run.name


def execute(run: Run, options: Options) -> None:
    """Trains (or resumes), evaluates and collects a run. Does nothing if its result exists."""
    if finished(run):
        print(f"{run.name} is finished; --again repeats it and compares the results")
        return
    check_weights([run], options)
    folder = folder_of(run)
    _train_and_evaluate(run, folder, options)
    result = collect(run, folder)
    if not options.keep:
        for name in ("last.pt", "best.pt"):
            (folder / name).unlink(missing_ok=True)
    print(f"{run.name}: balanced accuracy {100 * result['balanced_accuracy_as_trained']:.1f} % as trained")


def execute_again(run: Run, options: Options) -> None:
    """Repeats a finished run in a separate folder and prints a comparison. The result file is not changed.

    Raises:
        UserError: there is no result to compare with.
    """
    if not finished(run):
        raise UserError(f"{run.name} has no result yet: run it first, without --again")
    folder = folder_of(run).with_name(f"{run.name}.again")
    _train_and_evaluate(run, folder, options)
    print(f"{run.name} repeated: {same_again(read_result(run), summarise(run, folder))}")
    if not options.keep:
        shutil.rmtree(folder)  # otherwise the next repetition would find it finished


def _train_and_evaluate(run: Run, folder: Path, options: Options) -> None:
    config = run.load(*_weights(run, options))
    if (folder / "config.yaml").is_file() and settings_of(open_run(folder)) != settings_of(config):
        raise UserError(
            f"{folder} contains a run whose settings differ from those of the study: delete it and repeat the command"
        )
    with shared_embeddings(folder, config):
        train(config, folder)
    if config.trains_on_embeddings:
        evaluate_head(folder)
    else:
        evaluate(folder)


def _weights(run: Run, options: Options) -> list[str]:
    return [f"model.weights={options.weights}"] if options.weights and run.method.startswith("ham") else []


def workers() -> int:
    """Returns the number of parallel runs: one per GPU, or one per CPU core without a GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return torch.cuda.device_count() or cores or 1


def find_data(runs: list[Run]) -> None:
    """Finds or downloads the data of these runs once, so that an error is reported once and not for every run."""
    for kind in {run.method.partition("_")[0]: run for run in runs}.values():
        resolve_root(kind.load().data)


def check_weights(runs: list[Run], options: Options) -> None:
    """Checks before training that the HAM10000 runs start from the same weights as the finished runs.

    Raises:
        UserError: the weights can't be loaded, or differ from those of the existing results.
    """
    skin = [run for run in runs if run.method.startswith("ham")]
    if not skin:
        return
    _, origin = build_model(skin[0].load(*_weights(skin[0], options)).model, len(DIAGNOSES))
    planned = [run for run in read_plan().runs(skin[0].budget) if run.method.startswith("ham")]
    existing = next((result for run in planned if (result := current_result(run)) is not None), None)
    if existing is not None and same_origin(existing["weights"]) != same_origin(origin):
        raise UserError(
            f"the finished runs, such as {existing['row']}-{existing['seed']}, started from {existing['weights']}, but "
            f"this one would start from {origin}: name the same weights with --weights FILE, or delete the results in "
            f"{results_folder(existing['budget'])} to start a new study"
        )


class Processes:
    """The processes of the current runs, which end with the study."""

    def __init__(self) -> None:
        self._lock, self._running, self._ended = threading.Lock(), set[subprocess.Popen[bytes]](), False

    def call(self, line: list[str], **options: Any) -> int:
        """Runs a command to its end and returns its exit status."""
        with self._lock:
            if self._ended:
                return -signal.SIGTERM
            process = subprocess.Popen(line, **options)
            self._running.add(process)
        try:
            return process.wait()
        finally:
            with self._lock:
                self._running.discard(process)

    def end(self) -> None:
        """Asks every run to write its checkpoint and stop. No further run is started."""
        with self._lock:
            self._ended = True
            for process in self._running:
                process.terminate()


@contextmanager
def _terminable() -> Iterator[None]:
    """Makes SIGTERM, which schedulers send, end the study like Ctrl-C."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt("the same command resumes the unfinished runs from their checkpoints")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_all(runs: list[Run], options: Options, jobs: int, seconds: float | None) -> Iterator[tuple[Run, int]]:
    """Executes each run in its own process, `jobs` at a time; yields each run with its exit status when it ends.

    After `seconds` no new run is started, and current runs finish. Ctrl-C and SIGTERM stop all runs.
    """
    gpus, started, processes = torch.cuda.device_count(), time.monotonic(), Processes()
    free = list(range(jobs))
    (RUNS / "study").mkdir(parents=True, exist_ok=True)

    def one(run: Run) -> int | None:
        if seconds is not None and time.monotonic() - started > seconds:
            return None
        place = free.pop()
        environment = {**os.environ, "OMP_NUM_THREADS": "1" if not gpus else os.environ.get("OMP_NUM_THREADS", "4")}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = str(place % gpus)
        log = RUNS / "study" / f"{run.name}.log"
        try:
            with log.open("ab") as file:
                return processes.call(command(run, options), stdout=file, stderr=file, env=environment)
        finally:
            free.append(place)

    with _terminable(), ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(one, run): run for run in runs}
        try:
            for future in as_completed(waiting):
                status = future.result()
                if status is not None:
                    yield waiting[future], status
        except BaseException:
            processes.end()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def run_with_ray(runs: list[Run], options: Options) -> Iterator[tuple[Run, int]]:
    """Executes each run as a Ray task, on the cluster of `RAY_ADDRESS` or on a local one if that is not set."""
    try:
        import ray
    except ImportError:
        raise UserError("--ray requires Ray: run pip install 'dermrw[study]'") from None
    gpus, here = torch.cuda.is_available(), str(Path.cwd())

    @ray.remote(num_cpus=1, num_gpus=1 if gpus else 0, max_retries=0)
    def task(line: list[str]) -> int:
        return subprocess.run(line, cwd=here).returncode

    with ray.init(include_dashboard=False, log_to_driver=True):
        waiting = {task.remote(command(run, options)): run for run in runs}
        while waiting:
            done, _ = ray.wait(list(waiting))
            for reference in done:
                yield waiting.pop(reference), ray.get(reference)
