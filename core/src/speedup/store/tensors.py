"""Files of tensors by name, read and written without ever running code from them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from speedup.errors import StorageError


def safetensors_torch(purpose: str) -> ModuleType:
    """The optional library for safetensors files.

    Raises:
        StorageError: it is not installed; the message has the command.
    """
    try:
        import safetensors.torch
    except ImportError as error:
        raise StorageError(f"{purpose} needs the package safetensors: pip install safetensors") from error
    return safetensors.torch


def read_tensors(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The tensors in a safetensors file or in a state dict that ``torch.save`` wrote, on the CPU.

    Files of ``torch.save`` are read with ``weights_only=True``. Training scripts wrap the state dict in a checkpoint:
    it is then looked for under ``state_dict``, ``model_state_dict`` and ``model``.

    Raises:
        StorageError: no such file, damaged, or nothing of the kind.
    """
    target = Path(path)
    if not target.is_file():
        raise StorageError(f"weight file {str(path)!r}: no such file")
    if target.suffix == ".safetensors":
        library = safetensors_torch(f"reading {target.name}")
        try:
            loaded: Any = library.load_file(target)
        except Exception as error:  # of a class of the library's own, or of the file system
            raise StorageError(f"{str(path)!r} is no whole safetensors file: {error}") from error
    else:
        try:
            loaded = torch.load(target, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file can fail in any way inside torch.load
            if "Unsupported" in str(error):  # a global, an operand, a class
                why = (
                    "it holds more than tensors, such as a whole model: write it with torch.save(model.state_dict(), …)"
                )
            else:
                first = f"{type(error).__name__}: {error}".partition("\n")[0]
                why = f"it is damaged, cut off, or no file of torch.save ({first})"
            raise StorageError(
                f"weight file {str(path)!r} cannot be read as tensors alone (code in it never runs): {why}"
            ) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(isinstance(v, torch.Tensor) for v in loaded.values()):
        raise StorageError(f"weight file {str(path)!r} holds no state dict {{name: tensor}}")
    return dict(loaded)
