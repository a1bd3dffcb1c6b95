"""Joining the group that a launcher (torchrun, ``--processes``) has started this process for."""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from ddpm.errors import ConfigError, RunError
from ddpm.processes.group import ALONE, Group
from ddpm.processes.links import WHAT_TO_CHECK, check_links

MEETING = timedelta(seconds=60)
"""How long processes that were started together wait for one another."""

_GRADIENTS = timedelta(minutes=10)  # between the first and the last process that has its gradient ready
_AGREEMENTS = timedelta(days=30)  # the others wait while the first evaluates; if it dies, they know at once


def was_launched() -> bool:
    """Whether this process is one of several that a launcher has started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def refuse_launched(what: str) -> None:
    """Refuse work that one process does.

    Raises:
        ConfigError: if this process is one of several.
    """
    if was_launched():
        raise ConfigError(f"{what} runs in one process, not in {os.environ['WORLD_SIZE']}; start it without torchrun")


@contextmanager
def joined() -> Iterator[Group]:
    """Join the processes that were started with this one, try the links to them, and leave at the end.

    Reads RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as every launcher sets them. Each
    process takes the GPU of its local rank, or its share of the CPU's threads.

    Raises:
        RunError: if a process does not come, or its links fail, saying which and what to look at.
    """
    if not was_launched():
        yield ALONE
        return
    local_rank, local_size = _place()
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        backend = "cpu:gloo,cuda:nccl"
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // local_size))
    store, rank, size, hosts = _meet()
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_GRADIENTS)
        channel = dist.new_group(backend="gloo", timeout=_AGREEMENTS)
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"the {size} processes on {', '.join(sorted(set(hosts)))} have met, but cannot connect to one another "
            f"({_first_line(error)}); {WHAT_TO_CHECK}"
        ) from error
    try:
        with warnings.catch_warnings():
            # A network's output may be a view; nothing here writes into one.
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
            yield Group(rank, size, local_rank, local_size, hosts, channel, check_links(hosts, channel))
    finally:
        dist.destroy_process_group()


def _place() -> tuple[int, int]:
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    gpus = torch.cuda.device_count()
    if gpus and local_size > gpus:
        raise ConfigError(f"{local_size} processes on a machine with {gpus} GPU(s); start one for each GPU at most")
    return local_rank, local_size


def _meet() -> tuple[Store, int, int, tuple[str, ...]]:
    """Return the store that the launcher offers, this process's number, their count, and the machine of each."""
    address, port = (os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        store, rank, size = next(iter(rendezvous("env://", timeout=MEETING)))
    except (RuntimeError, ValueError) as error:
        if "EADDRINUSE" in str(error) or "address already in use" in str(error):
            raise RunError(
                f"port {port} on {address} is in use, perhaps by another run; give the launcher another one "
                "(torchrun --master-port, or --rdzv-endpoint=HOST:PORT)"
            ) from error
        if rank == 0:
            raise RunError(
                f"not all of the {size} processes came to {address}:{port} within {MEETING.seconds} s "
                f"({_first_line(error)}); look at the output of those that are missing, and {WHAT_TO_CHECK}"
            ) from error
        raise RunError(
            f"process {rank} on {socket.gethostname()} cannot reach the first one at {address}:{port} "
            f"({_first_line(error)}); {WHAT_TO_CHECK}"
        ) from error
    # The restarts of a run meet in one store, so each has names of its own.
    met = PrefixStore(f"ddpm/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    met.set(f"host/{rank}", socket.gethostname())
    return PrefixStore("torch", met), rank, size, _hosts(met, size)


def _hosts(store: Store, size: int) -> tuple[str, ...]:
    end = time.monotonic() + MEETING.total_seconds()
    missing = list(range(size))
    while missing and time.monotonic() < end:
        missing = [rank for rank in missing if not store.check([f"host/{rank}"])]
        time.sleep(0.01 if missing else 0.0)
    known = [rank for rank in range(size) if rank not in missing]
    hosts = {rank: store.get(f"host/{rank}").decode() for rank in known}
    if missing:
        there = ", ".join(f"{rank} on {host}" for rank, host in hosts.items())
        raise RunError(
            f"process {', '.join(map(str, missing))} of {size} did not come within {MEETING.seconds} s; those that did "
            f"are {there}. Look at the output of the missing ones, and {WHAT_TO_CHECK}"
        )
    return tuple(hosts[rank] for rank in range(size))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
