"""Running the model under the recorder: the modes that feed it, and the graph that comes out."""

from __future__ import annotations

import contextlib
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from speedup import walk
from speedup.deferred import Deferred
from speedup.errors import TraceError
from speedup.expand import Expansion, expand
from speedup.graph import Graph
from speedup.masking import Masking
from speedup.node import Node
from speedup.registry import Registry
from speedup.trace.above import called_above
from speedup.trace.calls import listening
from speedup.trace.lasting import hold, is_repeated, left_over
from speedup.trace.making import Ops
from speedup.trace.meta import made_there
from speedup.trace.number import number_of
from speedup.trace.outputs import later, plain_leaves, tensors_in
from speedup.trace.reading import EndlessError
from speedup.trace.recorder import Recorder, Watch
from speedup.trace.sandbox import ordinary, undisturbed
from speedup.trace.shapes import Shapes
from speedup.trace.source import see_through
from speedup.trace.standing import Standing


class _Underneath(Ops):
    """Sees every ATen op; those outside a recorded call become barriers."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = recorder

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        recorder = self.recorder
        maker = recorder.maker
        maker.op_count += 1
        if getattr(func, "_schema", None) is not None and func._schema.is_mutable:
            maker.written.save((args, kwargs))
        if recorder.open_calls:
            result = func(*args, **kwargs)
            if isinstance(result, torch.Tensor):
                maker.inside.add(result.dtype)
            return result
        return recorder.record(func, None, args, kwargs, lambda: func(*args, **kwargs))


def uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Compiled models run eagerly, for their calls to be seen; nothing to do where nobody has loaded the compiler."""
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    eager: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return eager


@contextlib.contextmanager
def versioned(model: nn.Module) -> Iterator[None]:
    """Tensors that are made in inference mode do not say when they are written into, so code that asks for it (as a
    decorator of forward, say) runs without gradients and no more: these are off anyway."""
    kind, own = torch.inference_mode, {n: vars(torch.inference_mode)[n] for n in ("__enter__", "__exit__")}
    with ordinary(model):
        kind.__enter__, kind.__exit__ = lambda self: None, lambda self, *raised: None  # type: ignore[method-assign]
        try:
            yield
        finally:
            for name, method in own.items():
                setattr(kind, name, method)


def trace(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    registry: Registry,
    log: list[list[torch.Tensor]] | None = None,
    substitutes: Mapping[int, type[nn.Module]] | None = None,
    watch: Watch | None = None,
    answers: Sequence[bool] | None = None,
    masking: Masking | None = None,
    compared: Graph | None = None,
    shapes: Shapes | None = None,
    before: int = 0,
    until: Callable[[Node], bool] | None = None,
    stands: bool = False,
    resumed: Standing | None = None,
    deferred: Deferred | None = None,
) -> Graph:
    """Run the model once and record what it does. Call it inside ``sandbox``.

    The inputs are copied first, so that a model that writes into them leaves the caller's alone; what the run changes
    of the model is put back after it.

    Args:
        log: filled with copies of every node's outputs, when given.
        substitutes: modules (by identity) to be recorded as one call of the type that they stand for.
        answers: the first truth values that Python is given where it asks data of the input for one, whatever the
            data say. None makes such a question a ``Branch``.
        masking: the masks of the parameters; none where the model is masked already, or small.
        compared: another run of the model, large or small, which this one is only compared with: the same modules are
            calls, and of them places and what their rules say are not noted.
        shapes: what calls of other runs gave, where the model is on meta.
        before: how often the model is called before the call that is recorded.
        until: says of a call whether it is the last one that is recorded. The run goes on to its end, on data as they
            are, and with parameters that are not masked.
        stands: whether to keep what stands at the first call that looks for places, for other runs on the same input.
        resumed: what such a run has kept: it is ``compared``.
        deferred: tensors of a small model that get their numbers when a module is called that holds them.
        watch: sees every call and says what it gives; its ``got``, if there, is filled as ``log`` is.

    Raises:
        TraceError: the model returns something that makes its tensors later.
        whatever the model raises, with ``speedup_trace``: the nodes recorded so far and the call under way.
    """
    masking = masking if masking is not None else Masking(model)

    def once() -> Graph:
        but = deferred.buffers if deferred is not None else ()
        with versioned(model), undisturbed(model, but), masking.run(), contextlib.ExitStack() as written:
            for _ in range(before):
                called(written)
            # The calls before may have left other modules than the model had.
            with walk.afresh() if before else contextlib.nullcontext():
                return called(written)

    def called(written: contextlib.ExitStack) -> Graph:
        own_args, own_kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs))
        expanded = expand(model, registry)
        see_through({kind.forward.__code__.co_filename for r in expanded.values() for kind in r.forwards.values()})
        recorder = Recorder(model, registry, substitutes, masking)
        recorder.above, recorder.deferred = called_above(model, registry), deferred
        recorder.reading.answers, recorder.until = answers, until
        recorder.seeking.standing, recorder.seeking.resumed = Standing() if stands else None, resumed
        recorder.maker.place, recorder.maker.shapes = made_there(model), shapes
        if compared is not None:
            recorder.compared, recorder.claims = True, dict(compared.claims)
            recorder.factors.expected = compared.nodes
        recorder.watch, recorder.log = watch, log if watch is None else watch.got
        written.callback(recorder.maker.written.put_back)
        return _run(model, own_args, own_kwargs, recorder, expanded)

    try:
        graph = once()
    except Exception:
        if not masking.interrupted:
            raise
    if masking.interrupted:  # whatever the model's code made of that
        masking.whole, masking.interrupted = True, False
        if log is not None:
            log.clear()
        graph = once()
    if compared is None and graph.replaced:
        try:
            again = trace(
                model, args, kwargs, registry, None, substitutes, None, graph.answers, masking, graph, None, 1
            )
            graph.lasts = is_repeated(graph, again)
        except Exception:  # whatever the model says to a second call
            masking.interrupted = graph.lasts = False
        if not graph.lasts:
            hold(graph)
    return graph


def _run(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    recorder: Recorder,
    expanded: Mapping[str, Expansion],
) -> Graph:
    inputs, tensors = [], recorder.tensors
    reading, seeking = recorder.reading, recorder.seeking
    for tensor in tensors_in((args, kwargs)):
        value = tensors.new(tensor, "input")
        recorder.from_input.add(value)
        tensors.track(tensor, value)
        inputs.append(value)
    recorder.underneath = _Underneath(recorder)
    try:
        with (
            uncompiled(),
            recorder.underneath,
            listening(recorder),
        ):
            result = model(*args, **kwargs)
        if reading.lends:
            result = pytree.tree_map(number_of, result)
    except Exception as error:
        if not isinstance(error, EndlessError) or recorder.telling.told is None or reading.branch is None:
            error.speedup_trace = (recorder.nodes, recorder.maker.current)  # type: ignore[attr-defined]
            raise
        result = None  # of what comes behind a branch nothing is known anyway
    outputs, reference = [], []
    returned = list(tensors_in(result))
    recorder.masking.mask(returned)  # a parameter, say
    for tensor in returned:
        outputs.append(tensors.value_of(tensor))
        reference.append(tensor.detach().clone())
    if lazy := later(result):
        raise TraceError(f"the model returns a {lazy}, which makes its tensors after forward has ended; return a tuple")
    # What the model wrote into inputs, or put into lists and dicts that it was given, is there for its caller.
    given = [tensors.value_of(t) for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    outputs += [v for v in given if v.kind != "input"]
    outputs += left_over(tensors, outputs)
    recorder.claim_again()
    for value in outputs:
        value.is_output = True
    calls: dict[int, list[Node]] = defaultdict(list)
    for node in recorder.nodes:
        if node.module is not None:
            node.siblings = calls[id(node.module)]
            calls[id(node.module)].append(node)
    return Graph(
        recorder.nodes,
        tensors.values,
        inputs,
        outputs,
        reference,
        frozenset(recorder.from_input),
        reading.branch,
        tuple(reading.asked) if reading.answers is not None else None,
        expanded,
        plain_leaves(result),
        frozenset(recorder.asking),
        frozenset(recorder.asking_code),
        frozenset(recorder.dtypes),
        recorder.masking,
        recorder.passed,
        claims=recorder.claims,
        seeking=seeking.first,
        extent=recorder.extent,
        standing=seeking.standing if seeking.first is not None else None,
    )
