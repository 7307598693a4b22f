"""A plan that was found and checked: what it says, and how it is applied, to a model or to a checkpoint."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from speedup import walk
from speedup.atomic import replacing
from speedup.build import Parts
from speedup.collector import rarely_collected
from speedup.commit import Transaction
from speedup.distributed import is_spread
from speedup.errors import CheckError, InputError, SpeedupError
from speedup.fast.channels_last import channels_last as reformat
from speedup.fast.fuse import fused
from speedup.graph import Graph
from speedup.keep import KeepSets
from speedup.masking import Masking, memory_of
from speedup.masks import LoadedMasks, Prepared
from speedup.registry import Registry
from speedup.report import Report, explain, summarize
from speedup.store.compaction import Compaction
from speedup.store.record import note
from speedup.store.through import apply_checkpoint
from speedup.trace.meta import on_meta
from speedup.training.follow import follow
from speedup.training.transition import Transition
from speedup.transfer import apply_spread, fill
from speedup.verification import compare, effects_on, random_inputs, run

log = logging.getLogger("speedup")


class Plan:
    """What will go from a model, and why the rest stays. Made by ``speedup.plan``.

    Attributes:
        model: the model that was planned for, unchanged until ``apply``.
        report: parameters, MACs and layers before and after, and the reasons for what stays. Called with a path,
            ``plan.report("report.html")``, it writes itself as a page.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        keeps: KeepSets,
        parts: Parts,
        inputs: tuple[tuple[Any, ...], dict[str, Any]],
        masks: LoadedMasks,
        rules: Registry,
        again: Callable[[nn.Module], Plan],
    ) -> None:
        self.model = model
        self.graph = graph
        self.keeps = keeps
        self.report: Report = summarize(model, graph, keeps, parts)
        self._parts: Parts | None = parts
        self._paths = tuple(parts.modules)
        self._shapes = _small_shapes(graph, parts)
        self._state = _state_of(model)
        self._inputs = inputs
        self._masks = masks
        self._rules = rules
        self._again = again

    @rarely_collected
    def apply(
        self,
        model: nn.Module | None = None,
        *,
        verify: bool = False,
        optimizer: Any = None,
        ema: Any = None,
        fuse: bool = False,
        channels_last: bool = False,
    ) -> nn.Module:
        """Make the model smaller, in place, and return it.

        Gradients are cut with their parameters.

        Args:
            model: another instance of the planned model (a deep copy, say), with weights of its own; by default the
                planned model itself. It is planned and checked with the same masks and input; not so one whose
                parameters are spread over processes (``DTensor``): each of these that changes is gathered, cut and
                spread again, one at a time.
            verify: compare masked and small model on random inputs and other batch sizes too (see ``speedup.verify``)
                before the change is kept.
            optimizer: the optimizer of the model, or a tuple of several: its parameters are exchanged, and their state
                (momentum, moments) is cut with them.
            ema: an averaged copy of the model, or a tuple of several, to be cut with it: a module (also one that holds
                the copy as ``.module``, as ``torch.optim.swa_utils.AveragedModel`` does), a dict ``{name: tensor}`` or
                a list of tensors in the order of ``model.parameters()``.
            fuse: for a model that only infers: batch norms in eval mode go into the weights of their neighbours, and
                what does nothing then (dropout) goes too. Layer norms that count what was removed become plain ones,
                where the layers around them can do it. ``report.fusing`` says what went, and why the rest stays.
            channels_last: bring the weights of convolutions of images into the memory format of that name. The numbers
                and the shapes stay; ``report.channels_last`` names the weights.

        Raises:
            InputError: the optimizer or the averaged copy does not belong to the model, or cannot be cut; or they are
                given together with ``fuse``.
            SpeedupError: something failed. In either case the model, the optimizer and the copy are as they were.

        Example:
            >>> plan.apply(optimizer=optimizer, ema=averaged)
        """
        if model is not None and model is not self.model and is_spread(model):
            if verify or fuse or channels_last or optimizer is not None or ema is not None:
                raise InputError("verify, optimizer, ema, fuse and channels_last are for models that are in one place")
            self._check_open()
            return apply_spread(self, model)
        if model is not None and model is not self.model:
            return self._again(model).apply(
                verify=verify, optimizer=optimizer, ema=ema, fuse=fuse, channels_last=channels_last
            )
        if fuse and (optimizer is not None or ema is not None):
            raise InputError("fuse=True is for models that only infer: it goes with neither optimizer= nor ema=")
        if verify and self.keeps.drop:
            raise InputError("verify=True cannot hold with constants='drop': the outputs change")
        if (verify or fuse) and on_meta(self.model):
            raise InputError("verify and fuse need the numbers of the model, which is on the meta device")
        self._check_open()
        prepared = Prepared(self.model, self._masks)
        transaction = Transaction(self.model, cast(Parts, self._parts))
        try:
            transition = Transition(self.model, self.keeps, self._masks.parameters)
            cases = random_inputs(self._inputs, (1, 3), 2, 0) if verify else {}
            masking = Masking(self.model, self._masks.parameters if verify else None, whole=True)
            wanted = run(self.model, cases, masking) if verify else {}
            moved = effects_on(self.model, cases, wanted, masking) if verify and self.graph.effects else None
            transaction.apply()
            effects = self.graph.effects
            if fuse:
                reference = None if self.keeps.drop else self.graph.reference
                self.report.fusing = fused(self.model, self._inputs, self._rules, transaction, reference, effects)
            if channels_last:
                self.report.channels_last = reformat(self.model, self._inputs, self._rules, transaction, effects)
            if verify:
                report = compare(wanted, run(self.model, cases), effects=moved)
                if not report:
                    raise CheckError(f"the small model does not give the same answers, nothing was changed:\n{report}")
            prepared.finish(transaction.saved)
            note(transaction, self.report, "drop" if self.keeps.drop else "exact")
            follow(transition, transaction, optimizer, ema)
        except BaseException:
            transaction.undo()
            prepared.undo()
            raise
        self._parts = None
        log.info("applied: %s", self.report.headline)
        return self.model

    def apply_checkpoint(self, src: str | os.PathLike[str], dst: str | os.PathLike[str]) -> Compaction:
        """Make a checkpoint smaller, a tensor at a time: for models that are larger than memory.

        ``src`` holds safetensors: ``model.safetensors``, or shards with their ``model.safetensors.index.json``, under
        the names of the model's parameters. In ``dst`` are then shards of the same names with the index, copies of all
        other files but weights, and ``speedup.json``, so that ``speedup.load(model, dst)`` gives the small model. Types
        stay as they are in ``src``. The model of the plan stays as it is.

        A run that was interrupted goes on where it was when it is started again: shards that are done, and whose
        sha256 is right, are not made again (``speedup-progress.json``).

        Args:
            src: the folder of the checkpoint; it is only read.
            dst: a new or empty folder, or that of an interrupted run.

        Returns:
            what was done; printed, it says which sizes changed.

        Raises:
            StorageError: the checkpoint does not fit the model, is damaged, or cannot be cut exactly; the folder holds
                something else. All of this is found before anything is written.
            InputError: the plan was made with weights in memory.
            OSError: a folder cannot be read, or written to.

        Example:
            >>> with torch.device("meta"):
            ...     model = Net()
            >>> plan = speedup.plan(model, torch.zeros(1, 16, dtype=torch.long), masks)
            >>> print(plan.apply_checkpoint("big", "small"))
        """
        self._check_open()
        return apply_checkpoint(self, Path(src), Path(dst))

    def fill(self, small: nn.Module, big: nn.Module) -> nn.Module:
        """Give a model that has this plan in it the numbers of one that has not, a module at a time; the small model.

        For models sharded by ``fully_shard``, whose parameters cannot change their sizes in place: make the small
        model on the meta device, shard it, give it memory, and fill it. Every process calls it.

        Args:
            small: a model that the plan was applied to.
            big: an original one with its numbers. Either may be spread over processes, or not.

        Raises:
            InputError: one of them is another model, or has no memory; nothing was changed.

        Example:
            >>> small = plan.apply()  # on the meta device
            >>> fully_shard(small)
            >>> plan.fill(small.to_empty(device="cuda"), big)
        """
        fill(self, small, big)
        return small

    def _check_open(self) -> None:
        if self._parts is None:
            raise SpeedupError("this plan was applied already: the model is small; plan again with new masks")
        if self._state != _state_of(self.model):
            raise SpeedupError(
                "the model was changed after it was planned (trained, loaded or pruned further): plan again"
            )

    def explain(self, name: str | None = None) -> str:
        """Why masked indices of a module or parameter stay; of the whole model when no name is given."""
        return explain(self.report, name)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        return self.report.to_dict()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON: what is kept of every parameter, and the reasons for what stays."""
        with replacing(Path(path)) as (file,):
            file.write_text(json.dumps(self.to_dict(), indent=1), encoding="utf-8")

    def __str__(self) -> str:
        return str(self.report)

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


def _small_shapes(graph: Graph, parts: Parts) -> dict[str, tuple[int, ...]]:
    """The shapes of the small model's parameters and buffers, by all their names."""
    shapes = {n: v.shape for v in graph.sources for n in v.names if n.rpartition(".")[0] not in parts.modules}
    for path, made in parts.modules.items():
        own = {**made._parameters, **made._buffers}
        shapes.update({f"{path}.{n}" if path else n: tuple(t.shape) for n, t in own.items() if t is not None})
    return shapes


def _state_of(model: nn.Module) -> list[tuple[int, int, int | None]]:
    """Changes when a parameter or buffer is written to or replaced."""
    found = walk.tensors(model)
    ordinary, strided = (torch.Tensor, nn.Parameter), torch.strided
    # 0 for the place of a type of tensor that has none of its own.
    places = [t.data_ptr() if (type(t) in ordinary and t.layout is strided) or memory_of(t) else 0 for t in found]
    return list(zip(map(id, found), places, walk.versions_of(found), strict=True))
