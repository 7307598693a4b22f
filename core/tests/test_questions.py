"""Does code go another way at another size?"""

from __future__ import annotations

import pytest
import torch.nn.functional as F

from speedup.questions import Questions, questions


def pads(x):
    h = x.shape[2]
    if h % 8:
        x = F.pad(x, (0, 0, 0, 8 - h % 8))
    return x


def compares(x):
    return x[:, :32] if x.size(1) > 32 else x


def counts(x, rows):
    while len(rows) < 4:
        rows.append(x)
    return rows


def is_given_a_size(x, height):
    return x + 1 if height >= 16 else x


def is_given_sizes(x, window):
    return [x for n in range(3) if window[n] <= 7]


def unpacks(x):
    b, n, c = x.shape
    last = n - 1
    if last == 0:
        return x
    return x.reshape(b, c, n)


def refuses(x):
    if x.shape[1] != 3:
        raise ValueError("three channels")
    assert x.shape[2] > 4
    return x * 2


def has_options(x, mask=None, mode="train", rate=0.0, fmt=None):
    if mask is not None and mode == "train":
        x = x + mask
    if rate == 0.0 or isinstance(x, tuple):
        return x
    y = x.reshape(x.shape[0], -1)
    if y.requires_grad:
        y = y.detach()
    return y if fmt is None else y * 2


def loops(x):
    for step in range(x.shape[1]):
        x = x + step
    return x


@pytest.mark.parametrize(
    ("function", "limits"),
    [(pads, {8}), (compares, {32}), (counts, {4}), (is_given_a_size, {16}), (is_given_sizes, {7}), (unpacks, set())],
)
def test_conditions_on_sizes_are_found(function, limits):
    found = questions([function.__code__])
    assert isinstance(found, Questions)
    assert set(found.limits) == limits


@pytest.mark.parametrize("function", [refuses, has_options, loops])
def test_other_conditions_are_none(function):
    assert questions([function.__code__]) is None


def test_attributes_that_hold_sizes_are_found_across_methods():
    class Net:
        def forward(self, x):
            self.height = x.shape[2]
            return self.grown(x)

        def grown(self, x):
            return x * 2 if self.height > 8 else x

    assert questions([Net.grown.__code__]) is None
    assert questions([Net.grown.__code__, Net.forward.__code__]) == Questions((8,))


def test_code_without_source_may_ask_for_anything():
    held: dict = {}
    exec("def f(x):\n    return x + 1 if x.shape[0] > 2 else x", held)
    assert questions([held["f"].__code__]) == Questions(())
    exec("def g(x):\n    return x + 1", held)
    assert questions([held["g"].__code__]) is None
