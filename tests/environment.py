"""A virtual environment with wheels built from this repository, for tests of what users install.

It sees torch, numpy, pluggy and pytest of the environment that runs the tests, by links; speedup and every plugin are
installed there from wheels, and nothing else of this repository is in reach.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BUILD = """
import os, sys
from hatchling.build import build_wheel
for folder in sys.argv[2:]:
    os.chdir(folder)
    build_wheel(sys.argv[1])
"""


class Environment:
    """A virtual environment that holds nothing but the test's tools and what is installed into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        self.python = folder / "venv" / "bin" / "python"
        (folder / "tools").mkdir()
        for place in {p for p in sys.path if Path(p).name == "site-packages"}:
            for path in Path(place).iterdir():
                ours = "speedup" in path.name or path.name.startswith("__editable__") or path.suffix == ".pth"
                if not ours and path.name != "__pycache__" and not (folder / "tools" / path.name).exists():
                    (folder / "tools" / path.name).symlink_to(path)
        (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
        (site / "tools.pth").write_text(str(folder / "tools"))

    def install(self, *projects: Path) -> None:
        """Build wheels of these folders, and install them."""
        wheels = self.folder / "wheels"
        built = set(wheels.glob("*.whl"))
        wheels.mkdir(exist_ok=True)
        subprocess.run([sys.executable, "-c", BUILD, wheels, *projects], check=True, capture_output=True)
        new = sorted(set(wheels.glob("*.whl")) - built)
        assert len(new) == len(projects)
        pip = [sys.executable, "-m", "pip", "--python", self.python, "install", "--quiet", "--no-index", "--no-deps"]
        subprocess.run([*pip, "--disable-pip-version-check", *new], check=True)

    def run(self, *command: str | Path, code: int = 0) -> str:
        """Run a command of the environment in its folder; its output."""
        variables = {k: v for k, v in os.environ.items() if not k.startswith(("SPEEDUP", "PYTHON", "COV_"))}
        done = subprocess.run(
            [self.python.parent / command[0], *command[1:]],
            cwd=self.folder,
            env={**variables, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, f"{command} gave {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout
