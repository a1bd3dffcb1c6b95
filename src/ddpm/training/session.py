"""A session: the parts of a run that is under way, and what it writes into its folder."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from ddpm.config import TrainingConfig
from ddpm.data import save_png
from ddpm.engine import Engine, engine_of, without_kernels
from ddpm.errors import ConfigError, DataError, SamplingError, TrainingError
from ddpm.model import Model
from ddpm.model.averaging import KEPT_WIDTHS, with_width
from ddpm.networks.kernels import keep_no_weights
from ddpm.processes import ALONE, Group
from ddpm.processes.sharding import local, shard, whole_weights
from ddpm.training.agreement import compare, facts
from ddpm.training.checkpoint import load_checkpoint, read_notes, save_checkpoint, save_shards
from ddpm.training.ema import Ema, PowerAverage
from ddpm.training.evaluate import HeldOut
from ddpm.training.events import Evaluated, Event, Notice, Previewed, Saved, Scored
from ddpm.training.forecast import MemoryForecast, foresee
from ddpm.training.importance import LossHistory
from ddpm.training.loop import Objective, StepReport, TrainState, make_optimizer
from ddpm.training.plan import Plan, config_tree
from ddpm.training.preview import draw_preview
from ddpm.training.run_folder import (
    CHECKPOINT_MODELS,
    Metrics,
    RunFolder,
    append_line,
    check_space,
    explained_disk_errors,
)
from ddpm.training.scoring import SampleScore, Scorer, is_best
from ddpm.training.status import Evaluation, assess, evaluation_of
from ddpm.version import __version__

T = TypeVar("T")


@dataclass(eq=False)
class Session:
    """A run under way.

    Attributes:
        plan: what is trained on what, where.
        folder: its files.
        state: weights, average, optimizer, counters.
        objective: what is minimised.
        engine: where and in which precision.
        held_out: the fixed pictures that evaluations use.
        memory: what training takes of it.
        group: the processes that train together; the first one writes.
        skeleton: where weights are in pieces, the network without any (on the "meta" device); else none.
        scorer: of samples, where the best model is chosen by them; else none.
        history: every evaluation so far.
        scores: every score of samples so far.
        seconds: spent training, over all sessions.
        saved_step: the step of the checkpoint on the disk.
        notices: what the user should know about how it was opened.
    """

    plan: Plan
    folder: RunFolder
    state: TrainState
    objective: Objective
    engine: Engine
    held_out: HeldOut
    memory: MemoryForecast
    group: Group = ALONE
    skeleton: nn.Module | None = None
    scorer: Scorer | None = None
    history: list[Evaluation] = field(default_factory=list)
    scores: list[SampleScore] = field(default_factory=list)
    seconds: float = 0.0
    saved_step: int = 0
    notices: list[str] = field(default_factory=list)

    @staticmethod
    def open(plan: Plan, folder: RunFolder, scorer: Scorer | None = None, group: Group = ALONE) -> Session:
        """Build a fresh run, or bring back the one in the folder; the first process reads for all.

        Raises:
            RunError: if the folder holds a run on other data, or with another configuration; or if a process has other
                data, another configuration or another version of the code than the first one.
        """
        group.check_same(facts(plan))
        notes = group.first(lambda: read_notes(folder.checkpoint) if folder.checkpoint.exists() else None)
        notices = compare(plan, notes) if notes else []
        engine, moved = engine_of(notes["engine"]) if notes else (plan.choose_engine(), None)
        if notes and notes.get("processes", 1) != group.size:
            engine = replace(engine, threads=torch.get_num_threads())
            notices.append(
                f"changed on resume: processes: {notes.get('processes', 1)} -> {group.size}; the same steps, within "
                "rounding"
            )
        notices += engine.notices
        notices += without_kernels() if engine.device == "cpu" and not engine.native else []
        session = _build(plan, folder, engine, group)
        session.scorer = scorer
        if notes:
            fitting = session.state.micro_batch_size
            load_checkpoint(folder.checkpoint, session.state, group)
            asked_anew = plan.config.training.micro_batch_size != notes["config"]["training"]["micro_batch_size"]
            if asked_anew or group.any(not session.memory.fits(session.state.micro_batch_size)):
                session.state.micro_batch_size = fitting  # else what the run began with, for the same bits
            session.history = [evaluation_of(tree) for tree in notes["history"]]
            session.scores = [SampleScore(**tree) for tree in notes.get("scores", [])]
            session.seconds = notes["seconds"]
            session.saved_step = session.state.step
            notices += [moved] if moved else []
            notices.append(f"resumed at step {session.state.step:,} of {plan.config.training.steps:,}")
        session.memory = replace(session.memory, micro_batch_size=session.state.micro_batch_size)
        session.notices = notices + session.memory.told_of_fitting()
        return session

    def model(self, *, averaged: bool = True) -> Model:
        """Return the model as it stands, sharing its weights."""
        config = self.plan.config
        model = Model(
            network=self.state.ema.network if averaged else self.state.network,
            network_config=config.network,
            schedule=self.objective.schedule,
            parameterization=config.objective.parameterization,
            variance=config.objective.variance,
            conditions=self.plan.condition_spec,
            codec=self.plan.codec,
            picture_shape=self.plan.picture_shape,
            sampling=config.sampling,
            provenance=self._provenance(averaged),
        )
        return self.plan.complete(model)

    @property
    def sharded(self) -> bool:
        """Whether each process holds a piece of the weights: then all evaluate together, and the first one writes."""
        return self.skeleton is not None

    def led(self, work: Generator[Event, None, T]) -> Generator[Event, None, T]:
        """Let the first process do its work of evaluating and writing, or all together, where it takes all weights."""
        return (yield from work) if self.sharded else (yield from self.group.first_yields(work))

    def _written(self, write: Callable[[], T]) -> T:
        """Let the first process write, where all do the work around it."""
        if not self.sharded:
            return write()

        def explained() -> T:
            with explained_disk_errors(self.folder.path, self.saved_step):
                return write()

        return self.group.first(explained)

    def _agreed(self, value: T) -> T:
        """Return the first process's value, where all have one; they could differ in their last bits."""
        return self.group.of_first(value) if self.sharded else value

    def _whole_model(self) -> Model:
        """Return the model with whole weights, to be written by the first process."""
        model = self.model()
        if self.skeleton is None:
            return model
        weights = whole_weights(self.state.ema.network, self.group)
        if not self.group.is_first:
            return model
        network = copy.deepcopy(self.skeleton)
        network.load_state_dict(weights, assign=True)
        return replace(model, network=network)

    @property
    def num_trained(self) -> int:
        """How many numbers the optimizer moves."""
        return sum(weight.numel() for weight in self.state.network.parameters() if weight.requires_grad)

    def forecast_bytes(self) -> int:
        """Return what the folder will take; refuse if there is no space for it."""
        training = self.plan.config.training
        size, limit = self._model_bytes(), training.disk_limit_gib
        return check_space(self.folder, size, training.milestones, limit, training.snapshots)

    def evaluate(self, metrics: Metrics) -> Evaluated:
        """Measure the held-out loss of the averaged weights; keep the model if it is the best by that."""
        evaluation = self._agreed(self.held_out.evaluate(self.state.ema.network, self.objective, self.state.step))
        self.history.append(evaluation)
        status = assess(self.history)
        metrics.write(
            {
                "step": evaluation.step,
                "held_out": evaluation.held_out,
                "train": evaluation.train,
                "held_out_by_noise": list(evaluation.by_noise),
                **{f"held_out_{name}": value for name, value in evaluation.parts.items()},
                "status": status.verdict,
            }
        )
        if self.scorer is None and evaluation.held_out <= min(past.held_out for past in self.history):
            model = self._whole_model()
            self._written(lambda: self.plan.write(model, self.folder.best_model))
        return Evaluated(evaluation, status)

    def score(self, scorer: Scorer, metrics: Metrics) -> Scored | Notice:
        """Score samples of the averaged weights; keep the model if it is the best by that."""
        step, began, model = self.state.step, time.monotonic(), self.model()
        try:
            with self.engine.autocast():
                found = scorer(model)
        except (SamplingError, DataError) as error:  # early samples may be all alike; the run goes on
            return Notice(f"no score at step {step:,}: {error}")
        self.scores.append(SampleScore(step, found.value, found.error, scorer.recipe(model)))
        name = self.plan.config.training.score
        metrics.write({"step": step, name: found.value, f"{name}_error": found.error})
        best = is_best(self.scores)
        if best:
            self.plan.write(model, self.folder.best_model)
        return Scored(self.scores[-1], best, time.monotonic() - began)

    def save(self, metrics: Metrics) -> Iterator[Notice | Saved]:
        """Write the model, a milestone where one is due, and the checkpoint.

        The checkpoint comes last: whatever a kill before it leaves out, the repeated steps write again, bit for bit.

        Raises:
            TrainingError: if a weight is not finite: the files on the disk stay as they are.
        """
        training, step = self.plan.config.training, self.state.step
        self._require_finite_weights()
        metrics.sync()
        model, size = self._whole_model(), self._model_bytes()
        due = _milestone_due(step, training.steps, training.milestones, training.checkpoint_every)
        keeps = self.state.kept if _kept_at(step, training) else ()
        coming = (CHECKPOINT_MODELS + due + len(self.state.kept) + len(keeps)) * size
        removed = self._written(lambda: self.folder.make_room(training.disk_limit_gib, coming))
        if removed:
            yield Notice(f"removed {len(removed)} milestone(s) to stay within {training.disk_limit_gib:g} GiB")
        self._written(lambda: self.plan.write(model, self.folder.model))
        if due and self._written(lambda: self.folder.has_room(training.disk_limit_gib, coming)):
            self._written(lambda: self.plan.write(model, self.folder.milestone(step)))
        for average in keeps:
            self._keep(model, average)
        if self.sharded:
            save_shards(self.folder.checkpoint, self.state, self._notes(), self.group)
        else:
            save_checkpoint(self.folder.checkpoint, self.state, self._notes())
        self.saved_step = step
        yield Saved(step, self.folder.path)

    def _keep(self, model: Model, average: PowerAverage) -> None:
        provenance = with_width(model.provenance, average.width)
        kept = replace(model, network=average.network, provenance=provenance)
        file = self.folder.average(self.state.step, average.width)
        self._written(lambda: self.plan.write(kept, file))

    def preview(self) -> Previewed | Notice:
        """Write a grid from the fixed noise, beside what the plan wants there, or early in a run beside raw weights."""
        training, step = self.plan.config.training, self.state.step
        early = step <= training.steps // 5
        beside = self.plan.shown_beside() or ([self.model(averaged=False)] if early else [])
        path = self.folder.preview(step)
        try:
            sheet = draw_preview([*beside, self.model()], self.plan.shown(), self.plan.config.seed, self.engine)
        except SamplingError as error:  # a preview is no reason to end a run
            return Notice(f"no preview at step {step:,}: {error}")
        self._written(lambda: save_png(sheet, path))
        return Previewed(path)

    def explain_skip(self, report: StepReport) -> Notice:
        """Name the pictures behind a loss that is not finite, in ``skipped.jsonl`` and in one sentence."""
        bad = np.flatnonzero(~np.isfinite(report.losses))
        names = [self.plan.name_of(int(row)) for row in report.rows[bad]]
        details = {
            "step": report.step,
            "loss": report.loss,
            "pictures": names,
            "t": report.t[bad].tolist(),
            "x_0_range": [float(report.batch.x_0.min()), float(report.batch.x_0.max())],
        }
        self._written(lambda: append_line(self.folder.skipped, details))
        which = f"pictures: {', '.join(names[:3])}" if names else "every loss was finite, but the gradient was not"
        return Notice(f"step {report.step} skipped, its loss or gradient is not finite ({which}); see skipped.jsonl")

    def _require_finite_weights(self) -> None:
        networks = (self.state.network, self.state.ema.network)
        finite = all(bool(local(p).isfinite().all()) for network in networks for p in network.parameters())
        if self.group.any(not finite) if self.sharded else not finite:
            raise TrainingError(
                f"weights are no longer finite at step {self.state.step}; the checkpoint of step {self.saved_step} is "
                f"kept. Try a lower training.learning_rate, now {self.plan.config.training.learning_rate:g}"
            )

    def _model_bytes(self) -> int:
        return 4 * self.num_trained

    def _provenance(self, averaged: bool) -> dict[str, Any]:
        store, config = self.plan.store, self.plan.config
        return {
            "code_version": __version__,
            "weights": "ema" if averaged else "raw",
            "step": self.state.step,
            "pictures_seen": self.state.step * config.training.batch_size,
            "data": store.source,
            "data_fingerprint": store.fingerprint,
            "data_count": len(store.train),
            "classes": list(store.classes),
            "preset": self.plan.preset,
            "config": config_tree(self.plan),
            "engine": self.engine.as_tree(),
            **self.plan.lineage(),
        }

    def _notes(self) -> dict[str, Any]:
        return {
            "config": config_tree(self.plan),
            "data": self.plan.store.source,
            "data_fingerprint": self.plan.store.fingerprint,
            "engine": self.engine.as_tree(),
            "history": [asdict(evaluation) for evaluation in self.history],
            "scores": [asdict(score) for score in self.scores],
            "seconds": self.seconds,
            "processes": self.group.size,
        }


def _build(plan: Plan, folder: RunFolder, engine: Engine, group: Group) -> Session:
    config, training = plan.config, plan.config.training
    network, objective = plan.start(engine)
    group.share(list(network.parameters()))
    num_timesteps = len(objective.schedule)
    held_out = HeldOut.of(plan.store, plan.codec, num_timesteps, config.seed, plan.conditions)
    memory = group.each(lambda: foresee(network, objective, held_out.train[0], training, group))
    memory = replace(memory, micro_batch_size=-group.most(-memory.micro_batch_size))  # what fits everywhere
    ema, skeleton = Ema(network, training.ema_decay), None
    if training.sharding == "full" and not group.is_alone:
        if engine.precision == "float16":  # each process would see the overflows of its own pieces alone
            raise ConfigError("training.sharding is 'full' in float16; use training.precision=float32, or bfloat16")
        skeleton = copy.deepcopy(network).to("meta")
        for each in (network, ema.network):
            keep_no_weights(each)
            shard(each, group)
    state = TrainState(
        network=network,
        ema=ema,
        optimizer=make_optimizer(network, training),
        micro_batch_size=memory.micro_batch_size,
        history=LossHistory.empty(num_timesteps) if config.objective.timesteps == "importance" else None,
        scaler=engine.scaler(),
        kept=tuple(PowerAverage(network, width) for width in KEPT_WIDTHS) if training.snapshots else (),
    )
    return Session(
        plan=plan,
        folder=folder,
        state=state,
        objective=objective,
        engine=engine,
        held_out=held_out,
        memory=memory,
        group=group,
        skeleton=skeleton,
    )


def _kept_at(step: int, training: TrainingConfig) -> bool:
    """Whether averages are kept with this checkpoint: at equal distances, and at the end."""
    every = training.checkpoint_every
    return training.snapshots > 0 and (
        step == training.steps or _milestone_due(step, training.steps, training.snapshots, every)
    )


def _milestone_due(step: int, steps: int, milestones: int, every: int) -> bool:
    """Whether a checkpoint is the first one at or after a multiple of steps / milestones (the end has its own file)."""
    if milestones == 0 or step in (0, steps) or step % every:  # one made because of an interruption is none
        return False
    spacing = steps / milestones
    return math.floor(step / spacing) > math.floor((step - every) / spacing)
