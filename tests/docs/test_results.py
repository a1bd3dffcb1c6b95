"""The page of benchmarks shows every result that is kept, and every table of it can be made."""

from docs_site.equations import DOCS, ROOT
from docs_site.results import MARK, with_tables

PAGE = (DOCS / "benchmarks.md").read_text(encoding="utf-8")


def test_no_result_is_an_orphan() -> None:
    kept = {path.stem for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    assert {found["name"] for found in MARK.finditer(PAGE)} == kept
    for name in kept:
        assert f"(../benchmarks/results/{name}.json)" in PAGE


def test_every_table_is_made_and_has_numbers() -> None:
    page = with_tables(PAGE)
    assert not MARK.search(page)
    tables = [block for block in page.split("\n\n") if block.startswith("|")]
    assert len(tables) == len(MARK.findall(PAGE))
    for table in tables:
        widths = {line.count(" | ") for line in table.splitlines()}
        assert len(widths) == 1, table
        assert any(character.isdigit() for character in table.splitlines()[-1])


def test_every_benchmark_says_how_it_is_run() -> None:
    readme = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        assert path.name in readme, path.name
