"""``speedup.save``."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from speedup.atomic import replacing
from speedup.collector import rarely_collected
from speedup.errors import StorageError
from speedup.masks.activations import MultiplyInput, MultiplyOutput
from speedup.registry import Registry, default_registry
from speedup.store.format import STRUCTURE, WEIGHTS, Change, Structure, Tensor, dumps
from speedup.store.layers import describe
from speedup.store.plain import NotPlainError, to_json
from speedup.store.record import names_in, record_of
from speedup.store.tensors import safetensors_torch


@rarely_collected
def save(model: nn.Module, directory: str | os.PathLike[str], *, registry: Registry | None = None) -> Path:
    """Save a small model: ``model.safetensors`` with its weights and ``speedup.json`` with what changed.

    The model may have been made small in several rounds, trained, copied, moved or unpickled since. Both files
    are data: ``speedup.load`` makes the small model again from a freshly built original one, without masks or input.

    Args:
        model: the small model.
        directory: made if it is not there; files of the same names in it are replaced.
        registry: the rules that made the model small; by default those of the installed plugins.

    Returns:
        the directory.

    Raises:
        StorageError: the model cannot be saved in this way, the message says why, or safetensors is not installed;
            nothing is written then.
        OSError: the directory cannot be written to.

    Example:
        >>> plan.apply()
        >>> speedup.save(model, "small")
    """
    library = safetensors_torch("speedup.save")
    model = _bare(model)
    changes = changes_of(model, registry if registry is not None else default_registry())
    tensors, tied = _tensors(model)
    hidden = tuple(name for name, _, is_hidden in named_tensors(model) if is_hidden)
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    # The description comes last: it names the weights that it belongs to.
    with replacing(target / WEIGHTS, target / STRUCTURE) as (weights, text):
        library.save_file(tensors, weights, metadata={"format": "pt"})
        with weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        text.write_text(dumps(Structure(digest, changes, tied, provenance_of(model), hidden=hidden)), encoding="utf-8")
    return target


def _bare(model: nn.Module) -> nn.Module:
    """What is compiled, or trained on several devices."""
    for name in ("_orig_mod", "module"):
        inner = model._modules.get(name)
        wraps = type(model).__name__ in ("OptimizedModule", "DataParallel", "DistributedDataParallel")
        if wraps and inner is not None:
            return _bare(inner)
    return model


def changes_of(model: nn.Module, registry: Registry) -> dict[str, Change]:
    """What changed of each module of a small model.

    Raises:
        StorageError: the model carries no record, or what changed cannot be written as data.
    """
    noted = [(path, module, record) for path, module in model.named_modules() if (record := record_of(module))]
    if not noted:
        raise StorageError(
            "the model carries no record of having been made small by plan.apply or ModelSpeedup; an original model is "
            "saved as usual, with safetensors or torch.save"
        )
    changes = {}
    for path, module, record in noted:
        for name, why in record["unsaved"].items():
            raise StorageError(f"{path or 'the model'}: {name} changed, and cannot be written as data: {why}")
        attributes = {}
        held = vars(module)
        for name, before in record["attributes"].items():
            try:
                now = {"after": to_json(held[name], names_in(held))} if name in held else {}
            except NotPlainError as error:
                raise StorageError(f"{path or 'the model'}: {name} cannot be written as data: {error}") from error
            attributes[name] = {**before, **now}
        becomes = describe(module, record["class"], path, registry)
        tensors = {name: _tensor(module, name, shape) for name, shape in record["tensors"].items()}
        if tensors or attributes or becomes:
            changes[path] = Change(record["class"], tensors, attributes, becomes)
    return changes


def _tensor(module: nn.Module, name: str, before: list[int] | None) -> Tensor:
    tensor = {**module._parameters, **module._buffers}.get(name)
    kind = "buffer" if name in module._buffers else "parameter"
    if kind == "buffer" and name in module._non_persistent_buffers_set:
        kind = "hidden buffer"
    after = None if tensor is None else tuple(tensor.shape)
    graded = tensor is None or kind != "parameter" or tensor.requires_grad
    return Tensor(None if before is None else tuple(before), after, kind, graded)


def _tensors(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All parameters and buffers by name, those outside the state dict as well, and further names of the same ones.

    Raises:
        StorageError: some of the model's contents are no plain tensors.
    """
    found: dict[str, torch.Tensor] = {}
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for full, tensor, _ in named_tensors(model):
        if tensor.is_meta:
            raise StorageError(f"{full} is on the meta device: it has no contents")
        if tensor.layout is not torch.strided:
            raise StorageError(
                f"{full} is sparse, which the format does not know: make it a plain attribute, which the code of the "
                "model makes anew, or save with torch.save"
            )
        if id(tensor) in first:
            tied[full] = first[id(tensor)]
            continue
        first[id(tensor)] = full
        # A copy, for tensors may share memory, which the format does not know.
        found[full] = tensor.detach().to("cpu", copy=True).contiguous()
    return found, tied


def named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """The parameters and buffers of a model, by all their names, and whether each is outside of the state dict.

    Raises:
        StorageError: some of the model's contents are no plain tensors.
    """
    for path, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise StorageError(f"{path or 'the model'} keeps extra state that is no tensor: save it with torch.save")
        hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        if any(isinstance(hook, MultiplyInput | MultiplyOutput) for hook in hooks):
            raise StorageError(
                f"{path or 'the model'} multiplies activations with a mask that could not go, in a hook: save it "
                "with torch.save"
            )
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None:
                continue
            full = f"{path}.{name}" if path else name
            if type(tensor) not in (torch.Tensor, nn.Parameter) or tensor.is_quantized:
                raise StorageError(
                    f"{full} is a {type(tensor).__name__}: save the model first, and quantize what is loaded"
                )
            yield full, tensor, name in module._non_persistent_buffers_set


def provenance_of(model: nn.Module) -> dict[str, Any]:
    rounds: list[Any] = next((r["rounds"] for m in model.modules() if (r := record_of(m)) and r["rounds"]), [])
    plugins = {d.name: d.version for d in importlib.metadata.distributions() if _is_plugin(d)}
    return {
        "speedup": importlib.metadata.version("speedup-core"),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "plugins": dict(sorted(plugins.items())),
        "rounds": rounds,
    }


def _is_plugin(distribution: importlib.metadata.Distribution) -> bool:
    return any(entry.group == "speedup.plugins" for entry in distribution.entry_points)
