"""Pictures per second: the first pass over new data and every later one, beside `datasets` and a plain Pillow loop.

    python benchmarks/data_speed.py [--data FOLDER] [--json FILE]

All loaders make the same pictures: cropped to a square around the centre, scaled with Lanczos, uint8 RGB. A pass reads
every picture once; the cached pass draws batches of 128 in random order, as training does.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from ddpm.config import DataConfig
from ddpm.data import open_store
from ddpm.data.reading import worker_count

BATCH = 128


@dataclass(frozen=True)
class Row:
    """One measurement."""

    data: str
    loader: str
    pictures: int
    seconds: float

    @property
    def rate(self) -> float:
        """Pictures per second."""
        return self.pictures / self.seconds


def timed(data: str, loader: str, work: Callable[[], int]) -> Row:
    start = time.perf_counter()
    count = work()
    return Row(data, loader, count, time.perf_counter() - start)


def count(pictures: Iterable[np.ndarray]) -> int:
    return sum(1 for _ in pictures)


def small(image: Image.Image, side: int) -> np.ndarray:
    image = image.convert("RGB")
    least = min(image.size)
    left, top = (image.width - least) // 2, (image.height - least) // 2
    image = image.crop((left, top, left + least, top + least))
    return np.asarray(image if least == side else image.resize((side, side), Image.Resampling.LANCZOS))


def pillow_folder(folder: Path, side: int) -> Iterator[np.ndarray]:
    for path in sorted(folder.rglob("*.jpg")):
        with Image.open(path) as image:
            yield small(image, side)


def pillow_parquet(folder: Path, side: int) -> Iterator[np.ndarray]:
    import pyarrow.parquet as pq

    for path in sorted(folder.glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(columns=["image"]):
            for row in batch.column(0).to_pylist():
                yield small(Image.open(BytesIO(row["bytes"])), side)


def hugging_face(folder: Path, side: int, scratch: Path) -> Iterator[np.ndarray]:
    import datasets

    datasets.disable_progress_bars()
    if any(folder.glob("*.parquet")):
        loaded = datasets.load_dataset(str(folder), cache_dir=str(scratch))
    else:
        loaded = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(scratch))
    for split in loaded.values():
        for row in split:
            yield small(row["image"], side)


def cached_pass(folder: Path, config: DataConfig, cache: Path) -> int:
    store = open_store(folder, config, cache_dir=cache)
    order = np.random.default_rng(0).permutation(len(store))
    for start in range(0, len(store), BATCH):
        np.take(store.pictures, order[start : start + BATCH], axis=0)
    return len(store)


def measure(folder: Path, side: int, scratch: Path) -> list[Row]:
    config = DataConfig(size=(side, side))
    pillow = pillow_parquet if any(folder.glob("*.parquet")) else pillow_folder
    name, cache, arrow = folder.name, scratch / "cache", scratch / "arrow"
    count(pillow(folder, side))  # both read from the system's file cache, and Pillow has loaded its decoders
    return [
        timed(name, "Pillow loop, every pass", lambda: count(pillow(folder, side))),
        timed(name, "datasets, first pass", lambda: count(hugging_face(folder, side, arrow))),
        timed(name, "datasets, later pass", lambda: count(hugging_face(folder, side, arrow))),
        timed(name, "ddpm, first pass", lambda: len(open_store(folder, config, cache_dir=cache))),
        timed(name, "ddpm, opening again", lambda: len(open_store(folder, config, cache_dir=cache))),
        timed(name, "ddpm, later pass", lambda: cached_pass(folder, config, cache)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("DDPM_DATA", "../shared/data")))
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    rows: list[Row] = []
    for name, side in (("clothing", 64), ("cifar10", 32)):
        if not (arguments.data / name).is_dir():
            print(f"{name}: not in '{arguments.data}', skipped")
            continue
        with tempfile.TemporaryDirectory() as scratch:
            rows += measure(arguments.data / name, side, Path(scratch))
    versions = {name: importlib.metadata.version(name) for name in ("pillow", "numpy", "datasets")}
    about = f"{worker_count()} processors, {platform.machine()}, Python {platform.python_version()}, {versions}"
    print(f"{about}\n\n{'data':10} {'loader':26} {'pictures':>9} {'seconds':>9} {'pictures/s':>11}")
    for row in rows:
        print(f"{row.data:10} {row.loader:26} {row.pictures:9,} {row.seconds:9.3f} {row.rate:11,.0f}")
    if arguments.json:
        measured = [{**asdict(row), "pictures_per_second": row.rate} for row in rows]
        arguments.json.write_text(json.dumps({"about": about, "load": os.getloadavg(), "rows": measured}, indent=1))


if __name__ == "__main__":
    main()
