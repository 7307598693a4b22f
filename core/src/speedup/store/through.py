"""The way of ``plan.apply_checkpoint``: what the small model is, whether the checkpoint fits, and then the files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from speedup.commit import Transaction
from speedup.errors import InputError
from speedup.masks import Prepared
from speedup.store.checkpoint import open_checkpoint
from speedup.store.compact import Compactor
from speedup.store.compaction import Compaction
from speedup.store.format import Structure
from speedup.store.outcome import outcome_of
from speedup.store.record import note
from speedup.store.writing import provenance_of

if TYPE_CHECKING:
    from speedup.planned import Plan

log = logging.getLogger("speedup")


def apply_checkpoint(plan: Plan, source: Path, target: Path) -> Compaction:
    """See ``Plan.apply_checkpoint``. The model of the plan has the plan in it for a moment, to be looked at."""
    real = [n for n, p in plan.model.named_parameters() if not p.is_meta]
    if real:
        raise InputError(
            f"the plan was made with weights in memory ({real[0]}), whose constants need not be those of the "
            "checkpoint: make the model on the meta device (with torch.device('meta')), and plan that"
        )
    checkpoint = open_checkpoint(source)
    prepared = Prepared(plan.model, plan._masks)
    assert plan._parts is not None
    try:
        originals = {id(t) for t in (*plan.model.parameters(), *plan.model.buffers())}
        transaction = Transaction(plan.model, plan._parts)
        try:
            transaction.apply()
            prepared.finish(transaction.saved)
            note(transaction, plan.report, "drop" if plan.keeps.drop else "exact")
            outcome = outcome_of(plan.model, originals, plan._rules)
            structure = Structure("", outcome.changes, {}, provenance_of(plan.model))
        finally:
            transaction.undo()
        compactor = Compactor(plan.model, plan.graph.sources, plan.keeps, outcome, checkpoint)
        done = compactor.run(target, structure, log.info)
    finally:
        prepared.undo()
    log.info("wrote %s", done.folder)
    return done
