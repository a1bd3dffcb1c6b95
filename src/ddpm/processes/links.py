"""Trying the links between processes before a long run: do all answer, how fast are they."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta

import torch
from torch import distributed as dist

from ddpm.errors import RunError
from ddpm.terminal import in_bytes

SIZES = (2**10, 2**20, 2**24, 2**26)
"""Bytes of the all-reduces that are tried, from what latency decides to what bandwidth does."""

BUDGET = 8.0
"""Seconds after which no larger size is begun."""

WHAT_TO_CHECK = (
    "check that the machines reach one another on all ports (firewall), and that GLOO_SOCKET_IFNAME and "
    "NCCL_SOCKET_IFNAME name the network between them"
)

_ANSWER = timedelta(seconds=10)
_REPEATS = 3


def check_links(hosts: Sequence[str], channel: dist.ProcessGroup) -> str:
    """Sum numbers over all processes, and return in words how fast that was: latency and bandwidth.

    Takes ten seconds at most, a fraction of one between processes of one machine.

    Args:
        hosts: the machine of each process.
        channel: between CPUs; gradients of GPUs travel over NCCL, which cannot tell who is missing.

    Raises:
        RunError: if a process does not answer, or sums are wrong; naming the process and its machine.
    """
    try:
        dist.monitored_barrier(timeout=_ANSWER, wait_all_ranks=True, group=channel)
    except RuntimeError as error:
        raise RunError(silent_processes(str(error), hosts)) from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    end, latency, bandwidth, largest = time.monotonic() + BUDGET, 0.0, 0.0, SIZES[0]
    for size in SIZES:
        seconds = _seconds(size, device)
        latency, largest = latency or seconds, size
        bandwidth = size / seconds
        # Each process has its own clock, but all must leave the loop together.
        slow = torch.tensor(float(time.monotonic() + 8 * _REPEATS * seconds > end))
        dist.all_reduce(slow, dist.ReduceOp.MAX)
        if slow:
            break
    count, backend = len(set(hosts)), "NCCL" if device == "cuda" else "gloo"
    return (
        f"{len(hosts)} processes on {count} machine{'s' * (count > 1)} ({backend}): a sum over all of them "
        f"takes {1e3 * latency:.2g} ms, and of {in_bytes(largest)} {1e3 * largest / bandwidth:.2g} ms "
        f"({bandwidth / 1e9:.2g} GB/s)"
    )


def _seconds(size: int, device: str) -> float:
    """Return the median seconds of an all-reduce of `size` bytes, after checking that it is right."""
    values = torch.ones(size // 4, device=device)
    dist.all_reduce(values)
    count = dist.get_world_size()
    if not bool((values == count).all()):
        raise RunError(
            f"a sum of ones over {count} processes is not {count}; the links between the machines garble data"
        )
    times = []
    for _ in range(_REPEATS):
        start = time.monotonic()
        dist.all_reduce(values)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.monotonic() - start)
    return sorted(times)[_REPEATS // 2]


def silent_processes(message: str, hosts: Sequence[str]) -> str:
    """Return a sentence on who did not answer, from what the barrier says of it."""
    named = message.split("Ranks", 1)[-1] if "Ranks" in message else message.split("Rank", 1)[-1]
    numbers = [int(word) for word in named.split("failed", 1)[0].replace(",", " ").split() if word.isdigit()]
    who = ", ".join(f"process {rank} on {hosts[rank]}" for rank in numbers if rank < len(hosts)) or "a process"
    return (
        f"{who} met the others, but did not answer within {_ANSWER.seconds} s; look whether it still runs, and "
        f"{WHAT_TO_CHECK}"
    )
