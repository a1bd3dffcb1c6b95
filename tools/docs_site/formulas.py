"""LaTeX to MathML, which browsers draw by themselves: no script, no network."""

from __future__ import annotations

import html
import re
from pathlib import Path

from latex2mathml.converter import convert

FONT = "stylesheets/STIXTwoMath-Regular.ttf"
LETTERS = {"script": {"N": "𝒩"}, "double-struck": {"E": "𝔼", "R": "ℝ"}}
"""Browsers no longer know MathML's alphabets: their letters have to be the characters themselves."""

_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">(?P<open>\\\(|\\\[)(?P<latex>.*?)(?:\\\)|\\\])</(?P=tag)>', re.DOTALL
)
_NAME = re.compile(
    r"(?P<base><m(?:sub|sup|subsup|under)>)?<m[io]>(?P<name>[A-Za-z]{2,})</m[io]>"
    r"(?P<closed>(?=</|(?:<mrow>)?<mo[^>]*>&#x000(?:28|5B);))?"
)
_BAR = re.compile(r"<mo>(&#x02016;|&#x0007C;)</mo>")
_ALPHABET = re.compile(r'<mi mathvariant="(?P<variant>[\w-]+)">(?P<letter>.)</mi>')


def font() -> Path:
    """Return the place of a font for mathematics: that of ziamath, so that none has to be kept here."""
    import ziamath

    return Path(ziamath.__file__).parent / "fonts" / "STIXTwoMath-Regular.ttf"


def with_mathml(page: str) -> str:
    """Return a page of HTML with every formula as MathML.

    Raises:
        ValueError: for a formula that cannot be converted.
    """
    return _FORMULA.sub(lambda found: mathml(html.unescape(found["latex"]), block=found["open"] == r"\["), page)


def mathml(latex: str, *, block: bool) -> str:
    """Return a formula as MathML.

    Raises:
        ValueError: if it has a command or an alphabet that is not known.
    """
    converted = convert(latex.strip().replace("{aligned}", "{split}"), display="block" if block else "inline")
    converted = _ALPHABET.sub(_letter, converted)
    converted = _NAME.sub(_function, converted)
    converted = converted.replace("&#x000AF;", "&#x0203E;")  # a bar that can stretch
    converted = _BAR.sub(r'<mo stretchy="false" lspace="0em" rspace="0em">\1</mo>', converted)
    converted = converted.replace("<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>")  # a relation, with space around it
    converted = converted.replace('fence="true"', 'fence="true" lspace="0em" rspace="0em"')
    if block:  # limits stand below and above, in tables too
        converted = re.sub(r"<(munder|munderover)><mo>", r'<\1><mo movablelimits="false">', converted)
    if "\\" in converted or ">&<" in converted:
        raise ValueError(f"this formula cannot be converted: {latex}")
    return converted


def _function(found: re.Match[str]) -> str:
    space = '<mspace width="0.17em" />' if found["base"] is None and found["closed"] is None else ""
    return f"{found['base'] or ''}<mi>{found['name']}</mi>{space}"


def _letter(found: re.Match[str]) -> str:
    if found["variant"] == "normal":
        return found[0]
    letters = LETTERS.get(found["variant"])
    if letters is None or found["letter"] not in letters:
        raise ValueError(f"no character is known for the letter {found['letter']} of the alphabet {found['variant']}")
    return f"<mi>{letters[found['letter']]}</mi>"
