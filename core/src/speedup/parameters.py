"""The parameters of functions, as a rule lists them: by place, by keyword, under other names that functions have."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any


class Parameters:
    """The parameters of the functions of a rule.

    Args:
        call: written like a Python parameter list, "input, weight, bias=None".
        also: other names by which functions take one of them.

    Example:
        >>> view = Parameters("input, *sizes", {"shape": "sizes"})
        >>> view.arguments((x,), {"shape": (2, 8)})
        {'input': x, 'sizes': (2, 8)}
    """

    def __init__(self, call: str, also: Mapping[str, str]) -> None:
        self._signature = inspect.signature(eval(f"lambda {call}: 0"))
        self._places = list(self._signature.parameters.values())
        self._also = also

    def arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """What a call gives for each parameter, defaults included.

        Raises:
            TypeError: it gives others, or too few.
        """
        named = {self._own_name(keyword): value for keyword, value in kwargs.items()}
        for place, parameter in enumerate(self._places):
            if _takes_several(parameter) and parameter.name in named and parameter.name in self._also.values():
                # Several in one, which only a place takes, and so all before it.
                before = [named.pop(p.name) for p in self._places[len(args) : place]]
                args = (*args, *before, named.pop(parameter.name))
        bound = self._signature.bind(*args, **named)
        bound.apply_defaults()
        return dict(bound.arguments)

    def with_others(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], changed: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A call with some arguments replaced, each spelt as the call spells it."""
        places, keywords = list(args), dict(kwargs)
        spelt = {self._own_name(keyword): keyword for keyword in kwargs}
        for name, value in changed.items():
            place = next(i for i, p in enumerate(self._places) if p.name == name)
            several = _takes_several(self._places[place])
            if name in spelt:
                (keywords[spelt[name]],) = value if several else (value,)
            elif several:
                places[place:] = value
            elif place < len(places):
                places[place] = value
            else:
                keywords[name] = value
        return tuple(places), keywords

    def _own_name(self, keyword: str) -> str:
        return self._also.get(keyword, keyword)


def _takes_several(parameter: inspect.Parameter) -> bool:
    return parameter.kind is inspect.Parameter.VAR_POSITIONAL
