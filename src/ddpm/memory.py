"""How much memory there is, for all that sizes its batches by it; and whether an error says that it ran out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil
import torch

_GROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_NO_LIMIT = 2**60  # version 1 of control groups states "none" as a number near 2^63
_KINDS = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)  # controller, limit, usage, and what of the usage is files that the system drops when asked: of version 2 and 1


def free_memory(device: torch.device | str) -> int:
    """Return the bytes that can still be taken on a device: of the machine, and of the container that we are in."""
    place = torch.device(device)
    if place.type == "cuda":
        return int(torch.cuda.mem_get_info(place)[0])
    if place.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return min([int(psutil.virtual_memory().available), *_left_by_groups(_GROUPS, _OWN)])


def is_shortage(error: BaseException) -> bool:
    """Whether an error says that memory ran out; torch has no one type for it on all devices."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        words in text for words in ("alloc", "out of memory", "not enough memory")
    )


def give_back() -> None:
    """Let the accelerator's allocator give up what nothing uses, so that pieces of another size fit."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def _left_by_groups(groups: Path, own: Path) -> Iterator[int]:
    """Yield what each control group that this process is in leaves of its limit (Linux; elsewhere there are none)."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller, *names in _KINDS:
            if controller in controllers.split(","):
                inside = PurePosixPath(path.lstrip("/"))
                for folder in (inside, *inside.parents):
                    yield from _left(groups / controller / folder, *names)


def _left(folder: Path, limit_name: str, usage_name: str, droppable: str) -> Iterator[int]:
    try:
        limit = int((folder / limit_name).read_text(encoding="utf-8"))
        usage = int((folder / usage_name).read_text(encoding="utf-8"))
        stat = (folder / "memory.stat").read_text(encoding="utf-8")
    except (OSError, ValueError):  # no such group here, or its limit is "max"
        return
    facts = dict(line.split(" ", 1) for line in stat.splitlines() if " " in line)
    if limit < _NO_LIMIT:
        yield max(0, limit - usage + int(facts.get(droppable, 0)))
