"""Criteria that look at weights alone."""

from __future__ import annotations

import torch

from speedup import Criterion, Group, Member, Scene
from speedup_plugin_pruners.scores import distance_sums


class Norm(Criterion):
    """The norm of all weights of a channel: of the filters that make it, and of what reads it.

    ``l1`` is the criterion of "Pruning Filters for Efficient ConvNets" (Li et al., ICLR 2017,
    https://arxiv.org/abs/1608.08710), with the sum over a group of layers of "DepGraph: Towards Any Structural Pruning"
    (Fang et al., CVPR 2023, https://arxiv.org/abs/2301.12900). ``l2`` is the same with squares, as in "Learning both
    Weights and Connections" (Han et al., NIPS 2015, https://arxiv.org/abs/1506.02626) for single weights.
    """

    def __init__(self, name: str, power: int) -> None:
        self.name = name
        self.power = power

    def score(self, group: Group, scene: Scene) -> torch.Tensor:
        names = {m.parameter for m in group.members}
        powers = {n: scene.parameters[n].double().abs() ** self.power for n in names if n in scene.parameters}
        return group.sums(powers) ** (1 / self.power)


class GeometricMedian(Criterion):
    """FPGM: filters near the geometric median of their layer can be replaced by the others.

    "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration" (He et al., CVPR 2019,
    https://arxiv.org/abs/1811.00250). The score is the sum of distances to all filters of the layer, added up over the
    layers that make the channel.
    """

    name = "fpgm"

    def applies(self, group: Group) -> bool:
        return any(_is_filter(m) for m in group.members)

    def score(self, group: Group, scene: Scene) -> torch.Tensor:
        total = torch.zeros(group.size, dtype=torch.float64)
        for member in group.members:
            if _is_filter(member) and member.parameter in scene.parameters:
                assert member.axis is not None
                weight = scene.parameters[member.parameter].movedim(member.axis, 0)
                numbers = torch.from_numpy(member.channels.reshape(-1))
                inside = numbers >= 0
                sums = distance_sums(weight[inside.to(weight.device)]).cpu()
                total.index_add_(0, numbers[inside], sums)
        return total


class Slim(Criterion):
    """Network slimming: the size of the scale with which a norm multiplies the channel.

    "Learning Efficient Convolutional Networks through Network Slimming" (Liu et al., ICCV 2017,
    https://arxiv.org/abs/1708.06519), which ranks the scales of all layers together: use it with ``scope="global"``, on
    a model that was trained with an L1 penalty on them.
    """

    name = "slim"
    comparable = True

    def applies(self, group: Group) -> bool:
        return any(_is_scale(m) for m in group.members)

    def score(self, group: Group, scene: Scene) -> torch.Tensor:
        scales = {m.parameter: scene.parameters[m.parameter].abs() for m in group.members if _is_scale(m)}
        counts = group.sums({n: torch.ones_like(s) for n, s in scales.items()})
        return group.sums(scales) / counts.clamp(min=1)


class Magnitude(Criterion):
    """Heads of attentions and neurons of feed-forward layers, by the L2 norm of all their weights; heads go whole.

    The second-order criterion of "A Fast Post-Training Pruning Framework for Transformers" (Kwon et al., NeurIPS 2022,
    https://arxiv.org/abs/2204.09656), with magnitudes in place of its Fisher information, so that no data are needed;
    that heads can go whole is the finding of "Are Sixteen Heads Really Better than One?" (Michel et al., NeurIPS 2019,
    https://arxiv.org/abs/1905.10650). The width of the model, which all layers share, stays.
    """

    name = "magnitude"
    whole_heads = True

    def applies(self, group: Group) -> bool:
        makers = {m.parameter for m in group.members if _is_filter(m)}
        readers = {m.parameter for m in group.members if not m.makes}
        return group.bundle is not None or (len(makers) == 1 and len(readers) == 1)

    def score(self, group: Group, scene: Scene) -> torch.Tensor:
        names = {m.parameter for m in group.members}
        return group.sums({n: scene.parameters[n].double() ** 2 for n in names if n in scene.parameters})


class Random(Criterion):
    """Chance, the baseline: what a criterion must beat ("Rethinking the Value of Network Pruning", Liu et al., ICLR
    2019, https://arxiv.org/abs/1810.05270). The seed is that of ``prune_masks``."""

    name = "random"
    comparable = True

    def score(self, group: Group, scene: Scene) -> torch.Tensor:
        return torch.rand(group.size, generator=scene.generator, dtype=torch.float64)


def _is_filter(member: Member) -> bool:
    """Whether the entries are filters: whole indices of a weight with more axes."""
    return member.makes and member.axis is not None and member.channels.ndim > 1


def _is_scale(member: Member) -> bool:
    """Whether the entries are scales of a norm: one number for each channel, and no bias."""
    return member.makes and member.channels.ndim == 1 and member.parameter.rpartition(".")[2] in ("weight", "gamma")
