"""Every rule of this plugin shows what speedup asks of a rule: see ``speedup.testing.RuleTests``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from speedup.testing import Case, RuleTests, around

VECTOR = (2, 8)
TOKENS = (2, 6, 8)


def packed(m: nn.Module, x: torch.Tensor) -> Any:
    y, state = m.layers[0](pack_padded_sequence(x, [6, 4], batch_first=True))
    return *pad_packed_sequence(y, batch_first=True), state


class TestConformance(RuleTests):
    plugins = ("recurrent",)

    def cases(self) -> list[Case]:
        return [
            around(lambda m, x: m.layers[0](x)[0], TOKENS, [nn.LSTM(8, 4, batch_first=True, bidirectional=True)]),
            around(lambda m, x: m.layers[0](x)[1], TOKENS, [nn.GRU(8, 4, num_layers=2)]),
            around(lambda m, x: m.layers[0](x), VECTOR, [nn.LSTMCell(8, 4)]),
            around(packed, TOKENS, [nn.LSTM(8, 4, proj_size=2, bidirectional=True)]),
        ]
