"""Products of tensors that no layer owns answer exactly as masked, by whatever name, and lose exactly what can go."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from speedup.testing import KINDS, check_equal, mask_indices, random_masks, randomize


def batch(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


class Product(nn.Module):
    """A layer, what is made of its output and two parameters, and a layer again."""

    def __init__(self, product: Callable[..., torch.Tensor], last: bool = True) -> None:
        super().__init__()
        self.product = product
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3) if last else nn.Tanh()
        self.w, self.v = (nn.Parameter(torch.empty(8, 8)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.last(self.product(self.first(x), self.w, self.v))
        return made


# -- products of activations ----------------------------------------------------------------------------------------


class Scores(nn.Module):
    """Queries times keys, times values: products of two activations."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.q, self.k, self.v = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(5, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.form == "matmul":
            mixed = torch.matmul(torch.matmul(q, k.transpose(-2, -1)).tanh(), v)
        elif self.form == "bmm":
            mixed = torch.bmm(torch.bmm(q, k.mT).tanh(), v)
        elif self.form == "baddbmm":
            mixed = torch.bmm(torch.baddbmm(torch.ones(1, 1, 1, dtype=x.dtype), q, k.mT).tanh(), v)
        elif self.form == "einsum":
            mixed = torch.einsum("bqk,bkd->bqd", torch.einsum("bqd,bkd->bqk", q, k).tanh(), v)
        else:
            mixed = (q @ k.mT).tanh() @ v
        return self.out(mixed)


@pytest.mark.parametrize("form", ["matmul", "bmm", "baddbmm", "einsum", "@"])
def test_products_of_activations(form: str) -> None:
    """What is 0 in one factor is not read in the other; a constant that is not 0 cannot be folded and stays."""
    model = randomize(Scores(form))
    zero = {"q.weight": [0, 1], "q.bias": [0, 1], "k.weight": [1, 2], "k.bias": [1, 2], "v.weight": [5], "v.bias": [5]}
    result = check_equal(model, batch(2, 4, 5), mask_indices(model, zero), [batch(1, 7, 5), batch(3, 1, 5)])
    assert [result.shape(f"{n}.weight")[0] for n in "qkv"] == [5, 5, 5]
    constant = {"q.weight": [0, 1], "k.weight": [1, 2]}
    result = check_equal(model, batch(2, 4, 5), mask_indices(model, constant), [batch(1, 7, 5)])
    assert [result.shape(f"{n}.weight")[0] for n in "qkv"] == [8, 8, 6]


@pytest.mark.parametrize("form", ["matmul", "bmm", "baddbmm", "einsum", "@"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.* is masked whole")
def test_random_masks_of_products(form: str, kind: str) -> None:
    model = randomize(Scores(form))
    check_equal(model, batch(2, 4, 5), random_masks(model, 2, kind), [batch(1, 7, 5)])


@pytest.mark.parametrize("form", ["dot", "inner", "mv"])
def test_products_of_vectors(form: str) -> None:
    class Vectors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(5, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b = self.a(x), self.b(x)
            if form == "dot":
                return torch.dot(a, b)
            if form == "inner":
                return torch.inner(a, b)
            return torch.mv(self.c.weight.t() * a, b)

    model = randomize(Vectors())
    masks = mask_indices(model, {"a.weight": [0, 1], "a.bias": [0, 1], "b.weight": [4], "b.bias": [4]})
    result = check_equal(model, batch(5), masks)
    if form != "mv":
        assert [result.shape(f"{n}.weight") for n in "ab"] == [(5, 5), (5, 5)]


@pytest.mark.parametrize(
    "equation",
    [
        "bi,bj->bij",
        "bi,bi->bi",
        "bi,bj->bj",
        "bi,bj->ij",
        "bi,bi->b",
        "bi,bi",
        "bi,ci->cb",
        "...i,...i->...i",
        "bi,bj->b",
    ],
)
def test_einsum_of_activations(equation: str) -> None:
    """Outer products, sums of one operand alone and the implicit form are right too, claimed or not."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(5, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.einsum(equation, self.a(x), self.b(x)).tanh()

    model = randomize(Pair())
    for seed, kind in enumerate(("filters", "filters+biases", "mixed")):
        check_equal(model, batch(4, 5), random_masks(model, seed, kind), [batch(2, 5)])


EQUATIONS = {
    "bi,ij,jk->bk": ("x", "w", "v"),
    "bi,ij,kj": ("x", "w", "v"),
    "...i,ij,jk->...k": ("x", "w", "v"),
    "bi,ij->b": ("x", "w"),
    "bi->ib": ("x",),
    "bi,bi,ij->bj": ("x", "x", "w"),
    "ij,bi,ij,jk->kb": ("w", "x", "w", "v"),
    "bi,ii,ij->bj": ("x", "v", "w"),
    "...ii,bi->b...": ("v", "x"),
    "b...,ij->bj": ("x", "w"),
}


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum_in_parts(equation: str) -> None:
    """Any number of operands, letters that stand alone, twice in one operand, in front of and behind an ellipsis."""

    def product(x: torch.Tensor, w: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        named = {"x": x.tanh(), "w": w, "v": v}
        return torch.einsum(equation, *(named[n] for n in EQUATIONS[equation]))

    model = randomize(Product(product, last=False))
    for seed, kind in enumerate(("filters", "filters+biases", "mixed")):
        check_equal(model, batch(4, 5), random_masks(model, seed, kind), [batch(2, 5)])


def test_einsum_of_three_shrinks() -> None:
    """All three lose what is masked, as two products in a row would."""

    model = randomize(Product(lambda x, w, v: torch.einsum("...i,ij,jk->...k", x, w, v)))
    masks = mask_indices(model, {"first.weight": [0], "first.bias": [0]})
    masks |= mask_indices(model, {"w": [1, 2], "v": [3, 4, 5]}, axis=1)
    result = check_equal(model, batch(4, 5), masks, [batch(2, 5)])
    assert [result.shape(n) for n in ("w", "v", "last.weight")] == [(7, 6), (6, 5), (3, 5)]


@pytest.mark.parametrize("biases", [True, False])
def test_einsum_that_sums_along_heads_and_what_is_in_them(biases: bool) -> None:
    """As an output projection whose weight has an axis for the heads: what goes is 0, or has nowhere to go."""

    class Heads(Product):
        def __init__(self) -> None:
            act = torch.relu if biases else torch.sigmoid
            super().__init__(lambda x, w, v: torch.einsum("bhd,hdo->bo", act(x).unflatten(1, (2, -1)), w))
            self.w = nn.Parameter(torch.empty(2, 4, 8))

    model = randomize(Heads())
    masks = mask_indices(model, {"first.weight": [1, 5], **({"first.bias": [1, 5]} if biases else {})})
    result = check_equal(model, batch(4, 5), masks, [batch(2, 5)])
    assert result.shape("first.weight")[0] == (6 if biases else 8)


def test_einsum_of_a_weight_that_is_summed_first() -> None:
    """What is kept of it can be cut along two axes, of which one does not serve: it stays."""

    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(5, 24), nn.Linear(2, 3)
            self.u, self.w = nn.Parameter(torch.empty(2, 4)), nn.Parameter(torch.empty(3, 6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.einsum("bkm,ik->bkmi", self.first(x).view(-1, 4, 6), self.u).sigmoid()
            made: torch.Tensor = self.last(torch.einsum("bkmi,jm->bi", y, self.w))
            return made

    model = randomize(Summed())
    gone = [5, 6, 7, 12, 13, 14, 15, 17, 19, 21, 22, 23]
    masks = mask_indices(model, {"first.weight": gone, "first.bias": gone})
    masks[""] = {"w": torch.tensor([[0, 1, 0, 1, 0, 0], [1, 0, 1, 1, 1, 0], [1, 1, 1, 0, 0, 1]])}
    assert check_equal(model, batch(4, 5), masks, [batch(2, 5)]).shape("w") == (3, 6)


@pytest.mark.parametrize("factors", [{"alpha": 2}, {"beta": 0.5}, {"alpha": 2, "beta": 0.5}])
def test_addmm_with_factors(factors: dict[str, float]) -> None:
    """The constants that come out are those with the factors."""

    class Factors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.shift = nn.Parameter(torch.empty(5, 8)), nn.Parameter(torch.empty(8))
            self.last = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.addmm(self.shift, x, self.weight, **factors).sigmoid())

    model = randomize(Factors())
    masks = mask_indices(model, {"weight": [0, 2]}, axis=1)
    masks[""]["shift"] = masks[""]["weight"][0]
    result = check_equal(model, batch(4, 5), masks, [batch(3, 5)])
    assert (result.shape("weight"), result.shape("last.weight")) == ((5, 6), (3, 6))


def test_a_product_with_a_transposed_self() -> None:
    """A Gram matrix: one tensor is both factors."""

    class Gram(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(5, 8)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            a = self.a(x)
            return a @ a.mT, self.b(x).mT @ a

    model = randomize(Gram())
    result = check_equal(model, batch(4, 5), mask_indices(model, {"a.weight": [0], "a.bias": [0]}), [batch(2, 5)])
    assert result.kept == 1.0  # the second product is an output, so all rows of its factors count
    for seed in range(3):
        check_equal(model, batch(4, 5), random_masks(model, seed, "mixed"), [batch(2, 5)])


# -- other forms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0, 0.5])
@pytest.mark.parametrize("name", ["baddbmm", "addbmm"])
def test_products_of_a_batch_with_factors(name: str, beta: float) -> None:
    """Scores of an attention as Bloom has them. With beta 0 only the shape counts of what is added to."""

    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.last = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            added = x.mean(-1)[:, :, None] + x.mean(-1)[:, None]
            added = added if beta else torch.full_like(added, torch.nan)
            added = added if name == "baddbmm" else added[0]
            scores = getattr(added, name)(self.q(x), self.k(x).mT, beta=beta, alpha=0.3)
            return self.last(scores.softmax(-1) @ self.v(x))

    model = randomize(Scores())
    gone = {"q.weight": [0, 1], "q.bias": [0, 1], "v.weight": [2], "v.bias": [2]}
    result = check_equal(model, batch(4, 6, 5), mask_indices(model, gone), [batch(3, 7, 5)])
    assert [result.shape(f"{n}.weight") for n in ("q", "k", "last")] == [(6, 5), (6, 5), (3, 7)]


SYNONYMS = {
    "tensordot 1": lambda x, w, v: torch.tensordot(x, w, 1),
    "tensordot lists": lambda x, w, v: torch.tensordot(x, w, dims=([-1], [0])),
    "outer": lambda x, w, v: torch.outer(x.mean(0), v[0]).mean(0, keepdim=True) + x @ w,
    "multi_dot": lambda x, w, v: torch.linalg.multi_dot([x, w, v]),
}


@pytest.mark.parametrize("name", SYNONYMS)
def test_products_by_other_names(name: str) -> None:
    """They lose what the product that they are loses."""

    model = randomize(Product(SYNONYMS[name]))
    masks = mask_indices(model, {"first.weight": [0], "first.bias": [0]})
    masks |= mask_indices(model, {"w": [1, 2]}, axis=1)
    result = check_equal(model, batch(4, 5), masks, [batch(2, 5)])
    assert result.shape("w") == ((8, 8) if name == "outer" else (7, 6))


@pytest.mark.parametrize("left", [True, False])
def test_solutions_lose_columns_of_the_right_side(left: bool) -> None:
    """As linear attention with a delta rule solves for its values: the matrix is one of positions."""

    class Solved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k, self.v, self.last = nn.Linear(5, 6), nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            k, v = self.k(x), self.v(x)
            scores = k @ k.mT
            if left:
                made = torch.linalg.solve_triangular(scores, v, upper=False, unitriangular=True)
            else:
                made = torch.linalg.solve_triangular(scores, v.mT, upper=True, left=False, unitriangular=True).mT
            result: torch.Tensor = self.last(made)
            return result

    model = randomize(Solved())
    gone = {"k.weight": [0, 1], "k.bias": [0, 1], "v.weight": [2], "v.bias": [2]}
    result = check_equal(model, batch(4, 3, 5), mask_indices(model, gone), [batch(3, 4, 5)])
    assert [result.shape(f"{n}.weight") for n in ("k", "v", "last")] == [(4, 5), (7, 5), (3, 7)]
    assert not result.plan.report.barriers


def test_a_matrix_per_group_loses_rows_and_columns_of_its_own() -> None:
    """As the gates of a recurrent Gemma: each group has lost other inputs, and other outputs."""

    class Groups(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(5, 12), nn.Linear(12, 3)
            self.weight, self.bias = nn.Parameter(torch.empty(3, 4, 4)), nn.Parameter(torch.empty(3, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x).reshape(-1, 3, 4).permute(1, 0, 2)
            x = torch.baddbmm(self.bias[:, None], x, self.weight).transpose(0, 1)
            return self.last(x.reshape(len(x), -1))

    model = randomize(Groups())
    masks = mask_indices(model, {"first.weight": [0, 5, 10], "first.bias": [0, 5, 10]})
    weight = torch.ones(3, 4, 4)
    weight[range(3), :, range(1, 4)] = 0
    masks[""] = {"weight": weight, "bias": weight[:, 0]}
    result = check_equal(model, batch(4, 5), masks, [batch(2, 5)])
    assert [result.shape(n) for n in ("first.weight", "weight", "last.weight")] == [(9, 5), (3, 3, 3), (3, 9)]


# -- products with a vector -------------------------------------------------------------------------------------------


class Weighing(nn.Module):
    """What a layer gives is multiplied with a parameter of one axis (the scores of additive attention)."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function, self.layer, self.v = function, nn.Linear(4, 6), nn.Parameter(torch.empty(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.function(self.layer(x)) @ self.v
        return made


@pytest.mark.parametrize("given", [(5, 4), (2, 5, 4)], ids=["mv", "batch"])
@pytest.mark.parametrize("function", [torch.tanh, nn.Identity()], ids=["constants", "affine"])
def test_a_vector_takes_up_the_constants_of_what_goes(
    function: Callable[[torch.Tensor], torch.Tensor], given: tuple[int, ...]
) -> None:
    model = Weighing(function)
    randomize(model, 0)
    masks = mask_indices(model, {"layer.weight": [1, 3, 4]})
    result = check_equal(model, batch(*given), masks, [batch(3, *given[1:])])
    assert result.shape("layer.weight") == (4, 4)  # one carries the constants of the other two
    assert result.shape("v") == (4,)


def test_weights_of_means_times_a_vector() -> None:
    """A vector is a constant where nothing is masked, and no reason for an error."""
    model = Weighing(nn.Softmax(-1))
    randomize(model, 0)
    check_equal(model, batch(2, 5, 4), mask_indices(model, {"layer.weight": [1, 3]}))
