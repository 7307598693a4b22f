"""Tracing: run the model once and record every call as a graph."""

from speedup.trace.recorder import Recorder, trace
from speedup.trace.sandbox import sandbox

__all__ = ["Recorder", "sandbox", "trace"]
