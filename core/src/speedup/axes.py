"""The axes signature: one line that says how the axes of an op's operands belong together.

Grammar (white space separates axes, commas separate operands)::

    signature := operand ("," operand)* "->" operand ("," operand)*
    operand   := axis* ["?"]          "?" marks an operand that may be missing (a bias)
    axis      := NAME                 an axis; one name is one axis wherever it stands
               | NAME "=" SIZE        the same, and its size, where the shapes alone do not tell: (g=4 c)
               | "(" NAME NAME … ")"  one axis that is the row-major product of several: (g o)
               | "*"                  any number of axes, entry for entry, broadcasting from the right
               | "~" [COUNT]          COUNT (or any number of) axes whose entries mix: every output entry
                                      may read every input entry, and sizes may differ (a convolution window)
               | "~NAME"              one axis whose entries mix; its size may be given too, (~g=4 c)
               | "1"                  an axis of size 1
    "..."     as the last input operand: any number of further operands like the one before it

What the engine reads off a signature:

* a name in an input and in an output is *mapped*: entry j of one belongs to entry j of the other;
* a name in inputs only is *contracted* (summed over): the operands that have it are multiplied, the rest are added;
* ``~`` axes are *mixed*: they stay whole, and a fact counts only when it holds all along them.

Example:
    >>> layout = parse("* i, o i, o? -> * o").bind([(2, 3), (5, 3), None], [(2, 5)])
    >>> layout.sizes["o"], sorted(layout.contracted)
    (5, ['i'])

The notation follows einops (https://einops.rocks); groups in parentheses mean the same there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from speedup.cached import cached_property
from speedup.errors import SignatureError
from speedup.layout import Layout, Shape

_TOKEN = re.compile(r"\s*(\.\.\.|->|~?[A-Za-z_]\w*(?:=\d+)?|~\d*|[*(),?1])")


@dataclass(frozen=True)
class Axis:
    """One item of an operand: ``names`` of its factors; ``star`` and ``count`` for the variadic kinds."""

    names: tuple[str, ...] = ()
    star: bool = False
    mixed: int | None = None  # None: not a bare "~"; -1: any number of mixed axes; else that many

    @property
    def variadic(self) -> bool:
        return self.star or self.mixed == -1


@dataclass(frozen=True)
class Operand:
    axes: tuple[Axis, ...]
    optional: bool = False

    @cached_property
    def fixed(self) -> int:
        """How many axes it has at least."""
        return sum(max(a.mixed, 0) if a.mixed is not None else 1 for a in self.axes if not a.variadic)

    @cached_property
    def variadic(self) -> bool:
        """Whether it may have more."""
        return any(a.variadic for a in self.axes)


@dataclass(frozen=True, eq=False)
class Signature:
    """A parsed signature; ``bind`` fits it to actual shapes."""

    text: str
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    repeated: bool = False
    given: tuple[tuple[str, int], ...] = ()

    def bind(self, inputs: Sequence[Shape | None], outputs: Sequence[Shape]) -> Layout:
        """Fit the signature to shapes; ``None`` stands for a missing optional operand.

        Raises:
            SignatureError: shapes that do not fit; the message restates the signature and the shapes.
        """
        return _bound(self, tuple(inputs), tuple(outputs))

    def _bind(self, inputs: Sequence[Shape | None], outputs: Sequence[Shape]) -> Layout:
        specs = list(self.inputs)
        if self.repeated:
            specs += [specs[-1]] * (len(inputs) - len(specs))
        if len(specs) < len(inputs) or any(not s.optional for s in specs[len(inputs) :]):
            raise self._misfit(inputs, outputs, f"it has {len(specs)} input operands, the call {len(inputs)}")
        if len(outputs) != len(self.outputs):
            raise self._misfit(inputs, outputs, f"it has {len(self.outputs)} outputs, the call {len(outputs)}")
        for number, (spec, shape) in enumerate(zip(specs, inputs, strict=False)):
            if shape is None and not spec.optional:
                raise self._misfit(inputs, outputs, f"operand {number} is missing and not marked with '?'")
        rows: list[tuple[Operand, Shape | None]] = [*zip(specs, inputs, strict=False)]
        rows += zip(self.outputs, outputs, strict=True)
        try:
            return _bind(rows, len(inputs), dict(self.given))
        except ValueError as error:
            raise self._misfit(inputs, outputs, str(error)) from None

    def _misfit(self, inputs: Sequence[Shape | None], outputs: Sequence[Shape], why: str) -> SignatureError:
        shapes = ", ".join(str(s) for s in inputs) + " -> " + ", ".join(str(s) for s in outputs)
        return SignatureError(f"signature {self.text!r} does not fit the shapes {shapes}: {why}")


@lru_cache(maxsize=4096)
def _bound(signature: Signature, inputs: tuple[Shape | None, ...], outputs: tuple[Shape, ...]) -> Layout:
    """The layout of calls of these shapes, of which a deep model makes many."""
    return signature._bind(inputs, outputs)


@lru_cache(maxsize=4096)
def parse(text: str) -> Signature:
    """Parse a signature.

    Raises:
        SignatureError: a fault in the text; the message points at its position.
    """
    if not text.strip():
        raise SignatureError("the signature is empty: its axes are still to be written")
    tokens: list[tuple[str, int]] = []
    at = 0
    while at < len(text.rstrip()):
        match = _TOKEN.match(text, at)
        if match is None:
            raise _fault(text, at, "this is no axis, operand or arrow")
        tokens.append((match.group(1), match.start(1)))
        at = match.end()
    given: dict[str, int] = {}
    for number, (token, start) in enumerate(tokens):
        name, equals, size = token.partition("=")
        if equals:
            if given.setdefault(name, int(size)) != int(size) or not int(size):
                raise _fault(text, start, f"axis {name!r} has another size before, or none")
            tokens[number] = (name, start)
    arrows = [i for i, (t, _) in enumerate(tokens) if t == "->"]
    if len(arrows) != 1:
        raise _fault(text, len(text), "a signature has exactly one '->'")
    inputs, repeated = _operands(text, tokens[: arrows[0]])
    outputs, more = _operands(text, tokens[arrows[0] + 1 :])
    if more:
        raise _fault(text, text.rfind("..."), "'...' may stand among the inputs only")
    return Signature(text, inputs, outputs, repeated, tuple(given.items()))


def _operands(text: str, tokens: list[tuple[str, int]]) -> tuple[tuple[Operand, ...], bool]:
    operands: list[Operand] = []
    axes: list[Axis] = []
    group: list[str] | None = None
    optional = repeated = False
    for token, at in [*tokens, (",", len(text))]:
        if token == "(":
            if group is not None:
                raise _fault(text, at, "groups do not nest")
            group = []
        elif token == ")":
            if not group:
                raise _fault(text, at, "an empty group, or ')' without '('")
            axes.append(Axis(tuple(group)))
            group = None
        elif group is not None:
            if token == ",":
                raise _fault(text, at, "'(' without ')'")
            if not token.lstrip("~").isidentifier():
                raise _fault(text, at, "a group holds names only")
            group.append(token)
        elif token == ",":
            if sum(a.variadic for a in axes) > 1:
                raise _fault(text, at, "an operand has at most one '*' or '~' without a count")
            if not repeated:
                operands.append(Operand(tuple(axes), optional))
            axes, optional = [], False
        elif repeated:
            raise _fault(text, at, "'...' stands last")
        elif token == "...":
            if not operands or axes:
                raise _fault(text, at, "'...' repeats the operand before it and stands alone")
            repeated = True
        elif optional:
            raise _fault(text, at, "'?' stands last: it belongs to the whole operand")
        elif token == "?":
            optional = True
        elif token == "*":
            axes.append(Axis(star=True))
        elif token == "1":
            axes.append(Axis())
        elif token == "~" or (token[0] == "~" and token[1:].isdigit()):
            axes.append(Axis(mixed=int(token[1:] or -1)))
        else:
            axes.append(Axis((token,)))
    return tuple(operands), repeated


def _fault(text: str, at: int, why: str) -> SignatureError:
    return SignatureError(f"{why}\n    {text}\n    {' ' * at}^")


def _bind(rows: list[tuple[Operand, Shape | None]], n_inputs: int, given: dict[str, int]) -> Layout:
    """Assign names to every axis of every operand, then solve for the sizes."""
    # Each operand has mixed names of its own, all of the size that is given.
    given = {(f"{n}@{k}" if n.startswith("~") else n): s for n, s in given.items() for k in range(len(rows))}
    bound: list[list[tuple[tuple[str, ...], int]] | None] = []
    mixed: set[str] = set()
    for k, (spec, shape) in enumerate(rows):
        bound.append(None if shape is None else _bind_operand(spec, shape, k, n_inputs, mixed))
    sizes = _solve(bound, given, n_inputs)
    operands: list[tuple[tuple[str, ...], ...] | None] = []
    for dims in bound:
        if dims is None:
            operands.append(None)
            continue
        # An axis of size 1 against a larger one broadcasts: the operand does not vary along that name.
        operands.append(
            tuple([() if size == 1 and prod([sizes[n] for n in names]) != 1 else names for names, size in dims])
        )
    order: dict[str, None] = {}
    for named in operands:
        for dim in named or ():
            order.update(dict.fromkeys(dim))
    produced = {n for named in operands[n_inputs:] for dim in named or () for n in dim}
    contracted = frozenset(n for n in order if n not in produced and n not in mixed)
    for k, (dims, named) in enumerate(zip(bound, operands, strict=True)):
        for axis, ((_, size), dim) in enumerate(zip(dims or (), named or (), strict=True)):
            if dim and prod([sizes[n] for n in dim]) != size:
                wanted = " x ".join(f"{n}={sizes[n]}" for n in dim)
                raise ValueError(f"{_place(k, axis, n_inputs)} has size {size} and should be {wanted}")
    return Layout(
        tuple(order), {n: sizes[n] for n in order}, tuple(operands), n_inputs, frozenset(mixed & set(order)), contracted
    )


def _place(k: int, axis: int | None, n_inputs: int) -> str:
    """Where a fault is: an operand or output by its number, and one of its axes."""
    whole = f"operand {k}" if k < n_inputs else f"output {k - n_inputs}"
    return whole if axis is None else f"axis {axis} of {whole}"


def _bind_operand(
    spec: Operand, shape: Shape, k: int, n_inputs: int, mixed: set[str]
) -> list[tuple[tuple[str, ...], int]]:
    room = len(shape) - spec.fixed
    if room < 0 or (room > 0 and not spec.variadic):
        more = " or more" if spec.variadic else ""
        raise ValueError(f"{_place(k, None, n_inputs)} has {len(shape)} axes, not {spec.fixed}{more}")
    dims: list[tuple[tuple[str, ...], int]] = []
    for axis in spec.axes:
        if axis.star:
            for right in range(room, 0, -1):
                dims.append(((f"*{right}",), shape[len(dims)]))
        elif axis.mixed is not None:
            for _ in range(room if axis.mixed == -1 else axis.mixed):
                name = f"~{k}.{len(dims)}"
                mixed.add(name)
                dims.append(((name,), shape[len(dims)]))
        else:
            names = axis.names
            if any([n[0] == "~" for n in names]):
                names = tuple([f"{n}@{k}" if n[0] == "~" else n for n in names])
                mixed.update([n for n in names if n[0] == "~"])
            if not names and shape[len(dims)] != 1:
                where = _place(k, len(dims), n_inputs)
                raise ValueError(f"{where} has size {shape[len(dims)]} where the signature says 1")
            dims.append((names, shape[len(dims)]))
    return dims


def _solve(
    bound: list[list[tuple[tuple[str, ...], int]] | None], given: dict[str, int], n_inputs: int
) -> dict[str, int]:
    """Sizes of all names: single axes say theirs, a group with one unknown factor yields it."""
    sizes = dict(given)
    told = dict.fromkeys(given, (-1, -1))
    groups: list[tuple[tuple[str, ...], int, tuple[int, int]]] = []
    for k, dims in enumerate(bound):
        for axis, (names, size) in enumerate(dims or ()):
            if len(names) == 1:
                (name,) = names
                known = sizes.setdefault(name, size)
                if known == 1 or name not in told:
                    sizes[name], told[name] = size, (k, axis)
                elif size not in (1, known):
                    by = "the signature" if told[name] == (-1, -1) else _place(*told[name], n_inputs)
                    raise ValueError(f"{name!r} is {known} by {by} and {size} by {_place(k, axis, n_inputs)}")
            elif names:
                groups.append((names, size, (k, axis)))
    while groups:
        left = []
        for names, size, at in groups:
            unknown = [n for n in names if n not in sizes]
            known = prod(sizes[n] for n in names if n in sizes)
            if not unknown:
                continue
            if len(unknown) == 1:
                if known == 0 or size % known:
                    factors = " x ".join(f"{n}={sizes[n]}" if n in sizes else n for n in names)
                    raise ValueError(f"{_place(*at, n_inputs)}, of size {size}, cannot be split into {factors}")
                sizes[unknown[0]] = size // known
            else:
                left.append((names, size, at))
        if len(left) == len(groups):
            where = _place(*left[0][2], n_inputs)
            raise ValueError(f"the sizes of {', '.join(left[0][0])} in {where} cannot be told apart")
        groups = left
    return sizes
