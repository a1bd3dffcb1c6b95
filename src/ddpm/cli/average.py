"""`ddpm average`: a run's weights, averaged over the width that suits them best."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


def average(
    run: Annotated[Positional[Path], arg(metavar="RUN", help="a run folder that kept averages of its weights")],
    /,
    *,
    widths: Annotated[
        str | None,
        arg(metavar="A,B,...", help="shares of the training to average over; one: it is made, and nothing is scored"),
    ] = None,
    number: Annotated[int, arg(aliases=["-n"], metavar="N", help="how many samples a score")] = 1000,
    seed: Annotated[int, arg(metavar="S", help="decides the samples")] = 0,
    data: Annotated[
        str | None, arg(metavar="DATA", help="the data to compare with; by default what the model was trained on")
    ] = None,
    features: Annotated[
        str, arg(metavar="FILE|pixels", help="what samples are compared by: raw pixels, or a file of an extractor")
    ] = "pixels",
    out: Annotated[
        Path | None, arg(metavar="FILE", help="the model to write; by default RUN/average.safetensors")
    ] = None,
    overwrite: Annotated[bool, arg(help="replace the file, if there is one")] = False,
    device: Annotated[str, arg(metavar="NAME", help="auto, cpu, cuda, cuda:N or mps")] = "auto",
) -> None:
    """Average a run's weights over any width, after the training: try several, keep the best as a model file.

    The run must have kept averages: ``ddpm train ... --set training.snapshots=16``.

    Args:
        run: the folder.
        widths: to try.
        number: of samples.
        seed: of their noise.
        data: what to compare with.
        features: what to compare by.
        out: the model file.
        overwrite: whether it may be there.
        device: where to compute.
    """
    from ddpm.errors import ConfigError
    from ddpm.model.averaging import KeptAverages, exponent
    from ddpm.sampling import averages as room
    from ddpm.terminal import bar, say

    file = run / "average.safetensors" if out is None else out
    wanted = list(room.USUAL_WIDTHS) if widths is None else room.parse_widths(widths)
    room.check_free(file, overwrite=overwrite)
    if len(wanted) == 1:
        exponent(wanted[0])
        kept, best = KeptAverages.of_run(run), wanted[0]
        if kept.misfit(best) > room.FAR:
            say(f"width {best:g} is only approached (misfit {kept.misfit(best):.2f}): the run kept too few averages")
    else:
        averages = room.plan_averages(
            run,
            widths=wanted,
            count=number,
            seed=seed,
            data=data,
            features=features,
            device=device,
            progress=bar,
        )
        found = list(room.rows(averages, progress=bar))
        print(room.table(found, averages.score))
        kept, best = averages.kept, min(found, key=lambda row: row.score).width
        try:
            room.plot(found, averages.score, file.with_suffix(".png"))
            say(f"plot: {file.with_suffix('.png')}")
        except ConfigError as error:  # the table is there: a missing plot is no failure
            say(str(error))
    room.write_average(kept, best, file)
    say(f"next: ddpm sample {file}")
