"""Plans for models that are spread over processes: two, connected by gloo."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")

ROOT = Path(__file__).parents[1]


def test_on_two_processes(tmp_path: Path) -> None:
    """The cases are in ``tests/big/spread.py``; the last one that was printed is the one that failed."""
    command = [sys.executable, "-m", "tests.big.spread"]
    both = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "meet")],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=500) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], "\n".join(map(str.strip, sum(said, ())))
    assert said[0][0].split() == ["dtensors", "constants", "tied", "fsdp", "refused"]
