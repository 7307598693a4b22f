"""What two processes do with a model that is spread over them; run by ``tests/test_spread.py``."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor

import speedup
from tests.big import without_contents
from tests.big.llama import Shape, build, build_on_meta, masks_for

IDS = torch.zeros(1, 7, dtype=torch.long)
OTHERS = torch.arange(22).reshape(2, 11)


def wanted(model: nn.Module, masks: dict[str, torch.Tensor], inputs: torch.Tensor) -> nn.Module:
    return speedup.plan(copy.deepcopy(model), inputs, masks).apply()


def by_rows_and_columns(name: str, module: nn.Module, mesh) -> None:
    """Matrices over the processes, in turn by rows and by columns; the rest whole everywhere."""
    for key, parameter in list(module.named_parameters(recurse=False)):
        place = Replicate() if parameter.ndim < 2 else Shard(hash_of(name) % 2)
        made = nn.Parameter(distribute_tensor(parameter.detach(), mesh, [place]), parameter.requires_grad)
        module.register_parameter(key, made)
    for key, buffer in list(module.named_buffers(recurse=False)):
        module._buffers[key] = distribute_tensor(buffer, mesh, [Replicate()])


def hash_of(name: str) -> int:
    return sum(map(ord, name))


def dtensors(mesh) -> None:
    shape = Shape(groups=4)
    model, bare = build(shape), build_on_meta(shape)
    masks = masks_for(bare, shape, width=True)
    small = wanted(model, masks, IDS)
    plan = speedup.plan(bare, IDS, masks)
    spread = distribute_module(copy.deepcopy(model), mesh, by_rows_and_columns)
    before = {n: p.placements for n, p in spread.named_parameters()}
    assert plan.apply(spread) is spread
    for name, parameter in spread.named_parameters():
        assert isinstance(parameter, DTensor) and parameter.placements == before[name], name
        assert torch.equal(parameter.full_tensor(), small.get_parameter(name)), name
    sharded = [p for p in spread.parameters() if any(isinstance(s, Shard) for s in p.placements)]
    assert len(sharded) > 10 and all(0.4 < p.to_local().numel() / p.numel() < 0.6 for p in sharded)
    speedup.plan(bare, IDS, masks).apply()  # the planned model has nothing of it


def constants(mesh) -> None:
    """A bias that is new, and one that takes something up."""
    torch.manual_seed(0)
    for bias in (True, False):
        model = nn.Sequential(nn.Linear(5, 8, bias=False), nn.Sigmoid(), nn.Linear(8, 4, bias=bias)).double()
        masks = {"0.weight": (torch.arange(8) % 2 == 0)[:, None].expand(8, 5)}
        x = torch.randn(3, 5).double()
        small = wanted(model, masks, x)
        plan = speedup.plan(without_contents(model), x, masks)
        spread = plan.apply(distribute_module(copy.deepcopy(model), mesh, by_rows_and_columns))
        assert all(isinstance(p, DTensor) for p in spread.parameters())
        given = distribute_tensor(x, mesh, [Replicate()])
        assert torch.allclose(spread(given).full_tensor(), small(x), rtol=1e-12)


def tied(mesh) -> None:
    shape = Shape(tied=True)
    model, bare = build(shape), build_on_meta(shape)
    masks = masks_for(bare, shape, width=True)
    spread = copy.deepcopy(model)
    weight = nn.Parameter(distribute_tensor(spread.lm_head.weight.detach(), mesh, [Shard(0)]))
    spread.lm_head.weight = spread.model.embed_tokens.weight = weight
    plan = speedup.plan(bare, IDS, masks)
    plan.apply(spread)
    assert spread.lm_head.weight is spread.model.embed_tokens.weight
    small = wanted(model, masks, IDS)
    assert torch.equal(spread.lm_head.weight.full_tensor(), small.lm_head.weight)


def fsdp(mesh) -> None:
    shape = Shape()
    model, bare = build(shape), build_on_meta(shape)
    masks = masks_for(bare, shape, width=True)
    small = wanted(model, masks, IDS)

    def shard(module: nn.Module) -> nn.Module:
        for layer in module.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(module, mesh=mesh)
        return module

    big = shard(copy.deepcopy(model))
    plan = speedup.plan(bare, IDS, masks)
    try:
        plan.apply(big)
    except speedup.InputError as error:
        assert "plan.fill" in str(error), error
    else:
        raise AssertionError("FSDP keeps sizes to itself")
    big(OTHERS)  # in use
    little = shard(plan.apply()).to_empty(device="cpu")
    plan.fill(little, big)
    for name, parameter in little.named_parameters():
        assert isinstance(parameter, DTensor)
        assert torch.equal(parameter.full_tensor(), small.get_parameter(name)), name
    assert torch.allclose(little(OTHERS), small(OTHERS), rtol=1e-10)
    little(OTHERS).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in little.parameters())


def refused(mesh) -> None:
    shape = Shape()
    bare = build_on_meta(shape)
    masks = masks_for(bare, shape)
    plan = speedup.plan(bare, IDS, masks)
    other = distribute_module(build(Shape(hidden=96)), mesh, by_rows_and_columns)
    own = build(shape)
    of_others = speedup.plan(build(shape, seed=1), IDS, masks)
    spread = distribute_module(own, mesh, by_rows_and_columns)
    before = {n: p for n, p in spread.named_parameters()}
    for call, says in (
        (lambda: plan.apply(other), "is not the one of the plan"),
        (lambda: plan.apply(spread, verify=True), "in one place"),
        (lambda: plan.apply(spread, fuse=True), "in one place"),
        (lambda: of_others.apply(spread), "has other numbers"),
        (lambda: plan.fill(spread, build(shape)), "the small model is not the one"),
    ):
        try:
            call()
        except speedup.InputError as error:
            assert says in str(error), error
        else:
            raise AssertionError(says)
    assert all(p is before[n] for n, p in spread.named_parameters())


CASES: dict[str, Callable[..., None]] = {f.__name__: f for f in (dtensors, constants, tied, fsdp, refused)}

if __name__ == "__main__":
    rank, file = int(sys.argv[1]), sys.argv[2]
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    try:
        mesh = init_device_mesh("cpu", (2,))
        for name, case in CASES.items():
            print(name, flush=True)
            case(mesh)
    finally:
        dist.destroy_process_group()
