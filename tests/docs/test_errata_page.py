"""The page of errata: complete, tied to tests, and its numbers are those that its code prints."""

import re

from docs_site.equations import DOCS, all_equations, proofs_named
from docs_site.examples import with_outputs

PAGE = (DOCS / "errata.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### (E\d+)\. .*?\n(.*?)(?=^##|\Z)", PAGE, re.DOTALL | re.MULTILINE))


def test_the_page_shows_what_its_code_prints() -> None:
    assert with_outputs(PAGE) == PAGE


def test_all_are_there_with_what_is_wrong_what_is_right_and_a_number() -> None:
    assert sorted(SECTIONS, key=lambda label: int(label[1:])) == [f"E{k}" for k in range(1, 36)]
    for label, text in SECTIONS.items():
        assert "**Wrong:**" in text, label
        assert "**Right:**" in text, label
        has_number = "```text\n" in text and bool(proofs_named(text))
        assert has_number != ("No number follows." in text), label


def test_what_is_right_is_an_equation_of_the_concept_pages() -> None:
    numbers = {equation.number for equation in all_equations()}
    for label, text in SECTIONS.items():
        named = re.findall(r"\bEq\. (\d+\.\d+)\b", text)
        assert set(named) <= numbers, label
        assert named or label in ("E12", "E33", "E34"), label
