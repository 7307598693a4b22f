"""What a run has made when it first looks for places in its data: runs that are told other places take up from there.

Up to that call they do the same as the first one, on the same input. For their code to come to where they part, nothing
needs to be computed: a call gives zeros of the size of what it gave in the first run, and before the first look the
tensors that are alive get the contents that they had there. It is looked whether the calls up to there were the same;
where they were not, or one has failed, the run is made again from the start.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch

from speedup.masking import memory_of
from speedup.node import Node, Value

_LEAST = 2**14  # bytes; to make less takes no longer than zeros

Live = Iterable[tuple[torch.Tensor, Value]]


class OtherwiseError(Exception):
    """A run does something else than the first one before it looks for places."""


class Standing:
    """What stood at the first look of a run. Made by the run, and used by others on the same input.

    Attributes:
        is_open: whether the first run has not come there.
        is_taken_up: whether the last other run has.
    """

    def __init__(self) -> None:
        self.is_open, self.is_taken_up = True, False
        self._layouts: dict[Any, tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device]] = {}
        self._contents: dict[int, torch.UntypedStorage] = {}
        self._calls: Sequence[Node] = ()

    # -- the first run ------------------------------------------------------------------------------------------------

    def note(self, number: int, node: Node, tensors: Sequence[torch.Tensor], result: Any) -> None:
        """Note what one of torch's own calls has given, if it has made just that and may be left out.

        Args:
            number: of the call.
            tensors: what it was given and left alone.
        """
        if not _is_plain(result) or result.nbytes < _LEAST:
            return
        if memory_of(result) not in {0, *map(memory_of, tensors)}:
            self._layouts[_key(number, node)] = result.shape, result.stride(), result.dtype, result.device

    def close(self, nodes: Sequence[Node], live: Live, from_input: Collection[Value]) -> bool:
        """The first look comes now; whether what stands can be kept."""
        self.is_open, self._calls = False, tuple(nodes)
        copies: dict[int, torch.UntypedStorage] = {}
        for tensor, value in live:
            if value in from_input and value.kind != "input":
                if not _is_plain(tensor):
                    return False
                memory = memory_of(tensor)
                if memory not in copies:
                    copies[memory] = tensor.untyped_storage().clone()  # type: ignore[no-untyped-call]
                self._contents[value.number] = copies[memory]
        return True

    # -- other runs ---------------------------------------------------------------------------------------------------

    def result(self, number: int, node: Node) -> torch.Tensor | None:
        """What a call gives that is left out; None of one that is to be made."""
        layout = self._layouts.get(_key(number, node))
        if layout is None:
            return None
        size, stride, dtype, device = layout
        made = torch.zeros(size, dtype=dtype, device=device)
        if made.stride() == stride:
            return made  # in memory that nobody has written to
        return torch.empty_strided(size, stride, dtype=dtype, device=device).zero_()

    def take_up(self, nodes: Sequence[Node], live: Live, from_input: Collection[Value]) -> None:
        """The first look comes now: all tensors get their contents.

        Raises:
            OtherwiseError: up to here this is another run.
        """
        if len(nodes) != len(self._calls) or not all(map(_is_same, nodes, self._calls)):
            raise OtherwiseError
        for tensor, value in live:
            if value in from_input and value.kind != "input":
                contents, own = self._contents.get(value.number), tensor.untyped_storage()
                if contents is None or contents.nbytes() != own.nbytes():
                    raise OtherwiseError
                own.copy_(contents)
        self.is_taken_up = True


def _is_plain(item: Any) -> bool:
    return type(item) is torch.Tensor and item.layout is torch.strided and not item.is_nested


def _key(number: int, node: Node) -> Any:
    return number, node.op, id(node.module)


def _is_same(node: Node, other: Node) -> bool:
    if node.op != other.op or node.module is not other.module or len(node.outputs) != len(other.outputs):
        return False
    return all(a.number == b.number and a.shape == b.shape for a, b in zip(node.outputs, other.outputs, strict=True))
