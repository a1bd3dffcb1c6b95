"""Several processes that do the same, as a launcher would start them, from a server that has torch imported already."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from ddpm.processes import Group, joined

PRELOADED = ["ddpm.training.run", "ddpm.processes.replicas", "safetensors.torch", "sklearn.datasets", "filelock"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


def together(
    work: Callable[..., Any], *arguments: Any, size: int = 2, seconds: float = 300.0, **named: Any
) -> list[Any]:
    """Call ``work(group, ...)`` in `size` processes that have joined; return what each returns or raises."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOADED)
    port, members = free_port(), []
    for rank in range(size):
        receiver, sender = server.Pipe(duplex=False)
        process = server.Process(target=_member, args=(sender, rank, size, port, work, arguments, named), daemon=True)
        process.start()
        sender.close()
        members.append((process, receiver))
    results = []
    try:
        for rank, (_, receiver) in enumerate(members):
            assert receiver.poll(seconds), f"process {rank} of {size} does not end"
            results.append(receiver.recv())
    finally:
        for process, _ in members:
            process.join(5)
            process.kill()
    return results


def _member(
    sender: Connection,
    rank: int,
    size: int,
    port: int,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    named: dict[str, Any],
) -> None:
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}
    torch.set_num_threads(1)
    try:
        with joined() as group:
            result = work(group, *arguments, **named)
    except Exception as error:
        traceback.print_exc()
        result = type(error)(str(error))
    sender.send(result)


def alone(work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call ``work(group, *arguments, **named)`` here, in a group of one."""
    return work(Group(), *arguments, **named)
