"""The checkpoint of a run: all that going on needs, in one safetensors file, written atomically.

Where weights are in pieces (`ddpm.processes.sharding`), each process writes its own into a folder beside the file. The
folder is written first, then the file, which names it, then older folders go: a kill between any two leaves a whole
checkpoint. A run may go on with its weights whole or in pieces, however they were saved.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm.errors import RunError
from ddpm.files import write_atomically
from ddpm.processes import ALONE, Group
from ddpm.processes.pieces import read_pieces, save_pieces
from ddpm.processes.sharding import is_sharded, scatter
from ddpm.training.loop import TrainState

FORMAT = "ddpm-checkpoint"
FORMAT_VERSION = 1
CHECKPOINT_NAME = "checkpoint.safetensors"


def save_checkpoint(path: Path, state: TrainState, notes: dict[str, Any], *, shards: str = "") -> None:
    """Write weights, average, optimizer and counters, atomically; weights that are frozen are their base's to keep.

    Args:
        path: where.
        state: what to save.
        notes: plain JSON values that resuming needs: configuration, engine, data fingerprint, history.
        shards: name of the folder beside it that holds the tensors; none: the file does.
    """
    from safetensors.torch import save_file

    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "counters": json.dumps(_counters_of(state)),
        "notes": json.dumps(notes),
        "shards": shards,
    }
    held = {} if shards else _tensors_of(state)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in held.items()}
    write_atomically(path, lambda part: save_file(tensors, part, metadata))
    for folder in path.parent.glob("shards-*"):
        if folder.name != shards:
            shutil.rmtree(folder, ignore_errors=True)


def save_shards(path: Path, state: TrainState, notes: dict[str, Any], group: Group) -> None:
    """Write this process's pieces beside the checkpoint file at `path`, and in the first process the file itself."""
    folder = path.with_name(f"shards-{state.step:08d}")
    save_pieces(folder, _tensors_of(state), group)
    group.first(lambda: save_checkpoint(path, state, notes, shards=folder.name))


def read_notes(path: Path) -> dict[str, Any]:
    """Return the notes of a checkpoint without reading its tensors; errors as in `load_checkpoint`."""
    return _read_tree(path, "notes", set())


def load_checkpoint(path: Path, state: TrainState, group: Group = ALONE) -> None:
    """Put a checkpoint's content into a freshly made state, in place.

    Args:
        path: of the file.
        state: of this process; its weights may be in pieces, whatever those of the checkpoint are.
        group: who trains together; only the first process reads the file.

    Raises:
        RunError: if the file is not a whole checkpoint, or of another network: a missing part is never made up.
    """
    counters, shards = group.first(lambda: (_read_counters(path), _read_metadata(path).get("shards", "")))
    if counters["step"] > counters["skipped"]:  # before its first step AdamW has no moments
        _make_optimizer_slots(state)
    wanted = _tensors_of(state)
    if not is_sharded(state.network):
        group.first(lambda: _read_whole(path, shards, wanted))
        group.share([wanted[name] for name in sorted(wanted)])
    elif shards:
        read_pieces(path.parent / shards, wanted, group)
    else:
        saved = group.only_first(lambda: _read_tensors(path, wanted))
        for name in sorted(wanted):
            scatter(wanted[name], None if saved is None else saved[name])
    _count_from(state, counters)


def _read_whole(path: Path, shards: str, wanted: dict[str, Tensor]) -> None:
    if shards:
        read_pieces(path.parent / shards, wanted)
        return
    saved = _read_tensors(path, wanted)
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(saved[name])


def _read_counters(path: Path) -> dict[str, int]:
    return _read_tree(path, "counters", {"step", "skipped", "skipped_in_a_row", "micro_batch_size"})


def _read_tensors(path: Path, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint.

    Raises:
        RunError: if they are not those of this state.
    """
    from safetensors.torch import load_file

    saved = load_file(path)
    missing, foreign = wanted.keys() - saved.keys(), saved.keys() - wanted.keys()
    other = [name for name in wanted.keys() & saved.keys() if _kind(wanted[name]) != _kind(saved[name])]
    if missing or foreign or other:
        first = sorted([*missing, *foreign, *other])[0]
        raise RunError(f"'{path}' is of another network (first difference: {first}); use another --out")
    return saved


def _counters_of(state: TrainState) -> dict[str, Any]:
    return {
        "step": state.step,
        "skipped": state.skipped,
        "skipped_in_a_row": state.skipped_in_a_row,
        "micro_batch_size": state.micro_batch_size,
        "loss_scale": None if state.scaler is None else state.scaler.state_dict(),
    }


def _count_from(state: TrainState, counters: dict[str, Any]) -> None:
    state.step = counters["step"]
    state.skipped = counters["skipped"]
    state.skipped_in_a_row = counters["skipped_in_a_row"]
    state.micro_batch_size = counters["micro_batch_size"]
    if state.scaler is not None and counters.get("loss_scale") is not None:
        state.scaler.load_state_dict(counters["loss_scale"])


def _tensors_of(state: TrainState) -> dict[str, Tensor]:
    frozen = {name for name, parameter in state.network.named_parameters() if not parameter.requires_grad}
    tensors: dict[str, Tensor] = {}
    for part, network in (("network", state.network), *((name, average.network) for name, average in state.averages)):
        moving = {name: tensor for name, tensor in network.state_dict().items() if name not in frozen}
        tensors |= {f"{part}.{name}": tensor for name, tensor in moving.items()}
    for name, parameter in state.network.named_parameters():
        for slot, value in state.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{slot}.{name}"] = value
    if state.history is not None:
        tensors |= {"history.losses": state.history.losses, "history.counts": state.history.counts}
    return tensors


def _make_optimizer_slots(state: TrainState) -> None:
    """Let AdamW create its moments, which it otherwise does at its first step; the values are then overwritten."""
    for group in state.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


def _read_tree(path: Path, key: str, wanted: set[str]) -> dict[str, Any]:
    try:
        tree: dict[str, Any] = json.loads(_read_metadata(path)[key])
        if not isinstance(tree, dict) or not wanted <= tree.keys():
            raise ValueError(f"{key} lack some of {sorted(wanted)}")
    except (KeyError, ValueError) as error:
        raise RunError(f"the checkpoint '{path}' has no readable {key}; restore it, or use another --out") from error
    return tree


def _read_metadata(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise RunError(f"the checkpoint '{path}' cannot be read ({error}); restore it, or use another --out") from error
    if metadata.get("format") != FORMAT or metadata.get("format_version") != str(FORMAT_VERSION):
        raise RunError(
            f"'{path}' is of format '{metadata.get('format', 'none')}' version "
            f"'{metadata.get('format_version', 'none')}', expected '{FORMAT}' {FORMAT_VERSION}; use another --out"
        )
    return metadata
