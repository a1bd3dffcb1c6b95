"""A distillation is a run like any other: it begins as its teacher, learns, is killed, goes on, and ends as a model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddpm.config import ObjectiveConfig, merge
from ddpm.diffusion.schedules import make_schedule
from ddpm.engine import choose_engine
from ddpm.errors import ConfigError, DataError, DdpmError, ModelFileError, RunError
from ddpm.files import sha256_of
from ddpm.model import Model
from ddpm.networks import build_network
from ddpm.training.distill import (
    DistillationObjective,
    DistillationPlan,
    default_out,
    default_train_steps,
    make_distillation_plan,
    student_network,
)
from ddpm.training.evaluate import HeldOut
from ddpm.training.events import Evaluated, Finished, Previewed
from ddpm.training.loop import StepReport
from ddpm.training.run import run
from tiny_runs import differing, metric_lines, only, tiny_plan, train_all

pytestmark = pytest.mark.usefixtures("few_held_out")
SHORT: dict[str, Any] = {
    "steps": 6,
    "batch_size": 8,
    "micro_batch_size": 3,
    "warmup_steps": 2,
    "learning_rate": 1e-3,
    "checkpoint_every": 2,
    "evaluate_every": 3,
    "preview_every": 6,
    "log_every": 2,
    "previews": 2,
    "precision": "float32",
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("taught") / "teacher"
    train_all(folder, steps=3, schedule={"num_timesteps": 60})
    return folder


def plan_of(teacher: Path, out: Path, **training: Any) -> DistillationPlan:
    keywords = {
        key: training.pop(key)
        for key in ("method", "steps_of_student", "teacher_steps", "teacher_solver")
        if key in training
    }
    steps = keywords.pop("steps_of_student", 3)
    tree = {"training": merge(SHORT, training)}
    return make_distillation_plan(teacher, tree, steps=steps, out=out, **{"teacher_steps": 2, **keywords})


def changed(teacher: Path, path: Path, **changes: Any) -> Path:
    """Write the teacher with some of its parts replaced."""
    replace(Model.load(teacher), **changes).save(path)
    return path


@pytest.mark.parametrize("method", ["progressive", "consistency"])
def test_the_result_is_a_model_that_needs_no_flag(teacher: Path, tmp_path: Path, method: str) -> None:
    events = list(run(plan_of(teacher, tmp_path / "run", method=method)))
    assert only(events, Finished)[-1].complete
    model = Model.load(tmp_path / "run")
    assert (model.sampling.sampler, model.sampling.steps) == ("ddim", 3)
    assert model.sampling.timesteps == (59.0, 39.0, 19.0)
    assert [step.t for step in model.sample_steps([0])] == [59.0, 39.0, 19.0]
    origin = model.provenance["distilled_from"]
    assert origin["teacher_sha256"] == sha256_of(teacher / "model.safetensors")
    assert (origin["method"], origin["teacher_steps"], origin["step"]) == (method, 2, 3)
    assert model.sample(2).shape == (2, 8, 8, 1)
    from PIL import Image

    with Image.open(only(events, Previewed)[-1].path) as picture:  # teacher and student, side by side
        assert picture.width > 1.8 * picture.height / 2


def test_other_steps_leave_the_explicit_times(teacher: Path, tmp_path: Path) -> None:
    advice = Model.load(teacher).with_sampling(steps=2, timesteps=(40.0, 7.5)).sampling
    path = changed(teacher, tmp_path / "m.safetensors", sampling=advice)
    model = Model.load(path)
    assert [step.t for step in model.sample_steps([0])] == [40.0, 7.5]
    assert model.with_sampling(steps=3).sampling.timesteps is None
    assert model.with_sampling(steps=2).sampling.timesteps == (40.0, 7.5)
    assert [step.t for step in model.with_sampling(sampler="ddpm").sample_steps([0])] == [40.0, 7.5]


@pytest.mark.parametrize("times", [(40.0,), (7.0, 40.0), (7.0, 7.0), (7.0, -1.0)])
def test_times_that_cannot_be_walked_are_refused(teacher: Path, times: tuple[float, ...]) -> None:
    with pytest.raises(DdpmError, match="timesteps"):
        Model.load(teacher).with_sampling(steps=2, timesteps=times)


def test_the_student_begins_as_its_teacher(teacher: Path, tmp_path: Path) -> None:
    plan = plan_of(teacher, tmp_path / "run")
    network, _ = plan.start(choose_engine("cpu", "float32"))
    weights = Model.load(teacher).network.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())
    next(network.parameters()).data.zero_()
    assert next(plan.teacher.network.parameters()).any()  # the teacher has weights of its own


@pytest.mark.parametrize("kind", ["unet", "mlp"])
def test_a_student_has_no_outputs_for_variance_and_no_inputs_for_estimates(
    teacher: Path, tmp_path: Path, kind: str
) -> None:
    model = Model.load(teacher)
    config = model.network_config.model_copy(update={"self_conditioning": True, "kind": kind})
    shape = (6, 5, 3)
    network = build_network(config, shape, learned_variance=True)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    rich = replace(model, network=network, network_config=config, picture_shape=shape, variance="learned")
    plain = plan_of(teacher, tmp_path / "run").config
    plain = plain.model_copy(update={"network": config.model_copy(update={"self_conditioning": False})})
    x_t, t = torch.randn(2, 3, 6, 5), torch.tensor([3.0, 50.0])
    with torch.no_grad():
        wanted = network(torch.cat([x_t, torch.zeros_like(x_t)], 1), t, dropout_keys=None)[:, :3]
        found = student_network(rich, plain)(x_t, t, dropout_keys=None)
    assert (found - wanted).abs().max() < 1e-5
    assert wanted.abs().max() > 0.1


@pytest.mark.parametrize(("own", "wanted"), [("eps", "v"), ("mu", "v"), ("x_0", "x_0"), ("v", "v")])
def test_what_divides_by_the_signal_becomes_v(teacher: Path, tmp_path: Path, own: Any, wanted: str) -> None:
    path = changed(teacher, tmp_path / "teacher.safetensors", parameterization=own)
    list(run(plan_of(path, tmp_path / "run", steps=1)))
    assert Model.load(tmp_path / "run").parameterization == wanted


def test_the_times_of_a_batch_are_the_students_own(teacher: Path, tmp_path: Path) -> None:
    _, objective = plan_of(teacher, tmp_path / "run").start(choose_engine("cpu", "float32"))
    assert isinstance(objective, DistillationObjective)
    t = torch.arange(60)
    _, start, _, end = objective._times(t)
    assert sorted(set(zip(start.tolist(), end.tolist(), strict=True))) == [(19, -1), (39, 19), (59, 39)]
    assert torch.bincount(start.long())[[19, 39, 59]].tolist() == [20, 20, 20]
    assert (start >= t).all()

    _, objective = plan_of(teacher, tmp_path / "run", method="consistency").start(choose_engine("cpu", "float32"))
    assert isinstance(objective, DistillationObjective)
    steps = sorted({tuple(step) for step in torch.stack(objective._times(t)[1:], 1).tolist()})
    assert steps == [(9, -1, -1), (19, 9, -1), (29, 19, 19), (39, 29, 19), (49, 39, 39), (59, 49, 39)]


@pytest.mark.parametrize(("own", "share"), [("v", 0.9), pytest.param("eps", 0.7, marks=pytest.mark.slow)])
def test_the_student_learns(teacher: Path, tmp_path: Path, own: Any, share: float) -> None:
    path = changed(teacher, tmp_path / "teacher.safetensors", parameterization=own)
    often = {"checkpoint_every": 40, "evaluate_every": 40, "preview_every": 40}
    plan = plan_of(path, tmp_path / "run", steps=40, learning_rate=6e-3, micro_batch_size=8, **often)
    network, objective = plan.start(choose_engine("cpu", "float32"))
    before = HeldOut.of(plan.store, plan.codec, 60, 0).evaluate(network, objective, 0).held_out
    after = only(list(run(plan)), Evaluated)[-1].evaluation.held_out
    assert after < share * before


@pytest.mark.parametrize("method", ["progressive", pytest.param("consistency", marks=pytest.mark.slow)])
def test_in_pieces_it_is_the_one_that_was_never_stopped(teacher: Path, tmp_path: Path, method: str) -> None:
    list(run(plan_of(teacher, tmp_path / "whole", method=method)))
    for steps in (1, 3, 5):  # closing the iterator saves nothing: each session begins at the last checkpoint
        for event in run(plan_of(teacher, tmp_path / "pieces", method=method)):
            if isinstance(event, StepReport) and event.step == steps:
                break
    list(run(plan_of(teacher, tmp_path / "pieces", method=method)))
    for name in ("checkpoint", "model", "best"):
        assert differing(tmp_path / "whole" / f"{name}.safetensors", tmp_path / "pieces" / f"{name}.safetensors") == []
    assert metric_lines(tmp_path / "whole") == metric_lines(tmp_path / "pieces")


def test_a_run_goes_on_with_its_own_teacher_alone(teacher: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.safetensors"
    shutil.copy(teacher / "model.safetensors", moved)
    list(run(plan_of(teacher, tmp_path / "run", steps=2)))
    assert only(list(run(plan_of(moved, tmp_path / "run", steps=4))), Finished)[-1].step == 4
    other = changed(teacher, tmp_path / "other.safetensors", provenance={**Model.load(teacher).provenance, "step": 9})
    for plan in (
        plan_of(other, tmp_path / "run", steps=6),
        plan_of(teacher, tmp_path / "run", steps=6, method="consistency"),
        plan_of(teacher, tmp_path / "run", steps=6, teacher_steps=3),
        plan_of(teacher, tmp_path / "run", steps=6, teacher_solver="ddim"),
    ):
        with pytest.raises(RunError, match=r"another configuration \(distillation\."):
            list(run(plan))


def test_training_and_distilling_do_not_mix(teacher: Path, tmp_path: Path) -> None:
    list(run(plan_of(teacher, tmp_path / "run", steps=1)))
    with pytest.raises(RunError, match="another configuration"):
        train_all(tmp_path / "run", schedule={"num_timesteps": 60})
    with pytest.raises(RunError, match="another configuration"):
        list(run(plan_of(teacher, teacher)))
    section = {"teacher": "x", "teacher_sha256": "0", "teacher_steps": 1}
    with pytest.raises(ConfigError, match="use 'ddpm distill'"):
        tiny_plan(tmp_path / "new", distillation=section)


def test_the_budget_is_the_teachers_time(teacher: Path, tmp_path: Path) -> None:
    """A picture costs 3 passes in training, 3 + 2 here: 0.9 * 3 / 5 of the pictures, in batches of 8."""
    plan = plan_of(teacher, tmp_path / "run")
    assert default_train_steps(plan.config, 640_000) == int(0.9 * 640_000 * 3 / 5 / 8)
    with pytest.raises(ConfigError, match=r"24 pictures.*--train-steps"):
        make_distillation_plan(teacher, {}, steps=3, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        ({"steps": 0}, ConfigError, "0 steps of the student; expected 1 to 30"),
        ({"steps": 31}, ConfigError, "31 steps of the student"),
        ({"teacher_steps": 16}, ConfigError, "16 steps of the teacher in one of the student's; expected 1 to 15"),
        ({"teacher_steps": 0}, ConfigError, "0 steps of the teacher"),
        ({"teacher_solver": "euler"}, ConfigError, "distillation.teacher_solver"),
        ({"method": "progresive"}, ConfigError, "distillation.method"),
        ({"data": "swissroll"}, DataError, "those of the teacher are"),
    ],
)
def test_what_cannot_be_distilled_is_refused(
    teacher: Path, tmp_path: Path, words: dict[str, Any], error: type[DdpmError], said: str
) -> None:
    with pytest.raises(error, match=said):
        make_distillation_plan(teacher, {"training": SHORT}, out=tmp_path / "run", **words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("times", "said"), [("null", "needs the times"), ("[40.0, 20.0]", "timesteps names 2")])
def test_times_of_ones_own_must_fit(teacher: Path, tmp_path: Path, times: str, said: str) -> None:
    tree = merge({"training": SHORT}, {"sampling": {"timesteps": json.loads(times)}})
    with pytest.raises(ConfigError, match=said):
        make_distillation_plan(teacher, tree, steps=3, out=tmp_path / "run")
    tree["sampling"]["timesteps"] = [50.0, 30.0, 4.0]
    plan = make_distillation_plan(teacher, tree, steps=3, out=tmp_path / "run")
    assert plan.config.distillation is not None
    assert plan.config.distillation.teacher_steps == 5


@pytest.mark.parametrize("section", ["network", "objective", "schedule", "distillation"])
def test_what_the_teacher_decides_cannot_be_set(teacher: Path, tmp_path: Path, section: str) -> None:
    with pytest.raises(ConfigError, match=f"'{section}' comes from the teacher"):
        make_distillation_plan(teacher, {"training": SHORT, section: {}}, out=tmp_path / "run")


def test_a_distilled_model_is_no_teacher(teacher: Path, tmp_path: Path) -> None:
    list(run(plan_of(teacher, tmp_path / "run", steps=1)))
    with pytest.raises(ConfigError, match="is itself distilled, to 3 steps"):
        plan_of(tmp_path / "run", tmp_path / "again")
    with pytest.raises(ModelFileError):
        plan_of(tmp_path / "absent", tmp_path / "again")


def test_a_model_from_elsewhere_needs_data(teacher: Path, tmp_path: Path) -> None:
    path = changed(teacher, tmp_path / "bare.safetensors", provenance={})
    with pytest.raises(ConfigError, match="name the data with --data"):
        plan_of(path, tmp_path / "run")
    plan = make_distillation_plan(path, {"training": SHORT}, data="digits", out=tmp_path / "run", teacher_steps=1)
    assert only(list(run(plan)), Finished)[-1].complete


def test_points_can_be_distilled(tmp_path: Path) -> None:
    from ddpm.training.plan import make_plan

    small = {"training": {"steps": 2, "batch_size": 8, "previews": 4}, "network": {"base_channels": 8}}
    list(run(make_plan("swissroll", small, out=tmp_path / "teacher")))
    list(run(plan_of(tmp_path / "teacher", tmp_path / "run", steps=2)))
    assert np.isfinite(Model.load(tmp_path / "run").sample(3)).all()


def test_where_the_run_goes(tmp_path: Path) -> None:
    assert default_out(Path("runs/mnist/model.safetensors"), 4) == Path("runs/mnist-4-steps")
    assert default_out(Path("kept/mine.safetensors"), 8) == Path("kept/mine-8-steps")
    assert default_out(Path("model.safetensors"), 2) == Path(f"{Path.cwd()}-2-steps")


def test_the_teachers_schedule_is_the_students(teacher: Path, tmp_path: Path) -> None:
    other = make_schedule("linear", 60, zero_terminal_snr=True)
    path = changed(teacher, tmp_path / "teacher.safetensors", schedule=other, parameterization="v")
    list(run(plan_of(path, tmp_path / "run", steps=1)))
    assert torch.equal(Model.load(tmp_path / "run").schedule.betas, other.betas)
    assert ObjectiveConfig().parameterization == "eps"  # what the student would have had by default
