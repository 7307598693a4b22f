"""A new plugin project from the template that is in this package, as ``speedup new-plugin`` writes it.

Files whose name ends in ``.jinja`` have ``{{ name }}`` replaced, in their text and in their path; nothing else of that
language is used, so that the same files serve copier (``contrib_template/``).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from pathlib import Path

from speedup.errors import InputError
from speedup.hookspecs import CONTRACT_VERSION
from speedup.stub import Stub, stub_for

TEMPLATE = Path(__file__).with_name("template")

_FIELD = re.compile(r"\{\{ (\w+) \}\}")
_SUFFIX = ".jinja"


def project(name: str, op: str | None = None) -> dict[str, str]:
    """Give the files of a new plugin: their text by their path in the project.

    Args:
        name: of the plugin, such as ``mylib``; ``speedup-plugin-mylib`` means the same.
        op: the op that it is for, by the name that reports have for it; its rule is then begun.

    Raises:
        InputError: the name cannot be that of a plugin, or the op cannot be found.

    Example:
        >>> sorted(project("mylib"))[:2]
        ['.github/workflows/test.yml', '.gitignore']
    """
    given = answers(name, stub_for(op) if op else None)
    files = {}
    for path in sorted(TEMPLATE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            text = path.read_text(encoding="utf-8")
            target = _filled(path.relative_to(TEMPLATE).as_posix(), given)
            if target.endswith(_SUFFIX):
                target, text = target.removesuffix(_SUFFIX), _filled(text, given)
            files[target] = text
    return files


def answers(name: str, stub: Stub | None = None) -> dict[str, str]:
    """What stands for each ``{{ field }}`` of the template."""
    from speedup import __version__

    short = re.sub(r"[_.\s]+", "-", name.strip().lower()).removeprefix("speedup-plugin-")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", short):
        raise InputError(f"{name!r} cannot be the name of a plugin: letters, digits and '-', a letter first")
    major, minor = (int(part) for part in __version__.split(".")[:2])
    rules = ["channel_gain", *([stub.rule] if stub else [])]
    return {
        "name": short,
        "distribution": f"speedup-plugin-{short}",
        "module": f"speedup_plugin_{short.replace('-', '_')}",
        "core_versions": f">={major}.{minor},<{major}.{minor + 1}" if major == 0 else f">={major}.{minor},<{major + 1}",
        "more_dependencies": "".join(f', "{name}"' for name in (stub.distributions if stub else ())),
        "contract": str(CONTRACT_VERSION),
        "year": str(datetime.date.today().year),
        "imports": _imports(stub),
        "op_rule": f"\n{stub.text}" if stub else "",
        "rules": ", ".join(rules),
        "unasked": f'"{stub.rule}",' if stub else "",
    }


def write(name: str, into: Path, op: str | None = None) -> Path:
    """Write a new plugin project into a folder that does not exist yet, or is empty.

    Raises:
        InputError: as ``project``; or there is something at that place. Nothing is written then.
    """
    files = project(name, op)
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise InputError(f"{into} exists already: choose another place with --into, or remove it")
    for path, text in files.items():
        target = into / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return into


def _imports(stub: Stub | None) -> str:
    """The lines of imports, those of speedup in one, in the order that formatters want."""
    ours = "from speedup import "
    others = [line for line in (stub.imports if stub else ()) if not line.startswith(ours)]
    names = {"Rule", *(line.removeprefix(ours) for line in (stub.imports if stub else ()) if line.startswith(ours))}
    return "\n".join(
        sorted([*others, ours + ", ".join(sorted(names))], key=lambda line: (line.startswith("from"), line))
    )


def _filled(text: str, given: Mapping[str, str]) -> str:
    return _FIELD.sub(lambda match: given[match.group(1)], text)
