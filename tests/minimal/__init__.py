"""Small networks whose smallest equal network is known, by thinking: what exactly must be left of every layer."""

from tests.minimal.axes import AXES
from tests.minimal.case import Minimal
from tests.minimal.constants import CONSTANTS
from tests.minimal.tables import TABLES
from tests.minimal.ties import TIES

CASES = (*CONSTANTS, *TIES, *AXES, *TABLES)

__all__ = ["CASES", "Minimal"]
