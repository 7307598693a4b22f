"""The rule: everything that speedup needs to know of one kind of layer.

A rule names what it claims (module types, torch functions) and its *axes*. The four functions are derived from them;
overriding any of them stays possible:

* ``infer_from_weight(node, facts)``: what the masks of the weights say about input and output;
* ``infer_from_input(node, facts)``: what is known of the input says about the output;
* ``infer_from_output(node, facts)``: what is unused of the output says about weights and input;
* ``replace(node, keep)``: the smaller module.

The inference functions are pure. They see one node and return facts by operand name: ``Constant`` for outputs (named
``output``, or ``output0``, ``output1`` … where there are several), ``Unused`` for operands.

Example, a complete rule for a layer ``y = x * scale`` along the last axis::

    Rule(
        modules=(Scale,),
        operands=("input", "scale"),
        axes="* c, c -> * c",
        annihilates={"input": ("scale",), "scale": ("input",)},
        sizes={"features": "c"},
    )
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from speedup import flow, tie
from speedup.axes import Layout, parse
from speedup.errors import RuleError, SignatureError, SpeedupError
from speedup.facts import Bools, Fact, Floats
from speedup.graph import Node, Ref, Value
from speedup.order import Orders, along_names
from speedup.shell import shell_of

if TYPE_CHECKING:
    from speedup.build import Kept
    from speedup.infer import NodeFacts
    from speedup.keep import NodeKeep

_FIELDS = (
    "name",
    "modules",
    "functions",
    "axes",
    "call",
    "operands",
    "sizes",
    "annihilates",
    "bias",
    "shift",
    "averages",
    "layout_only",
    "indices",
    "makes",
)


class Rule:
    """How facts and keep sets pass one kind of layer, and how to make it smaller.

    Subclass it or pass the attributes as keyword arguments.

    Attributes:
        name: how reports call the rule.
        modules: module types that it claims (and their subclasses, as far as they change nothing of the behaviour).
        functions: torch functions that it claims; ``speedup.variants`` lists all spellings of one.
        call: parameters of the functions, written like a Python parameter list ("input, weight, bias=None"); left out,
            every tensor argument is an operand, in order.
        operands: names of the operands in the order of ``axes``; by default the first ones of ``call``. For a module a
            name is an attribute that holds a tensor, else the next tensor argument of its forward.
        axes: the signature, see ``speedup.axes``; override ``signature`` where it depends on the call.
        sizes: integer attributes of the module that count axes: ``{"in_channels": "g i"}``.
        annihilates: ``{a: (b, …)}``: where operand ``a`` is 0 the result does not depend on operands ``b``. Among the
            operands of a contracted axis this holds by itself.
        bias: the operand that is added to a contraction and may take up folded constants.
        shift: the operand that is subtracted from the input before anything else, which may take up constants that
            the layer in front has no bias for.
        averages: whether an output entry is a weighted mean of entries of the first operand, with the same weights
            (of sum 1) for all channels: an average pool, a resize, or just the entry itself.
        layout_only: whether the call gives its tensor as it is, or a copy of it in another order in memory. It is not
            recorded, since smaller tensors may need a copy where the original ones do not.
        indices: operands that only choose among the entries of the first operand along its mixed axes, for all
            channels alike: what is the same all along these axes comes out, whatever the indices are.
        makes: classes that ``replace`` gives modules beside their own: kinds of ``speedup.Overlay``, or module types.
            A saved model names them, and only what an installed rule makes is made again when it is loaded.
    """

    name: str = ""
    modules: tuple[type[nn.Module], ...] = ()
    functions: tuple[Callable[..., Any], ...] = ()
    call: str | None = None
    operands: tuple[str, ...] = ()
    axes: str = ""
    sizes: Mapping[str, str] = {}
    annihilates: Mapping[str, tuple[str, ...]] = {}
    bias: str | None = None
    shift: str | None = None
    averages: bool = False
    layout_only: bool = False
    indices: tuple[str, ...] = ()
    makes: tuple[type, ...] = ()
    moves = False  # whether outputs are copies of input entries, and arguments their sizes and positions (Movement)

    def __init__(self, **fields: Any) -> None:
        for key, value in fields.items():
            if key not in _FIELDS:
                raise TypeError(f"{type(self).__name__} has no field {key!r}; fields: {', '.join(_FIELDS)}")
            setattr(self, key, value)
        if not self.name:
            self.name = type(self).__name__ if type(self) is not Rule else self.axes
        self._parameters = inspect.signature(eval(f"lambda {self.call}: 0")) if self.call is not None else None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    # -- what a call is -------------------------------------------------------------------------------------------

    def claims(self, module: nn.Module) -> bool:
        """Whether the rule claims a module by structure, where no type is claimed (override)."""
        return False

    def signature(self, node: Node) -> str:
        """The signature of one call; override it where it depends on dimensions or arguments."""
        return self.axes

    def layout(self, node: Node) -> Layout:
        """The signature bound to the shapes of one call."""
        inputs = [None if v is None else v.shape for v in node.operands]
        return parse(self.signature(node)).bind(inputs, [v.shape for v in node.outputs])

    def held(self, module: nn.Module) -> dict[str, torch.Tensor]:
        """The tensors of a module that are operands, by attribute name."""
        found = {n: getattr(module, n, None) for n in self.operands}
        return {n: t for n, t in found.items() if isinstance(t, torch.Tensor)}

    def claim(self, node: Node) -> None:
        """Take a recorded call, if its arguments fit the rule; else it stays a barrier, and ``note`` says why."""
        try:
            self._bind(node)
            node.rule = self
            self.check(node)
        except (TypeError, SignatureError) as error:
            node.rule, node.operands, node.operand_names = None, (), ()
            node.note = f"rule {self.name!r} does not fit this call: {error}"
        except SpeedupError:
            raise
        except Exception as error:
            raise RuleError(f"rule {self.name!r} raised at {node.label} ({node.where}): {error!r}") from error

    def check(self, node: Node) -> None:
        """Raise SignatureError for a call that the rule cannot speak for (override; the default binds the axes)."""
        _ = node.layout

    def _bind(self, node: Node) -> None:
        held = {name: node.tensors[number] for name, number in node.attributes.items()}
        if node.module is None and self._parameters is not None:
            bound = self._parameters.bind(*node.args, **node.kwargs)
            bound.apply_defaults()
            node.arguments = dict(bound.arguments)
            names = self.operands or tuple(node.arguments)[: len(parse(self.axes).inputs)]
            node.operand_names = names
            node.operands = tuple(self._operand(node, node.arguments.get(n), n) for n in names)
            return
        free = list(node.tensors[: len(node.tensors) - len(held)])
        if not self.operands:
            node.operands = tuple(free)
            node.operand_names = tuple(str(i) for i in range(len(free)))
            return
        operands: list[Value | None] = []
        for name in self.operands:
            known = held.get(name)
            is_attribute = node.module is not None and hasattr(node.module, name)
            operands.append(known if known is not None or is_attribute else (free.pop(0) if free else None))
        node.operands, node.operand_names = tuple(operands), self.operands

    @staticmethod
    def _operand(node: Node, argument: Any, name: str) -> Value | None:
        if isinstance(argument, Ref):
            return node.tensors[argument.number]
        if argument is None:
            return None
        raise TypeError(f"argument {name!r} is no tensor")

    def rebind(self, node: Node, changed: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call with some of them replaced, by their names in ``call``."""
        assert self._parameters is not None
        bound = self._parameters.bind(*node.args, **node.kwargs)
        for name, value in changed.items():
            bound.arguments[name] = value
        return bound.args, bound.kwargs

    # -- inference ------------------------------------------------------------------------------------------------

    def infer_from_weight(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        """Facts that follow from the masks of the weights alone."""
        return flow.from_weight(self, node, facts)

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        """Facts that follow from what is known of the input."""
        return flow.from_input(self, node, facts)

    def infer_from_output(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        """Facts that follow from what is unused of the output."""
        return flow.from_output(self, node, facts)

    def evaluate(self, node: Node, arrays: Sequence[Floats | None]) -> Sequence[Floats] | None:
        """The outputs for constant operands, to be right wherever all operands are constant.

        Args:
            arrays: float64 per operand, broadcasting to its shape; None where the operand is missing.

        Returns:
            float64 per output, broadcasting to its shape; None when the outputs cannot be told.
            By default the call itself is run.
        """
        return flow.run_on_constants(node, arrays)

    def uniform(self, node: Node) -> bool:
        """Whether a constant that is the same along the mixed axes comes out the same along them (no zero padding)."""
        return True

    def averaging(self, node: Node) -> bool:
        """Whether ``averages`` holds for this call (override where it depends on the arguments)."""
        return self.averages or bool(self.indices)  # one chosen entry is a mean with one weight

    def constrain(self, node: Node, keep: NodeKeep) -> None:
        """Grow the keep sets of a node's operands and outputs until the call can be made on what is kept."""
        tie.constrain(self, node, keep)

    def derived(self, node: Node) -> set[int]:
        """Operands whose keep sets follow from the others: weights that this call alone reads."""
        return tie.derived_operands(node)

    def derive(self, node: Node, k: int, sets: Sequence[Bools]) -> Bools:
        """The keep set of a derived operand, given those of the others."""
        return tie.derive(node, k, sets)

    def rigid(self, node: Node, rigid: Sequence[Sequence[bool]]) -> list[list[bool]]:
        """Which axes of the outputs can never lose an index, given the same for the operands."""
        return tie.rigid_outputs(node, rigid)

    def fits(self, node: Node, keep: Sequence[Bools], call: Node | None = None) -> bool:
        """Whether the call on the kept entries is well-formed and gives the kept outputs.

        Args:
            keep: what is kept of the operands, then of the outputs.
            call: the call as the small model really makes it, once that is known.
        """
        return True

    def arrange(
        self, node: Node, keep: Sequence[Bools], orders: Sequence[Orders], call: Node | None = None
    ) -> Sequence[Orders] | None:
        """The order in which what is left of the operands and outputs stands; None where the call cannot be made.

        A rule whose ``replace`` looks at positions cannot say what becomes of another order: override this method to
        allow it (``speedup.order.along_names``).

        Args:
            keep: what is kept of the operands, then of the outputs.
            orders: by axis, where what is left of an operand does not stand as it stood before; nothing of outputs.
            call: the call as the small model really makes it, once that is known.
        """
        if not self.fits(node, keep, call):
            return None
        if not any(orders):
            return orders
        plain = node.module is None or type(self).replace is Rule.replace
        return along_names(node, keep, orders) if plain else None

    def folds(self, node: Node) -> bool:
        """Whether the call is a contraction, whose weights can take up removed constants."""
        return bool(node.layout.contracted)

    def refit(self, node: Node, keep: NodeKeep) -> Mapping[str, torch.Tensor]:
        """New contents, at full size, of parameters whose meaning depends on what goes of the others (override).

        Only of operands that this call alone reads.
        """
        return {}

    def resize(self, node: Node, keep: Sequence[Bools]) -> Mapping[str, Any]:
        """Arguments (by their names in ``call``) that the smaller call has and the original one has not (override).

        A number that the original call leaves out, for its default is made of a size, is added to the call in the
        source, if it can be given by keyword. ``fits`` must say that the call does not fit as long as it is missing.

        Args:
            keep: what is kept of the operands, then of the outputs; ``speedup.kept_shape`` gives the new shapes.
        """
        return {}

    def multiply_accumulates(self, node: Node, shapes: Sequence[tuple[int, ...] | None]) -> int:
        """Multiply-accumulate operations of the call at these shapes (operands, then outputs)."""
        return flow.multiply_accumulates(node, shapes)

    # -- replacement ----------------------------------------------------------------------------------------------

    def replace(self, node: Node, keep: Kept) -> nn.Module:
        """The smaller module: a copy of the module without its weights, with new tensors and sizes put in."""
        assert node.module is not None
        module = shell_of(keep.module)
        for name, tensor in keep.tensors.items():
            module.register_parameter(name, tensor) if isinstance(tensor, nn.Parameter) else module._buffers.update(
                {name: tensor}
            )
        for attribute, names in self.sizes.items():
            if hasattr(module, attribute):
                setattr(module, attribute, keep.size(names))
        return module
