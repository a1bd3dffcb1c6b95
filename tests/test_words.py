from __future__ import annotations

from ddpm.words import counted


def test_one_thing_is_no_plural() -> None:
    assert [counted(n, "picture") for n in (0, 1, 2, 2000)] == [
        "0 pictures",
        "1 picture",
        "2 pictures",
        "2,000 pictures",
    ]
    assert [counted(n, "class is", "classes are") for n in (1, 3)] == ["1 class is", "3 classes are"]
