"""The cache: decoded once, whole or not there, renewed when anything changes; and no space is one clear sentence."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torture_folder import encode, noise

from ddpm.config import DataConfig
from ddpm.data import building, cache, open_store, reading
from ddpm.data.cache import FileSink, MemorySink, Strings
from ddpm.errors import DataError

SRC = Path(__file__).parents[2] / "src"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "pictures"
    path.mkdir()
    for i in range(40):
        (path / f"{i:02}.png").write_bytes(encode(Image.fromarray(noise(12, 10, 3, seed=i)), "PNG"))
    return path


def stores(root: Path) -> list[Path]:
    return sorted((root / "stores").iterdir())


def test_second_open_decodes_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = open_store(folder, DataConfig(), cache_dir=tmp_path / "c")
    for name in ("read_header", "read_pixels"):
        monkeypatch.setattr(reading, name, lambda *a: pytest.fail("a picture was opened again"))
    second = open_store(folder, DataConfig(), cache_dir=tmp_path / "c")
    assert isinstance(second.pictures, np.memmap)
    assert not first.report.from_cache
    assert second.report.from_cache
    assert first.fingerprint == second.fingerprint
    np.testing.assert_array_equal(first.pictures, second.pictures)
    assert list(first.names) == list(second.names) == sorted(path.name for path in folder.iterdir())


def test_settings_that_do_not_change_pictures_share_a_store(folder: Path, tmp_path: Path):
    open_store(folder, DataConfig(), cache_dir=tmp_path / "c")
    store = open_store(folder, DataConfig(flip=True, held_out=0.5), cache_dir=tmp_path / "c")
    assert store.report.from_cache
    assert len(store.held_out) == 20
    other = open_store(folder, DataConfig(size=(8, 8)), cache_dir=tmp_path / "c")
    assert not other.report.from_cache
    assert other.fingerprint != store.fingerprint
    assert len(stores(tmp_path / "c")) == 2


def test_a_changed_file_changes_the_fingerprint(folder: Path, tmp_path: Path):
    first = open_store(folder, DataConfig(), cache_dir=tmp_path / "c")
    target = folder / "07.png"
    before = target.stat()
    changed = noise(12, 10, 3, seed=7)
    changed[0, 0, 0] ^= 1
    target.write_bytes(encode(Image.fromarray(changed), "PNG"))
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    second = open_store(folder, DataConfig(), cache_dir=tmp_path / "c")
    assert second.fingerprint != first.fingerprint
    assert not second.report.from_cache
    assert (np.asarray(first.pictures) != second.pictures).sum() == 1


def test_touching_renaming_and_adding(folder: Path, tmp_path: Path):
    first = open_store(folder, DataConfig(), cache_dir=tmp_path / "c")
    os.utime(folder / "03.png")
    touched = open_store(folder, DataConfig(), cache_dir=tmp_path / "c")
    assert touched.fingerprint == first.fingerprint  # the same pictures, though read again
    assert not touched.report.from_cache
    (folder / "40.png").write_bytes((folder / "00.png").read_bytes())
    assert open_store(folder, DataConfig(), cache_dir=tmp_path / "c").fingerprint != first.fingerprint


def test_fingerprint_and_split_do_not_depend_on_place_or_time(folder: Path, tmp_path: Path):
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    a = open_store(folder, DataConfig(), cache_dir=tmp_path / "c")
    b = open_store(copy, DataConfig(), cache_dir=tmp_path / "d")
    assert a.fingerprint == b.fingerprint
    np.testing.assert_array_equal(a.held_out, b.held_out)


def test_split_ignores_the_global_generator(folder: Path, tmp_path: Path):
    np.random.seed(1)
    a = open_store(folder, DataConfig(), cache_dir=tmp_path / "c").held_out
    np.random.seed(2)
    b = open_store(folder, DataConfig(), cache_dir=tmp_path / "d").held_out
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("share", "held"), [(0.001, 1), (0.05, 2), (0.5, 20), (0.999, 39)])
def test_share_held_out(share: float, held: int, folder: Path, tmp_path: Path):
    store = open_store(folder, DataConfig(held_out=share), cache_dir=tmp_path / "c")
    assert len(store.held_out) == held
    assert sorted([*store.train, *store.held_out]) == list(range(40))


def test_at_most_two_thousand_are_held_out(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.zeros((5000, 4, 4), np.uint8))
    assert len(open_store(tmp_path / "a.npy", DataConfig(held_out=0.9), cache_dir=tmp_path / "c").held_out) == 2000


@pytest.mark.parametrize("damage", ["no record", "short pictures", "no pictures", "old format", "broken record"])
def test_damaged_stores_are_made_again(damage: str, folder: Path, tmp_path: Path):
    first = open_store(folder, DataConfig(), cache_dir=tmp_path / "c")
    expected = np.array(first.pictures)
    (store,) = stores(tmp_path / "c")
    record = store / "store.json"
    if damage == "no record":
        record.unlink()
    elif damage == "broken record":
        record.write_text(record.read_text()[:-40])
    elif damage == "old format":
        record.write_text(json.dumps({**json.loads(record.read_text()), "format": -1}))
    elif damage == "no pictures":
        (store / "pictures.npy").unlink()
    else:
        os.truncate(store / "pictures.npy", (store / "pictures.npy").stat().st_size - 1)
    again = open_store(folder, DataConfig(), cache_dir=tmp_path / "c")
    assert not again.report.from_cache
    np.testing.assert_array_equal(again.pictures, expected)
    assert stores(tmp_path / "c") == [store]


KILLED = """
import os, sys, signal
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from ddpm.config import DataConfig
from ddpm.data import cache, open_store
append = cache.FileSink.append
def dying(self, picture):
    append(self, picture)
    if self.rows == 20:
        self.file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
cache.FileSink.append = dying
open_store(sys.argv[1], DataConfig(), cache_dir=Path(sys.argv[2]))
"""


def test_killed_writer_leaves_nothing_that_is_used(folder: Path, tmp_path: Path):
    command = [sys.executable, "-c", KILLED, str(folder), str(tmp_path / "c"), str(SRC)]
    result = subprocess.run(command, check=False, timeout=60)
    assert result.returncode == -signal.SIGKILL
    (left,) = stores(tmp_path / "c")
    assert left.name.startswith(".writing-")
    store = open_store(folder, DataConfig(), cache_dir=tmp_path / "c")
    assert not store.report.from_cache
    assert len(store) == 40
    old = time.time() - 2 * cache.STALE_SECONDS
    for path in [left, *left.iterdir()]:
        os.utime(path, (old, old))
    open_store(folder, DataConfig(size=(8, 8)), cache_dir=tmp_path / "c")
    assert not left.exists()


def test_writers_at_once_agree(folder: Path, tmp_path: Path):
    def run(_: int):
        return open_store(folder, DataConfig(), cache_dir=tmp_path / "c")

    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(run, range(4)))
    assert len({store.fingerprint for store in opened}) == 1
    for store in opened:
        np.testing.assert_array_equal(store.pictures, opened[0].pictures)
    assert len(stores(tmp_path / "c")) == 1


def test_environment_chooses_the_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "chosen"))
    open_store(folder, DataConfig())
    assert len(stores(tmp_path / "chosen")) == 1


def test_small_data_go_to_memory_where_no_cache_can_be_written(folder: Path, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    store = open_store(folder, DataConfig(), cache_dir=tmp_path / "file")
    assert len(store) == 40
    assert not isinstance(store.pictures, np.memmap)
    assert any("cannot be written" in note for note in store.report.notes)


def test_large_data_need_a_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(building, "MEMORY_LIMIT", 1000)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot be written.*need.*DDPM_CACHE"):
        open_store(folder, DataConfig(), cache_dir=tmp_path / "file")


def test_little_space_is_seen_before_the_work(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache, "free_bytes", lambda path: 2**20)
    store = open_store(folder, DataConfig(), cache_dir=tmp_path / "c")
    assert any("1 MiB left" in note and "kept in memory" in note for note in store.report.notes)
    monkeypatch.setattr(building, "MEMORY_LIMIT", 1000)
    with pytest.raises(DataError, match=r"1 MiB left.*DDPM_CACHE"):
        open_store(folder, DataConfig(), cache_dir=tmp_path / "c")
    assert stores(tmp_path / "c") == []


def test_disk_that_fills_up_meanwhile(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    append = FileSink.append

    def full(self: FileSink, picture: np.ndarray) -> None:
        if self.rows == 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, picture)

    monkeypatch.setattr(FileSink, "append", full)
    with pytest.raises(DataError, match="is full; free some space, or set DDPM_CACHE"):
        open_store(folder, DataConfig(), cache_dir=tmp_path / "c")
    assert stores(tmp_path / "c") == []


def test_progress_counts_every_picture(folder: Path, tmp_path: Path):
    seen: list[tuple[int | None, str, int]] = []

    @contextmanager
    def progress(total: int | None, description: str):
        class Bar:
            count = 0

            def update(self, n: int, /) -> None:
                self.count += n

        bar = Bar()
        yield bar
        seen.append((total, description, bar.count))

    open_store(folder, DataConfig(), cache_dir=tmp_path / "c", progress=progress)
    assert [(total, count) for total, _, count in seen] == [(40, 40), (40, 40)]


def test_an_interrupted_first_pass_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FileSink, "append", interrupt)
    with pytest.raises(KeyboardInterrupt):
        open_store(folder, DataConfig(), cache_dir=tmp_path / "c")
    assert stores(tmp_path / "c") == []


def test_a_file_that_vanishes_between_the_passes_is_bad(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    look = building.look

    def then_remove(*args):
        found = look(*args)
        (folder / "05.png").unlink()
        (folder / "06.png").write_bytes(b"overwritten")
        return found

    monkeypatch.setattr(building, "look", then_remove)
    store = open_store(folder, DataConfig(), cache_dir=tmp_path / "c")
    assert [name for name, _ in store.report.bad] == ["05.png", "06.png"]
    assert len(store) == 38


def test_ordered_map_keeps_order_and_little_in_memory():
    taken = 0

    def items():
        nonlocal taken
        for i in range(2000):
            taken += 1
            yield i

    results = reading.ordered_map(lambda i: i * i, items(), 4)
    assert next(results) == 0
    assert taken <= reading.BATCH * (2 * 4 + 2)
    assert list(results) == [i * i for i in range(1, 2000)]


def test_ordered_map_hands_errors_on():
    def fail(i: int) -> int:
        raise ValueError(i)

    with pytest.raises(ValueError, match="0"):
        list(reading.ordered_map(fail, range(100), 3))


def test_strings_on_disk(tmp_path: Path):
    values = ["", "plain", "Grüße 图片", "", "lone \udcff byte"]
    cache._save_text(tmp_path, "names", values)
    column = Strings(tmp_path, "names")
    assert list(column) == values
    assert column[-1] == values[-1]
    assert column[1:3] == values[1:3]
    with pytest.raises(IndexError):
        column[5]


def test_file_sink_is_a_npy_file_of_any_length(tmp_path: Path):
    for count in (1, 9, 1234):
        sink = FileSink(tmp_path / f"{count}.npy")
        memory = MemorySink()
        for i in range(count):
            sink.append(np.full((2, 3, 1), i % 256, np.uint8))
            memory.append(np.full((2, 3, 1), i % 256, np.uint8))
        sink.complete()
        sink.close()
        np.testing.assert_array_equal(np.load(tmp_path / f"{count}.npy"), memory.stacked())


MEASURED = """
import resource, sys
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from ddpm.config import DataConfig
from ddpm.data import open_store
import numpy as np
open_store(sys.argv[4], DataConfig(), cache_dir=Path(sys.argv[2]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store = open_store(sys.argv[1], DataConfig(), cache_dir=Path(sys.argv[2]))
print(store.pictures.nbytes, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in Linux's units")
def test_memory_stays_flat(tmp_path: Path):
    # The input is mapped like the output: what counts against memory is what the process itself holds.
    folder = tmp_path / "d"
    folder.mkdir()
    flat = encode(Image.fromarray(np.zeros((256, 256, 3), np.uint8)), "PNG")
    for i in range(700):
        (folder / f"{i}.png").write_bytes(flat)
    small = tmp_path / "small"
    small.mkdir()
    for i in range(70):
        (small / f"{i}.png").write_bytes(flat)
    command = [sys.executable, "-c", MEASURED, str(folder), str(tmp_path / "c"), str(SRC), str(small)]
    out = subprocess.run(command, check=True, timeout=120, capture_output=True, text=True).stdout
    size, grown = map(int, out.split())
    assert size > 130e6
    assert grown < size / 4
