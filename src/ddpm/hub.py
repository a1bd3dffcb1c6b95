"""Frozen networks of others, in folders or by their names on the Hugging Face Hub."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ddpm.errors import ConfigError
from ddpm.files import sha256_of

_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")


def folder_of(name: str, what: str, instead: str) -> Path:
    """Return the folder of a network's files, fetched if it is none yet.

    Args:
        name: a folder, or a name on the Hub.
        what: the network is, for a message.
        instead: what can be used in its place, for a message.

    Raises:
        ConfigError: if it cannot be had.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES)))
    except (OSError, ValueError) as error:  # the Hub's own errors are of these kinds
        raise ConfigError(
            f"the {what} '{name}' is no folder, and cannot be fetched from the Hub ({first_line(error)}); download it "
            f"on another machine and give its folder, or use {instead}"
        ) from error


def hash_of(folder: Path) -> str:
    """Return the SHA-256 of the files of a network, hexadecimal."""
    files = sorted({file for pattern in _FILES for file in folder.glob(pattern)})
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {sha256_of(file)}\n".encode())
    return digest.hexdigest()


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
