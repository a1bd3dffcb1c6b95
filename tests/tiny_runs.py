"""Runs small enough to be made dozens of times, in this process and in others that may be killed."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm import files
from ddpm.config import merge
from ddpm.training.events import Event
from ddpm.training.plan import Plan, make_plan
from ddpm.training.run import run

TINY: dict[str, Any] = {
    "network": {
        "base_channels": 8,
        "num_groups": 4,
        "channel_multipliers": [1, 1],
        "attention_levels": [],
        "dropout": 0.1,
    },
    "training": {
        "steps": 12,
        "batch_size": 8,
        "micro_batch_size": 3,
        "warmup_steps": 4,
        "checkpoint_every": 4,
        "evaluate_every": 6,
        "preview_every": 1000,
        "log_every": 3,
        "previews": 1,
        "milestones": 0,
        "precision": "float32",
    },
}

TINY_ADAPTER: dict[str, Any] = {
    "steps": 6,
    "batch_size": 8,
    "learning_rate": 0.02,
    "checkpoint_every": 2,
    "evaluate_every": 3,
    "preview_every": 6,
    "log_every": 2,
    "previews": 1,
    "milestones": 0,
    "decay": "constant",
    "ema_decay": 0.5,
}
"""The training section of an adapter that moves its base within six steps."""


def tiny_plan(out: Path, **training: Any) -> Plan:
    """Return a plan on the digits; keywords are fields of the training section, or sections of their own."""
    sections = {key: training.pop(key) for key in list(training) if isinstance(training[key], dict) or key == "seed"}
    return make_plan("digits", merge(merge(TINY, {"training": training}), sections), out=out)


def train_all(out: Path, **training: Any) -> list[Event]:
    """Train to the end, and return all events."""
    return list(run(tiny_plan(out, **training)))


def only(events: list[Event], kind: type) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file."""
    from safetensors.torch import load_file

    return load_file(path)


def differing(one: Path, other: Path) -> list[str]:
    """Return the names of the tensors that are not bit-equal in two files."""
    a, b = tensors(one), tensors(other)
    assert a
    return sorted(n for n in a.keys() | b.keys() if n not in a or n not in b or not same_bits(a[n], b[n]))


def same_bits(a: Tensor, b: Tensor) -> bool:
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.ravel().view(torch.uint8), b.ravel().view(torch.uint8))
    )


def metric_lines(out: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without the seconds, which no two runs share."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def parts(out: Path) -> list[Path]:
    """Return what writes that were not finished have left."""
    return [path for path in out.rglob("*.part") if path.exists()]


def _train_elsewhere(out: Path, training: dict[str, Any], threads: int, slow_writes: bool) -> None:
    torch.set_num_threads(threads)
    if slow_writes:  # so that a kill can be aimed at an unfinished file
        flush = files._flush
        files._flush = lambda path: (time.sleep(0.1), flush(path))
    train_all(out, **training)


@contextlib.contextmanager
def training_elsewhere(out: Path, *, slow_writes: bool = False, **training: Any) -> Iterator[Any]:
    """Train in another process, which ends with the block."""
    server = multiprocessing.get_context("forkserver")  # it imports torch once, and forks before any work
    server.set_forkserver_preload(["ddpm.training.run", "safetensors.torch", "sklearn.datasets", "filelock"])
    process = server.Process(target=_train_elsewhere, args=(out, training, torch.get_num_threads(), slow_writes))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()
