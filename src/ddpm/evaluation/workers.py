"""Filling shards, in this process or in several; they share no state but the files."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

import torch

from ddpm.data import Progress
from ddpm.errors import DdpmError, RunError
from ddpm.evaluation.shards import Job, Worker

_LOOK_EVERY = 0.2  # seconds between two looks at what is done


def run_job(job: Job, progress: Progress, *, processes: int = 1) -> None:
    """Make every shard that is not there yet; killed at any moment, a second call goes on.

    Args:
        job: what to make; with more than one process, made from paths.
        progress: told of every picture.
        processes: each takes every `processes`-th of the missing shards, and its share of the threads.

    Raises:
        DdpmError: what a worker met, or that it was killed.
    """
    shards = job.shards()
    missing = [shard for shard in range(len(shards)) if not job.is_done(shard)]
    _report(progress, job.count - sum(len(shards[shard]) for shard in missing))
    if processes == 1 or len(missing) < 2:
        worker, whole = Worker(job), _Whole(progress)
        for shard in missing:
            worker.fill(shard, whole.add)
        return
    _run_elsewhere(job, missing, progress, min(processes, len(missing)))


def _run_elsewhere(job: Job, missing: Sequence[int], progress: Progress, processes: int) -> None:
    threads = max(1, torch.get_num_threads() // processes)
    crew = [
        _start(replace(job, device=_device_of(first, job.device)), missing[first::processes], threads)
        for first in range(processes)
    ]
    try:
        waiting = set(missing)
        while True:
            running = any(member.process.is_alive() for member in crew)
            done = {shard for shard in waiting if job.is_done(shard)}
            waiting -= done
            _report(progress, sum(len(job.shards()[shard]) for shard in done))
            for member in crew:
                member.raise_failure()
            if not running:
                return
            time.sleep(_LOOK_EVERY)
    finally:
        for member in crew:
            member.process.terminate()
            member.process.join()


@dataclass(frozen=True)
class _Member:
    """A process of the crew, and the end of the pipe that it reports its failure to."""

    process: SpawnProcess
    outcome: Connection

    def raise_failure(self) -> None:
        """Raise what the process met, or say that it was killed."""
        if self.process.is_alive():
            return
        with suppress(EOFError):  # nothing was sent
            if self.outcome.poll():
                raise self.outcome.recv()
        if self.process.exitcode:
            raise RunError(
                f"a process of the evaluation was killed (exit code {self.process.exitcode}), perhaps for want of "
                "memory; use fewer --processes: the same command goes on from what is done"
            )


def _device_of(process: int, device: str) -> str:
    """Return the GPU of a process, in turn, where "cuda" leaves it open."""
    return f"cuda:{process % torch.cuda.device_count()}" if device == "cuda" else device


def _start(job: Job, shards: Sequence[int], threads: int) -> _Member:
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(job, shards, threads, sender), daemon=True)
    process.start()
    return _Member(process, receiver)


def _work(job: Job, shards: Sequence[int], threads: int, outcome: Connection) -> None:
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    try:
        worker = Worker(job)
        for shard in shards:
            if parent is not None and not parent.is_alive():
                return
            worker.fill(shard, lambda done: None)
    except DdpmError as error:
        outcome.send(error)
    except KeyboardInterrupt:
        return
    except Exception:
        outcome.send(RuntimeError(f"in a process of the evaluation:\n{traceback.format_exc()}"))


class _Whole:
    """Tells a progress of whole pictures, where parts of them are done."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.done, self.told = 0.0, 0

    def add(self, pictures: float) -> None:
        self.done += pictures
        whole = int(self.done + 1e-6) - self.told
        _report(self.progress, whole)
        self.told += whole


def _report(progress: Progress, pictures: int) -> None:
    if pictures:
        progress.update(pictures)
