"""The processes that train one model together: torch.distributed where there are several, nothing where there is one.

Every process holds the model, computes its part of each batch, and adds its gradients to the others'. The parts make up
the batch that one process alone would have: the number of processes changes how fast a run is and, but for batch norm's
statistics, which are of the part, not what it computes. So a run can be resumed by another number of processes.
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
PATIENCE = 5  # seconds, by which the leading process has told what happened, and the launcher has ended the others


@dataclass(frozen=True)
class Job:
    """This process among those of the job; the default is a process alone."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    group: dist.ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def part(self, rows: np.ndarray) -> np.ndarray:
        """This process's part of the rows: as equal as can be, in order."""
        return np.array_split(rows, self.world)[self.rank]

    def same(self, make: Callable[[], T]) -> T:
        """What `make()` gives on the leading process, on every process."""
        found: list[Any] = [make() if self.leads else None]
        if self.group is not None:
            dist.broadcast_object_list(found, src=0, group=self.group)
        return found[0]

    def in_turn(self, make: Callable[[], T]) -> T:
        """`make()` on the leading process and then, when what it writes is there, on the others."""
        made = make() if self.leads else None
        self.wait()
        return made if self.leads else make()  # type: ignore[return-value]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on some process."""
        count = torch.tensor(float(flag))
        sum_over([count], self.group)
        return bool(count)

    def gather(self, part: np.ndarray) -> np.ndarray:
        """The parts of all processes, one behind the other."""
        parts: list[Any] = [part] * self.world
        if self.group is not None:
            dist.all_gather_object(parts, part, group=self.group)
        return np.concatenate(parts)

    def spread(self, tensors: list[Tensor]) -> None:
        """Gives every process the leading one's values."""
        if self.group is not None:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0, group=self.group)

    def add_gradients(self, model: nn.Module) -> None:
        """Replaces each gradient by its sum over the processes."""
        sum_over([p.grad for p in model.parameters() if p.grad is not None], self.group)

    def wait(self) -> None:
        """Until every process is here."""
        if self.group is not None:
            dist.barrier(group=self.group)


def launched() -> bool:
    """Whether torchrun, or `--processes`, started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def speaks() -> bool:
    """Whether this process is the one of the job that says what all do."""
    return not launched() or os.environ["RANK"] == "0"


@contextmanager
def join() -> Iterator[Job]:
    """The job that this process belongs to, for as long as it works.

    Only the leading process speaks; of a mistake that all of them meet, it alone tells.

    Raises:
        UserError: another process ended, and the job with it.
    """
    if not launched():
        yield Job()
        return
    rank, local_rank = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise UserError(f"there are {torch.cuda.device_count()} GPUs here: start at most as many processes")
        torch.cuda.set_device(local_rank)
    before = sys.stdout
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        if rank:
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
        yield Job(rank, dist.get_world_size(), local_rank, dist.group.WORLD)
    except KeyboardInterrupt:
        if rank:
            sys.exit(130)  # the leading process tells
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
            f"process {rank} lost the others: one of them ended. The same command with the same RUN goes on from the "
            "last checkpoint, with any number of processes"
        ) from None
    finally:
        sys.stdout = before
        if dist.is_initialized() and not sys.exc_info()[0]:
            dist.destroy_process_group()
