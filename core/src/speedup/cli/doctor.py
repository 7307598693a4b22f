"""``speedup doctor``."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from speedup.barriers import Barrier, find_barriers
from speedup.cli.target import MODEL_HELP, add_input, make_input, make_model
from speedup.errors import InputError, PluginConflictError
from speedup.hookspecs import CONTRACT_VERSION
from speedup.inputs import resolve_inputs
from speedup.plugins import PluginInfo, load_plugins
from speedup.registry import Registry
from speedup.trace import sandbox, trace


@dataclass
class _Model:
    target: str
    calls: int
    ruled: int
    barriers: list[Barrier] = field(default_factory=list)


def add(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Say what is wrong with the plugins, and which ops of a model have no rule; exit with 1 if anything is."""
    parser.add_argument(
        "model", metavar="MODULE:CALLABLE", nargs="?", help=f"{MODEL_HELP}. Left out, only the plugins are looked at"
    )
    add_input(parser, required=False)
    parser.add_argument("--prefer", action="append", default=[], help="a plugin that wins where two claim one op")
    parser.add_argument("--json", action="store_true", help="print JSON")

    def run(args: argparse.Namespace) -> int:
        if (args.model is None) != (args.input is None):
            raise InputError(
                "a model and --input belong together: speedup doctor mymodels.net:build --input 1x3x224x224"
            )
        found = load_plugins(strict=False)
        registry, conflict = _registry(found, args.prefer)
        model = _look(args.model, args.input, registry) if args.model is not None and registry is not None else None
        print(_as_json(found, conflict, model) if args.json else _as_text(found, conflict, args.model, model))
        failed = any(plugin.error is not None for plugin in found)
        return int(failed or conflict is not None or (model is not None and bool(model.barriers)))

    return run


def _registry(found: Sequence[PluginInfo], prefer: Sequence[str]) -> tuple[Registry | None, str | None]:
    try:
        return Registry(found, prefer), None
    except PluginConflictError as error:
        return None, str(error)


def _look(target: str, specs: Sequence[str], registry: Registry) -> _Model:
    model = make_model(target)
    args, kwargs = resolve_inputs(make_input(specs))
    with sandbox(model):
        try:
            graph = trace(model, args, kwargs, registry)
        except Exception as error:
            _, current = getattr(error, "speedup_trace", ([], ""))
            last = f"; last call: {current}" if current else ""
            raise InputError(f"{target} does not run on --input {' '.join(specs)}: {error!r}{last}") from error
    ruled = sum(not node.is_barrier for node in graph.nodes)
    return _Model(target, len(graph.nodes), ruled, find_barriers(graph.nodes, registry))


def _as_json(found: Sequence[PluginInfo], conflict: str | None, model: _Model | None) -> str:
    plugins: list[dict[str, Any]] = [
        {"name": p.name, "distribution": p.distribution, "version": p.version, "status": p.status,
         "contract": p.contract, "error": p.error, "rules": len(p.rules)}
        for p in found
    ]  # fmt: skip
    return json.dumps(
        {
            "contract_version": CONTRACT_VERSION,
            "plugins": plugins,
            "conflict": conflict,
            "model": asdict(model) if model is not None else None,
        },
        indent=2,
    )


def _as_text(found: Sequence[PluginInfo], conflict: str | None, target: str | None, model: _Model | None) -> str:
    from speedup import __version__

    lines = [
        f"speedup {__version__}, plugin interface {CONTRACT_VERSION}, torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    ]
    by_status = {status: [p for p in found if p.status == status] for status in ("loaded", "failed", "disabled")}
    counts = ", ".join(f"{len(group)} {status}" for status, group in by_status.items() if group or status == "loaded")
    lines.append(f"plugins: {counts}")
    for plugin in by_status["failed"]:
        lines.append(f"  failed: {plugin.label}: {plugin.error}")
    for plugin in by_status["disabled"]:
        lines.append(f"  disabled: {plugin.label}: what it claims has no rule")
    if conflict is not None:
        lines.append(f"  conflict: {conflict}")
        if target is not None:
            lines.append(f"{target} was not looked at: nothing can be planned as long as plugins conflict")
    if model is not None:
        lines += _about(model)
    return "\n".join(lines)


def _about(model: _Model) -> list[str]:
    if not model.barriers:
        return [f"{model.target}: each of its {model.calls} calls has a rule"]
    lines = [
        f"{model.target}: {model.ruled} of {model.calls} calls have a rule. Without one, what they touch stays whole:"
    ]
    for barrier in model.barriers:
        calls = "1 call" if barrier.calls == 1 else f"{barrier.calls} calls"
        lines.append(f"  {barrier.op}: {calls}, first at {barrier.where}")
        if barrier.note:
            lines.append(f"    {barrier.note}")
        if barrier.package:
            lines.append(f"    {barrier.package} is known to have rules for it: pip install {barrier.package}")
        elif barrier.command:
            lines.append(f"    to write a rule for it: {barrier.command}")
        elif not barrier.note:
            lines.append("    no rule can help: it hands data to Python, or has no public name")
    return lines
