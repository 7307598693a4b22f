"""What all norms share that take mean and variance over channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from speedup import (
    Affine,
    Bools,
    Constant,
    Fact,
    Floats,
    Instead,
    Kept,
    Kind,
    Labels,
    Node,
    NodeFacts,
    NodeKeep,
    Rule,
    along,
    kept_shape,
    unused_operands,
)
from speedup_plugin_norm.combined import Combined, Gone, combined
from speedup_plugin_norm.compensated import divisor
from speedup_plugin_norm.custom import run_tail

_WHY_CARRIER = "says what channels were that went, which mean and variance count"


class Counting(Rule):
    """A norm with statistics over the names in ``over``, per entry of the others.

    Subclasses give ``terms``, the factors of the unknowns behind the norm, and ``alone``, what constants alone give.
    """

    operands: tuple[str, ...] = ("input", "weight", "bias")
    over = "c"
    counting: Sequence[Callable[..., Any]] = ()  # what goes on counting in the place of a function
    knows_width = False  # whether the smaller module can count by the width that the original would have
    offset = 0.0  # what is added to the weight before anything is scaled with it
    combines = False  # whether the smaller module can count what is a combination of channels that are left

    def added(self, node: Node) -> float:
        """What is added to the weight."""
        return self.offset

    def terms(self, constants: Floats, groups: int) -> list[Floats]:
        """Of an entry that is constant in front: its factor of every unknown, before weight and bias (named space)."""
        raise NotImplementedError

    def alone(self, node: Node, constants: Floats, axes: tuple[int, ...]) -> Floats:
        """The result where everything that is counted together is constant, before weight and bias (named space)."""
        raise NotImplementedError

    def before(self, node: Node) -> tuple[Floats, Floats, Floats]:
        """What went in earlier rounds: how many channels, their mean and sum of squared deviations (named space)."""
        nothing = np.zeros((1,) * len(node.layout.names))
        return nothing, nothing, nothing

    def carriers(self, node: Node) -> Bools:
        """The channels that say what went in earlier rounds (flat)."""
        return np.zeros(node.layout.sizes[self.over], bool)

    def standardized(self, node: Node, constants: Floats, axes: tuple[int, ...], eps: float) -> Floats:
        """(c - mean) / deviation of constants over ``axes`` and what went in earlier rounds."""
        gone, gone_mean, gone_spread = self.before(node)
        total = np.prod([constants.shape[a] for a in axes]) + gone
        mean = (constants.sum(axis=axes, keepdims=True) + gone * gone_mean) / total
        spread = np.square(constants - mean).sum(axis=axes, keepdims=True)
        spread = spread + gone_spread + gone * (gone_mean - mean) ** 2
        with np.errstate(invalid="ignore", divide="ignore"):  # without eps, what is all the same is divided by 0
            return np.asarray((constants - mean) / divisor(spread, total, eps, self.spread(node)))

    def channel(self, node: Node) -> int:
        """The axis of the channels."""
        return -1

    def stat_axis(self, node: Node) -> int:
        """The same as a compensated module notes it, see ``compensated.along``."""
        return self.channel(node)

    def spread(self, node: Node) -> str:
        """How the deviation is made, see ``compensated.divisor``."""
        return "var"

    def tail(self, node: Node) -> tuple[str, ...]:
        """The children of the module that are called on the result: activations, entry by entry."""
        return ()

    def removable(self, node: Node) -> bool:
        """Whether a smaller module, or a call that is told what it must count, can stand in for the call."""
        if node.module is None:
            return bool(self.counting)
        own = all(v is None or all(n.module is node.module for n, _ in v.uses) for v in node.operands[1:])
        return own and (node.calls == 1 or self.alike(node))

    def alike(self, node: Node) -> bool:
        """Whether one module can count what all its calls lose: the channels of its weight, or what each call is short
        of a width that is the same in all of them."""
        if any(v is not None for v in node.operands[1:]):
            return True
        if getattr(node.module, "stat_total", None) is not None:
            return True
        return self.knows_width and len({self.width(n) for n in node.siblings}) == 1

    def width(self, node: Node) -> int | None:
        """How many channels go in, None where the rule does not speak for the call."""
        value = node.operands[0] if node.rule is self else None
        return None if value is None else value.shape[self.channel(node)]

    def countable(self, node: Node, facts: NodeFacts) -> tuple[Bools, Floats]:
        """The constants that a smaller module or call can count. A module that is called several times counts zeros
        alone, which are the same in every call; so does a call with several groups, to which one number is told."""
        known, value = self.constants(node, facts)
        alike = node.calls > 1 or (node.module is None and node.layout.sizes.get("g", 1) > 1)
        return (known & (value == 0), np.zeros_like(value)) if alike else (known, value)

    def combined(self, node: Node, facts: NodeFacts) -> Combined | None:
        """The channels that are combinations of others at every position; None where there are constants alone."""
        if not self.combines or node.module is None or node.calls > 1 or facts.is_weight(0):
            return None
        axis = self.channel(node) % len(node.layout.operands[0] or ())
        fact = facts.affine(0)
        if fact is not None and fact.axis == axis:
            arrays = fact.mask, *fact.terms, fact.offset
        else:
            arrays = facts.mask(0), facts.value(0)
            if all(size == 1 for a, size in enumerate(arrays[1].shape) if a != axis):
                return None
        mask, *numbers = np.broadcast_arrays(*arrays)
        if mask.shape[axis] == 1:
            return None
        lines = [np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1) for array in (mask, *numbers)]
        found = combined(lines[1:], np.logical_and.reduce(lines[0], axis=1))
        return found if found.moves.any() else None

    def _line(self, node: Node, line: Bools | Floats) -> Bools | Floats:
        """An array over the channels in named space."""
        return line.reshape([-1 if name == self.over else 1 for name in node.layout.names])

    # -- inference ------------------------------------------------------------------------------------------------

    def infer_from_weight(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        return {}

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        """Constants become affine; where the weight is 0 the bias comes out, and where all is constant, a constant."""
        layout = node.layout
        known, value = self.constants(node, facts)
        weight = self._named(node, facts, 1, 1.0) + self.added(node)
        bias = self._named(node, facts, 2, 0.0)
        scaled = self.scaled(node, facts)
        axes = layout.axes({self.over})
        whole = known.all(axis=axes, keepdims=True) & ~self.carriers(node).any()
        found = None if self.tail(node) else self.combined(node, facts)
        if found is not None:
            value = np.where(known, value, self._line(node, found.offset))
            known = known | self._line(node, found.known)
        mask = known | ~scaled
        if not mask.any():
            return {}
        unknowns = [] if whole.all() else self.terms(value, layout.sizes.get("g", 1))
        if not unknowns:
            mask = whole | ~scaled
        offset = bias
        if whole.any():
            constants = np.where(whole, value, 0.0) * np.ones(self._wide(layout))
            offset = bias + np.where(whole & scaled, self.alone(node, constants, axes) * weight, 0.0)
        out = layout.n_inputs
        if self.tail(node):
            # An activation follows: only constants are still known behind it.
            mask = whole | ~scaled
            mask, offset = layout.from_named(out, mask), layout.from_named(out, np.where(mask, offset, 0.0))
            return {"output": Constant(*np.broadcast_arrays(mask, self._behind(node, offset)))} if mask.any() else {}
        if found is not None:
            unknowns = [*unknowns, *(self._line(node, row) for row in found.rows.T)]
        # What is 0 stays 0 whatever the weight is, which need not be known.
        terms = [layout.from_named(out, np.where(scaled & ~whole & (t != 0), t * weight, 0.0)) for t in unknowns]
        axis = self.channel(node) % node.outputs[0].ndim
        mask, offset = layout.from_named(out, mask), layout.from_named(out, offset)
        return {"output": Affine(axis, mask, tuple(terms), offset, found is not None)} if mask.any() else {}

    def _behind(self, node: Node, offset: Floats) -> Floats:
        """What the activations make of constants."""
        assert node.module is not None
        return run_tail(node.module, self.tail(node), torch.from_numpy(np.array(offset, np.float64))).numpy()

    def infer_from_output(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        """An input is read by everything it is counted with; weight and bias entries only by their own output."""
        layout = node.layout
        unused = layout.to_named(layout.n_inputs, facts.unused(layout.n_inputs))
        unused = layout.project_all(layout.n_inputs, unused)
        uncounted = np.all(unused | ~self.scaled(node, facts), axis=layout.axes({self.over}), keepdims=True)
        return unused_operands(node, {k: unused if k else uncounted for k in range(len(node.operands))})

    def scaled(self, node: Node, facts: NodeFacts) -> Bools:
        """Where the scale is not known to be 0, in named space."""
        layout = node.layout
        plain = facts.present(1) and not self.added(node)
        return ~layout.to_named(1, facts.zero(1)) if plain else np.ones((1,) * len(layout.names), bool)

    def constants(self, node: Node, facts: NodeFacts) -> tuple[Bools, Floats]:
        """The channels that are constant, with one value at all positions, in named space."""
        layout = node.layout
        # Of a parameter, which may be trained further, what masks make 0.
        known = facts.zero(0) if facts.is_weight(0) else facts.mask(0)
        value = np.zeros(known.shape) if facts.is_weight(0) else np.broadcast_to(facts.value(0), known.shape)
        channels = self.channel(node) % known.ndim
        positions = tuple(a for a, s in enumerate(known.shape) if s > 1 and a != channels)
        if positions:
            # Some positions may be known in other channels too: a token that is a parameter.
            value = np.where(known, value, 0.0)
            same = value.max(positions, keepdims=True) == value.min(positions, keepdims=True)
            known = np.logical_and.reduce(known, axis=positions, keepdims=True) & same
            value = value.max(positions, keepdims=True)
        return layout.to_named(0, known), layout.to_named(0, np.where(known, value, 0.0))

    def _named(self, node: Node, facts: NodeFacts, k: int, default: float) -> Floats:
        """An operand, NaN where nothing is known of it; the default where it is missing."""
        if k >= len(node.operands) or not facts.present(k):
            return np.full((1,) * len(node.layout.names), default)
        return node.layout.to_named(k, np.where(facts.mask(k), facts.value(k), np.nan))

    def _wide(self, layout: Any) -> list[int]:
        return [layout.sizes[n] if n in ("g", self.over) else 1 for n in layout.names]

    # -- keep sets ------------------------------------------------------------------------------------------------

    def derived(self, node: Node) -> set[int]:
        """All of what is normalised counts, also where it is a parameter that no other call reads."""
        return super().derived(node) - {0}

    def tie(self, node: Node, labels: Labels) -> None:
        super().tie(node, labels)
        value = node.operands[0]
        if value is not None and not self.removable(node):
            labels.freeze(value)

    def constrain(self, node: Node, keep: NodeKeep) -> None:
        super().constrain(node, keep)
        layout = node.layout
        if not self.removable(node):
            keep.grow(0, np.ones((1,) * len(keep.rigid[0]), bool), "its mean and variance are counted by a function", 0)
            return
        known, _ = self.countable(node, keep.facts)
        kept = layout.to_named(0, keep.sets[0])
        unused = layout.to_named(layout.n_inputs, keep.facts.unused(layout.n_inputs))
        matters = kept & self.scaled(node, keep.facts) & ~layout.project_all(layout.n_inputs, unused)
        counted = np.any(matters, axis=layout.axes({self.over}), keepdims=True)
        read = counted & ~known & ~kept
        found = self.combined(node, keep.facts)
        if found is not None and counted.any():
            read = read & ~self._line(node, found.known)
            self._keep_carriers(node, keep, found)
        if (earlier := self.carriers(node)).any():
            keep.grow(0, layout.from_named(0, self._line(node, earlier)), _WHY_CARRIER, 0, Kind.CARRIER)
        if read.any():
            keep.grow(0, layout.from_named(0, layout.project_any(0, read)), "mean and variance read it", 0)

    def _keep_carriers(self, node: Node, keep: NodeKeep, found: Combined) -> None:
        """Keep as many channels as say what those were that go."""
        while True:
            kept = self._kept(node, keep)
            lacks = found.lacking(kept, found.moves & ~kept)
            if lacks is None or keep.patient:
                return
            first = self._line(node, np.arange(len(kept)) == lacks)
            keep.grow(0, node.layout.from_named(0, first), _WHY_CARRIER, 0, Kind.CARRIER)

    def _kept(self, node: Node, keep: Kept | NodeKeep) -> Bools:
        """Which channels are kept (flat)."""
        axis = self.channel(node) % len(node.layout.operands[0] or ())
        return np.broadcast_to(along(keep.sets[0], axis), node.layout.sizes[self.over])

    def carried(self, node: Node, keep: Kept, earlier: Gone) -> tuple[Bools, Gone] | None:
        """Which of the kept channels say what is gone by now, and how; None where it is constants alone.

        Args:
            earlier: what went before, by the channels that say so and the constant.
        """
        first, found = self.carriers(node), self.combined(node, keep.facts)
        if found is None and not first.any():
            return None
        if found is None:
            wide = [np.broadcast_to(a, self._wide(node.layout)).reshape(-1) for a in self.countable(node, keep.facts)]
            found = Combined(wide[0], np.zeros((len(first), 1)), wide[1])
        kept = self._kept(node, keep)
        carriers, rows = found.by(kept, ~kept, first)
        if not carriers.any():
            return None
        wide = [*np.flatnonzero(np.isin(np.flatnonzero(carriers), np.flatnonzero(first))), carriers.sum()]
        before = np.zeros((1 + len(earlier.away), carriers.sum() + 1))
        before[:, wide] = np.vstack([earlier.mean, earlier.away])
        return carriers[kept], Gone(earlier.count, before[0], before[1:]).joined(rows)

    def total(self, node: Node) -> int | None:
        """The width that the original would have, where the module goes by it: see ``Compensated.stat_total``."""
        if node.calls == 1 or any(v is not None for v in node.operands[1:]):
            return None
        count, _, _ = self.before(node)
        return int(node.layout.sizes[self.over] + count.item())

    def resize(self, node: Node, keep: Sequence[Bools]) -> Mapping[str, Any]:
        """A call of a function may hold the width."""
        if node.module is not None or "normalized_shape" not in node.arguments or self.over not in node.layout.names:
            return {}
        value = node.operands[0]
        assert value is not None
        return {"normalized_shape": kept_shape(keep[0], value.shape)[-1:]}

    def instead(self, node: Node, keep: NodeKeep) -> Instead | None:
        """The function that goes on counting."""
        if self.over not in node.layout.names:
            return None
        count, mean, spread = (a.max() for a in self.gone(node, keep))
        if not count:
            return None
        earlier, _, _ = self.before(node)
        total = int(node.layout.sizes[self.over] + earlier.max())
        told = {name: number for name, number in self.told(float(count), float(mean), float(spread)).items() if number}
        return Instead(self.counting[0], {"total": total, **told})

    def told(self, count: float, mean: float, spread: float) -> dict[str, float]:
        """What the function is told of the channels that went, beside how many there were; what is 0 it needs not be
        told."""
        return {"gone_mean": mean, "gone_spread": spread}

    def gone(self, node: Node, keep: Kept | NodeKeep) -> tuple[Floats, Floats, Floats]:
        """Per kept group how many channels are gone by now, and their mean and sum of squared deviations (flat)."""
        layout = node.layout
        _, value = self.countable(node, keep.facts)
        kept = layout.to_named(0, keep.sets[0]) & np.ones(self._wide(layout), bool)
        axes = layout.axes({self.over})
        went = ~kept
        count = went.sum(axis=axes, keepdims=True)
        mean = np.where(went, value, 0.0).sum(axis=axes, keepdims=True) / np.maximum(count, 1)
        spread = np.where(went, (value - mean) ** 2, 0.0).sum(axis=axes, keepdims=True)
        earlier, earlier_mean, earlier_spread = self.before(node)
        total = count + earlier
        both = count * earlier / np.maximum(total, 1)
        spread = spread + earlier_spread + both * (mean - earlier_mean) ** 2
        mean, count = (count * mean + earlier * earlier_mean) / np.maximum(total, 1), total
        groups = kept.any(axis=axes, keepdims=True)
        return tuple(np.broadcast_to(a, groups.shape)[groups] for a in (count, mean, spread))  # type: ignore[return-value]
