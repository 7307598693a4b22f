"""Activations let zeros and constants through exactly; those that mix entries keep what they mix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from speedup import op_name
from speedup.testing import KINDS, Result, check_equal, mask_indices, random_masks, randomize
from speedup_plugin_activation import speedup_rules

RULES = {rule.name: rule for rule in speedup_rules()}
Call = Callable[[torch.Tensor], torch.Tensor]


def image(batch: int = 2, size: int = 6, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(batch, channels, size, size + 2, generator=generator)


class Function(nn.Module):
    """A function as a layer."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.call(x)


def between(act: nn.Module, wide: int = 8, narrow: int | None = None) -> nn.Sequential:
    """conv, the activation, conv: everything random, and the first constants of either sign and not small."""
    model = randomize(nn.Sequential(nn.Conv2d(3, wide, 1), act, nn.Conv2d(narrow or wide, 4, 1)))
    with torch.no_grad():
        model[0].bias[:4] = torch.tensor([1.5, -1.5, 0.25, -0.25])
    return model


def check(model: nn.Sequential, dropped: dict[str, Any], left: int, *, others: bool = True) -> Result:
    """Masked filters of layer 0 -> filters of it that are left."""
    more = [image(1, 5), image(3, 8)] if others else []
    result = check_equal(model, image(), mask_indices(model, dropped), more)
    assert result.shape("0.weight")[0] == left
    return result


# A filter masked with its bias is 0; one masked alone is a constant of either sign. Both go, whatever the activation.
ZEROS = {"0.weight": [0, 5, 6], "0.bias": [0, 5, 6]}
CONSTANTS = {"0.weight": [0, 1, 2, 3]}

# -- entry by entry -------------------------------------------------------------------------------------------------

ARGUMENTS: dict[str, tuple[float, ...]] = {
    "Threshold": (0.1, 20.0),
    "threshold": (0.1, 20.0),
    "_threshold": (0.1, 20.0),
}
OTHER_ARGUMENTS: list[nn.Module] = [
    nn.ReLU(inplace=True),
    nn.ReLU6(inplace=True),
    nn.SiLU(inplace=True),
    nn.Hardswish(inplace=True),
    nn.LeakyReLU(0.4, inplace=True),
    nn.ELU(alpha=2.0, inplace=True),
    nn.CELU(alpha=0.3),
    nn.Threshold(0.5, -3.0, inplace=True),
    nn.Hardtanh(-0.3, 1.2),
    nn.GELU(approximate="tanh"),
    nn.Softplus(beta=3, threshold=1),
    nn.Softshrink(0.7),
    nn.Hardshrink(0.2),
]


def made(kind: type[nn.Module]) -> nn.Module:
    return kind(*ARGUMENTS.get(kind.__name__, ()))


@pytest.mark.parametrize(
    "act", [*map(made, RULES["activation"].modules), *OTHER_ARGUMENTS], ids=lambda act: repr(act).replace(" ", "")
)
def test_modules(act: nn.Module) -> None:
    model = between(act)
    assert check(model, CONSTANTS, 4).model[2].in_channels == 4
    check(model, ZEROS, 5)


@pytest.mark.parametrize("function", RULES["activation"].functions, ids=op_name)
def test_functions(function: Callable[..., torch.Tensor]) -> None:
    """Every spelling that the rule claims; what writes in place too."""
    arguments = ARGUMENTS.get(function.__name__.rstrip("_"), ())
    check(between(Function(lambda x: function(x, *arguments))), CONSTANTS, 4)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: F.relu(x, inplace=True),
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x: F.leaky_relu(x, negative_slope=0.7),
        lambda x: F.leaky_relu(x, 0.7, True),
        lambda x: F.elu(x, alpha=2.0),
        lambda x: F.hardtanh(x, min_val=-0.3, max_val=1.2),
        lambda x: F.threshold(x, 0.1, 20.0, inplace=True),
        lambda x: F.threshold_(x, 0.1, -20.0),
        lambda x: F.softplus(x, beta=3),
        lambda x: F.hardswish(input=x),
        lambda x: F.rrelu(x, 0.2, 0.4),
        lambda x: F.rrelu_(x, 0.2, 0.4),
        lambda x: torch.rrelu(x, 0.2, 0.4),
        lambda x: x.sigmoid() * x,
        lambda x: x.relu_().sigmoid_(),
    ],
    ids=range(15),
)
def test_functions_with_arguments(call: Call) -> None:
    check(between(Function(call)), CONSTANTS, 4)


@pytest.mark.parametrize("part", [8, 5], ids=["all", "a view"])
def test_what_was_written_in_place_is_seen_by_all_readers(part: int) -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            y = self.b(x.tanh())
            F.leaky_relu_(x, -0.5)
            F.elu_(x[:, :part] if part < 8 else x)
            return self.c(y + x)

    model = randomize(InPlace())
    result = check_equal(model, image(), mask_indices(model, {"a.weight": [0, 7], "b.weight": [0, 7]}), [image(1, 9)])
    if part == 8:
        assert (result.shape("a.weight")[0], result.shape("c.weight")[1]) == (6, 6)
    for seed, kind in enumerate(KINDS[:5]):
        check_equal(model, image(), random_masks(model, seed, kind), [image(1, 9)])


def test_as_the_last_layer_it_keeps_its_channels() -> None:
    model = randomize(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid()))
    result = check_equal(model, image(), mask_indices(model, {"0.weight": [1]}), [image(1, 9)])
    assert result.kept == 1.0


def test_zeros_that_an_activation_lifts_are_constants() -> None:
    """sigmoid(0) is a half: behind it a padded conv needs a carrier, behind a ReLU it does not."""
    for act, left in ((nn.Sigmoid(), 6), (nn.Softplus(), 6), (nn.ReLU(), 5), (nn.Tanh(), 5), (nn.Threshold(0.1, 9), 6)):
        model = randomize(nn.Sequential(nn.Conv2d(3, 8, 1), act, nn.Conv2d(8, 4, 3, padding=1)))
        check(model, ZEROS, left)


def test_negative_constants_end_at_a_relu() -> None:
    """What a ReLU cuts off leaves no trace even before a padded conv."""
    model = between(nn.ReLU())
    model[2] = randomize(nn.Conv2d(8, 4, 3, padding=1))
    check(model, {"0.weight": [1, 3]}, 6)
    check(model, {"0.weight": [0, 1, 2, 3]}, 5)


# -- slopes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slopes", [1, 8])
@pytest.mark.parametrize("function", [False, True])
def test_prelu(slopes: int, function: bool) -> None:
    class Prelu(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(slopes))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.prelu(x, self.weight)

    model = between(Prelu() if function else nn.PReLU(slopes))
    for dropped, left in ((CONSTANTS, 4), (ZEROS, 5)):
        result = check(model, dropped, left)
        assert result.shape("1.weight") == (left if slopes > 1 else 1,)
        assert function or result.model[1].num_parameters == (left if slopes > 1 else 1)


def test_masked_slopes_are_zeros() -> None:
    """A channel of slope 0 is a ReLU; its filter goes only if it is constant."""
    model = between(nn.PReLU(8))
    check(model, {"1.weight": [0, 4]}, 8)
    check(model, {"1.weight": [0, 1, 4], "0.weight": [1]}, 7)


def test_prelu_of_vectors() -> None:
    model = randomize(nn.Sequential(nn.Linear(5, 8), nn.PReLU(8), nn.Linear(8, 3)))
    result = check_equal(model, torch.randn(4, 5), mask_indices(model, {"0.weight": [0, 1]}), [torch.randn(1, 5)])
    assert (result.shape("0.weight")[0], result.shape("1.weight")) == (6, (6,))


def test_prelu_called_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
            self.act = nn.PReLU(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(self.act(self.b(self.act(self.a(x)))))

    model = randomize(Twice())
    dropped = {f"{layer}.{name}": [2, 3] for layer in "ab" for name in ("weight", "bias")}
    result = check_equal(model, image(), mask_indices(model, dropped), [image(1, 9)])
    assert result.shape("act.weight") == (6,)
    for seed in range(4):
        check_equal(model, image(), random_masks(model, seed, "mixed"), [image(1, 9)])


# -- over an axis ---------------------------------------------------------------------------------------------------

SOFTMAX: dict[str, Callable[[int], Call]] = {
    "nn.Softmax": lambda dim: nn.Softmax(dim),
    "nn.LogSoftmax": lambda dim: nn.LogSoftmax(dim),
    "nn.Softmin": lambda dim: nn.Softmin(dim),
    "F.softmax": lambda dim: lambda x: F.softmax(x, dim),
    "F.softmax, by name": lambda dim: lambda x: F.softmax(input=x, dim=dim, dtype=torch.float64),
    "F.log_softmax": lambda dim: lambda x: F.log_softmax(x, dim=dim),
    "F.softmin": lambda dim: lambda x: F.softmin(x, dim=dim),
    "torch.softmax": lambda dim: lambda x: torch.softmax(x, dim),
    "torch.log_softmax": lambda dim: lambda x: torch.log_softmax(x, dim),
    "torch.special.softmax": lambda dim: lambda x: torch.special.softmax(x, dim),
    "Tensor.softmax": lambda dim: lambda x: x.softmax(dim),
    "Tensor.log_softmax": lambda dim: lambda x: x.log_softmax(dim=dim),
}


@pytest.mark.parametrize("softmax", SOFTMAX)
def test_softmax_over_channels_counts_every_channel(softmax: str) -> None:
    """Each constant is in every denominator: all channels stay."""
    check(between(Function(SOFTMAX[softmax](1))), CONSTANTS, 8)
    check(between(Function(SOFTMAX[softmax](-3))), ZEROS, 8)


@pytest.mark.parametrize(("softmax", "dim"), [("nn.Softmax", 0), ("nn.Softmax", 2), *((name, -1) for name in SOFTMAX)])
def test_softmax_over_other_axes(softmax: str, dim: int) -> None:
    """What is not read of it goes. A constant comes out as one part in so many: other sizes, other constants."""
    model = between(Function(SOFTMAX[softmax](dim)))
    check(model, CONSTANTS, 8)
    masks = mask_indices(model, {"2.weight": [0, 3]}, axis=1)
    result = check_equal(model, image(), masks, [image(1, 5), image(3, 8)])
    assert result.shape("0.weight")[0] == 6


def test_softmax2d_is_over_channels() -> None:
    check(between(nn.Softmax2d()), CONSTANTS, 8)
    model = between(nn.Softmax2d())
    check_equal(model, image()[0], mask_indices(model, CONSTANTS), [image()[1], image(3, 8)])


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 4, 5), (2, 3, 4, 5)])
def test_the_implicit_axis_of_softmax(shape: tuple[int, ...]) -> None:
    model = randomize(nn.Sequential(nn.Linear(5, 8), nn.Softmax(), nn.Linear(8, 3)))
    for seed, kind in enumerate(("filters", "columns", "mixed")):
        check_equal(model, torch.randn(shape), random_masks(model, seed, kind))


def test_attention_like_softmax() -> None:
    """Softmax of a linear layer's outputs, last axis."""
    model = randomize(nn.Sequential(nn.Linear(5, 8), nn.Softmax(-1), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)))
    dropped = {"0.weight": [0, 1], "2.weight": [0, 1]}
    result = check_equal(model, torch.randn(2, 4, 5), mask_indices(model, dropped), [torch.randn(1, 9, 5)])
    assert (result.shape("0.weight")[0], result.shape("2.weight")) == (8, (4, 8))


# -- gated ----------------------------------------------------------------------------------------------------------

GLU: dict[str, Callable[[int], nn.Module]] = {
    "nn.GLU": lambda dim: nn.GLU(dim),
    "F.glu": lambda dim: Function(lambda x: F.glu(x, dim)),
    "F.glu, by name": lambda dim: Function(lambda x: F.glu(input=x, dim=dim)),
}
# masked (with biases) of 16 channels, the last 8 being the gates -> channels left, channels left behind it
HALVES = {
    "values": ([0, 1, 5], 10, 5),
    "values and their gates": ([0, 1, 8, 9], 12, 6),
    "gates alone are a half": ([8, 9], 16, 8),
    "values, and gates of others": ([0, 1, 11, 12], 12, 6),
    "unaligned": ([0, 3, 8, 9, 10], 12, 6),
}


FORMS = [("nn.GLU", 1), ("nn.GLU", -3), ("F.glu", 1), ("F.glu, by name", -3)]


@pytest.mark.parametrize("case", HALVES)
@pytest.mark.parametrize(("glu", "dim"), FORMS)
def test_glu_over_channels(glu: str, dim: int, case: str) -> None:
    """A gate goes with its value: both halves keep the same positions, and the gate of a 0 is not read."""
    masked, left, behind = HALVES[case]
    result = check(between(GLU[glu](dim), 16, 8), {"0.weight": masked, "0.bias": masked}, left)
    assert result.shape("2.weight")[1] == behind


@pytest.mark.parametrize(("glu", "dim"), FORMS)
def test_the_product_of_two_constants_of_a_glu_is_one(glu: str, dim: int) -> None:
    result = check(between(GLU[glu](dim), 16, 8), {"0.weight": [0, 1, 8, 9, 15]}, 12)
    assert result.shape("2.weight")[1] == 6


@pytest.mark.parametrize("glu", GLU)
@pytest.mark.parametrize("dim", [2, 3, -1])
def test_glu_over_other_axes(dim: int, glu: str) -> None:
    model = between(GLU[glu](dim))
    more = [image(1, 4), image(3, 8)]
    result = check_equal(model, image(), mask_indices(model, CONSTANTS), more)
    assert result.shape("0.weight")[0] == 4
    result = check_equal(model, image(), mask_indices(model, ZEROS), more)
    assert result.shape("0.weight")[0] == 5


@pytest.mark.parametrize("glu", GLU)
def test_glu_of_linear_layers(glu: str) -> None:
    model = randomize(nn.Sequential(nn.Linear(5, 16), GLU[glu](-1), nn.Linear(8, 3)))
    dropped = {"0.weight": [0, 1, 10, 11], "0.bias": [0, 1, 10, 11]}
    result = check_equal(model, torch.randn(2, 4, 5), mask_indices(model, dropped), [torch.randn(5)])
    assert (result.shape("0.weight")[0], result.shape("2.weight")[1]) == (12, 6)
    result = check_equal(model, torch.randn(2, 4, 5), mask_indices(model, {"2.weight": [0, 7]}, 1), [torch.randn(5)])
    assert result.shape("0.weight")[0] == 12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 2, -1])
@pytest.mark.filterwarnings("ignore:.* is masked whole")
def test_random_masks_of_glu(dim: int, kind: str) -> None:
    model = between(nn.GLU(dim), 16, 8 if dim == 1 else 16)
    check_equal(model, image(), random_masks(model, dim % 5, kind), [image(1, 8)])


# -- dropout --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RULES["dropout"].modules, ids=lambda kind: kind.__name__)
def test_dropout_modules_drop_nothing_in_eval_mode(kind: type[nn.Module]) -> None:
    if kind is nn.Dropout1d:  # for sequences only
        layers = [nn.Conv1d(3, 8, 1), kind(), nn.Conv1d(8, 4, 1)]
    else:
        layers = [nn.Conv2d(3, 8, 1), kind(), nn.Conv2d(8, 4, 1)]
    model = randomize(nn.Sequential(*layers))
    inputs = [image(*shape) if kind is not nn.Dropout1d else image(*shape).flatten(2) for shape in ((2, 6), (1, 5))]
    result = check_equal(model, inputs[0], mask_indices(model, CONSTANTS), inputs[1:])
    assert result.shape("0.weight")[0] == 4


DROPOUTS = [F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout]
TORCH_DROPOUTS = [torch.dropout, torch.alpha_dropout, torch.feature_dropout, torch.feature_alpha_dropout]
IN_PLACE = [torch.dropout_, torch.alpha_dropout_, torch.feature_dropout_, torch.feature_alpha_dropout_]


@pytest.mark.filterwarnings("ignore:dropout.*Received a")
@pytest.mark.parametrize("function", DROPOUTS, ids=op_name)
def test_dropout_functions_that_are_told_not_to(function: Callable[..., torch.Tensor]) -> None:
    one_less = function is F.dropout1d
    call = (lambda x: function(x.flatten(2), 0.5, training=False).view_as(x)) if one_less else None
    check(between(Function(call or (lambda x: function(x, 0.5, training=False)))), CONSTANTS, 4)


@pytest.mark.parametrize("function", TORCH_DROPOUTS + IN_PLACE, ids=op_name)
def test_torch_dropouts_that_are_told_not_to(function: Callable[..., torch.Tensor]) -> None:
    check(between(Function(lambda x: function(x, 0.5, False))), CONSTANTS, 4)
    check(between(Function(lambda x: function(x, p=0.5, train=False))), CONSTANTS, 4)


def test_dropout_that_asks_its_module() -> None:
    class Asks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.dropout(x, 0.5, self.training)

    check(between(Asks()), CONSTANTS, 4)


RANDOM: dict[str, Call] = {
    "F.dropout, by default": lambda x: F.dropout(x),
    "F.dropout": lambda x: F.dropout(x, 0.3, training=True),
    "F.dropout2d": lambda x: F.dropout2d(x, 0.3, True),
    "F.alpha_dropout": lambda x: F.alpha_dropout(x, 0.3, training=True),
    "F.feature_alpha_dropout": lambda x: F.feature_alpha_dropout(x, 0.3, training=True),
    "F.rrelu": lambda x: F.rrelu(x, training=True),
    "F.gumbel_softmax": lambda x: F.gumbel_softmax(x, dim=1),
    "torch.dropout": lambda x: torch.dropout(x, 0.3, True),
    "torch.dropout, by name": lambda x: torch.dropout(x, p=0.3, train=True),
    "torch.dropout_": lambda x: torch.dropout_(x * 1.0, 0.3, True),
    "torch.alpha_dropout": lambda x: torch.alpha_dropout(x, 0.3, True),
    "torch.feature_dropout": lambda x: torch.feature_dropout(x, 0.3, train=True),
    "torch.rrelu": lambda x: torch.rrelu(x, 0.1, 0.3, True),
}


@pytest.mark.parametrize("function", RANDOM)
def test_what_is_random_in_eval_mode_keeps_its_channels(function: str) -> None:
    """Monte-Carlo dropout: with the same seed the same entries fall, so nothing in front of it may go."""
    result = check(between(Function(RANDOM[function])), CONSTANTS, 8)
    assert result.plan.report.barriers != []


# -- nets -----------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Many of them after one another."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.d = nn.Conv2d(8, 4, 3, padding=1)
        self.glu, self.prelu, self.act = nn.GLU(1), nn.PReLU(8), nn.Hardswish(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.prelu(self.glu(self.a(x)))
        y = F.mish(self.b(x)) * torch.sigmoid(self.c(x))
        return self.d(self.act(x + F.dropout(y, 0.2, self.training))).softmax(1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.* is masked whole")
def test_random_masks(kind: str) -> None:
    for seed in range(3):
        model = randomize(Net(), seed)
        check_equal(model, image(), random_masks(model, seed, kind), [image(1, 9)])


def test_rrelu_carries_no_combinations_on() -> None:
    """It is no identity in eval mode: what a norm leaves of a removed channel does not pass it as it is."""
    model = randomize(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.RReLU(), nn.Linear(8, 3))).eval()
    masks = mask_indices(model, {"0.weight": (1, 2, 5), "0.bias": (1, 2, 5)})
    check_equal(model, torch.randn(3, 4), masks, [torch.randn(5, 4)])
