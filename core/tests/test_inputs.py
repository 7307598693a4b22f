"""`resolve_inputs`: which call of the model a dummy input stands for."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from speedup.errors import InputError, SpeedupError
from speedup.inputs import resolve_inputs

X, Y = torch.ones(1, 2), torch.zeros(3)


def test_a_tensor_is_the_only_argument() -> None:
    args, kwargs = resolve_inputs(X)
    assert len(args) == 1
    assert args[0] is X
    assert kwargs == {}


@pytest.mark.parametrize("given", [(X, Y), (X,), (), (X, 3, None), (3,), ([X, Y],), ({"x": X},), (True, False)])
def test_a_tuple_holds_the_positional_arguments(given: tuple[Any, ...]) -> None:
    args, kwargs = resolve_inputs(given)
    assert type(args) is tuple
    assert [id(a) for a in args] == [id(a) for a in given]
    assert kwargs == {}


@pytest.mark.parametrize("kind", [dict, OrderedDict, UserDict])
def test_a_mapping_holds_the_keyword_arguments(kind: Any) -> None:
    given = kind({"x": X, "scale": 2.0})
    args, kwargs = resolve_inputs(given)
    assert args == ()
    assert type(kwargs) is dict
    assert kwargs is not given
    assert list(kwargs) == ["x", "scale"]
    assert kwargs["x"] is X


class Batch(NamedTuple):
    images: torch.Tensor
    sizes: torch.Tensor


@pytest.mark.parametrize("given", [[X, Y], [], pack_sequence([X]), Batch(X, Y)])
def test_lists_and_named_tuples_are_one_argument(given: Any) -> None:
    args, kwargs = resolve_inputs(given)
    assert len(args) == 1
    assert args[0] is given
    assert kwargs == {}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, ["None", "example"]),
        (np.ones((1, 2)), ["ndarray", "torch.as_tensor"]),
        (X.shape, ["size (1, 2)", "torch.randn(1, 2)"]),
        ((1, 3, 32, 32), ["size (1, 3, 32, 32)", "torch.randn(1, 3, 32, 32)"]),
        ("input.pt", ["str"]),
        (3, ["int"]),
        (torch.nn.Identity(), ["Identity", "order"]),
        (iter([X]), ["batch"]),
        ({1: X}, ["1", "no string", "tuple"]),
    ],
)
def test_anything_else_is_refused_with_the_remedy(given: Any, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        resolve_inputs(given)
    assert isinstance(caught.value, SpeedupError)
    assert isinstance(caught.value, ValueError)
    for word in words:
        assert word in str(caught.value)
