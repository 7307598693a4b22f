"""Arithmetic between tensors, broadcasting, choice, casts, filling and joining: equal, and what can go goes."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from speedup.testing import Result, check_equal, mask_indices, random_masks, randomize

# Masked filters of the two branches, and the constants that are left of them.
A = {0: 0.75, 3: 0.0, 5: -0.5}
B = {0: 0.5, 3: 0.0, 6: -0.25}


class Net(nn.Module):
    """Two convolutions of 8 channels, what is tested, and a convolution that reads it.

    The body is given those of ``s`` (the net), ``a`` and ``b`` (the branches) that it has parameters for.
    """

    def __init__(self, body: Callable[..., torch.Tensor], width: int = 8, padding: int = 0, **held: Any) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(3, 8, 3, padding=1)
        self.t = nn.Conv2d(width, 5, 3, padding=padding)
        self.body = body
        self.names = tuple(inspect.signature(body).parameters)
        for name, value in held.items():
            if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)
        randomize(self)
        with torch.no_grad():
            for conv, constants in ((self.a, A), (self.b, B)):
                for index, value in constants.items():
                    conv.bias[index] = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given = {"s": lambda: self, "a": lambda: self.a(x), "b": lambda: self.b(x)}
        return self.t(self.body(**{name: given[name]() for name in self.names}))


def image(batch: int, *size: int) -> torch.Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(batch))


def checked(net: Net, same_size: bool = False, **masked: list[int]) -> Result:
    """Equal on the dummy input, at another batch size and at another image size."""
    dropped = {f"{name}.weight": list(at) for name, at in (("a", A), ("b", B)) if name in net.names}
    masks = mask_indices(net, dropped)
    for name, indices in masked.items():
        masks.setdefault("", {})[name] = mask_indices(net, {name: indices}, axis=net.get_parameter(name).ndim - 3)[""][
            name
        ]
    others = [image(3, 6, 6)] if same_size else [image(1, 7, 5), image(3, 9, 8)]
    return check_equal(net, image(2, 6, 6), masks, others)


def kept(result: Result) -> dict[str, int]:
    """Channels that the branches make, and that the last layer reads."""
    a, b, t = (result.shape(f"{name}.weight") for name in ("a", "b", "t"))
    return {"a": a[0], "b": b[0], "t": t[1]}


# -- one tensor -------------------------------------------------------------------------------------------------------

UNARY = (
    "abs absolute acos arccos acosh arccosh asin arcsin asinh arcsinh atan arctan atanh arctanh bitwise_not ceil "
    "clone contiguous cos cosh deg2rad detach digamma erf erfc erfinv exp exp2 expm1 fix floor frac isfinite isinf "
    "isnan isneginf isposinf lgamma log log10 log1p log2 logical_not logit nan_to_num neg negative positive rad2deg "
    "reciprocal round rsqrt sgn sign signbit sin sinc sinh sqrt square tan tanh trunc "
    "special.entr special.erfcx special.i0 special.i0e special.i1 special.i1e special.log_ndtr special.ndtr "
    "special.ndtri special.psi special.gammaln special.expit"
).split()


def forms(name: str) -> list[Callable[[torch.Tensor], torch.Tensor]]:
    """The function, the method and the in-place method, as far as torch has them."""
    namespace, _, plain = name.rpartition(".")
    found = [getattr(torch.special if namespace else torch, plain, None)]
    if not namespace:
        found.append(getattr(torch.Tensor, plain, None))
        inplace = getattr(torch.Tensor, plain + "_", None)
        found.append(inplace and (lambda y: inplace(y.clone())))
    return [form for form in found if form is not None]


@pytest.mark.parametrize("names", [UNARY[i : i + 5] for i in range(0, len(UNARY), 5)], ids=" ".join)
def test_constants_pass_every_function_of_one_tensor(names: list[str]) -> None:
    def applied(name: str, y: torch.Tensor) -> list[torch.Tensor]:
        y = y > 0.5 if name == "bitwise_not" else y + 1 if name in ("acosh", "arccosh") else y
        assert forms(name), f"torch has no {name}"
        return [form(y).double() for form in forms(name)]

    def body(a: torch.Tensor) -> torch.Tensor:
        y = 0.5 * torch.sigmoid(a) + 0.25
        return sum(result for name in names for result in applied(name, y))  # type: ignore[return-value]

    assert kept(checked(Net(body))) == {"a": 5, "b": 8, "t": 5}


SCALARS = {
    "y + 2": lambda a: a + 2,
    "2 + y": lambda a: 2 + a,
    "y - 2": lambda a: a - 2,
    "2 - y": lambda a: 2 - a,
    "torch.rsub": lambda a: torch.rsub(a, 2),
    "y * 2": lambda a: a * 2,
    "2 * y": lambda a: 2 * a,
    "y / 2": lambda a: a / 2,
    "1 / y": lambda a: 1 / (a + 9),
    "y // 2": lambda a: a // 0.2,
    "2 // y": lambda a: 2 // (a + 9.1),
    "y % 2": lambda a: a % 0.3,
    "2 % y": lambda a: 2 % (a.abs() + 0.3),
    "y ** 2": lambda a: a**2,
    "2 ** y": lambda a: 2**a,
    "torch.pow(2, y)": lambda a: torch.pow(2, a),
    "y ** y": lambda a: (a.abs() + 1) ** a,
    "-y": lambda a: -a,
    "+y": lambda a: +a,
    "abs(y)": lambda a: abs(a),
    "y += 1": lambda a: operator.iadd(a, 1),
    "y -= 1": lambda a: operator.isub(a, 1),
    "y *= 3": lambda a: operator.imul(a, 3),
    "y /= 3": lambda a: operator.itruediv(a, 3),
    "y //= 0.3": lambda a: operator.ifloordiv(a, 0.3),
    "y %= 0.3": lambda a: operator.imod(a, 0.3),
    "y **= 2": lambda a: operator.ipow(a, 2),
    "add with alpha": lambda a: torch.add(a, 1, alpha=3),
    "add_": lambda a: a.add_(1),
    "sub with alpha": lambda a: torch.sub(a, a, alpha=0.5),
    "div with rounding": lambda a: torch.div(a, 0.3, rounding_mode="floor"),
    "true_divide": lambda a: torch.true_divide(a, 3),
    "floor_divide": lambda a: torch.floor_divide(a, 0.3),
    "remainder": lambda a: torch.remainder(a, 0.3),
    "fmod": lambda a: a.fmod(0.3),
    "float_power": lambda a: torch.float_power(a, 2),
    "clamp": lambda a: a.clamp(-0.1, 0.3),
    "clamp with one bound": lambda a: torch.clamp(a, min=-0.3),
    "clip": lambda a: torch.clip(a, max=0.5),
    "clamp_min_": lambda a: a.clamp_min_(0.2),
    "clamp_max": lambda a: a.clamp_max(0.2),
    "lerp": lambda a: torch.lerp(a, a * a, 0.3),
    "xlogy": lambda a: torch.xlogy(a, a.abs() + 0.5),
    "y + y": lambda a: a + a,
    "y * y": lambda a: a * a,
    "y - y": lambda a: (a - a) + a,
    "y / y": lambda a: a / (a.abs() + 1),
    "y * 0": lambda a: a * 0 + a,
    "the same twice in a row": lambda a: (a + 1) * (a - 1),
    "comparisons": lambda a: ((a > 0.1).double() + (a <= 0.3) + (a > 0.2) + (a == 0.75) + a.ne(0)).double(),
    "boolean arithmetic": lambda a: ((a > 0) & ~(a > 0.5) | (a < -0.4) ^ (a > 1)).double(),
    "logical functions": lambda a: torch.logical_and(a > 0, torch.logical_not(a > 0.5)).double(),
    "isclose": lambda a: torch.isclose(a, torch.zeros_like(a), atol=0.6).double(),
    "where with numbers": lambda a: torch.where(a > 0, a, -0.3),
    "where with a number first": lambda a: torch.where(a > 0, 2.0, a),
    "masked_fill": lambda a: a.masked_fill(a > 0.1, -1.0),
    "masked_fill_": lambda a: a.masked_fill_(a > 0.1, 0.4),
    "to a dtype": lambda a: a.to(torch.float32).to(torch.float64),
    "float and double": lambda a: a.float().double(),
    "half": lambda a: a.half().to(a.dtype),
    "bfloat16": lambda a: a.bfloat16().type(torch.float64),
    "integers": lambda a: (a * 9).long().double() + (a * 9).int() + (a * 3).short(),
    "type_as": lambda a: (a > 0).type_as(a),
    "to another tensor's type": lambda a: a.float().to(a),
    "bool": lambda a: a.bool().double(),
    "detach": lambda a: a.detach() + a.data,
    "contiguous in another format": lambda a: a.contiguous(memory_format=torch.channels_last),
    "out=": lambda a: torch.add(a, 1, out=torch.empty_like(a)),
    "out= of zeros": lambda a: torch.mul(a, a, out=torch.zeros_like(a)),
    "out= of itself": lambda a: torch.add(a, 1, out=a),
    "a scalar tensor": lambda a: a * torch.full((), 0.5, dtype=a.dtype),
}


@pytest.mark.parametrize("name", SCALARS)
def test_constants_pass_arithmetic_with_one_tensor_in_every_form(name: str) -> None:
    net = Net(SCALARS[name])
    # In half precision the two models round alike, but not their sums.
    assert kept(checked(net)) == {"a": 5, "b": 8, "t": 5}


# -- two branches -----------------------------------------------------------------------------------------------------

# Both branches are constant in channels 0 and 3 only, so 6 of 8 stay.
BOTH = {
    "a + b": lambda a, b: a + b,
    "a - b": lambda a, b: a - b,
    "a * b": lambda a, b: a * b,
    "a / b": lambda a, b: a / (b.abs() + 1),
    "a // b": lambda a, b: a // (b.abs() + 0.3),
    "a % b": lambda a, b: a % (b.abs() + 0.3),
    "a ** b": lambda a, b: (a.abs() + 0.1) ** b,
    "a += b": lambda a, b: operator.iadd(a, b),
    "a -= b": lambda a, b: operator.isub(a, b),
    "a *= b": lambda a, b: operator.imul(a, b),
    "a /= b": lambda a, b: operator.itruediv(a, b.abs() + 1),
    "add with alpha": lambda a, b: a.add(b, alpha=0.5),
    "maximum": lambda a, b: torch.maximum(a, b),
    "minimum": lambda a, b: torch.minimum(a, b),
    "torch.max of two": lambda a, b: torch.max(a, b),
    "min of two": lambda a, b: a.min(b),
    "fmax": lambda a, b: torch.fmax(a, b),
    "atan2": lambda a, b: torch.atan2(a, b + 5),
    "hypot": lambda a, b: torch.hypot(a, b),
    "logaddexp": lambda a, b: torch.logaddexp(a, b),
    "copysign": lambda a, b: torch.copysign(a, b),
    "lerp": lambda a, b: torch.lerp(a, b, 0.3),
    "lerp with a tensor": lambda a, b: torch.lerp(a, b, torch.sigmoid(a)),
    "addcmul": lambda a, b: torch.addcmul(a, a, b, value=0.5),
    "addcdiv": lambda a, b: torch.addcdiv(a, b, b.abs() + 1),
    "where": lambda a, b: torch.where(a > 0, a, b),
    "where with the other's sign": lambda a, b: torch.where(b > 0, a, -a),
    "Tensor.where": lambda a, b: a.where(a > b, b),
    "masked_fill with the other's sign": lambda a, b: a.masked_fill(b > 0.1, -1.0),
    "clamp with a tensor": lambda a, b: a.clamp(min=b),
    "clamp between tensors": lambda a, b: torch.clamp(a, b - 1, b + 1),
    "clamp with max=": lambda a, b: torch.clamp(a, max=b),
    "a > b": lambda a, b: (a > b).to(a.dtype),
    "(a > b) * a": lambda a, b: (a > b) * a,
    "sigmoid gate": lambda a, b: a * torch.sigmoid(b),
    "~(a > b)": lambda a, b: (~(a > b)).double() + a,
    "sum()": lambda a, b: sum([a, b]),
    "mixed dtypes": lambda a, b: (a > 0) + b,
}


@pytest.mark.parametrize("name", BOTH)
def test_branches_keep_the_same_channels(name: str) -> None:
    assert kept(checked(Net(BOTH[name]))) == {"a": 6, "b": 6, "t": 6}


def test_what_is_copied_over_is_only_as_large() -> None:
    # Nothing of a is read, but it has to have the shape of what is copied: all that b keeps.
    assert kept(checked(Net(lambda a, b: a.copy_(b) + torch.relu(a)))) == {"a": 5, "b": 5, "t": 5}
    assert kept(checked(Net(lambda a, b: b + torch.ones_like(a)))) == {"a": 5, "b": 5, "t": 5}


def test_a_carrier_stays_where_borders_differ() -> None:
    # 0.75 + 0.5 goes through one channel, 0 + 0 needs none.
    assert kept(checked(Net(lambda a, b: a + b, padding=1))) == {"a": 7, "b": 7, "t": 7}
    assert kept(checked(Net(lambda a: a + 1, padding=1))) == {"a": 6, "b": 8, "t": 6}
    # Where relu makes 0.75, 0 and 0 of the constants, one is left to be carried: by itself.
    assert kept(checked(Net(lambda a: torch.relu(a) * 2, padding=1))) == {"a": 6, "b": 8, "t": 6}


def test_a_factor_that_is_0_frees_the_other_branch() -> None:
    # b is 0 in channel 3, and after relu also in channel 6: a is not read there.
    assert kept(checked(Net(lambda a, b: a * torch.relu(b)))) == {"a": 5, "b": 5, "t": 5}
    assert kept(checked(Net(lambda a, b: torch.addcmul(b * 0.0, a, torch.relu(b))))) == {"a": 5, "b": 5, "t": 5}
    both = Net(lambda a, b: ((a > 0) & (torch.relu(b) > 0.6)).double())
    # b is nowhere above 0.6 in channels 0, 3 and 6, and a nowhere above 0 in channels 3 and 5.
    assert kept(checked(both)) == {"a": 4, "b": 4, "t": 4}


def test_a_numerator_that_is_0_frees_the_denominator() -> None:
    # relu(a) is 0 in channels 3 and 5; in channel 0 both are constants.
    assert kept(checked(Net(lambda a, b: torch.relu(a) / (1 + b.abs())))) == {"a": 5, "b": 5, "t": 5}


def test_0_divided_by_a_constant_0_is_not_taken_for_0() -> None:
    result = checked(Net(lambda a: torch.nan_to_num(torch.relu(a) / torch.relu(a), nan=7.0)))
    # NaN is no constant that could be folded: of 0.75, 0 and 0 only the first goes.
    assert kept(result)["a"] == 7


# -- broadcasting -----------------------------------------------------------------------------------------------------

P = nn.Parameter
BROADCAST = {
    "channel vector (C, 1, 1)": (lambda s, a: a + s.p, (8, 1, 1), 5),
    "channel vector (1, C, 1, 1)": (lambda s, a: a * s.p, (1, 8, 1, 1), 5),
    "from the left": (lambda s, a: s.p - a, (8, 1, 1), 5),
    "as a denominator": (lambda s, a: a / (s.p.abs() + 1), (8, 1, 1), 5),
    "as a numerator": (lambda s, a: s.p / (a.abs() + 1), (8, 1, 1), 5),
    "used twice": (lambda s, a: (a * s.p) + s.p, (8, 1, 1), 5),
    "a vector that is reshaped": (lambda s, a: a * s.p.view(1, -1, 1, 1), (8,), 5),
    "a vector that gets axes": (lambda s, a: a * s.p[:, None, None], (8,), 5),
    "one number": (lambda s, a: a * s.p, (1,), 5),
    "a scalar": (lambda s, a: a * s.p, (), 5),
    "positions": (lambda s, a: a + s.p, (6, 6), 7),
    "channels and positions": (lambda s, a: a + s.p, (8, 6, 6), 8),
    "a factor per position": (lambda s, a: a * s.p, (1, 1, 6, 6), 7),
}


@pytest.mark.parametrize("kind", ["parameter", "buffer"])
@pytest.mark.parametrize("name", BROADCAST)
def test_a_tensor_of_the_model_is_cut_with_the_channels(name: str, kind: str) -> None:
    body, shape, expected = BROADCAST[name]
    p = torch.randn(shape, generator=torch.Generator().manual_seed(1)).double()
    net = Net(body, p=nn.Parameter(p) if kind == "parameter" else p)
    result = checked(net, same_size=6 in shape)
    if name == "positions":
        # 0.75, 0 and -0.5 differ from place to place alike by what is added: none is 0 everywhere.
        expected = 8
    assert kept(result) == {"a": expected, "b": 8, "t": expected}
    assert result.shape("p") == tuple(expected if s == 8 else s for s in shape)


def test_layer_scale_that_is_masked_frees_its_branch() -> None:
    net = Net(lambda s, a, b: b + s.p * a, p=nn.Parameter(torch.randn(8, 1, 1)))
    result = checked(net, p=[1, 2, 3])
    # Channels 1 and 2 of a are not read, but b is; the operands of the sum keep the same channels.
    assert kept(result) == {"a": 6, "b": 6, "t": 6}
    assert kept(checked(Net(lambda s, a: s.p * a, p=nn.Parameter(torch.randn(8, 1, 1))), p=[1, 2]))["a"] == 3


def test_a_masked_shift_of_a_constant_stays_exact() -> None:
    net = Net(lambda s, a: torch.relu(a + s.p), padding=1, p=nn.Parameter(torch.randn(8, 1, 1)))
    assert kept(checked(net, p=[0, 1, 3]))["a"] == 6


def test_a_plain_tensor_attribute_keeps_its_size_with_a_reason() -> None:
    net = Net(lambda s, a: a + s.table["shift"], table={"shift": torch.randn(8, 1, 1).double()})
    result = checked(net)
    assert kept(result) == {"a": 8, "b": 8, "t": 8}
    assert "torch.Tensor.add" in result.plan.explain("a")


def test_a_buffer_of_zeros_is_no_mask() -> None:
    # Buffers may be written to later: only what is masked counts as 0.
    net = Net(lambda s, a: a * s.p, p=torch.zeros(8, 1, 1).double())
    net.p.zero_()
    net.p[[1, 2]] = 1.0
    assert kept(checked(net)) == {"a": 5, "b": 8, "t": 5}


GATES = {
    "one channel of another branch": (lambda a, b: a * torch.sigmoid(b[:, -1:]), {"a": 7, "b": 1, "t": 7}),
    "one channel that is a constant": (lambda a, b: a * torch.sigmoid(b[:, :1]), {"a": 5, "b": 1, "t": 5}),
    "mean over channels": (lambda a, b: a * b.mean(1, keepdim=True), {"a": 7, "b": 8, "t": 7}),
    "mean over positions": (lambda a, b: a * b.mean((2, 3), keepdim=True), {"a": 6, "b": 6, "t": 6}),
    "one image for all": (lambda a, b: a + b[:1], {"a": 6, "b": 6, "t": 6}),
    "vectors of one image": (lambda a, b: a + b[0].mean((1, 2))[:, None, None], {"a": 6, "b": 6, "t": 6}),
    "outer sum of rows and columns": (lambda a, b: a.mean(2, True) + b.mean(3, True), {"a": 6, "b": 6, "t": 6}),
}


@pytest.mark.parametrize("name", GATES)
def test_gates_broadcast_in_every_direction(name: str) -> None:
    body, expected = GATES[name]
    assert kept(checked(Net(body))) == expected


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, bias=False)
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return self.head(x * gate)


def test_squeeze_excite_loses_channels_inside_and_out() -> None:
    net = randomize(SqueezeExcite())
    masks = mask_indices(net, {"stem.weight": [0, 5], "down.weight": [1, 2], "down.bias": [1, 2]})
    result = check_equal(net, image(2, 6, 6), masks, [image(3, 8, 7)])
    assert [result.shape(f"{n}.weight")[:2] for n in ("stem", "down", "up", "head")] == [(6, 3), (2, 6), (6, 2), (5, 6)]


@pytest.mark.parametrize("seed", range(4))
def test_squeeze_excite_is_equal_under_any_masks(seed: int) -> None:
    net = randomize(SqueezeExcite(), seed)
    check_equal(net, image(2, 6, 6), random_masks(net, seed, "mixed"), [image(3, 8, 7)])


# -- tensors made in the forward --------------------------------------------------------------------------------------

MADE = {
    "zeros_like": (lambda a: a + torch.zeros_like(a), 8, (5, 5)),
    "ones_like of itself, changed": (lambda a: a + torch.ones_like(a * 2), 8, (5, 5)),
    "full_like": (lambda a: a * torch.full_like(a, 0.5), 8, (5, 5)),
    "fill_": (lambda a: a + a.clone().fill_(3.0), 8, (5, 5)),
    "zero_": (lambda a: a + a.clone().zero_(), 8, (5, 5)),
    "zeros of a shape": (lambda a: a + torch.zeros(a.shape, dtype=a.dtype), 8, (5, 5)),
    "ones of the channels": (lambda a: a * torch.ones(1, a.shape[1], 1, 1, dtype=a.dtype), 8, (5, 5)),
    "ones of a literal width": (lambda a: a * torch.ones(1, 8, 1, 1, dtype=a.dtype), 8, (8, 8)),
    "new_zeros": (lambda a: a + a.new_zeros(1), 8, (5, 5)),
    "new_full": (lambda a: a * a.new_full((), 0.5), 8, (5, 5)),
    "copy_ into an empty tensor": (lambda a: torch.empty_like(a).copy_(a), 8, (5, 5)),
    "zeros joined on": (
        lambda a: torch.cat([a, torch.zeros(a.shape[0], 2, *a.shape[2:], dtype=a.dtype)], 1),
        10,
        (5, 7),
    ),
    "new_zeros joined before": (lambda a: torch.cat([a.new_zeros(a.shape[0], 2, *a.shape[2:]), a], 1), 10, (5, 7)),
    "as many zeros as channels": (lambda a: torch.cat([a, torch.zeros_like(a)], 1), 16, (5, 10)),
    "positions joined on": (
        lambda a: torch.cat([a, torch.linspace(-1, 1, a.shape[3], dtype=a.dtype).expand(len(a), 1, *a.shape[2:])], 1),
        9,
        (5, 6),
    ),
}


# What the code makes of a literal width stays: the two channels of "zeros joined on" are read by the last layer.
@pytest.mark.parametrize("name", MADE)
def test_tensors_made_in_the_forward_follow_or_stay(name: str) -> None:
    body, width, expected = MADE[name]
    result = checked(Net(body, width=width))
    assert (kept(result)["a"], kept(result)["t"]) == expected


# -- joining ----------------------------------------------------------------------------------------------------------

JOINED = {
    "cat": (lambda a, b: torch.cat([a, b], 1), 16, {"a": 5, "b": 5, "t": 10}),
    "cat of a tuple, dim=": (lambda a, b: torch.cat((a, b), dim=-3), 16, {"a": 5, "b": 5, "t": 10}),
    "concat": (lambda a, b: torch.concat([b, a], 1), 16, {"a": 5, "b": 5, "t": 10}),
    "concatenate": (lambda a, b: torch.concatenate([b, a], axis=1), 16, {"a": 5, "b": 5, "t": 10}),
    "hstack": (lambda a, b: torch.hstack([a, b]), 16, {"a": 5, "b": 5, "t": 10}),
    "cat with out=": (lambda a, b: torch.cat([a, b], 1, out=a.new_empty(0)), 16, {"a": 5, "b": 5, "t": 10}),
    "the same twice": (lambda a: torch.cat([a, a], 1), 16, {"a": 5, "b": 8, "t": 10}),
    "the same, changed": (lambda a: torch.cat([a, torch.relu(a), a * 2], 1), 24, {"a": 5, "b": 8, "t": 15}),
    "with a part of itself": (lambda a: torch.cat([a, a[:, :4]], 1), 12, {"a": 7, "b": 8, "t": 11}),
    "growing as a DenseNet": (
        lambda a, b: torch.cat([a, b, torch.cat([a, b], 1) * 2], 1),
        32,
        {"a": 5, "b": 5, "t": 20},
    ),
    "rows": (lambda a, b: torch.cat([a, b], 2), 8, {"a": 7, "b": 7, "t": 7}),
    "rows by dstack": (lambda a, b: torch.dstack([a, b]), 8, {"a": 7, "b": 7, "t": 7}),
    "images": (lambda a, b: torch.vstack([a, b]).relu_(), 8, {"a": 7, "b": 7, "t": 7}),
    "stacked channels": (lambda a, b: torch.stack([a, b], 1).flatten(1, 2), 16, {"a": 6, "b": 6, "t": 12}),
    "interleaved channels": (lambda a, b: torch.stack([a, b], 2).flatten(1, 2), 16, {"a": 6, "b": 6, "t": 12}),
    "stacked and summed": (lambda a, b: torch.stack([a, b]).sum(0), 8, {"a": 6, "b": 6, "t": 6}),
    "stacked and averaged": (lambda a, b: torch.stack([a, a + 0.0 * a]).mean(0), 8, {"a": 5, "b": 1, "t": 5}),
}


@pytest.mark.parametrize("name", JOINED)
def test_joined_tensors_keep_what_each_of_them_keeps(name: str) -> None:
    body, width, expected = JOINED[name]
    result = checked(Net(body, width=width))
    assert kept(result) == expected


class Dense(nn.Module):
    """Layers that read all maps before them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(6 + 4 * i, 4, 3, padding=1, bias=False) for i in range(3))
        self.head = nn.Conv2d(18, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            maps.append(conv(F.relu(norm(torch.cat(maps, 1)))))
        return self.head(torch.cat(maps, 1))


def test_dense_growth_loses_every_masked_filter_everywhere() -> None:
    net = randomize(Dense())
    dropped = {"stem.weight": [1, 4], "convs.0.weight": [0], "convs.1.weight": [2, 3], "convs.2.weight": [1]}
    for i in range(3):
        # Where the norm before a padded convolution has no shift, zeros stay zeros.
        nn.init.zeros_(net.norms[i].running_mean)
    masks = mask_indices(net, dropped)
    for i in range(3):
        masks |= mask_indices(net, {f"norms.{i}.bias": range(6 + 4 * i)})
    result = check_equal(net, image(2, 6, 6), masks, [image(3, 8, 7)])
    assert [result.shape(f"convs.{i}.weight")[:2] for i in range(3)] == [(3, 4), (2, 7), (3, 9)]
    assert result.shape("head.weight")[1] == 12


@pytest.mark.parametrize("seed", range(4))
def test_dense_growth_is_equal_under_unaligned_masks(seed: int) -> None:
    net = randomize(Dense(), seed)
    check_equal(net, image(2, 6, 6), random_masks(net, seed, "mixed"), [image(3, 8, 7)])


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for conv in self.convs:
            x = x + conv(F.relu(x))
            x += 0.1 * x
        return self.head(x.mean((2, 3)))


def test_a_residual_stream_loses_the_channels_that_all_its_writers_lack() -> None:
    net = randomize(Residual())
    masks = mask_indices(net, {"stem.weight": [0, 1, 2], "stem.bias": [0, 1, 2]})
    for i in range(3):
        masks |= mask_indices(net, {f"convs.{i}.weight": [i, 1, 2], f"convs.{i}.bias": [i, 1, 2]})
    result = check_equal(net, image(2, 6, 6), masks, [image(3, 8, 7)])
    assert result.shape("head.weight") == (5, 6)
    assert result.shape("convs.1.weight") == (6, 6, 3, 3)


@pytest.mark.parametrize("kind", ["filters", "filters+biases", "columns", "fine", "whole", "mixed"])
def test_a_residual_stream_is_equal_under_all_kinds_of_masks(kind: str) -> None:
    for seed in range(2):
        net = randomize(Residual(), seed)
        check_equal(net, image(2, 6, 6), random_masks(net, seed, kind), [image(3, 8, 7)])


@pytest.mark.parametrize("name", ["a + b", "a * b", "a / b", "where", "clamp between tensors", "(a > b) * a"])
@pytest.mark.parametrize("kind", ["fine", "mixed"])
def test_branches_are_equal_under_other_kinds_of_masks(name: str, kind: str) -> None:
    net = Net(BOTH[name], padding=1)
    for seed in range(2):
        check_equal(net, image(2, 6, 6), random_masks(net, seed, kind), [image(3, 8, 7)])


def test_tensors_without_entries() -> None:
    def empty(a: torch.Tensor) -> torch.Tensor:
        return torch.cat([a[:, :0], a, a.new_zeros(len(a), 0, *a.shape[2:])], 1)

    assert kept(checked(Net(empty)))["t"] <= 8


class Scan(nn.Module):
    """A state per channel, as in state-space models: channels and states of it are sizes of other tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(3, 6), nn.Linear(8, 4)
        self.decay = nn.Parameter(torch.randn(8, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u, v = self.a(x), self.b(x)
        batch, length, channels = u.shape
        state = torch.zeros(batch, channels, self.decay.shape[-1], dtype=x.dtype)
        outputs = []
        for i in range(length):
            state = state * self.decay.sigmoid() + u[:, i, :, None] * v[:, i, None]
            outputs.append((state @ v[:, i, :, None]).squeeze(-1))
        return self.c(torch.stack(outputs, 1))


class Complex(nn.Module):
    """Real and imaginary parts from a layer each."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = torch.complex(self.a(x), self.b(x))
        made: torch.Tensor = self.c((z * z.conj()).real + z.angle() + torch.polar(z.real, z.imag).imag)
        return made


def test_complex_numbers_go_where_both_parts_are_0() -> None:
    model = randomize(Complex(), 0)
    gone = {f"{layer}.{name}": [0, 5] for layer in "ab" for name in ("weight", "bias")}
    result = check_equal(model, torch.randn(2, 3), mask_indices(model, {**gone, "a.bias": [0, 2, 5]}))
    assert [result.shape(f"{n}.weight") for n in "abc"] == [(6, 3), (6, 3), (4, 6)]
    result = check_equal(model, torch.randn(2, 3), mask_indices(model, {"a.weight": [0, 5], "b.weight": [0, 5]}))
    assert result.shape("c.weight") == (4, 8)  # another number than 0 is not followed


class Heads(nn.Module):
    """A matrix for each head, as linear attention keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.k, self.v, self.o = nn.Linear(3, 12), nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        k, v = (y.unflatten(-1, (2, -1)) for y in (self.k(x), self.v(x)))
        state = torch.zeros(x.shape[0], 2, k.shape[-1], v.shape[-1], dtype=x.dtype)
        outputs = []
        for i in range(x.shape[1]):
            state = state + k[:, i, :, :, None] * v[:, i, :, None]
            outputs.append((k[:, i, :, None] @ state).flatten(1))
        return self.o(torch.stack(outputs, 1))


def test_both_sides_of_a_matrix_for_each_head_go() -> None:
    model = randomize(Heads(), 0)
    masks = mask_indices(model, {"k.weight": [0, 6], "k.bias": [0, 6], "v.weight": [1, 5], "v.bias": [1, 5]})
    x, other = (torch.randn(*shape, 3, generator=torch.Generator().manual_seed(1)) for shape in ((2, 4), (3, 7)))
    result = check_equal(model, x, masks, [other])
    assert [result.shape(f"{n}.weight") for n in "kvo"] == [(10, 3), (6, 3), (4, 6)]


def test_channels_and_states_of_a_recurrence_go() -> None:
    model = randomize(Scan(), 0)
    masks = mask_indices(model, {"a.weight": [0, 5], "a.bias": [0, 5], "b.weight": [1], "b.bias": [1]})
    x, other = (torch.randn(*shape, 3, generator=torch.Generator().manual_seed(1)) for shape in ((2, 4), (3, 7)))
    result = check_equal(model, x, masks, [other])
    assert result.shape("a.weight") == (6, 3) and result.shape("b.weight") == (5, 3)
    assert result.shape("decay") == (6, 5) and result.shape("c.weight") == (4, 6)


class OfType(nn.Module):
    """Zeros of the type that another tensor is of, as older code makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.a(x)
        zeros = torch.zeros(y.shape[0], y.shape[1], 2).type(y.type())
        return self.b(torch.cat([zeros, y, zeros], 2))


def test_the_name_of_a_type_is_no_data() -> None:
    model = randomize(OfType(), 0)
    masks = mask_indices(model, {"a.weight": [1, 4], "a.bias": [1, 4]})
    result = check_equal(model, torch.randn(2, 3, 5), masks, [torch.randn(1, 3, 7)])
    assert result.shape("b.weight") == (4, 6, 1) and not result.plan.report.barriers


def test_a_tensor_that_nothing_reads_stays_as_it_is() -> None:
    """A default that the code makes and forgets: nothing asks for fewer of it, so that no code is changed for it."""

    class Forgets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            n, _, height, width = x.shape
            torch.ones((n, height, width), device=x.device)
            result: torch.Tensor = self.b(self.a(x).relu())
            return result

    net = randomize(Forgets())
    result = check_equal(
        net, torch.randn(2, 3, 4, 4), mask_indices(net, {"a.weight": [1, 2]}), [torch.randn(1, 3, 1, 1)]
    )
    assert result.shape("a.weight")[0] == 6
    assert not result.plan.report.repaired
