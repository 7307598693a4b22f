"""New tensors that hold their numbers only while the small model needs them, as long as it is tried.

To be checked, the small model runs. Of a network for images the first calls make the largest tensors and the last ones
read the largest parameters: one after the other takes less memory than both at once. So a large parameter gets its
numbers when the module that holds it is called, in each run anew. Until then it has its shape, and NaN for entries, in
the memory of one. What else reads it gets these, so that the answers are none; the run is made again then, with
everything in its place (``speedup.tries``).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from speedup.graph import Graph, Node, Value, paths_around
from speedup.rule import Rule

Shape: TypeAlias = Callable[[Value], tuple[int, ...]]  # of what is kept of a tensor

_LARGE = 1 << 16  # bytes: smaller ones are not worth it
_DTYPES = torch.float32, torch.float64, torch.float16, torch.bfloat16


class Failed(BaseException):
    """To make the numbers of a tensor raised an error in the middle of a run: no model's code may catch it.

    Attributes:
        error: that error.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


@contextlib.contextmanager
def failures_as_they_are() -> Iterator[None]:
    """Outside of it, what makes numbers raises its own error."""
    error = None
    try:
        yield
    except Failed as failed:
        error = failed.error
    if error is not None:
        raise error


@dataclass(frozen=True, eq=False)
class _Group:
    """Tensors that are made together, and what makes them."""

    tensors: Sequence[torch.Tensor]
    make: Callable[[], Sequence[torch.Tensor]]


class Late:
    """The new tensors that wait for their numbers."""

    def __init__(self) -> None:
        self._groups: list[_Group] = []
        self._waiting: dict[int, _Group] = {}

    def __bool__(self) -> bool:
        return bool(self._groups)

    def add(self, tensors: Sequence[torch.Tensor], make: Callable[[], Sequence[torch.Tensor]]) -> None:
        """Let tensors, each a ``stand_in``, be given what ``make`` gives when a parameter among them is needed."""
        group = _Group(tensors, make)
        self._groups.append(group)
        self._waiting.update((id(t), group) for t in tensors)

    def is_awaited_by(self, module: nn.Module) -> bool:
        """Whether a parameter of a module waits, those in its children aside."""
        if self._waiting:
            for parameter in module._parameters.values():
                if id(parameter) in self._waiting:
                    return True
        return False

    def fill(self, module: nn.Module) -> None:
        """Give the parameters of a module that is about to be called their numbers, those in its children aside."""
        for parameter in module._parameters.values():
            if id(parameter) in self._waiting:
                self._fill(self._waiting[id(parameter)])

    def fill_all(self) -> None:
        """Give every tensor that waits its numbers."""
        while self._waiting:
            self._fill(next(iter(self._waiting.values())))

    def empty(self) -> None:
        """Let all wait again."""
        for group in self._groups:
            for tensor in group.tensors:
                if id(tensor) not in self._waiting:
                    tensor.data = stand_in(tensor, tensor.shape)
                    self._waiting[id(tensor)] = group

    def close(self) -> None:
        """Give every tensor its numbers for good."""
        self.fill_all()
        self._groups.clear()

    @contextlib.contextmanager
    def filled_by_calls(self) -> Iterator[None]:
        """Inside of it every call of a module gives its parameters their numbers."""

        def before(module: nn.Module, args: object) -> None:
            self.fill(module)

        hook = register_module_forward_pre_hook(before)
        try:
            yield
        finally:
            hook.remove()

    def _fill(self, group: _Group) -> None:
        try:
            made = group.make()
        except BaseException as error:
            raise Failed(error) from error
        for tensor, new in zip(group.tensors, made, strict=True):
            tensor.data = new
            del self._waiting[id(tensor)]


def stand_in(like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """What a tensor holds while it waits."""
    return torch.full((), math.nan, dtype=like.dtype, device=like.device).expand(shape)


def is_large(value: Value, shape: Shape) -> bool:
    """Whether a tensor is worth it, when it is cut: those with one axis are small."""
    if value.ndim < 2:
        return False
    size = value.dtype.itemsize
    return math.prod(value.shape) * size >= _LARGE and math.prod(shape(value)) * size >= _LARGE


def may_wait(value: Value, graph: Graph) -> bool:
    """Whether a parameter can wait."""
    owner = value.names[0].rpartition(".")[0]
    if type(value.tensor) is not nn.Parameter or not all([node.path == owner for node, _ in value.uses]):
        return False
    return _is_only_called(value, graph)


def may_fold_later(targets: Sequence[Value | str], shape: Shape, graph: Graph) -> bool:
    """Whether a call can wait with all that it folds, among it a large parameter."""
    values = [t for t in targets if isinstance(t, Value)]
    if not any([is_large(v, shape) and may_wait(v, graph) for v in values if v.is_source]):
        return False
    if any([math.prod(shape(v)) < 2 for v in values]):
        return False  # a stand-in of one entry looks like any buffer, which is put back after a run
    return all([_is_only_called(v, graph) and not any([_gives_numbers(n) for n, _ in v.uses]) for v in values])


def _is_only_called(value: Value, graph: Graph) -> bool:
    """Whether nothing but calls of modules that hold it reads a parameter or buffer: not even a rule that makes such a
    module, or settles one around it."""
    if type(value.tensor) not in (nn.Parameter, torch.Tensor) or value.is_blank or value.dtype not in _DTYPES:
        return False
    if len(value.names) != 1 or value.aliases or value.next is not None or not value.uses:
        return False
    if graph.expanded and not graph.expanded.keys().isdisjoint(paths_around(value.names[0])):
        return False
    return all([_only_holds(node) for node, _ in value.uses])


def _only_holds(node: Node) -> bool:
    """Whether the rule of a call puts new tensors into the new module as they are."""
    own = getattr(node.rule, "replace", None)
    return node.module is not None and getattr(own, "__func__", None) is Rule.replace


def _gives_numbers(node: Node) -> bool:
    """Whether the rule of a call gives numbers to parameters itself."""
    kind = type(node.rule)
    assert issubclass(kind, Rule)
    return kind.refit is not Rule.refit or kind.rescale is not Rule.rescale
