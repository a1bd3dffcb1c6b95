"""Filling shards, in this process or in several; they share no state but the files."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

import torch

from ddpm.data import Progress, ProgressFactory
from ddpm.errors import DdpmError, RunError
from ddpm.evaluation.shards import Job, Worker

_LOOK_EVERY = 0.2  # seconds between two looks at what is done

Tasks = list[tuple[int, int]]
"""(number of a job, number of its shard)."""


def run_jobs(jobs: Mapping[str, Job], *, processes: int, progress: ProgressFactory) -> None:
    """Make every shard that is not there yet; killed at any moment, a second call goes on.

    Args:
        jobs: what to make, by names for people; with more than one process, made from paths.
        processes: each takes every `processes`-th of the missing shards, and its share of the threads.
        progress: told of every picture.

    Raises:
        DdpmError: what a worker met, or that it was killed.
    """
    crew_jobs = list(jobs.values())
    tasks = [
        (number, shard)
        for number, job in enumerate(crew_jobs)
        for shard in range(len(job.shards()))
        if not job.is_done(shard)
    ]
    if processes > 1 and len(tasks) > 1:
        with progress(sum(job.count for job in crew_jobs), " and ".join(jobs)) as shown:
            _run_elsewhere(crew_jobs, tasks, shown, min(processes, len(tasks)))
        return
    for number, (words, job) in enumerate(jobs.items()):
        with progress(job.count, words) as shown:
            _run_here(job, [shard for of, shard in tasks if of == number], shown)


def _run_here(job: Job, shards: Sequence[int], progress: Progress) -> None:
    _report(progress, job.count - sum(len(job.shards()[shard]) for shard in shards))
    worker, whole = Worker(job), _Whole(progress)
    for shard in shards:
        worker.fill(shard, whole.add)


def _run_elsewhere(jobs: Sequence[Job], tasks: Tasks, progress: Progress, processes: int) -> None:
    threads = max(1, torch.get_num_threads() // processes)
    crew = [
        _start([replace(job, device=_device_of(first, job.device)) for job in jobs], tasks[first::processes], threads)
        for first in range(processes)
    ]
    sizes = {(number, shard): len(jobs[number].shards()[shard]) for number, shard in tasks}
    waiting = set(tasks)
    _report(progress, sum(job.count for job in jobs) - sum(sizes.values()))
    try:
        while True:
            running = any(member.process.is_alive() for member in crew)
            done = {(number, shard) for number, shard in waiting if jobs[number].is_done(shard)}
            waiting -= done
            _report(progress, sum(sizes[task] for task in done))
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


def _start(jobs: Sequence[Job], tasks: Tasks, threads: int) -> _Member:
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(jobs, tasks, threads, sender), daemon=True)
    process.start()
    return _Member(process, receiver)


def _work(jobs: Sequence[Job], tasks: Tasks, threads: int, outcome: Connection) -> None:
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    try:
        workers = [Worker(job) for job in jobs]
        for number, shard in tasks:
            if parent is not None and not parent.is_alive():
                return
            workers[number].fill(shard, lambda done: None)
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
