"""Small shards for tests: pictures that can be told apart by their colour."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 8


def picture(shard: int, row: int) -> bytes:
    values = np.zeros((SIDE, SIDE, 3), np.uint8)
    values[..., 0], values[..., 1] = 10 * shard, row
    values[..., 2] = np.arange(SIDE) * 20
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def write_shard(path: Path, shard: int, count: int, *, broken: tuple[int, ...] = (), **beside: Any) -> None:
    """Write a WebDataset tar; `beside` are functions of the row: cls, txt or json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for row in range(count):
            data = picture(shard, row)
            add(archive, f"{row:04}.png", b"no picture" if row in broken else data)
            for kind, of in beside.items():
                value = of(row)
                add(archive, f"{row:04}.{kind}", (json.dumps(value) if kind == "json" else str(value)).encode())


def write_shards(folder: Path, counts: list[int], **beside: Any) -> str:
    for shard, count in enumerate(counts):
        write_shard(folder / f"{shard:03}.tar", shard, count, **beside)
    return str(folder / f"{{000..{len(counts) - 1:03}}}.tar")
