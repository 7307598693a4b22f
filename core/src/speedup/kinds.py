"""What kinds of reasons there are for keeping an entry: the sentence says what happened, the kind what can be done."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """Why an entry stays.

    Attributes:
        NEEDED: it is read and not constant.
        OUTPUT: it is of an output of the model.
        INPUT: it comes from outside the model.
        ATTRIBUTE: it is of a tensor that the model reads and has as no parameter or buffer.
        BARRIER: a call without a rule makes or reads it.
        DATA: code that depends on the data of the input may read it.
        SIZE: the code of a call holds a size that could not be repaired.
        MEAN: the code takes a mean over it and could not be told to go on counting what goes.
        CONTENTS: it would be constant, but of numbers that are not at hand (the model is on the meta device).
        CARRIER: it carries constants that were removed.
        CONSTANT: it is a constant that cannot be folded.
        RUNS: one number in the code is the size of several tensors: in a loop, in a module that is called twice.
        COUNT: parts of one tensor (groups, heads, chunks) keep equally many.
        LEAST: a tensor is never empty.
        RIGID: an axis can never lose an index: a call reads all of it, or something whole is joined along it.
        RULE: a call would not be well-formed without it; its rule says so.
    """

    NEEDED = "needed"
    OUTPUT = "output"
    INPUT = "input"
    ATTRIBUTE = "attribute"
    BARRIER = "barrier"
    DATA = "data"
    SIZE = "size"
    MEAN = "mean"
    CONTENTS = "contents"
    CARRIER = "carrier"
    CONSTANT = "constant"
    RUNS = "runs"
    COUNT = "count"
    LEAST = "least"
    RIGID = "rigid"
    RULE = "rule"
