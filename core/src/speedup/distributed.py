"""Plans for models whose parameters are spread over processes as ``DTensor``s.

Each parameter that changes is gathered, cut and spread again in the same way, one at a time; ``torch.distributed`` does
all of that. Every process calls the same, in the same order.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from speedup.errors import InputError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_spread(model: nn.Module) -> bool:
    """Whether some parameters or buffers are spread over processes."""
    return any(is_dtensor(t) for t in (*model.parameters(), *model.buffers()))


def is_dtensor(tensor: Any) -> bool:
    """Whether a tensor is spread; the library that spreads is not loaded for it."""
    library = sys.modules.get("torch.distributed.tensor")
    return library is not None and isinstance(tensor, library.DTensor)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor, in every process; each has to call it."""
    if not is_dtensor(tensor):
        return tensor.detach()
    spread: DTensor = tensor.detach()  # type: ignore[assignment]
    return spread.full_tensor()


def spread_like(new: torch.Tensor, old: torch.Tensor | None, everywhere: bool = False) -> torch.Tensor:
    """A whole tensor, the same in every process, spread as another one is; a parameter stays one.

    Args:
        everywhere: on the same processes, and whole on each.
    """
    if old is None or not is_dtensor(old):
        return new
    from torch.distributed.tensor import Replicate, distribute_tensor

    like: DTensor = old  # type: ignore[assignment]
    # Every process has all of it: nobody has to send anything.
    placements = [Replicate()] * like.device_mesh.ndim if everywhere else like.placements
    made = distribute_tensor(new.detach(), like.device_mesh, placements, src_data_rank=None)
    if not isinstance(new, nn.Parameter):
        return made
    parameter = nn.Parameter(made, requires_grad=new.requires_grad)
    parameter.__dict__.update(new.__dict__)
    return parameter


def refuse_fsdp(model: nn.Module) -> None:
    """FSDP keeps the sizes of what it has sharded to itself.

    Raises:
        InputError: a module is sharded by ``fully_shard``.
    """
    library = sys.modules.get("torch.distributed.fsdp")
    kind: Any = getattr(library, "FSDPModule", ())
    for name, module in model.named_modules():
        if isinstance(module, kind):
            raise InputError(
                f"{name or 'the model'} is sharded by fully_shard, which keeps the sizes of its parameters to itself. "
                "Apply the plan to the model before (on the meta device: plan.apply()), shard the small model, and "
                "fill it: plan.fill(small, big)"
            )
