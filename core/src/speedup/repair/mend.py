"""The loop of trying repairs.

When the small model differs from the plan at a call, the code holds a stale size. In this order, each tried by running
the small model again and accepted only if it then agrees with the plan further than before: an integer attribute of
the module in whose forward the call stands; the one argument of that one call, in a copy of the method. Where one
repair was not enough, what the calls behind it may need is tried at once. What nothing repairs is left to be locked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce

from speedup.errors import SpeedupError
from speedup.mismatch import Mismatch
from speedup.repair.ahead import Step, steps
from speedup.repair.job import Job
from speedup.repair.options import options
from speedup.repair.parts import Repairs, joined

log = logging.getLogger("speedup")

_TRIALS = 200
_LOOKS = 3  # that may show nothing

Trial = Callable[[Repairs], Mismatch | None]
Look = Callable[[Repairs], Sequence[Mismatch]]


class _Trials:
    """Runs of the small model with some repairs, up to a limit."""

    def __init__(self, run: Trial, ahead: Look) -> None:
        self.run = run
        self.left = _TRIALS
        self.looks = _LOOKS
        self._ahead = ahead

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

    def ahead(self, job: Job, found: Mismatch, repairs: Repairs, attributes: bool) -> tuple[Repairs, Mismatch | None]:
        """Repairs with which the model agrees with the plan further than before, of all that is known to be stale from
        here on; those that were given where there are none."""
        if not self.looks:
            return repairs, found
        known = (found, *found.others) if found.stage else self._ahead(repairs)
        careful_from: int | None = None
        chosen: list[Step] = []
        for _ in range(2):
            chosen = list(steps(job, known, repairs, attributes, careful_from))
            better, then = self._tried(chosen, repairs, found)
            if then is None or then.stage > found.stage:
                return _with(chosen, repairs), then
            careful_from = min([n.index for n, _ in chosen if n.scope == then.node.scope], default=then.node.index)
            proven = [(node, step) for node, step in chosen if node.index < then.node.index]
            if better and len(proven) == len(chosen):
                return _with(chosen, repairs), then
            chosen = proven
        better, then = self._tried(chosen, repairs, found)
        if better:
            return _with(chosen, repairs), then
        self.looks -= 1
        return repairs, found

    def _tried(self, chosen: list[Step], repairs: Repairs, than: Mismatch) -> tuple[bool, Mismatch | None]:
        return self.further(_with(chosen, repairs), than) if chosen else (False, than)


def _with(chosen: list[Step], repairs: Repairs) -> Repairs:
    return reduce(joined, (step for _, step in chosen), repairs)


def mend(job: Job, run: Trial, ahead: Look, steady: Callable[[Repairs], bool]) -> tuple[Repairs, Mismatch | None]:
    """Repair what differs from the plan.

    Args:
        run: runs the small model with some repairs; where it differs from the plan, None when nowhere.
        ahead: calls that hold stale sizes in the small model with some repairs.
        steady: whether the model with these repairs is right for inputs of other sizes too.

    Returns:
        the repairs, and where the model still differs: to be locked; then the repairs are not to be used.

    Raises:
        CheckError: nothing is repaired, and the numbers differ.
    """
    first = run({})
    if first is None:
        return {}, None
    trials = _Trials(run, ahead)
    left: Mismatch = first
    so_far: Repairs = {}
    for attributes in (True, False):
        repairs, found = _mend(job, trials, first, attributes)
        if found is None:
            if steady(repairs):
                return repairs, None
            log.debug("the repairs do not hold at other sizes: %s", repairs)
        elif left is first or found.progress > first.progress:
            left, so_far = found, repairs
        if not any(r.attributes for r in repairs.values()):
            break
    return {}, left if left.stage else replace(left, others=_hopeless(job, left, ahead(so_far)))


def _hopeless(job: Job, left: Mismatch, known: Sequence[Mismatch]) -> list[Mismatch]:
    """Of the stale calls behind one that nothing repairs, those in its line, and in lines for which there is nothing to
    try either."""
    hopeless = {(left.node.op, left.node.sites): True}
    found = []
    for each in known:
        line = each.node.op, each.node.sites
        if each.node.index <= left.node.index:
            continue
        if line not in hopeless:
            hopeless[line] = next(options(job, each, {}, True, alone=True), None) is None
        if hopeless[line]:
            found.append(each)
    return found


def _mend(job: Job, trials: _Trials, found: Mismatch | None, attributes: bool) -> tuple[Repairs, Mismatch | None]:
    repairs: Repairs = {}
    while found is not None:
        if repairs:
            repairs, found = trials.ahead(job, found, repairs, attributes)
            if found is None:
                break
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
