"""Lists of shards: what they mean, what is read of them, and what is wrong with them."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ddpm.config import DataConfig
from ddpm.data import open_store
from ddpm.data.shards import Shards, expand, is_list_of_shards, open_shards
from ddpm.data.sources import shard as shard_module
from ddpm.errors import DataError
from shards import write_shard, write_shards


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def opened(pattern: str, tmp_path: Path, **config: object) -> Shards:
    return open_shards(pattern, DataConfig.model_validate(config), cache_dir=tmp_path / "cache")


def test_patterns_mean_lists(tmp_path: Path) -> None:
    assert expand("a/{08..11}.tar") == ("a/08.tar", "a/09.tar", "a/10.tar", "a/11.tar")
    assert expand("http://x/{train,more}-{0..1}.tar?k=1") == (
        "http://x/train-0.tar?k=1",
        "http://x/train-1.tar?k=1",
        "http://x/more-0.tar?k=1",
        "http://x/more-1.tar?k=1",
    )
    write_shards(tmp_path, [1, 1])
    assert expand(str(tmp_path / "*.tar")) == (str(tmp_path / "000.tar"), str(tmp_path / "001.tar"))
    with pytest.raises(DataError, match="more than 1,000,000"):
        expand("{0..9999999}.tar")


def test_what_is_a_list_of_shards(tmp_path: Path) -> None:
    wanted = ("s/{0..3}.tar", "s/*.parquet", "http://x/{0..3}.tar?download=1")
    assert all(is_list_of_shards(text) for text in wanted)
    write_shard(tmp_path / "a.tar", 0, 1)
    others = (tmp_path / "a.tar", "digits", "hf:owner/name", "s/*.png")
    assert not any(is_list_of_shards(text) for text in others)


def test_what_stands_beside_a_picture_is_read(tmp_path: Path) -> None:
    names = ("cat", "dog")
    pattern = write_shards(
        tmp_path,
        [6, 5],
        cls=lambda row: row % 2,
        txt=lambda row: f"picture {row}",
        json=lambda row: {"age": row / 2, "source": "web"},
    )
    shards = opened(pattern, tmp_path, classes=names)
    store = shards.open(1)
    assert store.classes == names
    assert store.labels is not None
    assert store.labels.tolist() == [0, 1, 0, 1, 0]
    assert store.captions is not None
    assert store.captions[3] == "picture 3"
    assert store.numbers["age"].tolist() == [0, 0.5, 1, 1.5, 2]
    assert (store.pictures[:, 0, 0, 0] == 10).all()
    assert store.pictures[:, 0, 0, 1].tolist() == [0, 1, 2, 3, 4]


def test_the_first_shard_decides_and_stays(tmp_path: Path) -> None:
    shards = opened(write_shards(tmp_path, [20, 9, 9]), tmp_path)
    assert shards.first.pictures.shape == (20, 8, 8, 3)
    assert len(shards.first.held_out) == 1
    assert shards.pictures_each == 19
    shards.open(1)
    stores = tmp_path / "cache" / "stores"
    assert len(list(stores.iterdir())) == 2
    shards.forget(1)
    shards.forget(0)
    assert len(list(stores.iterdir())) == 1


def test_the_list_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    write_shards(tmp_path, [4, 4, 4])
    prints = [opened(str(tmp_path / names), tmp_path).first.fingerprint for names in ("00{0..1}.tar", "00{0..2}.tar")]
    assert prints[0] != prints[1]


def test_shards_behind_an_address_are_fetched(tmp_path: Path, address: str) -> None:
    write_shards(tmp_path, [6, 5])
    shards = opened(f"{address}/00{{0..1}}.tar", tmp_path)
    assert np.array_equal(shards.open(1).pictures, opened(str(tmp_path / "00{0..1}.tar"), tmp_path).open(1).pictures)
    (tmp_path / "001.tar").unlink()
    assert len(shards.open(1)) == 5  # from the cache: nothing is asked of the network


class TestRefusals:
    def test_a_missing_file(self, tmp_path: Path) -> None:
        write_shards(tmp_path, [4, 4])
        with pytest.raises(DataError, match=r"1 of 3 shards .* missing, the first is .*002\.tar"):
            opened(str(tmp_path / "{000..002}.tar"), tmp_path)

    def test_one_shard_or_none(self, tmp_path: Path) -> None:
        write_shards(tmp_path, [4])
        with pytest.raises(DataError, match="is one shard"):
            opened(str(tmp_path / "*.tar"), tmp_path)
        with pytest.raises(DataError, match="means no file"):
            opened(str(tmp_path / "x*.tar"), tmp_path)

    def test_a_file_that_goes_missing_later(self, tmp_path: Path) -> None:
        shards = opened(write_shards(tmp_path, [4, 4]), tmp_path)
        (tmp_path / "001.tar").unlink()
        with pytest.raises(DataError, match=r"001\.tar.* is missing"):
            shards.open(1)

    def test_an_address_without_a_file(self, tmp_path: Path, address: str) -> None:
        write_shards(tmp_path, [4])
        with pytest.raises(DataError, match=r"cannot be fetched .*404"):
            opened(f"{address}/00{{0..1}}.tar", tmp_path).open(1)

    def test_no_network(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shard_module.time, "sleep", lambda seconds: None)
        with pytest.raises(DataError, match="check the address and the connection"):
            opened("http://127.0.0.1:9/00{0..1}.tar", tmp_path)

    def test_a_tar_that_breaks_off(self, tmp_path: Path) -> None:
        pattern = write_shards(tmp_path, [4, 40])
        whole = (tmp_path / "001.tar").read_bytes()
        (tmp_path / "001.tar").write_bytes(whole[: len(whole) // 2 + 100])
        with pytest.raises(DataError, match=r"001\.tar' is damaged"):
            opened(pattern, tmp_path).open(1)

    def test_broken_pictures_follow_the_policy(self, tmp_path: Path) -> None:
        write_shard(tmp_path / "0.tar", 0, 10)
        write_shard(tmp_path / "1.tar", 1, 10, broken=(3,))
        write_shard(tmp_path / "2.tar", 2, 10, broken=(1, 2, 3, 4))
        shards = opened(str(tmp_path / "{0..2}.tar"), tmp_path)
        assert len(shards.open(1)) == 9
        with pytest.raises(DataError, match="4 of 10 pictures cannot be read"):
            shards.open(2)

    def test_a_class_that_nobody_declared(self, tmp_path: Path) -> None:
        write_shard(tmp_path / "0.tar", 0, 4, cls=lambda row: row % 2)
        write_shard(tmp_path / "1.tar", 1, 4, cls=lambda row: row)
        with pytest.raises(DataError, match="of class '2'"):
            opened(str(tmp_path / "{0..1}.tar"), tmp_path).open(1)

    def test_a_list_where_one_is_expected(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="list of shards"):
            open_store(write_shards(tmp_path, [4, 4]), DataConfig())


def test_parquet_files_are_shards_too(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    from shards import picture

    for number in range(2):
        rows = [{"bytes": picture(number, row)} for row in range(5)]
        table = pyarrow.table({"image": rows, "text": [f"{number} {row}" for row in range(5)]})
        parquet.write_table(table, tmp_path / f"{number}.parquet")
    store = opened(str(tmp_path / "{0..1}.parquet"), tmp_path).open(1)
    assert store.pictures[:, 0, 0].tolist() == [[10, row, 0] for row in range(5)]
    assert store.captions is not None
    assert store.captions[4] == "1 4"
