"""A part of a tensor that is changed in place: ``x[i] += y`` takes a view, changes it, and assigns it to ``x[i]``."""

from __future__ import annotations

from speedup import Node, Ref, Value, variants

_TAKEN = variants("getitem")


def is_put_back(node: Node) -> bool:
    """Whether a tensor is assigned to the very part of another one that it is a view of."""
    if len(node.args) != 3 or len(node.outputs) != 2 or not all(isinstance(node.args[k], Ref) for k in (0, 2)):
        return False
    if len(node.tensors) != 2:
        return False
    whole, part = node.tensors
    taken = _first_made(part).producer
    if taken is None or taken.op not in _TAKEN or len(taken.tensors) != 1 or taken.args[1] != node.args[1]:
        return False
    source = taken.tensors[0]
    while whole is not source:
        made = whole.producer
        if made is None or not _changes_first(made, whole):
            return False
        whole = made.tensors[0]
    return True


def _first_made(value: Value) -> Value:
    """The tensor as it was before it was changed in place."""
    while value.producer is not None and value.producer.writes and _changes_first(value.producer, value):
        value = value.producer.tensors[0]
    return value


def _changes_first(node: Node, value: Value) -> bool:
    """Whether a value is what a call, or the change of a view, made of its first tensor in place."""
    in_place = node.writes or node.op_name.startswith("in-place change by")
    return in_place and node.module is None and "out" not in node.kwargs and node.outputs[0] is value
