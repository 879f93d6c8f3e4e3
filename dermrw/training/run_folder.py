"""The run folder `runs/NAME/`: config.yaml, split.csv, images.json, metrics.jsonl, last.pt, best.pt and files of eval.

A run on a user's own table also has classes.yaml.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from dermrw.config import Config, differences, dump, load_config
from dermrw.datasets.split import SPLIT_COLUMNS
from dermrw.errors import UserError
from dermrw.files import open_regular, write_atomic
from dermrw.labelled.classes import CLASS_FILE, RunClasses, read_run_classes, run_classes_text
from dermrw.strict_yaml import read_yaml

RUNS = Path("runs")
LEFT_OUT = "extra_left_out.csv"
AVERAGED_RUNS = "averaged_runs.json"  # in the folder of an average


def new_run(name: str) -> Path:
    """Returns an unused folder name for a new run, such as runs/ham-20260131-094500, without creating the folder."""
    stem = RUNS / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, n = stem, 2
    while path.exists():
        path, n = stem.with_name(f"{stem.name}-{n}"), n + 1
    return path


def latest_run() -> Path:
    """Returns the run that was started or resumed last."""
    runs = [p.parent for p in RUNS.glob("*/config.yaml")]
    if not runs:
        raise UserError("there is no run in runs/ yet: `make train-ham` starts one")
    return max(runs, key=lambda p: (p / "config.yaml").stat().st_mtime)


def open_run(path: Path) -> Config:
    """Returns the config of an existing run.

    Raises:
        UserError: the folder has no config.yaml, or the config is not complete.
    """
    if not (path / "config.yaml").is_file():
        raise UserError(f"{path} is not a run, since it has no config.yaml: name a folder such as runs/NAME")
    absent = {"name", "data", "model", "objective", "train"} - set(read_yaml(path / "config.yaml"))
    if absent:
        raise UserError(f"{path / 'config.yaml'} lacks {', '.join(sorted(absent))}: restore it, or name another run")
    return load_config(path / "config.yaml")


def averaged_runs(folder: Path) -> list[Path] | None:
    """Returns the folders of the runs whose average was exported into `folder`; None if it holds no average.

    Raises:
        UserError: the list can't be read.
    """
    path = folder / AVERAGED_RUNS
    if not path.is_file():
        return None
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(runs, list) or not runs or not all(isinstance(run, str) and run for run in runs):
            raise ValueError("it is not a list of folders")
        return [Path(run) for run in runs]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read ({error}): export the average again") from None


@contextmanager
def sole_training(path: Path) -> Iterator[None]:
    """Creates the run folder if it is absent and locks it for one training. The lock ends with the process.

    Raises:
        UserError: another training holds the lock, or the folder can't be created or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{path} is in use by another training: wait until it ends, or name another RUN") from None
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"the run folder {path} can't be written to ({reason}): name another RUN") from None
    try:
        yield
    finally:
        with suppress(OSError):
            (path / ".lock").unlink()
        lock.release()
        with suppress(OSError):  # removes the folder only if it is empty: no run was started in it
            path.rmdir()


def start_run(
    path: Path,
    config: Config,
    split: pd.DataFrame,
    facts: RunClasses | None = None,
    left_out: pd.DataFrame | None = None,
) -> None:
    """Writes split.csv, and then config.yaml. A folder with a config.yaml counts as a run.

    Args:
        path: the folder.
        config: of the run.
        split: of the images.
        facts: for classes.yaml, of a user's own table.
        left_out: for extra_left_out.csv, the images of `data.extra` that are not used.
    """
    if facts is not None:
        write_atomic(path / CLASS_FILE, run_classes_text(facts).encode())
    if left_out is not None:
        write_atomic(path / LEFT_OUT, left_out.to_csv(index=False, lineterminator="\n").encode())
    write_atomic(path / "split.csv", split[SPLIT_COLUMNS].to_csv(index=False, lineterminator="\n").encode())
    header = "# Complete: `python -m dermrw train config.yaml` from here reruns this run.\n"
    write_atomic(path / "config.yaml", (header + dump(config)).encode())


def resume_config(path: Path, asked: Config) -> Config:
    """Returns the stored config of the run, with the keys from `asked` that do not affect the result.

    A value that the run resolved from `auto` may be `auto` in `asked`.

    Raises:
        UserError: any other key differs.
    """
    data = {"workers": asked.data.workers, "cache": asked.data.cache, "cache_folder": asked.data.cache_folder}
    train = {"checkpoint_seconds": asked.train.checkpoint_seconds, "tensorboard": asked.train.tensorboard}
    stored = open_run(path)
    stored = stored.model_copy(
        update={"data": stored.data.model_copy(update=data), "train": stored.train.model_copy(update=train)}
    )
    changed = [d for d in differences(asked, stored) if not d.partition(": ")[2].startswith("auto,")]
    if changed:
        raise UserError(
            f"{path} was started with other settings ({'; '.join(changed)}): use them to resume it, or name another RUN"
        )
    (path / "config.yaml").touch()  # `latest_run` returns the run with the newest config.yaml
    return stored


def read_split(path: Path) -> pd.DataFrame:
    """Returns split.csv of the run.

    Raises:
        UserError: the file can't be read, or it is not a valid split.
    """
    table = path / "split.csv"
    fix = "restore it, or start a new run"
    try:
        with open_regular(table) as file:
            split = pd.read_csv(file, dtype=str, keep_default_na=False, na_values=[""])  # a class may be called NA
    except (OSError, ValueError) as error:
        raise UserError(f"{table} can't be read ({' '.join(str(error).split())}): {fix}") from None
    if list(split.columns) != SPLIT_COLUMNS:
        raise UserError(f"{table} does not have the columns {', '.join(SPLIT_COLUMNS)}: {fix}")
    if split.isna().any(axis=None):
        raise UserError(f"{table} has an empty cell: {fix}")
    doubled = split["image_id"][split["image_id"].duplicated()]
    if len(doubled):
        raise UserError(f"{table} lists {doubled.iloc[0]} twice: {fix}")
    if set(split["split"]) != {"train", "validation", "test", "meta"}:
        raise UserError(f"the column split of {table} must contain train, validation, test and meta alone: {fix}")
    crossing = split.groupby("lesion_id")["split"].nunique()
    if (crossing > 1).any():
        raise UserError(f"{table} has lesion {crossing.idxmax()} in more than one part of the split: {fix}")
    return split


def run_facts(path: Path, config: Config) -> RunClasses | None:
    """Returns the content of classes.yaml of a run on a user's own table; None for the data sets that dermrw knows.

    Raises:
        UserError: the file can't be read.
    """
    return read_run_classes(path / CLASS_FILE) if config.data.name == "table" else None


def unit_of(run: Path, config: Config) -> str:
    """Returns the unit of a run's split and of resampling: lesions, or for other data images, groups or patients."""
    facts = run_facts(run, config)
    if facts is not None:
        return facts.unit
    return "images" if config.data.name == "cifar10" else "lesions"


class Log:
    """Writer of metrics.jsonl, with one JSON object per line.

    On resume, the rows written after the checkpoint are cut off, at byte `offset`.
    """

    def __init__(self, path: Path, offset: int) -> None:
        self.path = path
        with self._or_a_sentence():
            self.file = path.open("ab")
            if self.file.tell() < offset:
                print(f"{path} lacks rows of before the checkpoint: the curves of the report will, too", flush=True)
            else:
                self.file.truncate(offset)

    def write(self, row: dict[str, Any]) -> None:
        """Appends a row."""
        with self._or_a_sentence():
            self.file.write(json.dumps(row).encode() + b"\n")
            self.file.flush()

    @contextmanager
    def _or_a_sentence(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.path} can't be written ({error.strerror}): free some space or correct its permissions, then "
                f"repeat the command with RUN={self.path.parent} to resume from the last checkpoint"
            ) from None

    @property
    def offset(self) -> int:
        """Size of the file in bytes."""
        return self.file.tell()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of metrics.jsonl, up to the first line that is not JSON, such as one cut short by a kill."""
    rows = []
    with open_regular(path / "metrics.jsonl") as file:
        lines = file.read().decode("utf-8", "replace").splitlines()
    for line in lines:
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            break
    return [row for row in rows if isinstance(row, dict)]
