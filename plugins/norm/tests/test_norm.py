"""Norms between layers of which some channels are masked: equal, and as small as the constants allow."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import speedup
from speedup.testing import KINDS, Result, check_equal, mask_indices, random_masks, randomize

GONE = [0, 3, 4, 7, 9]
FILTERS = {"a.weight": GONE, "g.weight": GONE}
FILTERS_AND_BIASES = FILTERS | {"a.bias": GONE, "g.bias": GONE}


class ImageLayerNorm(nn.LayerNorm):
    """Over the channels of an image, as many libraries have it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class ImageGroupNorm(nn.GroupNorm):
    """With the channels first and a forward of its own, as libraries have it."""

    def __init__(self, width: int, groups: int = 1) -> None:
        super().__init__(groups, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class LanguageRMSNorm(nn.Module):
    """As language models have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.variance_epsilon = 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


class OffsetRMSNorm(LanguageRMSNorm):
    """As Gemma has it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (1 + self.weight) * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


class BiasedRMSNorm(LanguageRMSNorm):
    """As autoencoders of images have it."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.bias


class PlainRMSNorm(nn.Module):
    """Without parameters, and so without a word of how many channels there are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.eps = 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


class PlainLayerNorm(nn.Module):
    """As OLMo has it, with its eps in the code."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.normalized_shape = (width,)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.normalized_shape, None, None, eps=1e-5)


class CenteredNorm(nn.Module):
    """A layer norm by hand and without a bias, as Cohere has it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = 1e-5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(-1, keepdim=True)
        return self.weight * (x - mean) * torch.rsqrt((x - mean).pow(2).mean(-1, keepdim=True) + self.eps)


class OffsetLayerNorm(nn.LayerNorm):
    """As Nemotron has it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight + 1, self.bias, self.eps)


class GatedRMSNorm(LanguageRMSNorm):
    """As state-space models have it: what it computes depends on a second argument."""

    def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(x if gate is None else x * F.silu(gate))


class Stream(nn.Module):
    """A residual stream of width 12 with a norm in front of every reader."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.a, self.n = nn.Linear(5, 12), norm(12)
        self.f, self.g = nn.Linear(12, 20), nn.Linear(20, 12)
        self.m, self.h = norm(12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        x = x + self.g(F.gelu(self.f(self.n(x))))
        return self.h(self.m(x))


class Image(nn.Module):
    """conv, norm, perhaps an activation, conv."""

    def __init__(self, norm: nn.Module, padding: int = 0, activation: bool = False) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(3, 12, 3, padding=1), norm
        self.b = nn.Conv2d(12, 8, 3, padding=padding)
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.n(self.a(x))
        return self.b(F.relu(x) if self.activation else x)


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, 5, generator=torch.Generator().manual_seed(len(shape)))


def image(*shape: int) -> torch.Tensor:
    return torch.randn(shape[0], 3, *shape[1:], generator=torch.Generator().manual_seed(shape[0]))


def checked(model: nn.Module, masked: dict[str, list[int]], seed: int = 0) -> Result:
    model = randomize(model, seed)
    if isinstance(model, Image):
        x, others = image(2, 8, 8), [image(1, 5, 6), image(3, 9, 7)]
    else:
        x, others = tokens(4, 7), [tokens(2, 3), tokens(6, 9, 2)]
    return check_equal(model, x, mask_indices(model, masked), others)


# -- layer and RMS norm -----------------------------------------------------------------------------------------------

# Width of the stream with biases masked too, and with the biases left: removed channels are then unequal constants.
STREAMS: dict[str, tuple[Callable[[int], nn.Module], int, int]] = {
    # Zeros need one carrier for -mean/std; constants another one for 1/std.
    "layer norm": (nn.LayerNorm, 8, 9),
    "layer norm without bias": (lambda d: nn.LayerNorm(d, bias=False), 8, 9),
    "layer norm without parameters": (lambda d: nn.LayerNorm(d, elementwise_affine=False), 8, 9),
    # Zeros stay zeros; constants need a carrier for 1/rms.
    "RMS norm": (nn.RMSNorm, 7, 8),
    "RMS norm with eps": (lambda d: nn.RMSNorm(d, eps=1e-2), 7, 8),
    "RMS norm of a language model": (LanguageRMSNorm, 7, 8),
    "RMS norm that scales by one more": (OffsetRMSNorm, 7, 8),
    "RMS norm with bias": (BiasedRMSNorm, 7, 8),
    "RMS norm with a gate that is not given": (GatedRMSNorm, 7, 12),  # its mean is behind `super()`, and counts zeros
    "RMS norm without weight": (lambda d: nn.RMSNorm(d, elementwise_affine=False), 7, 8),
    "RMS norm without weight in code": (PlainRMSNorm, 7, 8),
    "layer norm without weight in code": (PlainLayerNorm, 8, 9),
    "layer norm by hand": (CenteredNorm, 8, 9),
    "layer norm that scales by one more": (OffsetLayerNorm, 8, 9),
}


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_becomes_narrow_but_for_carriers(name: str, biases: bool) -> None:
    norm, zeros, constants = STREAMS[name]
    result = checked(Stream(norm), FILTERS_AND_BIASES if biases else FILTERS)
    width = zeros if biases else constants
    assert result.shape("a.weight") == (width, 5)
    assert result.shape("f.weight") == (20, width)
    assert result.shape("g.weight") == (width, 20)


@pytest.mark.parametrize("name", STREAMS)
def test_masked_scales_and_shifts_need_no_carrier(name: str) -> None:
    masked = FILTERS_AND_BIASES | {
        f"{n}.{p}": GONE for n in "nm" for p, _ in Stream(STREAMS[name][0]).get_submodule(n).named_parameters()
    }
    result = checked(Stream(STREAMS[name][0]), masked)
    if "without" not in name and "one more" not in name:  # a mask of 1 + weight leaves the 1
        assert result.shape("a.weight") == (7, 5)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", STREAMS)
def test_all_kinds_of_masks_stay_equal(name: str, kind: str, seed: int) -> None:
    model = randomize(Stream(STREAMS[name][0]), seed)
    check_equal(model, tokens(4, 7), random_masks(model, seed, kind), [tokens(2, 3)])


def test_a_stream_of_constants_gives_a_constant() -> None:
    whole = list(range(12))
    result = checked(Stream(nn.LayerNorm), {"a.weight": whole, "g.weight": whole})
    assert result.shape("f.weight")[1] == 1


def test_a_masked_scale_alone_gives_the_shift_to_the_bias_that_reads_it() -> None:
    result = checked(Stream(nn.LayerNorm), {"m.weight": list(range(12)), "a.weight": GONE})
    assert result.shape("h.weight") == (3, 1)


@pytest.mark.parametrize("twice", [True, False])
def test_a_norm_that_is_called_twice_stays_whole(twice: bool) -> None:
    class Shared(Stream):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.n(self.a(x))
            return self.h(self.n(x * 2) if twice else x)

    result = checked(Shared(nn.LayerNorm), FILTERS_AND_BIASES)
    assert result.shape("a.weight")[0] == (12 if twice else 8)


def test_a_norm_as_a_function_passes_masked_scales() -> None:
    class Functional(Stream):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.h(F.layer_norm(self.a(x), (12,), self.m.weight, self.m.bias))

    masked = FILTERS_AND_BIASES | {"m.weight": GONE, "m.bias": GONE}
    assert checked(Functional(nn.LayerNorm), masked).shape("a.weight") == (12 - len(GONE), 5)


def test_constants_that_vary_over_positions_stay() -> None:
    class Positions(Stream):
        def __init__(self) -> None:
            super().__init__(nn.LayerNorm)
            self.p = nn.Parameter(torch.randn(7, 12))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.h(self.m(self.a(x) + self.p))

    model = randomize(Positions())
    result = check_equal(model, tokens(4, 7), mask_indices(model, FILTERS_AND_BIASES), [tokens(2, 7)])
    assert result.shape("a.weight")[0] == 12
    masks = mask_indices(model, FILTERS_AND_BIASES)
    columns = torch.ones(7, 12)
    columns[:, GONE] = 0
    masks[""] = {"p": columns}
    assert check_equal(model, tokens(4, 7), masks, [tokens(2, 7)]).shape("p") == (7, 8)


def test_several_normalised_axes_stay_whole() -> None:
    class Wide(Stream):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.h(self.m(self.a(x)))

    model = randomize(Wide(lambda d: nn.LayerNorm((7, d))))
    result = check_equal(model, tokens(4, 7), mask_indices(model, FILTERS_AND_BIASES), [tokens(2, 7)])
    assert result.shape("a.weight")[0] == 12


# -- through what follows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "between",
    [
        lambda y: y.mean(1),
        lambda y: y[:, 0],
        lambda y: F.dropout(y, 0.1, False).transpose(0, 1).contiguous().clone(),
        lambda y: F.pad(y, (0, 0, 1, 2)),
        lambda y: torch.roll(y, 2, 1).unflatten(1, (1, -1)).squeeze(1),
        lambda y: F.adaptive_avg_pool1d(y.transpose(1, 2), 2).transpose(1, 2),
    ],
    ids=["mean", "first token", "copies", "zero padding", "windows", "pool"],
)
def test_what_moves_or_averages_positions_keeps_one_carrier(between: Callable[[torch.Tensor], torch.Tensor]) -> None:
    class Between(Stream):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.h(between(self.m(self.a(x))))

    model = randomize(Between(nn.LayerNorm))
    result = check_equal(model, tokens(4, 7), mask_indices(model, FILTERS_AND_BIASES), [tokens(2, 7)])
    # Under zero padding shifts are no constants: they need a carrier too.
    padded = between(torch.ones(4, 7, 12)).min() == 0
    assert result.shape("h.weight") == (3, 9 if padded else 8)


@pytest.mark.parametrize("between", [F.relu, lambda y: y * y, lambda y: y.flip(-1).cumsum(-1), lambda y: y.softmax(-1)])
def test_nothing_goes_where_the_shared_unknowns_are_lost(between: Callable[[torch.Tensor], torch.Tensor]) -> None:
    class Between(Stream):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.h(between(self.m(self.a(x))))

    assert checked(Between(nn.LayerNorm), FILTERS_AND_BIASES).shape("h.weight") == (3, 12)


def test_branches_that_are_joined_keep_a_carrier_each() -> None:
    class Joined(Stream):
        def __init__(self) -> None:
            super().__init__(nn.LayerNorm)
            self.h = nn.Linear(24, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.h(torch.cat([self.n(self.a(x)), self.m(self.g(self.f(self.a(x))))], -1))

    assert checked(Joined(), FILTERS_AND_BIASES).shape("h.weight") == (3, 16)


def test_positions_folded_into_channels_are_not_mixed_up() -> None:
    class Folded(Stream):
        def __init__(self) -> None:
            super().__init__(nn.LayerNorm)
            self.h = nn.Linear(7 * 12, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.h(self.m(self.a(x)).flatten(1))

    model = randomize(Folded())
    check_equal(model, tokens(4, 7), mask_indices(model, FILTERS_AND_BIASES), [tokens(2, 7)])


# -- images -----------------------------------------------------------------------------------------------------------


def masks_of(biases: bool, gone: list[int], *others: str) -> dict[str, list[int]]:
    return {name: gone for name in ("a.weight", *(("a.bias",) if biases else ()), *others)}


@pytest.mark.parametrize(("padding", "biases", "width"), [(0, True, 8), (0, False, 9), (1, True, 9), (1, False, 10)])
@pytest.mark.parametrize(
    "norm",
    [ImageLayerNorm, lambda d: nn.GroupNorm(1, d), ImageGroupNorm],
    ids=["layer norm", "one group", "one group of a library"],
)
def test_a_norm_over_the_channels_of_an_image(norm: Any, padding: int, biases: bool, width: int) -> None:
    """Behind zero padding the shift is one more unknown."""
    assert checked(Image(norm(12), padding), masks_of(biases, GONE)).shape("b.weight") == (8, width, 3, 3)


@pytest.mark.parametrize("norm", [nn.GroupNorm(3, 12), ImageGroupNorm(12, 3)], ids=["torch", "a library"])
@pytest.mark.parametrize("biases", [True, False])
def test_groups_keep_equal_counts(biases: bool, norm: nn.Module) -> None:
    """Two, one and one of four channels go: each group can do without one."""
    model = Image(copy.deepcopy(norm), activation=True)
    result = checked(model, masks_of(biases, [0, 1, 5, 9], "n.weight", "n.bias"))
    assert result.shape("b.weight") == (8, 9, 3, 3)
    assert result.shape("n.weight") == (9,)


def test_whole_groups_go() -> None:
    model = Image(nn.GroupNorm(3, 12), activation=True)
    result = checked(model, masks_of(False, [4, 5, 6, 7]))
    assert result.shape("b.weight") == (8, 8, 3, 3)
    assert result.model.n.num_groups == 2 and type(result.model.n) is nn.GroupNorm


def test_groups_of_which_all_is_masked_differently() -> None:
    for seed in range(4):
        for kind in KINDS:
            model = randomize(Image(nn.GroupNorm(4, 12), padding=1, activation=True), seed)
            check_equal(model, image(2, 8, 8), random_masks(model, seed, kind), [image(1, 5, 6)])


@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_instance_norm_makes_a_constant_of_a_constant(affine: bool, track: bool) -> None:
    model = Image(nn.InstanceNorm2d(12, affine=affine, track_running_stats=track), activation=True)
    assert checked(model, masks_of(False, GONE)).shape("b.weight") == (8, 7, 3, 3)


def test_instance_norm_as_a_function() -> None:
    class Functional(Image):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(F.instance_norm(self.a(x), weight=self.n.weight, bias=self.n.bias))

    model = Functional(nn.InstanceNorm2d(12, affine=True))
    assert checked(model, masks_of(True, GONE, "n.weight", "n.bias")).shape("b.weight") == (8, 7, 3, 3)


# -- the small module -------------------------------------------------------------------------------------------------


def small_stream(norm: Callable[[int], nn.Module] = nn.LayerNorm) -> Any:
    model = randomize(Stream(norm)).double()
    masks = mask_indices(model, FILTERS_AND_BIASES)
    return speedup.ModelSpeedup(model, tokens(4, 7).double(), masks).speedup_model()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_it_survives_copies(copied: Callable[[nn.Module], nn.Module]) -> None:
    small = small_stream()
    assert isinstance(small.n, nn.LayerNorm) and small.n.normalized_shape == (8,)
    assert set(small.n.state_dict()) == {"weight", "bias"}
    x = tokens(3, 2).double()
    assert torch.equal(copied(small)(x), small(x))


def test_references_to_the_old_module_stay_good() -> None:
    model = randomize(Stream(nn.LayerNorm)).double()
    old, seen = model.n, []
    model.n.register_forward_hook(lambda *_: seen.append(1))
    small = speedup.ModelSpeedup(model, tokens(4, 7).double(), mask_indices(model, FILTERS_AND_BIASES)).speedup_model()
    seen.clear()
    small(tokens(2, 2).double())
    assert small.n is old and seen == [1]


def test_it_trains_and_runs_in_half_precision() -> None:
    small = small_stream()
    small(tokens(2, 3).double()).sum().backward()
    assert all(p.grad is not None for p in small.parameters())
    x = tokens(2, 3)
    assert torch.allclose(small.float()(x), small.bfloat16()(x.bfloat16()).float(), atol=0.1)


def test_a_failed_plan_leaves_the_class_alone() -> None:
    model = randomize(Stream(nn.LayerNorm)).double()
    speedup.plan(model, tokens(4, 7).double(), mask_indices(model, FILTERS_AND_BIASES))
    assert type(model.n) is nn.LayerNorm and model.n.normalized_shape == (12,)


def test_a_reader_of_which_one_position_matters() -> None:
    class First(Stream):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.g(F.gelu(self.f(self.n(self.a(x)))))[:, 0]

    model = randomize(First(nn.LayerNorm))
    masks = mask_indices(model, {"a.weight": GONE, "f.weight": [1, 5, 6]})
    result = check_equal(model, tokens(4, 7), masks, [tokens(2, 3)])
    assert result.shape("f.weight") == (17, 9)


class Token(Stream):
    """One position is a parameter, in which every channel is known."""

    def __init__(self) -> None:
        super().__init__(nn.LayerNorm)
        self.token = nn.Parameter(torch.zeros(1, 1, 12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.a(x)], 1)
        x = x + self.g(F.gelu(self.f(self.n(x))))
        return self.h(self.m(x))


@pytest.mark.parametrize("same", [True, False])
def test_a_position_that_is_a_parameter(same: bool) -> None:
    model = randomize(Token())
    masks = mask_indices(model, FILTERS_AND_BIASES)
    masks[""] = {"token": torch.ones(1, 1, 12)}
    masks[""]["token"][..., GONE if same else GONE[1:]] = 0
    result = check_equal(model, tokens(2, 7), masks, [tokens(3, 4)])
    assert result.shape("a.weight") == (8 if same else 9, 5)
    assert result.shape("token") == (1, 1, 8 if same else 9)


@pytest.mark.parametrize(
    "normed",
    [
        lambda s, y: s.layer(s.latents),
        lambda s, y: s.rms(s.latents),
        lambda s, y: F.layer_norm(s.latents, (8,)),
        lambda s, y: F.group_norm(s.latents.mT, 2).mT,
        lambda s, y: F.instance_norm(s.latents.mT).mT,
        lambda s, y: s.layer(s.latents.expand(len(y), -1, -1)),
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_a_parameter_is_normalised(normed: Callable[[Any, torch.Tensor], torch.Tensor], seed: int) -> None:
    """Learned queries: all of what is normalised counts, whatever scale and readers leave of it."""

    class Latents(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.latents = nn.Linear(5, 8), nn.Parameter(torch.randn(1, 3, 8))
            self.layer, self.rms, self.t = nn.LayerNorm(8), nn.RMSNorm(8), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            result: torch.Tensor = self.t((y + normed(self, y).mean(1, keepdim=True)).tanh())
            return result

    net = randomize(Latents(), seed)
    masks = random_masks(net, seed, "mixed")
    masks.setdefault("layer", {})["weight"] = (torch.arange(8) % 3 > 0).float()
    check_equal(net, torch.randn(2, 6, 5), masks, [torch.randn(1, 4, 5)])


class SequenceNorm(nn.LayerNorm):
    """Over the second of three axes, as SqueezeBERT has it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 1)).permute(0, 2, 1)


def test_a_norm_over_the_channels_of_a_sequence() -> None:
    model = randomize(nn.Sequential(nn.Conv1d(5, 12, 1), SequenceNorm(12), nn.Conv1d(12, 3, 1)))
    masks = mask_indices(model, {"0.weight": GONE, "0.bias": GONE})
    result = check_equal(model, torch.randn(2, 5, 4), masks, [torch.randn(3, 5, 7)])
    assert result.shape("0.weight") == (8, 5, 1), "a carrier stays"


class Relative(nn.Module):
    """A table of relative positions, normalised before it is read (DeBERTa)."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Parameter(torch.randn(7, 12)), nn.LayerNorm(12)
        self.a, self.q = nn.Linear(5, 6), nn.Linear(12, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.a(x) @ self.q(self.norm(self.table)).T
        return y


def test_a_parameter_that_is_normalised_loses_what_masks_make_0() -> None:
    model = randomize(Relative())
    columns = torch.ones(12, dtype=torch.bool)
    columns[list(GONE)] = False
    norm = {"weight": columns, "bias": columns}
    masks = {"": {"table": columns.expand(7, 12)}, "norm": norm}
    result = check_equal(model, tokens(4, 7), masks, [tokens(2, 3)])
    assert result.shape("table") == (7, 12 - len(GONE)) and result.shape("q.weight") == (6, 12 - len(GONE))
    some = columns.expand(7, 12).clone()
    some[2, 1] = some[4, GONE[0]] = True  # what is 0 at some positions only is read
    some[:, GONE[0]] = columns[GONE[0]] = True
    some[3, GONE[0]] = False
    result = check_equal(model, tokens(4, 7), {"": {"table": some}, "norm": {"weight": columns, "bias": columns}})
    assert result.shape("table") == (7, 13 - len(GONE))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("affine", [True, False])
def test_what_is_too_large_for_the_cache_gives_the_same(dtype: torch.dtype, affine: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 64), nn.LayerNorm(64, elementwise_affine=affine), nn.Linear(64, 3)).double()
    masks = mask_indices(randomize(model), {"0.weight": range(1, 64, 2), "0.bias": range(1, 64, 2)})
    small = speedup.plan(model.eval(), torch.randn(2, 4, dtype=torch.float64), masks).apply().to(dtype)
    assert small[1].weight is None if not affine else small[1].weight.numel() < 64
    norm, x = small[1], torch.randn(3, 5000, small[2].in_features).to(dtype)  # nearly twice what is taken at once
    with torch.no_grad():
        whole = norm(x)
        assert whole.shape == x.shape and whole.dtype == dtype
        assert torch.equal(whole, torch.cat([norm(part) for part in x.split(1)]))
        assert torch.equal(whole, norm(x.transpose(0, 1)).transpose(0, 1))
    assert torch.allclose(whole, norm(x), rtol=0.05 if dtype is torch.bfloat16 else 1e-4, atol=1e-2)


def test_a_trace_of_a_large_input_takes_others() -> None:
    norm, large = small_stream().n.float(), torch.randn(5, 8000, 8)
    with torch.no_grad():
        traced = torch.jit.trace(norm, large)
        for x in (large, torch.randn(9, 7000, 8), torch.randn(2, 3, 8)):
            assert torch.allclose(traced(x), norm(x), atol=1e-5)


def test_a_trace_with_gradients_passes_the_check_without() -> None:
    model, x = small_stream(), tokens(2, 5).double()
    assert torch.allclose(torch.jit.trace(model, x)(x), model(x), rtol=1e-12)


@pytest.mark.parametrize("apart", [1e-2, 1e-4, 1e-6])
def test_channels_that_are_nearly_alike_are_carried_exactly(apart: float) -> None:
    """Behind the norm four channels have two unknowns in nearly the same proportion."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.n, self.c = nn.Linear(4, 8), nn.LayerNorm(8), nn.Conv1d(8, 5, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(self.n(self.a(x)).transpose(1, 2))

    model = randomize(Net())
    model.n.weight.data[:4] = 1
    model.n.bias.data[:4] = 1 + apart * torch.arange(4)
    x = torch.randn(2, 7, 4, dtype=torch.float64)
    result = check_equal(model, x, mask_indices(model, {"a.weight": range(4), "a.bias": range(4)}), [x[:, :3]])
    assert result.shape("a.weight") == (6, 4) and result.error < 1e-13
