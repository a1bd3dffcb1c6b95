"""Training a classifier: cross-entropy on clean pictures, or on x_t (Dhariwal & Nichol 2021, Sec. 4.1 and App. H)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ddpm.classifier import Accuracy, Classifier, build_classifier_network, signal_at
from ddpm.diffusion.noise import stream
from ddpm.diffusion.process import q_sample
from ddpm.engine import Engine, choose_engine
from ddpm.errors import TrainingError
from ddpm.networks.classifier import HalfUNet
from ddpm.networks.levels import recompute_activations
from ddpm.training.batches import Batch, BatchSource, prefetched
from ddpm.training.classifier_plan import ClassifierPlan
from ddpm.training.ema import Ema
from ddpm.training.interrupts import Interrupts
from ddpm.training.loop import MAX_SKIPPED_IN_A_ROW, learning_rate, make_optimizer
from ddpm.training.run_folder import explained_disk_errors
from ddpm.version import __version__

_QUICK = 2000
"""Held-out pictures of an accuracy on the way; the one at the end takes them all."""


@dataclass(frozen=True, slots=True)
class ClassifierStep:
    """An optimizer step was made; `loss` is the mean cross-entropy of its batch in nats."""

    step: int
    loss: float


@dataclass(frozen=True, slots=True)
class Scored:
    """The averaged weights were tried on held-out pictures; `by_noise` is empty for a classifier of clean ones."""

    step: int
    accuracy: Accuracy
    by_noise: tuple[Accuracy, ...]


@dataclass(frozen=True, slots=True)
class ClassifierSaved:
    """The file holds the averaged weights of this step; `reason` says why training ended, if it did."""

    step: int
    reason: str | None


ClassifierEvent: TypeAlias = ClassifierStep | Scored | ClassifierSaved


@dataclass(eq=False)
class _Training:
    plan: ClassifierPlan
    engine: Engine
    network: HalfUNet
    ema: Ema
    optimizer: torch.optim.AdamW
    labels: Tensor
    scaler: torch.amp.GradScaler | None = None
    step: int = 0
    skipped_in_a_row: int = 0

    def classifier(self, scores: dict[str, object]) -> Classifier:
        """Return the classifier with the averaged weights as they stand."""
        plan = self.plan
        network = self.ema.network
        assert isinstance(network, HalfUNet)
        return Classifier(
            network=network,
            config=plan.config,
            codec=plan.codec,
            classes=plan.store.classes,
            picture_shape=plan.picture_shape,
            schedule=plan.schedule,
            provenance={
                "code_version": __version__,
                "weights": "ema",
                "step": self.step,
                "data": plan.store.source,
                "data_fingerprint": plan.store.fingerprint,
                "data_count": len(plan.store.train),
                "preset": plan.preset,
                "schedule": plan.schedule_name,
                "engine": self.engine.as_tree(),
                **scores,
            },
        )


def run_classifier(plan: ClassifierPlan) -> Iterator[ClassifierEvent]:
    """Train according to a plan, yielding what happens; the file is written every `checkpoint_every` steps.

    Ctrl-C and SIGTERM end it after the step at hand, with the file written.

    Raises:
        RunError: if the file cannot be written.
        TrainingError: after ten steps in a row whose loss or gradient is not finite.
    """
    training = plan.config.training
    now = _begin(plan)
    source = BatchSource(
        pictures=plan.store.pictures,
        rows=plan.rows,
        codec=plan.codec,
        batch_size=training.batch_size,
        num_timesteps=1 if plan.schedule is None else len(plan.schedule),
        seed=plan.config.seed,
        flip=plan.config.data.flip,
    )

    def batch(step: int) -> Batch:
        made = source.batch(step)
        return replace(made, x_0=moved(made.x_0, plan.config.shift, plan.config.seed, step))

    with Interrupts() as interrupts, closing(prefetched(batch, 0, training.steps)) as batches:
        scored: Scored | None = None
        for made in batches:
            yield ClassifierStep(now.step + 1, _step(now, made))
            last = now.step == training.steps
            stopped = f"asked to stop ({interrupts.requested})" if interrupts.requested else None
            if last or stopped or now.step % training.evaluate_every == 0:
                scored = _score(now, None if last else _QUICK)
                yield scored
            if last or stopped or now.step % training.checkpoint_every == 0:
                yield _save(now, scored, "all steps made" if last else stopped)
            if stopped:
                return


def moved(x_0: Tensor, shift: int, seed: int, step: int) -> Tensor:
    """Return pictures [B, C, H, W], each moved by up to `shift` pixels each way, its edge repeated behind it."""
    if shift == 0:
        return x_0
    count, _, height, width = x_0.shape
    down, right = torch.from_numpy(stream(seed, "shift", draw=step).integers(-shift, shift + 1, size=(2, count)))
    rows = (torch.arange(height) - down[:, None]).clamp(0, height - 1)  # [B, H]
    columns = (torch.arange(width) - right[:, None]).clamp(0, width - 1)  # [B, W]
    picked = x_0[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # [B, H, W, C]
    return picked.permute(0, 3, 1, 2)  # [B, C, H, W]


def _begin(plan: ClassifierPlan) -> _Training:
    config = plan.config
    engine = choose_engine(config.training.device, config.training.precision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(stream(config.seed, "weights").integers(2**63)))
        network = build_classifier_network(config, plan.picture_shape, len(plan.store.classes))
    engine.place(network)
    recompute_activations(network, config.training.gradient_checkpointing)
    return _Training(
        plan=plan,
        engine=engine,
        network=network,
        ema=Ema(network, config.training.ema_decay),
        optimizer=make_optimizer(network, config.training),
        scaler=engine.scaler(),
        labels=torch.from_numpy(np.array(plan.labels)),
    )


def _step(now: _Training, batch: Batch) -> float:
    """Make one optimizer step, and return the loss; one that is not finite changes no weight."""
    training, device = now.plan.config.training, now.engine.device
    for group in now.optimizer.param_groups:
        group["lr"] = learning_rate(now.step, training)
    schedule = now.plan.schedule
    x_t = batch.x_0 if schedule is None else q_sample(batch.x_0, batch.t, batch.eps, schedule)
    memory_format = torch.channels_last if now.engine.channels_last else torch.contiguous_format
    x_t = x_t.to(device, memory_format=memory_format)
    t = None if schedule is None else batch.t.to(device, torch.float32)
    with now.engine.autocast():
        logits = now.network(x_t, t, signal_at(t, schedule), dropout_keys=batch.dropout_keys.to(device))
    wanted = now.labels[torch.from_numpy(batch.rows)].to(device)
    loss = functional.cross_entropy(logits, wanted, label_smoothing=now.plan.config.label_smoothing)
    (loss if now.scaler is None else now.scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]
    if now.scaler is not None:
        now.scaler.unscale_(now.optimizer)
        now.scaler.update()
    norm = float(nn.utils.clip_grad_norm_(now.network.parameters(), training.gradient_clip))
    now.step += 1
    if math.isfinite(norm) and math.isfinite(loss.item()):
        now.optimizer.step()
        now.ema.update(now.network, now.step)
        now.skipped_in_a_row = 0
    else:
        now.skipped_in_a_row += 1
        if now.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"{now.skipped_in_a_row} steps in a row had a loss or gradient that is not finite (the last at step "
                f"{now.step}); try --set training.learning_rate={training.learning_rate / 3:.1g} (now "
                f"{training.learning_rate:g}), or --set training.precision=float32"
            )
    now.optimizer.zero_grad(set_to_none=True)
    return loss.item()


def _score(now: _Training, most: int | None) -> Scored:
    plan = now.plan
    rows = plan.store.held_out
    if most is not None and len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]  # spread: files may be sorted by class
    pictures, labels = plan.store.pictures[rows], plan.labels[rows]
    classifier = now.classifier({})
    if plan.schedule is None:
        return Scored(now.step, classifier.accuracy(pictures, labels), ())
    by_noise = classifier.accuracy_by_noise(pictures, labels, seed=plan.config.seed)
    correct = sum(part.correct for part in by_noise)
    return Scored(now.step, Accuracy(correct, len(labels)), by_noise)


def _save(now: _Training, scored: Scored | None, reason: str | None) -> ClassifierSaved:
    scores: dict[str, object] = {}
    if scored is not None and scored.step == now.step:
        scores["accuracy"] = {"correct": scored.accuracy.correct, "n": scored.accuracy.n}
        scores["accuracy_by_noise"] = [{"correct": part.correct, "n": part.n} for part in scored.by_noise]
    with explained_disk_errors(now.plan.out.parent, now.step):
        now.classifier(scores).save(now.plan.out)
    return ClassifierSaved(now.step, reason)
