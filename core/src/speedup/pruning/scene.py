"""What a criterion is given: the model, its channel groups, and ways to run it that leave it as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import nn

from speedup.errors import InputError
from speedup.groups.result import ChannelGroups, Group
from speedup.inputs import resolve_inputs
from speedup.registry import Registry
from speedup.trace import sandbox, trace
from speedup.trace.sandbox import undisturbed

Loss = Callable[[nn.Module, Any], torch.Tensor]

NO_BATCHES = "looks at data: pass batches=, inputs like the dummy input"
NO_LOSS = (
    "looks at gradients: pass loss=, a function of the model and a batch, such as "
    "lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])"
)


class Scene:
    """A model under the eyes of a criterion.

    Attributes:
        model: it must not be changed.
        groups: its channel groups.
        generator: for what is random, seeded.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: ChannelGroups,
        registry: Registry,
        batches: Iterable[Any] | None = None,
        loss: Loss | None = None,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.groups = groups
        self.generator = torch.Generator().manual_seed(seed)
        self._registry = registry
        self._batches = batches
        self._loss = loss

    @cached_property
    def parameters(self) -> dict[str, torch.Tensor]:
        """All parameters by qualified name, without gradients."""
        return {n: p.detach() for n, p in self.model.named_parameters(remove_duplicate=False)}

    @cached_property
    def batches(self) -> Sequence[Any]:
        """What was given as ``batches``.

        Raises:
            InputError: nothing was.
        """
        batches = [] if self._batches is None else list(self._batches)
        if not batches:
            raise InputError(f"the criterion {NO_BATCHES}")
        return batches

    def activations(self) -> Iterator[dict[int, list[torch.Tensor]]]:
        """Per batch, and per number of a group, what the layers that read its channels see.

        Each tensor is ``(channels of the group, entries)``; a channel that has several places in an activation has
        them one after the other. The model runs in eval mode, without gradients.
        """
        wanted: dict[tuple[int, int], list[tuple[int, torch.Tensor]]] = {}
        for number, group in enumerate(self.groups):
            for each in group.activations:
                wanted.setdefault((each.call, each.output), []).append((number, torch.from_numpy(each.channels)))
        for batch in self.batches:
            look = _Look(self.groups, wanted)
            with sandbox(self.model):
                trace(self.model, *resolve_inputs(batch), self._registry, watch=look, answers=())
            yield look.found

    @cached_property
    def gradients(self) -> list[dict[str, torch.Tensor]]:
        """Per batch the gradients of the loss by parameter name. Eval mode; gradients that were there stay.

        Raises:
            InputError: no loss or no batches were given.
        """
        loss = self._loss
        if loss is None:
            raise InputError(f"the criterion {NO_LOSS}")
        found = []
        named = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        for batch in self.batches:
            with _eval(self.model), torch.enable_grad():
                value = loss(self.model, batch)
                gradients = torch.autograd.grad(value, list(named.values()), allow_unused=True)
            made = {n: g.detach() for n, g in zip(named, gradients, strict=True) if g is not None}
            found.append(made)
        return found


@contextmanager
def _eval(model: nn.Module) -> Iterator[None]:
    with undisturbed(model):
        for module in model.modules():
            module.training = False
        yield


class _Look:
    """Takes what is wanted of the activations as the model runs."""

    def __init__(self, groups: Sequence[Group], wanted: dict[tuple[int, int], list[tuple[int, torch.Tensor]]]) -> None:
        self.got: list[list[torch.Tensor]] = []
        self.found: dict[int, list[torch.Tensor]] = {}
        self._groups = groups
        self._wanted = wanted

    def __call__(
        self, number: int, op_name: str, tensors: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        for place, tensor in enumerate(outputs):
            for group, channels in self._wanted.get((number, place), ()):
                size = self._groups[group].size
                self.found.setdefault(group, []).append(_by_channel(tensor.detach(), channels, size))
        return list(outputs)


def _by_channel(tensor: torch.Tensor, channels: torch.Tensor, size: int) -> torch.Tensor:
    """The entries of each channel, ``(size, entries)``."""
    axes = [a for a, s in enumerate(channels.shape) if s > 1]
    rest = [a for a in range(tensor.ndim) if a not in axes]
    flat = tensor.permute(*axes, *rest).reshape(channels.numel(), -1)
    numbers = channels.permute(*axes, *rest).reshape(-1)
    inside = torch.nonzero(numbers >= 0).reshape(-1)
    order = inside[torch.argsort(numbers[inside], stable=True)]
    return flat[order.to(flat.device)].reshape(size, -1)
