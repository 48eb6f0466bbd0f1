"""Train in several processes on one node, one GPU each, which torch's elastic launcher starts.

Each process, a rank, holds the model and takes its share of every batch; DistributedDataParallel averages the
gradients. The first rank writes the results.
"""

import os
import sys
import uuid
from collections.abc import Sequence

import torch
from accelerate import PartialState
from torch import distributed
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from int4_qat.system.errors import InputError

RANK, COUNT = "RANK", "WORLD_SIZE"  # as the launcher sets them
SHUTDOWN_SECONDS = 50  # after SIGTERM, for the step under way and its checkpoint


def count() -> int:
    """Return how many processes train together."""
    return int(os.environ.get(COUNT, 1))


def rank() -> int:
    """Return the number of this process among those that train together, from 0."""
    return int(os.environ.get(RANK, 0))


def launch(processes: int, program: Sequence[str]) -> None:
    """Run a Python program in the given number of processes at once, and wait for them.

    Raise InputError if one fails, which ends the others, or if SIGTERM ends all.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        virtual_local_rank=True,  # each process sees only its own GPU
        shutdown_timeout=SHUTDOWN_SECONDS,
        logs_specs=DefaultLogsSpecs(),
    )
    try:
        elastic_launch(config, sys.executable)(*program)
    except ChildFailedError as error:
        failed, failure = error.get_first_failure()
        raise InputError(f"finetune: process {failed} of {processes} ended with exit code {failure.exitcode}") from None
    except SignalException:
        raise InputError("finetune: stopped by SIGTERM; the next run goes on from the last checkpoint") from None


def join(device: str) -> None:
    """Connect this process and the others of the training with each other."""
    if count() > 1:
        PartialState(cpu=device == "cpu")


def leave() -> None:
    """Wait for the other processes, then leave their group."""
    if count() > 1:
        distributed.barrier()
        distributed.destroy_process_group()


def total(number: torch.Tensor | float, device: torch.device) -> float:
    """Return the sum of a number over all processes."""
    if count() == 1:
        return float(number)
    of_all = torch.as_tensor(number, dtype=torch.float64, device=device).clone()
    distributed.all_reduce(of_all)
    return of_all.item()


def any_of(flag: bool, device: torch.device) -> bool:
    """Return whether a flag is set in any process."""
    return total(float(flag), device) > 0


def wait_for_all() -> None:
    """Return when all processes have reached this call."""
    if count() > 1:
        distributed.barrier()
