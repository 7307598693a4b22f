"""docs/reference.md is the plugin interface as it is, and leaves nothing out."""

from __future__ import annotations

import inspect
import re
import textwrap

import speedup
from speedup import hookspecs, rule
from tests import reference
from tests.test_docs import blocks


def test_the_reference_is_written_from_the_docstrings() -> None:
    assert reference.PAGE.read_text() == reference.page(), "python -m tests.reference writes it anew"


def test_every_hook_and_every_argument_of_the_interface_is_documented() -> None:
    """Hooks, the methods of rules and of what rules are given: each has a docstring that speaks of its arguments."""
    interface = [
        hookspecs.HookSpecs,
        *(t for s in ("Kinds of rules", "What a rule is given") for t in reference.SECTIONS[s]),
    ]
    seen = 0
    for kind in interface:
        for name, function in reference.own(kind):
            place = f"{kind.__name__}.{name}"
            # What an override says is beside what its base says.
            doc = "".join(inspect.getdoc(vars(base)[name]) or "" for base in kind.__mro__ if name in vars(base))
            assert doc, f"{place} has no docstring"
            if isinstance(function, property):
                continue
            for argument in list(inspect.signature(function).parameters)[1:]:
                seen += 1
                assert re.search(rf"\b{argument}\b", doc), f"the docstring of {place} does not speak of {argument!r}"
    assert seen > 40
    text = reference.PAGE.read_text()
    for name in vars(hookspecs.HookSpecs):
        assert name.startswith("_") or f"### `{name}`" in text
    for attribute in (*rule._FIELDS, "origin"):
        assert f"`{attribute}`" in text, attribute
    for name in speedup.__all__:
        thing = getattr(speedup, name)
        if isinstance(thing, type) and issubclass(thing, speedup.Rule):
            assert f"### `{name}`" in text, name


def test_examples_in_the_reference_are_python() -> None:
    found = [block for block in blocks("docs/reference.md") if block.language == "py"]
    assert len(found) >= 10
    for block in found:
        compile(textwrap.dedent(block.text), f"docs/reference.md, line {block.line}", "exec")
