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

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from speedup import flow, tie, walk
from speedup.arrays import Bools, Floats
from speedup.axes import parse
from speedup.cost import multiply_accumulates
from speedup.errors import RuleError, SignatureError, SpeedupError
from speedup.facts import Fact
from speedup.groups.labels import Labels
from speedup.groups.tying import by_signature
from speedup.layout import Layout
from speedup.new_sizes import new_size
from speedup.node import Node, Ref, Value
from speedup.order import Orders, along_names
from speedup.parameters import Parameters
from speedup.shell import put, shell_of
from speedup.trial import run_on_constants

if TYPE_CHECKING:
    from speedup.build import Kept
    from speedup.fast.plain import Plain
    from speedup.instead import Instead
    from speedup.known import NodeFacts
    from speedup.node_keep import NodeKeep

_FIELDS = (
    "name",
    "modules",
    "functions",
    "axes",
    "call",
    "also",
    "operands",
    "sizes",
    "annihilates",
    "bias",
    "shift",
    "averages",
    "counts",
    "scales",
    "linear",
    "keeps_zeros",
    "places",
    "seeks",
    "layout_only",
    "writes_weights",
    "indices",
    "stepwise",
    "makes",
)


class Rule:
    """How facts and keep sets pass one kind of layer, and how to make it smaller.

    Subclass it or pass the attributes as keyword arguments.

    Attributes:
        name: how reports call the rule.
        modules: module types that it claims (and their subclasses, as far as they change nothing of the behaviour; of
            one that does something before or after ``super().forward(...)``, that call, if the rule claims no
            functions and makes no other forward).
        functions: torch functions that it claims; ``speedup.variants`` lists all spellings of one. Custom operators by
            name (``"torch.ops.mylib.my_op"``): their library need not be loaded.
        call: parameters of the functions, written like a Python parameter list ("input, weight, bias=None"); left out,
            every tensor argument is an operand, in order.
        also: other names by which functions take a parameter of ``call``: ``{"size": "sizes", "shape": "sizes"}``.
        operands: names of the operands in the order of ``axes``; by default the first ones of ``call``. For a module a
            name is an attribute that holds a tensor, else the next tensor argument of its forward.
        axes: the signature, see ``speedup.axes``; override ``signature`` where it depends on the call.
        sizes: integer attributes of the module, or arguments of the function, that count axes:
            ``{"in_channels": "g i"}``.
        annihilates: ``{a: (b, …)}``: where operand ``a`` is 0 the result does not depend on operands ``b``. Among the
            operands of a contracted axis this holds by itself.
        bias: the operand that is added to a contraction and may take up folded constants.
        shift: the operand that is subtracted from the input before anything else, which may take up constants that
            the layer in front has no bias for.
        averages: whether an output entry is a weighted mean of entries of the first operand, with the same weights
            (of sum 1) for all channels: an average pool, a resize, or just the entry itself. Along a contracted axis
            it is the mean of all entries: zeros may go, and what the smaller call gives is multiplied by the share
            that is left, in the code of the model.
        counts: whether what the call makes of constants depends on how many entries it reads together (a sum, a
            softmax). Such a constant is believed where that number is the same at other sizes of the input.
        scales: whether an output entry is the entry of the first operand at the same place, times a number plus a
            number, which the other operands alone make: a batch norm in eval mode, dropout, the identity.
        linear: operands of a pointwise call in each of which it is linear, apart from something that is added, while
            the others are held: the two of a product, the numerator of a quotient. Affine facts pass it.
        keeps_zeros: whether 0 comes out where all operands that are no indices (whole numbers, truth values) are 0 all
            along the mixed axes: a Fourier transform, a scatter. Of other constants nothing is said, nor of whole
            numbers that come out, such as the places of maxima.
        places: arguments that are no operands, and whose tensors only say where entries go or how many there are, such
            as the amounts of a padding: what ``evaluate`` says of constants is right whatever they are.
        seeks: whether the call gives the places of what is not 0 in its first argument. How many there are is for the
            data to say, and layers that are called only where there are some are looked at as if all were there.
        layout_only: whether the call gives its tensor as it is, or a copy of it in another order in memory. It is not
            recorded, since smaller tensors may need a copy where the original ones do not.
        writes_weights: the argument that, where it is given, has a call change the weights that it reads, such as the
            ``max_norm`` of an embedding. They are put back after each run.
        indices: operands that only choose among the entries of the first operand along its mixed axes, for all
            channels alike: what is the same all along these axes comes out, whatever the indices are.
        stepwise: whether torch makes the call in many steps where tensors have no contents (on the meta device), as
            recurrences over time: such models run with contents, which takes less time.
        origin: the plugin that gave the rule, such as ``'conv' (speedup-plugin-conv 0.1.0)``; set when it is loaded.
        makes: classes that ``replace`` gives modules beside their own: kinds of ``speedup.Overlay``, or module types;
            and functions that ``instead`` gives. A saved model names them, and only what an installed rule makes is
            made again when it is loaded.
    """

    name: str = ""
    modules: tuple[type[nn.Module], ...] = ()
    functions: tuple[Callable[..., Any] | str, ...] = ()
    call: str | None = None
    also: Mapping[str, str] = {}
    operands: tuple[str, ...] = ()
    axes: str = ""
    sizes: Mapping[str, str] = {}
    annihilates: Mapping[str, tuple[str, ...]] = {}
    bias: str | None = None
    shift: str | None = None
    averages: bool = False
    counts: bool = False
    scales: bool = False
    linear: tuple[str, ...] = ()
    keeps_zeros: bool = False
    places: tuple[str, ...] = ()
    seeks: bool = False
    layout_only: bool = False
    writes_weights: str = ""
    indices: tuple[str, ...] = ()
    stepwise: bool = False
    makes: tuple[Callable[..., Any], ...] = ()
    origin: str = ""
    moves = False  # whether outputs are copies of input entries, and arguments their sizes and positions (Movement)

    def __init__(self, **fields: Any) -> None:
        for key, value in fields.items():
            if key not in _FIELDS:
                raise TypeError(f"{type(self).__name__} has no field {key!r}; fields: {', '.join(_FIELDS)}")
            setattr(self, key, value)
        if not self.name:
            self.name = type(self).__name__ if type(self) is not Rule else self.axes
        if self.axes:
            parse(self.axes)  # a fault in its text is found at once
        self._parameters = Parameters(self.call, self.also) if self.call is not None else None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    @property
    def label(self) -> str:
        """How messages call the rule: its name, and the plugin that gave it with its version."""
        return f"rule {self.name!r}" + (f" of plugin {self.origin}" if self.origin else "")

    # -- what a call is -------------------------------------------------------------------------------------------

    def claims(self, module: nn.Module) -> bool:
        """Whether the rule claims a module by its structure, for types that cannot be imported (override).

        Called for every module of the model whose type no rule claims, when it is first called. Two rules that claim
        one module are a `PluginConflictError`.

        Args:
            module: as it is in the model; look at it only.

        Returns:
            whether calls of the module belong to this rule; by default no.

        Example::

            def claims(self, module):
                return type(module).__name__ == "LlamaRMSNorm" and hasattr(module, "variance_epsilon")
        """
        return False

    def may_claim(self, kind: type[nn.Module], held: frozenset[str]) -> bool:
        """Whether ``claims`` is to be asked at all for modules of a type (override, where that saves time).

        Models have hundreds of modules of a few types, and there are dozens of rules with ``claims``. The answer is
        remembered for all modules of the type that hold tensors of these names.

        Args:
            kind: the type of the module.
            held: the names of its own parameters and buffers, those that are None included.

        Returns:
            False only where ``claims`` says no to every such module; by default True.

        Example::

            def may_claim(self, kind, held):
                return kind.__name__ == "LlamaRMSNorm" and "weight" in held
        """
        return True

    def in_parts(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Callable[..., Any] | None:
        """What computes a call of a function in calls that rules know, where no signature can say it (override).

        Called before a call of a function that the rule claims is recorded. What it gives runs in the place of the
        function whenever the model is traced, and its calls are recorded; the small model goes on calling the function.

        Args:
            function: as it was called, one of ``functions``.
            args: of the call; of tensors look at types and shapes only.
            kwargs: of the call, in the same way.

        Returns:
            what takes the same arguments and gives the same, up to rounding, of which each call is made sure; by
            default None: the call is one node.

        Example, a product of several matrices::

            def in_parts(self, function, args, kwargs):
                return lambda tensors: functools.reduce(torch.matmul, tensors)
        """
        return None

    def seek(self, args: tuple[Any, ...], found: Callable[[torch.Tensor], torch.Tensor]) -> tuple[Any, ...]:
        """Where a call looks for places of what is not 0 (override where that is not its first argument).

        How many there are is for the data to say. Code may leave out layers where there are none, so the model is run
        as if there were all, none, and some.

        Args:
            args: of the call.
            found: what the call is to look through instead of a tensor.

        Returns:
            the arguments with what is found in the place of what is looked through; by default that is the first one
            if the rule ``seeks``, else none.

        Example, a choice by a mask::

            def seek(self, args, found):
                return args[0], found(args[1])
        """
        return (found(args[0]), *args[1:]) if self.seeks else args

    def signature(self, node: Node) -> str:
        """The axes signature of one call (override where it depends on shapes or arguments; by default ``axes``).

        Called when the call is recorded, and whenever it is bound to shapes. The same call must get the same signature.

        Args:
            node: the call; its operands are known, ``node.arg(name)`` gives an argument or an attribute of the module.

        Raises:
            SignatureError, TypeError: the rule does not speak for this call, which becomes a barrier with this reason.

        Example::

            def signature(self, node):
                return f"n c ~{node.operands[0].ndim - 2} -> n c ~{node.outputs[0].ndim - 2}"
        """
        return self.axes

    @property
    def has_signature(self) -> bool:
        """Whether it says which axes belong together; a rule without one answers each question itself."""
        return bool(self.axes) or type(self).signature is not Rule.signature

    def layout(self, node: Node) -> Layout:
        """The signature bound to the shapes of one call; ``node.layout`` has it computed once.

        Args:
            node: the call.

        Raises:
            SignatureError: it does not fit the shapes.
        """
        inputs = [None if v is None else v.shape for v in node.operands]
        return parse(self.signature(node)).bind(inputs, [v.shape for v in node.outputs])

    def held(self, module: nn.Module) -> dict[str, torch.Tensor]:
        """The tensors of a module that are operands, by attribute name (override where they are no plain attributes).

        Called when the module is called in the traced run. These tensors are cut together with the module, and reach
        ``replace`` as ``keep.tensors``.

        Args:
            module: as it is in the model.

        Returns:
            by default every tensor that the module has as an attribute with the name of an operand.
        """
        found: dict[str, torch.Tensor] = {}
        for name in self.operands:
            tensor = walk.attribute(module, name)
            if isinstance(tensor, torch.Tensor):
                found[name] = tensor
        return found

    def claim(self, node: Node) -> None:
        """Take a recorded call if its arguments fit; else it stays a barrier, and ``node.note`` says why.

        Called by the recorder for every call of a claimed op. There is no need to override it: see ``check``.

        Args:
            node: the call, whose operands are found here.

        Raises:
            RuleError: a method of the rule raised anything but ``TypeError`` and ``SignatureError``.
        """
        try:
            self.bind(node)
            node.rule = self
            self.check(node)
            axis = None if node.writes else self.sums_to_one(node)
            node.rows = None if axis is None else axis % node.outputs[0].ndim
        except (TypeError, SignatureError) as error:
            node.rule, node.operands, node.operand_names = None, (), ()
            node.note = f"{self.label} does not fit this call: {error}"
        except SpeedupError:
            raise
        except Exception as error:
            raise RuleError(f"{self.label} raised at {node.label} ({node.where}): {error!r}") from error

    def check(self, node: Node) -> None:
        """Refuse a call that the rule cannot speak for (override; by default the axes must fit the shapes).

        Called once when the call is recorded, after its operands are known.

        Args:
            node: the call.

        Raises:
            SignatureError: with the reason, in words for users; the call becomes a barrier.

        Example::

            def check(self, node):
                if node.arg("mode") != "nearest":
                    raise SignatureError("only the mode 'nearest' is known")
                super().check(node)
        """
        _ = node.layout

    def bind(self, node: Node) -> None:
        """Find the operands of a call among its tensors: ``node.operands`` and their names, and its arguments by name.

        Called by ``claim``, and for a call of large weights before it is made. There is no need to override it.

        Args:
            node: the call.

        Raises:
            TypeError: the arguments do not fit ``call``.
        """
        module, tensors, held = node.module, node.tensors, node.attributes
        if module is None and self._parameters is not None:
            node.arguments = self.arguments(node)
            names = self.operands or tuple(node.arguments)[: len(parse(self.axes).inputs)]
            node.operand_names = names
            node.operands = tuple([self._operand(node, node.arguments.get(n), n) for n in names])
            return
        free = list(tensors[: len(tensors) - len(held)])
        if not self.operands:
            node.operands = tuple(free)
            node.operand_names = tuple(str(i) for i in range(len(free)))
            return
        operands: list[Value | None] = []
        for name in self.operands:
            if name in held:
                operands.append(tensors[held[name]])
            elif free and (module is None or walk.attribute(module, name, walk.MISSING) is walk.MISSING):
                operands.append(free.pop(0))
            else:
                operands.append(None)
        node.operands, node.operand_names = tuple(operands), self.operands

    def arguments(self, node: Node) -> dict[str, Any]:
        """What a call of a function gives for each parameter of ``call``, defaults included.

        Args:
            node: the call.

        Raises:
            TypeError: it gives others, or too few.
        """
        assert self._parameters is not None
        return self._parameters.arguments(node.args, node.kwargs)

    @staticmethod
    def _operand(node: Node, argument: Any, name: str) -> Value | None:
        if isinstance(argument, Ref):
            return node.tensors[argument.number]
        if argument is None:
            return None
        raise TypeError(f"argument {name!r} is no tensor")

    def rebind(self, node: Node, changed: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call with some of them replaced, by their names in ``call``.

        Args:
            node: the call.
            changed: new arguments by name.

        Returns:
            positional and keyword arguments, tensors as ``Ref``.
        """
        assert self._parameters is not None
        return self._parameters.with_others(node.args, node.kwargs, changed)

    # -- inference ------------------------------------------------------------------------------------------------

    def infer_from_weight(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        """What the masks of the weights alone say about outputs and inputs (override to say more than the axes).

        Called when facts flow forward and again when they flow backward, until nothing new follows. A masked filter
        gives its bias, a masked column reads nothing. Ask ``facts.zero(k)`` for entries that masks made 0; a weight
        that happens to be 0 may be trained further.

        Args:
            node: the call; it must not be changed.
            facts: what is known of its operands and outputs, by number in the order of ``axes``: ``facts.mask(0)`` and
                ``facts.value(0)`` are the constants of the first operand, ``facts.unused(len(node.operands))`` is what
                nobody reads of the first output. Arrays are read-only, float64 or bool, and broadcast to the tensor:
                one axis for each of its axes, of full size or 1.

        Returns:
            facts by operand name, with arrays of the same kind: `Constant` and `Affine` for ``"output"``
            (``"output0"``, ``"output1"``, … of several), `Unused` for operands. An empty dict says nothing. Who knows
            more says more: what was returned once is returned again when ``facts`` grows.

        Raises:
            RuleError: by the engine, for an array of another shape or type, or a fact that is taken back.

        Example, a threshold that is never reached::

            def infer_from_weight(self, node, facts):
                never = np.isinf(facts.value(1))[None]  # of shape (c,), for an output of shape (n, c)
                return {"output": Constant(never, np.zeros(never.shape)), "input": Unused(never)}
        """
        return flow.from_weight(self, node, facts)

    def infer_from_input(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        """What is known of the inputs says about the outputs (override to say more than the axes).

        Called when facts flow forward, again whenever more is known of an operand.

        Args:
            node, facts: as for ``infer_from_weight``.

        Returns:
            facts by operand name, as for ``infer_from_weight``.

        Example, an op that passes its second operand on where the first is 0::

            def infer_from_input(self, node, facts):
                zero = facts.zero(0) & facts.mask(1)
                return {"output": Constant(zero, np.broadcast_to(facts.value(1), zero.shape))}
        """
        return flow.from_input(self, node, facts)

    def infer_from_output(self, node: Node, facts: NodeFacts) -> dict[str, Fact]:
        """What is unused of the outputs says about weights and inputs (override to say more than the axes).

        Called when facts flow backward, again whenever more is known to be unused.

        Args:
            node, facts: as for ``infer_from_weight``.

        Returns:
            facts by operand name, as for ``infer_from_weight``.

        Example, an op that reads channel c for output c only::

            def infer_from_output(self, node, facts):
                return {"input": Unused(facts.unused(1))}
        """
        return flow.from_output(self, node, facts)

    def evaluate(self, node: Node, arrays: Sequence[Floats | None]) -> Sequence[Floats] | None:
        """The outputs for constant operands (override where the call cannot be run on a few numbers).

        Called from ``infer_from_input`` of ops without contracted axes. It must be right wherever *all* operands are
        constant; elsewhere the result has no meaning. By default the call itself is run in float64, on tensors of the
        smallest shape that makes sense.

        Args:
            node: the call.
            arrays: float64 per operand, broadcasting to its shape; None where the operand is missing. Along an axis
                whose indices the call treats alike they may be several cases next to each other, more than there are
                indices: each is to come out as it would alone. (Where that is seen not to be so, the call is
                asked about them one by one.)

        Returns:
            float64 per output, broadcasting to its shape; None when the outputs cannot be told.

        Example, an op that takes a mean over its mixed axes, which leaves constants as they are::

            def evaluate(self, node, arrays):
                return [arrays[0]]
        """
        return run_on_constants(node, arrays)

    def uniform(self, node: Node) -> bool:
        """Whether a constant that is the same along the mixed axes comes out so (override where zeros are padded).

        Asked of contractions, before constants are said or folded into the bias.

        Args:
            node: the call.

        Returns:
            by default True. False where windows reach over a border of zeros: then only 0 comes out the same
            everywhere, and other constants are folded into a channel that stays.

        Example::

            def uniform(self, node):
                return node.arg("padding") == 0
        """
        return True

    def averaging(self, node: Node) -> bool:
        """Whether ``averages`` holds for this call (override where it depends on the arguments).

        Args:
            node: the call.
        """
        return self.averages or bool(self.indices)  # one chosen entry is a mean with one weight

    def scaling(self, node: Node) -> bool:
        """Whether ``scales``, where it is said, holds for this call in eval mode (override where that depends on it).

        Args:
            node: the call.
        """
        return self.scales

    def omit(self, node: Node) -> nn.Module | None:
        """What can stand in the place of a module that does nothing any more (override beside ``scales``).

        Called for models that only infer, when the weights of neighbours have taken up what the module did, or it did
        nothing from the start. List the type of what is returned in ``makes``, for such a model to be saved.

        Args:
            node: the call.

        Returns:
            a new module that gives back what it is given; by default None: the module stays.

        Example::

            def omit(self, node):
                return nn.Identity()
        """
        return None

    def plain(self, node: Node, facts: NodeFacts) -> Sequence[Plain]:
        """A call as a plainer one, which the layers in front of it and behind it make right (override for norms).

        Called for models that only infer.

        Args:
            node: the call, of a module that is called once.
            facts: what is known of the operands; what a parameter holds as 0 counts as masked.

        Returns:
            what it can be, one for each channel that may become the carrier; by default none: the module stays.

        Example, of a norm that needs the sum of the channels, of which the last one is 0::

            def plain(self, node, facts):
                last = node.operands[0].shape[1] - 1
                sums = np.arange(last + 1) < last
                return [Plain(WithSum(node.module), 1, last, sums.astype(float), np.zeros(last + 1))]
        """
        return ()

    def fixed(self, node: Node, module: nn.Module) -> nn.Module | None:
        """What can stand in the place of a module whose weights are all 0 (override for contractions with a bias).

        Called for models that only infer. List the type of what is returned in ``makes``, for such a model to be saved.

        Args:
            node: the call.
            module: a copy of the module, with all that comes out of it as its bias; it may be changed.

        Returns:
            a module that gives its bias in the shape of the output, also at other sizes of the input, and does not
            look at the input otherwise; by default None: the module stays.

        Example::

            def fixed(self, node, module):
                module.weight = None
                module.__class__ = overlaid(BiasAlone, type(module))
                return module
        """
        return None

    def constrain(self, node: Node, keep: NodeKeep) -> None:
        """Grow the keep sets until the call can be made on what is kept (override to keep more).

        Called whenever the keep set of an operand or output has grown, until none grows any more. By default operands
        that share a name keep the same along it, a weight keeps the product of what its input and output keep, and
        groups keep equal counts. Keep sets can only grow: ``keep.grow(k, mask, why, cause)``.

        Args:
            node: the call.
            keep: the sets so far, ``keep.sets[k]``, bool arrays that broadcast as facts do; ``keep.facts``; ``grow``.

        Example, an op that wants an even number of channels in pairs::

            def constrain(self, node, keep):
                super().constrain(node, keep)
                pairs = np.broadcast_to(keep.sets[0], (1, node.operands[0].shape[1])).reshape(-1, 2).any(1)
                keep.grow(0, np.repeat(pairs, 2)[None], "channels go in pairs", 0)
        """
        tie.constrain(self, node, keep)

    def tie(self, node: Node, labels: Labels) -> None:
        """Say which channels of operands and outputs are one (override beside ``constrain``, where that asks for more).

        Called by ``speedup.channel_groups``, which finds what can only go together before anything is masked.

        Args:
            node: the call.
            labels: the groups of channels so far; only ever joined or frozen.
        """
        try:
            by_signature(node, labels)
        except SignatureError:  # the rule has no axes: what it touches stays
            for value in node.values:
                if value is not None:
                    labels.freeze(value)

    def sums_to_one(self, node: Node) -> int | None:
        """The axis of the first output of ``node`` along which entries are not negative and sum up to 1, if any.

        Called once when the call is recorded. Override it for what makes such rows (softmax) and for what hands them
        on; see ``speedup.rows_of_one``.

        Args:
            node: the call.
        """
        return None

    def derived(self, node: Node) -> set[int]:
        """Operands whose keep sets follow from the others: weights that this call alone reads.

        Args:
            node: the call.

        Returns:
            numbers of operands; ``derive`` is asked about each of them.
        """
        return tie.derived_operands(node)

    def derive(self, node: Node, k: int, sets: Sequence[Bools]) -> Bools:
        """The keep set of a derived operand, given those of the others.

        Args:
            node: the call.
            k: the number of the operand.
            sets: of operands and outputs, bool arrays that broadcast as facts do.

        Returns:
            a bool array that broadcasts to the operand.
        """
        return tie.derive(node, k, sets)

    def rigid(self, node: Node, rigid: Sequence[Sequence[bool]]) -> list[list[bool]]:
        """Which axes of the outputs can never lose an index, given the same for the operands.

        Args:
            node: the call.
            rigid: per operand, for each of its axes.

        Returns:
            per output, for each of its axes. Axes of the model's inputs are rigid, and so are mixed axes.
        """
        return tie.rigid_outputs(node, rigid)

    def fits(self, node: Node, keep: Sequence[Bools], call: Node | None = None) -> bool:
        """Whether the call on the kept entries is well-formed and gives the kept outputs (override to ask for more).

        By default the arguments of a function that are among ``sizes`` must count what is kept: two groups of one
        channel have the shape of one group of two.

        Args:
            node: the call as it was recorded.
            keep: what is kept of ``node.values``: the operands, then the outputs.
            call: the call as the small model really makes it, once that is known.
        """
        if call is None or node.module is not None:
            return True
        given = {name: call.arguments.get(name) for name in self.sizes}
        return all(
            size == new_size(node, keep, self.sizes[name]) for name, size in given.items() if isinstance(size, int)
        )

    def arrange(
        self, node: Node, keep: Sequence[Bools], orders: Sequence[Orders], call: Node | None = None
    ) -> Sequence[Orders] | None:
        """The order in which what is left of the operands and outputs stands; None where the call cannot be made.

        A rule whose ``replace`` looks at positions cannot say what becomes of another order: override this method to
        allow it (``speedup.order.along_names``).

        Args:
            node: the call as it was recorded.
            keep: what is kept of ``node.values``: the operands, then the outputs.
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
        """Whether the call is a contraction, whose weights can take up removed constants.

        A rule of a contraction that says no must keep, in ``constrain``, or take up, in ``replace``, every constant of
        its input that is not 0.

        Args:
            node: the call.
        """
        return bool(node.layout.contracted)

    def refit(self, node: Node, keep: NodeKeep) -> Mapping[str, torch.Tensor]:
        """New contents, at full size, of parameters that mean something else once others lose entries (override).

        Called when the new tensors are made, before they are cut; for operands that this call alone reads.

        Args:
            node: the call.
            keep: the keep sets, which grow no more, and the facts.

        Returns:
            tensors of the old shape by operand name; by default none.
        """
        return {}

    def rescale(self, node: Node, keep: NodeKeep) -> Mapping[str, float]:
        """Numbers that parameters are multiplied with, once they have taken up constants (override).

        Args:
            node: the call.
            keep: the keep sets, which grow no more, and the facts.

        Returns:
            factors by operand name, for operands of which ``keep.takes(number)`` is true; by default none.
        """
        return {}

    def resize(self, node: Node, keep: Sequence[Bools]) -> Mapping[str, Any]:
        """Arguments (by their names in ``call``) that the smaller call has and the original one has not (override).

        A number that the original call leaves out, for its default is made of a size, is added to the call in the
        source, if it can be given by keyword. ``fits`` must say that the call does not fit as long as it is missing.

        Args:
            node: the call as it was recorded.
            keep: what is kept of the operands, then of the outputs; ``speedup.kept_shape`` gives the new shapes.
        """
        return {}

    def instead(self, node: Node, keep: NodeKeep) -> Instead | None:
        """Another function that the small model calls in the place of a function (override where no argument can say
        what is to be counted of what went).

        The call in the source is changed: to the function, which gets the arguments as they stand there, and the
        numbers by keyword. List the function in ``makes``, and claim it with a rule, so that the small model can be
        saved, and made smaller again. Where the source cannot be changed, what the call reads stays whole.

        Args:
            node: the call of a function as it was recorded.
            keep: the keep sets, which grow no more, and the facts.

        Returns:
            ``speedup.Instead(function, numbers)``; by default None: the same function is called.

        Example, a sum of squares that goes on counting what went::

            def instead(self, node, keep):
                gone = float((keep.facts.value(0) ** 2)[~keep.sets[0]].sum())
                return Instead(squares_and_more, {"more": gone}) if gone else None
        """
        return None

    def multiply_accumulates(self, node: Node, shapes: Sequence[tuple[int, ...] | None]) -> int:
        """Multiply-accumulate operations of the call at these shapes, for reports.

        Args:
            node: the call.
            shapes: of operands, then outputs; None for a missing operand.

        Returns:
            by default one per output entry and term of a contraction of two operands, else 0.
        """
        return multiply_accumulates(node, shapes)

    # -- replacement ----------------------------------------------------------------------------------------------

    def replace(self, node: Node, keep: Kept) -> nn.Module:
        """Make the smaller module (override where it holds more than tensors and integer sizes).

        Called once for every claimed module of which anything became smaller, after all keep sets are known. Functions
        have nothing to replace: their tensors are cut, and they are called as before.

        Args:
            node: the call.
            keep: ``keep.module``, the module that is replaced, which must not be changed; ``keep.tensors``, its new
                tensors by attribute name; ``keep.size("g o")``, the new size of an axis or of a product of axes;
                ``keep.sets`` and ``keep.shapes`` of operands and outputs; ``keep.facts``.

        Returns:
            a new module. By default a copy that shares everything with the old one but the new tensors and ``sizes``.

        Raises:
            RuleError: by the engine, if it is no module, or the old one itself.

        Example, a module with a name for each of its channels::

            def replace(self, node, keep):
                module = super().replace(node, keep)
                kept = np.broadcast_to(keep.sets[1], len(module.labels))
                module.labels = [label for label, stays in zip(keep.module.labels, kept) if stays]
                return module
        """
        assert node.module is not None
        module = shell_of(keep.module)
        parameters, buffers = module._parameters, module._buffers
        for name, tensor in keep.tensors.items():
            if name in buffers or type(tensor) is torch.Tensor or not isinstance(tensor, nn.Parameter):
                buffers[name] = tensor  # a parameter may be registered as a buffer
            elif name in parameters:
                parameters[name] = tensor
            else:
                setattr(module, name, tensor)  # a layer without a bias may hold None under its name
        for attribute, names in self.sizes.items():
            if attribute in module.__dict__ or hasattr(module, attribute):
                put(module, attribute, keep.size(names))
        return module


def says_nothing(self: Rule, node: Node, facts: NodeFacts) -> dict[str, Fact]:
    """The ``infer_from_weight`` of rules that say it all in the other two, and need not be asked.

    What is derived for inputs and outputs says what the masks of weights do, too: rules that only add to it are asked
    once where they are asked twice without this.

    Args:
        node, facts: as for ``Rule.infer_from_weight``.

    Returns:
        an empty dict.

    Example:
        >>> class Convolution(Rule):
        ...     infer_from_weight = says_nothing
        ...
        ...     def infer_from_input(self, node, facts):
        ...         return {**super().infer_from_input(node, facts), **at_borders(node, facts)}
    """
    return {}


def leaves_to_layout(node: Node, method: str) -> bool:
    """Whether the class of a call's rule has no method of its own by this name, and the call has its layout: then what
    ``Rule`` would answer follows from the layout, raises nothing, and can be had without asking."""
    return getattr(type(node.rule), method) is getattr(Rule, method) and "layout" in node.__dict__
