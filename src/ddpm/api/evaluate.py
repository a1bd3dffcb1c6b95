"""`ddpm.evaluate`: the command's work as one Python call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ddpm.data.progress import silent
from ddpm.evaluation.opening import Request
from ddpm.evaluation.plan import make_plan
from ddpm.evaluation.report.report import Report
from ddpm.evaluation.run import run
from ddpm.model import Model
from ddpm.terminal import bar


def evaluate(
    subject: Model | str | Path,
    data: str | Path | None = None,
    *,
    metrics: Sequence[str] | None = None,
    n: int | None = None,
    features: str | Path | None = None,
    size: int | tuple[int, int] | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    processes: int = 1,
    device: str = "auto",
    precision: str = "auto",
    quiet: bool = False,
) -> Report:
    """Score a model's samples, or any pictures, against data; go on from what a killed call has done.

    Args:
        subject: a model, its file, its run folder; or any pictures that `open_store` reads.
        data: what to compare with; none: what the model was trained on.
        metrics: groups of scores: "energy", "kid", "fid", "sfid", "is", "prdc", "agreement", "memorization", "colour",
            "pixels", "bits", "ode", or "all"; none: those that the data allow.
        n: how many samples, or of the pictures, evenly spread; none: 1,000 of small pictures, 2,048 of others, or all.
        features: an extractor's name or file; none: "pixels" for small pictures, "inception" for others.
        size: side, or (height, width), at which the data are read, for pictures that a model has made of them.
        sampler: of the model; none: its recommendation.
        steps: of the sampler; none: the model's recommendation.
        guidance: scale of classifier-free guidance; none: the model's recommendation.
        seed: of the samples and of random subsets.
        processes: how many share the work; the result is the same. With more than one, a script needs the usual
            ``if __name__ == "__main__":``.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        precision: of sampling: "auto" (as `ddpm sample`), "float32", "bfloat16".
        quiet: show no progress.

    Raises:
        DdpmError: with the reason, for what cannot be scored.
    """
    request = Request(
        data=data,
        metrics=metrics,
        n=n,
        features=features,
        size=(size, size) if isinstance(size, int) else size,
        sampler=sampler,
        steps=steps,
        guidance=guidance,
        seed=seed,
        processes=processes,
        device=device,
        precision=precision,
    )
    progress = silent if quiet else bar
    return run(make_plan(subject, request, progress=progress), progress=progress)
