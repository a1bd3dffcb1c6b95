from __future__ import annotations

import os
import socket

# Before torch is imported, here and in the processes that tests start: tiny networks gain nothing from threads, and
# those of parallel tests get in each other's way, up to ten times.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ddpm.config import merge
from ddpm.training.plan import Plan, make_plan

os.environ["OMP_NUM_THREADS"] = "1"  # of the subprocesses; many tests run side by side
torch.set_num_threads(1)

TINY: dict[str, Any] = {
    "schedule": {"num_timesteps": 50},
    "network": {
        "base_channels": 8,
        "channel_multipliers": [1, 2],
        "blocks_per_level": 1,
        "attention_levels": [1],
        "num_groups": 4,
    },
    "training": {
        "steps": 8,
        "batch_size": 16,
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "decay": "constant",
        "precision": "float32",
        "device": "cpu",
        "checkpoint_every": 4,
        "preview_every": 4,
        "evaluate_every": 4,
        "log_every": 2,
        "previews": 4,
        "milestones": 2,
    },
    "sampling": {"steps": 5},
}
"""A run of a fraction of a second on the digits, with everything in it that a long one has."""

MakePlan = Callable[..., Plan]


def assignments(tree: dict[str, Any], prefix: str = "") -> list[str]:
    """Return ``--set`` arguments for a tree."""
    words: list[str] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            words += assignments(value, f"{prefix}{key}.")
        else:
            words += ["--set", f"{prefix}{key}={str(value).replace(chr(39), chr(34))}"]
    return words


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if "DDPM_CACHE" not in os.environ:
            patch.setenv("DDPM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    return TINY


@pytest.fixture(scope="session")
def tiny_words() -> list[str]:
    """The tiny configuration as arguments of `ddpm train`."""
    return assignments(TINY)


@pytest.fixture(scope="module")
def few_held_out() -> Iterator[None]:
    """Let every evaluation look at 32 pictures of each split."""
    import ddpm.training.evaluate

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ddpm.training.evaluate, "_MOST", 32)
        yield


@pytest.fixture
def plan(tmp_path: Path) -> MakePlan:
    """Make a plan of the tiny run; keywords are sections, for example ``training={"steps": 4}``."""

    def make(name: str = "run", *, data: str | Path = "digits", **sections: Any) -> Plan:
        return make_plan(data, merge(TINY, sections), preset="digits", out=tmp_path / name)

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished tiny run; read it, do not write to it."""
    from ddpm.training.run import run

    folder = tmp_path_factory.mktemp("trained") / "run"
    deque(run(make_plan("digits", TINY, preset="digits", out=folder)), maxlen=0)
    return folder


@pytest.fixture(scope="session")
def trained_points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished tiny run of points in the plane; read it, do not write to it."""
    from ddpm.training.run import run

    folder = tmp_path_factory.mktemp("trained") / "points"
    network = {"kind": "mlp", "base_channels": 16, "blocks_per_level": 1}
    tree = {**TINY, "network": network, "training": {**TINY["training"], "previews": 50}}
    deque(run(make_plan("swissroll", tree, preset="auto", out=folder)), maxlen=0)
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail at any connection."""

    def refuse(*_: object) -> None:
        raise AssertionError("this test reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
