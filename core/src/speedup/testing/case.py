"""A model to try rules on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from speedup.testing.contents import randomize
from speedup.testing.masks import KINDS, Masks, random_masks


@dataclass(frozen=True, eq=False)
class Case:
    """A model to try rules on.

    Attributes:
        make: gives a new model. It should have layers in front of and behind the op, since nothing can go at the
            inputs and outputs of a model. Its contents are replaced by random ones (``randomize``).
        inputs: an example of its input, as in ``speedup.plan``.
        other_inputs: inputs of other batch sizes and other spatial sizes.
        kinds: the kinds of masks, see ``random_masks``; those for which the model has no parameter are left out.
    """

    make: Callable[[], nn.Module]
    inputs: Any
    other_inputs: Sequence[Any] = ()
    kinds: Sequence[str] = KINDS

    def model(self, seed: int = 0) -> nn.Module:
        """A new model with random contents, some of its modules in train mode and some in eval mode."""
        model = randomize(self.make(), seed)
        for number, module in enumerate(model.modules()):
            module.training = number % 2 == 0
        return model

    def masks(self, model: nn.Module, seed: int = 0) -> dict[str, Masks]:
        """Random masks of every kind, by the kind."""
        found = {}
        for kind in self.kinds:
            try:
                found[kind] = random_masks(model, seed, kind)
            except ValueError:
                continue  # the model has no parameter for masks of this kind
        if not found:
            raise ValueError("the model has no parameter that could be masked: put a layer with weights in front")
        return found
