from __future__ import annotations

import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from ddpm.errors import ConfigError, DataError, DdpmError, RunError
from ddpm.processes import ALONE, Group, joined, launch
from ddpm.processes.joining import refuse_launched
from ddpm.processes.launch import RESTARTS, check_processes, is_lost_peer
from ddpm.processes.links import silent_processes
from groups import together


@pytest.mark.parametrize(("count", "size"), [(8, 2), (7, 3), (3, 3), (128, 5)])
def test_parts_are_the_whole_in_order_and_differ_by_one_at_most(count: int, size: int) -> None:
    groups = [Group(rank, size) for rank in range(size)]
    parts = [list(range(count))[group.part(count)] for group in groups]
    assert [number for part in parts for number in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert max(map(len, parts)) == groups[0].largest_part(count)


def test_fewer_pictures_than_processes_are_refused() -> None:
    with pytest.raises(RunError, match="a batch of 2 and 3 processes, of which each needs a picture"):
        Group(0, 3).part(2)


def failing(error: DdpmError) -> Any:
    raise error


def met(work: Any) -> str:
    """Return the error of a call in words."""
    try:
        work()
    except DdpmError as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def told(group: Group, told_so_far: list[str]) -> Generator[str, None, int]:
    told_so_far.append(f"{group.rank}")
    yield "a line"
    return 7


def agree(group: Group, folder: Path) -> dict[str, Any]:
    own = torch.arange(5.0).reshape(5, 1)[group.part(5)] + 10
    tensor = torch.full((3,), float(group.rank + 1))
    group.share([tensor])
    who: list[str] = []
    lines: list[str] = []
    work = group.first_yields(told(group, who))
    try:
        while True:
            lines.append(next(work))
    except StopIteration as end:
        result = end.value
    mark = folder / "mark"
    was_there = group.host_by_host(lambda: (mark.exists(), mark.write_text("made"))[0])
    return {
        "rows": group.rows(own, 5).flatten().tolist(),
        "most": group.most(10 - group.rank),
        "any": (group.any(group.rank == 1), group.any(False)),
        "every": group.every(group.rank),
        "of_first": group.of_first(f"from {group.rank}"),
        "only_first": group.only_first(lambda: 5),
        "shared": tensor.tolist(),
        "first_yields": (who, lines, result),
        "was_there": was_there,
        "error": met(lambda: group.first(lambda: failing(DataError("no pictures")))),
        "error_of_one": met(lambda: group.host_by_host(lambda: group.rank and failing(DataError("a broken disk")))),
        "differ": met(lambda: group.check_same({"data": "same", "version": f"1.{group.rank}"})),
        "words": group.words,
    }


def test_what_processes_agree_on(tmp_path: Path) -> None:
    first, second = together(agree, tmp_path)
    everywhere = ("rows", "most", "any", "every", "of_first", "shared", "error", "error_of_one", "differ")
    assert all(first[name] == second[name] for name in everywhere)
    assert first["rows"] == [10, 11, 12, 13, 14]
    assert (first["most"], first["any"], first["every"]) == (10, (True, False), [0, 1])
    assert (first["of_first"], first["shared"]) == ("from 0", [1, 1, 1])
    assert (first["only_first"], second["only_first"]) == (5, None)
    assert (first["first_yields"], second["first_yields"]) == ((["0"], ["a line"], 7), ([], [], 7))
    assert (first["was_there"], second["was_there"]) == (False, True)
    assert first["error"] == "DataError: no pictures"
    assert first["error_of_one"] == "DataError: a broken disk"
    assert first["differ"].startswith("RunError: the processes differ in their version: '1.0' in process 0 on ")
    assert "2 processes on 1 machine (gloo): a sum over all of them takes" in first["words"]


def test_alone_everything_is_trivial() -> None:
    assert ALONE.part(3) == slice(0, 3)
    assert (ALONE.most(3), ALONE.any(False), ALONE.every(1), ALONE.of_first(2), ALONE.first(lambda: 3)) == (
        3,
        False,
        [1],
        2,
        3,
    )
    with joined() as group:
        assert group is ALONE


def test_who_is_silent_is_named() -> None:
    hosts = ("north", "north", "south", "south")
    one = silent_processes("Rank 3 failed to pass monitoredBarrier in 10000 ms", hosts)
    assert one.startswith("process 3 on south met the others, but did not answer within 10 s")
    two = silent_processes("[Rank 0]: Ranks 1, 2 failed to pass monitoredBarrier in 10000 ms", hosts)
    assert two.startswith("process 1 on north, process 2 on south met")


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--processes 0; expected at least 1"):
        check_processes(0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"this machine has 2 GPU\(s\)"):
        check_processes(3)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match="inside of torchrun"):
        check_processes(2)
    with pytest.raises(ConfigError, match="ddpm train-classifier runs in one process, not in 4"):
        refuse_launched("ddpm train-classifier")


def test_an_unreachable_first_process_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import timedelta

    monkeypatch.setattr("ddpm.processes.joining.MEETING", timedelta(seconds=1))
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match=r"cannot reach the first one at localhost:1 .*firewall"), joined():
        pass


def test_a_port_in_use_and_a_missing_process_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket
    from datetime import timedelta

    monkeypatch.setattr("ddpm.processes.joining.MEETING", timedelta(seconds=1))
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(RunError, match=f"port {port} on localhost is in use"), joined():
            pass
    with pytest.raises(RunError, match=r"not all of the 2 processes came to localhost:\d+ within 1 s"), joined():
        pass


def refuse(folder: Path) -> None:
    with joined() as group, (folder / "starts").open("a") as file:
        file.write(f"{group.rank}\n")
        raise DataError(f"no pictures in {folder}")


def test_an_error_for_people_comes_back_and_nothing_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    with pytest.raises(DataError, match="no pictures in"):
        launch(refuse, tmp_path, processes=2)
    assert sorted((tmp_path / "starts").read_text().split()) == ["0", "1"]
    assert RESTARTS > 0


def test_errors_of_lost_processes_are_told_from_others() -> None:
    assert is_lost_peer(RuntimeError("[../third_party/gloo] Connection closed by peer [127.0.0.1]:4"))
    assert not is_lost_peer(RuntimeError("shapes cannot be multiplied"))
