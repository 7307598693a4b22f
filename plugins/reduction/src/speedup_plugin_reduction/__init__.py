"""speedup rules for reductions over any axes, and for ops that run along an axis.

Where removing zeros changes nothing (sum, norm), or no more than a factor (mean), the reduced axes are contracted;
elsewhere (median, variance) they stay whole. Of constants a maximum keeps the largest (``extremes``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import MappingProxyType

import numpy as np
import torch

from speedup import Floats, Node, Rule, hookimpl, variants
from speedup_plugin_reduction.distance import Cosine, Distance
from speedup_plugin_reduction.extremes import ExtremeOver
from speedup_plugin_reduction.fourier import Complex, Fourier, FourierOfImages, FourierOfMany, Part, Real, Shifted


class OverAxes(Rule):
    """Entries along some axes are read together. What zeros make may be known where other constants are not."""

    operands = ("input",)

    def evaluate(self, node: Node, arrays: Sequence[Floats | None]) -> Sequence[Floats] | None:
        found = super().evaluate(node, arrays)
        if found is None and arrays[0] is not None:
            found = super().evaluate(node, [np.where(arrays[0] == 0, 0.0, np.nan)])
        return found


class Reduction(OverAxes):
    """Reduces the axes in ``dim`` (all of them when it is not given)."""

    call = "input, dim=None, keepdim=False, *, axis=None, keepdims=None, dtype=None, out=None"

    def neutral(self, node: Node) -> bool:
        """Whether entries that are 0 may be left out."""
        return False

    def signature(self, node: Node) -> str:
        value = node.operands[0]
        assert value is not None
        reduced = _axes(node.arg("dim", node.arg("axis")), node.arg("axis"), value.ndim)
        keep = node.arg("keepdim") or node.arg("keepdims")
        gone = "x" if self.neutral(node) else "~x"
        inner = " ".join(f"{gone}{i}" if i in reduced else f"a{i}" for i in range(value.ndim))
        outer = " ".join(("1" if keep else "") if i in reduced else f"a{i}" for i in range(value.ndim))
        return f"{inner} -> {', '.join([outer] * len(node.outputs))}"


class Choice(Reduction):
    """The result is one of the entries (max, median) or between them (nanmean): what they are when they are equal.

    A second output says where it was found, and is no constant: which of equal entries is taken may depend on how many
    there are. ``torch.max(x, y)`` is something else, the larger of two entries.
    """

    def __init__(self, **fields: object) -> None:
        super().__init__(**fields)
        self.of_two = Rule(name=f"{self.name} of two", axes="*, * -> *")

    def claim(self, node: Node) -> None:
        if len(node.tensors) == 2:
            self.of_two.claim(node)
        else:
            super().claim(node)

    def evaluate(self, node: Node, arrays: Sequence[Floats | None]) -> Sequence[Floats] | None:
        return _unchanged(node, arrays[0]) or super().evaluate(node, arrays)


class Extreme(ExtremeOver, Choice):
    """max, amax: of the constants among the entries the largest one stays, for all of them."""

    def neutral(self, node: Node) -> bool:
        return True


class Least(Extreme):
    """min, amin."""

    largest = False


class Mean(Choice):
    """Zeros may go, as the smaller call is multiplied with the share of what it is left to count."""

    averages = True

    def neutral(self, node: Node) -> bool:
        return True

    def evaluate(self, node: Node, arrays: Sequence[Floats | None]) -> Sequence[Floats] | None:
        """Equal entries come out as they are; what others come to depends on which there are (positions of a table)."""
        array, dims = arrays[0], node.layout.operands[0]
        if array is None or dims is None:
            return None
        over = tuple(axis for axis, dim in enumerate(dims) if node.layout.contracted.issuperset(dim))
        least, most = array.min(over, keepdims=True), array.max(over, keepdims=True)
        value = np.where(least == most, least, np.nan)
        return [value if node.outputs[0].ndim == value.ndim else value.squeeze(over)]


class Ranked(Choice):
    """topk, kthvalue and quantile: the second argument says which entries; topk keeps the axis."""

    call = "input, rank, dim=-1, *args, **kwargs"
    also = MappingProxyType({"k": "rank", "q": "rank"})

    def claim(self, node: Node) -> None:
        Reduction.claim(self, node)

    def signature(self, node: Node) -> str:
        value = node.operands[0]
        assert value is not None
        if not isinstance(node.arg("rank"), int | float):
            raise TypeError("the rank is no number")
        ranked = _axes(node.arg("dim"), None, value.ndim)
        stays = "~x" if node.outputs[0].ndim == value.ndim else ""
        inner = " ".join(f"~x{i}" if i in ranked else f"a{i}" for i in range(value.ndim))
        outer = " ".join(stays if i in ranked else f"a{i}" for i in range(value.ndim))
        return f"{inner} -> {', '.join([outer] * len(node.outputs))}"


class Quantile(Ranked):
    call = "input, rank, dim=None, *args, **kwargs"


class Extremes(Reduction):
    """aminmax gives two values, both as in ``Choice``."""

    call = "input, *, dim=None, keepdim=False, out=None"


class Sum(Reduction):
    """What constants other than 0 sum up to depends on how many there are, which another input may change."""

    counts = True

    def neutral(self, node: Node) -> bool:
        return True


class OfZeros(Reduction):
    """Zeros do not count, but it is not linear, so only a constant 0 is known to come out."""

    def neutral(self, node: Node) -> bool:
        return True

    def uniform(self, node: Node) -> bool:
        return False


class Norm(OfZeros):
    """A vector norm."""

    call = "input, ord=2, dim=None, keepdim=False, *, dtype=None, out=None"
    also = MappingProxyType({"x": "input", "A": "input"})

    def neutral(self, node: Node) -> bool:
        order = node.arg("ord")
        return float(2 if order in (None, "fro") else order) >= 0


class AnyNorm(Norm):
    """torch.linalg.norm, as far as it is a vector norm."""

    call = "input, ord=None, dim=None, keepdim=False, *, dtype=None, out=None"

    def signature(self, node: Node) -> str:
        value = node.operands[0]
        assert value is not None
        dim = node.arg("dim")
        if node.arg("ord") not in (None, "fro") and len(_axes(dim, None, value.ndim)) != 1:
            raise TypeError("a norm of matrices")
        return super().signature(node)


class Moments(Reduction):
    """std and var, whose second argument may be the old ``unbiased``."""

    call = "input, dim=None, unbiased=True, keepdim=False, *, axis=None, correction=None, out=None"

    def signature(self, node: Node) -> str:
        if isinstance(node.arg("dim"), bool):
            raise TypeError("unbiased given in the place of dim")
        return super().signature(node)


class Along(OverAxes):
    """Runs along one axis, which stays whole (cumsum)."""

    call = "input, dim=-1, *args, **kwargs"

    def signature(self, node: Node) -> str:
        value = node.operands[0]
        assert value is not None
        along = _axes(node.arg("dim"), None, value.ndim)
        inner = " ".join(f"~x{i}" if i in along else f"a{i}" for i in range(value.ndim))
        return f"{inner} -> {', '.join([inner] * len(node.outputs))}"


class Order(Along):
    """sort, cummax: equal entries stay what they are; a second output says where they were."""

    def evaluate(self, node: Node, arrays: Sequence[Floats | None]) -> Sequence[Floats] | None:
        return _unchanged(node, arrays[0]) or super().evaluate(node, arrays)


def _unchanged(node: Node, array: Floats | None) -> list[Floats] | None:
    """The outputs for constants that are equal along the mixed axes; None where they vary (a parameter)."""
    layout = node.layout
    dims = layout.operands[0]
    if array is None or dims is None:
        return None
    mixed = tuple(axis for axis, dim in enumerate(dims) if dim and layout.mixed.issuperset(dim))
    if any(array.shape[axis] > 1 for axis in mixed):
        return None
    value = array if node.outputs[0].ndim == array.ndim else array.squeeze(mixed)
    return [value, *[np.full((1,) * value.ndim, np.nan)] * (len(node.outputs) - 1)]


def _axes(dim: int | Sequence[int] | None, axis: int | Sequence[int] | None, ndim: int) -> set[int]:
    chosen = axis if dim is None else dim
    if chosen is None or chosen == ():
        return set(range(ndim))
    if not isinstance(chosen, int | Sequence):
        raise TypeError("the axes to reduce are no integers")
    return {d % ndim for d in ((chosen,) if isinstance(chosen, int) else chosen)} if ndim else set()


def _fft(names: str) -> tuple[Callable[..., torch.Tensor], ...]:
    return tuple(getattr(torch.fft, name) for name in names.split())


@hookimpl
def speedup_rules() -> Iterable[Rule]:
    return [
        Sum(name="sum", functions=variants("sum", "nansum")),
        OfZeros(name="count", functions=variants("count_nonzero")),
        Mean(name="mean", functions=variants("mean")),
        Choice(
            name="choice",
            functions=variants("nanmean", "median", "nanmedian", "mode", missing_ok=True),
        ),
        Extreme(name="max", functions=variants("amax", "max")),
        Least(name="min", functions=variants("amin", "min")),
        Ranked(name="ranked", functions=variants("topk", "kthvalue")),
        Quantile(name="quantile", functions=variants("quantile", "nanquantile")),
        Extremes(name="aminmax", functions=variants("aminmax")),
        Reduction(name="reduction", functions=variants("prod", "any", "all", "argmax", "argmin", "logsumexp")),
        Moments(name="moments", functions=variants("std", "var", "std_mean", "var_mean")),
        Norm(name="vector_norm", functions=variants("vector_norm")),
        AnyNorm(name="norm", functions=(torch.linalg.norm,)),
        Along(name="along", functions=variants("cumsum", "cumprod", "logcumsumexp", "argsort")),
        Order(name="order", functions=variants("cummax", "cummin", "sort")),
        Distance(name="cdist", functions=(torch.cdist,)),
        Cosine(name="cosine_similarity", functions=variants("cosine_similarity")),
        Fourier(name="fft", functions=_fft("fft ifft rfft irfft hfft ihfft")),
        FourierOfImages(name="fft2", functions=_fft("fft2 ifft2 rfft2 irfft2 hfft2 ihfft2")),
        FourierOfMany(name="fftn", functions=_fft("fftn ifftn rfftn irfftn hfftn ihfftn")),
        Shifted(name="fftshift", functions=_fft("fftshift ifftshift")),
        Complex(name="view_as_complex", functions=(torch.view_as_complex,)),
        Part(name="real", functions=variants("real", "imag")),
        Real(name="view_as_real", functions=(torch.view_as_real,)),
    ]
