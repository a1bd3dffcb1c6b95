from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.codec import PixelCodec
from ddpm.conditions import Condition
from ddpm.conditions.asked import Asked, asked_of, class_named, draw, encode
from ddpm.config import NetworkConfig
from ddpm.config.conditions import ConditionSpec, NumberColumn
from ddpm.diffusion import make_schedule
from ddpm.errors import SamplingError
from ddpm.model import Model
from ddpm.networks import build_network

CLASSES = ConditionSpec(classes=("cat", "dog", "7"), class_counts=(70, 20, 10), dropout=0.1)
AGE = NumberColumn(name="age", mean=10.0, std=5.0, low=1.0, high=20.0)
AGES = CLASSES.model_copy(
    update={
        "numbers": (AGE,),
        "examples": ((0.0, 1.0), (0.0, 2.0), (1.0, 20.0)),
        "classes": ("cat", "dog"),
        "class_counts": (2, 1),
    }
)


def model_of(spec: ConditionSpec) -> Model:
    config = NetworkConfig(kind="mlp", base_channels=8, blocks_per_level=1)
    network = build_network(config, (1, 1, 2), conditions=spec).eval()
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
    codec = PixelCodec(None, (-1.0, 1.0), "float32")
    return Model(network, config, make_schedule("cosine", 50), "v", codec, (1, 1, 2), conditions=spec)


class TestClasses:
    def test_by_name_or_by_number_the_name_first(self) -> None:
        assert [class_named(CLASSES, name) for name in ("dog", 0, "1", "7", 2)] == ["dog", "cat", "dog", "7", "7"]
        assert class_named(CLASSES, "none") is None

    @pytest.mark.parametrize(
        ("spec", "name", "message"),
        [
            (CLASSES, "dgo", "no class 'dgo'; did you mean 'dog'"),
            (CLASSES, 3, "no class '3'.*3 classes are known: cat, dog, 7"),
            (CLASSES, -1, "no class '-1'"),
            (ConditionSpec(), "cat", "trained without labels"),
            (CLASSES.model_copy(update={"dropout": 0.0}), "none", "conditions.dropout=0"),
        ],
    )
    def test_what_is_no_class_is_refused(self, spec: ConditionSpec, name: str | int, message: str) -> None:
        with pytest.raises(SamplingError, match=message):
            class_named(spec, name)


class TestDraws:
    def test_classes_come_as_often_as_in_the_training_data(self) -> None:
        labels = [each.label for each in draw(CLASSES, range(4000), 0)]
        for name, share in zip(CLASSES.classes, (0.7, 0.2, 0.1), strict=True):
            assert abs(labels.count(name) / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5

    def test_a_draw_belongs_to_its_picture_and_seed(self) -> None:
        assert draw(CLASSES, [5, 3], 1) == draw(CLASSES, range(6), 1)[5:2:-2]
        assert draw(CLASSES, range(50), 1) != draw(CLASSES, range(50), 2)

    def test_asked_labels_go_round(self) -> None:
        asks = draw(CLASSES, [0, 1, 2, 5], 0, labels=["dog", None])
        assert [each.label for each in asks] == ["dog", None, "dog", None]

    def test_numbers_come_with_their_class(self) -> None:
        for each in draw(AGES, range(50), 0):
            assert each.numbers["age"] in ({1.0, 2.0} if each.label == "cat" else {20.0})
        for each in draw(AGES, range(20), 0, labels=["dog"]):
            assert each.numbers == {"age": 20.0}
        assert {each.numbers["age"] for each in draw(AGES, range(9), 0, numbers={"age": 3.5})} == {3.5}

    def test_an_unknown_column_is_refused(self) -> None:
        with pytest.raises(SamplingError, match="no column 'aeg'; did you mean 'age'"):
            draw(AGES, [0], 0, numbers={"aeg": 1.0})
        with pytest.raises(SamplingError, match="trained without numbers"):
            draw(CLASSES, [0], 0, numbers={"age": 1.0})


def test_what_is_asked_for_becomes_what_the_network_reads() -> None:
    condition = encode(AGES, [Asked("dog", {"age": 20.0}), Asked(None, {})])
    assert condition.label is not None
    assert condition.numbers is not None
    assert condition.label.tolist() == [1, -1]
    assert condition.numbers[0].item() == 2.0  # (20 - 10) / 5
    assert bool(condition.numbers[1].isnan().all())


def test_what_is_asked_for_survives_as_json() -> None:
    for each in (Asked(), Asked("a"), Asked("b", {"x": 0.5})):
        assert asked_of(each.as_tree()) == each
    for tree in ({"label": 3}, {"numbers": [1]}, {"numbers": {"x": "1"}}, {"numbers": {"x": float("nan")}}):
        with pytest.raises(SamplingError, match="the condition"):
            asked_of(tree)


class TestModel:
    def test_the_file_keeps_what_it_is_conditioned_on(self, tmp_path: Path) -> None:
        model = model_of(AGES)
        model.save(tmp_path / "m.safetensors")
        again = Model.load(tmp_path / "m.safetensors")
        assert again.conditions == AGES
        assert np.array_equal(again.sample(5), model.sample(5))

    def test_without_a_condition_it_samples_the_training_datas(self) -> None:
        model = model_of(AGES)
        given = encode(AGES, draw(AGES, range(6), 3))
        assert np.array_equal(model.sample_numbers(range(6), seed=3, condition=given), model.sample(6, seed=3))
        assert not np.array_equal(
            model.sample_numbers(range(6), seed=3, condition=given.dropped()), model.sample(6, seed=3)
        )

    def test_a_wrong_number_of_conditions_is_refused(self) -> None:
        with pytest.raises(SamplingError, match="1 condition for 2 pictures"):
            model_of(CLASSES).sample_numbers([0, 1], condition=Condition(label=torch.tensor([0])))

    def test_an_unconditional_model_takes_none(self) -> None:
        with pytest.raises(SamplingError, match="trained without conditions"):
            model_of(ConditionSpec()).sample_numbers([0], condition=Condition(label=torch.tensor([0])))
