"""The beginning of a rule for an op: what can be read off the op itself, and a place for its axes."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import get_testing_overrides

from speedup.errors import InputError
from speedup.names import op_name, variants

_AXES = 'axes="",  # to be written, such as "* i, o i, o? -> * o"; until then the op stays a barrier'


@dataclass(frozen=True)
class Stub:
    """The beginning of a rule.

    Attributes:
        rule: its name, also that of the variable.
        imports: lines that its text needs.
        text: its source.
    """

    rule: str
    imports: tuple[str, ...]
    text: str

    @property
    def distributions(self) -> list[str]:
        """The installed distributions that its imports come from, but for torch and speedup."""
        modules = {line.split()[1].partition(".")[0] for line in self.imports} - {"torch", "speedup"}
        known = importlib.metadata.packages_distributions()
        return sorted({name for module in modules for name in known.get(module, ())})


def stub_for(op: str) -> Stub:
    """Begin a rule for an op.

    Args:
        op: its name as reports have it: ``mylib.MyOp``, ``torch.ops.mylib.my_op``, ``torch.cdist``.

    Raises:
        InputError: nothing of that name can be imported, or it is neither a module type nor a function.
    """
    found = find_op(op)
    if isinstance(found, type) and issubclass(found, nn.Module):
        return _for_module(op, found)
    if isinstance(found, torch._ops.OpOverloadPacket):
        return _for_custom_op(found)
    if not callable(found) or isinstance(found, type):
        raise InputError(f"{op!r} is {found!r}, neither a module type nor a function")
    if not (op_name(found).startswith("torch.") or found in get_testing_overrides()):
        raise InputError(
            f"{op!r} is a plain Python function, whose calls torch does not announce: nothing can claim it, and what "
            "it calls is recorded by itself. Give the module type in whose forward it stands instead"
        )
    return _for_function(op, found)


def find_op(op: str) -> Any:
    """Find what a name stands for, importing what must be.

    Raises:
        InputError: nothing of that name.
    """
    parts = op.split(".")
    if parts[:2] == ["torch", "ops"] and len(parts) >= 4:
        if not hasattr(getattr(torch.ops, parts[2]), parts[3]):
            _import(parts[2])  # a library registers its ops when it is imported
        packet = getattr(getattr(torch.ops, parts[2]), parts[3], None)
        if packet is None:
            raise InputError(f"there is no op {op!r}: which module registers it? Give it with --import")
        return packet
    for end in range(len(parts) - 1, 0, -1):
        found = _import(".".join(parts[:end]))
        for name in parts[end:] if found is not None else ():
            found = getattr(found, name, None)
        if found is not None:
            return found
    raise InputError(f"{op!r} cannot be imported here: run this in the environment, and the folder, of your model")


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def _for_module(op: str, kind: type[nn.Module]) -> Stub:
    forward = list(inspect.signature(kind.forward).parameters.values())[1:]
    takes = [p.name for p in forward if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    operands = list(dict.fromkeys([*takes, *_parameters(kind)]))
    rule = _snake(kind.__name__)
    lines = [
        f'name="{rule}",',
        f"modules=({kind.__name__},),",
        f"operands={_tuple(operands)},  # tensors that the module holds, by attribute; else what its forward is given",
        _AXES,
        'sizes={},  # integer attributes that count axes, such as {"in_features": "i"}',
    ]
    return Stub(rule, (f"from {op.rpartition('.')[0]} import {kind.__name__}",), _rule(rule, lines))


def _for_custom_op(packet: Any) -> Stub:
    overload = getattr(packet, packet.overloads()[0])
    arguments = overload._schema.arguments
    tensors = [a.name for a in arguments if str(a.type) in ("Tensor", "Optional[Tensor]")]
    call = [a.name + (f"={a.default_value!r}" if a.has_default_value() else "") for a in arguments]
    path = f"torch.ops.{packet!s}"
    rule = path.rpartition(".")[2]
    owner = registered_by(packet)
    lines = [
        f'name="{rule}",',
        f"functions=({path}, {path}.{packet.overloads()[0]}),",
        f'call="{", ".join(call)}",',
        f"operands={_tuple(tensors)},",
        _AXES,
    ]
    imports = ("import torch", *((f"import {owner}  # noqa: F401  (registers the op)",) if owner else ()))
    return Stub(rule, imports, _rule(rule, lines))


def registered_by(packet: Any) -> str | None:
    """The Python module that registered a custom op, where that can be told."""
    from torch._library.custom_ops import OPDEFS

    name = str(packet).replace(".", "::", 1)
    defined = OPDEFS.get(name)
    module = getattr(getattr(defined, "_init_fn", None), "__module__", None)
    return module if module not in (None, "__main__") else None


def _for_function(op: str, function: Any) -> Stub:
    name = op.rpartition(".")[2]
    try:
        spelled = function in variants(name)
    except ValueError:
        spelled = False
    signature = get_testing_overrides().get(function)
    lines = [
        f'name="{name}",',
        f"functions={f'variants({name!r})'.replace(chr(39), chr(34)) if spelled else f'({op},)'},",
    ]
    if signature is not None:
        parameters = list(inspect.signature(signature).parameters.values())
        lines.append(f'call="{", ".join(_parameter(p) for p in parameters)}",  # check it against the documentation')
        required = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        lines.append(f"operands={_tuple(required)},  # those that are tensors")
    lines.append(_AXES)
    imports = ("from speedup import variants",) if spelled else ("import torch",)
    return Stub(_snake(name), imports, _rule(_snake(name), lines))


def _parameter(parameter: inspect.Parameter) -> str:
    stars = (
        "*" if parameter.kind is parameter.VAR_POSITIONAL else "**" if parameter.kind is parameter.VAR_KEYWORD else ""
    )
    default = parameter.default
    plain = default is None or isinstance(default, bool | int | float | str)
    shown = repr(default).replace('"', "'") if plain else "None"
    return f"{stars}{parameter.name}" + ("" if default is parameter.empty else f"={shown}")


def _parameters(kind: type[nn.Module]) -> Iterator[str]:
    """Names of the parameters and buffers that ``__init__`` sets, as far as its source tells."""
    try:
        source = inspect.getsource(kind.__init__)
    except (OSError, TypeError):
        return
    found = re.findall(
        r"self\.(\w+)(?:\s*:[^=\n]+)?\s*=\s*(?:\w+\.)*Parameter\(|register_(?:parameter|buffer)\(\s*[\"'](\w+)", source
    )
    yield from (one or other for one, other in found)


def _rule(name: str, lines: list[str]) -> str:
    return f"{name} = Rule(\n" + "".join(f"    {line}\n" for line in lines) + ")\n"


def _tuple(names: list[str]) -> str:
    quoted = ", ".join(f'"{name}"' for name in names)
    return f"({quoted},)" if len(names) == 1 else f"({quoted})"


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower().strip("_") or "op"
