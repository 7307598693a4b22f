"""Attention as other libraries write it: torchvision, timm, transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from speedup.testing import check_equal, mask_indices, random_masks, randomize


def rows(width: int, heads: int, parts: int, dims: int, head: int = -1) -> list[int]:
    """Of every part (query, key, value) some dimensions of each head, others in each, and one head whole."""
    size, found = width // heads, []
    for part in range(parts):
        for h in range(heads):
            gone = range(size) if h == head else [(h + 3 * d + (part > 1)) % size for d in range(dims)]
            found += [part * width + h * size + d for d in gone]
    return found


def both(name: str, where: list[int]) -> dict[str, list[int]]:
    return {f"{name}.weight": where, f"{name}.bias": where}


def test_vision_transformer_of_torchvision() -> None:
    models = pytest.importorskip("torchvision.models", reason="torchvision is no dependency")
    model = models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=48, mlp_dim=96, num_classes=5
    )
    stream, hidden = [3, 7, 40], list(range(0, 96, 3))
    dropped = both("conv_proj", stream)
    for i in range(2):
        layer = f"encoder.layers.encoder_layer_{i}"
        inner = rows(48, 4, 3, 3, head=1)
        dropped |= {f"{layer}.self_attention.in_proj_{p}": inner for p in ("weight", "bias")}
        dropped |= both(f"{layer}.self_attention.out_proj", stream) | both(f"{layer}.mlp.3", stream)
        dropped |= both(f"{layer}.mlp.0", hidden)
    model = randomize(model)
    masks: Any = mask_indices(model, dropped)
    masks |= mask_indices(model, {"class_token": stream, "encoder.pos_embedding": stream}, axis=2)
    result = check_equal(model, torch.randn(1, 3, 32, 32), masks, [torch.randn(3, 3, 32, 32)])
    # 3 of 4 heads, 9 of 12 dimensions, and of the stream one channel to carry what the norms make of zeros.
    for i in range(2):
        layer = f"encoder.layers.encoder_layer_{i}"
        assert result.shape(f"{layer}.self_attention.in_proj_weight") == (3 * 27, 46)
        assert result.shape(f"{layer}.mlp.0.weight") == (64, 46)
    assert result.shape("heads.head.weight") == (5, 46) and result.shape("encoder.pos_embedding") == (1, 17, 46)
    check_equal(model, torch.randn(1, 3, 32, 32), random_masks(model, 0, "mixed"))


def test_vision_transformer_of_timm() -> None:
    timm = pytest.importorskip("timm", reason="timm is no dependency: pip install timm")
    model = randomize(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=48, num_classes=5))
    dropped = {}
    for i in range(2):
        dropped |= both(f"blocks.{i}.attn.qkv", rows(48, 3, 3, 4, head=0))
        dropped |= both(f"blocks.{i}.mlp.fc1", list(range(0, 192, 3)))
    result = check_equal(model, torch.randn(1, 3, 32, 32), mask_indices(model, dropped), [torch.randn(3, 3, 32, 32)])
    for i in range(2):
        assert result.shape(f"blocks.{i}.attn.qkv.weight") == (3 * 24, 48)
        assert result.shape(f"blocks.{i}.mlp.fc1.weight") == (128, 48)
    assert any("scale=0.25" in r.what for r in result.plan.report.repaired)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_llama_with_grouped_queries_and_rotary_positions(implementation: str) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is no dependency: pip install transformers")
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation=implementation,
    )

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.m = transformers.LlamaModel(config)

        def forward(self, x: torch.Tensor) -> Any:
            return self.m(x, use_cache=False).last_hidden_state

    model = randomize(Net())
    x, other = torch.arange(14).view(2, 7), torch.arange(5)[None]
    dropped: dict[str, list[int]] = {}
    for i in range(2):
        name = f"m.layers.{i}.self_attn"
        # Rotation pairs dimension e with e + 4.
        dropped[f"{name}.q_proj.weight"] = [8 * h + e for h in range(4) for e in (1, 5)]
        dropped[f"{name}.k_proj.weight"] = [8 * h + e for h in range(2) for e in (1, 5)]
        dropped[f"{name}.v_proj.weight"] = [1, 3, 8, 11]
    result = check_equal(model, x, mask_indices(model, dropped), [other])
    for i in range(2):
        name = f"m.layers.{i}.self_attn"
        assert result.shape(f"{name}.q_proj.weight") == (24, 32)
        assert result.shape(f"{name}.k_proj.weight") == result.shape(f"{name}.v_proj.weight") == (12, 32)
    values = {f"m.layers.{i}.self_attn.v_proj.weight": list(range(8, 16)) for i in range(2)}
    result = check_equal(model, x, mask_indices(model, values), [other])
    # A head of keys and values goes with both heads of queries that read it.
    assert result.shape("m.layers.0.self_attn.q_proj.weight") == (16, 32)
    assert result.shape("m.layers.0.self_attn.k_proj.weight") == (8, 32)
