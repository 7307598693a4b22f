"""Every rule of this plugin shows what speedup asks of a rule: see ``speedup.testing.RuleTests``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from speedup.testing import Case, RuleTests, around, chain

MAP = (2, 8, 6, 6)


class TestConformance(RuleTests):
    plugins = ("activation",)
    unasked = ("identity", "torch.dropout")  # in eval mode these hand their input through

    def cases(self) -> list[Case]:
        return [
            chain(MAP, nn.ReLU(), nn.Sigmoid(), nn.PReLU(8), nn.Identity(), nn.Dropout2d(), nn.RReLU(), nn.Softmax2d()),
            around(lambda m, x: F.softmax(x, 1) + F.log_softmax(x, 2) + F.prelu(x, m.scale) + F.rrelu(x), MAP),
            around(
                lambda m, x: (
                    F.glu(x, 1) + F.gelu(F.dropout(x, training=False)[:, :4]) + torch.dropout(x, 0.1, False)[:, :4]
                ),
                MAP,
            ),
        ]
