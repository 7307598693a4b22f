"""New tensors that hold their numbers only while the small model needs them, as long as it is tried.

To be checked, the small model runs. Of a network for images the first calls make the largest tensors and the last ones
read the largest parameters: one after the other takes less memory than both at once. So a large parameter gets its
numbers when the module that holds it is called, or a function with it, in each run anew. Until then it has its shape,
and NaN for entries, in the memory of one. What reads it unseen gets these, so that the answers are none; the run is
made again then, with everything in its place (``speedup.tries``).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from speedup.graph import Graph
from speedup.node import Node, Value, paths_around
from speedup.rule import Rule

Shape: TypeAlias = Callable[[Value], tuple[int, ...]]  # of what is kept of a tensor

_LARGE = 1 << 16  # bytes: smaller ones are not worth it
_KNOWN = frozenset(("size", "dim", "numel", "shape", "ndim", "dtype", "device", "requires_grad", "is_floating_point"))


class FillError(BaseException):
    """To make the numbers of a tensor raised an error in the middle of a run: no model's code may catch it.

    Attributes:
        error: that error.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


@contextlib.contextmanager
def fill_errors_unwrapped() -> Iterator[None]:
    """Outside of it, what makes numbers raises its own error."""
    error = None
    try:
        yield
    except FillError as failed:
        error = failed.error
    if error is not None:
        raise error


@dataclass(frozen=True, eq=False)
class _Group:
    """Tensors that are made together, and what makes them."""

    tensors: Sequence[torch.Tensor]
    make: Callable[[], Sequence[torch.Tensor]]


class Deferred:
    """The new tensors that wait for their numbers."""

    def __init__(self) -> None:
        self._groups: list[_Group] = []
        self._waiting: dict[int, _Group] = {}

    def __bool__(self) -> bool:
        return bool(self._groups)

    def add(self, tensors: Sequence[torch.Tensor], make: Callable[[], Sequence[torch.Tensor]]) -> None:
        """Let tensors, each a ``placeholder``, be given what ``make`` gives when a parameter among them is needed."""
        group = _Group(tensors, make)
        self._groups.append(group)
        self._waiting.update((id(t), group) for t in tensors)

    def awaited(self, tensors: Iterable[Any]) -> list[torch.Tensor]:
        """Those that wait; what else is among them does not matter."""
        return [t for t in tensors if id(t) in self._waiting] if self._waiting else []

    def asked_about(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
        """What waits of the tensors that a function is given, unless it asks no more than a placeholder can say."""
        if not self._waiting or _is_known(function):
            return []
        given = [*args, *kwargs.values()]
        return self.awaited([*given, *(t for some in given if isinstance(some, list | tuple) for t in some)])

    def fill(self, tensors: Sequence[torch.Tensor]) -> None:
        """Give some tensors that wait their numbers."""
        for tensor in tensors:
            if id(tensor) in self._waiting:
                self._fill(self._waiting[id(tensor)])

    @property
    def buffers(self) -> list[torch.Tensor]:
        """Those that are no parameters, whether they wait now or not."""
        return [t for group in self._groups for t in group.tensors if not isinstance(t, nn.Parameter)]

    def fill_all(self) -> None:
        """Give every tensor that waits its numbers."""
        while self._waiting:
            self._fill(next(iter(self._waiting.values())))

    def empty(self) -> None:
        """Let all wait again."""
        for group in self._groups:
            for tensor in group.tensors:
                if id(tensor) not in self._waiting:
                    tensor.data = placeholder(tensor, tensor.shape)
                    self._waiting[id(tensor)] = group

    def close(self) -> None:
        """Give every tensor its numbers for good."""
        self.fill_all()
        self._groups.clear()

    def _fill(self, group: _Group) -> None:
        # Whatever the model's code has entered. (Inside a run ``torch.inference_mode`` does nothing.)
        with torch._C._InferenceMode(False), torch.no_grad(), torch._C.DisableTorchFunction():
            try:
                made = group.make()
            except BaseException as error:
                raise FillError(error) from error
            for tensor, new in zip(group.tensors, made, strict=True):
                tensor.data = new
                del self._waiting[id(tensor)]


def _is_known(function: Any) -> bool:
    """Whether a method or attribute of a tensor says of a stand-in what it says of what comes."""
    name = getattr(function, "__name__", "")
    if name == "__get__":
        name = getattr(getattr(function, "__self__", None), "__name__", "")
    return name in _KNOWN


def placeholder(like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """What a tensor holds while it waits."""
    return torch.full((), math.nan, dtype=like.dtype, device=like.device).expand(shape)


def is_large(value: Value, shape: Shape) -> bool:
    """Whether a tensor is worth it, when it is cut: those with one axis are small."""
    if value.ndim < 2:
        return False
    size = value.dtype.itemsize
    return math.prod(value.shape) * size >= _LARGE and math.prod(shape(value)) * size >= _LARGE


def may_defer(value: Value, graph: Graph) -> bool:
    """Whether a parameter can wait."""
    owner = value.names[0].rpartition(".")[0]
    if type(value.tensor) is not nn.Parameter or not all([node.path == owner for node, _ in value.uses]):
        return False
    return _is_only_called(value, graph)


def may_defer_fold(targets: Sequence[Value | str], shape: Shape, graph: Graph) -> bool:
    """Whether a call can wait with all that it folds, among it a large parameter."""
    values = [t for t in targets if isinstance(t, Value)]
    if not any([is_large(v, shape) and may_defer(v, graph) for v in values if v.is_source]):
        return False
    return all([_is_only_called(v, graph) and not any([_gives_numbers(n) for n, _ in v.uses]) for v in values])


def _is_only_called(value: Value, graph: Graph) -> bool:
    """Whether nothing but calls of modules that hold it reads a parameter or buffer: not even a rule that makes such a
    module, or settles one around it."""
    tensor, dtype = value.tensor, value.dtype
    if tensor is None or type(tensor) not in (nn.Parameter, torch.Tensor) or tensor.is_meta or tensor.is_inference():
        return False
    if not dtype.is_floating_point or dtype.itemsize < 2:  # of which NaN is none, or not of all
        return False
    if len(value.names) != 1 or value.aliases or value.next is not None or not value.uses:
        return False
    if graph.expanded and not graph.expanded.keys().isdisjoint(paths_around(value.names[0])):
        return False
    return all([_only_holds(node) for node, _ in value.uses])


def _only_holds(node: Node) -> bool:
    """Whether the rule of a call puts new tensors into the new module, no code of which looks at them meanwhile."""
    own, rule = getattr(node.rule, "replace", None), node.rule
    if node.module is None or rule is None or getattr(own, "__func__", None) is not Rule.replace:
        return False
    kind: Any = type(node.module)
    return kind.__setattr__ is nn.Module.__setattr__ and not any([hasattr(kind, name) for name in rule.sizes])


def _gives_numbers(node: Node) -> bool:
    """Whether the rule of a call gives numbers to parameters itself."""
    kind = type(node.rule)
    assert issubclass(kind, Rule)
    return kind.refit is not Rule.refit or kind.rescale is not Rule.rescale
