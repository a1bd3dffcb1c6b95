from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.engine import Engine
from ddpm.errors import SamplingError
from ddpm.model import Model
from ddpm.sampling import forecast, make_pictures, parse_numbers
from ddpm.sampling.batches import Forecast, count_evaluations


def engine(precision: str) -> Engine:
    return Engine(device="cpu", precision=precision, channels_last=precision == "bfloat16", threads=1)  # type: ignore[arg-type]


def placed(trained: Path, precision: str) -> tuple[Model, Engine]:
    chosen = engine(precision)
    model = Model.load(trained)
    return replace(model, network=chosen.place(model.network)), chosen


def made(model: Model, chosen: Engine, numbers: Sequence[int], batch_size: int) -> dict[int, np.ndarray]:
    batches = make_pictures(model, numbers, seed=3, engine=chosen, batch_size=batch_size)
    return {number: picture for batch, pictures in batches for number, picture in zip(batch, pictures, strict=True)}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_picture_is_the_same_in_any_batch_and_order(trained: Path, precision: str) -> None:
    model, chosen = placed(trained, precision)
    model = model.with_sampling(sampler="ddpm", steps=4)
    whole = made(model, chosen, range(17), 17)
    for numbers, batch_size in ((range(17), 1), (range(16, -1, -1), 3), ([9, 2, 16], 3), (range(17), 8)):
        for number, picture in made(model, chosen, numbers, batch_size).items():
            apart = np.abs(picture.astype(int) - whole[number].astype(int)).max()
            assert apart <= 1, (number, batch_size)  # of 17 levels: 1/255 of a picture is less than one level
            assert apart == 0 or precision == "bfloat16"


def test_the_embedding_of_a_row_has_the_same_bits_in_any_batch(trained: Path) -> None:
    network = Model.load(trained).network
    t = torch.linspace(0, 49, 40)
    whole = network._embed(t, None, None)
    for batch in (1, 2, 3, 7, 9, 30):
        assert torch.equal(network._embed(t[:batch], None, None), whole[:batch])


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("3", [3]), ("3,17,40-43", [3, 17, 40, 41, 42, 43]), (" 5 - 6 , 1", [5, 6, 1]), ("2,2,1-3", [2, 1, 3])],
)
def test_numbers_of_pictures_are_read(text: str, numbers: list[int]) -> None:
    assert parse_numbers(text) == numbers


@pytest.mark.parametrize("text", ["", "a", "3,", "-3", "5-", "7-3", "1.5", "0-99999999999", "1" * 30])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(SamplingError, match="expected for example"):
        parse_numbers(text)


def test_memory_that_runs_out_halves_the_batch_and_changes_nothing(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, chosen = placed(trained, "float32")
    expected = made(model, chosen, range(11), 11)
    sizes: list[int] = []
    run = type(model.network).forward

    def short_of_memory(self: object, x_t: torch.Tensor, *rest: object, **more: object) -> object:
        if len(x_t) > 3:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
        sizes.append(len(x_t))
        return run(self, x_t, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(type(model.network), "forward", short_of_memory)
    found = made(model, chosen, range(11), 11)
    assert all(np.array_equal(found[number], expected[number]) for number in range(11))
    assert max(sizes) == 2
    assert forecast(model, 11, chosen, batch_size=11).batch_size == 2


def test_no_memory_for_a_single_picture_is_refused_and_other_errors_pass(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, chosen = placed(trained, "float32")

    def fail(error: Exception) -> object:
        def forward(*words: object, **more: object) -> object:
            raise error

        return forward

    monkeypatch.setattr(type(model.network), "forward", fail(MemoryError()))
    with pytest.raises(SamplingError, match="not even one picture"):
        made(model, chosen, [0], 1)
    with pytest.raises(SamplingError, match="not even one picture"):
        forecast(model, 4, chosen)
    monkeypatch.setattr(type(model.network), "forward", fail(RuntimeError("shapes cannot be multiplied")))
    with pytest.raises(RuntimeError, match="shapes"):
        made(model, chosen, [0, 1], 2)


def test_the_batch_follows_the_free_memory(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, chosen = placed(trained, "float32")
    sizes = []
    for free in (1, 2**20, 2**21, 2**40):
        monkeypatch.setattr("ddpm.sampling.batches.free_memory", lambda device, free=free: free)
        sizes.append(forecast(model, 10**6, chosen).batch_size)
    assert sizes[0] == 1
    assert sizes[1] == pytest.approx(sizes[2] / 2, abs=1)
    assert sizes[3] == 2**18 // 64
    assert forecast(model, 5, chosen).batch_size == 5


def test_a_forecast_counts_evaluations_and_time(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, chosen = placed(trained, "float32")
    monkeypatch.setattr("ddpm.sampling.batches._time_one", lambda model, engine, size: 0.25 * size)
    ahead = forecast(model.with_sampling(sampler="ddim", steps=7), 1000, chosen, batch_size=50)
    assert (ahead.batch_size, ahead.evaluations) == (50, 7)
    assert ahead.seconds == pytest.approx(7 * 20 * 0.25 * 50)
    assert ahead.as_words() == "about 29 minutes"
    words = [Forecast(1, 1, seconds).as_words() for seconds in (0.1, 5, 130, 7200)]
    assert words == ["about a second", "about 5 seconds", "about 2 minutes", "about 2 hours"]
    assert count_evaluations(model.with_sampling(sampler="ddpm", steps=50), 1) == 50
