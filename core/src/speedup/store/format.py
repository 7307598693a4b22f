"""``speedup.json``, versions 1 and 2: what it holds, and the check that it does. docs/saved-models.md describes it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from speedup.errors import StorageError
from speedup.store.plain import NotPlainError, from_json

VERSION = 2  # of which 1 is written for models in one file of our own, which older readers know
STRUCTURE = "speedup.json"
WEIGHTS = "model.safetensors"
# What is written in one line: lists of numbers, then a value before and after.
_SHORT = (
    re.compile(r"\[\n\s*-?\d[\d.e+-]*(?:,\n\s*-?\d[\d.e+-]*)*\n\s*\]"),
    re.compile(r"\{\n\s*\"(?:before|after)\"[^{}]*\}"),
)


@dataclass(frozen=True)
class Tensor:
    """A parameter or buffer of another shape than in the original.

    Attributes:
        before, after: the shapes; None where there is none.
        kind: "parameter", "buffer", or "hidden buffer" for one that is not in the state dict.
        requires_grad: of a gained parameter.
    """

    before: tuple[int, ...] | None
    after: tuple[int, ...] | None
    kind: str = "parameter"
    requires_grad: bool = True


@dataclass(frozen=True)
class Change:
    """What changed of one module.

    Attributes:
        original: the name of the user's class.
        tensors: by attribute name.
        attributes: by name the values before and after, as JSON; either may be absent.
        becomes: what was made of the class, see ``layers``.
    """

    original: str
    tensors: Mapping[str, Tensor]
    attributes: Mapping[str, Mapping[str, Any]]
    becomes: list[dict[str, Any]]


@dataclass(frozen=True)
class Structure:
    """The contents of ``speedup.json``.

    Attributes:
        sha256: of the file of weights; empty where there are several.
        modules: what changed, by path.
        tied: further names of tensors that are stored under another one.
        provenance: what made the model; for people.
        files: version 2: the files of a checkpoint, with the sha256 of each. Buffers that are not in the state dict may
            be missing in them: the code of the model makes them.
        besides: version 2: tensors in these files that the model has not.
        hidden: version 1: buffers in the file that are outside of the state dict. The code of the model may make them
            in its first call, or larger ones later.
    """

    sha256: str
    modules: Mapping[str, Change]
    tied: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    besides: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()


def dumps(structure: Structure) -> str:
    """The text of the file."""
    modules = {}
    for path, change in structure.modules.items():
        tensors = {
            name: {
                "before": None if t.before is None else list(t.before),
                "after": None if t.after is None else list(t.after),
                **({"kind": t.kind, "requires_grad": t.requires_grad} if t.before is None else {}),
            }
            for name, t in change.tensors.items()
        }
        modules[path] = {
            "class": change.original,
            "tensors": tensors,
            "attributes": {n: dict(a) for n, a in change.attributes.items()},
            "becomes": change.becomes,
        }
    data = {
        "format": "speedup",
        "version": 2 if structure.files else 1,
        "provenance": dict(structure.provenance),
        "weights": {"files": dict(structure.files), "besides": list(structure.besides)}
        if structure.files
        else {"file": WEIGHTS, "sha256": structure.sha256, **_if_any(hidden=list(structure.hidden))},
        "tied": dict(structure.tied),
        "modules": modules,
    }
    text = json.dumps(data, indent=2, allow_nan=False)
    for short in _SHORT:
        text = short.sub(_in_one_line, text)
    return text + "\n"


def _if_any(**entries: list[str]) -> dict[str, list[str]]:
    return {name: entry for name, entry in entries.items() if entry}


def _in_one_line(found: re.Match[str]) -> str:
    inner = re.sub(r"^\n\s*|\n\s*$", "", found[0][1:-1])
    return found[0][0] + re.sub(r"\n\s*", " ", inner) + found[0][-1]


def loads(text: str, where: str) -> Structure:
    """Read the text of a file.

    Raises:
        StorageError: it is damaged, of a newer version, or something else.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise StorageError(f"{where} is damaged: {error}") from error
    if not isinstance(data, dict) or data.get("format") != "speedup":
        raise StorageError(f"{where} is no description of a small model: its format is not 'speedup'")
    version = data.get("version")
    if type(version) is int and version > VERSION:
        raise StorageError(
            f"{where} is of version {version}, and this speedup reads up to version {VERSION}: install a newer one"
        )
    if type(version) is not int or version < 1:
        raise StorageError(f"{where}: there is no version {version!r}")
    try:
        return Structure(
            _of(data["weights"]["sha256"], str) if version == 1 else "",
            {_of(path, str): _change(entry) for path, entry in _of(data["modules"], dict).items()},
            {name: _of(other, str) for name, other in _of(data.get("tied", {}), dict).items()},
            _provenance(data.get("provenance", {})),
            _files(data["weights"]["files"]) if version == 2 else {},
            tuple(_of(n, str) for n in _of(data["weights"]["besides"], list)) if version == 2 else (),
            tuple(_of(n, str) for n in _of(data["weights"].get("hidden", []), list)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise StorageError(f"{where} is damaged: {what}") from error


def _of(value: Any, *kinds: type) -> Any:
    if type(value) not in kinds:
        raise TypeError(f"{value!r} stands where {' or '.join(k.__name__ for k in kinds)} belongs")
    return value


def _files(entry: Any) -> dict[str, str]:
    for name, digest in _of(entry, dict).items():
        if not name.endswith(".safetensors") or "/" in name or "\\" in name:
            raise ValueError(f"{name!r} is no file of weights beside it")
        _of(digest, str)
    if not entry:
        raise ValueError("there is no file of weights")
    return dict(entry)


def _provenance(entry: Any) -> dict[str, Any]:
    """For people, but for the rounds: these go into the record of the model that is loaded."""
    for done in _of(_of(entry, dict).get("rounds", []), list):
        _of(done, dict)
    return dict(entry)


def _change(entry: Any) -> Change:
    attributes = _of(entry["attributes"], dict)
    for values in attributes.values():
        if not set(_of(values, dict)) <= {"before", "after"}:
            raise TypeError(f"{values!r} stands where before and after belong")
        for value in values.values():
            _check_plain(value)
    return Change(
        _of(entry["class"], str),
        {name: _tensor(t) for name, t in _of(entry["tensors"], dict).items()},
        attributes,
        [_layer(layer) for layer in _of(entry["becomes"], list)],
    )


def _check_plain(value: Any) -> None:
    """Tensors are looked up later: only the rest is checked."""
    if isinstance(value, dict) and set(value) <= {"tensor", "weakref"}:
        return
    try:
        from_json(value)
    except NotPlainError as error:
        if not any(k in repr(value) for k in ("'tensor'", "'weakref'")):
            raise TypeError(str(error)) from error


def _tensor(entry: Any) -> Tensor:
    kind = entry.get("kind", "parameter")
    if kind not in ("parameter", "buffer", "hidden buffer"):
        raise TypeError(f"{kind!r} is no kind of tensor")
    grad = _of(entry.get("requires_grad", True), bool)
    return Tensor(_numbers(entry["before"]), _numbers(entry["after"]), kind, grad)


def _numbers(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    return tuple(_of(n, int) for n in _of(value, list))


def _layer(layer: Any) -> dict[str, Any]:
    if len(_of(layer, dict)) != 1 or not set(layer) <= {"class", "overlay", "overlay above", "edits"}:
        raise TypeError(f"{layer!r} is nothing that a class can become")
    for kind, content in layer.items():
        if kind != "edits":
            _of(content, str)
        else:
            for edit in _of(content, list):
                _check_edit(edit)
    return dict(layer)


_EDIT = {
    "method": (str,),
    "function": (str,),
    "digest": (str,),
    "span": (list,),
    "item": (int, type(None)),
    "old": (int, float, dict, type(None)),
    "new": (int, float, dict, type(None)),
    "text": (str,),
    "via": (dict, type(None)),
    "keyword": (str, type(None)),
    "callee": (str,),
}
_OPTIONAL = {"callee"}


def _check_edit(edit: Any) -> None:
    """Only numbers are put into a method, and only in the place of what stands there; and the name of a function that
    an installed rule makes."""
    if set(_of(edit, dict)) | _OPTIONAL != set(_EDIT):
        raise TypeError(f"{edit!r} is no edit of a method")
    for name in edit:
        _of(edit[name], *_EDIT[name])
    if (edit["new"] is None) != ("callee" in edit):
        raise TypeError(f"{edit!r} is no edit of a method")
    for name in ("old", "new"):
        _of(from_json(edit[name]), int, float, type(None))
    for place in (edit, edit["via"]):
        if place is not None and len(_numbers(place["span"]) or ()) != 4:
            raise TypeError(f"{place['span']!r} is no place in a method")
    if edit["via"] is not None:
        _of(edit["via"]["function"], str), _of(edit["via"]["digest"], str)
    if edit["keyword"] is not None and not edit["keyword"].isidentifier():
        raise TypeError(f"{edit['keyword']!r} is no name of an argument")
