"""The commands that pages tell a reader to type."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

_FENCE = re.compile(r"^```(?P<language>\w*)$")
_PROGRAMS = ("ddpm", "python", "pip", "pytest", "mkdocs")


def commands_of(page: Path) -> list[list[str]]:
    """Return every command of a page's shell blocks, as words, in order.

    Commands stand in blocks of ```sh, or behind "$ " where a block shows output too, or in indented blocks. Lines that
    say how a command may be written, with [OPTIONS] or A|B, are no commands.
    """
    found: list[list[str]] = []
    for line in _lines(page.read_text(encoding="utf-8").replace("\\\n", " ")):
        words = shlex.split(line, comments=True)
        for part in _parts(words):
            if part and part[0] in _PROGRAMS and not any(re.search(r"[\[\]|]", word) for word in part[:3]):
                found.append(part)
    return found


def _lines(text: str) -> Iterator[str]:
    language: str | None = None
    for line in text.splitlines():
        fence = _FENCE.match(line)
        if fence:
            language = fence["language"] if language is None else None
        elif language == "sh":
            yield line.strip()
        elif not language and line.strip().startswith("$ "):
            yield line.strip()[2:]
        elif (language == "" and line.startswith("ddpm ")) or (
            language is None and re.match(r" {4}(ddpm|python) ", line)
        ):
            yield line.strip()


def _parts(words: list[str]) -> Iterator[list[str]]:
    part: list[str] = []
    for word in words:
        if word in ("&&", "&", ";"):
            yield part
            part = []
        else:
            part.append(word)
    yield part
