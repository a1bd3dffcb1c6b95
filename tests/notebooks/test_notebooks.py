from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from run_notebooks import HERE, SETUP, executed, notebooks

NAMES = [path.stem for path in notebooks()]
_ABSOLUTE = re.compile(r"(?<![\w:/.])/(?:home|root|tmp|Users|usr|opt|var|work|content|mnt)\b|\b[A-Z]:\\")


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(HERE / f"{name}.ipynb", as_version=4)


def texts(notebook: nbformat.NotebookNode) -> list[str]:
    """Return all text outputs."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            found.append(output.get("text", ""))
            found += [text for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
    return found


def shape(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """Return the kinds of each cell's outputs."""
    return [
        [output.get("name") or "+".join(sorted(output.get("data", {}))) for output in cell.get("outputs", [])]
        for cell in notebook.cells
    ]


def test_there_are_five() -> None:
    assert [name[:2] for name in NAMES] == ["01", "02", "03", "04", "05"]


@pytest.mark.parametrize("name", NAMES)
def test_runs_from_top_to_bottom_and_gives_the_outputs_that_are_there(name: str) -> None:
    assert shape(executed(HERE / f"{name}.ipynb")) == shape(read(name))


@pytest.mark.parametrize("name", NAMES)
def test_committed_outputs_are_complete(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code[0].source == SETUP
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = [kind for kinds in shape(notebook) for kind in kinds]
    assert "stdout" in kinds
    assert any("image/png" in kind for kind in kinds)
    assert "stderr" not in kinds
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)


@pytest.mark.parametrize("name", NAMES)
def test_committed_files_are_small_and_name_no_place(name: str) -> None:
    assert (HERE / f"{name}.ipynb").stat().st_size < 400_000
    for text in [*texts(read(name)), *(cell.source for cell in read(name).cells)]:
        assert _ABSOLUTE.search(text) is None


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    for cell in read(name).cells:
        for target in re.findall(r"\]\(([^)#]+)", cell.source) if cell.cell_type == "markdown" else []:
            assert target.startswith("https://") or (HERE / target).is_file(), target


def test_answers_are_hidden_until_asked_for() -> None:
    for name in NAMES:
        for cell in read(name).cells:
            if cell.cell_type == "code" and cell.source.startswith("# @title"):
                assert cell.metadata == {"cellView": "form", "jupyter": {"source_hidden": True}}
            assert "details" not in cell.source or cell.source.count("<details>") == cell.source.count("</details>")


def test_a_failing_cell_is_an_error_and_changes_nothing(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 == 2")])
    path = tmp_path / "wrong.ipynb"
    nbformat.write(notebook, path)
    before = path.read_bytes()
    with pytest.raises(CellExecutionError, match="AssertionError"):
        executed(path)
    assert path.read_bytes() == before


def test_what_is_printed_is_one_piece_however_the_kernel_sends_it(tmp_path: Path) -> None:
    source = "import sys, time\nfor k in range(3):\n    print(k, flush=True)\n    time.sleep(0.3)"
    path = tmp_path / "slow.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), path)
    (printed,) = executed(path).cells[0].outputs
    assert printed.text == "0\n1\n2\n"


def test_outputs_hold_nothing_of_the_machine(tmp_path: Path) -> None:
    source = "import os\nprint(os.path.abspath('samples.npy'))\nobject()"
    path = tmp_path / "here.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), path)
    printed, value = executed(path).cells[0].outputs
    assert printed.text == "samples.npy\n"
    assert value.data["text/plain"] == "<object>"
