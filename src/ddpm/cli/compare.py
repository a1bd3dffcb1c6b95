"""`ddpm compare-samplers`: quality against steps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


def compare_samplers(
    model: Annotated[Positional[Path], arg(metavar="MODEL|RUN", help="a model file, or the run folder that holds one")],
    /,
    *,
    samplers: Annotated[
        str | None, arg(metavar="A,B,...", help="as for `ddpm sample`; by default the model's own, and the usual ones")
    ] = None,
    steps: Annotated[
        str | None,
        arg(metavar="N,M,...", help="numbers of steps; by default 5,10,20,50, or a distilled model's own"),
    ] = None,
    number: Annotated[int, arg(aliases=["-n"], metavar="N", help="how many pictures a cell")] = 1000,
    seed: Annotated[int, arg(metavar="S", help="decides the pictures")] = 0,
    data: Annotated[
        str | None, arg(metavar="DATA", help="the data to compare with; by default what the model was trained on")
    ] = None,
    features: Annotated[
        str, arg(metavar="FILE|pixels", help="what pictures are compared by: raw pixels, or a file of an extractor")
    ] = "pixels",
    json_file: Annotated[
        Path | None, arg(name="json", metavar="FILE", help="of the results, and of the plot beside it; goes on with it")
    ] = None,
    device: Annotated[str, arg(metavar="NAME", help="auto, cpu, cuda, cuda:N or mps")] = "auto",
) -> None:
    """Measure quality against steps: each sampler at each number of steps, as a table, a plot and JSON.

    The score is a Fréchet distance to the training split, beside what held-out pictures reach. Stop at any time: the
    same command goes on with the next cell.

    Args:
        model: where the model is.
        samplers: their names.
        steps: numbers of steps.
        number: of pictures.
        seed: of the noise.
        data: what to compare with.
        features: what to compare by.
        json_file: where the results go.
        device: where to compute.
    """
    from ddpm.errors import SamplingError
    from ddpm.sampling.comparing import plan_comparison
    from ddpm.sampling.quality import compare, plot, table
    from ddpm.terminal import bar, say

    comparison = plan_comparison(
        model,
        samplers=None if samplers is None else [name.strip() for name in samplers.split(",")],
        steps=steps,
        count=number,
        seed=seed,
        data=data,
        features=features,
        file=json_file,
        device=device,
        progress=bar,
    )
    cells = list(compare(comparison, progress=bar, tell=say))
    print(table(cells, comparison.score))
    say(f"results: {comparison.file}")
    picture = comparison.file.with_suffix(".png")
    try:
        plot(cells, comparison.score, picture)
        say(f"plot: {picture}")
    except SamplingError as error:  # the table is there: a missing plot is no failure
        say(str(error))
