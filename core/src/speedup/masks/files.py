"""Mask files: of `torch.save`, of safetensors and of numpy, told apart by their contents. No code in them ever runs."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speedup.errors import MaskError
from speedup.masks import hints

KINDS = ("torch", "safetensors", "numpy")


def read(path: str | os.PathLike[str], map_location: Any = None, kind: str | None = None) -> Mapping[Any, Any]:
    """The masks in a file, as they stand in it.

    Args:
        map_location: as in `torch.load`; by default the CPU, so that a file from a device that this machine lacks can
            be read.
        kind: "torch", "safetensors" or "numpy"; by default told from the contents.

    Raises:
        MaskError: no such file, unreadable, truncated, of no known kind, one that holds objects or code, or one that
            holds something other than named tensors. The original error is its cause.
    """
    name = os.fspath(path)
    try:
        kind = kind or _kind(name)
        if kind == "safetensors":
            return _safetensors(name, map_location)
        if kind == "numpy":
            return _numpy(name)
        loaded = _torch(name, map_location)
    except FileNotFoundError as error:
        raise MaskError(f"mask file {name!r}: no such file (looked for {os.path.abspath(name)!r})") from error
    except OSError as error:
        raise MaskError(f"mask file {name!r} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise MaskError(f"mask file {name!r} cannot be read: {error}") from error
    if not isinstance(loaded, Mapping):
        raise MaskError(
            f"mask file {name!r} holds {type(loaded).__name__}, not a dict of masks {{module: {{parameter: mask}}}}"
        )
    return loaded


def _kind(path: str) -> str:
    """What a file is by its first bytes; `torch.save` writes zip archives as numpy does, with other names inside."""
    with open(path, "rb") as file:
        start = file.read(9)
    if start[:6] == b"\x93NUMPY":
        return "numpy"
    if start[:4] == b"PK\x03\x04":
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except zipfile.BadZipFile:
            return "torch"
        return "numpy" if names and all(n.endswith(".npy") for n in names) else "torch"
    if len(start) == 9 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= os.path.getsize(path) - 8:
        return "safetensors"
    return "torch"


def _torch(path: str, map_location: Any) -> Any:
    try:
        return torch.load(path, map_location="cpu" if map_location is None else map_location, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file can fail in any way inside torch.load
        tried = "" if Path(path).suffix in (".pt", ".pth", ".bin") else _TRIED
        raise MaskError(f"mask file {path!r} {hints.load_failure(path, error)}{tried}") from error


_TRIED = " (Tried: safetensors, it has no such header; numpy, it is no .npz or .npy; torch.save, as told.)"


def _numpy(path: str) -> Mapping[str, Any]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise MaskError(f"mask file {path!r} holds one array without a name: save masks with numpy.savez")
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (MaskError, OSError):
        raise
    except ValueError as error:
        if "pickle" in str(error):
            text = "was refused: it holds pickled objects, which may run code; nothing ran. Save plain bool arrays"
            raise MaskError(f"mask file {path!r} {text}") from error
        raise
    except Exception as error:
        raise MaskError(f"mask file {path!r} is damaged or cut off: {type(error).__name__}: {error}") from error


def _safetensors(path: str, map_location: Any) -> Mapping[str, Any]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise MaskError(
            f"mask file {path!r} is a safetensors file: `pip install speedup-core[safetensors]` to read it"
        ) from error
    try:
        return dict(load_file(path, device="cpu" if map_location is None else str(map_location)))
    except OSError:
        raise
    except Exception as error:
        raise MaskError(f"mask file {path!r} is a damaged safetensors file: {error}") from error
