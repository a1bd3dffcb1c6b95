"""Code in pages that shows its own output: a block of ```python, then one of ```text with what it prints.

`python tools/docs_site/examples.py docs/errata.md` runs the blocks of a page, in order and in one namespace, and writes
what they print; the tests check that pages show exactly that.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path

_LINES = r"(?:(?!```).*\n)*"
EXAMPLE = re.compile(rf"^```python\n(?P<code>{_LINES})```(?P<output>\n\n```text\n{_LINES}```)?$", re.MULTILINE)


def with_outputs(markdown: str) -> str:
    """Return a page with what its code prints now."""
    namespace: dict[str, object] = {}
    return EXAMPLE.sub(lambda found: _run(found, namespace), markdown)


def _run(found: re.Match[str], namespace: dict[str, object]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(found["code"], "<page>", "exec"), namespace)  # our own pages
    if not printed.getvalue() and found["output"] is None:
        return found[0]
    return f"```python\n{found['code']}```\n\n```text\n{printed.getvalue()}```"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        page = Path(name)
        page.write_text(with_outputs(page.read_text(encoding="utf-8")), encoding="utf-8")
