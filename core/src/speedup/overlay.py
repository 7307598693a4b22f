"""Another forward laid over a module's own class.

Some small modules compute what the original does in another way: a norm that still counts what was removed, attention
in plain calls. Their class is made of an ``Overlay`` and the module's own class, so that nothing else changes:
``isinstance``, copies, pickles, the ``state_dict``. An overlay that a rule lists in ``makes`` can be saved, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from speedup.repair.rewrite import Quiet, original, rewritten


class Overlay:
    """The base of what is laid over a module's own class: a ``forward`` and what it calls.

    A rule whose ``replace`` gives modules with it lists it in ``makes``, so that they can be saved.

    Attributes:
        label: the name of the class that is made; ``{}`` stands for the name of the module's own class.
    """

    label = "{}"
    forward: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Keeps one of the user's, which may register classes, from running."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = super().__reduce_ex__(max(2, int(protocol)))
        if isinstance(reduced, str):
            return reduced
        made = original(type(self))[0]
        kind, base = parts_of(made)
        make, args, *rest = reduced
        return (_revive, (kind, make, tuple(base if a is type(self) else a for a in args), above(made)), *rest)


_classes: dict[tuple[type, type, type | None], type] = {}


def overlaid(kind: type[Overlay], cls: type[nn.Module], over: type[nn.Module] | None = None) -> Any:
    """The class with an overlay: the same one for the same two. Another overlay on it is replaced.

    Methods that were rewritten for smaller sizes stay so, as far as the overlay does not have them itself.

    Args:
        over: a class above ``cls``, over which the overlay is laid: what ``cls`` does itself stays, and its
            ``super().forward(...)`` goes to the overlay. By default it is laid over ``cls``.

    Example:
        >>> module.__class__ = overlaid(SlowForward, type(module))
    """
    base, edits = original(cls)
    _, base = parts_of(base)
    over = None if over is base else over
    if (kind, base, over) not in _classes:
        names = {"__module__": base.__module__, "__qualname__": kind.label.format(base.__qualname__)}
        members = {**names, "__doc__": base.__doc__, "_speedup_overlay": (kind, base), "_speedup_above": over}
        bases = (kind, base) if over is None else (Quiet, base, overlaid(kind, over))
        _classes[kind, base, over] = type(kind.label.format(base.__name__), bases, members)
    kept = edits if over is not None else tuple(e for e in edits if not hasattr(kind, e.method))
    return rewritten(_classes[kind, base, over], kept)


def parts_of(cls: type) -> tuple[type[Overlay] | None, type[nn.Module]]:
    """The overlay of a class, None when it has none, and the class below."""
    found: tuple[type[Overlay] | None, type[nn.Module]] = vars(cls).get("_speedup_overlay", (None, cls))
    return found


def above(cls: type) -> type[nn.Module] | None:
    """The class over which the overlay of a class is laid, where that is one above the user's."""
    found: type[nn.Module] | None = vars(cls).get("_speedup_above")
    return found


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The user's class of a module: without overlay, and without the methods that were rewritten.

    Example:
        >>> plain_class(small.norm)
        <class 'torch.nn.modules.normalization.LayerNorm'>
    """
    return plain(type(module))


def plain(cls: type) -> type[nn.Module]:
    """The same for the class of a module."""
    return parts_of(original(cls)[0])[1]


def _revive(
    kind: type[Overlay], make: Callable[..., Any], args: tuple[Any, ...], over: type[nn.Module] | None = None
) -> Any:
    module = make(*args)
    module.__class__ = overlaid(kind, type(module), over)
    return module
