"""speedup rules for arithmetic between tensors, for tensors that take over a shape, and for joining tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from speedup import (
    Bools,
    Constant,
    Fact,
    Floats,
    Labels,
    Movement,
    Node,
    NodeFacts,
    NodeKeep,
    Rule,
    Unused,
    Value,
    hookimpl,
    rows_of_one,
    variants,
)
from speedup_plugin_elementwise.choice import Chosen

_POINTWISE = (
    # arithmetic
    "floor_divide remainder fmod pow float_power maximum minimum "
    "fmax fmin atan2 arctan2 hypot copysign ldexp logaddexp logaddexp2 xlogy xlog1py nextafter lerp addcdiv "
    "heaviside gcd lcm igamma igammac zeta "
    "abs absolute sign sgn signbit square sqrt rsqrt reciprocal clamp clamp_min clamp_max clip "
    "exp exp2 expm1 log log2 log10 log1p erf erfc erfcx erfinv lgamma gammaln digamma psi sinc logit entr "
    "ndtr ndtri log_ndtr i0 i0e i1 i1e "
    "sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh deg2rad rad2deg "
    "arcsin arccos arctan arcsinh arccosh arctanh "
    "floor ceil round trunc fix frac nan_to_num "
    # complex numbers
    "complex polar conj conj_physical resolve_conj resolve_neg angle "
    # comparison and choice
    "eq ne lt le gt ge greater greater_equal less less_equal not_equal isclose isnan isinf isfinite isposinf isneginf "
    "logical_or logical_xor logical_not bitwise_or bitwise_xor bitwise_not "
    "bitwise_left_shift bitwise_right_shift"
).split()
_LINEAR = "add sub subtract rsub neg negative positive".split()
_SAME = "type float double half bfloat16 int long short char byte bool clone detach alias data cpu cuda".split()


class _Hidden:
    """The facts at a node with some operands taken for known: nothing of the result depends on their contents."""

    def __init__(self, facts: NodeFacts, node: Node, hidden: set[int]) -> None:
        self._facts, self._node, self._hidden = facts, node, hidden

    def __getattr__(self, name: str) -> Any:
        return getattr(self._facts, name)

    def mask(self, k: int) -> Bools:
        return np.ones((1,) * self._ndim(k), dtype=bool) if k in self._hidden else self._facts.mask(k)

    def value(self, k: int) -> Floats:
        return np.zeros((1,) * self._ndim(k)) if k in self._hidden else self._facts.value(k)

    def zero(self, k: int) -> Bools:
        return np.zeros((1,) * self._ndim(k), dtype=bool) if k in self._hidden else self._facts.zero(k)

    def is_weight(self, k: int) -> bool:
        return k not in self._hidden and self._facts.is_weight(k)

    def _ndim(self, k: int) -> int:
        value = self._node.values[k]
        assert value is not None
        return value.ndim


class _Apart:
    """The labels at a node of whose operands some have no channels to go along with."""

    def __init__(self, labels: Labels, values: set[Value]) -> None:
        self._labels, self._values = labels, values

    def __getattr__(self, name: str) -> Any:
        return getattr(self._labels, name)

    def arrays(self, value: Value) -> list[Any]:
        return [np.zeros((1,) * value.ndim, dtype=np.int64)] if value in self._values else self._labels.arrays(value)


class Pointwise(Rule):
    """Entry by entry. The old contents of a tensor given as ``out=`` do not matter, only its shape."""

    axes = "*, ... -> *"

    def blind(self, node: Node) -> set[int]:
        """Operands of which only the shape is read."""
        out = getattr(node.kwargs.get("out"), "number", None)
        return set() if out is None or node.operands.count(node.operands[out]) > 1 else {out}

    def infer_from_weight(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        return {} if self.blind(node) else super().infer_from_weight(node, facts)

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        hidden = self.blind(node)
        seen: Any = _Hidden(facts, node, hidden) if hidden else facts
        return super().infer_from_input(node, seen)

    def infer_from_output(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        found = super().infer_from_output(node, facts)
        for k in self.blind(node):
            value = node.operands[k]
            assert value is not None
            found[node.operand_names[k]] = Unused(np.ones((1,) * value.ndim, dtype=bool))
        return found


class Choose(Chosen, Pointwise):
    """Entry by entry one of two; of a condition alone, the places where it holds."""

    def in_parts(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Callable[..., Any] | None:
        if function is torch.where and len(args) + len(kwargs) == 1:
            return lambda condition: condition.nonzero(as_tuple=True)
        return None


class Same(Pointwise):
    """The same entries in another form; rounded to integers they are no longer what they were made of."""

    def averaging(self, node: Node) -> bool:
        return node.outputs[0].dtype.is_floating_point and "out" not in node.kwargs

    def sums_to_one(self, node: Node) -> int | None:
        value = node.operands[0]
        return rows_of_one(value) if value is not None and self.averaging(node) else None


class Quotient(Pointwise):
    """0 divided by anything is 0, unless that is known to be 0."""

    annihilates: Mapping[str, tuple[str, ...]] = {"0": ("1",)}

    def evaluate(self, node: Node, arrays: Sequence[Floats | None]) -> Sequence[Floats] | None:
        found = super().evaluate(node, arrays)
        if found is None or not _divides_tensors(node) or arrays[0] is None:
            return found
        # A denominator that is not known comes as 0.
        return [np.where(arrays[0] == 0, 0.0, found[0])]

    def infer_from_weight(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        return {}

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        found = super().infer_from_input(node, facts)
        fact = found.get("output")
        if fact is None or not _divides_tensors(node):
            return found
        undefined = facts.mask(1) & (facts.value(1) == 0)
        if not isinstance(fact, Constant):
            return {} if undefined.any() else found
        return {"output": Constant(*np.broadcast_arrays(fact.mask & ~undefined, fact.value))}


def _divides_tensors(node: Node) -> bool:
    """Whether both numerator and denominator are tensors."""
    return len(node.args) > 1 and len(node.operands) > 1 and "out" not in node.kwargs


class Like(Pointwise):
    """Of some operands only the shape is read: ``x.expand_as(y)``, ``x.copy_(y)``, ``zeros_like(x)``."""

    shapes: tuple[int, ...] = ()

    def blind(self, node: Node) -> set[int]:
        return set(self.shapes)


class EmptyLike(Like):
    """The shape of a tensor, and no contents."""

    shapes = (0,)

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        return {}


class Cast(Same):
    """``to`` and ``type_as``: what else is given says a type or a device, and has a shape of its own."""

    def signature(self, node: Node) -> str:
        return f"*{', ~' * (len(node.operands) - 1)} -> *"

    def blind(self, node: Node) -> set[int]:
        return set(range(1, len(node.operands)))

    def derived(self, node: Node) -> set[int]:
        return set()

    def tie(self, node: Node, labels: Labels) -> None:
        seen: Any = _Apart(labels, {v for v in node.operands[1:] if v is not None and v is not node.operands[0]})
        super().tie(node, seen)

    def constrain(self, node: Node, keep: NodeKeep) -> None:
        last = len(node.operands)
        grown = True
        while grown:
            grown = keep.grow(last, keep.sets[0], "the same entries in another type", 0)
            grown |= keep.grow(0, keep.sets[last], "the same entries in another type", last)


class Made(Rule):
    """A tensor made in the forward, with one number everywhere or with nothing: ``torch.zeros(...)``.

    Its shape may come from another tensor or be written in the code, which the engine finds out when it runs the small
    model. So the axes that are probably channels may shrink, as far as what they are joined with does; the batch does
    not.
    """

    axes = "? -> *"
    moves = True  # its numbers are sizes
    numbers = MappingProxyType({"zeros": 0.0, "ones": 1.0})

    def evaluate(self, node: Node, arrays: Sequence[Floats | None]) -> Sequence[Floats] | None:
        number = self.numbers.get(node.op_name.rpartition(".")[2])
        if number is None:
            return super().evaluate(node, arrays)
        return [np.full((1,) * node.outputs[0].ndim, number)]  # also where no box was found, so that there is no entry

    def rigid(self, node: Node, rigid: Sequence[Sequence[bool]]) -> list[list[bool]]:
        return [[axis not in _channel_axes(v) or v.shape[axis] == 1 for axis in range(v.ndim)] for v in node.outputs]

    def constrain(self, node: Node, keep: NodeKeep) -> None:
        """Whoever reads it says what is kept; nobody's code is changed for what nobody reads."""
        for k, value in enumerate(node.outputs, len(node.operands)):
            if not value.uses:
                keep.grow(k, np.ones((1,) * value.ndim, dtype=bool), "nothing reads it", k)

    def tie(self, node: Node, labels: Labels) -> None:
        """Each axis goes by itself, as of a parameter."""
        for value in node.outputs:
            for axis in labels.flexible(value):
                labels.add(value, labels.fresh([s if a == axis else 1 for a, s in enumerate(value.shape)]))
            if not labels.has(value):
                labels.add(value, np.zeros((1,) * value.ndim, dtype=np.int64))


class Full(Made):
    """Its last number is the contents, which must not change with a size."""

    moves = False


class Empty(Made):
    """The contents are what happens to be in memory."""

    def infer_from_weight(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        return {}

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        return {}


class MadeBy(Made):
    """``x.new_zeros(...)``: of the tensor only type and device are read."""

    axes = "~ -> *"

    def infer_from_weight(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        return {}

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        if node.op_name.endswith("empty"):
            return {}
        made = node.run([torch.zeros((), dtype=torch.float64)])
        if not made.numel():
            return {}
        ones = (1,) * node.outputs[0].ndim
        return {"output": Constant(np.ones(ones, dtype=bool), np.full(ones, float(made.flatten()[0])))}

    def infer_from_output(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        value = node.operands[0]
        assert value is not None
        return {node.operand_names[0]: Unused(np.ones((1,) * value.ndim, dtype=bool))}

    def derived(self, node: Node) -> set[int]:
        return set()


class FullBy(MadeBy):
    """As ``Full``."""

    moves = False


def _channel_axes(value: Value) -> tuple[int, ...]:
    """The axes that may hold channels of a tensor that is made in a forward."""
    if all(size == 1 for size in value.shape[1:]):
        return (0,)
    moved = any(isinstance(node.rule, Movement) for node, _ in value.uses)
    if value.ndim == 4 and not moved:  # a matrix for each head of a recurrence (linear attention)
        return (1, 2, 3)
    return (1, 2) if value.ndim == 3 else (1,)  # tokens by channels, or the channels and states of a recurrence


def _like(name: str, functions: Any, *shapes: int, axes: str = "*, ... -> *") -> Rule:
    rule = Like(name=name, functions=functions, axes=axes)
    rule.shapes = shapes
    return rule


@hookimpl
def speedup_rules() -> Iterable[Rule]:
    divisions = variants("div", "divide", "true_divide")
    reflected = tuple(f for f in divisions if f.__name__.startswith("__r"))
    both = {"0": ("1",), "1": ("0",)}
    return [
        Pointwise(name="pointwise", functions=(*variants(*_POINTWISE, missing_ok=True), *reflected)),
        Pointwise(name="addition", functions=variants(*_LINEAR), linear=("0", "1")),
        Choose(name="choose", functions=variants("where", "masked_fill")),
        Same(name="same", functions=variants(*_SAME, missing_ok=True), averages=True),
        Quotient(name="div", functions=tuple(f for f in divisions if f not in reflected), linear=("0",)),
        Pointwise(
            name="mul",
            functions=variants("mul", "multiply", "logical_and", "bitwise_and"),
            annihilates=both,
            linear=("0", "1"),
        ),
        Pointwise(
            name="addcmul",
            functions=variants("addcmul"),
            annihilates={"1": ("2",), "2": ("1",)},
            linear=("0", "1", "2"),
        ),
        Same(name="contiguous", functions=variants("contiguous"), averages=True, layout_only=True),
        Cast(name="cast", functions=variants("to", "type_as"), averages=True),
        Made(name="made", functions=(torch.zeros, torch.ones)),
        Full(name="full", functions=(torch.full,)),
        Empty(name="empty", functions=(torch.empty,)),
        MadeBy(name="made by", functions=variants("new_zeros", "new_ones", "new_empty")),
        FullBy(name="new_full", functions=variants("new_full")),
        EmptyLike(name="empty_like", functions=(torch.empty_like,), axes="* -> *"),
        _like("filled", variants("zeros_like", "ones_like", "full_like", "zero_", "fill"), 0, axes="* -> *"),
        _like("expand_as", variants("expand_as"), 1, axes="*, * -> *"),
        _like("copy_", variants("copy_"), 0, axes="*, * -> *"),
        Movement(
            name="join",
            functions=variants(
                *"cat concat concatenate stack hstack vstack row_stack dstack column_stack".split(), missing_ok=True
            ),
        ),
    ]
