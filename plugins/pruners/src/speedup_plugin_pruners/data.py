"""Criteria that run the model on data: pass ``batches=``, and ``loss=`` for the last."""

from __future__ import annotations

import torch

from speedup import Criterion, Group, Scene
from speedup_plugin_pruners.scores import zero_shares


class _OfActivations(Criterion):
    """A mean, over data, of a number for each channel of what the next layers read."""

    needs_batches = True

    def prepare(self, scene: Scene) -> None:
        totals: dict[int, torch.Tensor] = {}
        counts: dict[int, int] = {}
        for seen in scene.activations():
            for number, tensors in seen.items():
                for tensor in tensors:
                    totals[number] = totals.get(number, 0) + self.of(tensor).double().cpu()
                    counts[number] = counts.get(number, 0) + 1
        self._means = {id(scene.groups[n]): total / counts[n] for n, total in totals.items()}

    def of(self, activation: torch.Tensor) -> torch.Tensor:
        """``(channels, entries)`` to ``(channels,)``."""
        raise NotImplementedError

    def applies(self, group: Group) -> bool:
        return id(group) in self._means

    def score(self, group: Group, scene: Scene) -> torch.Tensor:
        return self._means[id(group)]


class AverageZeros(_OfActivations):
    """APoZ: channels that are 0 most often behind their ReLU go first.

    "Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep Architectures" (Hu et al., 2016,
    https://arxiv.org/abs/1607.03250).
    """

    name = "apoz"
    comparable = True

    def of(self, activation: torch.Tensor) -> torch.Tensor:
        return 1 - zero_shares(activation)


class MeanActivation(_OfActivations):
    """The mean size of a channel's activations.

    "Pruning Convolutional Neural Networks for Resource Efficient Inference" (Molchanov et al., ICLR 2017,
    https://arxiv.org/abs/1611.06440), section 2.2.
    """

    name = "mean_activation"

    def of(self, activation: torch.Tensor) -> torch.Tensor:
        return activation.abs().double().mean(1)


class Taylor(Criterion):
    """How much the loss changes without the channel, to first order: (sum of weight times gradient) squared.

    "Importance Estimation for Neural Network Pruning" (Molchanov et al., CVPR 2019, https://arxiv.org/abs/1906.10771),
    equation 8, summed over the weights that make the channel and averaged over batches.
    """

    name = "taylor"
    comparable = True
    needs_batches = True
    needs_loss = True

    def score(self, group: Group, scene: Scene) -> torch.Tensor:
        total = torch.zeros(group.size, dtype=torch.float64)
        for gradients in scene.gradients:
            products = {n: scene.parameters[n].double() * g.double() for n, g in gradients.items()}
            total += group.sums(products, makes=True) ** 2
        return total / len(scene.gradients)
