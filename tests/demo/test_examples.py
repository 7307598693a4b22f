"""The fpgm example from end to end, in a reduced form, by the same function that `python -m demo` uses."""

import json
from pathlib import Path

import torch

from demo import report
from demo.examples import EXAMPLES, Runner, Settings


def test_fpgm_from_end_to_end(tmp_path: Path) -> None:
    example = next(example for example in EXAMPLES if example.name == "fpgm")
    runner = Runner(Settings(share=0.3, bench_seconds=0.1, counts=(1, 2)))
    result, small = runner.run(example)
    assert result.different_predictions == 0
    assert result.difference <= 1e-4 * result.scale
    assert result.after.parameters < 0.55 * result.before.parameters
    assert result.after.macs < 0.5 * result.before.macs
    assert result.after.file_bytes < result.before.file_bytes
    assert result.accuracy_masked == result.accuracy_small > 0.8
    assert [row.times for row in result.latency] == [1, 2]
    assert small(torch.zeros(3, 1, 28, 28)).shape == (3, 10)

    report.save([result], "setup", tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["examples"][0]["name"] == "fpgm"
    assert "| Times | Mask latency | Speedup latency |" in (tmp_path / "results.md").read_text()
