"""Planning: what can go from a model is found and checked without changing it.

The way of one mask: ``masks`` checks it, ``trace`` runs the masked model, ``infer`` spreads facts, ``keep`` finds what
must stay, ``build`` makes the smaller tensors and modules, ``check`` runs them, and ``Plan.apply`` puts them in.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from speedup.collector import rarely_collected
from speedup.drop import find_dropped
from speedup.errors import InputError
from speedup.inputs import resolve_inputs
from speedup.locking import UnsteadyError
from speedup.masks import LoadedMasks, Prepared, Source, fully_masked
from speedup.planned import Plan
from speedup.registry import Registry, default_registry
from speedup.solve import solve
from speedup.trace.meta import on_meta, to_meta

log = logging.getLogger("speedup")


@rarely_collected
def plan(
    model: nn.Module,
    dummy_input: Any,
    masks: str | os.PathLike[str] | Mapping[Any, Any] | LoadedMasks | None = None,
    *,
    source: Source = "auto",
    map_location: Any = None,
    registry: Registry | None = None,
    constants: Literal["exact", "drop"] = "exact",
) -> Plan:
    """Find out what can go from a model, without changing it.

    Args:
        model: the trained model.
        dummy_input: a tensor, a tuple of arguments, or a dict of keyword arguments that the model accepts.
        masks: ``{module: {parameter: 0/1 mask or None}}``, ``{parameter name: mask}``, the path of a file, ``"zeros"``,
            or None for those that the model itself carries; see ``speedup.masks.load``.
        source: where masks come from, if it is not to be detected.
        map_location: for reading the file, as in ``torch.load``.
        registry: the rules to use; by default those of the installed plugins.
        constants: what becomes of the constants that masked filters leave behind (biases, shifts of norms): "exact"
            folds them, or keeps what cannot be folded; "drop" leaves them out, so that the outputs change, as the
            report says. For training on.

    Raises:
        MaskError, InputError: the arguments cannot be used.
        TraceError: the model rejects the dummy input.
        RuleError: a rule of a plugin failed; the message names it.
        CheckError: the small model would not give the same answers.

    Example:
        >>> plan = speedup.plan(model, torch.randn(1, 3, 224, 224), "masks.pt")
        >>> print(plan)
        >>> plan.apply()
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is a {type(model).__name__}, not a torch.nn.Module")
    if constants not in ("exact", "drop"):
        raise InputError(f"constants={constants!r}: it is 'exact' or 'drop'")
    inputs = resolve_inputs(dummy_input)
    if on_meta(model):
        inputs = to_meta(inputs)
    rules = registry if registry is not None else default_registry()
    prepared = Prepared(model, masks, source=source, map_location=map_location)
    try:
        keep = prepared.masks.parameters
        for name in fully_masked(keep):
            warnings.warn(
                f"{name} is masked whole: its layer gives a constant, of which at least one index stays", stacklevel=3
            )
        log.info("masks: %d parameters", len(keep))
        drop = constants == "drop"
        try:
            graph, keeps, parts, changes = solve(model, inputs, prepared, rules, drop)
        except UnsteadyError:
            # What a function outside of the model remembers of its first call it has at hand from now on.
            graph, keeps, parts, changes = solve(model, inputs, prepared, rules, drop)
    finally:
        prepared.undo()

    unknown = [i for i, t in enumerate(graph.reference) if not t.is_meta and t.isnan().any()]
    if unknown:
        warnings.warn(
            f"output {', '.join(map(str, unknown))} of the masked model has NaN on the dummy input, where nothing can "
            "be checked: masks may leave 0 / 0 (a whole row of a weight that is divided by its norm), or weights or "
            "input have NaN",
            stacklevel=3,
        )

    def again(other: nn.Module) -> Plan:
        return plan(other, dummy_input, prepared.masks, registry=rules, constants=constants)

    made = Plan(model, graph, keeps, parts, inputs, prepared.masks, rules, again)
    if keeps.drop:
        made.report.dropped, made.report.changes = find_dropped(graph, keeps), changes
    log.info("planned: %s", made.report.headline)
    return made


class ModelSpeedup:
    """Make a pruned model physically smaller: the same answers, in place.

    Args:
        model: the trained model (unmasked weights; the masks are applied here).
        dummy_input: a tensor, a tuple of arguments, or a dict of keyword arguments that the model accepts.
        masks_file: path of a ``torch.save``\\ d ``{module: {'weight': mask, 'bias': mask or None}}``, or that dict, or
            any other source of masks, see ``speedup.masks.load``; None takes what the model itself carries.
        map_location: for reading the file, as in ``torch.load``.
        registry: the rules to use; by default those of the installed plugins.
        verify: compare with the masked model on random inputs and other batch sizes too before the change is kept.
        constants: "exact", or "drop" to leave out what cannot simply go, see ``speedup.plan``.
        fuse, channels_last: what makes the model faster than its sizes do, see ``Plan.apply``.

    Example:
        >>> model = ModelSpeedup(model, torch.randn(1, 3, 32, 32), "masks.pt").speedup_model()
    """

    def __init__(
        self,
        model: nn.Module,
        dummy_input: Any,
        masks_file: str | os.PathLike[str] | Mapping[Any, Any] | LoadedMasks | None = None,
        map_location: Any = None,
        *,
        source: Source = "auto",
        registry: Registry | None = None,
        verify: bool = False,
        constants: Literal["exact", "drop"] = "exact",
        fuse: bool = False,
        channels_last: bool = False,
    ) -> None:
        self.model = model
        self.verify = verify
        self.fuse = fuse
        self.channels_last = channels_last
        self.constants = constants
        self.dummy_input = dummy_input
        self.masks_file = masks_file
        self.source = source
        self.map_location = map_location
        self.registry = registry
        self.plan: Plan | None = None

    @rarely_collected
    def speedup_model(self) -> nn.Module:
        """Plan, check and apply. Returns the same model, now small.

        Raises:
            SpeedupError: see ``speedup.plan``; the model is then as it was, bit for bit.
        """
        self.plan = plan(
            self.model,
            self.dummy_input,
            self.masks_file,
            source=self.source,
            map_location=self.map_location,
            registry=self.registry,
            constants=self.constants,
        )
        return self.plan.apply(verify=self.verify, fuse=self.fuse, channels_last=self.channels_last)


__all__ = ["ModelSpeedup", "plan"]
