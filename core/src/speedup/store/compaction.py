"""What came of a checkpoint that went through a plan."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Compaction:
    """What ``plan.apply_checkpoint`` did; as text it says which sizes changed.

    Attributes:
        folder: where the small checkpoint is.
        written: the shards that were written.
        skipped: the shards that an earlier run had written, and that are as they should be.
        changed: the shapes of parameters and buffers before and after (None where there is none).
        bytes: of all tensors, before and after.
    """

    folder: Path
    written: tuple[str, ...]
    skipped: tuple[str, ...]
    changed: Mapping[str, tuple[tuple[int, ...] | None, tuple[int, ...] | None]]
    bytes: tuple[int, int]

    def __str__(self) -> str:
        kinds: dict[tuple[str, Any], int] = {}
        for name, shapes in self.changed.items():
            kind = re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", "*", name), shapes
            kinds[kind] = kinds.get(kind, 0) + 1
        width = max((len(name) for name, _ in kinds), default=0)
        lines = [
            f"  {name:<{width}}  {shape_text(before)} -> {shape_text(after)}"
            + (f"  ({count} times)" if count > 1 else "")
            for (name, (before, after)), count in kinds.items()
        ]
        done = (
            f"{len(self.written)} written, {len(self.skipped)} were there" if self.skipped else f"{len(self.written)}"
        )
        before, after = (f"{n / 1e9:.2f} GB" if n >= 1e8 else f"{n / 1e6:.2f} MB" for n in self.bytes)
        title = f"{self.folder}: {before} -> {after}, files: {done}. Sizes that changed (a config is to say so too):"
        return "\n".join([title, *lines])


def shape_text(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else "x".join(map(str, shape)) or "scalar"
