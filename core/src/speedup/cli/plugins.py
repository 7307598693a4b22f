"""``speedup plugins``."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Callable, Sequence

from speedup.errors import PluginConflictError
from speedup.hookspecs import CONTRACT_VERSION
from speedup.names import op_name
from speedup.plugins import PluginInfo, load_plugins, strict_by_environment
from speedup.registry import Registry


def add(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """List the installed plugins and the ops that they claim."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a plugin failed or two plugins conflict")

    def run(args: argparse.Namespace) -> int:
        found = load_plugins(strict=False)
        conflict = _conflict(found)
        if args.json:
            listing = {
                "contract_version": CONTRACT_VERSION,
                "plugins": [_as_dict(plugin) for plugin in found],
                "conflict": conflict,
            }
            print(json.dumps(listing, indent=2))
        else:
            print(_as_text(found, conflict))
        bad = conflict is not None or any(plugin.error is not None for plugin in found)
        return int(bad and (args.strict or strict_by_environment()))

    return run


def _conflict(found: Sequence[PluginInfo]) -> str | None:
    try:
        Registry(found)
    except PluginConflictError as error:
        return str(error)
    return None


def _ops(plugin: PluginInfo) -> list[str]:
    return sorted({op_name(op) for rule in plugin.rules for op in (*rule.modules, *rule.functions)})


def _as_dict(plugin: PluginInfo) -> dict[str, object]:
    return {
        "name": plugin.name,
        "version": plugin.version,
        "distribution": plugin.distribution,
        "module": plugin.module,
        "status": plugin.status,
        "contract": plugin.contract,
        "error": plugin.error,
        "rules": [rule.name for rule in plugin.rules],
        "ops": _ops(plugin),
        "criteria": [criterion.name for criterion in plugin.criteria],
    }


def _as_text(found: Sequence[PluginInfo], conflict: str | None) -> str:
    if not found:
        return "no plugins are installed"
    header = ("name", "version", "distribution", "status", "contract", "ops")
    rows = [
        (p.name, p.version, p.distribution, p.status, "-" if p.contract is None else str(p.contract), str(len(_ops(p))))
        for p in found
    ]
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    for plugin in found:
        if plugin.error is not None:
            lines += ["", f"{plugin.name} failed: {plugin.error}"]
        elif ops := _ops(plugin):
            lines += ["", f"{plugin.name} claims:", *_by_namespace(ops)]
        if plugin.criteria:
            lines += ["", f"{plugin.name} has the criteria:", "  " + " ".join(c.name for c in plugin.criteria)]
    if conflict is not None:
        lines += ["", f"conflict: {conflict}"]
    return "\n".join(line.rstrip() for line in lines)


def _by_namespace(ops: Sequence[str]) -> list[str]:
    """Write ``torch.nn.Conv1d``, ``torch.nn.Conv2d`` as ``torch.nn: Conv1d Conv2d``, in lines that fit a terminal."""
    grouped: dict[str, list[str]] = {}
    for op in ops:
        namespace, _, name = op.rpartition(".")
        grouped.setdefault(namespace or "builtins", []).append(name)
    return [
        line
        for namespace, names in grouped.items()
        for line in textwrap.wrap(
            f"{namespace}: {' '.join(names)}", width=100, initial_indent="  ", subsequent_indent="    "
        )
    ]
