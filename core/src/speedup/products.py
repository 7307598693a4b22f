"""Products of NumPy arrays that leave the processor to torch."""

from __future__ import annotations

import numpy as np
import torch

from speedup.arrays import Floats

# From so many products of two numbers on OpenBLAS, which NumPy brings along, uses threads: of matrices, of a vector.
_MANY, _MANY_OF_VECTOR = 1 << 18, 1 << 13


def matmul(a: Floats, b: Floats) -> Floats:
    """The same as ``a @ b``; large products are made by torch.

    NumPy's threads are not torch's. For a while after each product they wait for the next one in a loop, and where
    torch computes meanwhile each of the two has half of the processor.

    Args:
        a: (..., rows, inner), of two axes at least.
        b: (..., inner, columns), likewise.

    Returns:
        (..., rows, columns).

    Example:
        >>> matmul(np.ones((3, 700)), np.ones((700, 1000))).shape
        (3, 1000)
    """
    rows, columns = a.shape[-2], b.shape[-1]
    most = _MANY if rows > 1 and columns > 1 else _MANY_OF_VECTOR
    if rows * a.shape[-1] * columns < most or not a.dtype == b.dtype == np.float64:
        return a @ b
    return np.asarray(torch.matmul(_shared(a), _shared(b)).numpy())


def _shared(array: Floats) -> torch.Tensor:
    """A tensor on the memory of an array, where torch takes that as it is."""
    plain = array.flags.writeable and min(array.strides) >= 0
    return torch.from_numpy(array if plain else array.copy())
