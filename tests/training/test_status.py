from __future__ import annotations

from collections.abc import Sequence

import pytest

from ddpm.training.status import Evaluation, assess


def history(held_out: Sequence[float], train: Sequence[float] | None = None) -> list[Evaluation]:
    pairs = zip(held_out, train or held_out, strict=True)
    return [Evaluation(100 * (i + 1), loss, on_train) for i, (loss, on_train) in enumerate(pairs)]


FALLING = [1.0, 0.8, 0.6, 0.5, 0.4, 0.35, 0.3, 0.28]


@pytest.mark.parametrize("count", range(6))
def test_few_evaluations_give_no_verdict(count: int) -> None:
    status = assess(history([1.0, 9.0, 99.0, 1.0, 50.0][:count]))
    assert (status.verdict, status.stop) == ("starting", False)


def test_a_falling_loss_is_improving() -> None:
    status = assess(history(FALLING))
    assert (status.verdict, status.stop) == ("improving", False)


def test_a_loss_that_hardly_moves_is_a_plateau_and_no_reason_to_stop() -> None:
    status = assess(history([1.0, 0.5, 0.3, 0.2, 0.2001, 0.1999, 0.2, 0.2001]))
    assert (status.verdict, status.stop) == ("plateau", False)


def test_a_growing_gap_is_overfitting_with_its_numbers() -> None:
    status = assess(history([1.0, 0.8, 0.5, 0.4, 0.42, 0.44], [1.0, 0.8, 0.5, 0.4, 0.35, 0.3]))
    assert (status.verdict, status.stop) == ("overfitting", False)
    assert "47 % above training loss" in status.sentence
    assert "10 % above its best (step 400)" in status.sentence


def test_overfitting_beyond_repair_stops() -> None:
    train = [1.0, 0.8, 0.5, 0.4, 0.35, 0.3]
    assert not assess(history([1.0, 0.8, 0.5, 0.4, 0.5, 0.59], train)).stop
    assert assess(history([1.0, 0.8, 0.5, 0.4, 0.5, 0.61], train)).stop


def test_a_gap_alone_is_no_overfitting_while_the_held_out_loss_falls() -> None:
    assert assess(history(FALLING, [0.5 * loss for loss in FALLING])).verdict == "improving"


def test_a_rising_training_loss_is_diverging_and_stops() -> None:
    status = assess(history([*FALLING, 0.46]))
    assert (status.verdict, status.stop) == ("diverging", True)
    assert "learning_rate" in status.sentence
    assert assess(history([*FALLING, 0.41])).verdict != "diverging"


def test_losses_of_either_sign_are_judged_without_ratios() -> None:
    """The bound of continuous data is a density: it may be negative, and 1.5 times as much is then better."""
    falling = assess(history([2.0, 1.0, 0.1, -0.5, -1.0, -1.4, -1.5, -1.6]))
    assert (falling.verdict, falling.stop) == ("improving", False)
    still = assess(history([-1.0, -2.0, -1.5, -1.4, -1.2, -1.9]))
    assert (still.verdict, still.stop) == ("plateau", False)
