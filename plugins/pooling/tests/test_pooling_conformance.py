"""Every rule of this plugin shows what speedup asks of a rule: see ``speedup.testing.RuleTests``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from speedup.testing import Case, RuleTests, around

MAP = (2, 8, 6, 6)


def unpooled(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    pooled, indices = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(pooled, indices, 2)


def unpooled1(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    pooled, indices = F.max_pool1d(x.flatten(2), 2, return_indices=True)
    return F.max_unpool1d(pooled, indices, 2)


def unpooled3(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    pooled, indices = F.max_pool3d(x.unsqueeze(2).repeat(1, 1, 2, 1, 1), 2, return_indices=True)
    return F.max_unpool3d(pooled, indices, 2)


class TestConformance(RuleTests):
    plugins = ("pooling",)

    def cases(self) -> list[Case]:
        return [
            *(
                around(
                    lambda m, x, d=d, k=k: k(
                        getattr(F, f"max_pool{d}d"),
                        getattr(F, f"avg_pool{d}d"),
                        getattr(F, f"lp_pool{d}d"),
                        getattr(F, f"adaptive_avg_pool{d}d"),
                    )(x.flatten(2) if d == 1 else x if d == 2 else x.unsqueeze(2).repeat(1, 1, 4, 1, 1)),
                    MAP,
                )
                for d in (1, 2, 3)
                for k in (
                    lambda a, b, c, e: lambda x: (a(x, 3, 1, 1), b(x, 3, 2, 1)),
                    lambda a, b, c, e: lambda x: (c(x, 2, 2), b(x, 2, 1, 1, False, False)),
                    lambda a, b, c, e: lambda x: (e(x, 1), e(x, 2)),
                )
            ),
            around(lambda m, x: F.avg_pool2d(F.max_pool2d(x.flatten(2).mT[:, None], (2, 1), (1, 1)), (3, 1), 1), MAP),
            *(around(f, MAP) for f in (unpooled, unpooled1, unpooled3)),
            around(lambda m, x: F.interpolate(x, scale_factor=2) + F.interpolate(x, size=12, mode="bilinear"), MAP),
            around(lambda m, x: F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1).tanh(), align_corners=False), MAP),
            around(
                lambda m, x: (F.pad(x, (1, 1)), F.pad(x, (1, 0), value=0.5), F.pad(x, (1, 1, 1, 1), mode="reflect")),
                MAP,
            ),
            around(lambda m, x: torch.constant_pad_nd(x, (1, 1), 2.0), MAP),
        ]
