"""Archives: members that escape or are damaged."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest
from containers import (
    COUNT,
    PNGS,
    add_to_tar,
    make_zip,
)

from ddpm.config import DataConfig
from ddpm.data import open_store
from ddpm.errors import DataError

pytestmark = pytest.mark.usefixtures("no_network")


def test_members_that_try_to_escape_are_ignored(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        for name in ("../out.png", "/abs.png", "a/../../b.png", "C:/c.png", "ok/1.png", "ok/2.png"):
            archive.writestr(name, PNGS[0])
    before = sorted(tmp_path.rglob("*"))
    store = open_store(tmp_path / "evil.zip", DataConfig(), cache_dir=tmp_path / "cache")
    assert sorted(store.names) == ["ok/1.png", "ok/2.png"]
    assert store.report.ignored == {"unsafe names": 4}
    outside = [path for path in sorted(tmp_path.rglob("*")) if tmp_path / "cache" not in [path, *path.parents]]
    assert outside == before


def test_links_and_devices_in_a_tar_are_ignored(tmp_path: Path):
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        for name, kind in (("l.png", tarfile.SYMTYPE), ("h.png", tarfile.LNKTYPE), ("f.png", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        add_to_tar(archive, "../up.png", PNGS[0])
        add_to_tar(archive, "1.png", PNGS[1])
        add_to_tar(archive, "2.png", PNGS[2])
    store = open_store(tmp_path / "evil.tar", DataConfig(), cache_dir=tmp_path / "cache")
    assert list(store.names) == ["1.png", "2.png"]
    assert store.report.ignored == {"links": 3, "unsafe names": 1}


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.npz", "a.npy", "a.parquet"])
def test_damaged_containers_are_named(name: str, tmp_path: Path):
    (tmp_path / name).write_bytes(b"\x1f\x8b this is nothing of the kind" * 20)
    with pytest.raises(DataError, match=name.replace(".", r"\.")) as caught:
        open_store(tmp_path / name, DataConfig(), cache_dir=tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache" / "stores").iterdir())


def test_damaged_member_is_a_bad_file(tmp_path: Path):
    data = bytearray(make_zip(tmp_path).read_bytes())
    at = data.find(PNGS[2][60:90])
    at = at if at > 0 else len(data) // 2
    data[at] ^= 0xFF
    (tmp_path / "b.zip").write_bytes(bytes(data))
    store = open_store(tmp_path / "b.zip", DataConfig(max_bad_share=0.5), cache_dir=tmp_path / "cache")
    assert len(store) == COUNT - 1
    assert len(store.report.bad) == 1
