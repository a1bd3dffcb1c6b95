"""The checkpoint of a run: all that going on needs, in one safetensors file, written atomically."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm.errors import RunError
from ddpm.files import write_atomically
from ddpm.processes import Group
from ddpm.training.loop import TrainState

FORMAT = "ddpm-checkpoint"
FORMAT_VERSION = 1
CHECKPOINT_NAME = "checkpoint.safetensors"


def save_checkpoint(path: Path, state: TrainState, notes: dict[str, Any]) -> None:
    """Write weights, average, optimizer and counters, atomically; weights that are frozen are their base's to keep.

    Args:
        path: where.
        state: what to save.
        notes: plain JSON values that resuming needs: configuration, engine, data fingerprint, history.
    """
    from safetensors.torch import save_file

    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "counters": json.dumps(_counters_of(state)),
        "notes": json.dumps(notes),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _tensors_of(state).items()}
    write_atomically(path, lambda part: save_file(tensors, part, metadata))


def read_notes(path: Path) -> dict[str, Any]:
    """Return the notes of a checkpoint without reading its tensors; errors as in `load_checkpoint`."""
    return _read_tree(path, "notes", set())


def load_checkpoint(path: Path, state: TrainState) -> None:
    """Put a checkpoint's content into a freshly made state, in place.

    Raises:
        RunError: if the file is not a whole checkpoint, or of another network: a missing part is never made up.
    """
    from safetensors.torch import load_file

    counters = _read_tree(path, "counters", {"step", "skipped", "skipped_in_a_row", "micro_batch_size"})
    saved = load_file(path)
    if counters["step"] > counters["skipped"]:  # before its first step AdamW has no moments
        _make_optimizer_slots(state)
    wanted = _tensors_of(state)
    missing, foreign = wanted.keys() - saved.keys(), saved.keys() - wanted.keys()
    other = [name for name in wanted.keys() & saved.keys() if _kind(wanted[name]) != _kind(saved[name])]
    if missing or foreign or other:
        first = sorted([*missing, *foreign, *other])[0]
        raise RunError(f"'{path}' is of another network (first difference: {first}); use another --out")
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(saved[name])
    _count_from(state, counters)


def share_state(state: TrainState, group: Group) -> None:
    """Give the first process's weights, average, moments and counters to all: none of the others reads a file."""
    counters = group.of_first(_counters_of(state))
    if not group.is_first and counters["step"] > counters["skipped"]:
        _make_optimizer_slots(state)
    group.share([tensor for _, tensor in sorted(_tensors_of(state).items())])
    _count_from(state, counters)


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
    for part, network in (("network", state.network), ("ema", state.ema.network)):
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
