"""What is decided from the data where the configuration leaves it open: channels, depth, size. Each rule in words.

- Channels: gray if every picture is gray, else RGB. RGBA only where the configuration asks for it.
- Depth: 16 bits if every picture has 16, float32 if every picture is float, else 8.
- Size: the pictures' own if they share one of at most 256 pixels a side; else the largest square of 64, 32, 16 or 8
  pixels that is no larger than the shorter side of half of them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ddpm.config import MIN_SIZE, DataConfig
from ddpm.data.decode import Depth, Header
from ddpm.data.transform import ChannelKind, Transform

LARGEST_OWN_SIZE = 256
SQUARES = (64, 32, 16, 8)


@dataclass(slots=True)
class Survey:
    """Counts over the headers of all pictures."""

    count: int = 0
    colour: int = 0
    depths: Counter[Depth] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)

    def add(self, header: Header) -> None:
        """Count one picture."""
        self.count += 1
        self.colour += header.colour
        self.depths[header.depth] += 1
        self.modes[header.mode] += 1
        self.sizes[header.height, header.width] += 1


def choose_transform(survey: Survey, config: DataConfig) -> tuple[Transform, str, list[str]]:
    """Return the transform, the size rule in words, and notes on what was decided."""
    (height, width), words = _size(survey, config)
    notes: list[str] = []
    depth = _depth(survey, notes)
    channels = _channels(survey, config, notes)
    transform = Transform(height, width, channels, depth, config.fit, config.filter, config.background)
    return transform, words, notes


def _size(survey: Survey, config: DataConfig) -> tuple[tuple[int, int], str]:
    one = next(iter(survey.sizes)) if len(survey.sizes) == 1 else None
    if config.size is not None:
        height, width = config.size
        if one == config.size:
            return config.size, f"{height}x{width} as asked for, which all pictures have already"
        return config.size, f"{height}x{width} as asked for; {_how(config)}"
    if one is not None and min(one) >= MIN_SIZE and max(one) <= LARGEST_OWN_SIZE:
        return one, f"{one[0]}x{one[1]}: all pictures have this size and keep it"
    side = _square(survey)
    what = f"all are {one[0]}x{one[1]}" if one else f"pictures of {len(survey.sizes):,} sizes"
    return (side, side), f"{side}x{side}: {what}; {_how(config)}; data.size chooses another"


def _square(survey: Survey) -> int:
    shorter = sorted((min(size), count) for size, count in survey.sizes.items())
    reached = 0
    for side, count in shorter:
        reached += count
        if reached * 2 >= survey.count:
            return next((square for square in SQUARES if square <= side), SQUARES[-1])
    return SQUARES[-1]


def _how(config: DataConfig) -> str:
    before = {
        "crop": "cropped to this shape around their centre, then",
        "pad": "padded with the background to this shape,",
        "stretch": "stretched to this shape,",
    }[config.fit]
    return f"{before} scaled with the {config.filter} filter"


def _depth(survey: Survey, notes: list[str]) -> Depth:
    if len(survey.depths) == 1:
        return next(iter(survey.depths))
    found = ", ".join(f"{count:,} of {depth}" for depth, count in survey.depths.most_common())
    notes.append(f"pictures of several depths ({found}) are all read at 8 bits")
    return "uint8"


def _channels(survey: Survey, config: DataConfig, notes: list[str]) -> ChannelKind:
    if config.channels != "auto":
        return config.channels
    if survey.colour == 0:
        return "gray"
    if survey.colour < survey.count:
        gray = survey.count - survey.colour
        notes.append(f"{gray:,} gray pictures among {survey.colour:,} in colour: all are read as RGB")
    return "rgb"
