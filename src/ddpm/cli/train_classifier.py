"""`ddpm train-classifier`: the classes of a data set, learned."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from ddpm.cli.options import AnyValues
from ddpm.cli.train import parse_size
from ddpm.config import ClassifierConfig, Tree, merge, parse_assignments
from ddpm.words import counted

if TYPE_CHECKING:
    from ddpm.classifier import Accuracy
    from ddpm.training.classifier import ClassifierEvent
    from ddpm.training.classifier_plan import ClassifierPlan


def train_classifier(
    data: Annotated[
        Positional[str], arg(metavar="DATA", help="pictures with classes: everything that `train` reads, and digits")
    ],
    /,
    *,
    preset: Annotated[str | None, arg(metavar="P", help="digits, mnist or auto; by default chosen by DATA")] = None,
    size: Annotated[str | None, arg(metavar="S|HxW", help="side in pixels, or height x width")] = None,
    steps: Annotated[int | None, arg(metavar="N", help="optimizer steps in all")] = None,
    seed: Annotated[int | None, arg(metavar="S", help="of every random number")] = None,
    noisy: Annotated[bool, arg(help="learn to classify x_t, for classifier guidance")] = False,
    schedule_of: Annotated[
        str | None,
        arg(metavar="MODEL|NAME", help="with --noisy: the model that will be guided, or a schedule such as cosine"),
    ] = None,
    balanced: Annotated[bool, arg(help="draw all classes equally often, however many pictures each has")] = False,
    out: Annotated[Path | None, arg(metavar="FILE", help="by default runs/NAME-classifier.safetensors")] = None,
    overwrite: Annotated[bool, arg(help="replace the file if it exists")] = False,
    set: AnyValues = (),
) -> None:
    """Train a small classifier: features for `evaluate` that need no download, or guidance for `sample`.

    Writes one file, and prints the accuracy on held-out pictures. Ctrl-C saves and stops.

    Args:
        data: what to train on.
        preset: the recipe.
        size: of the pictures.
        steps: the budget.
        seed: of the training.
        noisy: whether pictures are noised.
        schedule_of: by which schedule.
        balanced: whether rare classes are drawn as often as others.
        out: the file.
        overwrite: whether it may exist.
        set: single values.
    """
    from ddpm.processes.joining import refuse_launched
    from ddpm.terminal import bar
    from ddpm.training.classifier import run_classifier
    from ddpm.training.classifier_plan import plan_classifier

    refuse_launched("ddpm train-classifier")
    tree: Tree = {"noisy": noisy, "balanced": balanced}
    tree |= {} if seed is None else {"seed": seed}
    tree |= {} if steps is None else {"training": {"steps": steps}}
    tree |= {} if size is None else {"data": {"size": parse_size(size)}}
    tree = merge(tree, parse_assignments(set, ClassifierConfig))
    plan = plan_classifier(
        data, tree, preset=preset, schedule_of=schedule_of, out=out, overwrite=overwrite, progress=bar
    )
    show(plan, run_classifier(plan))


def show(plan: ClassifierPlan, events: Iterable[ClassifierEvent]) -> None:
    """Show a training as it happens: a bar with the time left, accuracies, and where the file is."""
    from ddpm.terminal import bar, say
    from ddpm.training.classifier import ClassifierSaved, ClassifierStep, Scored

    for line in [*plan.store.report.lines(), *described(plan)]:
        say(line)
    steps = plan.config.training.steps
    with bar(steps, "train") as shown:
        for event in events:
            if isinstance(event, ClassifierStep):
                shown.update(1)
            elif isinstance(event, Scored):
                say(f"step {event.step:,}: held-out accuracy {event.accuracy}{by_noise(event.by_noise)}")
            elif isinstance(event, ClassifierSaved) and event.reason is not None:
                say(f"{event.reason}: step {event.step:,} of {steps:,}")
    say(f"classifier: {plan.out}")
    say(f"next: {advice(plan.out, noisy=plan.config.noisy)}")


def described(plan: ClassifierPlan) -> list[str]:
    """Return what will be done to what, in lines for people."""
    store, config = plan.store, plan.config
    height, width, channels = plan.picture_shape
    changes = [f"moved by up to {config.shift} pixels each way"] if config.shift else []
    changes += ["half of them mirrored"] if config.data.flip else []
    changes += [f"noised ({plan.schedule_name})"] if config.noisy else []
    drawn = "all classes equally often" if config.balanced else "as often as they occur"
    return [
        f"preset {plan.preset}: {len(store.train):,} pictures of {height}x{width}x{channels} in {len(store.classes)} "
        f"classes to train on, {len(store.held_out):,} held out; {counted(config.training.steps, 'step')}",
        f"training pictures are {' and '.join(changes) or 'not changed'}; classes are drawn {drawn}",
    ]


def by_noise(parts: tuple[Accuracy, ...]) -> str:
    """Return accuracies from little noise to much, as a line of its own."""
    if not parts:
        return ""
    shares = ", ".join(f"{part.share:.1%}" for part in parts)
    return f"\n  by noise, t from 0 to T in {len(parts)} equal parts: {shares}"


def advice(file: Path, *, noisy: bool) -> str:
    """Return the command that uses a classifier."""
    return f"ddpm sample MODEL --classifier {file}" if noisy else f"ddpm evaluate MODEL --features {file}"
