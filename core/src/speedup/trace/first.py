"""The first run of a model, on what the user gave: whatever it raises is told in words for the user."""

from __future__ import annotations

from typing import Any

from torch import nn

from speedup.errors import SpeedupError, TraceError
from speedup.graph import Graph
from speedup.masking import Masking
from speedup.registry import Registry
from speedup.trace.meta import on_meta
from speedup.trace.run import trace

_META = (
    ". The model is on the meta device, where tensors have shapes and no contents. Code that looks at contents (item, "
    "tolist, if x.any()) cannot run there, nor can tensors that modules hold as plain attributes elsewhere: make them "
    "buffers, or plan with the weights in memory"
)


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
        try:
            return trace(model, *inputs, registry, answers=(), masking=masking, stands=True)
        except SpeedupError:
            raise
        except Exception:
            # Its code may not take what stands for a number of the data (see ``speedup.trace.number``).
            return trace(model, *inputs, registry, masking=masking)
    except SpeedupError:
        raise
    except Exception as error:
        _, current = getattr(error, "speedup_trace", ([], ""))
        raise TraceError(
            f"the model does not run on the dummy input: {error!r}"
            + (f"; last call: {current}" if current else "")
            + (_META if on_meta(model) else "")
        ) from error
