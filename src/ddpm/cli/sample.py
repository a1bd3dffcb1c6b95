"""`ddpm sample`: pictures from a model, or a picture again from the recipe inside it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from tyro.conf import Positional, UseAppendAction, arg

from ddpm.config.sampling import SamplerName
from ddpm.words import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ddpm.sampling.job import Job
    from ddpm.sampling.wish import Wish


def sample(
    model: Annotated[
        Positional[Path | None], arg(metavar="MODEL|RUN", help="a model file, or the run folder that holds one")
    ] = None,
    /,
    *,
    number: Annotated[
        int | None,
        arg(aliases=["-n"], metavar="N", help="how many: numbers 0 to N - 1; by default 64, of points 2,000"),
    ] = None,
    pictures: Annotated[
        str | None, arg(metavar="NUMBERS", help="instead of -n: the pictures of these numbers, such as 3,17,40-50")
    ] = None,
    sampler: Annotated[
        str | None,
        arg(metavar="NAME", help=f"{', '.join(get_args(SamplerName))}; by default what the model recommends"),
    ] = None,
    steps: Annotated[int | None, arg(metavar="N", help="sampling steps; by default what the model recommends")] = None,
    label: Annotated[
        str | None,
        arg(
            aliases=["--labels"], metavar="NAME,...|all", help="the class, by name or number; several, or all, in turn"
        ),
    ] = None,
    numbers: Annotated[
        UseAppendAction[tuple[str, ...]],
        arg(metavar="COLUMN=VALUE", help="the value of a numeric column; may be repeated"),
    ] = (),
    text: Annotated[
        UseAppendAction[tuple[str, ...]], arg(metavar="TEXT", help="what the pictures show; repeated: in turn")
    ] = (),
    negative: Annotated[
        str | None, arg(metavar="TEXT", help="what the pictures are not to show: guidance leads away from it")
    ] = None,
    image: Annotated[
        Path | None, arg(metavar="PICTURE|DIR", help="the picture to begin with, or a folder of them, in turn")
    ] = None,
    guidance: Annotated[
        float | None, arg(metavar="SCALE", help="of classifier-free guidance; 1 is off; by default what the model says")
    ] = None,
    guidance_interval: Annotated[
        str | None,
        arg(metavar="LO,HI", help="guide at these times t alone, 0 to T - 1; by default at all"),
    ] = None,
    guidance_rescale: Annotated[
        float | None, arg(metavar="SHARE", help="of the contrast that guidance adds, taken back: 0 to 1, such as 0.7")
    ] = None,
    classifier: Annotated[
        Path | None,
        arg(metavar="FILE", help="guide by this classifier of x_t (train-classifier --noisy), at --guidance, or 1"),
    ] = None,
    guidance_form: Annotated[
        Literal["score", "mean"], arg(metavar="FORM", help="of a classifier: score, or mean for the sampler ddpm")
    ] = "score",
    guide_by: Annotated[
        Path | None, arg(metavar="MODEL|RUN", help="guide away from this worse model, at --guidance: autoguidance")
    ] = None,
    adapter: Annotated[
        UseAppendAction[tuple[str, ...]],
        arg(metavar="FILE[:SCALE]", help="add an adapter of this model, at a scale (1); may be repeated"),
    ] = (),
    prompt_image: Annotated[
        Path | None, arg(metavar="PICTURE", help="with an image adapter: make pictures like this one")
    ] = None,
    set: Annotated[
        UseAppendAction[tuple[str, ...]],
        arg(metavar="KEY=VALUE", help="an option, such as churn=40 of heun, or spacing=karras"),
    ] = (),
    seed: Annotated[
        int, arg(metavar="S", help="decides the pictures: picture i is the same in any number and batch")
    ] = 0,
    from_: Annotated[
        Path | None, arg(name="from", metavar="PICTURE", help="make this picture again, from the recipe inside it")
    ] = None,
    film: Annotated[
        UseAppendAction[tuple[Literal["gif", "webp", "apng", "mp4", "strip"], ...]],
        arg(metavar="KIND", help="also show how pictures came to be: gif, webp, apng, mp4, or a strip of moments"),
    ] = (),
    format: Annotated[
        Literal["png", "tiff", "npy"], arg(metavar="KIND", help="png, tiff (keeps floating point), or npy: one array")
    ] = "png",
    batch_size: Annotated[int | None, arg(metavar="B", help="pictures at once; by default what fits")] = None,
    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        arg(metavar="NAME", help="auto: what this machine computes fast"),
    ] = "auto",
    out: Annotated[Path | None, arg(metavar="DIR", help="by default samples/ beside the model")] = None,
    device: Annotated[str, arg(metavar="NAME", help="auto, cpu, cuda, cuda:N or mps")] = "auto",
) -> None:
    """Sample pictures: one file each (00000.png ...), and many of them in grid.png; or make a picture again.

    Points in the plane are written as one table, points.csv (or points.npy), and drawn in grid.png.

    Args:
        model: where the model is.
        number: of pictures.
        pictures: their numbers.
        sampler: its name.
        steps: of the sampler.
        label: the class of the pictures.
        numbers: values of numeric columns.
        text: what the pictures show.
        negative: what they are not to show.
        image: a picture to begin with.
        guidance: its scale.
        guidance_interval: the times that are guided.
        guidance_rescale: contrast taken back.
        classifier: that guides.
        guidance_form: of a classifier.
        guide_by: a worse model.
        adapter: files that add to the model.
        prompt_image: a picture to be like.
        set: options of the sampler.
        seed: of the noise.
        from_: a picture to make again.
        film: how to show the way.
        format: of the pictures.
        batch_size: of the network.
        precision: of the network's arithmetic.
        out: the folder of the pictures.
        device: where to compute.
    """
    from ddpm.errors import SamplingError
    from ddpm.sampling import parse_numbers
    from ddpm.sampling.job import run_job
    from ddpm.sampling.wish import Wish
    from ddpm.terminal import bar, say

    how = How(batch_size=batch_size, precision=precision, out=out, device=device, film=film, format=format)
    if from_ is not None:
        guiding = (guidance, guidance_interval, guidance_rescale)
        given = (pictures, sampler, steps, set or None, adapter or None, label, numbers or None, text or None, image)
        if any(value is not None for value in (*given, *guiding, negative, classifier, guide_by, prompt_image)):
            raise SamplingError(
                "--from takes everything from the recipe; leave out --pictures, --sampler, --steps, --label, "
                "--numbers, --text, --negative, --image, --guidance..., --classifier, --guide-by, --adapter, "
                "--prompt-image, --set"
            )
        sample_again(from_, model, how)
        return
    if model is None:
        raise SamplingError("no model; expected: ddpm sample MODEL|RUN, or: ddpm sample --from PICTURE.png")
    if number is not None and number < 1:
        raise SamplingError(f"{number} pictures; expected at least 1")
    which = parse_numbers(pictures) if pictures is not None else None if number is None else range(number)
    if classifier is not None and guide_by is not None:
        raise SamplingError("--classifier and --guide-by; expected one guide")
    if guidance_form != "score" and classifier is None:
        raise SamplingError(f"--guidance-form {guidance_form} without --classifier; name one, or leave it out")
    wish = Wish(label=label, numbers=numbers, texts=text, image=image)
    avoided = () if negative is None else (f"negative={json.dumps(negative)}",)
    job = plan(
        model,
        how,
        numbers=which,
        seed=seed,
        sampler=sampler,
        steps=steps,
        assignments=(*set, *_guidance_options(guidance, guidance_interval, guidance_rescale), *avoided),
        adapters=adapter,
        wish=wish,
        classifier=classifier,
        form=guidance_form,
        worse=guide_by,
        prompt_image=prompt_image,
    )
    run_job(job, progress=bar, tell=say)
    beside = ", labels.csv and grid.png" if job.asks else " and grid.png"
    say(f"{counted(len(job.numbers), job.noun.removesuffix('s'))}{beside} in {job.folder}")


def _guidance_options(scale: float | None, interval: str | None, rescale: float | None) -> tuple[str, ...]:
    """Return the options of the sampling section that the flags stand for."""
    from ddpm.errors import SamplingError

    options = {} if scale is None else {"guidance": f"{scale:g}"}
    if interval is not None:
        try:
            low, high = (float(time) for time in interval.split(","))
        except ValueError as error:
            raise SamplingError(
                f"--guidance-interval {interval}; expected two times t with a comma between, such as 200,800"
            ) from error
        options["guidance_interval"] = f"[{low:g},{high:g}]"
    if rescale is not None:
        options["guidance_rescale"] = f"{rescale:g}"
    return tuple(f"{name}={value}" for name, value in options.items())


@dataclass(frozen=True)
class How:
    """What decides neither which pictures nor what is in them."""

    batch_size: int | None
    precision: Literal["auto", "float32", "bfloat16", "float16"]
    out: Path | None
    device: str
    film: tuple[Literal["gif", "webp", "apng", "mp4", "strip"], ...]
    format: Literal["png", "tiff", "npy"]


def plan(
    path: Path,
    how: How,
    *,
    numbers: Sequence[int] | None,
    seed: int,
    sampler: str | None,
    steps: int | None,
    assignments: tuple[str, ...],
    adapters: tuple[str, ...] = (),
    wish: Wish,
    classifier: Path | None = None,
    form: str = "score",
    worse: Path | None = None,
    prompt_image: Path | None = None,
) -> Job:
    """Return the job that the options describe, without numbers of as many as are usual; nothing is written yet."""
    from ddpm.engine import choose_engine
    from ddpm.model import Model
    from ddpm.model.adapter import parse_adapter
    from ddpm.model.guides import guided_by_classifier, guided_by_worse
    from ddpm.model_file import locate
    from ddpm.sampling.cautions import cautions
    from ddpm.sampling.job import PICTURES, POINTS, Job, default_folder, makes_points, with_options
    from ddpm.terminal import say

    file = locate(path)
    engine = choose_engine(how.device, how.precision)
    for line in engine.notices:
        say(line)
    loaded = Model.load(file, device=engine.device)
    for text in adapters:
        loaded = loaded.with_adapter(*parse_adapter(text))
    loaded = loaded if prompt_image is None else loaded.with_prompt_picture(prompt_image)
    model = with_options(loaded, sampler=sampler, steps=steps, assignments=assignments)
    for caution in cautions(loaded, model):
        say(caution)
    if numbers is None:
        numbers = range(POINTS if makes_points(model) else PICTURES)
    if classifier is not None:
        model = guided_by_classifier(model, classifier, form)
    if worse is not None:
        model = guided_by_worse(model, worse)
    alone = prompt_image is not None and not wish.words()  # then nothing else is asked, and nothing drawn
    asks = [] if alone else wish.asks(model.spec, numbers, seed)
    folder = how.out if how.out is not None else default_folder(file, model, seed, assignments, wish.words())
    return Job(model, file, numbers, seed, engine, folder, how.batch_size, how.format, how.film, asks)


def sample_again(picture: Path, given: Path | None, how: How) -> None:
    """Make a picture again from the recipe inside it, and say how close it came."""
    from ddpm.engine import choose_engine
    from ddpm.model import Model
    from ddpm.sampling import read_recipe
    from ddpm.sampling.job import Job, difference, run_job, sampling_of
    from ddpm.terminal import bar, say

    recipe = read_recipe(picture)
    file = recipe.find_model(picture, given)
    engine = choose_engine(how.device, recipe.checked_precision())
    model = replace(Model.load(file, device=engine.device), sampling=sampling_of(recipe))
    for adapter, scale in recipe.find_adapters(picture):
        model = model.with_adapter(adapter, scale)
    prompt = recipe.find_prompt(picture)
    model = model if prompt is None else model.with_prompt_picture(prompt)
    model = recipe.guided(model, picture)
    folder = how.out if how.out is not None else picture.parent / "again"
    asks = [recipe.asked(picture)] if model.spec.any else []
    job = Job(model, file, [recipe.picture], recipe.seed, engine, folder, how.batch_size, how.format, how.film, asks)
    run_job(job, progress=bar, tell=say)
    again = folder / f"{recipe.picture:05d}.{how.format}"
    apart = difference(picture, again) if again.is_file() else None
    if apart is None:
        say(f"made again in {folder}")
    else:
        say(f"{again}: {'equal bit for bit' if apart == 0 else f'equal to {255 * apart:.3g}/255'}")
