"""speedup rules for attention: heads and head dimensions go, and the scale of the softmax stays the original's."""

from __future__ import annotations

from collections.abc import Iterable

from speedup import Rule, hookimpl
from speedup_plugin_attention.function import RULES
from speedup_plugin_attention.fused import ScaledDotProductAttention
from speedup_plugin_attention.multihead import MultiheadAttention
from speedup_plugin_attention.transformer import Decoder, Encoder, EncoderLayer, Transformer
from speedup_plugin_attention.weighted import AttentionWithWeights


@hookimpl
def speedup_rules() -> Iterable[Rule]:
    return [
        ScaledDotProductAttention(),
        AttentionWithWeights(),
        MultiheadAttention(),
        EncoderLayer(),
        Encoder(),
        Decoder(),
        Transformer(),
        *(rule() for rule in RULES),
    ]
