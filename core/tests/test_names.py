"""Every spelling of a function is found, in the form in which it arrives when a model runs."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from speedup.names import is_reflected, op_name, variants


class _Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


def _arrives(call: str) -> list[Any]:
    """Run a statement and return the functions that arrive in a function mode."""
    values = {
        "x": torch.rand(2, 2) + 1,
        "i": torch.tensor([4, 2]),
        "b": torch.tensor([True, False]),
        "image": torch.rand(1, 1, 4, 4),
        "torch": torch,
        "F": F,
    }
    with _Recorder() as recorder:
        exec(call, values)
    return recorder.seen


OPERATORS = [
    ("add", ["x + 1", "1 + x", "x += 1", "x + x"]),
    ("sub", ["x - 1", "1 - x", "x -= 1"]),
    ("mul", ["x * 2", "2 * x", "x *= 2"]),
    ("div", ["x / 2", "2 / x", "x /= 2"]),
    ("floor_divide", ["x // 2", "2 // x", "x //= 2"]),
    ("remainder", ["x % 2", "2 % x", "x %= 2"]),
    ("pow", ["x ** 2", "2 ** x", "x **= 2", "x.pow(2)", "x.pow_(2)", "torch.pow(x, 2)"]),
    ("matmul", ["x @ x", "torch.matmul(x, x)", "x.matmul(x)"]),
    ("neg", ["-x", "x.neg()", "x.neg_()", "torch.neg(x)"]),
    ("positive", ["+x"]),
    ("abs", ["abs(x)", "x.abs_()"]),
    ("bitwise_and", ["b & b", "i & 1", "1 & i", "i &= 1"]),
    ("bitwise_or", ["b | b", "i | 1", "1 | i", "i |= 1"]),
    ("bitwise_xor", ["b ^ b", "i ^ 1", "1 ^ i", "i ^= 1"]),
    ("bitwise_not", ["~b", "~i"]),
    ("bitwise_left_shift", ["i << 1", "1 << i", "i <<= 1"]),
    ("bitwise_right_shift", ["i >> 1", "1 >> i", "i >>= 1"]),
    ("gt", ["x > 0", "0 < x"]),
    ("lt", ["x < 0"]),
    ("ge", ["x >= 0"]),
    ("le", ["x <= 0"]),
    ("eq", ["x == 0", "torch.eq(x, 0)"]),
    ("ne", ["x != 0"]),
    ("getitem", ["x[0]", "x[:, None]"]),
    ("setitem", ["x[0] = 1"]),
]

FUNCTIONS = [
    ("relu", ["F.relu(x)", "F.relu(x, inplace=True)", "F.relu_(x)", "torch.relu_(x)", "x.relu()", "x.relu_()"]),
    ("max_pool2d", ["F.max_pool2d(image, 2)", "torch.max_pool2d(image, 2)"]),
    ("adaptive_max_pool2d", ["F.adaptive_max_pool2d(image, 1)"]),
    ("adaptive_avg_pool2d", ["F.adaptive_avg_pool2d(image, 1)"]),
    ("conv2d", ["F.conv2d(image, image)", "torch.conv2d(image, image)"]),
    ("linear", ["F.linear(x, x)"]),
    ("tanh", ["F.tanh(x)", "torch.tanh(x)", "x.tanh_()"]),
    ("softmax", ["F.softmax(x, 0)", "torch.softmax(x, 0)", "x.softmax(0)", "torch.special.softmax(x, 0)"]),
    ("norm", ["x.norm()", "torch.norm(x)", "torch.linalg.norm(x)"]),
    ("split", ["x.split(1)", "torch.split(x, 1)"]),
    ("T", ["x.T"]),
    ("mT", ["x.mT"]),
]


@pytest.mark.parametrize(("name", "call"), [(name, call) for name, calls in OPERATORS + FUNCTIONS for call in calls])
def test_variants_cover_what_arrives(name: str, call: str) -> None:
    seen = _arrives(call)
    assert seen
    assert all(func in variants(name) for func in seen), [op_name(func) for func in seen]


@pytest.mark.parametrize("call", ["1 - x", "2 / x", "2 // x", "2 % x", "2 ** x", "1 << i", "torch.rsub(x, 1)"])
def test_swapped_operands_are_known(call: str) -> None:
    assert [is_reflected(func) for func in _arrives(call)] == [True]


@pytest.mark.parametrize("call", ["1 + x", "2 * x", "x - 1", "x ** 2", "1 & i", "0 < x"])
def test_operands_in_order_are_known(call: str) -> None:
    assert [is_reflected(func) for func in _arrives(call)] == [False]
    assert not is_reflected([])  # type: ignore[arg-type]


def test_variants_are_distinct_and_stable() -> None:
    found = variants("add", "sub", "add")
    assert len(found) == len(set(found))
    assert found == variants("add", "sub")
    assert found[: len(variants("add"))] == variants("add")


def test_a_conversion_to_a_python_value_is_no_variant() -> None:
    assert torch.Tensor.__bool__ not in variants("bool")
    assert torch.Tensor.__float__ not in variants("float")


def test_an_unknown_name_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=re.escape("'reluu'; did you mean 'relu'?")):
        variants("relu", "reluu")
    assert variants("relu", "reluu", missing_ok=True) == variants("relu")


def test_an_in_place_name_is_taken_as_it_is() -> None:
    assert torch.Tensor.relu not in variants("relu_")
    assert torch.Tensor.relu_ in variants("relu_")


class _Own(nn.Module):
    pass


class _Instance:
    def __call__(self) -> None:
        return None


@pytest.mark.parametrize(
    ("op", "name"),
    [
        (nn.Conv2d, "torch.nn.Conv2d"),
        (nn.modules.linear.NonDynamicallyQuantizableLinear, "torch.nn.modules.linear.NonDynamicallyQuantizableLinear"),
        (F.relu, "torch.nn.functional.relu"),
        (F.max_pool2d, "torch.nn.functional.max_pool2d"),
        (torch.Tensor.add_, "torch.Tensor.add_"),
        (torch.Tensor.neg, "torch.Tensor.neg"),
        (torch.Tensor.__rdiv__, "torch.Tensor.__rdiv__"),
        (torch.Tensor.__getitem__, "torch.Tensor.__getitem__"),
        (torch.conv2d, "torch.conv2d"),
        (torch.mm, "torch.mm"),
        (torch.norm, "torch.norm"),
        (torch.linalg.norm, "torch.linalg.norm"),
        (F.linear, "torch.nn.functional.linear"),
        (torch.relu, "torch.relu"),
        (torch.ops.aten.add.Tensor, "torch.ops.aten.add.Tensor"),
        (torch.ops.aten.add, "torch.ops.aten.add"),
        (torch.Tensor.T.__get__, "torch.Tensor.T"),
        (_Own, f"{__name__}._Own"),
        (_Instance(), f"{__name__}._Instance"),
        ([], "list"),
    ],
)
def test_op_name(op: Callable[..., Any], name: str) -> None:
    assert op_name(op) == name
