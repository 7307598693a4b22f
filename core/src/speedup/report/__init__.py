"""What a plan does, for people: data (``data``), made by ``summarize``; shown as text, in notebooks, as a page."""

from speedup.report.data import Kept, Layer, Module, Repaired, Report
from speedup.report.reasons import Reason
from speedup.report.summarize import summarize
from speedup.report.text import explain

__all__ = ["Kept", "Layer", "Module", "Reason", "Repaired", "Report", "explain", "summarize"]
