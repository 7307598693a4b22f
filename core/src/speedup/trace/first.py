"""The first run of a model, on what the user gave: whatever it raises is told in words for the user."""

from __future__ import annotations

from typing import Any

from torch import nn

from speedup.errors import SpeedupError, TraceError
from speedup.graph import Graph
from speedup.masking import Masking
from speedup.registry import Registry
from speedup.trace.run import trace


def first_trace(
    model: nn.Module,
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
    registry: Registry,
    masking: Masking | None = None,
) -> Graph:
    """Trace the model on the way that the data take. Call it inside ``sandbox``.

    Args:
        masking: as for ``trace``.

    Raises:
        TraceError: the model rejects the input.
    """
    try:
        return trace(model, *inputs, registry, answers=(), masking=masking)
    except SpeedupError:
        raise
    except Exception as error:
        _, current = getattr(error, "speedup_trace", ([], ""))
        raise TraceError(
            f"the model does not run on the dummy input: {error!r}" + (f"; last call: {current}" if current else "")
        ) from error
