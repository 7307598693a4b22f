"""The front door of pruning: a criterion, a sparsity or a target, and out come masks that can be removed."""

from __future__ import annotations

import difflib
import fnmatch
import logging
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from speedup.auxiliary import widest_trace
from speedup.errors import InputError
from speedup.groups.find import groups_of
from speedup.groups.result import ChannelGroups, Group
from speedup.inputs import resolve_inputs
from speedup.masks import Prepared
from speedup.pruning.choose import choose, queues
from speedup.pruning.criterion import Criterion
from speedup.pruning.scene import NO_BATCHES, NO_LOSS, Loss, Scene
from speedup.pruning.target import Measure, meet
from speedup.pruning.widths import RoundTo, check, widths_of
from speedup.registry import Registry, default_registry
from speedup.trace import sandbox

log = logging.getLogger("speedup")


def prune_masks(
    model: nn.Module,
    dummy_input: Any,
    criterion: str | Criterion = "l1",
    sparsity: float = 0.5,
    *,
    scope: Literal["layer", "global"] = "layer",
    target: Mapping[str, float] | None = None,
    overrides: Mapping[str, float] | None = None,
    ignore: Iterable[str] = (),
    round_to: RoundTo = 1,
    batches: Iterable[Any] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    registry: Registry | None = None,
) -> dict[str, torch.Tensor]:
    """Make masks that drop the channels that matter least, and that can really be removed.

    Channels that can only go together (``speedup.channel_groups``) are scored together and go together, with all that
    makes them. The model is not changed, and nothing is trained.

    Args:
        dummy_input: a tensor, a tuple of arguments, or a dict of keyword arguments that the model accepts.
        criterion: the name of a criterion that a plugin brings (``speedup plugins`` lists them), or one of your own.
        sparsity: the part of the channels that goes, from 0 up to, not including, 1. At least one channel stays of
            each group.
        scope: "layer" takes that part of every group of channels; "global" takes it of all channels together,
            wherever their scores are lowest.
        target: in place of ``sparsity`` what is to be left, as a part of the whole: ``{"parameters": 0.5}``,
            ``{"macs": 0.5}`` or ``{"latency": 0.7}``, which is measured on the dummy input. The least sparsity that
            meets it is searched.
        overrides: sparsity by glob pattern of the names of modules or parameters, such as ``{"layer4.*": 0.2}``. Of
            several patterns that match a group of channels the last one counts. With ``scope="global"`` these groups
            take no part in the common choice.
        ignore: patterns of what stays whole.
        round_to: numbers of channels that are left are multiples of this, in groups that are large enough for it; "cpu"
            and "cuda" name what the device prefers, and "measured" takes the fastest of the widths near the one that
            was asked for, never a smaller one (``speedup.pruning.widths.Measured``).
        batches: inputs, each like the dummy input, for criteria that look at data. With ``loss``: whatever that takes.
        loss: a function of the model and a batch, for criteria that look at gradients.
        seed: for what is random.
        registry: the rules and criteria to use; by default those of the installed plugins.

    Returns:
        ``{parameter name: bool tensor}``, True = keep: what ``speedup.plan`` and ``ModelSpeedup`` take as masks.

    Raises:
        InputError: an argument cannot be used, a pattern matches nothing, or the target cannot be met.
        TraceError: the model rejects the dummy input.

    Example:
        >>> masks = speedup.prune_masks(model, x, "l1", sparsity=0.5, overrides={"layer1.*": 0.2})
        >>> small = speedup.plan(model, x, masks).apply()
    """
    _check(sparsity, scope, round_to)
    rules = registry if registry is not None else default_registry()
    judge = criterion if isinstance(criterion, Criterion) else rules.criterion(criterion)
    if judge.needs_loss and loss is None:
        raise InputError(f"criterion {judge.name!r} {NO_LOSS}")
    if judge.needs_batches and batches is None:
        raise InputError(f"criterion {judge.name!r} {NO_BATCHES}")
    inputs = resolve_inputs(dummy_input)
    prepared = Prepared(model, {}, source="dict", may_be_empty=True)
    try:
        with sandbox(model, prepared.masks.parameters):
            graph = widest_trace(model, inputs, rules)
            groups = groups_of(graph)
            scene = Scene(model, groups, rules, batches, loss, seed)
            scores = _scores(judge, scene)
            widths = widths_of(round_to, graph, groups)

        wanted = _shares(groups, sparsity, {**(overrides or {}), **dict.fromkeys(ignore, 0.0)})

        def masks_at(share: float | None) -> dict[str, torch.Tensor]:
            shares = {n: (s if fixed or share is None else share, fixed) for n, (s, fixed) in wanted.items()}
            waiting = queues(groups, scores, shares, widths, judge.whole_heads)
            common = (sparsity if share is None else share) if scope == "global" else None
            return groups.masks(choose(groups, waiting, common, judge.comparable))

        if target is None:
            found = masks_at(None)
        else:
            found = meet(target, masks_at, Measure(model, dummy_input, graph, rules, prepared.masks.parameters))
    finally:
        prepared.undo()
    if not found:
        log.warning("the masks drop nothing: the sparsity is too small for the groups of channels, or all are ignored")
    return found


def _scores(judge: Criterion, scene: Scene) -> dict[int, torch.Tensor]:
    judge.prepare(scene)
    scores: dict[int, torch.Tensor] = {}
    for number, group in enumerate(scene.groups):
        if not judge.applies(group):
            continue
        made = judge.score(group, scene).detach().to("cpu", torch.float64)
        if made.shape != (group.size,):
            raise InputError(
                f"criterion {judge.name!r} gave scores of shape {tuple(made.shape)} for {group.name}, "
                f"which has {group.size} channels"
            )
        if not bool(made.isfinite().all()):
            raise InputError(f"criterion {judge.name!r}: scores of {group.name} are not finite, so they have no order")
        scores[number] = made
    if not scores:
        raise InputError(f"criterion {judge.name!r} applies to no channel of the model")
    return scores


def _shares(groups: ChannelGroups, sparsity: float, patterns: Mapping[str, float]) -> dict[int, tuple[float, bool]]:
    """Per group the part that goes, and whether a pattern said so."""
    shares = {number: (sparsity, False) for number in range(len(groups))}
    for pattern, share in patterns.items():
        if not 0 <= share < 1:
            raise InputError(f"overrides={{{pattern!r}: {share}}}: a sparsity lies in [0, 1)")
        matched = [number for number, group in enumerate(groups) if _matches(group, pattern)]
        if not matched:
            names = sorted({name.rpartition(".")[0] for group in groups for name in group.producers})
            near = difflib.get_close_matches(pattern, names, n=3)
            hint = f"; did you mean {', '.join(map(repr, near))}?" if near else ""
            raise InputError(f"the pattern {pattern!r} matches no layer whose channels can go{hint}")
        for number in matched:
            shares[number] = (share, True)
    return shares


def _matches(group: Group, pattern: str) -> bool:
    names = {n for name in group.producers for n in (name, name.rpartition(".")[0])}
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)


def _check(sparsity: float, scope: str, round_to: RoundTo) -> None:
    if not 0 <= sparsity < 1:
        raise InputError(f"sparsity={sparsity}: it lies in [0, 1)")
    if scope not in ("layer", "global"):
        raise InputError(f"scope={scope!r}: it is 'layer' or 'global'")
    check(round_to)
