"""Names of modules and parameters, whatever wrappers added to them.

`DataParallel`, `DistributedDataParallel`, `torch.compile`, FSDP and checkpointing each put a module around the model,
and its name into all others: `module.conv1`, `_orig_mod.conv1`. Masks may have been made on either side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from torch import nn

from speedup import walk
from speedup.errors import MaskError
from speedup.masks import hints

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


class Names:
    """The names of one model.

    Attributes:
        modules: every module by every name that it has.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(walk.all_paths(model))

    @cached_property
    def _bare(self) -> dict[str, list[str]]:
        """The names without what wrappers add, each with those that are the same then."""
        found: dict[str, list[str]] = {}
        for name in self.modules:
            found.setdefault(bare(name), []).append(name)
        return found

    def parameter(self, name: str) -> tuple[str, str] | None:
        """The module and the attribute of a parameter; None if the model has none of that name."""
        path, _, attribute = name.rpartition(".")
        for owner in self._alike(path):
            if walk.parameter(self.modules[owner], attribute) is not None:
                return owner, attribute
        return None

    def _alike(self, path: str) -> Iterator[str]:
        """The modules that a name may mean, the one that has it exactly first."""
        if path in self.modules:
            yield path
        yield from (p for p in self._bare.get(bare(path), ()) if p != path)

    def nested(self, masks: Mapping[Any, Any]) -> dict[Any, Any]:
        """Masks by the names of this model, `{module: {parameter: mask}}`; what is not known stays as it is.

        Raises:
            MaskError: two names mean one parameter (`0.weight` beside `0`, `module.0`), and their masks differ.
        """
        result: dict[Any, Any] = {}
        for name, entry in masks.items():
            if not isinstance(name, str):
                result[name] = entry
            elif hints.is_array(entry) and (found := self.parameter(name)) is not None:
                owner, attribute = found
                self._put(result, owner, {attribute: entry})
            elif hints.is_array(entry):
                self._put(result, name, entry)
            else:
                self._put(result, self._owner(name, entry), entry)
        return result

    def _owner(self, name: str, entry: Any) -> str:
        """Of all modules that a name may mean, the one that has the parameters."""
        wanted = [key for key in entry if isinstance(key, str)] if isinstance(entry, Mapping) else []
        if name in self.modules and all([key in self.modules[name]._parameters for key in wanted]):
            return name
        fits = (p for p in self._alike(name) if all(key in self.modules[p]._parameters for key in wanted))
        found = next(fits, None)
        return found if found is not None else next(self._alike(name), name)

    @staticmethod
    def _put(result: dict[Any, Any], name: str, entry: Any) -> None:
        known = result.get(name)
        if isinstance(known, dict) and isinstance(entry, Mapping):
            for key, mask in entry.items():
                if known.get(key) is None or mask is None:
                    known[key] = mask if known.get(key) is None else known[key]
                elif not hints.is_same(known[key], mask):
                    raise MaskError(hints.two_masks(name, key))
        else:
            result[name] = dict(entry) if isinstance(entry, Mapping) else entry


def bare(name: str) -> str:
    """A name without the parts that wrappers add."""
    parts = name.split(".")
    return name if WRAPPERS.isdisjoint(parts) else ".".join([part for part in parts if part not in WRAPPERS])
