"""The documentation site: ``python -m sphinx -W docs docs/_build``.

The pages are the Markdown files beside this one, which GitHub shows as well. Documents that live elsewhere in the
repository (the READMEs of plugins, the changelog) become pages too: they are copied into ``docs/_site``, and links to
them and from them are turned to where they stand here.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import speedup

DOCS = Path(__file__).parent
ROOT = DOCS.parent

project = "speedup"
author = "the speedup authors"
copyright = author
release = version = speedup.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["myst.header"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
nitpicky = False

html_theme = "furo"
html_title = f"speedup {release}"
html_static_path: list[str] = []
pygments_style = "friendly"
pygments_dark_style = "monokai"

# -- documents from elsewhere -----------------------------------------------------------------------------------------

SITE = DOCS / "_site"
ELSEWHERE = {
    "README.md": "readme.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    **{f"plugins/{p.parent.name}/README.md": f"{p.parent.name}.md" for p in sorted(ROOT.glob("plugins/*/README.md"))},
}
_LINK = re.compile(r"(!?\[[^\]]*\])\(([^)\s:]+)\)")


def _turned(text: str, source: Path, here: Path) -> str:
    """The text of a document, its relative links turned to the pages of this site; what is no page is only named."""

    def turn(found: re.Match[str]) -> str:
        label, target = found.groups()
        file, _, anchor = target.partition("#")
        if not file:
            return found[0]
        path = (source.parent / file).resolve()
        name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""
        if name in ELSEWHERE:
            path = SITE / ELSEWHERE[name]
        elif f"{name}/README.md" in ELSEWHERE:
            path = SITE / ELSEWHERE[f"{name}/README.md"]
        elif not path.is_relative_to(DOCS):
            return f"{label[1:-1]} (`{name}`)"
        return f"{label}({_relative(path, here)}{'#' + anchor if anchor else ''})"

    return _LINK.sub(turn, text)


def _relative(path: Path, start: Path) -> str:
    return Path(*[".."] * len(start.relative_to(DOCS).parts), path.relative_to(DOCS)).as_posix()


def _copy() -> None:
    shutil.rmtree(SITE, ignore_errors=True)
    SITE.mkdir()
    for name, page in ELSEWHERE.items():
        text = (ROOT / name).read_text()
        (SITE / page).write_text(_turned(text, ROOT / name, SITE))
    rows = "\n".join(ELSEWHERE[name].removesuffix(".md") for name in ELSEWHERE if name.startswith("plugins/"))
    (SITE / "families.md").write_text(f"# Families\n\n```{{toctree}}\n:maxdepth: 1\n\n{rows}\n```\n")


def _read(app: Any, name: str, text: list[str]) -> None:
    if not name.startswith("_site/"):
        text[0] = _turned(text[0], DOCS / f"{name}.md", DOCS)
    if name == "index":
        # A page that the index does not name yet is found all the same.
        listed = set(re.findall(r"^([\w-]+)$", text[0], re.M))
        rest = "\n".join(sorted({path.stem for path in DOCS.glob("*.md")} - listed - {"index"}))
        if rest:
            text[0] += f"\n```{{toctree}}\n:caption: More\n:maxdepth: 1\n\n{rest}\n```\n"


def setup(app: Any) -> None:
    _copy()
    app.connect("source-read", _read)
