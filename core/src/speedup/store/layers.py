"""The class of a small module as data: what stands over the user's class, and how to put it there again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from torch import nn

from speedup.errors import SpeedupError, StorageError
from speedup.overlay import Overlay, above, overlaid, parts_of
from speedup.registry import Registry
from speedup.repair.rewrite import Edit, Via, original, rewritten
from speedup.store.plain import from_json, to_json
from speedup.store.record import name_of


def describe(module: nn.Module, original_class: str, path: str, registry: Registry) -> list[dict[str, Any]]:
    """What was made of a module's original class, to be done in this order.

    Raises:
        StorageError: it is of a class that no installed rule makes.
    """
    names = {id(kind): name for name, kind in makes(registry).items()}
    cls, edits = original(type(module))
    overlay, base = parts_of(cls)
    found: list[dict[str, Any]] = []
    if name_of(base) != original_class:
        found.append({"class": _named(names, base, path)})
    if overlay is not None:
        found.append({"overlay" if above(cls) is None else "overlay above": _named(names, overlay, path)})
    if edits:
        found.append({"edits": [_edit_to_json(e, names, path) for e in edits]})
    return found


def remade(module: nn.Module, layers: Sequence[dict[str, Any]], path: str, registry: Registry) -> nn.Module:
    """A module (a shell of a fresh one) of the class that ``describe`` described.

    Raises:
        StorageError: a plugin is missing, or the source of a method is another one.
    """
    known = makes(registry)
    for layer in layers:
        ((kind, content),) = layer.items()
        if kind == "edits":
            edits = tuple(_edit_from_json(e, known, path) for e in content)
            try:
                module.__class__ = rewritten(type(module), edits)
            except SpeedupError as error:
                raise StorageError(
                    f"{path or 'the model'}: {error}. Load it with the source it was saved with"
                ) from error
            continue
        found: Any = _known(known, content, path, "is")
        if kind == "overlay" and isinstance(found, type) and issubclass(found, Overlay):
            module.__class__ = overlaid(found, type(module))
        elif kind == "overlay above" and isinstance(found, type) and issubclass(found, Overlay):
            module.__class__ = overlaid(found, type(module), _laid_over(type(module), found, registry))
        elif kind == "class" and isinstance(found, type) and issubclass(found, nn.Module):
            made = found.__new__(found)
            made.__dict__.update(module.__dict__)
            module = made
        else:
            raise StorageError(f"{path or 'the model'}: {content} is no {kind}")
    return module


def _laid_over(cls: type, kind: type, registry: Registry) -> type[nn.Module] | None:
    """The class above another over which a rule lays an overlay."""
    rules = ((base, registry.for_type(base)) for base in cls.__mro__ if issubclass(base, nn.Module))
    return next((base for base, rule in rules if rule is not None and kind in rule.makes), None)


def makes(registry: Registry) -> dict[str, Callable[..., Any]]:
    """The classes and functions that the installed rules make beside modules of the user's classes, by the name that
    files use."""
    found = {}
    for rule in registry.rules:
        plugin = registry.plugin_of(rule)
        for kind in rule.makes:
            found[f"{plugin.name if plugin else ''}.{kind.__name__}"] = kind
    return found


def _known(known: dict[str, Callable[..., Any]], name: str, path: str, what: str) -> Callable[..., Any]:
    if name not in known:
        raise StorageError(
            f"{path or 'the model'} {what} a {name} in the saved model, which no installed plugin makes: "
            f"install the plugin {name.partition('.')[0]!r} (speedup plugins lists those that are there)"
        )
    return known[name]


def _named(names: dict[int, str], kind: Any, path: str) -> str:
    if id(kind) not in names:
        raise StorageError(
            f"{path or 'the model'} became a {name_of(kind)}, which no installed rule lists in "
            "`makes`: it could not be made again"
        )
    return names[id(kind)]


def _edit_to_json(edit: Edit, names: dict[int, str], path: str) -> dict[str, Any]:
    data = asdict(edit)
    callee = data.pop("callee")
    if callee is not None:
        data["callee"] = _named(names, callee, path)
    data["span"] = list(edit.span)
    if edit.via is not None:
        data["via"]["span"] = list(edit.via.span)
    return {**data, "old": to_json(edit.old), "new": to_json(edit.new)}


def _edit_from_json(data: dict[str, Any], known: dict[str, Callable[..., Any]], path: str) -> Edit:
    via, callee = data["via"], data.get("callee")
    return Edit(
        **{
            **data,
            "span": tuple(data["span"]),
            "old": from_json(data["old"]),
            "new": from_json(data["new"]),
            "via": None if via is None else Via(via["function"], via["digest"], tuple(via["span"])),
            "callee": None if callee is None else _known(known, callee, path, "calls"),
        }
    )
