"""nn.MultiheadAttention: what goes of it, in every form that it has."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import speedup
from speedup.testing import KINDS, Result, check_equal, mask_indices, masked_copy, random_masks, randomize

E, H, D = 12, 3, 4  # embedding, heads, dimensions of a head

EACH = [0 * D + 1, 1 * D + 3, 2 * D + 0]  # one dimension of every head
HEAD = [D, D + 1, D + 2, D + 3]


class Own(nn.MultiheadAttention):
    """A class of the user's."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.mark = "own"


class Self(nn.Module):
    """Self-attention between two layers."""

    def __init__(self, call: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, E), nn.Linear(E, 3)
        self.m = Own(E, H, **{"batch_first": True, **options})
        self.call = {"need_weights": False} if call is None else call

    def forward(self, x: torch.Tensor, **masks: torch.Tensor) -> Any:
        x = self.a(x)
        y, weights = self.m(x, x, x, **self.call, **masks)
        y = self.b(y)
        return y if weights is None or "average_attn_weights" not in self.call else (y, weights)


class Cross(nn.Module):
    """Queries of one tensor, keys and values of others, with widths of their own."""

    def __init__(self, width: int = 7, values: bool = True, call: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__()
        self.a, self.c, self.d = nn.Linear(5, E), nn.Linear(6, width), nn.Linear(6, width)
        wide = {} if width == E else {"kdim": width, "vdim": width}
        self.m, self.b = nn.MultiheadAttention(E, H, batch_first=True, **wide, **options), nn.Linear(E, 3)
        self.values, self.call = values, {"need_weights": False} if call is None else call

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        key = self.c(z)
        result: torch.Tensor = self.b(self.m(self.a(x), key, self.d(z) if self.values else key, **self.call)[0])
        return result


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def inputs(model: nn.Module, batch: int, length: int) -> Any:
    if isinstance(model, Cross):
        return tokens(batch, length, 5), tokens(batch, length + 1, 6)
    return tokens(batch, length, 5)


def checked(model: nn.Module, masked: dict[str, list[int]], columns: dict[str, list[int]] | None = None) -> Result:
    model = randomize(model)
    masks = mask_indices(model, masked)
    for name, own in mask_indices(model, columns or {}, axis=1).items():
        masks.setdefault(name, {}).update(own)
    return check_equal(model, inputs(model, 2, 6), masks, [inputs(model, 1, 3), inputs(model, 3, 8)])


def fused(
    query: list[int] = (), key: list[int] = (), value: list[int] = (), biases: bool = True
) -> dict[str, list[int]]:  # type: ignore[assignment]
    rows = [*query, *(E + i for i in key), *(2 * E + i for i in value)]
    return {"m.in_proj_weight": rows} | ({"m.in_proj_bias": rows} if biases else {})


CALLS = [{"need_weights": False}, {}, {"average_attn_weights": False}]
"""Without weights, with weights that nobody reads, and with weights that the model returns (per head)."""


# -- what goes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("biases", [True, False])
def test_dimensions_of_values_go_per_head(biases: bool, call: dict[str, Any]) -> None:
    result = checked(Self(call), fused(value=EACH, biases=biases))
    assert result.shape("m.in_proj_weight") == (12 + 12 + 9, E)
    assert result.shape("m.out_proj.weight") == (E, 9)
    small = result.model.m
    assert (small.query_dim, small.value_dim, small.num_heads) == (4, 3, 3)
    assert small.out_proj.in_features == 9


@pytest.mark.parametrize("call", CALLS)
def test_dimensions_of_queries_and_keys_go_and_the_scale_stays(call: dict[str, Any]) -> None:
    result = checked(Self(call), fused(query=EACH, key=EACH))
    assert result.shape("m.in_proj_weight") == (9 + 9 + 12, E)
    assert result.model.m.scale == 0.5
    result = checked(Self(call), fused(key=EACH, biases=False))
    assert result.shape("m.in_proj_weight") == (9 + 9 + 12, E)


@pytest.mark.parametrize("call", CALLS[:2])
@pytest.mark.parametrize("biases", [True, False])
def test_heads_go_with_their_values(biases: bool, call: dict[str, Any]) -> None:
    result = checked(Self(call), fused(value=HEAD, biases=biases))
    assert result.shape("m.in_proj_weight") == (24, E) and result.shape("m.out_proj.weight") == (E, 8)
    assert result.model.m.num_heads == 2


@pytest.mark.parametrize("call", CALLS[:2])
def test_heads_go_that_nobody_reads(call: dict[str, Any]) -> None:
    result = checked(Self(call), {}, {"m.out_proj.weight": HEAD})
    assert result.shape("m.in_proj_weight") == (24, E) and result.model.m.num_heads == 2


@pytest.mark.parametrize("average", [True, False])
def test_weights_that_are_returned_keep_the_heads(average: bool) -> None:
    result = checked(Self({"average_attn_weights": average}), fused(value=HEAD))
    assert result.model.m.num_heads == 3
    # One dimension of the values stays per head where heads stay.
    assert result.shape("m.in_proj_weight") == (36, E)
    result = checked(Self({"average_attn_weights": average}), fused(query=HEAD, key=HEAD, value=HEAD))
    assert result.model.m.num_heads == 3


def test_embedding_and_output_go() -> None:
    result = checked(Self(), {"a.weight": [0, 1, 2], "a.bias": [0, 1]}, {"b.weight": [4, 5, 6, 7]})
    assert result.shape("m.in_proj_weight") == (36, 9)
    assert result.shape("m.out_proj.weight") == (8, E)
    assert result.model.m.embed_dim == 9 and result.model.m.out_proj.out_features == 8


def test_a_module_that_loses_nothing_stays_as_it_is() -> None:
    result = checked(Self(), {}, {"b.weight": []})
    assert type(result.model.m) is Own and result.kept == 1.0


@pytest.mark.parametrize("call", CALLS[:2])
def test_keys_and_values_with_widths_of_their_own(call: dict[str, Any]) -> None:
    masked = {"m.v_proj_weight": EACH, "m.in_proj_bias": [2 * E + i for i in EACH]}
    zeros = {f"{n}.{p}": [1, 2] for n in "cd" for p in ("weight", "bias")}
    result = checked(Cross(call=call), masked | zeros)
    assert result.shape("m.q_proj_weight") == (12, E)
    assert result.shape("m.k_proj_weight") == (12, 5) and result.shape("m.v_proj_weight") == (9, 5)
    assert result.shape("m.in_proj_bias") == (33,)
    assert (result.model.m.kdim, result.model.m.vdim) == (5, 5)


@pytest.mark.parametrize("values", [True, False])
def test_one_weight_for_several_tensors(values: bool) -> None:
    gone = {f"{n}.{p}": [0, 3] for n in "acd" for p in ("weight", "bias")}
    result = checked(Cross(E, values), fused(value=HEAD) | gone)
    assert result.shape("m.in_proj_weight") == (24, 10)
    # Every tensor may lose others of its channels.
    gone = {f"{n}.{p}": [k, 3 + k] for k, n in enumerate("acd") for p in ("weight", "bias")}
    result = checked(Cross(E, values), fused(value=HEAD) | gone)
    assert result.shape("m.in_proj_weight") == (24, 10)


# -- forms ------------------------------------------------------------------------------------------------------------

FORMS: dict[str, Callable[[], nn.Module]] = {
    "batch first": Self,
    "batch second": lambda: Self(batch_first=False),
    "no biases": lambda: Self(bias=False),
    "rows of biases": lambda: Self(add_bias_kv=True),
    "rows of zeros": lambda: Self(add_zero_attn=True),
    "both": lambda: Self({}, add_bias_kv=True, add_zero_attn=True, batch_first=False),
    "weights": lambda: Self({}),
    "weights read": lambda: Self({"average_attn_weights": True}),
    "weights of heads read": lambda: Self({"average_attn_weights": False}),
    "cross": Cross,
    "cross, weights": lambda: Cross(call={}, bias=False),
    "cross, one weight": lambda: Cross(E),
    "cross, two tensors": lambda: Cross(E, values=False),
    "norms": lambda: Normed(),
}


class Normed(nn.Module):
    """In front and behind a layer norm: constants are none there, but combinations of two unknowns."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.k = nn.Linear(5, E), nn.LayerNorm(E), nn.LayerNorm(E)
        self.m, self.b = nn.MultiheadAttention(E, H, batch_first=True), nn.Linear(E, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        y = self.n(x)
        x = x + self.m(y, y, y)[0]
        result: torch.Tensor = self.b(self.k(x))
        return result


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FORMS)
def test_all_kinds_of_masks_stay_equal(name: str, kind: str, seed: int) -> None:
    model = randomize(FORMS[name](), seed)
    others = [inputs(model, 1, 3), inputs(model, 3, 8)]
    if isinstance(model, Self):
        others.append(tokens(7, 5))
    check_equal(model, inputs(model, 2, 6), random_masks(model, seed, kind), others)


@pytest.mark.parametrize("name", FORMS)
def test_heads_and_dimensions_go_in_every_form(name: str) -> None:
    model = randomize(FORMS[name]())
    masks = {"m": {n: torch.ones(p.shape) for n, p in model.m.named_parameters(recurse=False)}}
    for part, rows in enumerate(((1, 5, 9), (1, 5, 9), (1, 6, 11, 4, 5, 7))):
        for n, mask in masks["m"].items():
            if n.startswith("in_proj"):
                mask[[part * E + r for r in rows]] = 0
            elif n == ("q_proj_weight", "k_proj_weight", "v_proj_weight")[part]:
                mask[list(rows)] = 0
            elif n == ("", "bias_k", "bias_v")[part]:
                mask[..., list(rows)] = 0
    result = check_equal(model, inputs(model, 2, 6), masks, [inputs(model, 1, 3)])
    small = result.model.m
    heads = 3 if name.endswith("read") else 2
    assert (small.num_heads, small.query_dim, small.value_dim) == (heads, 3, 3)
    assert result.shape("m.out_proj.weight")[1] == heads * 3


def test_a_stream_behind_norms_becomes_narrow() -> None:
    gone = {f"{n}.{p}": [0, 5, 7, 8] for n in ("a", "m.out_proj") for p in ("weight", "bias")}
    result = checked(Normed(), gone)
    # One of the four carries what the norm makes of zeros.
    assert result.shape("a.weight") == (9, 5) and result.shape("m.in_proj_weight") == (36, 9)
    assert result.shape("m.out_proj.weight") == (9, E)


# -- masks of positions -----------------------------------------------------------------------------------------------


def masks_of(kind: str, batch: int, length: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    found = {}
    if "padding" in kind:
        found["key_padding_mask"] = torch.arange(length)[None] >= torch.tensor([length, length - 1, 1])[:batch, None]
    if "attn" in kind:
        shape = (batch * H, length, length) if "heads" in kind else (length, length)
        found["attn_mask"] = torch.rand(shape, generator=generator) > 0.6
        found["attn_mask"][..., 0] = False
    if "float" in kind:
        found = {n: torch.zeros(m.shape).masked_fill(m, -torch.inf) for n, m in found.items()}
    return found


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", ["padding", "attn", "attn heads", "padding attn float", "padding attn heads"])
def test_masks_of_positions(kind: str, call: dict[str, Any]) -> None:
    model = randomize(Self(call))
    # A mask that comes in with all heads keeps them, and all lose the same dimensions.
    dims = [0, 4, 8] if "heads" in kind else EACH
    dropped = mask_indices(model, fused(query=dims, key=dims, value=sorted({*dims, *HEAD})))
    dummy, other = ({"x": tokens(b, n, 5), **masks_of(kind, b, n)} for b, n in ((2, 6), (3, 4)))
    result = check_equal(model, dummy, dropped, [other])
    heads = "heads" not in kind and "average_attn_weights" not in call
    assert result.model.m.num_heads == (2 if heads else 3)
    assert (result.model.m.query_dim, result.model.m.value_dim) == (3, 3)


def test_a_causal_mask() -> None:
    model = randomize(Self())
    causal = nn.Transformer.generate_square_subsequent_mask(6)
    masks = mask_indices(model, fused(query=EACH, key=EACH, value=HEAD, biases=False))
    result = check_equal(model, {"x": tokens(2, 6, 5), "attn_mask": causal}, masks)
    assert result.model.m.num_heads == 3  # a row of a mask that comes in may be closed, and then no constant comes out
    model.call = {"need_weights": False, "is_causal": True}
    result = check_equal(model, {"x": tokens(2, 6, 5), "attn_mask": causal}, masks)
    assert result.model.m.num_heads == 2


# -- the small module -------------------------------------------------------------------------------------------------


def small_one(**options: Any) -> tuple[Any, Any]:
    model = randomize(Self(**options))
    masks = mask_indices(model, fused(query=EACH, key=EACH, value=EACH))
    return check_equal(model, inputs(model, 2, 6), masks).model, masked_copy(model, masks).double()


def test_it_is_a_module_of_the_users_class() -> None:
    small, _ = small_one()
    assert isinstance(small.m, Own) and type(small.m).__name__ == "Own" and small.m.mark == "own"
    assert set(small.m.state_dict()) == set(Self().m.state_dict())
    x = inputs(small, 3, 4).double()
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small)), torch.load(file, weights_only=False)):
        assert type(other.m) is type(small.m)
        assert torch.equal(other(x), small(x))


def test_dropout_of_weights_in_train_mode() -> None:
    small, masked = small_one(dropout=0.4)
    x = inputs(small, 3, 4).double()
    for model in (small, masked):
        model.train()
    torch.manual_seed(0)
    wanted = masked(x)
    torch.manual_seed(0)
    assert torch.allclose(small(x), wanted, rtol=1e-9, atol=1e-9)
    torch.manual_seed(1)
    assert not torch.allclose(small(x), wanted)


def test_hooks_and_gradients() -> None:
    small, _ = small_one()
    seen = []
    small.m.register_forward_hook(lambda module, args, out: seen.append(out[0].shape))
    small(inputs(small, 3, 4).double()).sum().backward()
    assert seen == [(3, 4, E)] and small.m.in_proj_weight.grad.shape == (27, E)


def test_a_small_module_becomes_smaller_again() -> None:
    small, _ = small_one()
    rows = [18 + 3, 18 + 4, 18 + 5]
    masks = mask_indices(small, {"m.in_proj_weight": rows, "m.in_proj_bias": rows})
    again = check_equal(small, inputs(small, 2, 6), masks, [inputs(small, 3, 5)])
    assert again.shape("m.in_proj_weight") == (18, E) and again.model.m.num_heads == 2
    assert again.model.m.scale == 0.5


def test_one_module_that_is_called_twice() -> None:
    class Twice(Self):
        def forward(self, x: torch.Tensor, **masks: torch.Tensor) -> Any:
            x = self.a(x)
            return self.b(self.m(*[self.m(x, x, x)[0]] * 3)[0])

    result = checked(Twice(), fused(query=EACH, key=EACH, value=EACH))
    assert result.shape("m.in_proj_weight") == (27, E)


def test_views_of_the_output_run_as_in_eager_mode() -> None:
    class Viewed(Self):
        def forward(self, x: torch.Tensor, **masks: torch.Tensor) -> Any:
            x = self.a(x)
            return self.b(self.m(x, x, x, need_weights=False)[0].view(-1, E))

    model = randomize(Viewed())
    model.m = nn.MultiheadAttention(E, 2, batch_first=True)
    rows = [2 * E, 2 * E + 6]
    result = check_equal(model, inputs(model, 2, 6), mask_indices(model, fused() | {"m.in_proj_weight": rows}))
    assert result.shape("m.in_proj_weight") == (34, E)


def test_weights_that_hooks_make() -> None:
    """As torch.nn.utils.prune leaves them: what the module reads is a product, the parameter has another name."""
    model = randomize(Self())
    prune.ln_structured(model.m, "in_proj_weight", 0.3, 2, 0)
    prune.random_unstructured(model.m.out_proj, "weight", 0.3)
    masks = mask_indices(model, {"a.weight": [0, 1], "a.bias": [0, 1]})
    x = inputs(model, 2, 6)
    with torch.no_grad():
        for p in (model.a.weight, model.a.bias):
            p[:2] = 0
        wanted = model.eval()(x)
    speedup.ModelSpeedup(model, x, masks, verify=True).speedup_model()
    with torch.no_grad():
        assert torch.allclose(model(x), wanted, atol=1e-5)


def test_hooks_of_the_output_layer_are_not_called() -> None:
    model = randomize(Self())
    model.m.out_proj.register_forward_hook(_doubled)
    masks = mask_indices(model, fused(query=EACH, key=EACH, value=EACH))
    result = check_equal(model, inputs(model, 2, 6), masks, [inputs(model, 1, 3)])
    assert result.shape("m.out_proj.weight") == (E, 9)


def _doubled(module: nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor:
    return out * 2
