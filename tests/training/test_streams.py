"""Streamed shards: which pictures a step sees is a function of (seed, step), also after a kill."""

from __future__ import annotations

import json
from collections import Counter, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import TINY
from ddpm.config import merge
from ddpm.errors import ConfigError, DataError
from ddpm.training.loop import StepReport
from ddpm.training.plan import Plan, make_plan
from ddpm.training.run import run
from ddpm.training.streams import STRIDE, StreamedBatches, Walk
from shards import write_shards
from tiny_runs import differing

TWO_AT_ONCE = merge(TINY, {"data": {"shards_at_once": 2}, "network": {"head_channels": None}})
WALK = Walk(seed=3, shards=7, each=10, window=3)


class TestWalk:
    def test_every_shard_gives_the_same_number_each_epoch(self) -> None:
        for epoch in range(3):
            shards, places = WALK.places(np.arange(epoch * 70, (epoch + 1) * 70))
            assert Counter(shards.tolist()) == dict.fromkeys(range(7), 10)
            for shard in range(7):
                assert sorted(places[shards == shard]) == list(range(epoch * 10, (epoch + 1) * 10))

    def test_windows_follow_one_another_and_are_mixed(self) -> None:
        shards, _ = WALK.places(np.arange(70))
        assert [len(set(shards[start : start + 30].tolist())) for start in (0, 30, 60)] == [3, 3, 1]
        assert len(set(shards[:10].tolist())) > 1

    def test_it_does_not_depend_on_how_it_is_cut(self) -> None:
        whole = WALK.places(np.arange(200))
        parts = [WALK.places(np.arange(start, start + 25)) for start in range(0, 200, 25)]
        for k in range(2):
            assert np.array_equal(whole[k], np.concatenate([part[k] for part in parts]))

    def test_other_epochs_and_seeds_have_other_orders(self) -> None:
        first = WALK.places(np.arange(70))[0]
        assert not np.array_equal(first, WALK.places(np.arange(70, 140))[0])
        assert not np.array_equal(first, Walk(4, 7, 10, 3).places(np.arange(70))[0])

    def test_this_window_and_the_next_are_needed(self) -> None:
        assert WALK.needed(0, 5) == {*WALK.members(0, 0), *WALK.members(0, 1)}
        assert WALK.needed(28, 31) == {*range(7)}
        assert WALK.needed(65, 66) == {*WALK.members(0, 2), *WALK.members(1, 0)}


def plan(tmp_path: Path, name: str = "run", *, counts: Any = (20, 25, 12, 30), beside: Any = None, **tree: Any) -> Plan:
    folder = tmp_path / "shards"
    pattern = str(folder / "*.tar")
    if not folder.exists():
        write_shards(folder, list(counts), **(beside or {}))
    return make_plan(
        pattern, merge(TWO_AT_ONCE, tree), preset="auto", out=tmp_path / name, cache_dir=tmp_path / "cache"
    )


def source(made: Plan, part: slice = slice(None)) -> StreamedBatches:
    batches = made.batches(50, part)
    assert isinstance(batches, StreamedBatches)
    return batches


def test_batches_hold_the_pictures_of_their_rows(tmp_path: Path) -> None:
    made = plan(tmp_path)
    seen: Counter[tuple[int, int]] = Counter()
    batches = source(made)
    for step in range(15):
        batch = batches.batch(step)
        values = made.codec.decode(batch.x_0)
        shards, rows = np.divmod(batch.rows, STRIDE)
        assert np.array_equal(values[:, 0, 0, 0], 10 * shards)
        assert np.array_equal(values[:, 0, 0, 1], rows)
        seen.update(zip(shards.tolist(), rows.tolist(), strict=True))
    batches.close()
    held_out = {(0, int(row)) for row in made.store.held_out}
    everything = {(shard, row) for shard, count in enumerate((20, 25, 12, 30)) for row in range(count)}
    assert set(seen) == everything - held_out
    stores = [folder for folder in (tmp_path / "cache" / "stores").iterdir() if not folder.name.startswith(".")]
    assert len(stores) <= 4


def test_a_step_is_the_same_whatever_was_made_before_and_by_whom(tmp_path: Path) -> None:
    made = plan(tmp_path)
    late, early = source(made).batch(9), source(made)
    for step in range(9):
        early.batch(step)
    whole = early.batch(9)
    assert np.array_equal(late.rows, whole.rows)
    halves = [source(made, part).batch(9) for part in (slice(0, 8), slice(8, 16))]
    assert np.array_equal(whole.rows, np.concatenate([half.rows for half in halves]))


def test_conditions_are_those_of_the_pictures(tmp_path: Path) -> None:
    beside = {"cls": lambda row: row % 3, "txt": lambda row: f"row {row}", "json": lambda row: {"age": row}}
    made = plan(
        tmp_path,
        beside=beside,
        conditions={"label": True, "numbers": ["age"], "dropout": 0.0},
        data={"classes": list("abcd")},
    )
    assert made.condition_spec.classes == tuple("abcd")  # of which no shard here holds the last
    batch = source(made).batch(3)
    assert batch.condition is not None
    assert batch.condition.label is not None
    assert batch.condition.numbers is not None
    rows = batch.rows % STRIDE
    assert np.array_equal(batch.condition.label.numpy(), rows % 3)
    column = made.condition_spec.numbers[0]
    assert np.allclose(batch.condition.numbers[:, 0].numpy() * column.std + column.mean, rows, atol=1e-4)


@pytest.mark.parametrize("conditions", [{"picture": "paired"}, {"label": True, "balanced": True}])
def test_what_shards_cannot_tell_is_refused(tmp_path: Path, conditions: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="streamed shards"):
        plan(tmp_path, conditions=conditions)


def test_a_run_that_was_killed_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = plan(tmp_path, "whole")
    deque(run(whole), maxlen=0)
    events = run(plan(tmp_path, "killed"))
    for event in events:
        if isinstance(event, StepReport) and event.step == 6:
            break
    events.close()  # type: ignore[attr-defined]  # saves nothing, as a kill would
    again = make_plan(
        str(tmp_path / "shards" / "*.tar"),
        TWO_AT_ONCE,
        preset="auto",
        out=tmp_path / "killed",
        cache_dir=tmp_path / "another cache",
    )
    deque(run(again), maxlen=0)
    for name in ("checkpoint.safetensors", "model.safetensors"):
        assert differing(whole.out / name, again.out / name) == []
    assert (tmp_path / "another cache").is_dir()


def test_pictures_have_names_for_messages(tmp_path: Path) -> None:
    made = plan(tmp_path)
    assert made.name_of(2 * STRIDE + 7).endswith("002.tar, 0007.png")


def test_what_was_reached_is_saved_when_a_shard_is_gone(tmp_path: Path) -> None:
    made = plan(tmp_path, training={"steps": 20, "checkpoint_every": 1000})
    later = Walk(made.config.seed, 4, len(made.store.train), 2).members(0, 1)
    gone = next(int(shard) for shard in later if shard)  # the first is decoded already
    (tmp_path / "shards" / f"{gone:03}.tar").unlink()
    with pytest.raises(DataError, match=rf"{gone:03}\.tar.* is missing"):
        deque(run(made), maxlen=0)
    counters = json.loads(_metadata(made.out / "checkpoint.safetensors")["counters"])
    assert counters["step"] > 0


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata: dict[str, str] = file.metadata()
    return metadata
