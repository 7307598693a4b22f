"""Sizes in the code of objects that modules hold and call, such as the attention processors of diffusers."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import speedup
from speedup import StorageError
from speedup.testing import mask_indices, masked_copy, randomize
from tests import repair_nets as nets

ODD = tuple(range(1, 16, 2))  # half of every head
HEAD = tuple(range(4, 8))


def shrink(model: nn.Module, rows: tuple[int, ...], names: str = "qkv") -> tuple[Any, Any]:
    """The small model and the masked one; they must agree at several sizes."""
    model = randomize(model).double().eval()
    masks = mask_indices(model, {f"{n}.{p}": rows for n in names for p in ("weight", "bias")})
    masked = masked_copy(model, masks)
    small = speedup.plan(model, tokens(2, 5), masks).apply(verify=True)
    for batch, length in ((2, 5), (3, 7), (1, 1)):
        x = tokens(batch, length)
        assert torch.allclose(small(x), masked(x), rtol=1e-12, atol=1e-12)
    return small, masked


def tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randn(batch, length, 16, dtype=torch.float64)


@pytest.mark.parametrize(("rows", "heads"), [(ODD, 4), (HEAD, 3)])
def test_sizes_in_a_held_object_are_repaired(rows: tuple[int, ...], heads: int) -> None:
    small, masked = shrink(nets.HeldAttention(), rows)
    assert small.q.weight.shape == (16 - len(rows), 16) and small.out.weight.shape == (16, 16 - len(rows))
    x = tokens(2, 5)
    assert torch.allclose(small(x, causal=True), masked(x, causal=True), rtol=1e-12, atol=1e-12)
    assert type(small.processor) is nets.Processor, "the object is the user's"
    assert nets.HeldAttention()(torch.randn(2, 5, 16)).shape == (2, 5, 16), "and so is its class"


def test_a_model_with_a_repaired_object_is_pruned_again() -> None:
    small, _ = shrink(nets.HeldAttention(), ODD)
    small, _ = shrink(small, (1, 3, 5, 7))
    assert small.q.weight.shape == (4, 16)


def test_copies_pickles_and_files(tmp_path: Path) -> None:
    small, _ = shrink(nets.HeldAttention(), ODD)
    speedup.save(small, tmp_path)
    loaded = speedup.load(nets.HeldAttention().double().eval(), tmp_path)
    x = tokens(3, 4)
    for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small)), loaded):
        assert torch.equal(other(x), small(x))


def test_another_object_in_its_place_is_told() -> None:
    small, _ = shrink(nets.HeldAttention(), ODD)
    small.processor = nets.OtherProcessor()
    with pytest.raises(speedup.SpeedupError, match=r"processor is a .*OtherProcessor now.* exchange it before"):
        small(tokens(2, 5))
    small.processor = nets.Processor()
    assert small(tokens(2, 5)).shape == (2, 5, 16)


def test_a_file_names_an_object_that_the_model_holds(tmp_path: Path) -> None:
    small, _ = shrink(nets.HeldAttention(), ODD)
    file = speedup.save(small, tmp_path) / "speedup.json"
    fresh = nets.HeldAttention()
    fresh.processor = nets.OtherProcessor()
    with pytest.raises(StorageError, match=r"the model holds no tests\.repair_nets\.Processor"):
        speedup.load(fresh, tmp_path)
    told = json.loads(file.read_text())
    for edit in told["modules"][""]["becomes"][0]["edits"]:
        edit["via"]["holder"] = "os.system"
    file.write_text(json.dumps(told))
    with pytest.raises(StorageError, match=r"the model holds no os\.system"):
        speedup.load(nets.HeldAttention(), tmp_path)
