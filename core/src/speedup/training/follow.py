"""Everything that training keeps beside the weights follows a plan, all of it or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from speedup.commit import Transaction
from speedup.errors import InputError
from speedup.training.averages import follow_average
from speedup.training.optimizers import follow_optimizer
from speedup.training.transition import Transition


def follow(transition: Transition, transaction: Transaction, optimizer: Any, average: Any) -> None:
    """Cut gradients, optimizers and averaged copies with the weights.

    Args:
        transition: made before the plan was put in.
        transaction: the plan that was put in.
        optimizer, average: one, or a tuple of several; None for none.

    Raises:
        InputError: one of them cannot be cut; none was changed then.
    """
    optimizers, averages = _several(optimizer), _several(average)
    for each in optimizers:
        if not isinstance(each, Optimizer) and not (hasattr(each, "param_groups") and hasattr(each, "state")):
            raise InputError(f"the optimizer is a {type(each).__name__}, not a torch.optim.Optimizer")
    commits: list[Callable[[], None]] = [_gradients(transition)]
    commits += [follow_optimizer(each, transition) for each in optimizers]
    changes = [follow_average(each, transition, transaction) for each in averages]
    done: list[Callable[[], None]] = []
    try:
        for change, undo in changes:
            done.append(undo)
            change()
        for commit in commits:
            commit()
    except BaseException:
        for undo in reversed(done):
            undo()
        raise


def _gradients(transition: Transition) -> Callable[[], None]:
    if not any([t.is_leaf and t.grad is not None for t in transition.old.values()]):
        return lambda: None
    made = [
        (new, transition.cut(name, old.grad))
        for name, old, new in transition.renewed()
        if isinstance(old, nn.Parameter) and old.grad is not None
    ]

    def commit() -> None:
        for parameter, gradient in made:
            parameter.grad = gradient

    return commit


def _several(given: Any) -> Iterable[Any]:
    if given is None:
        return ()
    return given if isinstance(given, tuple) else (given,)
