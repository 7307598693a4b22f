"""Constants that follow the size of the input: ``y / y.shape[2]`` makes another number of a constant at another size.

A fact has to hold at every size. Rules see to that for what a call does by itself. What they cannot see is that a
number in its arguments, or the count of its repetitions, was made of a size by the code around it. So where that may
be, the model is run on inputs of other sizes too, and a constant that is another one there is none:

1. *may it be?* There is a constant behind a call that counts (``Rule.counts``) or is given an empty tensor, which may
   be empty at this size only; or, in a forward that asks for a size,
   behind a call with a number that is not written out in the source (a movement, if it takes a part of a table of the
   model: the rows that this size reads), or behind a line that runs several times and gives several constants;
2. *does it matter?* Where as much of the parameters goes without all such constants (those of a detector's anchors,
   say), none of them is taken for one, and that is all;
3. else the same is inferred at other sizes: more samples, smaller, larger;
4. what one line of one module makes is compared, run by run; where the number of runs differs, all with all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from math import prod

import torch
from torch import nn

from speedup.arrays import Bools
from speedup.differ import differ
from speedup.elsewhere import Elsewhere
from speedup.errors import RuleError
from speedup.graph import Graph
from speedup.grow import keep_sets
from speedup.infer import infer
from speedup.keep import KeepSets
from speedup.known import Facts
from speedup.node import Node, Value
from speedup.registry import Registry
from speedup.repair.arguments import expressions, numbers
from speedup.repair.locate import places_of
from speedup.repair.rewrite import is_literal
from speedup.resized import Resized
from speedup.reused import reused_alike
from speedup.vary import Case, Inputs, further, has_loose
from speedup.ways import Place, Way


def lasting(
    model: nn.Module,
    graph: Graph,
    inputs: Inputs,
    masks: Mapping[str, torch.Tensor],
    rules: Registry,
    drop: bool = False,
) -> Way:
    """What is known of the values of a graph at every size of the input. Call it inside ``sandbox``.

    Args:
        masks: as for ``infer``.
        drop: as for ``keep_sets``.
    """

    elsewhere = Elsewhere(model, inputs, graph, rules)
    found = infer(graph, masks)
    graph.reused_alike = reused_alike(elsewhere, found)
    doubtful = _doubtful(model, graph, found, has_loose(inputs))
    if not doubtful:
        return Way(graph, found, inputs, elsewhere)
    without = infer(graph, masks, doubtful, found)
    many, few = (keep_sets(graph, known, drop=drop) for known in (found, without))
    if _alike(many, few):
        return Way(graph, without, inputs, elsewhere, few, None)
    denied = _following(elsewhere, found, doubtful, masks)
    same = frozenset(_places(doubtful) - _places(denied))
    if denied:
        return Way(graph, infer(graph, masks, denied, found), inputs, elsewhere, compared=same)
    return Way(graph, found, inputs, elsewhere, many, same)


def at_one_size(
    usual: Way, other: Resized, model: nn.Module, masks: Mapping[str, torch.Tensor], rules: Registry, drop: bool = False
) -> Way:
    """What is known on a way that code takes at another size, which is run at that one alone, if that will do.

    Args:
        usual: the way of the dummy input, whose calls were compared at other sizes.
        masks, drop: as for ``lasting``.
    """
    graph = other.graph
    found = infer(graph, masks, before=usual.facts)
    doubtful = _doubtful(model, graph, found, has_loose(other.inputs))
    denied = {v: entries for v, entries in doubtful.items() if not _places([v]) <= (usual.compared or frozenset())}
    if not denied:
        return Way(graph, found, other.inputs, fresh=other.fresh)
    without = infer(graph, masks, denied, found)
    if usual.compared is not None and not _alike(*(keep_sets(graph, k, drop=drop) for k in (found, without))):
        following = _following(Elsewhere(model, other.inputs, graph, rules), found, denied, masks)
        without = infer(graph, masks, following, found)
    return Way(graph, without, other.inputs, fresh=other.fresh)


def _alike(one: KeepSets, other: KeepSets) -> bool:
    """Whether two plans keep the same of the model."""
    return all(one.same(v, other) for v in one.graph.values if v.is_source)


def _places(values: Iterable[Value]) -> set[Place]:
    return {_place(v.producer, v.producer.outputs.index(v)) for v in values if v.producer is not None}


def _following(
    elsewhere: Elsewhere, facts: Facts, doubtful: Mapping[Value, Bools], masks: Mapping[str, torch.Tensor]
) -> dict[Value, Bools]:
    """The entries that are constant at the size of the dummy input only; all doubtful ones where there is no other."""
    graph = elsewhere.graph
    tail = _tail(graph, doubtful.keys())
    found: dict[Value, Bools] = {}
    for value in (v for n in tail for v in n.outputs):
        if (entries := facts.known_but_zero(value)).any():
            found[value] = entries  # nobody looks whether it stays
    taken: list[Case] = []

    def run(case: Case) -> Graph | None:
        if not tail:
            return elsewhere.run(case, claimed=True)
        other = elsewhere.run_until(case, lambda node: node.line == tail[0].line)
        reached = other is None or _places(doubtful) <= _by_place(other.nodes).keys()
        return other if reached else elsewhere.run(case, claimed=True)

    def takes(case: Case) -> bool:
        other = run(case)
        if other is None:
            return False
        try:
            # Only calls whose answer a size can change are asked again (``speedup.again``).
            known = infer(other, masks, before=facts, backwards=False)
        except RuleError:  # of a call that no model is trained with, perhaps
            return False
        for value, entries in _differing(graph.nodes[: len(graph.nodes) - len(tail)], facts, other, known, doubtful):
            found[value] = found[value] | entries if value in found else entries
        taken.append(case)
        return True

    elsewhere.at_sizes(takes, stretched=False)
    for case in further(elsewhere.inputs, tuple(taken)):
        takes(case)
    return found if taken else dict(doubtful)


def _tail(graph: Graph, doubtful: Set[Value]) -> Sequence[Node]:
    """The calls behind all that read a parameter or make one of these constants, where that is most of the run (code
    that goes through boxes one by one): what they know is of use to none of the model's layers."""
    last = max(
        n.index for n in graph.nodes if any(v.is_source for v in n.tensors) or any(v in doubtful for v in n.outputs)
    )
    lines = {n.line for n in graph.nodes[: last + 1]}
    start = next((n.index for n in graph.nodes[last + 1 :] if n.line not in lines), len(graph.nodes))
    return graph.nodes[start:] if start < len(graph.nodes) // 2 else []


def _doubtful(model: nn.Module, graph: Graph, facts: Facts, loose: bool) -> dict[Value, Bools]:
    """The constants that may be other ones at other sizes; what is made of them is not listed.

    Args:
        loose: whether the inputs have numbers or lists, which any forward may use without asking for a size.
    """
    asking = graph.asking | {n.scope for n in graph.nodes if loose or len(n.outputs) > 1}
    found: dict[Value, Bools] = {}
    repeated: dict[Place, list[Value]] = defaultdict(list)
    for node in graph.nodes:
        if node.rule is None:
            continue
        if any(0 in v.shape for v in node.tensors):  # and zeros too: of what is not there all are known
            found.update((v, facts.known(v)) for v in node.outputs if facts.known(v).any())
            continue
        if node.scope not in asking and not node.rule.counts:
            continue
        known = [v for v in node.outputs if facts.known_but_zero(v).any()]
        if node.rule.counts:
            found.update((v, facts.known_but_zero(v)) for v in known)
            continue
        reads = not node.rule.moves or _takes_part(node, graph.from_input)
        if known and node.module is None and reads and not _is_written(node, model):
            found.update((v, facts.known_but_zero(v)) for v in known)
        for value in known:
            repeated[_place(node, node.outputs.index(value))].append(value)
    for values in repeated.values():
        if any(differ(facts, values[0], facts, v).any() for v in values[1:]):
            found.update((v, facts.known_but_zero(v)) for v in values)
    return found


def _takes_part(node: Node, from_input: Collection[Value]) -> bool:
    """Whether a movement takes some of the entries of a tensor of the model: the rows that this size reads."""
    most = max(prod(v.shape) for v in node.outputs)
    return any(v not in from_input and prod(v.shape) > most for v in node.tensors)


def _is_written(node: Node, model: nn.Module) -> bool:
    """Whether all numbers in the arguments of a call are written out in the source."""
    given = [p for p, n in numbers(node.args, node.kwargs) if n is not None and not isinstance(n, bool)]
    if not given:
        return True
    places = places_of(node, model.get_submodule(node.scope))
    if not places or not places[0].direct:
        return False
    found = [expressions(places[0], path, node) for path in given]
    return all(each and all(is_literal(e) for e, _ in each) for each in found)


def _place(node: Node, output: int) -> Place:
    return node.scope, node.path, node.where, node.op_name, output


def _by_place(nodes: Iterable[Node]) -> Mapping[Place, Sequence[Value]]:
    found: dict[Place, list[Value]] = defaultdict(list)
    for node in nodes:
        for number, value in enumerate(node.outputs):
            found[_place(node, number)].append(value)
    return found


def _differing(
    nodes: Iterable[Node], facts: Facts, other: Graph, known: Facts, doubtful: Collection[Value]
) -> Iterator[tuple[Value, Bools]]:
    there = _by_place(other.nodes)
    for place, values in _by_place(nodes).items():
        others = there.get(place, [])
        for number, value in enumerate(values):
            if value not in doubtful and not facts.known_but_zero(value).any():
                continue
            if len(values) == len(others):
                pairs = [(known, others[number])]
            else:  # nobody knows which run of the line is which
                pairs = [(facts, v) for v in values] + [(known, v) for v in others]
            for said, counterpart in pairs:
                entries = differ(facts, value, said, counterpart)
                if entries.any():
                    yield value, entries
