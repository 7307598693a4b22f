"""Recurrent layers of which hidden units are masked: equal, and as small as what is read allows."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import speedup
from speedup.testing import Masks, Result, check_equal, mask_indices, randomize

GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}
GONE = [1, 4, 6]


class Net(nn.Module):
    """linear, recurrent layer of 8 units, linear; `read` says what is read of the recurrent layer's outputs."""

    def __init__(self, rnn: nn.Module, width: int = 8, read: Callable[..., Any] | None = None, act: Any = None) -> None:
        super().__init__()
        self.a, self.act, self.rnn, self.b = nn.Linear(4, 6), act or nn.Identity(), rnn, nn.Linear(width, 3)
        self.read = read or first_output

    def forward(self, x: torch.Tensor) -> Any:
        return self.b(self.read(self.rnn(self.act(self.a(x)))))


def first_output(outputs: Any) -> torch.Tensor:
    return outputs[0]  # type: ignore[no-any-return]


def x_of(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, 4, generator=torch.Generator().manual_seed(len(shape)))


X, OTHERS = x_of(3, 5), [x_of(2, 7), x_of(1, 1)]


def units(
    model: nn.Module, gone: Sequence[int] | dict[str, Sequence[int]], path: str = "rnn", only: str = "", size: int = 8
) -> Masks:
    """Masks of whole units in all their gates; ``gone`` may be given by the end of the parameters' names."""
    dropped = {}
    module = model.get_submodule(path)
    for name, parameter in module.named_parameters():
        ends = gone if isinstance(gone, dict) else {"": gone}
        here = next((v for k, v in ends.items() if name.endswith(k)), [])
        if only in name and "weight_hr" not in name:
            dropped[f"{path}.{name}"] = [g * size + j for g in range(len(parameter) // size) for j in here]
    return mask_indices(model, dropped)


def checked(model: nn.Module, masks: Masks, x: torch.Tensor = X, others: Sequence[Any] = OTHERS) -> Result:
    return check_equal(model, x, masks, others)


def sizes(result: Result, path: str = "rnn") -> tuple[int, int]:
    rnn: Any = result.model.get_submodule(path)
    suffix = "" if hasattr(rnn, "weight_ih") else "_l0"
    assert rnn.input_size == result.shape(f"{path}.weight_ih{suffix}")[1]
    return rnn.input_size, rnn.hidden_size


# -- whole units ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layers, directions", [(1, 1), (3, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("kind", GATES)
def test_masked_units_go_from_all_gates_layers_and_directions(
    kind: str, layers: int, directions: int, bias: bool
) -> None:
    rnn = getattr(nn, kind)(6, 8, layers, bias=bias, bidirectional=directions == 2, batch_first=True)
    model = randomize(Net(rnn, 8 * directions))
    result = checked(model, units(model, GONE))
    assert sizes(result) == (6, 5)
    assert result.shape("b.weight") == (3, 5 * directions)
    for name, parameter in result.model.rnn.named_parameters():  # type: ignore[union-attr]
        assert len(parameter) == GATES[kind] * 5, name
        if name.startswith("weight_hh"):
            assert parameter.shape[1] == 5
    for layer in range(1, layers):
        assert result.shape(f"rnn.weight_ih_l{layer}")[1] == 5 * directions


@pytest.mark.parametrize("kind", GATES)
def test_positions_differ_and_counts_are_those_of_the_layer_that_keeps_most(kind: str) -> None:
    model = randomize(Net(getattr(nn, kind)(6, 8, 2, bidirectional=True), 16))
    gone = {"l0": [0, 1, 2], "l0_reverse": [5, 6, 7], "l1_reverse": [2, 3], "l1": [0, 3, 5, 7]}
    result = checked(model, units(model, gone))
    assert sizes(result) == (6, 6)
    assert result.shape("b.weight") == (3, 12)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_projection_loses_units_and_entries(layers: int) -> None:
    model = randomize(Net(nn.LSTM(6, 8, layers, proj_size=5), 5))
    masks = units(model, GONE)
    for layer in range(layers):
        masks |= {"rnn": masks["rnn"] | mask_indices(model, {f"rnn.weight_hr_l{layer}": [layer, 3]})["rnn"]}
    result = checked(model, masks)
    assert sizes(result) == (6, 5)
    rnn: Any = result.model.rnn
    assert rnn.proj_size == 3
    assert result.shape("rnn.weight_hr_l0") == (3, 5)
    assert result.shape("rnn.weight_hh_l0") == (20, 3)
    assert result.shape("b.weight") == (3, 3)


def test_a_projection_stays_smaller_than_what_it_projects() -> None:
    model = randomize(Net(nn.LSTM(6, 8, proj_size=5), 5))
    result = checked(model, units(model, [0, 1, 2, 4, 6]))
    assert sizes(result) == (6, 6)


def test_one_unit_stays_where_all_are_masked() -> None:
    model = randomize(Net(nn.LSTM(6, 8, 2)))
    with pytest.warns(UserWarning, match="masked whole"):
        result = checked(model, units(model, range(8)))
    assert sizes(result) == (1, 1)


@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_one_sequence_without_a_batch(shape: tuple[int, ...]) -> None:
    model = randomize(Net(nn.GRU(6, 8)))
    assert sizes(checked(model, units(model, GONE), x_of(*shape), [])) == (6, 5)


# -- which masks make a unit constant ---------------------------------------------------------------------------------


def rows(model: nn.Module, gates: Sequence[int], gone: Sequence[int] = GONE) -> Masks:
    chosen = [g * 8 + j for g in gates for j in gone]
    return mask_indices(model, {f"rnn.{n}": chosen for n, _ in model.rnn.named_parameters()})  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "kind, gates, width",
    [
        ("LSTM", [2], 5),  # g = 0, so that c stays 0 whatever the other gates do
        ("LSTM", [0, 1, 3], 8),
        ("GRU", [2], 5),  # n = 0, so that h stays 0
        ("GRU", [0, 1], 8),
    ],
)
def test_one_gate_is_enough(kind: str, gates: list[int], width: int) -> None:
    model = randomize(Net(getattr(nn, kind)(6, 8)))
    assert sizes(checked(model, rows(model, gates))) == (6, width)


@pytest.mark.parametrize("kind, width", [("RNN", 8), ("LSTM", 8), ("GRU", 8)])
def test_a_bias_that_is_left_makes_a_state_that_changes(kind: str, width: int) -> None:
    model = randomize(Net(getattr(nn, kind)(6, 8)))
    assert sizes(checked(model, units(model, GONE, only="weight"))) == (6, width)


def test_a_negative_bias_under_relu_leaves_zero() -> None:
    model = randomize(Net(nn.RNN(6, 8, nonlinearity="relu")))
    with torch.no_grad():
        model.rnn.bias_ih_l0[GONE] = -9.0  # type: ignore[operator,index]
    assert sizes(checked(model, units(model, GONE, only="weight"))) == (6, 5)


@pytest.mark.parametrize("layers", [1, 2])
def test_an_rnn_unit_that_is_constant_but_for_its_initial_state_goes_if_it_is_not_fed_back(layers: int) -> None:
    model = randomize(Net(nn.RNN(6, 8, layers)))
    masks = units(model, GONE, only="weight")
    fed_back = checked(model, masks)
    assert sizes(fed_back) == (6, 8)
    for layer in range(layers):
        masks["rnn"][f"weight_hh_l{layer}"][:, GONE] = 0
    assert sizes(checked(model, masks)) == (6, 5)


@pytest.mark.parametrize("kind", GATES)
def test_units_that_nobody_reads_go(kind: str) -> None:
    model = randomize(Net(getattr(nn, kind)(6, 8, 2)))
    masks = mask_indices(model, {"rnn.weight_hh_l0": GONE, "rnn.weight_ih_l1": GONE, "rnn.weight_hh_l1": GONE}, axis=1)
    assert sizes(checked(model, masks)) == (6, 8)  # the linear layer reads those of the last one
    masks |= mask_indices(model, {"b.weight": GONE}, axis=1)
    assert sizes(checked(model, masks)) == (6, 5)


def test_units_that_read_one_another_and_nothing_else_reads_go() -> None:
    model = randomize(Net(nn.GRU(6, 8)))
    masks = mask_indices(model, {"b.weight": GONE}, axis=1)
    feeds = torch.ones(24, 8)
    rest = [g * 8 + j for g in range(3) for j in range(8) if j not in GONE]
    feeds[torch.tensor(rest)[:, None], torch.tensor(GONE)] = 0
    assert sizes(checked(model, masks | {"rnn": {"weight_hh_l0": feeds}})) == (6, 5)


def test_single_zeros_take_nothing() -> None:
    model = randomize(Net(nn.LSTM(6, 8)))
    mask = torch.ones(32, 8)
    mask[::2, ::3] = 0
    assert checked(model, {"rnn": {"weight_hh_l0": mask}}).kept == 1


# -- inputs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", GATES)
def test_constant_inputs_go_into_the_bias(kind: str) -> None:
    model = randomize(Net(getattr(nn, kind)(6, 8, bidirectional=True), 16, act=nn.Sigmoid()))
    result = checked(model, mask_indices(model, {"a.weight": [0, 3]}))
    assert sizes(result) == (4, 8)
    assert result.shape("a.weight") == (4, 4)


@pytest.mark.parametrize("biases, left", [(True, 4), (False, 6)])
def test_without_a_bias_only_zeros_go(biases: bool, left: int) -> None:
    model = randomize(Net(nn.GRU(6, 8, bias=False)))
    masked = {"a.weight": [0, 3]} | ({"a.bias": [0, 3]} if biases else {})
    assert sizes(checked(model, mask_indices(model, masked))) == (left, 8)


@pytest.mark.parametrize("kind", GATES)
def test_inputs_that_no_unit_reads_go(kind: str) -> None:
    model = randomize(Net(getattr(nn, kind)(6, 8, 2)))
    result = checked(model, mask_indices(model, {"rnn.weight_ih_l0": [2, 5]}, axis=1))
    assert sizes(result) == (4, 8)
    assert result.shape("a.weight") == (4, 4)


# -- states -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "read, width, left",
    [
        (lambda o: o[1][0], 8, 5),
        (lambda o: o[1][0][-1], 8, 5),
        (lambda o: o[1][1], 8, 5),
        (lambda o: torch.cat([o[1][0][-2], o[1][0][-1]], -1), 16, 10),
        (lambda o: o[1][0].transpose(0, 1).reshape(o[0].shape[1], -1), 32, 20),
    ],
)
def test_what_is_read_of_the_last_states(read: Callable[..., Any], width: int, left: int) -> None:
    model = randomize(Net(nn.LSTM(6, 8, 2, bidirectional=True), width, read))
    result = checked(model, units(model, GONE))
    assert sizes(result) == (6, 5)
    assert result.shape("b.weight") == (3, left)


def test_states_of_other_units_per_layer_cut_at_their_own_places() -> None:
    model = randomize(Net(nn.GRU(6, 8, 2, bidirectional=True), 16, lambda o: torch.cat([o[1][-2], o[1][-1]], -1)))
    result = checked(model, units(model, {"l0": [0, 1], "l0_reverse": [6, 7], "l1": [2, 3], "l1_reverse": [4, 5]}))
    assert sizes(result) == (6, 6)
    assert result.shape("b.weight") == (3, 12)


@pytest.mark.parametrize("read", [lambda o: o[0], lambda o: o[1]])
def test_an_output_of_the_model_keeps_its_shape(read: Callable[..., Any]) -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(4, 8, 2)

        def forward(self, x: torch.Tensor) -> Any:
            return read(self.rnn(x))

    model = randomize(Bare())
    assert sizes(checked(model, units(model, GONE))) == (4, 8)


class Given(nn.Module):
    """With an initial state of its own making."""

    def __init__(self, kind: str, state: str, layers: int = 2) -> None:
        super().__init__()
        self.kind, self.state, self.hidden, self.layers = kind, state, 8, layers
        self.rnn, self.b = getattr(nn, kind)(4, 8, layers, batch_first=True), nn.Linear(8, 3)
        self.learned = nn.Parameter(torch.zeros(layers, 1, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.state == "zeros":
            h = torch.zeros(self.layers, x.size(0), self.hidden, dtype=x.dtype)
        elif self.state == "new_zeros":
            h = x.new_zeros(self.layers, x.size(0), 8)
        elif self.state == "ones":
            h = torch.ones(self.layers, x.size(0), self.hidden, dtype=x.dtype)
        else:
            h = self.learned.expand(-1, x.size(0), -1).contiguous()
        y: torch.Tensor = self.rnn(x, (h, h) if self.kind == "LSTM" else h)[0]
        return self.b(y)


@pytest.mark.parametrize("state, left", [("zeros", 5), ("new_zeros", 5), ("ones", 8), ("learned", 8)])
@pytest.mark.parametrize("kind", GATES)
def test_an_initial_state_must_be_the_constant_too(kind: str, state: str, left: int) -> None:
    model = randomize(Given(kind, state))
    result = checked(model, units(model, {"l0": [0, 1, 2], "l1": [5, 6, 7]}))
    assert sizes(result) == (4, left)


@pytest.mark.parametrize("kind", GATES)
def test_a_learned_state_is_cut_with_its_units(kind: str) -> None:
    model = randomize(Given(kind, "learned"))
    masks = units(model, {"l0": [0, 1, 2], "l1": [5, 6, 7]})
    learned = torch.ones(2, 1, 8)
    learned[0, 0, :3] = learned[1, 0, 5:] = 0
    result = checked(model, masks | {"": {"learned": learned}})
    assert sizes(result) == (4, 5)
    assert result.shape("learned") == (2, 1, 5)


class EncoderDecoder(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.rnn, self.decoder = (getattr(nn, kind)(4, 8, batch_first=True) for _ in range(2))
        self.b = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> Any:
        _, state = self.rnn(x)
        return self.b(self.decoder(x.flip(1), state)[0])


@pytest.mark.parametrize("kind", GATES)
def test_a_state_that_is_handed_on_ties_both_layers(kind: str) -> None:
    model = randomize(EncoderDecoder(kind))
    both = checked(model, units(model, GONE) | units(model, GONE, "decoder"))
    assert sizes(both) == sizes(both, "decoder") == (4, 5)
    one = checked(model, units(model, GONE))
    assert sizes(one) == sizes(one, "decoder") == (4, 8)


# -- cells and shared layers ------------------------------------------------------------------------------------------


class Loop(nn.Module):
    def __init__(self, kind: str, given: bool, **options: Any) -> None:
        super().__init__()
        self.kind, self.given = kind, given
        self.a, self.rnn, self.b = nn.Linear(4, 6), getattr(nn, kind + "Cell")(6, 8, **options), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, state, out = self.a(x), None, []
        if self.given:
            zeros = x.new_zeros(x.shape[0], 8)
            state = (zeros, zeros) if self.kind == "LSTM" else zeros
        for t in range(x.shape[1]):
            state = self.rnn(x[:, t], state)
            out.append(state[0] if self.kind == "LSTM" else state)
        return self.b(torch.stack(out, 1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("kind", GATES)
def test_a_cell_in_a_loop(kind: str, given: bool, bias: bool) -> None:
    model = randomize(Loop(kind, given, bias=bias))
    masks = units(model, GONE) | mask_indices(model, {"a.weight": [2], "a.bias": [2]})
    result = checked(model, masks, others=[x_of(4, 5), x_of(2, 3)])
    assert sizes(result) == (5, 5)
    assert result.shape("b.weight") == (3, 5)


def test_a_cell_that_runs_once_folds_into_both_biases() -> None:
    class Once(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.h, self.rnn, self.b = nn.Linear(4, 6), nn.Linear(4, 8), nn.GRUCell(6, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.rnn(self.a(x).sigmoid(), self.h(x).tanh()))  # type: ignore[no-any-return]

    model = randomize(Once())
    masks = mask_indices(model, {"a.weight": [1, 2], "h.weight": GONE}) | mask_indices(
        model, {"b.weight": GONE}, axis=1
    )
    result = checked(model, masks, x_of(3), [x_of(1), x_of(6)])
    assert sizes(result) == (4, 5)
    assert result.shape("h.weight") == (5, 4)


class Twice(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.rnn, self.b = getattr(nn, kind)(4, 8, 2), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.cat([self.rnn(x)[0], self.rnn(x * 2)[0]], -1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", GATES)
def test_a_layer_that_is_called_twice_keeps_what_either_call_needs(kind: str) -> None:
    model = randomize(Twice(kind))
    assert sizes(checked(model, units(model, GONE))) == (4, 5)
    columns = mask_indices(model, {"b.weight": [1, 4, 6]}, axis=1)
    assert sizes(checked(model, columns)) == (4, 8)


def test_directions_with_one_weight_stay_tied() -> None:
    rnn = nn.GRU(6, 8, bidirectional=True)
    rnn.weight_hh_l0_reverse = rnn.weight_hh_l0
    model = randomize(Net(rnn, 16))
    result = checked(model, units(model, GONE))
    assert sizes(result) == (6, 5)
    small: Any = result.model.rnn
    assert small.weight_hh_l0_reverse is small.weight_hh_l0


# -- packed sequences -------------------------------------------------------------------------------------------------


class Packed(nn.Module):
    def __init__(self, rnn: nn.Module, width: int, sort: bool = False, padding: float = 0.0) -> None:
        super().__init__()
        self.a, self.rnn, self.b = nn.Linear(4, 6), rnn, nn.Linear(width, 3)
        self.sort, self.padding = sort, padding

    def forward(self, x: torch.Tensor, lengths: Any) -> Any:
        x = pack_padded_sequence(self.a(x), lengths, batch_first=True, enforce_sorted=not self.sort)
        y, state = self.rnn(x)
        y, _ = pad_packed_sequence(y, batch_first=True, padding_value=self.padding)
        return self.b(y), self.b(y).sum()


@pytest.mark.parametrize("kind", GATES)
def test_packed_sequences_shrink(kind: str) -> None:
    model = randomize(Packed(getattr(nn, kind)(6, 8, 2, bidirectional=True), 16))
    masks = units(model, GONE) | mask_indices(model, {"a.weight": [0], "a.bias": [0]})
    result = check_equal(model, (x_of(3, 5), [5, 4, 2]), masks, [(x_of(2, 6), [6, 1])])
    assert sizes(result) == (5, 5)
    assert result.shape("b.weight") == (3, 10)


def test_padding_with_another_number_is_no_constant() -> None:
    model = randomize(Packed(nn.LSTM(6, 8), 8, padding=0.5))
    result = check_equal(model, (x_of(3, 5), [5, 4, 2]), units(model, GONE), [(x_of(2, 6), [6, 1])])
    assert sizes(result) == (6, 8)


def test_sequences_in_any_order_stay_equal() -> None:
    model = randomize(Packed(nn.LSTM(6, 8), 8, sort=True))
    result = check_equal(
        model, (x_of(3, 5), torch.tensor([2, 5, 4])), units(model, GONE), [(x_of(2, 6), torch.tensor([1, 6]))]
    )
    assert result.shape("rnn.weight_hh_l0")[1] in (5, 8)


# -- ordinary modules -------------------------------------------------------------------------------------------------


class OwnLSTM(nn.LSTM):
    """As a user may have it."""

    def extra(self) -> str:
        return "extra"


def small_net() -> tuple[nn.Module, Any]:
    model = randomize(Net(OwnLSTM(6, 8, 2, dropout=0.5, bidirectional=True), 16)).double()
    masks = units(model, GONE)
    speedup.ModelSpeedup(model, X.double(), masks).speedup_model()
    return model, model.rnn


def test_the_small_layer_is_an_ordinary_one() -> None:
    model, rnn = small_net()
    assert type(rnn) is OwnLSTM and rnn.extra() == "extra" and rnn.dropout == 0.5 and rnn.training
    assert [id(w) for w in rnn._flat_weights] == [id(getattr(rnn, n)) for n in rnn._flat_weights_names]
    assert [[w.shape for w in row] for row in rnn.all_weights] == [
        [(20, 6 if n < 2 else 10), (20, 5), (20,), (20,)] for n in range(4)
    ]
    fresh = OwnLSTM(6, 5, 2, dropout=0.5, bidirectional=True).double()
    fresh.load_state_dict(rnn.state_dict())
    y = torch.randn(3, 2, 6, dtype=torch.float64)
    assert torch.equal(fresh.eval()(y)[0], rnn.eval()(y)[0])


def test_copies_and_pickles_answer_alike() -> None:
    model, rnn = small_net()
    model.read = None
    y = torch.randn(3, 2, 6, dtype=torch.float64)
    wanted = rnn.eval()(y)[0]
    assert torch.equal(copy.deepcopy(rnn)(y)[0], wanted)
    assert torch.equal(pickle.loads(pickle.dumps(rnn))(y)[0], wanted)
    file = io.BytesIO()
    torch.save(rnn, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(y)[0], wanted)
    assert torch.allclose(copy.deepcopy(rnn).float()(y.float())[0].double(), wanted, atol=1e-5)


def test_the_small_layer_trains() -> None:
    model, rnn = small_net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = [w.detach().clone() for w in rnn._flat_weights]
    model.train()(X.double()).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, rnn._flat_weights, strict=True))


def test_a_frozen_bias_that_takes_up_constants_stays_frozen() -> None:
    model = randomize(Net(nn.GRU(6, 8), act=nn.Sigmoid()))
    model.rnn.bias_ih_l0.requires_grad_(False)  # type: ignore[union-attr,operator]
    result = checked(model, mask_indices(model, {"a.weight": [0, 3]}))
    assert sizes(result) == (4, 8)
    assert not result.model.rnn.bias_ih_l0.requires_grad  # type: ignore[union-attr]


# -- what stays whole -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("above", [True, False])
def test_a_forward_of_its_own_stays_whole_but_for_what_it_calls_above(above: bool) -> None:
    class Residual(nn.GRU):
        def forward(self, x: torch.Tensor) -> Any:  # type: ignore[override]
            return super().forward(x)[0] + 1, None

    class Fused(nn.GRU):
        def forward(self, x: torch.Tensor) -> Any:  # type: ignore[override]
            return torch._VF.gru(
                x, x.new_zeros(1, x.shape[1], 8), self._flat_weights, True, 1, 0.0, False, False, False
            )

    model = randomize(Net(Residual(6, 8) if above else Fused(6, 8)))
    result = checked(model, units(model, GONE))
    assert sizes(result) == ((6, 8 - len(GONE)) if above else (6, 8))
    assert bool(result.plan.report.barriers) != above


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_weight_that_is_computed_stays_whole() -> None:
    model = Net(torch.nn.utils.weight_norm(nn.LSTM(6, 8), "weight_hh_l0"))
    plan = speedup.plan(randomize(model), X, mask_indices(model, {"rnn.weight_ih_l0": GONE}))
    assert plan.report.parameters[0] == plan.report.parameters[1]
    assert "computed" in str(plan.report.barriers)


def test_drop_leaves_out_nothing_that_is_folded() -> None:
    model = randomize(Net(nn.GRU(6, 8), act=nn.Sigmoid())).double().eval()
    masks = mask_indices(model, {"a.weight": [0, 3]})
    plan = speedup.plan(model, X.double(), masks, constants="drop")
    assert max(plan.report.changes) < 1e-12
    assert plan.apply().rnn.input_size == 4  # type: ignore[union-attr]


class Heads(nn.Module):
    """Heads that code lays into one axis, which the layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.rnn, self.b = nn.Linear(4, 8), nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.a(x).view(x.shape[0], -1, 2, 4).transpose(1, 2)
        result: torch.Tensor = self.b(self.rnn(heads.relu().transpose(1, 2).flatten(2))[0])
        return result


def test_heads_before_the_layer_lose_channels() -> None:
    model = randomize(Heads())
    small = checked(model, mask_indices(model, {"a.weight": [0, 4], "a.bias": [0, 4]})).model
    assert (small.a.out_features, small.rnn.input_size) == (6, 6)


class OtherWay(Net):
    """Of channels that are 0 the layer reads something else with other data."""

    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x)
        if bool(x.sum() > 0):
            y = y + x.sum(-1, keepdim=True)
        return self.b(self.read(self.rnn(y)))


def test_what_another_way_lets_the_layer_read_stays() -> None:
    model = randomize(OtherWay(nn.LSTM(6, 8)))
    masks = units(model, GONE) | mask_indices(model, {"a.weight": [0, 1, 2], "a.bias": [0, 1, 2]})
    result = check_equal(model, -X.abs(), masks, [X.abs(), -OTHERS[0].abs()])
    assert sizes(result) == (6, 8 - len(GONE))
