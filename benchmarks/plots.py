"""Plots of the tables in the documentation, as SVG files beside them.

    pip install 'model-speedup[plots]'
    python benchmarks/plots.py

They show what the tables hold, and nothing else: write the tables first (``pruning.py --write``, ``bench.py --write``).
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from pages import part

DOCS = Path(__file__).parents[1] / "docs"


def rows(page: str, first: str) -> list[dict[str, str]]:
    """The rows of the first table of a page whose first column has this head."""
    lines = iter((DOCS / page).read_text().splitlines())
    heads = next(_cells(line) for line in lines if line.startswith(f"| {first} |"))
    next(lines)
    found = []
    for line in lines:
        if not line.startswith("|"):
            break
        found.append(dict(zip(heads, _cells(line), strict=True)))
    return found


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def pruning() -> None:
    """What half of all channels leaves of the parameters and of the multiply-accumulates, per model."""
    text = part((DOCS / "prune.md").read_text(), "pruning")
    lines = [_cells(line) for line in text.splitlines() if line.startswith("| ")]
    at = {head: number for number, head in enumerate(lines[0])}
    models = sorted(lines[1:], key=lambda row: float(row[at["kept"]]))
    figure, axes = plt.subplots(figsize=(7, 0.19 * len(models) + 1))
    places = range(len(models))
    axes.barh(places, [float(row[at["kept"]]) for row in models], height=0.7, color="#3b6fd4", label="parameters")
    axes.plot([float(row[at["MACs kept"]]) for row in models], places, "o", ms=3, color="#d9730d", label="MACs")
    axes.axvline(0.25, color="0.6", lw=0.8, ls="--")
    axes.set_yticks(places, [row[0] for row in models], fontsize=7)
    axes.set(xlabel="part that is left, half of all channels pruned", ylim=(-0.8, len(models) - 0.2))
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(DOCS / "plots" / "pruning.svg", metadata={"Date": None})


def transformation() -> None:
    """Seconds of the transformation beside those of Torch-Pruning, per model."""
    found = [row for row in rows("benchmarks.md", "model") if row["Torch-Pruning, s"] != "fails"]
    figure, axes = plt.subplots(figsize=(7, 0.32 * len(found) + 1))
    for shift, name, color in ((-0.2, "speedup", "#3b6fd4"), (0.2, "Torch-Pruning", "#9aa5b1")):
        seconds = [float(row[f"{name}, s"]) for row in found]
        axes.barh([number + shift for number in range(len(found))], seconds, height=0.36, color=color, label=name)
    axes.set_yticks(range(len(found)), [row["model"] for row in found])
    axes.set(xlabel="seconds of CPU, half of all channels pruned", xscale="log")  # from 0.06 to 46
    axes.invert_yaxis()
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(DOCS / "plots" / "transformation.svg", metadata={"Date": None})


if __name__ == "__main__":
    matplotlib.rcParams["svg.hashsalt"] = "speedup"
    pruning()
    transformation()
