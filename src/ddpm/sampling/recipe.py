"""The recipe of a picture: all that made it, kept inside its file, so that it can be made again."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast, get_args

from PIL import Image, UnidentifiedImageError

from ddpm.conditions.asked import Asked, asked_of
from ddpm.engine import Engine, Precision
from ddpm.errors import SamplingError
from ddpm.files import sha256_of
from ddpm.model import Model
from ddpm.model.guides import Guide, guided_by_classifier, guided_by_worse
from ddpm.model_file import locate
from ddpm.version import __version__

TEXT_KEY = "ddpm"
"""Name of the PNG text chunk that holds a recipe."""

_DESCRIPTION_TAG = 270  # TIFF's ImageDescription
_WHOLE = {"picture": 2**63, "seed": 2**64}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What made one picture, as plain JSON values.

    Attributes:
        picture: its number, which with the seed decides its noise.
        seed: of the noise.
        sampling: sampler, steps, spacing and options, as in `SamplingConfig`.
        model: path of the model file, relative to the folder of the picture: a run may move, and names no user.
        model_sha256: of the model file, hexadecimal.
        step: optimizer steps that the model had seen; none if it does not say.
        precision: of the network's arithmetic, "float32", "bfloat16" or "float16".
        version: of this program.
        adapters: file, sha256 and scale of each adapter that the model carried, files relative as the model's.
        condition: what the picture was asked to be, as `Asked.as_tree` says it; a picture to begin with has its file,
            relative as the model's, and its image_sha256.
        guide: kind, options, file and sha256 of what guided the model, the file relative as the model's; empty: none.
        prompt: file and sha256 of the image prompt; none: there was none.
    """

    picture: int
    seed: int
    sampling: dict[str, Any]
    model: str
    model_sha256: str
    step: int | None
    precision: str
    version: str
    adapters: list[dict[str, Any]] = field(default_factory=list)
    condition: dict[str, Any] = field(default_factory=dict)
    guide: dict[str, Any] = field(default_factory=dict)
    prompt: dict[str, str] | None = None

    def as_text(self) -> str:
        """Return one line of JSON; `read_recipe` inverts it."""
        return json.dumps(asdict(self))

    def as_words(self) -> str:
        """Return sampler, steps and the options that are set, for people."""
        options = {key: value for key, value in self.sampling.items() if key not in ("sampler", "steps")}
        options |= {key: value for key, value in self.condition.items() if key != "image_sha256"}
        told = ", ".join(f"{key} {json.dumps(value)}" for key, value in options.items())
        return f"{self.short_words()} ({told})" if told else self.short_words()

    def short_words(self) -> str:
        """Return sampler and steps, for people."""
        return f"{self.sampling['sampler']}, {self.sampling['steps']} step{'s' if self.sampling['steps'] != 1 else ''}"

    def checked_precision(self) -> Precision:
        """Return the precision.

        Raises:
            SamplingError: if there is no such one.
        """
        for known in get_args(Precision):
            if self.precision == known:
                return cast("Precision", known)
        raise SamplingError(
            f"the recipe's precision is '{self.precision}'; expected one of {', '.join(get_args(Precision))}"
        )

    def find_model(self, picture: Path, given: Path | None = None) -> Path:
        """Return the model file that made `picture`: the one that is given, or where the recipe says.

        Raises:
            SamplingError: if there is none, or it is another model.
        """
        if given is not None:
            file = locate(given)
        else:
            file = Path(os.path.normpath(picture.absolute().parent / self.model))
            if not file.is_file():
                raise SamplingError(
                    f"the model of '{picture}' is not at '{file}'; name it: ddpm sample --from {picture} MODEL"
                )
        found = file_sha256(file)
        if found != self.model_sha256:
            raise SamplingError(
                f"'{file}' is not the model that made '{picture}': its SHA-256 is {found[:12]}..., expected "
                f"{self.model_sha256[:12]}...; look for the model of step {self.step}"
            )
        return file

    def find_adapters(self, picture: Path) -> list[tuple[Path, float]]:
        """Return file and scale of each adapter behind `picture`.

        Raises:
            SamplingError: if one is not where the recipe says, or is another.
        """
        return [(_found(tree, picture, "adapter"), float(tree["scale"])) for tree in self.adapters]

    def find_prompt(self, picture: Path) -> Path | None:
        """Return the image prompt behind `picture`; none if there was none.

        Raises:
            SamplingError: if it is not where the recipe says, or is another.
        """
        return None if self.prompt is None else _found(self.prompt, picture, "image prompt")

    def guided(self, model: Model, picture: Path) -> Model:
        """Return the model under what guided it for `picture`.

        Raises:
            SamplingError: if that is not where the recipe says, is another, or of a kind that is not known.
        """
        if not self.guide:
            return model
        file = Path(os.path.normpath(picture.absolute().parent / str(self.guide.get("file"))))
        digest = str(self.guide.get("sha256"))
        if not file.is_file() or file_sha256(file) != digest:
            raise SamplingError(
                f"the guide of '{picture}', of SHA-256 {digest[:12]}..., is not at '{file}'; put it there"
            )
        if self.guide.get("kind") == "classifier":
            return guided_by_classifier(model, file, str(self.guide.get("form")))
        return guided_by_worse(model, file)

    def asked(self, picture: Path) -> Asked:
        """Return what `picture` was asked to be.

        Raises:
            SamplingError: if the picture that it began with is not where the recipe says, or is another.
        """
        asked = asked_of(self.condition)
        if not isinstance(asked.image, str):
            return asked
        file = Path(os.path.normpath(picture.absolute().parent / asked.image))
        digest = str(self.condition.get("image_sha256"))
        if not file.is_file() or file_sha256(file) != digest:
            raise SamplingError(
                f"'{picture}' began with a picture of SHA-256 {digest[:12]}..., which is not at '{file}'; put it there"
            )
        return replace(asked, image=file)


def condition_tree(asked: Asked, folder: Path) -> dict[str, Any]:
    """Return what a picture in `folder` is asked to be, for its recipe."""
    tree = asked.as_tree()
    if "image" not in tree:
        return tree
    file = Path(tree["image"])
    return {**tree, "image": _relative(file, folder), "image_sha256": file_sha256(file)}


def recipe_of(model: Model, file: Path, folder: Path, *, seed: int, engine: Engine) -> Recipe:
    """Return the recipe of the pictures that `model`, read from `file`, makes into `folder`; of number 0."""
    return Recipe(
        picture=0,
        seed=seed,
        sampling=model.sampling.as_tree(),
        model=_relative(file, folder),
        model_sha256=file_sha256(file),
        step=model.provenance.get("step"),
        precision=engine.precision,
        version=__version__,
        adapters=[
            {"file": _relative(Path(each.file), folder), "sha256": each.sha256, "scale": each.scale}
            for each in model.adapters
        ],
        prompt=None
        if model.prompt is None
        else {"file": _relative(Path(model.prompt.file), folder), "sha256": model.prompt.sha256},
        guide=_guide_tree(model.guide, folder),
    )


def _guide_tree(guide: Guide | None, folder: Path) -> dict[str, Any]:
    if guide is None:
        return {}
    return {**guide.as_tree(), "file": _relative(guide.file, folder), "sha256": guide.sha256}


def _found(tree: dict[str, Any], picture: Path, what: str) -> Path:
    file = Path(os.path.normpath(picture.absolute().parent / tree["file"]))
    if not file.is_file() or file_sha256(file) != tree["sha256"]:
        raise SamplingError(
            f"the {what} of '{picture}', of SHA-256 {tree['sha256'][:12]}..., is not at '{file}'; put it there"
        )
    return file


def _relative(file: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(file.absolute(), folder.absolute())).as_posix()
    except ValueError:  # another drive of Windows
        return file.name


def read_recipe(path: Path) -> Recipe:
    """Return the recipe inside a PNG or TIFF picture.

    Raises:
        SamplingError: if there is no such picture, or no whole recipe in it.
    """
    text = _text_of(path)
    if text is None:
        raise SamplingError(f"'{path}' holds no recipe; expected a picture that 'ddpm sample' wrote")
    try:
        tree = json.loads(text)
        known = {"adapters": [], "condition": {}, "guide": {}, "prompt": None, **tree}
        recipe = Recipe(**{name: known[name] for name in Recipe.__slots__})
        numbers = [(getattr(recipe, key), end) for key, end in _WHOLE.items()]
        whole = all(type(number) is int and 0 <= number < end for number, end in numbers)
        scales = all(math.isfinite(each["scale"]) for each in recipe.adapters)
        others = [*recipe.adapters, *([] if recipe.prompt is None else [recipe.prompt])]
        named = [text for each in others for text in (each["file"], each["sha256"])]
        texts = all(isinstance(value, str) for value in (recipe.model, recipe.model_sha256, recipe.precision, *named))
        asked_of(recipe.condition)
        sampled = {"sampler", "steps"} <= recipe.sampling.keys() and isinstance(recipe.guide, dict)
        if not (whole and texts and scales and sampled):
            raise TypeError("a value of another kind")
    except (SamplingError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise SamplingError(
            f"the recipe in '{path}' is not whole ({type(error).__name__}: {error}); use the picture as it was written"
        ) from error
    return recipe


def _text_of(path: Path) -> str | None:
    try:
        with Image.open(path) as image:
            text = image.info.get(TEXT_KEY)
            tags = getattr(image, "tag_v2", None)
    except FileNotFoundError as error:
        raise SamplingError(f"no picture at '{path}'; expected one that 'ddpm sample' wrote") from error
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        raise SamplingError(
            f"'{path}' is no picture that can be read; expected one that 'ddpm sample' wrote"
        ) from error
    if text is None and tags is not None:
        described = tags.get(_DESCRIPTION_TAG)
        text = described if isinstance(described, str) and described.startswith("{") else None
    return text if isinstance(text, str) else None


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal; about a second a GiB."""
    try:
        return sha256_of(path)
    except OSError as error:
        raise SamplingError(f"cannot read '{path}': {error.strerror}") from error
