from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ddpm.conditions import Condition, concatenated


def full(count: int = 3) -> Condition:
    """Return conditions of every kind, none of which is "none"."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return Condition(
        label=torch.arange(count),
        numbers=normal(count, 2),
        picture=normal(count, 2, 4, 4),
        tokens=torch.arange(1, 4 * count + 1).reshape(count, 4),
        prompt=normal(count, 2, 5),
    )


def assert_equal(one: Condition, other: Condition) -> None:
    assert one.fields().keys() == other.fields().keys()
    for name, value in one.fields().items():
        assert torch.equal(value.nan_to_num(99), other.fields()[name].nan_to_num(99)), name


def test_dropping_touches_the_pictures_under_the_mask_alone() -> None:
    condition, mask = full(), torch.tensor([True, False, True])
    dropped = condition.drop(mask)
    assert_equal(dropped.select(~mask), condition.select(~mask))
    assert_equal(dropped.select(mask), condition.dropped().select(mask))
    none = condition.dropped().fields()
    assert bool((none["label"] == -1).all())
    assert bool(none["numbers"].isnan().all())
    for name in ("picture", "tokens", "prompt"):
        assert not bool(none[name].any())
    for name, value in none.items():
        assert (value.dtype, value.shape) == (condition.fields()[name].dtype, condition.fields()[name].shape)


def test_features_of_a_text_are_dropped_as_its_tokens_are() -> None:
    condition = Condition(tokens=torch.ones(2, 3, 4))
    assert condition.drop(torch.tensor([False, True])).tokens.sum() == 12  # type: ignore[union-attr]


def test_parts_put_together_are_the_whole() -> None:
    condition = full(5)
    assert_equal(concatenated([condition.select(slice(0, 2)), condition.select(torch.tensor([2, 3, 4]))]), condition)
    assert len(concatenated([condition, condition.dropped()])) == 10


def test_fields_that_are_not_there_stay_away() -> None:
    condition = Condition(label=torch.tensor([0, 1]))
    assert set(condition.fields()) == {"label"}
    assert set(concatenated([condition, condition]).fields()) == {"label"}
    assert condition.to("cpu").numbers is None


def test_what_is_no_condition_of_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="a condition of nothing"):
        Condition()
    with pytest.raises(ValueError, match="one number of pictures"):
        Condition(label=torch.zeros(2, dtype=torch.int64), numbers=torch.zeros(3, 1))
