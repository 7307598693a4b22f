"""Every rule of this plugin shows what speedup asks of a rule: see ``speedup.testing.RuleTests``."""

from __future__ import annotations

import pytest
import torch

from speedup.testing import Case, RuleTests, around

ops = pytest.importorskip("torchvision.ops", reason="torchvision is no dependency: pip install torchvision")

MAP = (2, 8, 6, 6)
BOXES = torch.tensor([[0.0, 1.0, 1.0, 5.0, 4.0], [1.0, 0.0, 2.0, 3.0, 7.5], [0.0, 2.0, 0.0, 6.0, 6.0]])


def offsets(x: torch.Tensor, count: int) -> torch.Tensor:
    """As many offsets as are needed, made of what is there."""
    return x.flatten(1).mean(1).view(-1, 1, 1, 1) * torch.linspace(-1, 1, count, dtype=x.dtype).view(1, -1, 1, 1)


def deformed(m, x: torch.Tensor) -> torch.Tensor:
    where = offsets(x, 18).expand(-1, -1, *x.shape[2:])
    y = m.layers[0](x, where)
    return m.layers[1](y, where, offsets(y, 9).sigmoid().expand(-1, -1, *y.shape[2:]))


class TestConformance(RuleTests):
    plugins = ("torchvision",)

    def cases(self) -> list[Case]:
        return [
            around(lambda m, x: ops.roi_align(x, BOXES.to(x), 3, spatial_scale=0.5), MAP),
            around(lambda m, x: ops.roi_pool(x, BOXES.to(x), 3), MAP),
            around(lambda m, x: ops.ps_roi_align(x, BOXES.to(x), 2), MAP),
            around(lambda m, x: ops.ps_roi_pool(x, BOXES.to(x), 2), MAP),
            around(
                lambda m, x: m.layers[0](x, offsets(x, 36).expand(-1, -1, *x.shape[2:])),
                MAP,
                [ops.DeformConv2d(8, 8, 3, padding=1)],
            ),
            around(
                deformed, MAP, [ops.DeformConv2d(8, 8, 3, padding=1), ops.DeformConv2d(8, 8, 3, padding=1, bias=False)]
            ),
            around(
                lambda m, x: m.layers[0](x, offsets(x, 18).expand(-1, -1, *x.shape[2:])),
                MAP,
                [ops.DeformConv2d(8, 8, 3, padding=1, groups=2)],
            ),
        ]
