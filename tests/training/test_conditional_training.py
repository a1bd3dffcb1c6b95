from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import TINY, MakePlan
from ddpm.conditions.asked import draw
from ddpm.conditions.of_data import conditions_of, declare
from ddpm.config import DataConfig, from_tree, merge
from ddpm.config.conditions import ConditionsConfig, conditions_tree
from ddpm.data import open_store
from ddpm.errors import ConfigError, DataError
from ddpm.model import Model
from ddpm.training.batches import BatchSource, balanced_rows
from ddpm.training.distill import make_distillation_plan
from ddpm.training.evaluate import HeldOut
from ddpm.training.fine_tune import make_fine_tuning_plan
from ddpm.training.plan import Plan, make_plan
from ddpm.training.run import run
from tiny_runs import differing


def source_of(plan: Plan, batch_size: int = 64) -> BatchSource:
    return BatchSource(
        pictures=plan.store.pictures,
        rows=plan.rows,
        codec=plan.codec,
        batch_size=batch_size,
        num_timesteps=50,
        seed=plan.config.seed,
        conditions=plan.conditions,
    )


def table(folder: Path, rows: list[str], header: str, size: int = 8) -> Path:
    """Write coloured pictures and a table of them; a row's first cell is its picture."""
    rng = np.random.default_rng(0)
    for row in rows:
        picture = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / row.split(",")[0])
    (folder / "metadata.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def aged(folder: Path, count: int = 40) -> Path:
    rows = [f"{i:03d}.png,{'cat' if i % 4 else 'dog'},{i},{i % 7}" for i in range(count)]
    return table(folder, rows, "file_name,label,age,size")


class TestGuidanceThatSuits:
    @pytest.mark.parametrize(
        ("conditions", "scale"),
        [
            ({"label": True}, 1.5),
            ({"text": "own"}, 3.0),
            ({"label": True, "text": "own"}, 3.0),
            ({"label": True, "numbers": ["age"]}, 1.5),
            ({"numbers": ["age"]}, None),
            ({"picture": "gray"}, None),
            ({"picture": "gray", "label": True}, None),
            ({"label": True, "dropout": 0.0}, None),
            ({}, None),
        ],
    )
    def test_it_follows_from_the_conditions(self, conditions: dict[str, Any], scale: float | None) -> None:
        assert from_tree({"conditions": conditions}).with_guidance().sampling.guidance == scale

    def test_a_plan_has_it_where_nothing_is_said(self, plan: MakePlan) -> None:
        assert plan(conditions={"label": True}).config.sampling.guidance == 1.5
        assert plan(conditions={"label": True}, sampling={"steps": 5}).config.sampling.guidance == 1.5
        assert plan(conditions={"label": True}, sampling={"guidance": 1.0}).config.sampling.guidance == 1.0
        assert plan(conditions={"label": True}, sampling={"guidance": 4.0}).config.sampling.guidance == 4.0
        assert plan().config.sampling.guidance is None

    def test_points_are_sampled_as_they_are_distributed(self, tmp_path: Path) -> None:
        rows = [f"{x},{x % 3},{'a' if x % 2 else 'b'}" for x in range(60)]
        (tmp_path / "points.csv").write_text("\n".join(["x,y,label", *rows]) + "\n")
        overrides = {"conditions": {"label": True}}
        made = make_plan(str(tmp_path / "points.csv"), overrides, out=tmp_path / "run", cache_dir=tmp_path / "cache")
        assert made.condition_spec.classes == ("a", "b")
        assert made.config.sampling.guidance is None

    def test_the_model_is_sampled_with_it_and_scale_one_turns_it_off(self, plan: MakePlan, tmp_path: Path) -> None:
        made = plan(conditions={"label": True}, training={"steps": 2}, sampling={"steps": 4})
        deque(run(made), maxlen=0)
        model = Model.load(made.out)
        assert model.sampling.guidance == 1.5
        assert np.array_equal(model.sample(3, label="all"), model.sample(3, label="all", guidance=1.5))
        off = model.with_sampling(guidance=1)
        assert off.guidance is None
        assert np.array_equal(model.sample(3, label="all", guidance=1), off.sample(3, label="all"))
        for dropout, scale in ((0.1, 1.5), (0, None)):
            tree = {"conditions": {"dropout": dropout}}
            tuned = make_fine_tuning_plan(made.out, "digits", tree, out=tmp_path / f"tuned-{dropout}")
            assert tuned.config.sampling.guidance == scale

    @pytest.mark.parametrize(
        ("tree", "words"),
        [
            ({"sampling": {"guidance": 2.0}}, "no conditions to guide to"),
            ({"conditions": {"label": True, "dropout": 0.0}, "sampling": {"guidance": 2.0}}, "conditions.dropout is 0"),
            ({"sampling": {"guidance_interval": [5, 9]}}, "guidance_interval without guidance"),
            ({"sampling": {"guidance_rescale": 0.5}}, "guidance_rescale without guidance"),
            (
                {"conditions": {"label": True}, "sampling": {"guidance": 2.0, "negative": "blue"}},
                "there are no texts",
            ),
        ],
    )
    def test_guidance_that_could_not_be_followed_is_refused_before_training(
        self, tree: dict[str, Any], words: str
    ) -> None:
        with pytest.raises(ConfigError, match=words):
            from_tree(tree)


class TestBatches:
    def test_every_picture_comes_with_its_class_or_with_none(self, plan: MakePlan) -> None:
        made = plan(conditions={"label": True})
        source, labels = source_of(made), made.store.labels
        assert labels is not None
        seen = dropped = 0
        for step in range(40):
            batch = source.batch(step)
            assert batch.condition is not None
            assert batch.condition.label is not None
            kept = batch.condition.label >= 0
            assert torch.equal(batch.condition.label[kept], torch.from_numpy(labels[batch.rows])[kept])
            seen, dropped = seen + len(batch), dropped + int((~kept).sum())
        assert abs(dropped / seen - 0.1) < 4 * (0.1 * 0.9 / seen) ** 0.5

    @pytest.mark.parametrize("share", [0.0, 0.5])
    def test_the_share_that_is_dropped_is_the_configured_one(self, plan: MakePlan, share: float) -> None:
        source = source_of(plan(conditions={"label": True, "dropout": share}))
        labels = torch.cat([source.batch(step).condition.label for step in range(20)])  # type: ignore[union-attr]
        assert abs(float((labels < 0).float().mean()) - share) <= 4 * (share * (1 - share) / len(labels)) ** 0.5

    def test_whether_a_picture_is_dropped_depends_on_its_number_alone(self, plan: MakePlan) -> None:
        made = plan(conditions={"label": True})
        whole = source_of(made, 64).batch(1).condition
        halves = [source_of(made, 32).batch(step).condition for step in (2, 3)]
        assert whole is not None
        assert torch.equal(whole.label, torch.cat([half.label for half in halves]))  # type: ignore[union-attr, arg-type]

    def test_conditions_change_nothing_else_in_a_batch(self, plan: MakePlan) -> None:
        with_labels, without = source_of(plan(conditions={"label": True})).batch(3), source_of(plan()).batch(3)
        for name in ("x_0", "t", "eps", "dropout_keys", "u"):
            assert torch.equal(getattr(with_labels, name), getattr(without, name)), name

    def test_a_part_of_a_batch_has_its_part_of_the_conditions(self, plan: MakePlan) -> None:
        batch = source_of(plan(conditions={"label": True})).batch(0)
        part = batch.part(10, 7)
        assert torch.equal(part.condition.label, batch.condition.label[10:17])  # type: ignore[union-attr, index]

    def test_balanced_classes_are_equally_frequent(self) -> None:
        labels = np.asarray([0] * 6 + [1] * 3 + [2] * 1, dtype=np.int64)
        rows = balanced_rows(np.arange(10, dtype=np.int64), labels)
        assert np.bincount(labels[rows]).tolist() == [6, 6, 6]
        assert set(rows.tolist()) == set(range(10))

    def test_a_balanced_run_sees_the_rare_class_as_often(self, tmp_path: Path) -> None:
        tree = merge(TINY, {"conditions": {"label": True, "balanced": True}})
        made = make_plan(aged(tmp_path), tree, preset="auto", out=tmp_path / "run")
        labels = made.store.labels
        assert labels is not None
        assert len(set(np.bincount(labels[made.rows]).tolist())) == 1


class TestNumbers:
    def test_they_are_standardised_by_the_training_pictures(self, tmp_path: Path) -> None:
        store = open_store(aged(tmp_path), DataConfig())
        found = declare(store, ConditionsConfig(numbers=("age", "size")), DataConfig())
        assert found is not None
        condition = found.of(store.train, torch.zeros(len(store.train), 3, 8, 8), seed=0, pictures=store.train)
        assert condition.numbers is not None
        assert condition.numbers.mean(0).abs().max() < 1e-6
        assert (condition.numbers.std(0, correction=0) - 1).abs().max() < 1e-6
        age = found.spec.numbers[0]
        assert (age.name, age.low, age.high) == ("age", *np.percentile(store.numbers["age"][store.train], [0, 100]))
        assert {row[1:] for row in found.spec.examples} <= {(float(i), float(i % 7)) for i in range(40)}

    def test_missing_ones_are_refused(self, tmp_path: Path) -> None:
        rows = [f"{i}.png,{'' if i == 2 else i}" for i in range(5)]
        store = open_store(table(tmp_path, rows, "file_name,age"), DataConfig())
        with pytest.raises(DataError, match=r"column 'age' .* has no number for 1 of 5 pictures, the first is 2.png"):
            declare(store, ConditionsConfig(numbers=("age",)), DataConfig())

    def test_unknown_and_constant_columns_are_refused(self, tmp_path: Path) -> None:
        store = open_store(table(tmp_path, [f"{i}.png,{i},1" for i in range(5)], "file_name,age,one"), DataConfig())
        with pytest.raises(DataError, match=r"no numeric column 'aeg'; did you mean 'age'.*age, one"):
            declare(store, ConditionsConfig(numbers=("aeg",)), DataConfig())
        with pytest.raises(DataError, match=r"'one' .* is 1 for every training picture"):
            declare(store, ConditionsConfig(numbers=("one",)), DataConfig())


class TestPictures:
    @pytest.mark.parametrize(("kind", "channels"), [("gray", 2), ("low_resolution", 4), ("mask", 4)])
    def test_they_are_made_from_the_picture_itself(self, tmp_path: Path, kind: Any, channels: int) -> None:
        tree = merge(TINY, {"conditions": {"picture": kind, "dropout": 0.0}})
        made = make_plan(aged(tmp_path), tree, preset="auto", out=tmp_path / "run")
        batch = source_of(made, 8).batch(0)
        assert batch.condition is not None
        picture = batch.condition.picture
        assert picture is not None
        assert picture.shape == (8, channels, 8, 8)
        given, known = picture[:, :-1], picture[:, -1:]
        if kind == "gray":
            luma = (batch.x_0 * torch.tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)).sum(1, keepdim=True)
            assert (given - luma).abs().max() < 1e-6
        elif kind == "low_resolution":
            assert (given[:, :, ::4, ::4] - batch.x_0.unfold(2, 4, 4).unfold(3, 4, 4).mean((4, 5))).abs().max() < 1e-6
            assert torch.equal(given[:, :, :4, :4], given[:, :, :1, :1].expand(-1, -1, 4, 4))
        else:
            assert torch.equal(given, batch.x_0 * known)
            assert bool(((known.mean((1, 2, 3)) > 0.2) & (known.mean((1, 2, 3)) < 1)).all())
        assert kind == "mask" or bool((known == 1).all())

    def test_they_lie_beside_the_data_by_name(self, tmp_path: Path) -> None:
        for folder, value in (("targets", 0), ("inputs", 100)):
            (tmp_path / folder).mkdir()
            for i in range(8):
                picture = np.full((8, 8, 3), value + i, np.uint8)
                picture[:, 0] += 1  # so that mirroring shows
                Image.fromarray(picture).save(tmp_path / folder / f"{i}.{'png' if value else 'bmp'}")
        tree = merge(TINY, {"conditions": {"picture": "paired", "dropout": 0.0}, "data": {"flip": True}})
        made = make_plan(tmp_path, tree, preset="auto", out=tmp_path / "run")
        source = BatchSource(made.store.pictures, made.rows, made.codec, 16, 50, 0, True, made.conditions)
        batch = source.batch(0)
        assert batch.condition is not None
        assert batch.condition.picture is not None
        assert (batch.condition.picture[:, :3] - batch.x_0 - 200 / 255).abs().max() < 1e-6
        (tmp_path / "inputs" / "3.png").unlink()
        with pytest.raises(DataError, match=r"no paired picture in .* for 1 of 8 pictures.*3\.bmp"):
            make_plan(tmp_path, tree, preset="auto", out=tmp_path / "run")

    def test_they_are_a_second_column_of_a_table(self, tmp_path: Path) -> None:
        for i in range(6):
            for name in ("a", "b"):
                value = i + 50 * (name == "b")
                Image.fromarray(np.full((8, 8), value, np.uint8)).save(tmp_path / f"{name}{i}.png")
        rows = [f"a{i}.png,b{i}.png" for i in range(6)]
        (tmp_path / "t.csv").write_text("\n".join(["file_name,sketch", *rows]) + "\n")
        tree = merge(TINY, {"conditions": {"picture": "paired", "inputs": "sketch", "dropout": 0.0}})
        made = make_plan(tmp_path / "t.csv", tree, preset="auto", out=tmp_path / "run")
        batch = source_of(made, 6).batch(0)
        assert batch.condition is not None
        assert batch.condition.picture is not None
        assert (batch.condition.picture[:, :1] - batch.x_0 - 100 / 255).abs().max() < 1e-6

    @pytest.mark.parametrize(
        ("conditions", "message"),
        [
            ({"picture": "gray"}, "so are these pictures"),
            ({"picture": "low_resolution", "factor": 3}, "factor is 3, which does not divide 8x8"),
            ({"balanced": True}, "balanced without classes"),
        ],
    )
    def test_what_does_not_go_with_the_data_is_refused(
        self, plan: MakePlan, conditions: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            plan(conditions=conditions)


class TestRefusals:
    def test_data_without_classes(self, tmp_path: Path) -> None:
        tree = merge(TINY, {"conditions": {"label": True}})
        for i in range(4):
            Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / f"{i}.png")
        with pytest.raises(DataError, match="no classes to condition on; put the pictures of each class"):
            make_plan(tmp_path, tree, preset="auto", out=tmp_path / "run")

    def test_data_with_a_class_that_the_model_does_not_know(self, tmp_path: Path) -> None:
        store = open_store(aged(tmp_path), DataConfig())
        spec = declare(open_store("digits", DataConfig()), ConditionsConfig(label=True), DataConfig())
        assert spec is not None
        with pytest.raises(DataError, match="has a class 'cat', which the model does not know"):
            conditions_of(store, spec.spec, ConditionsConfig(label=True), DataConfig())

    @pytest.mark.parametrize("word", ["lable", "label=3", "numbers", "picture=grey"])
    def test_words_that_ask_for_nothing_known(self, word: str) -> None:
        with pytest.raises(ConfigError, match="expected label, numbers=COLUMN"):
            conditions_tree([word])

    def test_words_become_a_configuration(self) -> None:
        words = ["label", "numbers=a,b", "numbers=c", "picture=mask"]
        tree = {"label": True, "numbers": ["a", "b", "c"], "picture": "mask"}
        assert conditions_tree(words) == tree


class TestRuns:
    def test_an_interrupted_run_ends_bit_equal(self, plan: MakePlan, tmp_path: Path) -> None:
        def make(name: str, steps: int) -> Plan:
            network = {"self_conditioning": True, "dropout": 0.1}
            return plan(name, conditions={"label": True}, network=network, training={"steps": steps})

        deque(run(make("whole", 8)), maxlen=0)
        deque(run(make("parts", 4)), maxlen=0)
        deque(run(make("parts", 8)), maxlen=0)
        assert differing(tmp_path / "whole/checkpoint.safetensors", tmp_path / "parts/checkpoint.safetensors") == []

    def test_a_preview_has_a_row_for_each_class(self, plan: MakePlan, tmp_path: Path) -> None:
        deque(run(plan(conditions={"label": True}, training={"previews": 20, "steps": 4})), maxlen=0)
        with Image.open(tmp_path / "run/previews/00000004.png") as sheet:
            assert sheet.height == 10 * 34 + 2  # 8 pixels, enlarged four times, and a gap

    def test_held_out_losses_know_the_classes(self, plan: MakePlan) -> None:
        made = plan(conditions={"label": True})
        held_out = HeldOut.of(made.store, made.codec, 50, 0, made.conditions).held_out
        labels = made.store.labels
        assert labels is not None
        for batch in held_out:
            assert batch.condition is not None
            assert torch.equal(batch.condition.label, torch.from_numpy(labels[batch.rows]))  # type: ignore[arg-type]

    def test_a_model_knows_its_classes_and_makes_them(self, tmp_path: Path) -> None:
        """Two half moons: with the class given, samples lie on the right one."""
        tree = {
            "conditions": {"label": True},
            "network": {"kind": "mlp", "base_channels": 64, "blocks_per_level": 2},
            "schedule": {"num_timesteps": 100, "name": "cosine"},
            "objective": {"parameterization": "v"},
            "training": {
                "steps": 300,
                "batch_size": 256,
                "learning_rate": 4e-3,
                "warmup_steps": 20,
                "decay": "cosine",
                "ema_decay": 0.98,
                "precision": "float32",
                "preview_every": 1000,
                "previews": 10,
                "milestones": 0,
            },
        }
        made = make_plan("moons", tree, preset="auto", out=tmp_path / "run")
        deque(run(made), maxlen=0)
        model = Model.load(tmp_path / "run")
        assert model.conditions.classes == ("upper", "lower")
        labels, real = made.store.labels, made.store.pictures.reshape(-1, 2)
        assert labels is not None
        samples = model.sample(400, seed=1).reshape(-1, 2)
        asked = np.asarray([each.label == "lower" for each in draw(model.conditions, range(400), 1)])
        nearest = np.linalg.norm(samples[:, None] - real[None, ::7], axis=2).argmin(1)
        assert (labels[::7][nearest] == asked).mean() > 0.9  # chance is 0.5

    @pytest.mark.parametrize("method", ["progressive", "consistency"])
    def test_a_distilled_model_keeps_its_classes(self, plan: MakePlan, tmp_path: Path, method: str) -> None:
        deque(run(plan("teacher", conditions={"label": True}, training={"steps": 4})), maxlen=0)
        tree = {"training": {"steps": 4, "batch_size": 8, "previews": 10, "precision": "float32", "device": "cpu"}}
        made = make_distillation_plan(
            tmp_path / "teacher", tree, steps=2, method=method, teacher_steps=2, out=tmp_path / "student"
        )
        deque(run(made), maxlen=0)
        student = Model.load(tmp_path / "student")
        assert student.conditions == Model.load(tmp_path / "teacher").conditions
        assert student.network.label_embedding is not None
        assert len(student.sample(3, label="7")) == 3
