"""Regular sets: what can be cut out of a dense tensor and be a dense tensor again.

A set of entries is a *box* when it is a product of one list per axis, the common and cheap case. It is *regular* when
one axis may be *ragged*: along it every non-empty fibre keeps the same count, at positions that may differ from fibre
to fibre (the heads of an attention that each keep other dimensions, the groups of a grouped convolution). Arrays here
broadcast to the tensor's shape: an axis of size 1 is kept whole, unless the entry is False.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch

from speedup.facts import Bools, Indices, along, any_of


def varied(keep: Bools) -> list[int]:
    """The axes along which ``keep`` is written out."""
    return [a for a, size in enumerate(keep.shape) if size > 1]


def hull(keep: Bools) -> Bools:
    """The smallest box around ``keep``."""
    out = np.ones((1,) * keep.ndim, dtype=bool)
    for axis in varied(keep):
        out = out & any_of(keep, tuple(a for a in range(keep.ndim) if a != axis))
    return out & keep.any()


def is_box(keep: Bools) -> bool:
    axes = varied(keep)
    return len(axes) <= 1 or int(np.prod([along(keep, a).sum() for a in axes])) == int(keep.sum())


def ragged_axis(keep: Bools, allowed: Collection[int] | None = None) -> int | None:
    """The ragged axis of a regular set that is no box; None for a box.

    Args:
        allowed: the axes that may be ragged, all by default.

    Raises:
        ValueError: the set is not regular.
    """
    if is_box(keep):
        return None
    for axis in reversed(varied(keep)):
        if allowed is not None and axis not in allowed:
            continue
        counts = keep.sum(axis=axis)
        if is_box(any_of(keep, axis)) and len(set(counts[counts > 0].tolist())) == 1:
            return axis
    raise ValueError("not a regular set")


def is_regular(keep: Bools, allowed: Collection[int] | None = None) -> bool:
    try:
        ragged_axis(keep, allowed)
    except ValueError:
        return False
    return True


def regularize(keep: Bools, allowed: Collection[int] | None = None) -> Bools:
    """The set grown to the nearest regular one: fibres that keep fewer are filled up, along the axis that takes least.

    Args:
        allowed: the axes that may be ragged, all by default; with none the result is a box.
    """
    if is_regular(keep, allowed):
        return keep
    axes = [a for a in varied(keep) if allowed is None or a in allowed]
    if not axes:
        return hull(keep)
    able = [a for a in reversed(axes) if is_box(any_of(keep, a))]
    return min((_filled(keep, a) for a in able or axes[-1:]), key=lambda grown: int(grown.sum()))


def _filled(keep: Bools, axis: int) -> Bools:
    """The set with every fibre along an axis filled up to the longest one."""
    fibres = hull(any_of(keep, axis))
    target = int(keep.sum(axis=axis).max())
    elsewhere = any_of(keep, tuple(a for a in range(keep.ndim) if a != axis))
    # First what the fibre keeps, then what another one keeps at this index, then the rest.
    order = np.argsort(2 * ~keep + ~elsewhere, axis=axis, kind="stable")
    out = keep.copy()
    chosen = np.take(order, range(target), axis=axis)
    np.put_along_axis(out, chosen, np.broadcast_to(fibres, chosen.shape) | np.take_along_axis(keep, chosen, axis), axis)
    return out


def kept_shape(keep: Bools, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what remains of a tensor of ``shape``."""
    ragged = ragged_axis(keep)
    sizes = [int(along(keep, a).sum()) if keep.shape[a] > 1 else shape[a] for a in range(keep.ndim)]
    if ragged is not None:
        sizes[ragged] = int(keep.sum(axis=ragged).max())
    return tuple(sizes)


def cut(tensor: torch.Tensor, keep: Bools) -> torch.Tensor:
    """Cut the kept entries out of a tensor; a new tensor of shape ``kept_shape(keep, tensor.shape)``."""
    ragged = ragged_axis(keep)
    lines = {a: along(keep, a) for a in varied(keep) if a != ragged}
    tensor = cut_lines(tensor, lines)
    if ragged is None:
        return tensor
    for axis, line in lines.items():
        keep = np.compress(line, keep, axis=axis)
    count = int(keep.sum(axis=ragged).max())
    order = np.argsort(~keep, axis=ragged, kind="stable")
    index = torch.from_numpy(np.ascontiguousarray(np.take(order, range(count), axis=ragged))).to(tensor.device)
    shape = list(tensor.shape)
    shape[ragged] = count
    return gather(tensor, ragged, index.expand(shape))


def cut_lines(tensor: torch.Tensor, lines: Mapping[int, Bools]) -> torch.Tensor:
    """Cut the kept indices of each axis out of a tensor, the axis that loses most first."""
    kept = [(axis, line.nonzero()[0], len(line)) for axis, line in lines.items()]
    for axis, indices, size in sorted(kept, key=lambda each: len(each[1]) / max(each[2], 1)):
        if len(indices) < size:
            tensor = take(tensor, axis, indices)
    return tensor


def gather(tensor: torch.Tensor, axis: int, index: torch.Tensor) -> torch.Tensor:
    """As ``torch.gather``, of tensors of any type that is one byte wide too."""
    if tensor.dtype.itemsize == 1 and tensor.is_floating_point():
        return tensor.view(torch.uint8).gather(axis, index).view(tensor.dtype)
    return tensor.gather(axis, index)


def take(tensor: torch.Tensor, axis: int, indices: Indices) -> torch.Tensor:
    """Some indices of an axis, as a new tensor."""
    if tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(tensor.detach().numpy().take(indices, axis))  # some times faster
    return tensor.index_select(axis, torch.from_numpy(indices).to(tensor.device))
