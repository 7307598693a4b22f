"""What becomes of a convolution that gives the same for every input."""

from __future__ import annotations

from typing import Any

import torch

from speedup import Overlay


class FixedForward(Overlay):
    """A convolution whose weights were all 0: its bias, in the shape that the convolution would give."""

    label = "Fixed{}"
    bias: torch.Tensor
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: Any

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        d = len(self.kernel_size)
        windows = zip(x.shape[-d:], self.kernel_size, self.stride, self.dilation, self._margins(), strict=True)
        sizes = [(size + margin - over * (kernel - 1) - 1) // step + 1 for size, kernel, step, over, margin in windows]
        shape = (*x.shape[: -d - 1], self.bias.numel(), *sizes)
        # With memory of its own, into which the next call may write.
        return self.bias.reshape(-1, *[1] * d).expand(shape).clone(memory_format=torch.contiguous_format)

    def _margins(self) -> list[int]:
        """How much longer each axis is with what is padded on both sides."""
        if self.padding == "same":
            return [over * (kernel - 1) for over, kernel in zip(self.dilation, self.kernel_size, strict=True)]
        return [0] * len(self.kernel_size) if self.padding == "valid" else [2 * p for p in self.padding]
