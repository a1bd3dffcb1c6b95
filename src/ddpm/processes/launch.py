"""Starting the processes of a run on this machine, with torch's elastic launcher, which watches them."""

from __future__ import annotations

import logging
import pickle
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

import torch

from ddpm.errors import ConfigError, DdpmError, RunError
from ddpm.processes.joining import was_launched

CALL_NAME = "call.pickle"
"""Name of the file that tells a process what to do (`ddpm.processes.worker`)."""

RESTARTS = 3
"""How often the processes are started anew, from the last checkpoint, after one of them was killed or crashed."""


def launch(call: Callable[..., object], *words: object, processes: int, **named: object) -> None:
    """Do a call in several processes of this machine, and wait for them; each joins the others with `joined`.

    Where a process dies, all are started anew: the call must go on from what it has saved.

    Args:
        call: a function of a module.
        words: its arguments.
        processes: how many.
        named: its arguments by name.

    Raises:
        ConfigError: if this machine has too few GPUs, or this process is itself one of several.
        DdpmError: what a process met.
        RunError: if a process died, and died again after every restart.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    check_processes(processes)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="ddpm-") as folder:
        (Path(folder) / CALL_NAME).write_bytes(pickle.dumps((call, words, named)))
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=RESTARTS,
        )
        died = None
        try:
            elastic_launch(config, sys.executable)("-m", "ddpm.processes.worker", folder)
        except SignalException:
            return  # the processes were sent the same signal, have saved, and have said so
        except ChildFailedError as error:
            died = error
        met = error_in(Path(folder))
        if met is not None:
            raise met
        if died is not None:
            first = min(died.failures.values(), key=lambda failure: failure.timestamp)
            raise RunError(
                f"process {min(died.failures)} of {processes} ended with exit code {first.exitcode}, also after "
                f"{RESTARTS} new starts; its last words are above. The same command goes on from the last checkpoint"
            ) from died


def check_processes(processes: int) -> None:
    """Refuse a number of processes that this machine cannot start.

    Raises:
        ConfigError: saying why.
    """
    if was_launched():
        raise ConfigError("--processes inside of torchrun, which has started the processes already; leave it out")
    if processes < 1:
        raise ConfigError(f"--processes {processes}; expected at least 1")
    gpus = torch.cuda.device_count()
    if gpus and processes > gpus:
        raise ConfigError(f"--processes {processes}, but this machine has {gpus} GPU(s); expected at most as many")


def error_in(folder: Path) -> DdpmError | None:
    """Return the error that a process has left in the folder, the first one's before others'; none: there is none."""
    for path in sorted(folder.glob("error-*.pickle")):
        error = pickle.loads(path.read_bytes())
        assert isinstance(error, DdpmError)
        return error
    return None


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether an error of a collective says that another process is gone."""
    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "connection refused")
    return any(word.lower() in str(error).lower() for word in words)
