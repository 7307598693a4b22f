"""Buffers that a forward may write to, and that are to be put back; only what has changed is written to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch

from speedup.trace.holdings import same

_SMALL = 2**14  # bytes


class Buffers:
    """The contents of buffers. Models have hundreds of small ones: the lines of one type are noted, and compared, as
    one tensor."""

    def __init__(self, buffers: Iterable[torch.Tensor]) -> None:
        lines: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = defaultdict(list)
        with torch.no_grad():
            self._others: list[tuple[torch.Tensor, torch.Tensor]] = []
            for b in buffers:
                if type(b) is torch.Tensor and b.ndim < 2 and b.layout is torch.strided and b.nbytes <= _SMALL:
                    lines[b.dtype, b.device].append(b)
                else:
                    self._others.append((b, b.clone()))
            self._lines = [
                (together, [b.shape for b in together], torch.hstack(together)) for together in lines.values()
            ]

    @torch.no_grad()
    def restore(self) -> None:
        for together, shapes, saved in self._lines:
            if [b.shape for b in together] != shapes or not same(torch.hstack(together), saved):
                parts = saved.split_with_sizes([shape.numel() for shape in shapes])
                for buffer, shape, own in zip(together, shapes, parts, strict=True):
                    _restore(buffer, own.reshape(shape))
        for buffer, own in self._others:
            _restore(buffer, own)


def _restore(buffer: torch.Tensor, saved: torch.Tensor) -> None:
    if buffer.shape != saved.shape:
        buffer.resize_(saved.shape)
    if not same(buffer, saved):
        buffer.copy_(saved)
