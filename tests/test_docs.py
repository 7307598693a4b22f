"""The documents are true: their code runs, what they show is what it prints, their links lead somewhere.

Code blocks of one document share a namespace and run in order, as one file named after the document (``axes.md`` runs
as ``axes.py``), in an empty directory. A comment before a block says more:

- ``<!-- output -->``: the block is what the code before it prints;
- ``<!-- file: PATH -->``: the block is that file of the repository, word for word;
- ``<!-- generated: PATH -->``: it is that file of the project that ``speedup new-plugin mylib`` writes;
- ``<!-- not run: REASON -->``: Python code that is not run.

``python tests/test_docs.py`` writes the output blocks anew.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import linecache
import os
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import speedup
from speedup import cli, plugins, rule, rule_log, scaffold
from speedup.registry import default_registry

ROOT = Path(__file__).parents[1]
RUN = ("README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/*.md")))
ALL = (
    *RUN,
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "contrib_template/README.md",
    "examples/third_party/README.md",
    "core/README.md",
    *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("plugins/*/README.md")),
)
# Of the plugins that have rules; pruners has criteria only.
FAMILIES = sorted({path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml")} - {"pruners"})
MOST_NOT_RUN = 3

_FENCE = re.compile(r"^(`{3,})(\{?[\w-]*\}?)\s*$")
_COMMENT = re.compile(r"^<!-- (output|file|generated|not run)(?:: (.*?))? -->$")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the comment before it, and the line on which its text begins."""

    language: str
    text: str
    mark: str
    about: str
    line: int


def blocks(name: str) -> list[Block]:
    """All fenced blocks of a document."""
    found: list[Block] = []
    mark = about = ""
    inside: list[str] | None = None
    fence = language = ""
    start = 0
    for number, line in enumerate((ROOT / name).read_text().splitlines(), 1):
        opening = _FENCE.match(line)
        if inside is not None:
            if opening and opening[1] == fence:
                found.append(Block(language, "".join(f"{each}\n" for each in inside), mark, about, start))
                inside, mark, about = None, "", ""
            else:
                inside.append(line)
        elif opening:
            inside, start, fence, language = [], number + 1, opening[1], opening[2]
        elif comment := _COMMENT.match(line):
            mark, about = comment[1], comment[2] or ""
        elif line.strip():
            mark = about = ""
    assert inside is None, f"{name}: a block is not closed"
    return found


def executed(name: str) -> Iterator[tuple[Block, str]]:
    """Run the Python blocks of a document; give each output block with what was printed since the one before."""
    file = Path(name).stem.replace("-", "_").lower() + ".py"
    namespace: dict[str, Any] = {"__name__": Path(file).stem}
    source = ""
    printed = io.StringIO()
    threads, columns = torch.get_num_threads(), os.environ.get("COLUMNS")
    torch.set_num_threads(1)
    os.environ["COLUMNS"] = "88"  # tables are as wide as the terminal, and pages hold so much
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for block in blocks(name):
                if block.mark == "output":
                    yield block, printed.getvalue()
                    printed = io.StringIO()
                elif block.language == "python" and block.mark not in ("file", "generated", "not run"):
                    # The line numbers are those of all blocks one after the other.
                    above = source.count("\n")
                    source += block.text
                    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
                    with contextlib.redirect_stdout(printed):
                        exec(compile("\n" * above + block.text, file, "exec"), namespace)
    finally:
        torch.set_num_threads(threads)
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns
        linecache.cache.pop(file, None)


def tidy(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def section(name: str, heading: str) -> str:
    """The text below a heading, up to the next one of its level or above."""
    text = (ROOT / name).read_text()
    found = re.search(rf"^(#+) {re.escape(heading)}$\n(.*?)(?=^#{{1,2}} |\Z)", text, re.M | re.S)
    assert found, f"{name} has no heading {heading!r}"
    return found[2]


def slugs(name: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", name.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


# -- code and what it prints ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUN)
def test_code_runs_and_prints_what_the_document_shows(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for block, printed in executed(name):
        assert tidy(block.text) == tidy(printed), (
            f"{name}, line {block.line} (python tests/test_docs.py writes it anew)"
        )


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    skipped = [(name, block) for name in RUN for block in blocks(name) if block.mark == "not run"]
    assert all(block.about for _, block in skipped)
    assert len(skipped) <= MOST_NOT_RUN


@pytest.mark.parametrize("name", RUN)
def test_quoted_files_are_quoted_word_for_word(name: str) -> None:
    for block in blocks(name):
        if block.mark == "file":
            assert tidy(block.text) == tidy((ROOT / block.about).read_text()), f"{name}, line {block.line}"


@pytest.mark.parametrize("name", RUN)
def test_generated_files_are_quoted_as_they_are_written(name: str) -> None:
    files = scaffold.project("mylib")
    for block in blocks(name):
        if block.mark == "generated":
            assert tidy(block.text) == tidy(files[block.about]), f"{name}, line {block.line}"


def test_the_quick_start_is_short() -> None:
    first = next(block for block in blocks("README.md") if block.language == "python")
    assert len(first.text.splitlines()) <= 15


# -- links and lists --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_relative_links_resolve(name: str) -> None:
    path = ROOT / name
    for link in _LINK.findall(path.read_text()):
        if link.startswith(("http:", "https:", "mailto:")):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{name} links to {link}"
        assert target.is_relative_to(ROOT), f"{name} links out of the repository: {link}"
        if anchor:
            assert anchor in slugs(target), f"{name} links to {link}; that document has {sorted(slugs(target))}"


def family_rows() -> dict[str, tuple[str, str]]:
    rows = re.findall(
        r"^\| \[(\w+)\]\(plugins/(\w+)\) \| (.*?) \| (.*) \|$", section("README.md", "Supported families"), re.M
    )
    assert all(name == folder for name, folder, _, _ in rows)
    return {name: (modules, functions) for name, _, modules, functions in rows}


def test_the_table_of_families_lists_every_plugin() -> None:
    assert sorted(family_rows()) == FAMILIES


def test_the_table_of_criteria_lists_all_of_them() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "plugins/pruners/README.md").read_text(), re.M)
    assert sorted(rows) == list(default_registry().criteria)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_of_families_names_the_modules_that_are_claimed(family: str) -> None:
    modules, _ = family_rows()[family]
    expanded = {
        each
        for word in re.findall(r"\w+(?:/\dd)*", modules)
        for each in (word, *(re.sub(r"\dd$", d, word.split("/")[0]) for d in word.split("/")[1:]))
        for each in [each.split("/")[0]]
    }
    (plugin,) = (p for p in default_registry().plugins if p.name == family)
    claimed = {module.__name__ for rule in plugin.rules for module in rule.modules}
    assert claimed <= expanded
    promised = {word for word in expanded if hasattr(torch.nn, word)}
    assert promised == {name for name in claimed if hasattr(torch.nn, name)}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_of_families_promises_only_functions_that_are_claimed(family: str) -> None:
    _, functions = family_rows()[family]
    (plugin,) = (p for p in default_registry().plugins if p.name == family)
    claimed = {speedup.op_name(f).rpartition(".")[2] for rule in plugin.rules for f in rule.functions}
    named = set(re.findall(r"`(\w+)`", functions))
    assert named <= claimed
    assert named or "same as functions" in functions


def test_signatures_in_the_docs_are_those_of_the_rules() -> None:
    """Each row of the table in docs/axes.md gives a call, its rule, and the signature that the rule has for it."""
    rows = re.findall(
        r"^\| `(.+?)` \| ([^|]*) \| `(.+?)` \|$", section("docs/axes.md", "Signatures of the built-in families"), re.M
    )
    used, shown = set(), set()
    for call, rule_name, signature in rows:
        node = _traced(call)
        assert node.rule is not None and node.rule.name == rule_name, call
        assert node.rule.signature(node) == signature, call
        used.add(default_registry().plugin_of(node.rule))
        shown.add(rule_name)
    # recurrent has no signatures: time makes a fixpoint. Of reshape, fold and scatter have one, the others run on
    # coordinates.
    ruled = {plugin.name for plugin in default_registry().plugins if plugin.rules}
    assert {plugin.name for plugin in used if plugin} == ruled.intersection(FAMILIES) - {"recurrent"}
    plain = [r for r in default_registry().rules if not isinstance(r, speedup.Movement | speedup.Expansion)]
    plain = [r for r in plain if r.modules or r.functions]  # what is claimed by its structure is like something here
    assert {r.name for r in plain if not r.layout_only} - shown == {
        *("identity", "dropout", "torch.dropout", "cast"),  # in eval mode no call is left of these, or it is a copy
        *("recurrent", "recurrent cell", "pack_padded_sequence", "pad_packed_sequence"),  # a fixpoint over time
        *("attention_with_weights", "norm", "made", "full", "empty"),  # no call of one tensor brings them about
        *("tensordot", "outer", "multi_dot", "solve_triangular", "masked_scatter"),  # taken apart into
        *(
            "multi_head_attention_forward",
            "masked rows",
            "queries of attention",
            "attention by width",
            "attention by width, with weights",
        ),  # into these
        *("max_unpool2d", "max_unpool3d"),  # as max_unpool1d
        "nonzero",  # stays whole
        "masked_select",  # stays whole
        *("real", "view_as_real"),  # of complex numbers, which no row makes
        *("counting layer_norm", "counting rms_norm", "counting group_norm"),  # what earlier rounds leave of calls
        "spectral_norm",  # stands inside of the layer whose weight it makes
    }


def _traced(call: str) -> speedup.Node:
    """The node that a call, written with ``x``, ``w`` and ``nn.`` or ``F.``, becomes."""
    import torchvision  # noqa: F401 (its operators are called)

    names = {"torch": torch, "nn": torch.nn, "F": F}
    made = re.match(r"(nn\.\w+\(.*?\)) on (.*)$", call)
    if made:
        model: torch.nn.Module = eval(made[1], names)
        kind = torch.long if made[2].startswith("ids ") else torch.float
        shapes = ast.literal_eval(f"[{made[2].removeprefix('ids ')}]")
        inputs = tuple(torch.ones(shape, dtype=kind) for shape in shapes)
    else:
        found = re.match(r"(.*) for (.*)$", call)
        assert found, call
        code, shapes = found.groups()
        keys = [s.split()[0] for s in shapes.split("; ")]
        inputs = tuple(_filled(s.split(maxsplit=1)[1]) for s in shapes.split("; "))

        class Call(torch.nn.Module):
            def forward(self, *values: torch.Tensor) -> Any:
                return eval(code, {**names, **dict(zip(keys, values, strict=True))})

        model = Call()
    model = torch.nn.Sequential(model) if made and len(inputs) == 1 else _Wrapped(model)
    from speedup.trace import sandbox, trace

    with sandbox(model):
        graph = trace(model, inputs, {}, default_registry())
    assert len(graph.nodes) == 1, [n.label for n in graph.nodes]
    return graph.nodes[0]


def _filled(text: str) -> torch.Tensor:
    kind, shape = re.fullmatch(r"(ids |bools )?(.*)", text).groups()  # type: ignore[union-attr]
    dtype = {"ids ": torch.long, "bools ": torch.bool}.get(kind)
    return torch.rand(ast.literal_eval(shape)) if dtype is None else torch.ones(ast.literal_eval(shape), dtype=dtype)


class _Wrapped(torch.nn.Module):
    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *values: torch.Tensor) -> Any:
        return self.inner(*values)


def test_what_is_said_to_be_unsupported_is() -> None:
    text = section("docs/errors-and-limits.md", "What stays whole today")
    listed = re.findall(r"`((?:nn|F|torch)\.\w+)`", text)
    assert listed
    names = {"torch": torch, "nn": torch.nn, "F": F}
    ops = {name: eval(name, names) for name in listed}
    rules = default_registry().rules
    modules = {m for rule in rules for m in rule.modules}
    functions = {f for rule in rules for f in rule.functions}
    supported = [name for name, op in ops.items() if op in (modules if isinstance(op, type) else functions)]
    assert supported == [], "take these out of the list"


def test_the_pictures_are_those_that_the_script_draws() -> None:
    spec = importlib.util.spec_from_file_location("draw", ROOT / "docs/pictures/draw.py")
    assert spec is not None and spec.loader is not None
    drawing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawing)
    made = {f"{make.__name__}.svg": str(make()) for make in drawing.PICTURES}
    kept = {path.name: path.read_text() for path in (ROOT / "docs/pictures").glob("*.svg")}
    assert kept == made, "python docs/pictures/draw.py draws them anew"


def test_every_error_is_documented() -> None:
    text = (ROOT / "docs/errors-and-limits.md").read_text()
    errors = {n for n in speedup.__all__ if isinstance(o := getattr(speedup, n), type) and issubclass(o, Exception)}
    assert errors
    assert {name for name in errors if f"`{name}`" not in text} == set()


def test_every_environment_variable_is_documented() -> None:
    known = {plugins.DISABLE_VARIABLE, plugins.ONLY_VARIABLE, plugins.STRICT_VARIABLE}
    known |= {plugins.PREFER_VARIABLE, rule_log.TRACE_VARIABLE}
    sources = "".join(path.read_text() for path in ROOT.glob("core/src/speedup/**/*.py"))
    assert set(re.findall(r"\bSPEEDUP_[A-Z_]+\b", sources)) == known
    documents = {name: set(re.findall(r"\bSPEEDUP_[A-Z_]+\b", (ROOT / name).read_text())) for name in ALL}
    assert documents["docs/plugins.md"] == known
    assert set().union(*documents.values()) == known


def test_every_command_is_documented() -> None:
    text = "".join((ROOT / name).read_text() for name in ALL)
    assert set(re.findall(r"`speedup ([a-z-]+)", text)) == set(cli.COMMANDS)


def test_every_field_of_a_rule_is_documented() -> None:
    text = (ROOT / "docs/write-a-plugin.md").read_text()
    assert {field for field in rule._FIELDS if f"`{field}`" not in text} == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_readme_of_a_plugin_names_rules_that_exist(family: str) -> None:
    rows = re.findall(r"^\| (`.*?) \| .* \| .* \|$", (ROOT / "plugins" / family / "README.md").read_text(), re.M)
    named = {name for row in rows for name in re.findall(r"`(.+?)`", row)}
    (plugin,) = (p for p in default_registry().plugins if p.name == family)
    assert named
    assert named <= {rule.name for rule in plugin.rules}


# -- writing the outputs anew -----------------------------------------------------------------------------------------


def _rewrite(name: str) -> None:
    lines = (ROOT / name).read_text().splitlines()
    for block, printed in reversed(list(executed(name))):
        lines[block.line - 1 : block.line - 1 + block.text.count("\n")] = tidy(printed).splitlines()
    (ROOT / name).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        for each in sys.argv[1:] or RUN:
            _rewrite(each)
