"""The criterion: how much each channel of a model matters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from speedup.groups.result import Group

if TYPE_CHECKING:
    from speedup.pruning.scene import Scene


class Criterion:
    """How much channels matter. Subclass it, and give instances to ``speedup_criteria`` (``speedup.hookspecs``).

    Attributes:
        name: how users ask for it.
        comparable: whether scores of different groups can be compared as they are; else each group's are divided by
            their mean before a global choice.
        whole_heads: whether the heads of an attention go whole, not channels of all heads in equal numbers.
        needs_batches: whether it runs the model on inputs: ``prune_masks`` then asks for ``batches=``.
        needs_loss: whether it needs gradients of a loss: ``prune_masks`` then asks for ``loss=``.

    Example, a criterion that keeps what has large biases::

        class Bias(Criterion):
            name = "bias"

            def score(self, group, scene):
                biases = {n: p.abs() for n, p in scene.parameters.items() if n.endswith("bias")}
                return group.sums(biases, makes=True)
    """

    name: str = ""
    comparable = False
    whole_heads = False
    needs_batches = False
    needs_loss = False

    def prepare(self, scene: Scene) -> None:
        """Called once, before ``score``: look at all of the model (override)."""

    def applies(self, group: Group) -> bool:
        """Whether the criterion has a say about a group; the others stay whole (override)."""
        return True

    def score(self, group: Group, scene: Scene) -> torch.Tensor:
        """One number per channel of the group, ``(group.size,)``: the smallest go first.

        Called for every group that the criterion applies to, with the same scene. What it looks at are tensors of the
        model; it must not change them.
        """
        raise NotImplementedError
