from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from ddpm.codec import PixelCodec
from ddpm.training.batches import Batch, BatchSource, prefetched

COUNT = 40
PICTURES = np.arange(COUNT * 4 * 4, dtype=np.float32).reshape(COUNT, 4, 4, 1)
CODEC = PixelCodec(None, (-1.0, 1.0), "float32")
TENSORS = ("x_0", "t", "eps", "dropout_keys", "u", "conditioned", "weights")


def source(**changes: object) -> BatchSource:
    plain = BatchSource(PICTURES, np.arange(COUNT), CODEC, batch_size=16, num_timesteps=100, seed=1)
    return replace(plain, **changes)  # type: ignore[arg-type]


def equal(a: Batch, b: Batch) -> bool:
    return np.array_equal(a.rows, b.rows) and all(torch.equal(getattr(a, f), getattr(b, f)) for f in TENSORS)


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    one, other = source(flip=True), source(flip=True)
    forwards = [one.batch(step) for step in range(6)]
    backwards = [other.batch(step) for step in reversed(range(6))][::-1]
    assert all(map(equal, forwards, backwards))
    assert not equal(forwards[0], forwards[1])
    changed = source(flip=True, seed=2).batch(0)
    for name in TENSORS[:-1]:
        assert not torch.equal(getattr(forwards[0], name), getattr(changed, name)), name


def test_the_batch_size_does_not_change_what_picture_i_gets() -> None:
    small = [source(flip=True, batch_size=8).batch(step) for step in range(4)]
    large = [source(flip=True, batch_size=32).batch(0)]
    for name in ("rows", *TENSORS):
        a, b = (np.concatenate([np.asarray(getattr(batch, name)) for batch in batches]) for batches in (small, large))
        assert np.array_equal(a, b), name


def test_every_picture_comes_once_an_epoch_and_epochs_differ() -> None:
    rows = np.arange(3, 3 + 2 * 15, 2)  # 15 rows of the data, not all of them; the batch does not divide them
    batches = source(rows=rows, batch_size=4)
    seen = np.concatenate([batches.batch(step).rows for step in range(15)])
    epochs = seen.reshape(4, 15)
    assert all(np.array_equal(np.sort(epoch), rows) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_times_are_uniform_and_in_range() -> None:
    t = torch.cat([source(batch_size=1000).batch(step).t for step in range(20)])
    counts = torch.bincount(t, minlength=100)
    assert len(counts) == 100
    assert (counts - 200).abs().max() < 5 * 200**0.5


def test_times_are_the_uniform_numbers_behind_them() -> None:
    batch = source(batch_size=5000).batch(0)
    assert torch.equal(batch.t, (batch.u * 100).floor().long())
    assert float(batch.u.min()) >= 0
    assert float(batch.u.max()) < 1
    assert bool((batch.weights == 1).all())
    assert abs(float(batch.conditioned.double().mean()) - 0.5) < 0.03


def test_the_parts_of_a_batch_are_the_batch() -> None:
    batch = source().batch(3)
    parts = [batch.part(start, 7) for start in range(0, 16, 7)]
    assert [len(part) for part in parts] == [7, 7, 2]
    for name in ("rows", *TENSORS):
        joined = np.concatenate([np.asarray(getattr(part, name)) for part in parts])
        assert np.array_equal(joined, np.asarray(getattr(batch, name))), name


def test_flips_mirror_about_half_and_nothing_else() -> None:
    plain, flipped = source(batch_size=2000).batch(0), source(batch_size=2000, flip=True).batch(0)
    same = (plain.x_0 == flipped.x_0).flatten(1).all(1)
    mirrored = (plain.x_0.flip(-1) == flipped.x_0).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert abs(float(mirrored.double().mean()) - 0.5) < 0.05
    assert np.array_equal(PICTURES.ravel(), np.arange(PICTURES.size))  # the data themselves stay


def test_prefetched_yields_in_order() -> None:
    assert list(prefetched(lambda number: number * number, 3, 50)) == [number * number for number in range(3, 50)]
    assert list(prefetched(lambda number: number, 5, 5)) == []


def test_prefetched_raises_the_workers_error_at_its_item() -> None:
    def make(number: int) -> int:
        if number == 4:
            raise ValueError("item 4")
        return number

    items = prefetched(make, 0, 10)
    assert [next(items) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="item 4"):
        next(items)


def test_prefetched_stays_ahead_by_no_more_than_asked() -> None:
    made: list[int] = []
    iterator = prefetched(lambda number: made.append(number) or number, 0, 1000, ahead=2)
    assert next(iterator) == 0
    threading.Event().wait(0.2)
    iterator.close()
    assert len(made) <= 1 + 2 + 2  # taken, waiting, and one more while the worker waits for room


def test_closing_prefetched_ends_its_thread() -> None:
    before = threading.active_count()
    iterator = prefetched(lambda number: number, 0, 10**9)
    assert next(iterator) == 0
    assert threading.active_count() == before + 1
    iterator.close()
    assert threading.active_count() == before
