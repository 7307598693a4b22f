"""Does code go another way at another size?"""

from __future__ import annotations

import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from packaging.version import Version
from torch import nn

from speedup.questions import Questions, code_of, questions
from speedup.registry import default_registry
from speedup.trace.run import trace


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


def is_large(height, width):
    return height * width > 100


def needs_padding(x):
    return bool(x.shape[2] % 8)


def asks_a_helper(x):
    return F.pad(x, (0, 1)) if needs_padding(x) else x


def is_given_several(x, sizes):
    h, w = sizes
    if h * w > 64:
        x = x + 1
    return x


def chooses(x):
    return {True: x.relu, False: x.sigmoid}[x.shape[2] > 10]()


def matches(x):
    match x.shape[1]:
        case 5:
            return x
        case n if n > 20:
            return x + 1
    return x * 2


def has_a_lambda(x):
    return (lambda n: x + 1 if n > 6 else x)(x.shape[1])


def may_repeat_nothing(x):
    for step in range(1, x.shape[1]):
        x = x + step
    return x


@pytest.mark.parametrize(
    ("function", "limits"),
    [
        (is_large, {100}),
        (is_given_several, {64}),
        (chooses, {10}),
        (matches, {5, 20}),
        (has_a_lambda, {6}),
        (may_repeat_nothing, set()),
    ],
)
def test_conditions_elsewhere_than_in_an_if_are_found(function, limits):
    found = questions([function.__code__])
    assert found is not None
    assert set(found.limits) == limits


def test_functions_that_give_what_is_made_of_sizes_are_found():
    assert questions([asks_a_helper.__code__]) is None
    assert questions([asks_a_helper.__code__, needs_padding.__code__]) is not None


def asserts(x, size):
    torch._assert(x.shape[2] == size, "another size")
    return x * 2


def names_the_last_of_a_list(x, layers):
    end = len(layers) - 1
    for k in range(1, end + 1):
        x = layers[k](x)
    return x


@pytest.mark.parametrize("function", [asserts, names_the_last_of_a_list])
def test_checks_and_lists_are_no_conditions_on_sizes(function):
    assert questions([function.__code__]) is None


def test_attributes_may_hold_limits():
    class Net:
        def forward(self, x):
            return x if x.shape[1] > self.window else x + 1

    assert questions([Net.forward.__code__]) == Questions((), frozenset({"window"}))


def asks_for_the_number_of_axes(x):
    n, c = x.shape[:2]
    x = x.view(n, c, -1)
    rank, also = x.ndim, x.dim()
    if rank == 4 or also == 2:
        x = x.flatten(2)
    return x


def test_the_number_of_axes_is_no_size():
    assert questions([asks_for_the_number_of_axes.__code__]) is None


class Asking(nn.Module):
    def forward(self, x):
        names = [n for n, _ in inspect.signature(math.prod).parameters.items()]
        if Version("1.0") >= Version("2.0") or "x" in names:
            return x
        return x + 1 if is_large(x.shape[1], 3) else x


def test_what_python_and_other_packages_decide_is_not_asked_for():
    model = Asking()
    files = {code.co_filename for code in code_of(model, trace(model, (torch.randn(2, 3),), {}, default_registry()))}
    assert files == {__file__}


def test_lambdas_without_the_function_around_them_may_ask_for_anything():
    def around():
        return lambda x: x + 1 if x.shape[1] > 4 else x

    assert questions([around().__code__]) == Questions()
    assert questions([around().__code__, around.__code__]) == Questions((4,))
