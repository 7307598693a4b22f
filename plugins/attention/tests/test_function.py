"""F.multi_head_attention_forward as other modules call it: CLIP's attention pool, WavLM."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speedup.testing import check_equal, mask_indices, random_masks, randomize

WIDTH, HEADS = 16, 4
GONE = [i for i in range(WIDTH) if i % 4 in (1, 2)]  # of every head two of four


class Separate(nn.Module):
    """Three projections, whose biases are put together for the call."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.embed_dim, self.options = WIDTH, options
        self.a, self.b = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        if options.get("bias_k"):
            self.bias_k, self.bias_v = (nn.Parameter(torch.randn(1, 1, WIDTH)) for _ in "kv")
        randomize(self)

    def attention(self, x: Tensor, **more: Any) -> tuple[Tensor, Tensor | None]:
        given = {**self.options, **more}
        bias_k, bias_v = (self.bias_k, self.bias_v) if given.pop("bias_k", False) else (None, None)
        zeros = given.pop("add_zero_attn", False)
        bias = torch.cat((self.q.bias, self.k.bias, self.v.bias))
        return F.multi_head_attention_forward(
            x, x, x, self.embed_dim, HEADS, torch.empty(0), bias, bias_k, bias_v, zeros, 0.0, self.o.weight,
            self.o.bias, training=self.training, use_separate_proj_weight=True, q_proj_weight=self.q.weight,
            k_proj_weight=self.k.weight, v_proj_weight=self.v.weight, **given,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        result: Tensor = self.b(x + self.attention(x)[0])
        return result


class Packed(Separate):
    """One projection for all three, and every argument by its name."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.w, self.c = nn.Parameter(torch.randn(3 * WIDTH, WIDTH)), nn.Parameter(torch.randn(3 * WIDTH))
        del self.q, self.k, self.v
        randomize(self)

    def attention(self, x: Tensor, **more: Any) -> tuple[Tensor, Tensor | None]:
        return F.multi_head_attention_forward(
            query=x, key=x, value=x, embed_dim_to_check=x.shape[-1], num_heads=HEADS, in_proj_weight=self.w,
            in_proj_bias=self.c, bias_k=None, bias_v=None, add_zero_attn=False, dropout_p=0.3,
            out_proj_weight=self.o.weight, out_proj_bias=self.o.bias, training=self.training, **self.options, **more,
        )  # fmt: skip


def tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, 5, generator=torch.Generator().manual_seed(shape[0]))


def masks_of(model: nn.Module, inner: list[int], stream: list[int] = GONE, biases: bool = True) -> Any:
    """Masks of the stream, and of the queries, keys and values inside."""
    outputs = {"a.weight": stream, "a.bias": stream, "o.weight": stream, "o.bias": stream}
    if isinstance(model, Packed):
        three = [k * WIDTH + i for k in range(3) for i in inner]
        outputs |= {"w": three, "c": three}
    else:
        outputs |= {f"{n}.{kind}": inner for n in "qkv" for kind in ("weight", "bias")}
    if not biases:
        outputs = {n: at for n, at in outputs.items() if "bias" not in n and n != "c"}
    masks = mask_indices(model, outputs)
    if hasattr(model, "bias_k"):
        masks[""] = mask_indices(model, {"bias_k": inner, "bias_v": inner}, axis=2)[""]
    return masks


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"need_weights": False},
    "with weights": {},
    "weights of each head": {"average_attn_weights": False},
    "causal": {"need_weights": False, "is_causal": True, "attn_mask": torch.ones(6, 6).triu(1).bool()},
    "a mask for every head": {"attn_mask": torch.randn(2 * HEADS, 6, 6).double()},
    "keys and values appended": {"bias_k": True, "add_zero_attn": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_function_is_called_with_less(options: dict[str, Any]) -> None:
    model = Separate(**options)
    others = [] if "attn_mask" in options else [tokens(4, 3)]
    result = check_equal(model, tokens(6, 2), masks_of(model, GONE), others)
    assert [result.shape(f"{n}.weight") for n in "qkvo"] == [(8, 8)] * 4
    assert result.shape("b.weight") == (3, 8) and result.model.embed_dim == 8


def test_one_projection_for_all() -> None:
    model = Packed()
    result = check_equal(model, tokens(6, 2), masks_of(model, GONE), [tokens(4, 3)])
    assert result.shape("w") == (24, 8) and result.shape("c") == (24,)


def test_one_sequence_without_a_batch() -> None:
    model = Packed(need_weights=False)
    result = check_equal(model, tokens(6), masks_of(model, GONE), [tokens(4)])
    assert result.shape("w") == (24, 8)


def test_the_widest_part_says_what_all_of_them_keep() -> None:
    """Of the stream 10 channels are left, which are 3 for each of 4 heads; one more in every other place."""
    model = Separate()
    result = check_equal(model, tokens(6, 2), masks_of(model, GONE, stream=GONE[:6]), [tokens(4, 3)])
    assert [result.shape(f"{n}.weight") for n in "qkvo"] == [(12, 12)] * 4


def test_heads_that_are_masked_stay_as_large_as_the_others() -> None:
    model = Separate()
    result = check_equal(model, tokens(6, 2), masks_of(model, [0, 1, 2, 3, 5, 9, 13]), [tokens(4, 3)])
    assert [result.shape(f"{n}.weight") for n in "qkvo"] == [(12, 12)] * 4


@pytest.mark.parametrize("kind", ["filters", "filters+biases", "columns", "fine", "whole"])
@pytest.mark.parametrize("make", [Separate, Packed])
def test_masks_of_every_kind(make: type[Separate], kind: str) -> None:
    model = make()
    check_equal(model, tokens(6, 2), random_masks(model, 1, kind), [tokens(4, 3)])


@pytest.mark.parametrize("make", [Separate, Packed])
def test_constants_go_into_biases(make: type[Separate]) -> None:
    """In front of the call, where biases are not masked; those of the queries are multiplied afterwards."""

    class Alone(make):  # type: ignore[misc, valid-type]
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.b(self.attention(self.a(x).relu())[0])
            return result

    model = Alone()
    inner = masks_of(model, GONE)
    result = check_equal(
        model, tokens(6, 2), {**inner, "a": mask_indices(model, {"a.weight": GONE})["a"]}, [tokens(4, 3)]
    )
    assert result.shape("a.weight") == (8, 5)


def test_weights_that_are_read_elsewhere_too_do_not_change() -> None:
    class Read(Separate):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.q.bias.sum()

    model = Read()
    result = check_equal(model, tokens(6, 2), masks_of(model, GONE), [tokens(4, 3)])
    assert result.shape("q.weight") == (16, 16)


def test_a_small_model_becomes_smaller() -> None:
    model = Separate()
    first = check_equal(model, tokens(6, 2), masks_of(model, GONE[::2])).model
    left = [0, 4, 7, 10]
    masks = mask_indices(first, {f"{n}.{kind}": left for n in "aqkvo" for kind in ("weight", "bias")})
    result = check_equal(first, tokens(6, 2), masks, [tokens(4, 3)])
    assert result.shape("q.weight")[0] < 12
