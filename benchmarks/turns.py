"""Programs that are timed by turns, each in a process of its own: allocator, memory and threads are not shared.

A script that uses it runs itself once for every setting, with ``--worker NAME``. Turns are interleaved, so that what
else the machine does strikes all settings alike; a turn reports wall time, processor time and the process's memory.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import IO, Any

import torch

from ddpm.engine import choose_engine


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of one setting.

    Attributes:
        wall: seconds that went by.
        processor: seconds of all threads together.
        memory: most bytes that the process has held so far.
    """

    wall: float
    processor: float
    memory: int


def serve(run: Callable[[], object], facts: dict[str, Any], clock: Callable[[], float] = time.process_time) -> None:
    """Be the worker: run once unmeasured, say so with `facts`, then once for each line of the standard input.

    The clock tells the processor seconds so far, of this process or of all that work together.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    run()
    _say(answers, facts)
    for _ in sys.stdin:
        wall, processor = time.perf_counter(), clock()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        turn = time.perf_counter() - wall, clock() - processor
        _say(answers, [*turn, peak_memory()])


def take_turns(
    names: Sequence[str], arguments: Sequence[str], repeats: int
) -> tuple[dict[str, list[Turn]], dict[str, Any]]:
    """Return the turns of every setting of the running script, and the facts that its workers told."""
    workers: dict[str, subprocess.Popen[str]] = {}
    facts: dict[str, Any] = {}
    try:
        for name in names:
            command = [sys.executable, sys.argv[0], *arguments, "--worker", name]
            workers[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            facts[name] = _answer(workers[name], name)
        turns: dict[str, list[Turn]] = {name: [] for name in names}
        for _ in range(repeats):
            for name, worker in workers.items():
                assert worker.stdin is not None
                worker.stdin.write("go\n")
                worker.stdin.flush()
                turns[name].append(Turn(*_answer(worker, name)))
                print(f"{name}: {turns[name][-1].wall:.2f} s", file=sys.stderr, flush=True)
        return turns, facts
    finally:
        for worker in workers.values():
            worker.terminate()
            worker.wait()


def peak_memory() -> int:
    """Return the most bytes that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def medians(turns: dict[str, list[Turn]], of: str) -> dict[str, float]:
    """Return the median of one field of `Turn` for every setting."""
    return {name: statistics.median(getattr(turn, of) for turn in made) for name, made in turns.items()}


def as_tree(turns: dict[str, list[Turn]]) -> dict[str, Any]:
    """Return every turn as plain values."""
    return {
        name: {
            "wall, s": [round(turn.wall, 3) for turn in made],
            "processor, s": [round(turn.processor, 3) for turn in made],
            "peak memory, MiB": round(max(turn.memory for turn in made) / 2**20),
        }
        for name, made in turns.items()
    }


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    facts: dict[str, Any] = {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "python": platform.python_version(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "engine": choose_engine().as_tree(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def _say(answers: IO[str], value: Any) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


def _answer(worker: subprocess.Popen[str], name: str) -> Any:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise SystemExit(f"'{name}' ended with status {worker.wait()}; its own words stand above")
    return json.loads(line)
