"""A report as one HTML file: no network, no other file, no code but what is written here and beside it.

The data of the picture stand in the page as JSON; the scripts beside this file draw them. A content security policy
allows exactly these scripts and no address at all, so neither a name in a model nor anything else can run or load code.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from speedup.atomic import replacing
from speedup.report.data import Report

_SCRIPTS = ("dom.js", "model.js", "layout.js", "graph.js", "strips.js", "details.js", "lists.js", "main.js")
_LIBRARIES = ("vendor/dagre.min.js",)
_LICENCES = ("vendor/dagre.LICENSE",)


def write_page(report: Report, path: str | os.PathLike[str], title: str = "") -> None:
    """Write the page; a file that is there is replaced when the new one is whole."""
    text = page(report.find_page(), title)
    with replacing(Path(path)) as (partial,):
        partial.write_text(text, encoding="utf-8")


def page(data: dict[str, Any], title: str = "") -> str:
    """The page for the data of a picture."""
    title = title or data.get("title") or "model"
    libraries = [_library(name) for name in _LIBRARIES]
    program = "(() => {\n'use strict';\n" + "\n".join(_read(name) for name in _SCRIPTS) + "\n})();"
    scripts = [*libraries, program]
    licences = "\n".join(_read(name) for name in _LICENCES)
    fields = {
        "policy": "default-src 'none'; style-src 'unsafe-inline'; script-src " + " ".join(map(_digest, scripts)),
        "title": escape(f"speedup: {title}"),
        "licences": escape(licences.replace("--", "- -")),
        "style": _read("style.css"),
        "data": _embedded({**data, "title": title}),
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    text = _read("template.html")
    head, *rest = text.split("{{")
    for part in rest:
        name, _, after = part.partition("}}")
        head += fields[name] + after
    return head


def _embedded(data: dict[str, Any]) -> str:
    """JSON that cannot end the script element that it stands in, whatever names it holds."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _library(name: str) -> str:
    """A published file, without the reference to a map that is not here."""
    return "\n".join(line for line in _read(name).splitlines() if not line.startswith("//# sourceMappingURL"))


def _read(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
