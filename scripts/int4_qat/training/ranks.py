"""Train in several processes on one node, one GPU each, which torch's elastic launcher starts.

Each process, a rank, holds the model and takes its share of every batch; DistributedDataParallel averages the
gradients. Only the first rank writes.
"""

import contextlib
import os
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from torch import distributed
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from int4_qat.system import parallel
from int4_qat.system.errors import InputError

REASON = "INT4_QAT_REASON"  # the file for the reason of the first process that fails
LAUNCHER = "INT4_QAT_LAUNCHER"  # the launcher's process id
SHUTDOWN_SECONDS = 50  # after SIGTERM, for the step under way and its checkpoint


def launched() -> bool:
    """Return whether torch's launcher started this process."""
    return distributed.is_torchelastic_launched()


def count() -> int:
    """Return how many processes train together."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def rank() -> int:
    """Return the number of this process among those that train together, from 0."""
    return int(os.environ["RANK"]) if launched() else 0


def launch(processes: int, program: Sequence[str]) -> str | None:
    """Run a Python program in several processes at once, and wait for them; return the signal that ended them, or None.

    If one fails, the others end too. Raise InputError then, with the reason that the first one gave.
    """
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {REASON: str(Path(folder) / "reason"), LAUNCHER: str(os.getpid())}
        try:
            return _run(processes, program)
        except ChildFailedError as error:
            failed, failure = error.get_first_failure()
            reason = Path(os.environ[REASON])
            if reason.exists():
                raise InputError(reason.read_text()) from None
            ended = f"process {failed} of {processes} failed with exit code {failure.exitcode}"
            raise InputError(f"finetune: {ended}") from None


def end_with_launcher() -> None:
    """Ask the kernel for SIGTERM when the launcher dies, as torch does not; raise InputError if it has died already.

    Otherwise these processes would train on after a kill, while the launcher's claim to their GPUs has ended.
    """
    parallel.end_with_parent()
    if os.getppid() != int(os.environ[LAUNCHER]):
        raise InputError("finetune: expected the launcher of this process, found that it had been killed")


def give_reason(error: InputError) -> None:
    """Tell the launcher why this process fails, unless another process has done so."""
    with contextlib.suppress(FileExistsError), open(os.environ[REASON], "x") as reason:
        reason.write(str(error))


def _run(processes: int, program: Sequence[str]) -> str | None:
    """Run a program in several processes; return the name of the signal that ended them, or None."""
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
    except SignalException as error:
        return error.sigval.name
    return None


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


def least(number: int, device: torch.device | str) -> int:
    """Return the least of a number over all processes."""
    return -most(-number, device)


def most(number: int, device: torch.device | str) -> int:
    """Return the greatest of a number over all processes."""
    if count() == 1:
        return number
    of_all = torch.tensor(number, device=device)
    distributed.all_reduce(of_all, distributed.ReduceOp.MAX)
    return int(of_all)


def any_of(flag: bool, device: torch.device) -> bool:
    """Return whether a flag is set in any process."""
    return total(float(flag), device) > 0


def wait_for_all() -> None:
    """Return when all processes have reached this call."""
    if count() > 1:
        distributed.barrier()
