"""What mkdocs does beyond its configuration: made pages, links of equations, dark figures, formulas as MathML."""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # mkdocs loads this file by its path

from mkdocs.structure.files import File

from docs_site.equations import CAPTION, DOCS, FUNCTION, ROOT, TEST, Equation, Proof, all_equations
from docs_site.formulas import FONT, font, with_mathml
from docs_site.pages import command_line_page, proof_pages, reference_pages
from docs_site.results import with_tables

OUTSIDE = re.compile(r"\]\((?P<target>\.\./[^)\s#]+)\)")
FIGURE = re.compile(r"(?P<before>!\[[^\]]*\]\((?:\.\./)*images/figures/)(?P<name>[\w-]+\.png)\)")
MENTION = re.compile(r"\bEq\. (?P<number>\d+\.\d+)\b(?!\]|`)")


def on_config(config: Any) -> Any:
    """Put into the navigation the reference's pages, the proofs, and guides that it does not list."""
    listed = set(re.findall(r"[\w/.-]+\.md", str(config.nav)))
    guides = [path.name for path in sorted(DOCS.glob("*.md")) if path.name not in listed]
    made = {"How-to": guides, "Reference": [*reference_pages()], "Proofs": [*proof_pages()]}
    for section in config.nav:
        for title, pages in made.items():
            if title in section:
                section[title] = [*section[title], *pages]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made, and the files outside docs/ that pages link to."""
    for path, text in {**reference_pages(), **proof_pages(), "command-line.md": command_line_page()}.items():
        files.append(File.generated(config, path, content=text))
    files.append(File.generated(config, FONT, abs_src_path=str(font())))
    for path in sorted(_linked_outside()):
        files.append(File.generated(config, f"repository/{path}", abs_src_path=str(ROOT / path)))
    return files


def _linked_outside() -> set[str]:
    found = set()
    for path in DOCS.rglob("*.md"):
        for link in OUTSIDE.finditer(path.read_text(encoding="utf-8")):
            target = (path.parent / link["target"]).resolve()
            if target.is_file() and not target.is_relative_to(DOCS):
                found.add(target.relative_to(ROOT).as_posix())
    return found


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn captions, tests, mentions of equations and links to the repository into links; figures into both papers'."""
    here = page.file.src_uri
    if here.startswith(("proofs/", "reference/")):
        return markdown
    numbers = {equation.number: equation for equation in all_equations()}
    markdown = FIGURE.sub(_for_both_papers, with_tables(markdown))
    markdown = CAPTION.sub(_caption, markdown)
    markdown = MENTION.sub(lambda found: _mention(found, numbers, here), markdown)
    markdown = TEST.sub(lambda found: _test_link(found, here), markdown)
    return OUTSIDE.sub(lambda found: _outside_link(found, here), markdown)


def _caption(found: re.Match[str]) -> str:
    about = FUNCTION.sub(lambda f: f"[`{f['path'].removeprefix('ddpm.diffusion.')}`][{f['path']}]", found["about"])
    return f"[**({found['number']})**](#eq-{found['number']}){{ #eq-{found['number']} }} {about}\n{{ .equation }}"


def _for_both_papers(found: re.Match[str]) -> str:
    """Return a figure twice, of which a page shows the one that its paper needs."""
    if not (DOCS / "images" / "figures" / "dark" / found["name"]).is_file():
        return found[0]
    return f"{found['before']}{found['name']}#only-light) {found['before']}dark/{found['name']}#only-dark)"


def _mention(found: re.Match[str], numbers: dict[str, Equation], here: str) -> str:
    equation = numbers.get(found["number"])
    if equation is None:
        return found[0]
    return f"[Eq. {equation.number}]({_relative(equation.page, here)}#{equation.anchor})"


def _test_link(found: re.Match[str], here: str) -> str:
    test = Proof(found["file"], found["name"])
    return f"[`{test.name}`]({_relative(test.page, here)}#{test.anchor})"


def _outside_link(found: re.Match[str], here: str) -> str:
    target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(here), found["target"]))
    if target.startswith("docs/") or not (ROOT / target).is_file():
        return found[0]
    return f"]({_relative(f'repository/{target}', here)})"


def _relative(target: str, here: str) -> str:
    return posixpath.relpath(target, posixpath.dirname(here) or ".")


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Turn every formula into MathML."""
    return with_mathml(html)
