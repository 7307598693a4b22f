"""The loop of trying repairs.

When the small model differs from the plan at a call, the code holds a stale size. In this order, each tried by running
the small model again and accepted only if it then agrees with the plan further than before: an integer attribute of
the module in whose forward the call stands; the one argument of that one call, in a copy of the method. What nothing
repairs is left to be locked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from speedup.errors import SpeedupError
from speedup.mismatch import Mismatch
from speedup.repair.job import Job
from speedup.repair.options import options
from speedup.repair.parts import Repairs, joined

log = logging.getLogger("speedup")

_TRIALS = 200

Trial = Callable[[Repairs], Mismatch | None]


class _Trials:
    """Runs of the small model with some repairs, up to a limit."""

    def __init__(self, run: Trial) -> None:
        self.run = run
        self.left = _TRIALS

    def further(self, repairs: Repairs, than: Mismatch) -> tuple[bool, Mismatch | None]:
        """Whether the model agrees with the plan further than before, and where it still differs."""
        if self.left <= 0:
            return False, than
        self.left -= 1
        try:
            found = self.run(repairs)
        except SpeedupError as error:
            log.debug("repair %s: %s", repairs, error)
            return False, than
        return found is None or found.progress > than.progress, found


def mend(job: Job, run: Trial, steady: Callable[[Repairs], bool]) -> tuple[Repairs, Mismatch | None]:
    """Repair what differs from the plan.

    Args:
        run: runs the small model with some repairs; where it differs from the plan, None when nowhere.
        steady: whether the model with these repairs is right for inputs of other sizes too.

    Returns:
        the repairs, and where the model still differs: to be locked; then the repairs are not to be used.

    Raises:
        CheckError: nothing is repaired, and the numbers differ.
    """
    first = run({})
    if first is None:
        return {}, None
    trials = _Trials(run)
    left: Mismatch | None = first
    for attributes in (True, False):
        repairs, found = _mend(job, trials, first, attributes)
        if found is None:
            if steady(repairs):
                return repairs, None
            log.debug("the repairs do not hold at other sizes: %s", repairs)
        elif left is first or found.progress > first.progress:
            left = found
        if not any(r.attributes for r in repairs.values()):
            break
    return {}, left


def _mend(job: Job, trials: _Trials, found: Mismatch | None, attributes: bool) -> tuple[Repairs, Mismatch | None]:
    repairs: Repairs = {}
    while found is not None:
        for option in options(job, found, repairs, attributes):
            more = joined(repairs, option)
            better, then = trials.further(more, found)
            if not better and then is not None and then.progress == found.progress and then is not found:
                # An attribute may set the call right and make another number of it stale.
                for rest in options(job, then, more, attributes=False):
                    again = joined(more, rest)
                    better, last = trials.further(again, found)
                    if better:
                        more, then = again, last
                        break
            if better:
                repairs, found = more, then
                break
        else:
            return repairs, found
    return repairs, None
