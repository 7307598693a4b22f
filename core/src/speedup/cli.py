"""The command line: ``speedup COMMAND``.

A command is one function: it adds its options to a parser and returns the function that runs it. Its name in
`COMMANDS` is its name on the command line, and the first line of its docstring is its help.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import inspect
import json
import os
import sys
import textwrap
from collections.abc import Callable, Sequence

from speedup.errors import PluginConflictError, SpeedupError
from speedup.hookspecs import CONTRACT_VERSION
from speedup.names import op_name
from speedup.plugins import PluginInfo, load_plugins, strict_by_environment
from speedup.registry import Registry

Run = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments without the program's name; those of the process by default.

    Returns:
        The exit code: 0 for success, 1 for a failure, 2 for a mistake in the arguments.
    """
    parser = argparse.ArgumentParser(prog="speedup", description="Make a pruned model smaller and faster.")
    parser.add_argument("--version", action="version", version=f"speedup {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        summary = (inspect.getdoc(command) or "").partition("\n")[0]
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(run=command(sub))
    args = parser.parse_args(argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if args.debug:
            raise
        kind = "" if isinstance(error, SpeedupError) else f"{type(error).__name__}: "
        print(f"speedup: error: {kind}{error}", file=sys.stderr)
        return 1
    return code


def plugins(parser: argparse.ArgumentParser) -> Run:
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


COMMANDS: dict[str, Callable[[argparse.ArgumentParser], Run]] = {"plugins": plugins}
"""Every command by its name."""


def _version() -> str:
    try:
        return importlib.metadata.version("speedup-core")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


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


if __name__ == "__main__":
    sys.exit(main())
