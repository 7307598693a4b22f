"""How much rounding alone makes of the answers of a masked model: every parameter is moved by its last digit.

Models whose numbers grow through many layers, or that are chaotic, answer otherwise then, and so does a small model
that is right: its sums have fewer terms. Nobody can tell more of their answers than that.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch
from torch import nn

from speedup.masking import Masking
from speedup.rounding import gaps, is_rounded

_TRIES = 3  # of chaos, one is often ten times less than another


class Shaken(Masking):
    """A masking that also moves every entry of every parameter by its last digit, up or down; 0 stays 0.

    As with masks, what is moved stands in memory while a call reads it, and nothing else changes.

    Args:
        like: the masks.
        number: which of the possible ways; the same one is the same again, whatever the global random state.

    Example:
        >>> with Shaken(model, graph.masking, 0, whole=True).run():
        ...     model(x)
    """

    def __init__(self, model: nn.Module, like: Masking | None, number: int, whole: bool = False) -> None:
        super().__init__(model, whole=whole)
        self.limit = self.worth = sys.maxsize  # the digits of a parameter are drawn at once
        for parameter in model.parameters():
            mask = like.mask_of(parameter) if like is not None else None
            self._parameters[id(parameter)] = parameter
            self._masks[id(parameter)] = mask if mask is not None else torch.ones((), dtype=torch.bool)
        self._seeds = {key: number * len(self._parameters) + i for i, key in enumerate(self._parameters)}

    def _changed(self, key: int, data: torch.Tensor) -> torch.Tensor:
        made = super()._changed(key, data)
        if not is_rounded(made.dtype) or made.is_meta:
            return made
        generator = torch.Generator().manual_seed(self._seeds[key])
        signs = torch.randint(2, made.shape, generator=generator, dtype=torch.int8).mul_(2).sub_(1)
        last = torch.finfo(made.dtype).eps
        return made.mul_(signs.to(made.device, made.dtype).mul_(last).add_(1))


def effects(reference: Sequence[torch.Tensor], answers: Callable[[int], Sequence[torch.Tensor]]) -> list[float]:
    """Of each output of the masked model, how far the last digits of its parameters move it, by its largest entry.

    Args:
        reference: what the masked model answers.
        answers: what it answers when it is shaken in the way of this number.
    """
    tries = [gaps(reference, answers(number)) for number in range(_TRIES)]
    return [max(numbers) for numbers in zip(*tries, strict=True)]
