"""Models that are planned without their weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn


def without_contents(model: nn.Module) -> nn.Module:
    """A copy on the meta device, tied parameters still tied (``model.to("meta")`` would untie them)."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    memo: dict[int, object] = {}
    for key, tensor in tensors.items():
        moved = tensor.detach().to("meta")
        memo[key] = nn.Parameter(moved, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved
    return copy.deepcopy(model, memo)


def stored(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict as checkpoints have it: a tied tensor once."""
    first: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        first.setdefault(id(tensor), name)
    state = model.state_dict()
    return {name: state[name].contiguous() for name in first.values()}


def write_shards(folder: Path, tensors: Mapping[str, torch.Tensor], count: int) -> Path:
    """A checkpoint of several files with an index, as Hugging Face libraries write it, and a config."""
    folder.mkdir()
    names = list(tensors)
    weights = {}
    for number in range(count):
        file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        own = {n: tensors[n] for n in names[number::count]}
        save_file(own, folder / file, metadata={"format": "pt"})
        weights.update(dict.fromkeys(own, file))
    total = sum(t.numel() * t.itemsize for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weights}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"hidden_size": 48}')
    return folder
