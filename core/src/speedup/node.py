"""Values, tensors at one moment of a run, and nodes, its calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import CodeType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from speedup import walk
from speedup.cached import cached_property
from speedup.masking import masked
from speedup.names import is_torchs_own
from speedup.shell import shell_of
from speedup.trees import replaced

if TYPE_CHECKING:
    from speedup.layout import Layout, Shape
    from speedup.rule import Rule


Line = tuple[tuple[str, str, str], str]


@dataclass(eq=False)
class Value:
    """A tensor at one moment of the run.

    Attributes:
        kind: ``input``, ``parameter``, ``buffer``, ``attribute`` (a tensor that a module holds and that is neither),
            ``unknown`` (came from outside the model) or ``activation``.
        names: for parameters and buffers every qualified name that it has in the model (tied ones have several).
        aliases: attributes of modules, by qualified name, that hold a parameter or buffer beside its owner.
        tensor: the tensor itself, for parameters, buffers and attributes only; see ``contents`` for its numbers.
        mask: of the tensor, if it is masked: a bool tensor that broadcasts to it, True = keep.
        read_otherwise: whether runs on other ways read it, see ``speedup.ways``.
        next: of a tensor that the forward writes into or replaces, what the next call reads in its place, see
            ``speedup.trace.lasting``.
        ndim: how many axes it has.
        is_source: whether it is a parameter or buffer: a tensor that can be cut where it is stored.
    """

    number: int
    shape: Shape
    dtype: torch.dtype
    kind: str
    names: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    tensor: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    next: Value | None = None
    producer: Node | None = None
    uses: list[tuple[Node, int]] = field(default_factory=list)
    is_output: bool = False
    read_otherwise: bool = False
    ndim: int = field(init=False)
    is_source: bool = field(init=False)

    def __post_init__(self) -> None:
        self.ndim = len(self.shape)
        self.is_source = self.kind in ("parameter", "buffer")

    @property
    def is_read(self) -> bool:
        """Whether a call reads it, of this run or of one on another way."""
        return bool(self.uses) or self.read_otherwise

    @property
    def is_known(self) -> bool:
        """Whether its contents are at hand: the model holds it, not on the meta device, and no forward changes it."""
        return self.tensor is not None and not self.tensor.is_meta and self.next is None

    @property
    def is_of_one_call(self) -> bool:
        """Whether one call alone reads it, a parameter or buffer, and no call changes it."""
        return self.is_source and len(self.uses) == 1 and self.next is None

    @property
    def is_blank(self) -> bool:
        """Whether the model holds it on the meta device."""
        return self.tensor is not None and self.tensor.is_meta

    @property
    def is_replaced_alike(self) -> bool:
        """Whether what the next call reads in its place has the same shape and type."""
        return self.next is not None and (self.next.shape, self.next.dtype) == (self.shape, self.dtype)

    @property
    def label(self) -> str:
        """How messages call it: its name in the model, or the call that made it."""
        if self.names:
            return self.names[0]
        return f"output of {self.producer.label}" if self.producer is not None else self.kind

    def contents(self) -> torch.Tensor:
        """The numbers of a parameter, buffer or attribute in the masked model; not to be written into."""
        assert self.tensor is not None
        whole = self.tensor.detach()
        return whole if self.mask is None else masked(whole, self.mask)

    def __repr__(self) -> str:
        return f"<Value {self.number} {self.label} {self.shape}>"


@dataclass(frozen=True)
class Ref:
    """Stands for the ``number``-th tensor argument inside a recorded call."""

    number: int


@dataclass(eq=False)
class Node:
    """One call of a module or function.

    Attributes:
        op: the module type or the function that was called.
        rule: the rule that claims it, None for a barrier.
        module, path: the module and its qualified name, for calls of modules.
        scope: qualified name of the module in whose forward the call stands.
        where: ``file:line`` in the caller's source.
        sites: code objects and instructions that stand for this call in the forward of ``scope``, innermost first.
        arguments: every argument by its name in the rule's ``call``; tensors as ``Ref``.
        tensors: every tensor that goes in, in the order of their ``Ref``; then those that the module holds.
        attributes: where the tensors that the module holds stand in ``tensors``, by attribute name.
        operands: the values that the rule's signature speaks of, in its order; None where an optional one is missing.
        operand_names: their names.
        outputs: the tensors that come out, tensors changed in place included.
        siblings: all calls of its module in the whole run, itself among them; none of a function.
        writes: whether the call changed a tensor in place.
        rows: the axis of the first output along which entries are the weights of means, see ``Rule.sums_to_one``.
        factor: what an edit multiplies the output with, in a run that is compared with another.
        claimant: the rule that would claim it, in such a run, where few calls need to be claimed: see ``claimed``.
    """

    index: int
    op: Any
    op_name: str
    rule: Rule | None
    module: nn.Module | None
    path: str
    scope: str
    where: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: tuple[Value, ...]
    outputs: tuple[Value, ...]
    attributes: dict[str, int] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    operands: tuple[Value | None, ...] = ()
    operand_names: tuple[str, ...] = ()
    note: str = ""
    siblings: Sequence[Node] = ()
    sites: tuple[tuple[CodeType, int], ...] = ()
    writes: bool = False
    rows: int | None = None
    factor: float = 1.0
    claimant: Rule | None = None

    @property
    def calls(self) -> int:
        """How often the module is called in the whole run; 1 for a function."""
        return len(self.siblings) or 1

    def claimed(self) -> Node:
        """Itself, claimed by now if a rule claims it."""
        if self.claimant is not None:
            rule, self.claimant = self.claimant, None
            rule.claim(self)
        return self

    @property
    def label(self) -> str:
        """How messages call it: path and type of the module, or the function and the module that calls it."""
        if self.module is not None:
            return f"{self.path or 'the model'} ({self.op_name})"
        return f"{self.op_name} in {self.scope or 'the model'}"

    @property
    def is_barrier(self) -> bool:
        """Whether no rule speaks for it, so that what it touches stays whole."""
        return self.rule is None

    def arg(self, name: str, default: Any = None) -> Any:
        """The argument ``name`` of the call, or that attribute of the module that was called; else ``default``."""
        if name in self.arguments:
            return self.arguments[name]
        if self.module is not None:
            return walk.attribute(self.module, name, default)
        return default

    @property
    def place(self) -> tuple[str, str, str]:
        """What is the same of a call in all runs of a model: the scope, the module that was called, the op."""
        return self.scope, self.path, self.op_name

    @property
    def line(self) -> Line:
        """The ``place`` of a call, and the line of code that makes it."""
        return self.place, self.where if self.module is None else ""

    def is_given(self, other: Node) -> bool:
        """Whether two calls were given the same beside tensors.

        Args:
            other: another call of the same op.
        """
        try:
            return bool(self.args == other.args and self.kwargs == other.kwargs)
        except (RuntimeError, ValueError):  # arrays among them
            return False

    def operand(self, name: str) -> Value | None:
        """The operand of that name, None when it is missing."""
        for value, known in zip(self.operands, self.operand_names, strict=True):
            if known == name:
                return value
        return None

    @cached_property
    def layout(self) -> Layout:
        """The rule's signature, bound to the shapes of this call."""
        assert self.rule is not None
        return self.rule.layout(self)

    def once(self, key: str, find: Callable[[], Any]) -> Any:
        """What follows from the call and the graph around it alone, found when it is first asked for.

        Args:
            key: what it is.
            find: finds it; not to be asked for before the graph is whole.
        """
        found = self.__dict__.setdefault("_found", {})
        if key not in found:
            found[key] = find()
        return found[key]

    @property
    def output_names(self) -> tuple[str, ...]:
        """How rules call the outputs in what they return."""
        return ("output",) if len(self.outputs) == 1 else tuple([f"output{i}" for i in range(len(self.outputs))])

    @property
    def values(self) -> tuple[Value | None, ...]:
        """Operands, then outputs: the order of ``layout.operands``."""
        return (*self.operands, *self.outputs)

    @property
    def others(self) -> tuple[Value, ...]:
        """Tensors that go in and that the signature does not speak of (an index tensor, say)."""
        return tuple([v for v in self.tensors if v not in self.operands])

    def run(self, tensors: Sequence[torch.Tensor], **changed: Any) -> Any:
        """Call the function again with other tensors in place of the recorded ones, in the order of ``self.tensors``.

        The keyword arguments ``changed`` replace arguments of these names in the rule's ``call``, or attributes of the
        module.
        """

        def real(leaf: Ref) -> torch.Tensor:
            return tensors[leaf.number]

        args, kwargs, module = self.args, self.kwargs, self.module
        if changed and module is not None:
            module = shell_of(module)
            for name, value in changed.items():
                setattr(module, name, value)
        elif changed:
            assert self.rule is not None
            args, kwargs = self.rule.rebind(self, changed)
        args, kwargs = replaced(Ref, real, args), replaced(Ref, real, kwargs) if kwargs else {}
        if module is not None:
            kind: Any = self.op
            own: Any = type(module)
            if not self.attributes and own is kind and is_torchs_own(kind):
                return kind.forward(module, *args, **kwargs)  # which writes nothing into the module
            held = {name: tensors[number] for name, number in self.attributes.items()}
            # The forward alone is the call; hooks are recorded as calls of their own.
            if held.keys() <= module._parameters.keys() | module._buffers.keys():
                # Of a subclass the call may be that of the class above.
                return kind.forward(shell_of(module, held), *args, **kwargs)
            return torch.func.functional_call(module, held, args, kwargs)
        op: Callable[..., Any] = self.op
        return op(*args, **kwargs)


def paths_around(name: str) -> list[str]:
    """The paths of the modules around a module or parameter, the model itself first.

    Example:
        >>> paths_around("layer1.0.conv")
        ['', 'layer1', 'layer1.0']
    """
    parts = name.split(".") if name else []
    return [".".join(parts[:k]) for k in range(len(parts))]


def rows_of_one(value: Value) -> int | None:
    """The axis along which the entries of a value are the weights of a mean, None where there is none.

    Args:
        value: what ``Rule.sums_to_one`` of the call that made it speaks of.
    """
    node = value.producer
    return node.rows if node is not None and value is node.outputs[0] else None
