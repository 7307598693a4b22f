"""docs/reference.md from the docstrings of the plugin interface: ``python -m tests.reference`` writes it anew."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import speedup
from speedup import hookspecs, testing
from speedup.testing import fixtures

PAGE = Path(__file__).parents[1] / "docs" / "reference.md"

HEAD = """\
# Reference of the plugin interface

This page is written from the docstrings of `speedup.hookspecs`, `speedup.Rule` and what belongs to them; a test
compares the two. For a way in, see [write a plugin](write-a-plugin.md); for the language of `axes`, [axes
signatures](axes.md).

Everything here is imported from `speedup` itself, what tests use from `speedup.testing`. Names that are not on this
page may change at any time.
"""

SECTIONS: dict[str, tuple[Any, ...]] = {
    "Kinds of rules": (
        speedup.Rule, speedup.Movement, speedup.TiedMovement, speedup.Expansion, speedup.Expanded,
        speedup.Overlay,
    ),
    "What a rule is given": (
        speedup.Node, speedup.Value, speedup.Ref, speedup.NodeFacts, speedup.NodeKeep, speedup.Kept, speedup.Call,
        speedup.Kind,
    ),
    "What a rule returns": (speedup.Constant, speedup.Unused, speedup.Affine, speedup.Instead, speedup.Plain),
    "Criteria": (speedup.Criterion, speedup.Scene, speedup.ChannelGroups, speedup.Group, speedup.Member),
    "Helpers": (
        speedup.variants, speedup.op_name, speedup.kept_shape, speedup.along, speedup.overlaid, speedup.plain_class,
        speedup.rows_of_one, speedup.matmul, speedup.says_nothing,
    ),
    "Registries": (speedup.Registry, speedup.default_registry),
    "Testing": tuple(
        getattr(testing, name) for name in testing.__all__ if isinstance(getattr(testing, name), type | FunctionType)
    ),
}  # fmt: skip


def page() -> str:
    """The text of docs/reference.md."""
    parts = [HEAD, "## The module of a plugin\n", _text(inspect.getdoc(hookspecs) or "")]
    parts.append("## Hooks\n")
    for name, hook in own(hookspecs.HookSpecs):
        parts += [f"### `{name}`\n", _signature(name, hook), _text(doc(hook, hookspecs.HookSpecs, name))]
    for title, things in SECTIONS.items():
        parts.append(f"## {title}\n")
        for thing in things:
            parts += list(_thing(thing))
    parts += ["### `only_plugins`\n", "A pytest fixture.\n", _text(doc(fixtures.only_plugins))]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).strip() + "\n"


def _thing(thing: Any) -> Iterator[str]:
    name = thing.__name__ if hasattr(thing, "__name__") else str(thing)
    yield f"### `{name}`\n"
    if not inspect.isclass(thing):
        yield _signature(name, thing)
        yield _text(doc(thing))
        return
    yield _text(doc(thing))
    for method, function in own(thing):
        if not (function.fget if isinstance(function, property) else function).__doc__:
            continue  # an override that is described at its base
        plain = isinstance(function, property)
        heading = f"`{method}`" if plain else f"`{method}{_arguments(function)}`"
        yield f"**{heading}**\n"
        yield _text(doc(function, thing, method))


def own(thing: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that a class itself defines, or a base that is not public."""
    hidden = [b for b in thing.__mro__[1:] if b.__module__.startswith("speedup.") and not hasattr(speedup, b.__name__)]
    members = {n: m for kind in (*reversed(hidden), thing) for n, m in vars(kind).items()}
    for name, member in members.items():
        if name.startswith("_") or name in ("pytest_generate_tests",):
            continue
        if isinstance(member, classmethod | staticmethod):
            yield name, member.__func__
        elif inspect.isfunction(member) or isinstance(member, property) or hasattr(member, "func"):
            yield name, member if not hasattr(member, "func") else property(member.func)


def doc(thing: Any, owner: type | None = None, name: str = "") -> str:
    """The docstring of a thing; of a method without one, that of the method that it overrides."""
    function = getattr(thing, "_fixture_function", None) or getattr(thing, "__wrapped__", None)
    found = inspect.getdoc(function if function is not None and not inspect.isclass(thing) else thing)
    for base in owner.__mro__[1:] if owner is not None and not found else ():
        found = found or inspect.getdoc(vars(base).get(name))
    return found or ""


def _arguments(function: Callable[..., Any]) -> str:
    parameters = [p for n, p in inspect.signature(function).parameters.items() if n not in ("self", "cls")]
    shown = []
    for p in parameters:
        stars = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        shown.append(stars + p.name + ("" if p.default is p.empty else f"={p.default!r}"))
    return f"({', '.join(shown)})"


def _signature(name: str, function: Any) -> str:
    return f"```text\n{name}{_arguments(function)}\n```\n"


def _text(doc: str) -> str:
    """A docstring as Markdown: sections in bold, their entries as a list, indented blocks as code."""
    lines: list[str] = []
    blocks = doc.splitlines()
    at = 0
    section = ""
    while at < len(blocks):
        line = blocks[at]
        indent = len(line) - len(line.lstrip())
        if re.fullmatch(r"(Args|Returns|Raises|Attributes|Example|Examples|Yields):", line):
            section = line[:-1]
            lines += ["", f"*{section}:*", ""]
        elif line.endswith("::") or line.startswith(".. code-block:: "):
            language = "py"
            if line.startswith(".. "):
                language = line.split()[-1].replace("python", "py")  # which is not run as a part of the page
            else:
                lines += [_inline(line[:-1]), ""]
            code, at = _indented(blocks, at + 1)
            lines += [f"```{language}", *code, "```", ""]
            continue
        elif line.strip().startswith(">>>"):
            code, at = _indented(blocks, at, len(line) - len(line.lstrip()))
            lines += ["```pycon", *code, "```", ""]
            continue
        elif indent == 4 and section and line.strip():
            entry = re.match(r"    ([\w*, .]+): (.*)", line)
            if section in ("Args", "Attributes", "Raises") and entry:
                lines.append(f"- `{entry[1]}`: {_inline(entry[2])}")
            elif section in ("Args", "Attributes", "Raises"):
                lines.append(f"- {_inline(line.strip())}")
            else:
                lines.append(_inline(line.strip()))
        elif indent > 4 and section:
            lines.append("  " + _inline(line.strip()))
        elif indent >= 4 and line.strip():
            code, at = _indented(blocks, at, indent)
            lines += ["", "```text", *code, "```", ""]
            continue
        else:
            section = section if not line.strip() else ""
            lines.append(_inline(line))
        at += 1
    return "\n".join(lines) + "\n"


def _indented(lines: list[str], at: int, indent: int = 1) -> tuple[list[str], int]:
    """The block of lines that are indented at least so far, without that, and where it ends."""
    start = at
    while at < len(lines) and (not lines[at].strip() or len(lines[at]) - len(lines[at].lstrip()) >= indent):
        at += 1
    return textwrap.dedent("\n".join(lines[start:at])).strip("\n").splitlines(), at


def _inline(text: str) -> str:
    text = re.sub(r"``(.+?)``", r"`\1`", text)
    return text.replace("\\\\", "\\")


if __name__ == "__main__":
    PAGE.write_text(page())
