"""`dermrw train --processes N`: starts the processes with PyTorch's launcher, the one that torchrun uses.

If a process is killed by a signal, the user sees one sentence and no traceback.
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch


def launch(processes: int, arguments: Sequence[str]) -> None:
    """Runs `dermrw ARGUMENTS` in several processes of this machine, and exits with their status on failure."""
    # by default each process would use all cores, and the processes would slow each other down
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    logging.disable(logging.CRITICAL)  # failures are reported below or by the processes
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id="dermrw", rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=0,
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", "dermrw", *arguments)
    except SignalException:  # Ctrl-C or SIGTERM, passed on to the processes: the leading process has printed a message
        sys.exit(130)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            print(
                f"dermrw: process {rank} of {processes} was ended by {name}: repeat the command with the same RUN "
                "to resume from the last checkpoint, with any number of processes",
                file=sys.stderr,
            )
        sys.exit(failure.exitcode if failure.exitcode > 0 else 1)  # the process has printed its own error message
