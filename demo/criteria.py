"""Four published criteria that say which channels of a network to prune. Each returns masks in the NNI 1.x layout.

`{module: {"weight": mask, "bias": mask or None}}`: float tensors of 0 (pruned) and 1 (kept), each of its parameter's
shape; the bias is None where the layer has none. The number of pruned channels is `sparsity` times the number of
channels, rounded down. Of channels that score alike, the first ones go. The models stay as they were.

| criterion  | prunes                                   | looks at                              |
|------------|------------------------------------------|---------------------------------------|
| `slim`     | BatchNorm channels, one global threshold | the size of the BatchNorm scale       |
| `l1filter` | filters, layer by layer                  | the L1 norm of the filter             |
| `apoz`     | filters, layer by layer                  | zeros after the ReLU, on data         |
| `fpgm`     | filters, layer by layer                  | distance to the layer's other filters |
"""

import difflib
import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from demo.masking import Masks
from speedup_plugin_pruners.scores import distance_sums, norms


@torch.no_grad()
def slim(model: nn.Module, sparsity: float = 0.7, layers: Iterable[str] | None = None) -> Masks:
    """Network Slimming (Liu et al., 2017): the smallest BatchNorm scales |γ|, compared across all layers.

    `layers` names the BatchNorms, by default every `BatchNorm2d`: those behind the convolutions, as in the paper. All
    their scales together, `(total channels,)`, are ranked once, so a layer loses more channels or fewer than the
    others; it can lose every one, which the speedup supports. The masks cover γ and β, both `(channels,)`: a pruned
    channel is 0 behind its BatchNorm.

    Raises ValueError for a sparsity outside [0, 1), an unknown layer, or a BatchNorm without γ, and when there is no
    layer at all; TypeError for a layer that is no BatchNorm.
    """
    if layers is None:
        layers = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    bns = [(name, _layer(model, name, nn.modules.batchnorm._BatchNorm)) for name in layers]
    if not bns:
        raise ValueError("the model has no BatchNorm2d to prune")
    for name, norm in bns:
        if norm.weight is None:
            raise ValueError(f"{name} has no scale to rank its channels by (affine=False)")
    kept = _keep_highest(torch.cat([norm.weight.abs() for _, norm in bns]), sparsity)
    sizes = [norm.num_features for _, norm in bns]
    return {
        name: {"weight": mask.clone(), "bias": mask.clone()}
        for (name, _), mask in zip(bns, kept.split(sizes), strict=True)
    }


@torch.no_grad()
def l1filter(model: nn.Module, layers: Iterable[str], sparsity: float = 0.5) -> Masks:
    """Pruning Filters for Efficient ConvNets (Li et al., 2017): of each layer, the filters with the smallest L1 norm.

    `layers` names convolutions; a weight `(out, in, height, width)` gets one score per filter, `(out,)`.

    Raises ValueError for a sparsity outside [0, 1) or an unknown layer; TypeError for a layer that is no convolution.
    """
    convs = {name: _layer(model, name, _CONVS) for name in layers}
    return {name: _filter_masks(conv, norms(conv.weight), sparsity) for name, conv in convs.items()}


@torch.no_grad()
def apoz(model: nn.Module, layers: Mapping[str, str], batches: Iterable[Tensor], sparsity: float = 0.5) -> Masks:
    """Network Trimming (Hu et al., 2016): of each layer, the filters whose activation is zero most often.

    `layers` maps each convolution to the activation module that follows it; `batches` holds inputs of the model, each
    `(n, ...)`. The score of a filter is the average percentage of zeros (APoZ) in its channel of the activation,
    `(n, out, height, width)`, over all images and positions. The model runs in eval mode; afterwards each module is in
    the mode in which it was.

    Raises ValueError for a sparsity outside [0, 1), an unknown layer, no batches, or an activation that never ran or
    has another number of channels than its convolution; TypeError for a layer that is no convolution.
    """
    convs = {name: _layer(model, name, _CONVS) for name in layers}
    zeros = _average_zeros(model, layers.values(), batches)
    for name, conv in convs.items():
        if zeros[layers[name]].numel() != conv.out_channels:
            raise ValueError(
                f"{layers[name]} puts out {zeros[layers[name]].numel()} channels, {name} has {conv.out_channels}"
            )
    return {name: _filter_masks(conv, -zeros[layers[name]], sparsity) for name, conv in convs.items()}


@torch.no_grad()
def fpgm(model: nn.Module, layers: Iterable[str] | None = None, sparsity: float = 0.5) -> Masks:
    """Filter Pruning via Geometric Median (He et al., 2019): the filters that the layer's others replace best.

    Those are the filters nearest to the geometric median: the smallest sum of L2 distances to all filters of the
    layer. `layers` names convolutions, by default every `Conv2d`; a weight `(out, in, height, width)` gives `out`
    points, whose distances `(out, out)` are summed to one score per filter.

    Raises ValueError for a sparsity outside [0, 1) or an unknown layer; TypeError for a layer that is no convolution.
    """
    if layers is None:
        layers = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    convs = {name: _layer(model, name, _CONVS) for name in layers}
    return {name: _filter_masks(conv, distance_sums(conv.weight), sparsity) for name, conv in convs.items()}


_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _keep_highest(scores: Tensor, sparsity: float) -> Tensor:
    """A 0/1 tensor like `scores`, in which the share `sparsity` with the lowest scores is 0."""
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity must lie in [0, 1), not {sparsity}")
    if not bool(scores.isfinite().all()):
        raise ValueError("the model holds weights that are not finite, so they cannot be ranked")
    # The small allowance keeps 0.7 * 10 at 7, whatever the floating point product says.
    pruned = math.floor(scores.numel() * sparsity + 1e-9)
    keep = torch.ones_like(scores, dtype=torch.float32)
    keep[scores.argsort(stable=True)[:pruned]] = 0.0
    return keep


def _filter_masks(conv: Any, scores: Tensor, sparsity: float) -> dict[str, Tensor | None]:
    keep = _keep_highest(scores, sparsity)
    weight = keep.reshape(-1, *[1] * (conv.weight.dim() - 1)).expand_as(conv.weight).clone()
    return {"weight": weight, "bias": None if conv.bias is None else keep}


def _average_zeros(model: nn.Module, activations: Iterable[str], batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """The share of zeros in each channel of each activation, `(channels,)`, over all batches."""
    zeros: dict[str, Tensor] = {}
    entries: dict[str, int] = {}

    def count(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        others = [axis for axis in range(output.dim()) if axis != 1]
        zeros[name] = zeros.get(name, 0) + (output == 0).sum(others).double()
        entries[name] = entries.get(name, 0) + output.numel() // output.shape[1]

    names = set(activations)
    hooks = [_layer(model, name, nn.Module).register_forward_hook(partial(count, name)) for name in names]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for batch in batches:
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    if silent := sorted(names - zeros.keys()):
        raise ValueError(f"{', '.join(silent)} never ran: were there any batches, and does the model use it?")
    return {name: zeros[name] / entries[name] for name in names}


def _layer(model: nn.Module, name: str, kinds: type | tuple[type, ...]) -> Any:
    modules = dict(model.named_modules())
    if name not in modules:
        near = difflib.get_close_matches(name, modules, n=1)
        raise ValueError(f"the model has no layer {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    if not isinstance(modules[name], kinds):
        raise TypeError(f"{name} is a {type(modules[name]).__name__}, which this criterion does not prune")
    return modules[name]
