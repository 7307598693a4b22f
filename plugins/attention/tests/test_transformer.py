"""nn.TransformerEncoder and its like: equal in eval mode too, where torch takes other ways through them."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from speedup.testing import KINDS, Result, check_equal, mask_indices, random_masks, randomize

E, H, HIDDEN = 8, 2, 10

pytestmark = pytest.mark.filterwarnings("ignore:.*nested")


class Packing(nn.TransformerEncoder):
    """Has its own forward, which no rule claims, and packs in it."""

    def forward(self, src: torch.Tensor, src_key_padding_mask: torch.Tensor | None = None) -> torch.Tensor:  # type: ignore[override]
        return super().forward(src, src_key_padding_mask=src_key_padding_mask)


class Encoder(nn.Module):
    def __init__(self, stack: Any = nn.TransformerEncoder, **options: Any) -> None:
        super().__init__()
        of_stack = {n: options.pop(n) for n in ("mask_check", "enable_nested_tensor") if n in options}
        layer = nn.TransformerEncoderLayer(E, H, HIDDEN, **{"batch_first": True, **options})
        self.a, self.b = nn.Linear(5, E), nn.Linear(E, 3)
        self.e = stack(layer, 2, nn.LayerNorm(E), **of_stack)

    def forward(self, x: torch.Tensor, **masks: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.b(self.e(self.a(x), **masks))
        return result


class Decoder(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(E, H, HIDDEN, **{"batch_first": True, **options})
        self.a, self.c, self.b = nn.Linear(5, E), nn.Linear(6, E), nn.Linear(E, 3)
        self.e = nn.TransformerDecoder(layer, 2, nn.LayerNorm(E))

    def forward(self, x: torch.Tensor, z: torch.Tensor, **masks: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.b(self.e(self.a(x), self.c(z), **masks))
        return result


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.t = nn.Transformer(E, H, 1, 1, HIDDEN, batch_first=True, norm_first=True)
        self.a, self.c, self.b = nn.Linear(5, E), nn.Linear(6, E), nn.Linear(E, 3)

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.b(self.t(self.c(z), self.a(x)))
        return result


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def inputs(model: nn.Module, batch: int, length: int) -> Any:
    if isinstance(model, Encoder):
        return tokens(batch, length, 5)
    return tokens(batch, length, 5), tokens(batch, length + 1, 6)


def ends(batch: int, length: int) -> torch.Tensor:
    return torch.arange(length)[None] >= torch.tensor([length, length - 2, 0])[:batch, None]


def holes(batch: int, length: int) -> torch.Tensor:
    padding = torch.zeros(batch, length, dtype=torch.bool)
    padding[0, 1] = padding[-1, -1] = True
    return padding


def both(name: str, rows: list[int]) -> dict[str, list[int]]:
    return {f"{name}.weight": rows, f"{name}.bias": rows}


def attention(name: str, query: list[int], value: list[int]) -> dict[str, list[int]]:
    rows = [*query, *(E + r for r in query), *(2 * E + r for r in value)]
    return {f"{name}.in_proj_weight": rows, f"{name}.in_proj_bias": rows}


def layers(model: nn.Module, query: list[int], value: list[int], hidden: list[int], stream: list[int]) -> Any:
    """Masks for every layer, and for the width of the stream."""
    dropped: dict[str, list[int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            dropped |= attention(name, query, value) | both(f"{name}.out_proj", stream)
        elif name.endswith("linear1"):
            dropped |= both(name, hidden)
        elif name.endswith(("linear2", "a", "c")) and isinstance(module, nn.Linear):
            dropped |= both(name, stream)
    return mask_indices(model, {n: rows for n, rows in dropped.items() if rows})


ONE, HEAD, UNITS, STREAM = [1, 6], [4, 5, 6, 7], [0, 3, 9], [2, 5, 7]


def checked(model: nn.Module, *dropped: list[int]) -> Result:
    model = randomize(model)
    return check_equal(model, inputs(model, 2, 6), layers(model, *dropped), [inputs(model, 1, 3), inputs(model, 3, 8)])


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_dimensions_heads_and_hidden_units_go(norm_first: bool, batch_first: bool) -> None:
    model = Encoder(norm_first=norm_first, batch_first=batch_first, enable_nested_tensor=False)
    result = checked(model, ONE, HEAD, UNITS, [])
    for i in range(2):
        assert result.shape(f"e.layers.{i}.self_attn.in_proj_weight") == (3 + 3 + 4, E)
        # A hidden unit that gives 0 behind ReLU goes; nothing is folded.
        assert result.shape(f"e.layers.{i}.linear1.weight") == (7, E)
    assert result.model.e.layers[0].self_attn.num_heads == 1


def test_the_stream_becomes_narrow_in_front_of_norms() -> None:
    result = checked(Encoder(norm_first=True), ONE, HEAD, UNITS, STREAM)
    # One of the three carries what the norms make of zeros.
    for name in ("a", "e.layers.0.self_attn.out_proj", "e.layers.1.linear2"):
        assert result.shape(f"{name}.weight")[0] == 6
    assert result.shape("e.layers.0.self_attn.in_proj_weight") == (10, 6)


def test_hidden_units_alone_leave_the_fast_path() -> None:
    result = checked(Encoder(), [], [], UNITS, [])
    assert result.shape("e.layers.1.linear1.weight") == (7, E)
    assert type(result.model.e) is nn.TransformerEncoder
    assert type(result.model.e.layers[0]) is nn.TransformerEncoderLayer


@pytest.mark.parametrize("where", [ends, holes])
@pytest.mark.parametrize("stack", [nn.TransformerEncoder, Packing])
@pytest.mark.parametrize("form", ["bool", "float"])
@pytest.mark.parametrize("hidden_only", [True, False])
def test_padding(where: Any, stack: Any, form: str, hidden_only: bool) -> None:
    model = randomize(Encoder(stack))

    def given(batch: int, length: int) -> dict[str, torch.Tensor]:
        mask = where(batch, length)
        if form == "float":
            mask = torch.zeros(mask.shape).masked_fill(mask, -torch.inf)
        return {"x": inputs(model, batch, length), "src_key_padding_mask": mask}

    dropped = ([], [], UNITS, []) if hidden_only else (ONE, HEAD, UNITS, [])
    result = check_equal(model, given(2, 6), layers(model, *dropped), [given(3, 5), given(1, 4)])
    if stack is nn.TransformerEncoder:
        assert result.shape("e.layers.0.linear1.weight") == (7, E)
        assert result.shape("e.layers.0.self_attn.in_proj_weight") == (24 if hidden_only else 10, E)


@pytest.mark.parametrize("stack", [nn.TransformerEncoder, Packing])
def test_a_model_that_was_planned_without_padding_takes_it(stack: Any) -> None:
    model = randomize(Encoder(stack))
    padded = {"x": inputs(model, 3, 6), "src_key_padding_mask": ends(3, 6)}
    result = check_equal(model, inputs(model, 2, 6), layers(model, ONE, HEAD, UNITS, []), [padded])
    assert result.shape("e.layers.0.self_attn.in_proj_weight") == (10, E)
    # With gradients nothing is packed, neither before nor after.
    padded = {n: t.double() if t.is_floating_point() else t for n, t in padded.items()}
    assert bool((result.model.eval()(**padded)[1, -1] != result.model.b(result.model.e.norm.bias)).any())


def test_causal_masks() -> None:
    model = randomize(Encoder(enable_nested_tensor=False))
    causal = nn.Transformer.generate_square_subsequent_mask(6)
    for more in ({}, {"is_causal": True}):
        dummy = {"x": inputs(model, 2, 6), "mask": causal, **more}
        result = check_equal(model, dummy, layers(model, ONE, HEAD, UNITS, []))
        assert result.shape("e.layers.0.self_attn.in_proj_weight") == (10, E)


@pytest.mark.parametrize("norm_first", [True, False])
def test_decoders(norm_first: bool) -> None:
    result = checked(Decoder(norm_first=norm_first), ONE, HEAD, UNITS, [])
    for name in ("self_attn", "multihead_attn"):
        assert result.shape(f"e.layers.1.{name}.in_proj_weight") == (10, E)
    assert result.shape("e.layers.0.linear1.weight") == (7, E)


def test_a_causal_mask_of_a_decoder_that_comes_in() -> None:
    model = randomize(Decoder())

    def given(batch: int, length: int) -> dict[str, torch.Tensor]:
        x, z = inputs(model, batch, length)
        return {"x": x, "z": z, "tgt_mask": nn.Transformer.generate_square_subsequent_mask(length)}

    result = check_equal(model, given(2, 6), layers(model, ONE, HEAD, UNITS, []), [given(1, 3)])
    assert result.shape("e.layers.1.self_attn.in_proj_weight") == (10, E)
    assert type(result.model.e) is nn.TransformerDecoder


@pytest.mark.parametrize("net", [lambda: Decoder(norm_first=True), Whole])
def test_the_stream_of_a_decoder_becomes_narrow(net: Any) -> None:
    result = checked(net(), ONE, HEAD, UNITS, STREAM)
    assert result.shape("a.weight") == (6, 5)
    if isinstance(result.model, Whole):
        assert result.model.t.d_model == 6 and isinstance(result.model.t, nn.Transformer)
    # One weight projects both streams: of the memory as many channels stay, though no norm in front needs a carrier.
    assert result.shape("c.weight") == (6, 6)


NETS: dict[str, Any] = {
    "encoder": Encoder,
    "norm first": lambda: Encoder(norm_first=True, activation="gelu"),
    "batch second": lambda: Encoder(batch_first=False, bias=False, enable_nested_tensor=False),
    "decoder": lambda: Decoder(norm_first=True),
    "whole": Whole,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETS)
def test_all_kinds_of_masks_stay_equal(name: str, kind: str) -> None:
    model = randomize(NETS[name]())
    others = [inputs(model, 1, 3)]
    if name == "encoder":
        others.append({"x": inputs(model, 3, 5), "src_key_padding_mask": ends(3, 5)})
    check_equal(model, inputs(model, 2, 6), random_masks(model, 1, kind), others)


def test_small_layers_are_layers() -> None:
    small = checked(Encoder(), ONE, HEAD, UNITS, []).model.eval()
    assert isinstance(small.e, nn.TransformerEncoder) and isinstance(small.e.layers[0], nn.TransformerEncoderLayer)
    x = inputs(small, 2, 4).double()
    for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert torch.equal(other(x), small(x))


def test_a_layer_gives_memory_in_order_as_the_fused_function_does() -> None:
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, E, 1), nn.Linear(E, 3)
            self.e = nn.TransformerEncoderLayer(E, H, HIDDEN, batch_first=True, norm_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.e(self.a(x).flatten(2).transpose(1, 2))
            result: torch.Tensor = self.b(y.view(-1, y.shape[-1]))
            return result

    model = randomize(Viewing(), 0)
    masks = mask_indices(model, {"e.linear1.weight": [0, 3], "e.linear1.bias": [0, 3]})
    result = check_equal(model, torch.randn(2, 3, 4, 4), masks, [torch.randn(3, 3, 5, 4)])
    assert result.shape("e.linear1.weight") == (HIDDEN - 2, E)
