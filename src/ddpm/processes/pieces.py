"""Tensors in a folder to which each process writes its own pieces (torch.distributed.checkpoint).

They can be read by any number of processes, or by one that wants them whole.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from ddpm.errors import RunError
from ddpm.processes.group import ALONE, Group


def save_pieces(folder: Path, tensors: dict[str, Tensor], group: Group) -> None:
    """Write this process's pieces of the tensors; all processes do. The folder is complete when this returns."""
    from torch.distributed.checkpoint.state_dict_saver import save

    with _quietly():
        save(tensors, checkpoint_id=folder, process_group=group.channel)


def read_pieces(folder: Path, tensors: dict[str, Tensor], group: Group = ALONE) -> None:
    """Read tensors, whole or this process's pieces of them, in place.

    Raises:
        RunError: if the folder is gone or damaged, or holds other tensors.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load

    group.first(lambda: _check(folder, tensors))
    try:
        with _quietly():
            load(dict(tensors), checkpoint_id=folder, process_group=group.channel, no_dist=group.is_alone)
    except (Exception, CheckpointException) as error:  # the latter is none of the former
        raise RunError(_unreadable(folder, error)) from error


def _check(folder: Path, tensors: dict[str, Tensor]) -> None:
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    try:
        known = FileSystemReader(folder).read_metadata().state_dict_metadata
    except Exception as error:
        raise RunError(_unreadable(folder, error)) from error
    sizes = {name: getattr(entry, "size", None) for name, entry in known.items()}
    for name in sorted(sizes.keys() | tensors.keys()):
        if name not in sizes or name not in tensors or sizes[name] != tensors[name].shape:
            raise RunError(f"'{folder}' is of another network (first difference: {name}); use another --out")


def _unreadable(folder: Path, error: BaseException) -> str:
    return (
        f"the checkpoint's pieces in '{folder}' cannot be read ({type(error).__name__}); restore them, or use another "
        "--out"
    )


@contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield
