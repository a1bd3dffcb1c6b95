"""Run the notebooks from top to bottom, and write them back with their outputs: ``python notebooks/run_notebooks.py``.

Names of notebooks as arguments run only these. A notebook that fails stays as it was. The outputs depend on nothing but
the code: the same versions on the same machine write the same bytes.
"""

from __future__ import annotations

import base64
import io
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

from ddpm.files import write_atomically

HERE = Path(__file__).parent
PACKAGE = "ddpm[figures]"
"""What a notebook installs where the package is missing, as in Colab; a ``git+https`` address will do as well."""

SETUP = f"""\
# Where the package is missing, as in Colab, install it. Then pictures are shown where they are made.
from importlib.util import find_spec

if find_spec("ddpm") is None:
    %pip install --quiet "{PACKAGE}"

%matplotlib inline
%config InlineBackend.print_figure_kwargs = {{"dpi": 85}}"""
"""The first code cell of every notebook."""

_SECONDS = 300  # a cell may take


def notebooks() -> list[Path]:
    """Return all notebooks, in the order in which they should be read."""
    return sorted(HERE.glob("*.ipynb"))


def executed(path: Path, *, environment: dict[str, str] | None = None) -> NotebookNode:
    """Return a notebook after a run from top to bottom in a fresh kernel and an empty folder.

    Args:
        path: of the notebook, which is not changed.
        environment: variables of the kernel beside those of this process.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=_SECONDS, resources={"metadata": {"path": folder}})
        # One thread: sums in another order would change the last digits of what is trained.
        client.execute(env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})})
        _tidy(notebook, folder)
    return notebook


def _tidy(notebook: NotebookNode, folder: str) -> None:
    """Leave nothing in a notebook that depends on the day or the machine."""
    language = notebook.metadata.get("language_info", {}).get("name", "python")
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = NotebookNode({"kernelspec": kernel, "language_info": {"name": language}})
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02}"
        cell.metadata.pop("execution", None)
        if "outputs" in cell:
            cell.outputs = _joined(cell.outputs)
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = output.text.replace(folder + os.sep, "")
            for kind, text in output.get("data", {}).items():
                if kind == "text/plain":
                    output.data[kind] = re.sub(r" at 0x[0-9a-f]+", "", text)
                elif kind == "image/png":
                    output.data[kind] = _smaller(text)


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Return outputs with what was printed in one piece: where a stream is cut is a matter of chance."""
    joined: list[NotebookNode] = []
    for output in outputs:
        before = joined[-1] if joined else None
        if before is not None and output.output_type == "stream" and before.get("name") == output.name:
            before.text += output.text
        else:
            joined.append(output)
    return joined


def _smaller(png: str) -> str:
    """Return a base64 PNG with 256 colours, which is enough for a plot and takes a third."""
    data = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(data, "png", optimize=True)
    return base64.b64encode(data.getvalue()).decode()


def main(names: list[str]) -> None:
    """Run the named notebooks, or all of them."""
    for path in notebooks():
        if names and not any(path.stem.startswith(Path(name).stem) for name in names):
            continue
        start = time.monotonic()
        notebook = executed(path)
        write_atomically(path, lambda part, notebook=notebook: nbformat.write(notebook, part))
        print(f"{path.name}: {time.monotonic() - start:.0f} s, {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
