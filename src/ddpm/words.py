"""Words for people: numbers with what they count."""

from __future__ import annotations


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun, such as "1 picture" and "2,000 pictures".

    Args:
        number: how many.
        one: what follows a single one; a verb may come along, as in "picture has".
        many: what follows any other number; none: `one` and an s.
    """
    return f"{number:,} {one}" if number == 1 else f"{number:,} {many or one + 's'}"
