"""What the tensors of a small model are: found by putting a plan into its model for a moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from speedup.registry import Registry
from speedup.store.format import Change
from speedup.store.writing import changes_of, named_tensors


@dataclass(frozen=True)
class Final:
    """A parameter or buffer of the small model.

    Attributes:
        names: all that it has.
        made: whether it is another one than in the original, which has it under ``names``.
        hidden: whether it is outside of the state dict.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    made: bool
    hidden: bool


@dataclass(frozen=True)
class Outcome:
    """The small model as data.

    Attributes:
        changes: what changed of its modules, by path.
        finals: its tensors.
    """

    changes: Mapping[str, Change]
    finals: tuple[Final, ...]


def outcome_of(small: nn.Module, originals: set[int], registry: Registry) -> Outcome:
    """Look at a model that has a plan in it.

    Args:
        originals: the identities of the parameters and buffers that it had before.

    Raises:
        StorageError: it cannot be saved as data, the message says why.
    """
    names: dict[int, list[str]] = {}
    found: dict[int, Final] = {}
    for name, tensor, hidden in named_tensors(small):
        key = id(tensor)
        names.setdefault(key, []).append(name)
        was = found.get(key)
        found[key] = Final(
            tuple(names[key]), tuple(tensor.shape), key not in originals, hidden and (was is None or was.hidden)
        )
    return Outcome(changes_of(small, registry), tuple(found.values()))
