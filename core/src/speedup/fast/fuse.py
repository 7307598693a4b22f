"""Fusing, for models that only infer: layers that scale and shift go into the weights of their neighbours.

1. *into the layer in front*: a batch norm that alone reads a convolution or linear layer;
2. *into the layers behind*: one that only such layers read, where none of them pads with zeros;
3. *away*: what leaves everything as it is (dropout, slopes of 1), or what nobody reads;
4. *plain*: a norm that counts what was removed, where the layers around it can do that (``speedup.fast.restate``).

Layers that give the same for every input give it without computing it (``speedup.fast.idle``).

What is left of the layer is a module that hands its input through. Everything else stays and is told with the reason:
layers that are called more than once or have hooks, whose input others read, that are in training mode, functions. The
model is traced again after each round, for one layer that goes makes others neighbours, and each round is tried, also
at other sizes of the input at which code goes another way: what does not give the same answers is taken back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from speedup.arrays import Floats
from speedup.ask import ask, culprit
from speedup.commit import Transaction
from speedup.errors import RuleError
from speedup.fast.hooks import has_hooks
from speedup.fast.idle import constants, idle_calls
from speedup.fast.restate import may_restate, restated
from speedup.fast.scaling import Scaling, behind, in_front, scaling_of
from speedup.fast.told import Fused, Fusing, NotFused
from speedup.fast.tried import Case, Step, Trial, answers_of, elsewhere_of
from speedup.graph import Graph
from speedup.node import Node
from speedup.registry import Registry
from speedup.shell import shell_of
from speedup.trace import sandbox, trace
from speedup.verification import Inputs


def fused(
    model: nn.Module,
    inputs: Inputs,
    rules: Registry,
    transaction: Transaction,
    reference: Sequence[torch.Tensor] | None,
    effects: Sequence[float] = (),
) -> Fusing:
    """Fuse what can be fused, as further changes of a transaction.

    Args:
        reference: what the model has to answer; None for what it answers now.
        effects: how far rounding alone moves that, as for ``speedup.rounding.difference``.
    """
    report = Fusing()
    cases: list[Case] = []
    training = {id(module) for module in model.modules() if getattr(module, "training", False)}
    refused: dict[str, str] = {}
    while True:
        with sandbox(model):
            graph = trace(model, *inputs, rules)
            search = _Search(model, graph, training, refused)
            steps = search.steps()
        if not steps:
            report.stays = [NotFused(path, why) for path, why in search.stays.items()]
            return report
        if not cases:  # nothing has changed yet
            wanted = reference if reference is not None else answers_of(model, inputs)
            cases = [Case(inputs, wanted, effects), *elsewhere_of(model, inputs, graph, rules)]
        trial = Trial(model, cases, transaction, graph.coarsest, refused)
        for step in trial.taken(steps):
            if step.kind == "fixed":
                report.fixed += [each.module for each in step.done]
            else:
                (report.plain if step.kind == "plain" else report.fused).extend(step.done)


class _Search:
    """One round: which modules can go now, and why others cannot.

    Attributes:
        stays: why, by path; or by the name of a call where a function is called.
    """

    def __init__(self, model: nn.Module, graph: Graph, training: set[int], refused: Mapping[str, str]) -> None:
        self.model = model
        self.graph = graph
        self.training = training
        self.refused = refused
        self.stays: dict[str, str] = {}
        self.touched: set[str] = set()
        self.idle = idle_calls(graph)

    def steps(self) -> list[Step]:
        """What can be done at once; no module is in two steps. Call it in eval mode."""
        found = []
        for node in [*self.graph.passed, *self.graph.nodes]:
            if node.path in self.touched and node.module is not None:
                continue
            by = scaling_of(node)
            if by is None:
                continue
            step = self._step(node, by)
            if isinstance(step, str):
                self.stays.setdefault(node.path if node.module is not None else node.label, step)
            elif step is not None:
                self.touched.update(step.modules)
                found.append(step)
        return found or self._plain() or self._fixes()

    def _plain(self) -> list[Step]:
        """Layers that can be plainer ones."""
        able, found = [], []
        for node in self.graph.nodes:
            if node.module is None or not may_restate(node):
                continue
            why = f"it is called {node.calls} times" if node.calls > 1 else self._keeps(node) or self._trains()
            if why is None:
                able.append(node)
            else:
                self.stays.setdefault(node.path, why)
        for nodes, result in restated(self.graph, self.model, able):
            if isinstance(result, str):
                self.stays.update({node.path: result for node in nodes})
            elif self.touched.isdisjoint(result.modules):
                self.touched.update(result.modules)
                done = [Fused(node.path, into) for node, into in result.calls.items()]
                found.append(Step(done, result.modules, "plain"))
        return found

    def _fixes(self) -> list[Step]:
        """Layers that give the same for every input, once they have taken up all that they can."""
        found = []
        for node, shift in constants(self.graph):
            made = None if self._keeps(node) is not None else self._fixed(node, shift)
            if made is not None:
                found.append(Step([Fused(node.path)], {node.path: made}, "fixed"))
        return found

    def _step(self, node: Node, by: Scaling) -> Step | str | None:
        """How a call can go, or why it cannot; None for a module that does nothing already."""
        if node.module is None:
            return f"a function, which the code calls ({node.where})"
        made = ask(node, "omit")
        if made is None or type(made) is type(node.module):
            return None
        if not isinstance(made, nn.Module):
            raise RuleError(f"{culprit(node)}: omit returned {made!r}, not a module")
        why = self._keeps(node)
        if why is not None:
            return why
        calls = [n for n in (*self.graph.passed, *self.graph.nodes) if n.module is node.module]
        if by.is_nothing or self.idle.issuperset(calls):
            taken = all(self._can_be_dropped(n) for n in calls)
            return Step([Fused(node.path)], {node.path: made}) if taken else "others read what goes into it too"
        if node.calls > 1:
            return f"it is called {node.calls} times"
        if any(len(v.uses) > 1 or v.next is not None for v in node.operands[1:] if v is not None):
            return "its parameters have other readers"
        first = self._into_front(node, by)
        if not isinstance(first, str):
            return Step([Fused(node.path, tuple(first))], {node.path: made, **first})
        second = self._into_readers(node, by)
        if not isinstance(second, str):
            return Step([Fused(node.path, tuple(second))], {node.path: made, **second})
        return f"{first}, in front of it or behind it" if first == second else f"in front: {first}; behind: {second}"

    def _fixed(self, node: Node, shift: Floats) -> nn.Module | None:
        """The module that gives the numbers without computing them."""
        rule, weight = node.rule, next(v.tensor for v in node.operands if v is not None and v.tensor is not None)
        assert node.module is not None and rule is not None and rule.bias is not None
        shell = shell_of(node.module)
        shell.register_parameter(rule.bias, nn.Parameter(torch.from_numpy(shift.copy()).to(weight), False))
        made = ask(node, "fixed", shell)
        if made is not None and not isinstance(made, nn.Module):
            raise RuleError(f"{culprit(node)}: fixed returned {made!r}, not a module")
        return made

    def _keeps(self, node: Node) -> str | None:
        """What holds a module as it is, whatever stands around it."""
        assert node.module is not None
        if node.path in self.refused:
            return self.refused[node.path]
        if node.module is self.model:
            return "it is the whole model"
        if id(node.module) in self.training:
            return "it is in training mode: call eval() first"
        if has_hooks(node.module):
            return f"{node.path} has hooks"
        if self.graph.branch is not None:
            return "Python reads data of the input, and may go another way with other data"
        return None

    def _trains(self) -> str | None:
        """Which module may do something else than it did here, between two calls."""
        for path, module in self.model.named_modules():
            if id(module) in self.training:
                return f"{path or 'the model'} is in training mode: call eval() first"
        return None

    def _can_be_dropped(self, node: Node) -> bool:
        """Whether what comes out may be what goes in, into which no other call must write."""
        first = node.operands[0] if node.rule is not None else None
        if first is None:
            return False
        return first is node.outputs[0] or (len(first.uses) == 1 and not first.is_output and first.producer is not None)

    def _into_front(self, node: Node, by: Scaling) -> dict[str, nn.Module] | str:
        first = node.operands[0]
        assert first is not None
        producer = first.producer
        if producer is None or len(producer.outputs) != 1:
            return "no layer with a weight and a bias"
        if len(first.uses) > 1 or first.is_output:
            return f"others read the output of {producer.path or producer.label} too"
        return self._made(producer, behind(producer, by)) if self._watched(producer, node) is None else "hooks see it"

    def _into_readers(self, node: Node, by: Scaling) -> dict[str, nn.Module] | str:
        output = node.outputs[0]
        if output.is_output:
            return "it is an output of the model"
        found: dict[str, nn.Module] = {}
        for reader, number in output.uses:
            made = self._made(reader, in_front(reader, by)) if number == 0 else "it is read otherwise"
            if isinstance(made, str):
                return made
            if self._watched(reader, node) is not None or set(made) & set(found):
                return "hooks see it"
            found.update(made)
        return found or "nothing reads it"

    def _made(self, node: Node, new: dict[str, torch.Tensor] | str) -> dict[str, nn.Module] | str:
        """A module with new tensors."""
        if isinstance(new, str):
            return new
        if node.calls > 1:
            return f"{node.path} is called {node.calls} times"
        if node.path in self.touched:
            return f"{node.path} takes up another layer"
        assert node.module is not None
        weight = next(v.tensor for v in node.operands if v is not None and v.tensor is not None)
        shell = shell_of(node.module)
        for name, tensor in new.items():
            old = getattr(node.module, name)
            graded = (weight if old is None else old).requires_grad
            parameter = nn.Parameter(tensor, requires_grad=graded)
            parameter.__dict__.update(old.__dict__ if old is not None else {})
            shell.register_parameter(name, parameter)
        return {node.path: shell}

    def _watched(self, changed: Node, node: Node) -> str | None:
        """Whether a hook sees what comes between two calls: on the one, or on a module around one of them alone."""
        assert changed.module is None or changed.module is not self.model
        for path in {*_around(changed.path), *_around(node.path)} - (_around(changed.path) & _around(node.path)):
            if path != node.path and has_hooks(self.model.get_submodule(path)):
                return path
        return None


def _around(path: str) -> set[str]:
    """The paths of a module and of those that it is in."""
    return set(_prefixes(path))


def _prefixes(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition(".")[0]
