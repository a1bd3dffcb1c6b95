"""How much memory there is: the machine's, or the container's if that is less."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from ddpm import memory
from ddpm.memory import free_memory, is_shortage

GIB = 2**30


def group(folder: Path, limit: str, usage: int, droppable: int, *, version: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    (folder / names[0]).write_text(limit + "\n")
    (folder / names[1]).write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {droppable}\n")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "_OWN", tmp_path / "own")
    return tmp_path


def test_the_machine_where_there_is_no_group(groups: Path) -> None:
    assert free_memory("cpu") == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_a_container_of_version_2(groups: Path) -> None:
    (groups / "own").write_text("0::/job/step\n")
    group(groups / "cgroup" / "job" / "step", "max", 0, 0, version=2)
    group(groups / "cgroup" / "job", str(GIB), GIB // 2, GIB // 4, version=2)
    assert free_memory("cpu") == 3 * GIB // 4


def test_a_container_of_version_1_that_sees_its_own_group_as_the_root(groups: Path) -> None:
    (groups / "own").write_text("3:cpu:/x\n2:memory:/docker/0123\n")
    group(groups / "cgroup" / "memory", str(2 * GIB), GIB, 0, version=1)
    assert free_memory("cpu") == GIB


def test_no_limit_of_version_1_is_none(groups: Path) -> None:
    (groups / "own").write_text("2:memory:/\n")
    group(groups / "cgroup" / "memory", str(2**63 - 4096), 2**62, 0, version=1)
    assert free_memory("cpu") > GIB // 64


def test_which_errors_are_shortages() -> None:
    shortages = (MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("[enforce fail] can't allocate memory"))
    assert all(is_shortage(error) for error in shortages)
    assert not any(is_shortage(error) for error in (RuntimeError("shapes differ"), OSError("out of memory")))
