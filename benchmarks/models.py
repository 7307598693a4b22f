"""The models that the coverage run knows, each with an input and others of another size where it takes them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

import speedup
from speedup.testing import randomize

# Inputs (batch, channels, height, width) of builders that do not take small images.
_SIZES = {"vit": 224, "maxvit": 224, "inception_v3": 299, "swin": 64, "alexnet": 64, "googlenet": 64}
SHORT = False  # whether models of timm have no more than two equal blocks in a row
# Image sizes of models of timm whose own is large.
_TIMM_SIZES = {"vit_small_patch14_reg4_dinov2": 140}
_VIDEO = {"mvit": (16, 224), "swin3d": (8, 64), "s3d": (16, 224)}


def torchvision_names() -> list[str]:
    """Every builder but the quantized ones, which are out of scope."""
    from torchvision import models as tv

    return [n for n in tv.list_models() if "quantized" not in n]


def make_random(name: str) -> tuple[nn.Module, Any]:
    """A model in float32 and eval mode, with random weights, biases and statistics, and its dummy input."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, inputs, _ = make(name)
        randomize(model, 0)
    return model.float().eval(), cast(inputs, torch.float32)


def warm_up() -> None:
    """Run the transformation once, as the first run of a process also loads plugins and parts of torch."""
    speedup.ModelSpeedup(nn.Linear(2, 2), torch.ones(1, 2), {"": {"bias": torch.ones(2)}}).speedup_model()


def order(name: str) -> tuple[str, str]:
    """For sorting: by library and task, then by name."""
    return (_task(name), name)


def _task(name: str) -> str:
    if ":" in name:
        return name.split(":")[0]
    from torchvision import models as tv

    return tv.get_model_builder(name).__module__.rpartition(".")[0]


def make(name: str) -> tuple[nn.Module, Any, list[Any]]:
    """A model with random weights, a dummy input and further inputs; both as a tuple of arguments or a dict."""
    library, _, rest = name.rpartition(":")
    if library == "timm":
        return _timm(rest)
    if library == "transformers":
        import huggingface

        return huggingface.make(rest)
    if library == "trained":
        import trained

        return trained.make(rest)
    task = _task(name)
    if task.endswith("detection"):
        return _detection(name)
    if task.endswith("optical_flow"):
        return _optical_flow(name)
    if task.endswith("video"):
        return _video(name)
    return _image(name)


def cast(tree: Any, dtype: torch.dtype) -> Any:
    """The same inputs in another floating-point type."""
    return tree_map_only(torch.Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, tree)


def call(model: nn.Module, inputs: Any) -> Any:
    with torch.no_grad():
        return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def _image(name: str) -> tuple[nn.Module, Any, list[Any]]:
    from torchvision import models as tv

    options: dict[str, Any] = {"weights": None}
    if _task(name).endswith("segmentation"):
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    model = tv.get_model(name, **options)
    size = next((s for prefix, s in _SIZES.items() if name.startswith(prefix)), 64)
    fixed = name.startswith(("vit", "maxvit"))
    other = torch.randn(2, 3, size, size) if fixed else torch.randn(2, 3, size + 32, size + 64)
    return model, (torch.randn(1, 3, size, size),), [(other,)]


def _detection(name: str) -> tuple[nn.Module, Any, list[Any]]:
    from torchvision import models as tv

    sizes = {} if name.startswith("ssd") else {"min_size": 128, "max_size": 160}
    model = tv.get_model(name, weights=None, weights_backbone=None, **sizes)
    return model, ([torch.rand(3, 128, 160), torch.rand(3, 160, 128)],), [([torch.rand(3, 140, 150)],)]


def _video(name: str) -> tuple[nn.Module, Any, list[Any]]:
    from torchvision import models as tv

    model = tv.get_model(name, weights=None)
    frames, size = next((v for prefix, v in _VIDEO.items() if name.startswith(prefix)), (8, 64))
    return model, (torch.randn(1, 3, frames, size, size),), [(torch.randn(2, 3, frames, size, size),)]


def _optical_flow(name: str) -> tuple[nn.Module, Any, list[Any]]:
    from torchvision import models as tv

    model = tv.get_model(name, weights=None)
    images = torch.rand(2, 1, 3, 128, 128) * 2 - 1
    others = torch.rand(2, 2, 3, 128, 160) * 2 - 1
    return (
        model,
        {"image1": images[0], "image2": images[1], "num_flow_updates": 2},
        [{"image1": others[0], "image2": others[1], "num_flow_updates": 2}],
    )


def shortened(model: nn.Module) -> nn.Module:
    """A copy of the model with no more than two equal blocks in a row."""
    short = copy.deepcopy(model)
    for module in short.modules():
        if not isinstance(module, nn.Sequential | nn.ModuleList) or len(module) < 3:
            continue
        kept: list[tuple[Any, nn.Module]] = []
        for block in module:
            kind = (type(block), tuple(p.shape for p in block.parameters()))
            if not kind[1] or [k for k, _ in kept[-2:]] != [kind, kind]:
                kept.append((kind, block))
        names = list(module._modules)
        module._modules.clear()
        module._modules.update(zip(names, (block for _, block in kept), strict=False))
    return short


def _timm(name: str) -> tuple[nn.Module, Any, list[Any]]:
    import timm

    sized = {"img_size": _TIMM_SIZES[name]} if name in _TIMM_SIZES else {}
    model = timm.create_model(name, pretrained=False, num_classes=1000, **sized).eval()
    settings = model.pretrained_cfg
    size = sized.get("img_size", settings["input_size"][-1])
    again = torch.randn(2, 3, size, size)
    if not settings.get("fixed_input_size"):
        size = (settings.get("min_input_size") or (3, 96, 96))[-1]
        again = torch.randn(2, 3, size + 32, size + 64)
    first = torch.randn(1, 3, size, size)
    if not _runs(model, again):  # it takes one size only, whatever its settings say
        again = torch.randn(2, 3, size, size)
    if SHORT:
        short = shortened(model)
        model = short if _runs(short, first) and _runs(short, again) else model
    return model, (first,), [(again,)]


def _runs(model: nn.Module, images: torch.Tensor) -> bool:
    try:
        call(model, (images,))
    except Exception:
        return False
    return True
