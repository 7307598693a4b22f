"""The traced model: values (tensors at one moment) and nodes (calls), in the order in which they ran.

A value never changes: an in-place op makes a new one. So the graph is acyclic and in topological order, whatever loops
or shared modules the model has.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import CodeType
from typing import TYPE_CHECKING, Any

import torch

from speedup.cached import cached_property
from speedup.kinds import Kind
from speedup.masking import Masking
from speedup.node import Node, Value, paths_around
from speedup.rounding import coarsest_of

if TYPE_CHECKING:
    from speedup.expand import Expansion
    from speedup.rule import Rule
    from speedup.trace.standing import Standing
    from speedup.trace.told import Asked


@dataclass(frozen=True, eq=False)
class Branch:
    """The first call after which nothing is known: it hands data of the input to Python, which may go another way.

    Attributes:
        node: the call (``bool(x.sum() > 0)``, ``x.item()``, ``x.tolist()`` …).
        live: the values that existed at that moment.
        why: the reason for what stays, as it is told to people.
        kind: what kind of reason it is.
    """

    node: Node
    live: frozenset[Value]
    why: str = "Python reads data of the input here, and may go another way with other data"
    kind: Kind = Kind.DATA


@dataclass(frozen=True)
class Extent:
    """What a run could be told, see ``speedup.trace.told``.

    Attributes:
        questions, calls: the most in one module.
        places: the fewest entries that a call looks through.
        asking, seeking: the modules with questions, and those with calls that look for places.
        masks: whether Python asks how many entries a mask has chosen.
        found: the fewest places that a call has found in the data as they are; -1 where they were not looked through.
        reads: whether Python reads data of the input, and no truth value, that are not made of such places alone.
        said: whether a question or a call was left out, where that makes a difference.
    """

    questions: int = 0
    calls: int = 0
    places: int = 0
    asking: tuple[str, ...] = ()
    seeking: tuple[str, ...] = ()
    masks: bool = False
    found: int = -1
    reads: bool = False
    said: Mapping[Asked, bool] = field(default_factory=dict)


@dataclass(eq=False)
class Graph:
    """Everything that one run of the model did.

    Attributes:
        outputs: the values that the model returns, then what its forward leaves for others in parameters and buffers.
        reference: copies of the tensors that the model returned.
        from_input: the values that depend on the input; the others are made of parameters alone.
        answers: the truth values that Python took from data of the input, in order, where they were asked for
            (see ``speedup.ways``); None where they were not.
        expanded: the rules of modules that ran in parts, by path, see ``speedup.expand``.
        plain: the numbers, texts and arrays among what the model returned, by where they are.
        asking: scopes in which Python asked for the size of a tensor.
        asking_code: the functions that did so, and those that called them.
        claims: the rules that claim modules which were called, by identity; None for those that were entered.
        dtypes: the types of what was computed from the input, inside of calls too.
        masking: the masks that parameters had in the run.
        effects: of each output, how far the last digits of the parameters move it, relative to its largest entry;
            empty where nobody had to measure it.
        passed: calls of modules that gave a tensor back as it is, and are no nodes therefore.
        beside: calls that only training makes, see ``speedup.auxiliary``.
        instead: of a value that a call reads, those that it may read instead with other data, and the other way round,
            see ``speedup.detours``: what is known of one is known of all, and they keep the same.
        seeking: the first call that looks for places in data of the input, see ``Rule.seeks``.
        lasts: whether the next call of the model makes no other calls, as far as it changes what the model holds.
        extent: what the run could be told.
        loose: values that calls read which are made with other data alone, or instead of which calls read what those
            give: they stay whole, and nothing is known of them.
        reused_alike: the weights of layers that are called several times, and as often at other sizes of the input.
        standing: what stood when the first call looked for places, for other runs on the same input; None where nobody
            needs it any more.
        few_will_do: whether a run that finds few places, or none, returns as many tensors.
    """

    nodes: list[Node]
    values: list[Value]
    inputs: list[Value]
    outputs: list[Value]
    reference: list[torch.Tensor]
    from_input: frozenset[Value]
    branch: Branch | None = None
    answers: tuple[bool, ...] | None = ()
    expanded: Mapping[str, Expansion] = field(default_factory=dict)
    plain: Mapping[str, Any] = field(default_factory=dict)
    asking: frozenset[str] = frozenset()
    asking_code: frozenset[CodeType] = frozenset()
    dtypes: frozenset[torch.dtype] = frozenset()
    masking: Masking | None = None
    passed: Sequence[Node] = ()
    effects: Sequence[float] = ()
    claims: dict[int, Rule | None] = field(default_factory=dict)
    beside: frozenset[Node] = frozenset()
    instead: Mapping[Value, Sequence[Value]] = field(default_factory=dict)
    seeking: Branch | None = None
    extent: Extent = Extent()
    loose: frozenset[Value] = frozenset()
    lasts: bool = True
    few_will_do: bool = False
    standing: Standing | None = None
    reused_alike: frozenset[Value] = frozenset()

    @cached_property
    def by_scope(self) -> dict[str, list[Node]]:
        """The calls in the forward of each module."""
        found: dict[str, list[Node]] = defaultdict(list)
        for node in self.nodes:
            found[node.scope].append(node)
        return dict(found)

    @cached_property
    def together(self) -> dict[Value, list[Value]]:
        """Of values that are read in the place of one another, with other data or in the next call, the others."""
        sets = {v: {v, *others} for v, others in self.instead.items()}
        for value in self.replaced:
            if value.next is not None and value.is_replaced_alike:
                joined = sets.get(value, {value}) | sets.get(value.next, {value.next})
                sets.update(dict.fromkeys(joined, joined))
        return {v: sorted(joined - {v}, key=lambda other: other.number) for v, joined in sets.items()}

    @property
    def replaced(self) -> list[Value]:
        """The tensors of the model that its forward writes into or replaces."""
        return [v for v in self.values if v.next is not None]

    @property
    def uncalled(self) -> list[str]:
        """The outermost modules with parameters of which the run has read none, nor one on another way."""
        parameters = [v for v in self.sources if v.kind == "parameter"]
        used = {v for v in parameters if v.is_read}
        if len(used) == len(parameters):
            return []
        called = {path for v in used for name in v.names for path in paths_around(name)}
        owners = {paths_around(name)[-1] for v in parameters if v not in used for name in v.names}
        outermost = [next((p for p in [*paths_around(path), path] if p not in called), None) for path in owners]
        return sorted({path for path in outermost if path is not None})

    @cached_property
    def uncertain(self) -> frozenset[Value]:
        """What existed at the branch, is made or read after it: on another way anything may be read of it."""
        if self.branch is None:
            return frozenset()
        start = self.branch.node.index

        def later(value: Value) -> bool:
            made_later = value.producer is not None and value.producer.index > start
            return made_later or any(n.index > start for n, _ in value.uses)

        return self.branch.live | frozenset(v for v in self.values if later(v))

    @property
    def sources(self) -> list[Value]:
        return [v for v in self.values if v.is_source]

    @cached_property
    def coarsest(self) -> torch.dtype | None:
        """The coarsest floating-point type of what depends on the input: code may cast to another type and back."""
        return coarsest_of(self.dtypes)

    @property
    def barriers(self) -> list[Node]:
        return [n for n in self.nodes if n.is_barrier]
