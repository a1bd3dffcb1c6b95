"""`ddpm evaluate`: scores of a model's samples, or of any pictures, with their recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from ddpm.cli.train import parse_size

if TYPE_CHECKING:
    from ddpm.evaluation.plan import Plan
    from ddpm.evaluation.report.report import Report


def evaluate(
    what: Annotated[
        Positional[str],
        arg(metavar="MODEL|RUN|PICTURES", help="a model file, a run folder, or pictures as for `train`"),
    ],
    /,
    *,
    data: Annotated[
        str | None, arg(metavar="DATA", help="the data to compare with; by default what the model was trained on")
    ] = None,
    metrics: Annotated[
        str | None,
        arg(
            metavar="LIST",
            help="energy,kid,fid,sfid,is,prdc,agreement,memorization,colour,pixels,bits,ode or all; by default what "
            "data allow",
        ),
    ] = None,
    number: Annotated[
        int | None,
        arg(aliases=["-n"], metavar="N", help="how many; by default 1,000 small samples, 2,048 others, or all"),
    ] = None,
    features: Annotated[
        str | None,
        arg(
            metavar="NAME|FILE",
            help="pixels, inception, dinov2, or a file: of `train-classifier`, TorchScript, or Inception's weights; "
            "by default pixels of small pictures, else inception",
        ),
    ] = None,
    size: Annotated[
        str | None, arg(metavar="S|HxW", help="with pictures: the size at which the data are read, if not their own")
    ] = None,
    sampler: Annotated[
        str | None, arg(metavar="NAME", help="as for `ddpm sample`; by default what the model recommends")
    ] = None,
    steps: Annotated[int | None, arg(metavar="N", help="sampling steps; by default what the model recommends")] = None,
    guidance: Annotated[
        float | None, arg(metavar="SCALE", help="of classifier-free guidance; by default what the model recommends")
    ] = None,
    seed: Annotated[int, arg(metavar="S", help="decides the samples")] = 0,
    processes: Annotated[int, arg(metavar="P", help="how many share the work; the result is the same")] = 1,
    device: Annotated[str, arg(metavar="NAME", help="auto, cpu, cuda, cuda:N or mps")] = "auto",
    precision: Annotated[
        str, arg(metavar="NAME", help="of sampling: auto (as `sample`), float32, bfloat16 or float16")
    ] = "auto",
    json_file: Annotated[
        Path | None, arg(name="json", metavar="FILE", help="write scores and recipe there too")
    ] = None,
    html: Annotated[
        Path | None, arg(metavar="FILE", help="write the page there; by default RUN/evaluation/NAME.html")
    ] = None,
    compare: Annotated[
        Path | None, arg(metavar="OLD.json", help="an earlier --json; refused if it was measured in another way")
    ] = None,
) -> None:
    """Score samples of a model, or pictures, against data: each score beside what held-out pictures reach.

    Work that was stopped goes on from where it was; scores, recipe and pictures are written to RUN/evaluation.

    Args:
        what: what is scored.
        data: what to compare with.
        metrics: which scores.
        number: of samples.
        features: the extractor.
        size: of the data.
        sampler: its name.
        steps: of the sampler.
        guidance: of the sampler, its scale.
        seed: of the noise.
        processes: of the work.
        device: where to compute.
        precision: of the network.
        json_file: where to write the scores.
        html: where to write the page.
        compare: an earlier report.
    """
    from ddpm.evaluation.opening import Request
    from ddpm.evaluation.plan import make_plan
    from ddpm.evaluation.report.recipe import read_report, refuse_other_recipe
    from ddpm.evaluation.run import run
    from ddpm.terminal import bar

    sides = None if size is None else parse_size(size)
    old = None if compare is None else read_report(compare)
    request = Request(
        data=data,
        metrics=None if metrics is None else [name for name in metrics.split(",") if name.strip()],
        n=number,
        features=features,
        size=None if sides is None else (sides[0], sides[1]),
        sampler=sampler,
        steps=steps,
        guidance=guidance,
        seed=seed,
        processes=processes,
        device=device,
        precision=precision,
    )
    plan = make_plan(what, request, progress=bar)
    if compare is not None and old is not None:
        refuse_other_recipe(compare, old["recipe"], plan.recipe)
    report = run(plan, progress=bar)
    print(report.table())
    if old is not None:
        print(f"\n{report.comparison(old)}")
    _write(report, plan, what, json_file, html)


def _write(report: Report, plan: Plan, what: str, json_file: Path | None, html: Path | None) -> None:
    """Write the report where it is asked for, and into the run folder."""
    from ddpm.evaluation.plan import report_name
    from ddpm.model_file import locate
    from ddpm.terminal import say

    if plan.model is not None:
        stem = locate(Path(what)).parent / "evaluation" / report_name(plan)
        html = html or stem.with_name(f"{stem.name}.html")
        report.save_json(stem.with_name(f"{stem.name}.json"))
    if json_file is not None:
        report.save_json(json_file)
    if html is not None:
        report.save_page(html)
        say(f"the page with pictures: {html}")
