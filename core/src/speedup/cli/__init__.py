"""The command line: ``speedup COMMAND``.

A command is one module of this package with one function ``add(parser)``: it adds its options to the parser and returns
the function that runs the command. The first line of its docstring is the command's help. `COMMANDS` says which module
stands for which name.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import inspect
import os
import sys
from collections.abc import Sequence

from speedup.errors import SpeedupError

COMMANDS = {
    "run": "run",
    "plan": "plan",
    "verify": "verify",
    "bench": "bench",
    "demo": "demo",
    "plugins": "plugins",
    "doctor": "doctor",
    "new-plugin": "new_plugin",
}
"""The module of every command, by the command's name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments without the program's name; those of the process by default.

    Returns:
        The exit code: 0 for success, 1 for a failure, 2 for a mistake in the arguments, 130 when interrupted.
    """
    parser = argparse.ArgumentParser(prog="speedup", description="Make a pruned model smaller and faster.")
    parser.add_argument("--version", action="version", version=f"speedup {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        command = importlib.import_module(f"{__name__}.{module}").add
        description = inspect.getdoc(command) or ""
        sub = commands.add_parser(name, help=description.partition("\n")[0], description=description)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(run=command(sub))
    args = parser.parse_args(argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("speedup: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if args.debug:
            raise
        kind = "" if isinstance(error, SpeedupError) else f"{type(error).__name__}: "
        print(f"speedup: error: {kind}{error}", file=sys.stderr)
        return 1
    return code


def _version() -> str:
    try:
        return importlib.metadata.version("speedup-core")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
