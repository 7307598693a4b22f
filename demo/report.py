"""What the demo prints and saves: the tables of each example, a summary, and the same as JSON and Markdown."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from demo.examples import Result
from demo.tables import Table, factor, megabytes, percent, quantity, seconds


def example_tables(result: Result) -> list[Table]:
    """The latency table of one example, its sizes, and how the two models agree."""
    shape = "x".join(str(size) for size in result.input_shape)
    before, after = result.before, result.after
    latency = Table(
        f"{result.title}: seconds for so many forward passes, input {shape}",
        ["Times", "Mask latency", "Speedup latency", "Ratio", "Rounds"],
        [
            [str(row.times), seconds(row.mask), seconds(row.small), factor(row.ratio), str(row.rounds)]
            for row in result.latency
        ],
    )
    sizes = Table(
        f"{result.title}: size",
        ["", "Before", "After", "After / before"],
        [
            ["Parameters", quantity(before.parameters), quantity(after.parameters),
             percent(after.parameters / before.parameters)],
            ["MACs per image", quantity(before.macs), quantity(after.macs), percent(after.macs / before.macs)],
            ["File size", megabytes(before.file_bytes), megabytes(after.file_bytes),
             percent(after.file_bytes / before.file_bytes)],
        ],
    )  # fmt: skip
    agreement = Table(
        f"{result.title}: answers on {result.test_images} test images",
        ["", "Value"],
        [
            ["Accuracy of the dense model", percent(result.accuracy_dense)],
            ["Accuracy of the masked model", percent(result.accuracy_masked)],
            ["Accuracy of the small model", percent(result.accuracy_small)],
            ["Predictions that differ, masked and small", str(result.different_predictions)],
            ["Largest difference of outputs", f"{result.difference:.1e}"],
            ["Largest output", f"{result.scale:.1f}"],
            ["Masked entries in the masked layers", percent(result.sparsity)],
            ["Seconds of training and masking", f"{result.train_seconds:.1f}"],
            ["Seconds of the speedup itself", f"{result.speedup_seconds:.2f}"],
        ],
    )
    return [latency, sizes, agreement]


def summary_table(results: Sequence[Result]) -> Table:
    """One row for each example; the latency is that of the largest count of passes, per pass."""
    rows = []
    for result in results:
        last = result.latency[-1]
        rows.append([
            result.title,
            seconds(last.mask / last.times),
            seconds(last.small / last.times),
            factor(last.ratio),
            f"{quantity(result.before.parameters)} -> {quantity(result.after.parameters)}",
            f"{quantity(result.before.macs)} -> {quantity(result.after.macs)}",
            f"{percent(result.accuracy_masked)} / {percent(result.accuracy_small)}",
            str(result.different_predictions),
            f"{result.difference:.1e}",
            f"{result.speedup_seconds:.2f}",
        ])  # fmt: skip
    columns = [
        "Example", "Mask s/pass", "Speedup s/pass", "Ratio", "Parameters", "MACs", "Accuracy masked / small",
        "Predictions differing", "Largest difference", "Speedup took s",
    ]  # fmt: skip
    return Table("Summary", columns, rows)


def save(results: Sequence[Result], setup: str, folder: Path) -> None:
    """Write `results.json` and `results.md` into `folder`."""
    content = {"setup": setup, "examples": [asdict(result) for result in results]}
    (folder / "results.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    tables = [summary_table(results), *(table for result in results for table in example_tables(result))]
    text = "\n\n".join(["# Results of the demo", setup, *(table.markdown() for table in tables)])
    (folder / "results.md").write_text(text + "\n", encoding="utf-8")
