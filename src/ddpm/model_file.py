"""The model file: safetensors with a JSON description in its metadata. Nothing of ours is, or reads, a pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm.errors import ModelFileError
from ddpm.files import write_atomically

FORMAT = "ddpm-model"
CLASSIFIER_FORMAT = "ddpm-classifier"
ADAPTER_FORMAT = "ddpm-adapter"
FORMAT_VERSION = 1
_ADVICE = {
    FORMAT: "that is a diffusion model, see 'ddpm inspect'; 'ddpm train-classifier' trains a classifier",
    CLASSIFIER_FORMAT: "that is a classifier, see 'ddpm inspect'; 'ddpm train' trains a diffusion model",
    ADAPTER_FORMAT: "that is an adapter, which needs its base: ddpm sample BASE --adapter FILE",
    "ddpm-checkpoint": "run 'ddpm train' with the same arguments to go on",
}
MODEL_NAME = "model.safetensors"
"""Name of the model in a run folder."""
ADAPTER_NAME = "adapter.safetensors"
"""Name of the adapter in the folder of a run that trains one."""


def write_model_file(
    path: Path, description: dict[str, Any], tensors: dict[str, Tensor], file_format: str = FORMAT
) -> None:
    """Write tensors and their description, atomically."""
    from safetensors.torch import save_file

    metadata = {"format": file_format, "format_version": str(FORMAT_VERSION), "description": json.dumps(description)}
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda part: save_file(on_cpu, part, metadata))


def read_description(path: Path) -> dict[str, Any]:
    """Return the description of a model file without reading its tensors; see `read_model_file` for errors."""
    return _read(path, with_tensors=False)[0]


def read_model_file(path: Path, file_format: str = FORMAT) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return description and tensors of a model file; a folder stands for the model in it.

    Raises:
        ModelFileError: if there is no such file, or it is not a whole file of this format, in a version that this code
            knows.
    """
    return _read(path, with_tensors=True, file_format=file_format)


def format_of(path: Path) -> str:
    """Return the format that a safetensors file states, or "none"; see `read_model_file` for errors."""
    with _opened(path) as file:
        return str((file.metadata() or {}).get("format", "none"))


def locate(path: Path) -> Path:
    """Return the model file that a path stands for: itself, or the model in a run folder.

    Raises:
        ModelFileError: if there is none.
    """
    if os.path.isdir(path):  # unlike Path.is_dir, it takes a name that is too long for a missing one
        inside = path / MODEL_NAME
        if inside.is_file():
            return inside
        if (path / ADAPTER_NAME).is_file():
            raise ModelFileError(f"'{path}' holds an adapter; name its base: ddpm sample BASE --adapter {path}")
        raise ModelFileError(f"no model in '{path}'; expected a run folder with '{MODEL_NAME}' in it")
    if os.path.isfile(path):
        return path
    raise ModelFileError(f"no model at '{path}'{_neighbours(path)}")


def _neighbours(path: Path) -> str:
    candidates = {found.parent for found in Path("runs").glob(f"*/{MODEL_NAME}")}
    if os.path.isdir(path.parent):
        candidates |= set(path.parent.glob("*.safetensors"))
    named = sorted(str(candidate) for candidate in candidates)[:3]
    return f"; nearby are {', '.join(named)}" if named else "; train one first, for example: ddpm train digits"


def _read(path: Path, *, with_tensors: bool, file_format: str = FORMAT) -> tuple[dict[str, Any], dict[str, Tensor]]:
    path = locate(path)
    with _opened(path) as file:
        description = _description(path, file.metadata() or {}, file_format)
        tensors = {name: file.get_tensor(name) for name in file.keys()} if with_tensors else {}  # noqa: SIM118
    return description, tensors


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    _refuse_pickle(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ModelFileError(
            f"'{path}' is not a whole safetensors file ({error}); it may be truncated: take another copy"
        ) from error


def _description(path: Path, metadata: dict[str, str], file_format: str) -> dict[str, Any]:
    kind = metadata.get("format", "none")
    if kind != file_format:
        advice = _ADVICE.get(kind, "see its source")
        raise ModelFileError(f"'{path}' is a safetensors file of format '{kind}', expected '{file_format}'; {advice}")
    version = metadata.get("format_version", "")
    if version != str(FORMAT_VERSION):
        raise ModelFileError(
            f"'{path}' has format version '{version}', this program reads {FORMAT_VERSION}; upgrade ddpm"
        )
    try:
        description = json.loads(metadata["description"])
    except (KeyError, ValueError, RecursionError) as error:
        raise ModelFileError(f"'{path}' has no readable description ({error}); take another copy") from error
    if not isinstance(description, dict):
        raise ModelFileError(f"'{path}' has a description that is no JSON object; take another copy")
    return description


def _refuse_pickle(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise ModelFileError(f"cannot read '{path}': {error.strerror}") from error
    # A safetensors file begins with the length of its header, any 8 bytes, of which the first may be 0x80 too.
    if start[8:] != b"{" and (start[:1] == b"\x80" or start[:4] == b"PK\x03\x04"):
        raise ModelFileError(
            f"'{path}' is a pickle (a .pt, .pth or .ckpt file), which can run code when it is opened; "
            "expected a .safetensors model of this project"
        )
