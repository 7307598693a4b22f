"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(*targets: Path) -> Iterator[tuple[Path, ...]]:
    """Paths to write to in the place of some files, which are replaced with them, in this order, at the end.

    On an error nothing is replaced, and nothing is left over.

    Raises:
        OSError: the folder cannot be written to.
    """
    made: list[Path] = []
    try:
        for target in targets:
            handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
            os.close(handle)
            made.append(Path(name))
        yield tuple(made)
        for path in made:
            with path.open("rb+") as file:
                os.fsync(file.fileno())
            path.chmod(0o666 & ~_umask())
        for path, target in zip(made, targets, strict=True):
            path.replace(target)
    finally:
        for path in made:
            path.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
