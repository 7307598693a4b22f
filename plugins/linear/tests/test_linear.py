"""Linear layers and matrix products answer exactly as masked, and lose exactly what can go."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from speedup.testing import KINDS, Masks, check_equal, mask_indices, random_masks, randomize


def batch(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def merged(*masks: Masks) -> Masks:
    found: Masks = {}
    for each in masks:
        for path, own in each.items():
            found.setdefault(path, {}).update(own)
    return found


def perceptron(*widths: int, act: Callable[[], nn.Module] = nn.Sigmoid, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(len(widths) - 1):
        layers += [nn.Linear(widths[i], widths[i + 1], bias=bias), act()]
    return randomize(nn.Sequential(*layers[:-1]))


# -- the layer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (2, 3, 4, 5)], ids=["1-D", "2-D", "3-D", "4-D"])
def test_inputs_of_any_rank(shape: tuple[int, ...], bias: bool) -> None:
    """Constants of a sigmoid go into the next bias at any rank, also at a rank that the plan did not see."""
    model = perceptron(5, 8, 6, 3, bias=bias)
    masks = mask_indices(model, {"0.weight": [0, 3, 4], "2.weight": [5]})
    others = [batch(5), batch(1, 5), batch(7, 2, 5), batch(2, 1, 3, 5)]
    result = check_equal(model, batch(*shape), masks, others)
    assert [result.shape(f"{i}.weight") for i in (0, 2, 4)] == [(5, 5), (5, 5), (3, 5)]
    assert [result.model[i].in_features for i in (0, 2, 4)] == [5, 5, 5]
    assert [result.model[i].out_features for i in (0, 2, 4)] == [5, 5, 3]
    assert result.plan.report.gained == ([] if bias else ["2.bias", "4.bias"])


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("widths", [(5, 0, 4, 3), (5, 4, 0), (5, 4, 3, 0, 2)], ids=str)
def test_layers_without_features(widths: tuple[int, ...], lost: int) -> None:
    model = perceptron(*widths)
    weights = [f"{i}.weight" for i in range(0, len(model), 2) if model.get_parameter(f"{i}.weight").shape[0] == 4]
    result = check_equal(
        model, batch(2, 5), mask_indices(model, {name: range(lost) for name in weights}), [batch(3, 5)]
    )
    if widths[1]:
        assert result.shape("0.weight") == (4 - lost, 5)


# masked indices (axis 0, or as written) -> outputs left of every layer of 5-8-6-3
LEFT = {
    "filters": ({"0.weight": [1, 2]}, (6, 6)),
    "filters and biases": ({"0.weight": [1, 2], "0.bias": [1, 2], "2.weight": [0], "2.bias": [0]}, (6, 5)),
    "bias of another filter": ({"0.weight": [1, 2], "0.bias": [3]}, (6, 6)),
    "biases alone": ({"0.bias": [0, 1], "2.bias": [3]}, (8, 6)),
    "columns": ({"2.weight, axis 1": [0, 7]}, (6, 6)),
    "columns of filters that went": ({"0.weight": [0, 7], "2.weight, axis 1": [0, 7]}, (6, 6)),
    "columns of other filters": ({"0.weight": [0, 1], "2.weight, axis 1": [2, 3]}, (4, 6)),
    "columns of the last": ({"4.weight, axis 1": [0, 1, 2, 3]}, (8, 2)),
    "columns of the first stay: the input comes as it is": ({"0.weight, axis 1": [0, 1]}, (8, 6)),
    "a layer whole": ({"2.weight": range(6)}, (1, 1)),
    "the first layer whole": ({"0.weight": range(8)}, (1, 1)),
    "the last layer whole": ({"4.weight": range(3)}, (1, 1)),
    "filters of the last stay: the output keeps its size": ({"4.weight": [0], "4.bias": [0]}, (8, 6)),
}


@pytest.mark.parametrize("act", [nn.Sigmoid, nn.ReLU])
@pytest.mark.parametrize("case", LEFT)
@pytest.mark.filterwarnings("ignore:.* is masked whole")
def test_what_is_left(case: str, act: type[nn.Module]) -> None:
    dropped, left = LEFT[case]
    model = perceptron(5, 8, 6, 3, act=act)
    places = [(place.split(", axis "), indices) for place, indices in dropped.items()]
    masks = merged(*(mask_indices(model, {p[0]: indices}, int(p[-1]) if len(p) > 1 else 0) for p, indices in places))
    result = check_equal(model, batch(4, 5), masks, [batch(1, 5)])
    assert (result.shape("0.weight")[0], result.shape("2.weight")[0]) == left
    assert result.shape("4.weight") == (3, left[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.* is masked whole")
def test_random_masks(kind: str) -> None:
    for seed in range(3):
        model = perceptron(5, 8, 7, 6, 3, act=(nn.Sigmoid, nn.ReLU, nn.GELU)[seed], bias=seed != 1)
        if kind == "biases" and seed == 1:
            continue
        check_equal(model, batch(2, 3, 5), random_masks(model, seed, kind), [batch(5)])


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_a_model_that_is_a_linear_layer(bias: bool) -> None:
    """Its outputs keep their size and its inputs come as they are: the masks are baked in, nothing goes."""
    model = randomize(nn.Linear(5, 4, bias=bias))
    masks = mask_indices(model, {"weight": [1, 2]})
    result = check_equal(model, batch(3, 5), masks, [batch(5)])
    assert isinstance(result.model, nn.Linear)
    assert result.kept == 1.0
    assert not result.model.weight[[1, 2]].any()
    assert bool(result.model.weight[[0, 3]].all())


def test_a_masked_layer_of_integers_in_between() -> None:
    """What the small model computes with is what its attributes say."""
    model = perceptron(5, 8, 3)
    result = check_equal(model, batch(2, 5), mask_indices(model, {"0.weight": [2]}))
    assert repr(result.model[0]) == "Linear(in_features=5, out_features=7, bias=True)"


# -- raw parameters -------------------------------------------------------------------------------------------------


class Raw(nn.Module):
    """Two layers out of parameters that no module owns by type; weights are (out, in), or (in, out) for products."""

    def __init__(self, how: Callable[..., torch.Tensor], turned: bool, bias: bool) -> None:
        super().__init__()
        self.how = how
        self.first = nn.Parameter(torch.empty(5, 8) if turned else torch.empty(8, 5))
        self.second = nn.Parameter(torch.empty(8, 3) if turned else torch.empty(3, 8))
        self.shift = nn.Parameter(torch.empty(8)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.how(x, self.first, self.shift).relu()
        return self.how(x, self.second, None)


def add(x: torch.Tensor, shift: torch.Tensor | None) -> torch.Tensor:
    return x if shift is None else x + shift


# name: the product, whether its weight is (in, out), the shape of its input
PRODUCTS: dict[str, tuple[Callable[..., torch.Tensor], bool, tuple[int, ...]]] = {
    "F.linear": (F.linear, False, (2, 4, 5)),
    "F.linear, by name": (lambda x, w, b: F.linear(input=x, weight=w, bias=b), False, (4, 5)),
    "@": (lambda x, w, b: add(x @ w, b), True, (2, 4, 5)),
    "torch.matmul": (lambda x, w, b: add(torch.matmul(x, w), b), True, (4, 5)),
    "Tensor.matmul": (lambda x, w, b: add(x.matmul(w), b), True, (5,)),
    "torch.mm": (lambda x, w, b: add(torch.mm(x, w), b), True, (4, 5)),
    "Tensor.mm": (lambda x, w, b: add(x.mm(w), b), True, (4, 5)),
    "weight on the left": (lambda x, w, b: add((w @ x.mT).mT, b), False, (2, 4, 5)),
    "turned in the call": (lambda x, w, b: add(x @ w.t(), b), False, (4, 5)),
    "mv": (lambda x, w, b: add(torch.mv(w, x), b), False, (5,)),
    "addmm": (lambda x, w, b: x @ w if b is None else torch.addmm(b, x, w), True, (4, 5)),
    "Tensor.addmm": (lambda x, w, b: x @ w if b is None else b[None].addmm(x, w), True, (4, 5)),
    "addmv": (lambda x, w, b: torch.mv(w, x) if b is None else torch.addmv(b, w, x), False, (5,)),
    "baddbmm": (
        lambda x, w, b: torch.baddbmm(x.new_zeros(()) if b is None else b, x, w.expand(len(x), -1, -1)),
        True,
        (2, 4, 5),
    ),
    "inner": (lambda x, w, b: add(torch.inner(x, w), b), False, (2, 4, 5)),
    "einsum": (lambda x, w, b: add(torch.einsum("nti,io->nto", x, w), b), True, (2, 4, 5)),
    "einsum with dots": (lambda x, w, b: add(torch.einsum("...i, oi -> ...o", x, w), b), False, (2, 4, 5)),
    "bmm": (lambda x, w, b: add(torch.bmm(x, w.expand(len(x), -1, -1)), b), True, (2, 4, 5)),
}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("product", PRODUCTS)
def test_raw_parameters(product: str, bias: bool) -> None:
    how, turned, shape = PRODUCTS[product]
    model = randomize(Raw(how, turned, bias))
    masks = mask_indices(model, {"first": [0, 2, 7]}, axis=int(turned))
    if bias:
        masks = merged(masks, mask_indices(model, {"shift": [0, 2, 7]}))
    result = check_equal(model, batch(*shape), masks, [batch(*shape[:-1], 5) * 2])
    assert result.shape("first") == (5, 5)
    assert result.shape("second") == ((5, 3) if turned else (3, 5))
    if bias:
        assert result.shape("shift") == (5,)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("kind", ["filters", "columns", "mixed"])
def test_random_masks_of_raw_parameters(product: str, kind: str) -> None:
    how, turned, shape = PRODUCTS[product]
    model = randomize(Raw(how, turned, True))
    check_equal(model, batch(*shape), random_masks(model, 1, kind))


def test_raw_parameters_in_a_list() -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList([nn.Parameter(torch.empty(b, a)) for a, b in ((5, 8), (8, 6), (6, 3))])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for weight in self.weights:
                x = F.linear(x, weight).tanh()
            return x

    model = randomize(Stack())
    result = check_equal(
        model, batch(2, 5), mask_indices(model, {"weights.0": [1, 2], "weights.1": [0]}), [batch(7, 5)]
    )
    assert [result.shape(f"weights.{i}") for i in range(3)] == [(6, 5), (5, 6), (3, 5)]


# -- tied weights ---------------------------------------------------------------------------------------------------


class Autoencoder(nn.Module):
    """The decoder is the encoder's weight turned."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.encoder = nn.Linear(5, 8)
        self.middle = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.middle(self.encoder(x).relu()).relu()
        if self.form == "matmul":
            return h @ self.encoder.weight
        return F.linear(h, self.encoder.weight.t())


@pytest.mark.parametrize("form", ["matmul", "linear"])
def test_a_tied_decoder(form: str) -> None:
    """The code shrinks where both ends allow it."""
    model = randomize(Autoencoder(form))
    both = {"encoder.weight": [0, 1], "encoder.bias": [0, 1], "middle.weight": [0, 1], "middle.bias": [0, 1]}
    result = check_equal(model, batch(4, 5), mask_indices(model, both), [batch(5)])
    assert result.shape("encoder.weight") == (6, 5)
    assert result.shape("middle.weight") == (6, 6)
    for seed in range(3):
        check_equal(model, batch(4, 5), random_masks(model, seed, "mixed"), [batch(5)])


class Tied(nn.Module):
    """Two layers with one weight, each with a bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b, self.last = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.b(self.a(self.first(x).relu()).relu()).relu())


def test_two_layers_with_one_weight() -> None:
    model = randomize(Tied())
    all_four = [f"{layer}.{name}" for layer in ("first", "a") for name in ("weight", "bias")]
    masks = mask_indices(model, {name: [3, 4] for name in [*all_four, "b.bias"]})
    result = check_equal(model, batch(2, 5), masks, [batch(5)])
    assert result.model.a.weight is result.model.b.weight
    assert [result.shape(f"{n}.weight") for n in ("first", "a", "last")] == [(6, 5), (6, 6), (3, 6)]
    for seed in range(4):
        result = check_equal(model, batch(2, 5), random_masks(model, seed, "mixed"), [batch(5)])
        assert result.model.a.weight is result.model.b.weight


def test_a_layer_called_in_a_loop() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.step, self.last = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            for _ in range(3):
                x = torch.relu(self.step(x))
            return self.last(x)

    model = randomize(Loop())
    names = [f"{layer}.{name}" for layer in ("first", "step") for name in ("weight", "bias")]
    result = check_equal(model, batch(2, 5), mask_indices(model, {name: [0, 6] for name in names}), [batch(5)])
    assert result.shape("step.weight") == (6, 6)
    for seed in range(4):
        check_equal(model, batch(2, 5), random_masks(model, seed, "mixed"), [batch(5)])


@pytest.mark.parametrize("count", [4, 1])
def test_a_learned_query_stays(count: int) -> None:
    """What is made of parameters that no mask drops is constant, but may be trained further."""

    class Query(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.project = nn.Parameter(torch.empty(count, 8)), nn.Linear(8, 6)
            self.a, self.last = nn.Linear(5, 6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last((self.project(self.query) + self.a(x)).tanh())

    model = randomize(Query())
    dropped = {f"{layer}.{name}": [2] for layer in ("a", "project") for name in ("weight", "bias")}
    result = check_equal(model, batch(4, 5), mask_indices(model, dropped), [batch(2, 4, 5)])
    assert result.shape("query") == (count, 8)
    assert [result.shape(f"{n}.weight") for n in ("project", "a", "last")] == [(5, 8), (5, 5), (3, 5)]


# -- bilinear -------------------------------------------------------------------------------------------------------


class Both(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 4), nn.Linear(5, 6)
        self.both = nn.Bilinear(4, 6, 8, bias=bias)
        self.last = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.both(self.a(x), self.b(x)).relu())


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_bilinear(bias: bool) -> None:
    model = randomize(Both(bias))
    dropped = {"both.weight": [0, 1, 2], "a.weight": [0], "a.bias": [0], "b.weight": [4]}
    result = check_equal(model, batch(2, 5), mask_indices(model, dropped), [batch(3, 2, 5)])
    # Zeros of an input go; a constant that is not 0 cannot be folded into a bias and stays.
    assert result.shape("both.weight") == (5, 3, 6)
    assert result.shape("last.weight") == (3, 5)
    both = result.model.both
    assert (both.in1_features, both.in2_features, both.out_features) == (3, 6, 5)


def test_bilinear_as_a_function() -> None:
    class Function(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 4), nn.Linear(5, 6)
            self.weight = nn.Parameter(torch.empty(3, 4, 6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.bilinear(self.a(x), self.b(x), self.weight)

    model = randomize(Function())
    dropped = {"weight": [1], "a.weight": [0], "a.bias": [0]}
    masks = merged(mask_indices(model, dropped), mask_indices(model, {"weight": [2, 5]}, axis=2))
    result = check_equal(model, batch(2, 5), masks, [batch(3, 2, 5)])
    assert result.shape("weight") == (3, 3, 4)
    assert result.shape("b.weight") == (4, 5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.* is masked whole")
def test_random_masks_of_bilinear(kind: str) -> None:
    for seed in range(2):
        model: Any = randomize(Both(bias=seed == 0))
        check_equal(model, batch(2, 5), random_masks(model, seed, kind), [batch(3, 2, 5)])


# -- pieces of one parameter ------------------------------------------------------------------------------------------


class Pieces(nn.Module):
    """One weight for two inputs; ``overlap`` rows of it are read by both."""

    def __init__(self, bias: bool, overlap: int = 0) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(5, 6)
        self.weight = nn.Parameter(torch.empty(8, 6))
        self.bias = nn.Parameter(torch.zeros(8)) if bias else None
        self.overlap = overlap

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, two = self.weight[: 4 + self.overlap], self.weight[4:]
        left, right = (None, None) if self.bias is None else (self.bias[: 4 + self.overlap], self.bias[4:])
        y = F.linear(self.a(x).sigmoid(), one, left)
        return torch.cat([y, F.linear(self.b(x).sigmoid(), two, right)], -1)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_constants_are_folded_into_pieces_of_a_parameter(bias: bool) -> None:
    model = randomize(Pieces(bias))
    masks = mask_indices(model, {"a.weight": [0, 1, 5], "b.weight": [1, 2, 4]})
    result = check_equal(model, batch(2, 5), masks, [batch(3, 2, 5)])
    # Without a bias one of the constants carries the others.
    assert result.shape("weight") == (8, 3 if bias else 4)
    assert result.shape("a.weight") == result.shape("b.weight") == (3 if bias else 4, 5)


def test_constants_stay_where_pieces_overlap() -> None:
    model = randomize(Pieces(True, overlap=1))
    masks = mask_indices(model, {"a.weight": [0, 1, 5], "b.weight": [1, 2, 4]})
    result = check_equal(model, batch(2, 5), masks, [batch(3, 2, 5)])
    assert result.shape("weight") == (8, 6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.* is masked whole")
def test_random_masks_of_pieces(kind: str) -> None:
    for seed in range(3):
        model = randomize(Pieces(bias=seed > 0, overlap=seed // 2))
        check_equal(model, batch(2, 5), random_masks(model, seed, kind), [batch(3, 2, 5)])


# -- means with weights -----------------------------------------------------------------------------------------------

Mix = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Attention(nn.Module):
    """Attention in plain calls; masked values are the bias of their layer at every position."""

    def __init__(self, mix: Mix) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 5)
        self.drop = nn.Dropout()
        self.mix = mix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.q(x) @ self.k(x).transpose(-2, -1)
        return self.o(self.mix(scores, self.v(x)))


MEANS: dict[str, Mix] = {
    "weights first": lambda s, v: s.softmax(-1) @ v,
    "weights last": lambda s, v: (v.mT @ s.softmax(-1).mT).mT,
    "another type": lambda s, v: torch.softmax(s, dim=-1, dtype=torch.float64).to(v.dtype) @ v,
    "dropout and a view": lambda s, v: (F.dropout(F.softmax(s, 2), training=False)[:, None] @ v[:, None]).squeeze(1),
    "one head of two": lambda s, v: torch.stack([s, 2 * s], 1).softmax(-1)[:, 1].contiguous().matmul(v),
    "turned around": lambda s, v: s.softmax(-1).flip(-1).roll(1, -1) @ v,
    "a long way": lambda s, v: functools.reduce(lambda w, _: w[None].squeeze(0), range(300), s.softmax(-1)) @ v,
}
OTHERS: dict[str, Mix] = {
    "over the other axis": lambda s, v: s.softmax(-2) @ v,
    "logarithms": lambda s, v: s.log_softmax(-1) @ v,
    "scaled": lambda s, v: (s.softmax(-1) * 2) @ v,
    "a part of a row": lambda s, v: s.softmax(-1)[..., :2] @ v[:, :2],
    "a square that is read across": lambda s, v: s.softmax(-1).mT @ v,
    "one entry of each row": lambda s, v: s.softmax(-1).diagonal(0, 1, 2)[:, None] @ v,
    "a row twice": lambda s, v: s.softmax(-1).repeat(1, 1, 2) @ torch.cat([v, v], 1),
    "a row and zeros": lambda s, v: F.pad(s.softmax(-1), (0, 0, 0, 1)) @ v,
}


@pytest.mark.parametrize("name", [*MEANS, *OTHERS])
def test_a_constant_is_its_own_mean(name: str) -> None:
    model = randomize(Attention((MEANS | OTHERS)[name]), 0)
    result = check_equal(model, batch(2, 4, 6), mask_indices(model, {"v.weight": [0, 3]}), [batch(3, 7, 6)])
    left = 6 if name in MEANS else 8
    assert result.shape("v.weight") == (left, 6) and result.shape("o.weight") == (5, left)
