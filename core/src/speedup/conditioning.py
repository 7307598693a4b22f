"""Ill-conditioned models: rounding grows on the way, so a small model that is right differs by more than others do.

Asked only when the outputs differ for good, and every call of the small model is right for itself (``steps``). Then the
masked model is run with other last digits (``shaking``), and what that makes of its outputs excuses as much: up to a
limit, for where rounding alone decides, nothing can be seen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from speedup.check import AnswersError, answers_mismatch
from speedup.errors import CheckError
from speedup.graph import Graph
from speedup.keep import KeepSets
from speedup.mismatch import Mismatch
from speedup.registry import Registry
from speedup.rounding import gaps, is_explained
from speedup.shaking import Shaken, effects
from speedup.trace.run import trace


def excused(
    model: nn.Module,
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
    graph: Graph,
    keeps: KeepSets,
    rules: Registry,
    differs: AnswersError,
    floor: float,
    refusal: str,
) -> Mismatch | None:
    """Take a difference that other last digits of the weights make of the masked model too. Call it inside ``sandbox``.

    Args:
        differs: what the small model answered; each of its calls is right for itself.
        floor: as for ``speedup.rounding.difference``.
        refusal: what to say where rounding does not explain it.

    Returns:
        as ``check``.

    Raises:
        CheckError: rounding does not explain it, or explains more than can be accepted.
    """

    def answers(number: int) -> list[torch.Tensor]:
        shaken = Shaken(model, graph.masking, number)
        return trace(model, *inputs, rules, answers=graph.answers, masking=shaken).reference

    if not graph.effects:  # which is the same for all repairs that are tried
        try:
            graph.effects = effects(graph.reference, answers)
        except Exception as raised:  # whatever a model says to other numbers
            raise CheckError(f"{refusal}Each call of it is right, and with other last digits {raised!r}") from raised
    try:
        return answers_mismatch(graph, keeps, differs.again, floor, graph.effects)
    except AnswersError as error:
        far = zip(gaps(graph.reference, differs.again.reference), graph.effects, strict=True)
        at = max(range(len(graph.effects)), key=graph.effects.__getitem__)
        effect = (
            "every call of it gives what it should, and changing each weight of the masked model by its last digit "
            f"changes output {at} by {graph.effects[at]:.2g} of its largest entry"
        )
        if not all(is_explained(gap, moved) for gap, moved in far):
            raise CheckError(f"{refusal}Yet {effect}: that is less") from error
        raise CheckError(
            f"the model is too ill-conditioned to be checked, nothing was changed: in the small model {error}, but "
            f"{effect}. {_advice(model, graph)}"
        ) from error


def _advice(model: nn.Module, graph: Graph) -> str:
    coarse = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float64}
    if coarse:
        return (
            f"Plan it in float64, where rounding is less than in {', '.join(sorted(map(str, coarse)))}: "
            "model.double(), the same for the dummy input, and after the speedup convert the small model back"
        )
    coarsest = graph.coarsest if graph.coarsest is not None else torch.float64
    return (
        f"Rounding decides what it answers, and it computes in {coarsest} already: look at how its activations grow. "
        "Random weights and statistics make such models; trained ones seldom are"
    )
