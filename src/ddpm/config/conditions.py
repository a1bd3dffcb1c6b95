"""What a model is conditioned on: asked for in the configuration, then stored in the model with what its use needs.

This module imports no torch: the command line reads it first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from ddpm.config.section import Section
from ddpm.errors import ConfigError, nearest
from ddpm.text.tokenizer import FIRST_MERGE
from ddpm.words import counted

PictureKind = Literal["gray", "low_resolution", "mask", "paired"]

OWN_TEXT = "own"
"""The text encoder that is trained along with the network."""


GUIDANCE_BY_LABELS = 1.5
"""Scale that a model of classes is sampled at, unless told otherwise: on MNIST its pictures are of the asked class in
99.7 % of cases (95 % without), and come nearest to the data; at 2, a fifth of their variety is lost."""

GUIDANCE_BY_TEXTS = 3.0
"""Scale that a model of texts is sampled at, unless told otherwise. Texts are many, and each is seen rarely."""

_NAMED = 12  # classes that a line lists


class ConditionsConfig(Section):
    """What the network is told of a picture beside x_t and t; nothing unless asked for."""

    label: bool = Field(False, description="the class of each picture")
    numbers: tuple[str, ...] = Field((), description="numeric columns of a table")
    picture: PictureKind | None = Field(
        None,
        description="another picture of the same size: this one gray, at low resolution or with a part masked, made "
        "here; or paired, from the data",
    )
    factor: int = Field(4, ge=2, le=64, description="low_resolution: by how much height and width are divided")
    text: str | None = Field(
        None,
        min_length=1,
        description="captions: 'own', an encoder that is trained along; or a Hugging Face text encoder, frozen, by its "
        "folder or name",
    )
    text_tokens: int | None = Field(
        None, ge=1, le=1024, description="most tokens of a text; none: half more than the longest caption, at least 31"
    )
    inputs: str | None = Field(
        None, description="paired: folder or column with those pictures; none: the folder inputs beside targets"
    )
    dropout: float = Field(
        0.1, ge=0.0, lt=1.0, description="share of training pictures shown without condition, which guidance needs"
    )
    balanced: bool = Field(False, description="train on every class equally often, whatever its number of pictures")

    @model_validator(mode="after")
    def _numbers_differ(self) -> ConditionsConfig:
        if len(set(self.numbers)) != len(self.numbers):
            raise ValueError(f"numbers names a column twice: {', '.join(self.numbers)}")
        return self

    @property
    def any(self) -> bool:
        """Whether there is any condition."""
        return self.label or bool(self.numbers) or self.picture is not None or self.text is not None

    @property
    def guidance(self) -> float | None:
        """Scale of guidance that suits these conditions; None where it does not help, or cannot be."""
        if self.dropout == 0 or self.picture is not None:
            return None
        return GUIDANCE_BY_TEXTS if self.text is not None else GUIDANCE_BY_LABELS if self.label else None


def conditions_tree(words: Sequence[str]) -> dict[str, Any]:
    """Return the configuration that words such as "label", "numbers=age,weight" and "picture=gray" ask for.

    Raises:
        ConfigError: for a word that asks for nothing known.
    """
    tree: dict[str, Any] = {}
    for word in words:
        kind, sign, value = (part.strip() for part in word.partition("="))
        if kind == "label" and not sign:
            tree["label"] = True
        elif kind == "numbers" and value:
            tree["numbers"] = [*tree.get("numbers", []), *(name.strip() for name in value.split(","))]
        elif kind == "text" and (value or not sign):
            tree["text"] = value or OWN_TEXT
        elif kind == "picture" and value in get_args(PictureKind):
            tree["picture"] = value
        else:
            raise ConfigError(
                f"condition '{word}'{nearest(kind, ('label', 'numbers', 'text', 'picture'))}; expected label, "
                f"numbers=COLUMN,..., text, text=ENCODER, or picture={'|'.join(get_args(PictureKind))}"
            )
    return tree


class NumberColumn(Section):
    """A numeric column that a model is conditioned on.

    Attributes:
        mean: of the training pictures; with `std` it standardises the numbers.
        std: of the training pictures.
        low: least value of the training pictures.
        high: largest value of the training pictures.
    """

    name: str = Field(min_length=1)
    mean: float
    std: float = Field(gt=0.0)
    low: float
    high: float


class PairedPicture(Section):
    """A picture that a model is conditioned on.

    Attributes:
        kind: how it comes to be.
        channels: of the picture, without the one that says where it is known.
        factor: of a low resolution.
    """

    kind: PictureKind
    channels: int = Field(ge=1, le=4)
    factor: int = Field(4, ge=2, le=64)


class TextSpec(Section):
    """How a model reads texts: by a tokenizer of its own, or through a frozen text encoder.

    Attributes:
        tokens: the most that a text may have.
        captions: some of the training captions, for previews.
        merges: of our own tokenizer, `ddpm.text.tokenizer`.
        encoder: folder or name of a frozen encoder; none: the model's own is trained along.
        sha256: of the frozen encoder's files.
        features: width of the frozen encoder's features.
    """

    tokens: int = Field(ge=1, le=1024)
    captions: tuple[str, ...] = ()
    merges: tuple[tuple[int, int], ...] = ()
    encoder: str | None = None
    sha256: str | None = None
    features: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _parts_agree(self) -> TextSpec:
        if len({self.encoder is None, self.sha256 is None, self.features is None}) != 1:
            raise ValueError("a frozen text encoder needs all of encoder, sha256 and features")
        for number, pair in enumerate(self.merges):
            if not all(1 <= token < FIRST_MERGE + number for token in pair):
                raise ValueError(f"merge {number} is {pair}; expected ids from 1 to {FIRST_MERGE + number - 1}")
        return self

    @property
    def vocabulary(self) -> int | None:
        """Number of ids of the own tokenizer, with 0 for padding; None for a frozen encoder."""
        return FIRST_MERGE + len(self.merges) if self.encoder is None else None


class ConditionSpec(Section):
    """What a model is conditioned on, as its file says it; empty for an unconditional one.

    Attributes:
        classes: names of the classes, in the order of the labels; empty: no labels.
        class_counts: training pictures of each class.
        numbers: the numeric columns, in order.
        examples: (label, numbers ...) of training pictures, from which conditions are drawn where numbers belong to
            them; the label is -1 without classes.
        picture: the paired picture.
        text: how texts are read.
        dropout: share of training pictures that were shown without condition; guidance needs some.
    """

    classes: tuple[str, ...] = ()
    class_counts: tuple[Annotated[int, Field(ge=0)], ...] = ()
    numbers: tuple[NumberColumn, ...] = ()
    examples: tuple[tuple[float, ...], ...] = ()
    picture: PairedPicture | None = None
    text: TextSpec | None = None
    dropout: float = Field(0.0, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _parts_agree(self) -> ConditionSpec:
        if len(self.class_counts) != len(self.classes) or (self.classes and not any(self.class_counts)):
            raise ValueError(
                f"{counted(len(self.classes), 'class', 'classes')} with counts {self.class_counts}; expected one for "
                "each"
            )
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("two classes have the same name")
        if self.numbers and not self.examples:
            raise ValueError("numbers without examples of their values")
        if any(len(row) != 1 + len(self.numbers) for row in self.examples):
            raise ValueError(f"examples with other than {counted(len(self.numbers), 'number')}")
        return self

    @property
    def any(self) -> bool:
        """Whether there is any condition."""
        return bool(self.classes or self.numbers) or self.picture is not None or self.text is not None

    @property
    def picture_channels(self) -> int:
        """Channels that the network reads beside x_t: the paired picture's, and where it is known."""
        return 0 if self.picture is None else self.picture.channels + 1

    def words(self) -> list[str]:
        """Return what the model is conditioned on, a line a kind, for people; nothing for an unconditional one."""
        lines = []
        if self.classes:
            listed = ", ".join(self.classes[:_NAMED]) + (", ..." if len(self.classes) > _NAMED else "")
            lines.append(f"label ({counted(len(self.classes), 'class', 'classes')}: {listed})")
        if self.numbers:
            columns = (f"{each.name} from {each.low:g} to {each.high:g}" for each in self.numbers)
            lines.append(f"numbers ({', '.join(columns)})")
        if self.picture is not None:
            factor = f", 1/{self.picture.factor} of the size" if self.picture.kind == "low_resolution" else ""
            lines.append(f"picture ({self.picture.kind}{factor})")
        if self.text is not None:
            lines.append(
                f"text (at most {counted(self.text.tokens, 'token')}, {self.text.encoder or 'an encoder of its own'})"
            )
        if not lines:
            return []
        return [f"conditions: {'; '.join(lines)}; {100 * self.dropout:g} % of the training pictures without"]
