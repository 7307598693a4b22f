"""The words for what is wrong with masks: each function states one mistake and what to do about it.

They run only when a mistake was found, so they may look around in the model for the remedy.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

_Modules = Mapping[str, nn.Module]
_SHOWN = 8
_PIECE = 1 << 20
_LARGEST = 1 << 31  # entries of masks that are compared; sparse ones can say that they have any number

_ACCEPTED = (
    "Only tensors, dicts and numbers are accepted in a mask file, because unpickling anything else can run any code "
    "that the file's author put there. Write the file with torch.save({module: {parameter: tensor}}, path)"
)


def is_array(value: object) -> bool:
    """Whether `value` is something that can be a mask."""
    return isinstance(value, torch.Tensor | np.ndarray)


def load_failure(path: str, error: Exception) -> str:
    """Why `torch.load` refused the file, as the end of a sentence that begins with the file's name.

    The advice in torch's own text (to load without `weights_only`) is not repeated.
    """
    text = str(error)
    if found := re.search(r"GLOBAL (\S+)|Unsupported class (\S+)|whose module (\S+) is blocked", text):
        name = next(group for group in found.groups() if group)
        numpy = " (Masks that are numpy arrays: save torch.from_numpy(mask).)" if name.startswith("numpy") else ""
        return f"was refused: it is a pickle that holds code or an object ({name}); nothing ran. {_ACCEPTED}.{numpy}"
    if "TorchScript" in text:
        return f"was refused: it is a TorchScript program, not masks. {_ACCEPTED}"
    if "deserialize object on" in text or "restore data location" in text:
        return f"cannot be loaded to that map_location; leave map_location out ({text.splitlines()[0]})"
    if isinstance(error, EOFError):
        return f"is empty or cut off. {_ACCEPTED}"
    if isinstance(error, pickle.UnpicklingError):
        with open(path, "rb") as file:
            start = file.read(2)
        if start[:1] == b"\x80" or start == b"PK":  # a bare pickle, or one in the zip archive of torch.save
            return (
                "was refused: it is a pickle of another kind than torch.save writes by default, so it may hold code; "
                f"nothing ran. {_ACCEPTED}"
            )
        return f"is damaged, or no file of torch.save. {_ACCEPTED}"
    reason = f"{type(error).__name__}: {text}".splitlines()[0][:200]
    return f"is damaged, cut off, or no file of torch.save ({reason}). {_ACCEPTED}"


def unknown_module(modules: _Modules, name: object, entry: object) -> str:
    """The model has no module `name`, under which `entry` was given."""
    if not isinstance(name, str):
        return f"the name of a module is a string, not {type(name).__name__}"
    if is_array(entry) and (nested := _nested(modules, name)):
        return f"a parameter's mask belongs into its module's dict: write {nested}"
    if isinstance(entry, Mapping) and any(key in modules and isinstance(entry[key], Mapping) for key in entry):
        return f"the model has no module of that name; the masks seem to lie one level deeper: pass masks[{name!r}]"
    if is_array(entry):
        full = [f"{path}.{own}".lstrip(".") for path, module in modules.items() for own in _parameters(module)]
        if near := get_close_matches(name, full, n=3):
            return f"the model has no parameter of that name. {_suggest(near, full, 'parameters')}"
    owners = [key for key, module in modules.items() if _parameters(module)]
    near = get_close_matches(name, owners, n=3) or get_close_matches(name, list(modules), n=3)
    return f"the model has no module of that name. {_suggest(near, owners, 'modules with parameters')}"


def not_a_dict(module: nn.Module, name: str, entry: object) -> str:
    """`entry`, given for an existing module, is not a dict of masks."""
    owned = _parameters(module)
    example = "weight" if "weight" in owned or not owned else owned[0]
    return (
        f"expected a dict of masks by parameter name, not {type(entry).__name__}: "
        f"write {{{name!r}: {{{example!r}: mask}}}}"
    )


def unknown_parameter(modules: _Modules, module_name: str, name: object) -> str:
    """Module `module_name` owns no parameter `name`."""
    module = modules[module_name]
    kind = type(module).__name__
    if not isinstance(name, str):
        return f"the name of a parameter is a string, not {type(name).__name__}"
    if name.startswith(("_input_", "_output_")):
        return "this masks an activation: pass the masks to speedup.plan, which puts it where the activation is"
    if name in module._parameters:
        return (
            f"this {kind} has no {name} (it is None): there is nothing to mask. Leave the entry out or set it to None"
        )
    if name in module._buffers:
        return f"this is a buffer of {kind}, not a parameter, and buffers are not masked: leave the entry out"
    if f"{name}_orig" in module._parameters:
        return (
            "torch.nn.utils.prune computes this tensor at each call from masks of its own. Pass masks=None to use "
            f"those, or make it a parameter again first: torch.nn.utils.prune.remove(module, {name!r})"
        )
    if name in getattr(module._modules.get("parametrizations"), "_modules", {}):
        return (
            "a parametrization computes this tensor at each call. Make it a parameter again first: "
            f"torch.nn.utils.parametrize.remove_parametrizations(module, {name!r})"
        )
    path = f"{module_name}.{name}".strip(".")
    if "." in name and (nested := _nested(modules, path)):
        return f"the parameter belongs to an inner module: write {nested}"
    owned = _parameters(module)
    if not owned:
        prefix = f"{module_name}." if module_name else ""
        inner = [key for key, m in modules.items() if key and key.startswith(prefix) and name in _parameters(m)]
        hint = _suggest([], inner, f"modules inside it with a {name!r}") if inner else "Leave the entry out."
        return f"this {kind} has no parameters of its own. {hint}"
    near = get_close_matches(name, owned, n=3)
    return f"this {kind} has no such parameter. {_suggest(near, owned, 'its parameters')}"


def scripted(path: str) -> str:
    """The parameter belongs to TorchScript."""
    return (
        f"{path!r} is compiled (torch.jit.script or torch.jit.trace), and what is compiled cannot be made smaller. "
        "Leave its masks out (they can be multiplied into its weights), or make the model smaller before it is compiled"
    )


def wrong_shape(shape: Sequence[int], wanted: Sequence[int]) -> str:
    """A mask of `shape` was given for a parameter of shape `wanted`."""
    shape, wanted = tuple(shape), tuple(wanted)
    text = f"the mask has shape {shape}, but the parameter has shape {wanted}."
    if len(shape) == len(wanted) and sorted(shape) == sorted(wanted):
        return f"{text} The same sizes in another order: the mask looks transposed; permute its axes"
    hints = []
    if len(shape) == 1 < len(wanted) and shape[0] == wanted[0]:
        view = ", ".join(["-1"] + ["1"] * (len(wanted) - 1))
        hints.append(f"If it holds one value per index of axis 0, pass mask.view({view}).expand{wanted}")
    if _broadcasts(shape, wanted):
        hints.append(f"It would broadcast, but a mask must have a value for every entry: pass mask.expand{wanted}")
    elif np.prod(shape) == np.prod(wanted):
        hints.append(f"The number of entries agrees: if their order does too, pass mask.reshape{wanted}")
    elif not hints:
        hints.append("Was it made for another version of this model, or for one that was made smaller already?")
    return f"{text} {'. '.join(hints)}"


def is_same(one: Any, other: Any) -> bool:
    """Whether two masks of one parameter say the same, as far as they are masks."""
    if one is other:
        return True
    one, other = (torch.as_tensor(m) if isinstance(m, np.ndarray) else m for m in (one, other))
    if not (isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)) or one.shape != other.shape:
        return False
    if one.is_meta or other.is_meta or one.numel() > _LARGEST:
        return False
    one, other = (
        m.detach().to("cpu").to_dense() if m.layout is not torch.strided else m.detach().cpu() for m in (one, other)
    )
    return bool((one == other).all())


def two_masks(module: str, parameter: str) -> str:
    return (
        f"module {module!r}, {parameter!r}: two entries of the masks mean this parameter (a flat name beside a nested "
        "one, or a name with the prefix of a wrapper beside one without), and they differ: leave one of them out. "
        "To drop what either drops, pass the product of both"
    )


def _number(value: float) -> str:
    """A number in six digits, or in all where it would read as 0 or 1."""
    short = f"{value:.6g}"
    return repr(value) if short in ("0", "1") else short


def not_binary(mask: torch.Tensor) -> str:
    """The dense `mask` has entries that are neither 0 nor 1 (read in pieces: it may be large)."""
    bad = nans = odd = ones = 0
    low, high = float("inf"), float("-inf")
    examples: list[float] = []
    flat = mask.reshape(-1)
    for start in range(0, len(flat), _PIECE):
        values = flat[start : start + _PIECE].to("cpu", torch.float64).numpy()
        finite = np.isfinite(values)
        if not finite.all():
            bad += len(values) - int(np.count_nonzero(finite))
            nans += int(np.count_nonzero(np.isnan(values)))
        is_one = values == 1
        ones += int(np.count_nonzero(is_one))
        strange = values[finite & (values != 0) & ~is_one]
        if len(strange):
            odd += len(strange)
            low, high = min(low, float(strange.min())), max(high, float(strange.max()))
            examples = examples or np.unique(strange)[:3].tolist()
    parts = []
    if bad:
        counts = [f"{count} {what}" for count, what in [(nans, "NaN"), (bad - nans, "infinite")] if count]
        parts.append(
            f"{bad} of {mask.numel()} entries are not finite ({', '.join(counts)}): "
            "look for a division by zero or a logarithm of 0 where the mask is made"
        )
    if odd:
        parts.append(
            f"{odd} of {mask.numel()} entries are neither 0 nor 1 (such as {', '.join(_number(v) for v in examples)}; "
            f"from {_number(low)} to {_number(high)})"
        )
        if low == high and not ones and not bad:
            parts.append(f"Only 0 and {_number(low)} occur: if 0 means drop, pass (mask != 0)")
        else:
            parts.append(
                "A mask says keep (1) or drop (0). Other values are importance scores or a soft mask: "
                "threshold them first, for example (scores > t)"
            )
    return ". ".join(parts)


def _parameters(module: nn.Module) -> list[str]:
    """Names of the parameters that `module` owns directly."""
    return [name for name, parameter in module._parameters.items() if parameter is not None]


def _nested(modules: _Modules, path: str) -> str | None:
    """`path`, a parameter's full name, as the nested dict that names it; None if the model has no such parameter."""
    owner, _, parameter = path.rpartition(".")
    if owner not in modules or parameter not in modules[owner]._parameters:
        return None
    return f"{{{owner!r}: {{{parameter!r}: mask}}}}"


def _suggest(near: Sequence[str], names: Sequence[str], what: str) -> str:
    """Nearest names if there are any, and a bounded list of all of them."""
    shown = ", ".join(repr(name) for name in islice(names, _SHOWN))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    all_names = f"{what[0].upper()}{what[1:]}: {shown or 'none'}{more}"
    return f"Did you mean {' or '.join(repr(name) for name in near)}? {all_names}" if near else all_names


def _broadcasts(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a tensor of `shape` can be expanded to `wanted`."""
    pairs: Any = zip(reversed(shape), reversed(wanted), strict=False)
    return len(shape) <= len(wanted) and all(have in (1, want) for have, want in pairs)
