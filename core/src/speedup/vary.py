"""Does a plan hold at other sizes? Inputs like the dummy input with more samples, smaller, or larger.

A position that the code holds may be right for all that is smaller, or larger: both are tried, and more samples. As few
runs as can be say so, on inputs as small as can be:

1. three times the samples at half the size, since twice as many would have as many rows in all; where the model does
   not take that, more samples and a smaller size, each for itself;
2. one side larger while the others are smaller: to a model that takes smaller images that is one more size. To another
   it would be the same number of entries, which a literal ``view(-1, 512)`` takes for what it knows: there one side is
   larger while the others stay, or all of them are.

Images vary for themselves, and all that is no image (tokens, waves) for itself: what depends on the one size alone must
not be believed since it stays when both vary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch.utils import _pytree as pytree

from speedup.trace.outputs import tensors_in

Inputs = tuple[tuple[Any, ...], dict[str, Any]]

_IMAGE = 4  # axes of a batch of images, at least
_TIMES = 8  # up to which size inputs are tried where code has a limit, in times of the entries that there are


@dataclass(frozen=True)
class Case:
    """Inputs of other sizes, made of entries of the given ones.

    Attributes:
        name: in words, for messages.
        samples: by how many times there are more of them; 0 where that is not known.
        resized: whether other sizes differ too.
    """

    name: str
    inputs: Inputs
    samples: int = 1
    resized: bool = True

    @property
    def shapes(self) -> list[torch.Size]:
        """Of its tensors."""
        return [t.shape for t in tensors_in(self.inputs)]

    def comparable(
        self, outputs: Sequence[torch.Tensor], reference: Sequence[torch.Tensor], sized: Sequence[bool] | None = None
    ) -> bool:
        """Whether the model takes this input as it takes the dummy input, by what it returns for both.

        A literal ``view(-1, 512)`` may take a larger image for more samples: what it gives then has no meaning.

        Args:
            sized: by output whether its sizes say something: not those of what was found in the data. By default all.
        """
        if len(outputs) != len(reference):
            return False
        if not self.resized or not self.samples:
            return True
        pairs = [(a.shape[:1], self._scaled(b.shape[:1])) for a, b in zip(outputs, reference, strict=True)]
        return all(a == b for number, (a, b) in enumerate(pairs) if sized is None or sized[number])

    def _scaled(self, first: torch.Size) -> tuple[int, ...]:
        return tuple(self.samples * size for size in first)


Takes = Callable[[Case], bool]


def at_other_sizes(inputs: Inputs, takes: Takes, stretched: bool = True) -> None:
    """Vary the sizes of inputs.

    Args:
        takes: looks at one case, and says whether the model takes it: where not, others are tried in its place.
        stretched: whether one side may be larger while the others are smaller. Not where what is known position by
            position is compared: of an image that is padded to whole windows, such a side may come out as it was.
    """
    tensors = [t for t in tensors_in(inputs) if t.ndim]
    more = bool(tensors) and len({t.shape[0] for t in tensors}) == 1
    for kind in _kinds(tensors):
        more = _vary(inputs, kind, takes, more, stretched)
    if more:
        takes(_case(inputs, None, samples=2))


def at_limits(inputs: Inputs, limits: Sequence[int] | None, takes: Takes) -> None:
    """Try sizes at which code may do something else than below or above.

    These are somewhat more than the inputs have, twice as much, and what stands in conditions; one entry alone, where
    they are no images; one of several inputs doubled alone; one sample, and one more.

    Args:
        limits: whole numbers in conditions of the code; None for one entry more alone.
        takes: as for ``at_other_sizes``.
    """
    tensors = [t for t in tensors_in(inputs) if t.ndim]
    kinds = _kinds(tensors)

    def take(kind: _Kind, sides: tuple[int, ...], size: int) -> bool:
        if size < 1 or _entries(tensors, kind, sides, size) > _TIMES * _entries(tensors):
            return False
        sized = pytree.tree_map_only(torch.Tensor, partial(_sized, kind, sides, size), inputs)
        return takes(Case(f"{kind.name} of {size} {sides}", sized, samples=0 if kind is _SAMPLES else 1))

    def now(kind: _Kind, sides: tuple[int, ...]) -> int:
        return max([t.shape[a] for t in tensors for a in kind.axes(t, sides) if a < t.ndim], default=0)

    if limits is None:
        for kind in kinds:
            for sides in kind.varied:
                take(kind, sides, now(kind, sides) + 1)
        return
    numbers = [n for limit in limits for n in (limit, limit + 1)]
    for kind in kinds:
        for sides in kind.varied:
            _more(now(kind, sides), partial(take, kind, sides))
            for size in dict.fromkeys([*([1] if kind.one_by_one else []), *numbers, 2 * now(kind, sides)]):
                if size != now(kind, sides):
                    take(kind, sides, size)
        if not kind.one_by_one:
            take(kind, kind.sides[:1], 2 * now(kind, kind.sides[:1]))
    for number, tensor in enumerate(tensors if len(tensors) > 1 else ()):
        for axes in (kind.axes(tensor, sides) for kind in kinds for sides in kind.varied):
            if axes := tuple([a for a in axes if a < tensor.ndim]):
                takes(_doubled(inputs, f"axes {axes} of input {number} alone doubled", {id(tensor): axes}))
    if tensors and len({t.shape[0] for t in tensors}) == 1:
        for size in {1, len(tensors[0]) + 1} - {len(tensors[0])}:
            take(_SAMPLES, (0,), size)


def _more(now: int, take: Callable[[int], bool]) -> None:
    """Try somewhat more than there is: by the least step that the model takes (it may ask for whole patches), and by so
    many that half of it, a quarter and so on are odd, since layers with strides may stand before a condition."""
    for step in (1, 2, 4, 8, 16, 32):
        if step <= now and take(now + step):
            odd = 2 ** min((now // step + 1).bit_length() - 1, 6) - 1
            if odd > 1:
                take(now + step * odd)
            return


def _entries(
    tensors: Sequence[torch.Tensor], kind: _Kind | None = None, sides: tuple[int, ...] = (), size: int = 0
) -> int:
    """How many entries tensors have, with some axes of another size."""
    sized = [kind.axes(t, sides) if kind is not None else () for t in tensors]
    shapes = [[size if a in axes else s for a, s in enumerate(t.shape)] for t, axes in zip(tensors, sized, strict=True)]
    return sum(map(prod, shapes))


def _sized(kind: _Kind, sides: tuple[int, ...], size: int, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with some axes of another size: with fewer of its entries, or with some again."""
    for axis in kind.axes(tensor, sides):
        if axis < tensor.ndim and tensor.shape[axis]:
            while tensor.shape[axis] < size:
                tensor = torch.cat([tensor, tensor.flip(axis)], axis)
            tensor = tensor.narrow(axis, 0, size)
    return tensor


def further(inputs: Inputs, taken: Sequence[Case]) -> Iterator[Case]:
    """What none of the cases that a model took has varied: axes (frames of a video), and what is no tensor.

    An axis is doubled with all of its size in all inputs, such as the nodes of a graph, of which there are rows of
    features and rows and columns of a table; then by itself. Numbers are changed, and lists have one item more.
    """
    tensors = [t for t in tensors_in(inputs) if t.ndim]
    seen = [[t.shape for t in tensors_in(case.inputs) if t.ndim] for case in taken]

    def varied(number: int, axis: int) -> bool:
        shape = tensors[number].shape
        return any(len(s) == len(tensors) and s[number][axis : axis + 1] != shape[axis : axis + 1] for s in seen)

    fixed = [(n, a) for n, t in enumerate(tensors) for a in range(t.ndim) if not varied(n, a)]
    for size in dict.fromkeys(s for n, a in fixed if (s := tensors[n].shape[a]) > 1):
        alike = {id(t): [a for a, s in enumerate(t.shape) if s == size] for t in tensors}
        yield _doubled(inputs, f"all of size {size} doubled", alike)
    for number, axis in fixed:
        yield _doubled(inputs, f"axis {axis} of input {number} doubled", {id(tensors[number]): [axis]})
    leaves, spec = pytree.tree_flatten(inputs)
    for place, leaf in enumerate(leaves):
        if isinstance(leaf, int | float) and not isinstance(leaf, bool):
            other = leaf + 1 if isinstance(leaf, int) else 1.5 * leaf + 0.25
            changed = pytree.tree_unflatten([*leaves[:place], other, *leaves[place + 1 :]], spec)
            yield Case(f"{other} in the place of {leaf}", changed, samples=0)
    if has_loose(inputs, (list,)):
        yield Case("one item more", _one_more(inputs), samples=0)


def has_loose(inputs: Inputs, kinds: tuple[type, ...] = (list, int, float)) -> bool:
    """Whether there are lists or numbers among the inputs, of which the next call may have others."""

    def found(item: Any) -> bool:
        if isinstance(item, kinds) and not isinstance(item, bool):
            return True
        return any(map(found, item.values() if isinstance(item, dict) else item)) if _holds(item) else False

    return found(inputs)


def _holds(item: Any) -> bool:
    return isinstance(item, list | tuple | dict)


def _one_more(item: Any) -> Any:
    """The same with the last item of every list a second time."""
    if isinstance(item, dict):
        return {key: _one_more(value) for key, value in item.items()}
    if type(item) in (list, tuple):
        return type(item)([*map(_one_more, item), *(item[-1:] if isinstance(item, list) else ())])
    return item


def _doubled(inputs: Inputs, name: str, axes: Mapping[int, Sequence[int]]) -> Case:
    """The case with some axes of some tensors, by identity, twice as long."""

    def doubled(tensor: torch.Tensor) -> torch.Tensor:
        for axis in axes.get(id(tensor), ()):
            tensor = torch.cat([tensor, tensor.flip(axis)], axis)
        return tensor

    return Case(name, pytree.tree_map_only(torch.Tensor, doubled, inputs), samples=0)


@dataclass(frozen=True)
class _Kind:
    """Tensors whose sizes vary together.

    Attributes:
        axes: those axes of a tensor that are among the given ones.
        sides: the axes of a tensor of this kind that may vary.
        one_by_one: whether these may be of several sorts: channels among them, say.
    """

    name: str
    axes: Callable[[torch.Tensor, tuple[int, ...]], tuple[int, ...]]
    sides: tuple[int, ...]
    one_by_one: bool

    @property
    def varied(self) -> list[tuple[int, ...]]:
        """The sides that vary at once."""
        return [(side,) for side in self.sides] if self.one_by_one else [self.sides]


_SAMPLES = _Kind("samples", lambda tensor, sides: sides, (0,), False)


def _kinds(tensors: Sequence[torch.Tensor]) -> list[_Kind]:
    images = [t for t in tensors if t.ndim >= _IMAGE]

    def is_mask(tensor: torch.Tensor) -> bool:
        """Whether a tensor has an entry for every pixel of an image, and no channels."""
        return any(tensor.shape == i.shape[:1] + i.shape[2:] for i in images)

    def of_images(tensor: torch.Tensor, sides: tuple[int, ...]) -> tuple[int, ...]:
        if tensor.ndim >= _IMAGE:
            return sides
        return tuple([side - 1 for side in sides]) if is_mask(tensor) else ()

    def of_others(tensor: torch.Tensor, sides: tuple[int, ...]) -> tuple[int, ...]:
        return sides if tensor.ndim < _IMAGE and not is_mask(tensor) else ()

    others = [t for t in tensors if 1 < t.ndim < _IMAGE and not is_mask(t)]
    kinds = [_Kind("images", of_images, tuple(range(2, min(t.ndim for t in images))), False)] if images else []
    if others:
        kinds.append(_Kind("others", of_others, tuple(range(1, min(t.ndim for t in others))), True))
    return kinds


def _vary(inputs: Inputs, kind: _Kind, takes: Takes, more: bool, stretched: bool) -> bool:
    """Vary one kind, with more samples as long as nobody has tried these; whether they are still to be tried."""
    sides = kind.sides
    if more and takes(_case(inputs, kind, smaller=sides, samples=3)):
        smaller, more = True, False
    else:
        smaller = takes(_case(inputs, kind, smaller=sides))
    alone = tuple(sides[-1:])
    if not kind.one_by_one:
        others = sides[:-1]
        both = stretched and smaller and others and takes(_case(inputs, kind, smaller=others, larger=alone))
        if not both and not takes(_case(inputs, kind, larger=alone)) and others:
            takes(_case(inputs, kind, larger=sides))
        return more
    for side in sides:
        rest = tuple(s for s in sides if s != side)
        if not (stretched and smaller and rest and takes(_case(inputs, kind, smaller=rest, larger=(side,)))):
            takes(_case(inputs, kind, larger=(side,)))
        if not smaller and rest:
            takes(_case(inputs, kind, smaller=(side,)))
    return more


def _case(
    inputs: Inputs,
    kind: _Kind | None,
    smaller: tuple[int, ...] = (),
    larger: tuple[int, ...] = (),
    samples: int = 1,
) -> Case:
    def resized(tensor: torch.Tensor) -> torch.Tensor:
        halved, doubled = (kind.axes(tensor, axes) if kind is not None else () for axes in (smaller, larger))
        for axis in halved:
            if axis < tensor.ndim and tensor.shape[axis] > 1:
                tensor = tensor.narrow(axis, 0, tensor.shape[axis] // 2)
        for axis, times in ((0, samples), *((axis, 2) for axis in doubled)):
            if axis < tensor.ndim and times > 1:
                tensor = torch.cat([tensor, tensor.flip(axis), tensor][:times], axis)
        return tensor

    words = [f"{samples} times the samples"] if samples > 1 else []
    words += [f"{kind.name} {how} {axes}" for how, axes in (("smaller", smaller), ("larger", larger)) if axes and kind]
    return Case(", ".join(words), pytree.tree_map_only(torch.Tensor, resized, inputs), samples, kind is not None)
