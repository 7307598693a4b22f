"""``speedup new-plugin``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from speedup.errors import InputError
from speedup.plugins import load_plugins
from speedup.scaffold import answers, write


def add(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Write a new plugin project, ready to install, with a worked example and its tests."""
    parser.add_argument("name", help="of the plugin, such as mylib; the project is then speedup-plugin-mylib")
    parser.add_argument("--op", help="the op that it is for, as reports name it; its rule is begun for you")
    parser.add_argument("--import", dest="modules", action="append", default=[], help="a module that registers the op")
    parser.add_argument("--into", type=Path, help="where to write it; by default a folder of the project's name")

    def run(args: argparse.Namespace) -> int:
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        for module in args.modules:
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise InputError(f"--import {module}: {error}") from error
        given = answers(args.name)
        place = write(args.name, args.into or Path(given["distribution"]), args.op)
        steps = [f"cd {place}", "pip install -e '.[test]'", "speedup plugins", "pytest"]
        print(f"made {place}. Next:", *(f"  {step}" for step in steps), sep="\n")
        if args.op:
            print(f"Then write the axes of {args.op} in src/{given['module']}/rules.py, and a case for it in tests/.")
        if any(plugin.is_called(given["name"]) for plugin in load_plugins(strict=False)):
            print(f"Note: a plugin called {given['name']!r} is installed already.")
        return 0

    return run
