"""The values of metrics.jsonl as TensorBoard's event files, for `train.tensorboard=true`."""

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dermrw.errors import UserError, install_command

FOLDER = "tensorboard"  # in the run folder


def require_tensorboard() -> None:
    """Raises a `UserError` if the package tensorboard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "train.tensorboard=true requires the Python package tensorboard: "
            f"run `{install_command('tensorboard')}`, or leave the key out"
        )


def scalars(row: dict[str, Any], codes: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Yields name and value of each number in a row of metrics.jsonl, such as `loss` or `class_weight/mel`."""
    for key, value in row.items():
        if key in ("epoch", "step"):
            continue
        if isinstance(value, dict):
            yield from ((f"{key}/{name}", float(part)) for name, part in value.items())
        elif isinstance(value, list):
            names = codes if len(value) == len(codes) else [str(n) for n in range(len(value))]
            yield from ((f"{key}/{name}", float(part)) for name, part in zip(names, value, strict=True))
        else:
            yield key, float(value)


class TensorBoard:
    """Writer of the event files of a run, in its folder `tensorboard`.

    The event files are a copy of metrics.jsonl. At the start they are written anew from its rows, so that a resumed run
    has each step once, also if the process was killed before it had written its last events, or if `train.tensorboard`
    was set later.
    """

    def __init__(self, run: Path, codes: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
        """Writes the events of `rows`, those of metrics.jsonl up to the checkpoint."""
        from torch.utils.tensorboard import SummaryWriter

        self.codes = codes
        for old in (run / FOLDER).glob("events.out.tfevents.*"):
            old.unlink()
        # purge_step: a TensorBoard that is open now drops the steps that it has read from the old files
        self.writer = SummaryWriter(str(run / FOLDER), purge_step=0)
        for row in rows:
            self.write(row)
        self.flush()

    def write(self, row: dict[str, Any]) -> None:
        """Appends the values of a row of metrics.jsonl."""
        for name, value in scalars(row, self.codes):
            self.writer.add_scalar(name, value, row["step"])

    def flush(self) -> None:
        """Writes the events that are still in memory."""
        self.writer.flush()

    def close(self) -> None:
        """Writes the events that are still in memory and closes the file."""
        self.writer.close()
