"""Shows a run as it happens: progress bar, notices, and where things are."""

from __future__ import annotations

from collections import deque

from tqdm import tqdm

from ddpm.conditions.of_data import told_of_conditions
from ddpm.processes import ALONE, Group
from ddpm.terminal import in_bytes, interval, say
from ddpm.training.events import Evaluated, Event, Finished, Notice, Previewed, Saved, Scored, Started
from ddpm.training.loop import StepReport
from ddpm.training.plan import Plan
from ddpm.training.run import run
from ddpm.training.scoring import Scorer
from ddpm.words import counted

_SMOOTHING = 0.98


def show_run(plan: Plan, scorer: Scorer | None = None, group: Group = ALONE) -> None:
    """Run a plan, with a progress bar, notices, and the run folder in the first and last line.

    Args:
        plan: what to do.
        scorer: of samples, in the first process.
        group: the processes that train together; the first one shows the run.
    """
    if not group.is_first:
        deque(run(plan, scorer, group), maxlen=0)
        return
    for line in plan.store.report.lines():
        say(line)
    display = Display(plan)
    try:
        for event in run(plan, scorer, group):
            display.show(event)
    finally:
        display.close()


class Display:
    """The progress bar of a run, and the lines above it."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._bar: tqdm[object] | None = None
        self._loss: float | None = None
        self._verdict = ""

    def show(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, StepReport):
            self._step(event)
        elif isinstance(event, Started):
            self._started(event)
        elif isinstance(event, Notice):
            say(event.text)
        elif isinstance(event, Previewed):
            say(f"preview: {event.path}")
        elif isinstance(event, Evaluated):
            self._evaluated(event)
        elif isinstance(event, Scored):
            self._scored(event)
        elif isinstance(event, Finished):
            self._finished(event)
        elif isinstance(event, Saved) and event.step == 0:
            say("the first checkpoint is written: the run folder works")

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()

    def _started(self, event: Started) -> None:
        store, engine = self._plan.store, event.engine
        height, width, channels = self._plan.picture_shape
        part = "" if event.num_trained == event.num_parameters else f", {event.num_trained:,} of them trained"
        kind = "points" if store.is_points else f"pictures of {height}x{width}x{channels}"
        say(f"run folder: {event.folder} (up to {in_bytes(event.forecast_bytes)})")
        say(
            f"preset {self._plan.preset}: {len(store.train):,} {kind} to train on, "
            f"{len(store.held_out):,} held out; network of {event.num_parameters / 1e6:.2f} M parameters{part}; "
            f"{counted(event.num_steps, 'step')} on {engine.device} in {engine.precision}"
        )
        for line in event.memory.lines():
            say(line)
        for line in told_of_conditions(store, self._plan.conditions, balanced=self._plan.config.conditions.balanced):
            say(line)
        self._bar = tqdm(
            total=event.num_steps,
            initial=event.step,
            desc="train",
            unit="step",
            dynamic_ncols=True,
            smoothing=0.05,
            mininterval=interval(),
        )

    def _step(self, report: StepReport) -> None:
        assert self._bar is not None  # a run starts before it steps
        if not report.skipped:
            before = report.loss if self._loss is None else self._loss
            self._loss = _SMOOTHING * before + (1 - _SMOOTHING) * report.loss
        self._bar.set_postfix_str(f"loss {self._loss:.4f}" if self._loss is not None else "", refresh=False)
        self._bar.update(report.step - self._bar.n)

    def _evaluated(self, event: Evaluated) -> None:
        if event.status.verdict != self._verdict:
            say(
                f"step {event.evaluation.step:,}: held-out loss {event.evaluation.held_out:.4f}, training loss "
                f"{event.evaluation.train:.4f}; {event.status.sentence}"
            )
        self._verdict = event.status.verdict

    def _scored(self, event: Scored) -> None:
        score, name = event.score, self._plan.config.training.score
        best = "; the best so far, kept" if event.is_best else ""
        say(f"step {score.step:,}: {name} {score.value:.4g} ± {score.error:.2g} ({event.seconds:.1f} s){best}")

    def _finished(self, event: Finished) -> None:
        self.close()
        say(f"{'finished' if event.complete else 'stopped'} at step {event.step:,}: {event.reason}")
        say(f"run folder: {self._plan.out}")
        say(f"next: {self._plan.next_command()}" if event.complete else "run the same command again to go on")
