"""Data-parallel training in several processes with torch.distributed; a single process does not use it.

Every process holds the whole model and computes its part of each batch. The gradients are summed over the processes.
The parts together are the batch that a single process would have. The number of processes therefore changes the speed
of a run and, except for the statistics of batch norm, which each process computes from its own part, not its result. A
run can be resumed with another number of processes.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dermrw.errors import UserError
from dermrw.reweight.meta_step import sum_over

T = TypeVar("T")
PATIENCE = 5  # seconds that the others wait: the leading process reports first, and the launcher ends the others


@dataclass(frozen=True)
class Job:
    """The position of this process in the job. The default is a single process."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    group: dist.ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def part(self, rows: np.ndarray) -> np.ndarray:
        """Returns this process's part of the rows. The parts are in order, and their sizes differ by at most one."""
        return np.array_split(rows, self.world)[self.rank]

    def same(self, make: Callable[[], T]) -> T:
        """Calls `make()` on the leading process and returns its result on every process."""
        found: list[Any] = [make() if self.leads else None]
        if self.group is not None:
            dist.broadcast_object_list(found, src=0, group=self.group)
        return found[0]

    def in_turn(self, make: Callable[[], T]) -> T:
        """Calls `make()` on the leading process first, then on the others, which find the files it has written."""
        made = make() if self.leads else None
        self.wait()
        return made if self.leads else make()  # type: ignore[return-value]

    def any(self, flag: bool) -> bool:
        """Returns whether the flag is set on at least one process."""
        count = torch.tensor(float(flag))
        sum_over([count], self.group)
        return bool(count)

    def gather(self, part: np.ndarray) -> np.ndarray:
        """Returns the parts of all processes, concatenated."""
        parts: list[Any] = [part] * self.world
        if self.group is not None:
            dist.all_gather_object(parts, part, group=self.group)
        return np.concatenate(parts)

    def spread(self, tensors: list[Tensor]) -> None:
        """Copies the leading process's values to every process, in place."""
        if self.group is not None:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0, group=self.group)

    def add_gradients(self, model: nn.Module) -> None:
        """Replaces each gradient with its sum over the processes."""
        sum_over([p.grad for p in model.parameters() if p.grad is not None], self.group)

    def wait(self) -> None:
        """Waits until every process has called this method."""
        if self.group is not None:
            dist.barrier(group=self.group)


def launched() -> bool:
    """Returns whether torchrun or `--processes` started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def require_an_image_each(batch_size: int, processes: int) -> None:
    """Checks that each process has an image of every batch.

    Raises:
        UserError: there are more processes than images in a batch.
    """
    if batch_size < processes:
        raise UserError(
            f"train.batch_size={batch_size} must be at least the number of processes, {processes}: increase it, or "
            "start fewer processes"
        )


def prints_messages() -> bool:
    """Returns whether this process prints messages for the whole job."""
    return not launched() or os.environ["RANK"] == "0"


@contextmanager
def join() -> Iterator[Job]:
    """Context manager that joins this process to its job and leaves the job at the end.

    Only the leading process prints. If all processes meet the same error, only the leading one reports it.

    Raises:
        UserError: another process ended, which ends the job.
    """
    if not launched():
        yield Job()
        return
    rank, local_rank = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            gpus = torch.cuda.device_count()
            raise UserError(f"--processes must be at most {gpus}, the number of GPUs of this machine")
        torch.cuda.set_device(local_rank)
    before = sys.stdout
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        if rank:
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
        yield Job(rank, dist.get_world_size(), local_rank, dist.group.WORLD)
    except KeyboardInterrupt:
        if rank:
            sys.exit(130)  # the leading process prints the message
        raise
    except UserError:
        if rank:
            time.sleep(PATIENCE)
        raise
    except RuntimeError as error:
        if not any(word in str(error).lower() for word in ("gloo", "nccl", "connection")):
            raise
        if rank:
            time.sleep(PATIENCE)
        raise UserError(
            f"process {rank} lost its connection because another process ended: repeat the command with the same RUN "
            "to resume from the last checkpoint, with any number of processes"
        ) from None
    finally:
        sys.stdout = before
        if dist.is_initialized() and not sys.exc_info()[0]:
            dist.destroy_process_group()
