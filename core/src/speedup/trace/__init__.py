"""Tracing: run the model once and record every call as a graph."""

from speedup.trace.first import first_trace
from speedup.trace.recorder import Recorder
from speedup.trace.run import trace
from speedup.trace.sandbox import sandbox

__all__ = ["Recorder", "first_trace", "sandbox", "trace"]
