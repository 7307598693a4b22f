"""Embeddings under masks: equal, and the columns that can go are gone."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from speedup.testing import KINDS, Result, check_equal, mask_indices, random_masks, randomize

GONE = [1, 3, 4, 6]
IDS = torch.tensor([[0, 5, 2, 2, 8], [7, 1, 0, 3, 4]])
OTHERS = [torch.tensor([[6], [8], [0]]), torch.tensor([[8, 7, 6, 5, 4, 3, 2, 1, 0]])]


class Net(nn.Module):
    """Something with a table of 9 rows and 10 columns, and a linear layer that reads it."""

    def __init__(self, body: Callable[..., torch.Tensor], *layers: nn.Module, width: int = 10) -> None:
        super().__init__()
        self.body, self.layers = body, nn.ModuleList(layers)
        self.table, self.other = nn.Parameter(torch.zeros(9, 10)), nn.Parameter(torch.zeros(9, 10))
        self.scale = nn.Parameter(torch.ones(10))
        self.read = nn.Linear(width, 3)
        randomize(self)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.read(self.body(self, ids))


def layer(**options: Any) -> nn.Embedding:
    return nn.Embedding(9, 10, **options)


def of_layers(m: Net, ids: torch.Tensor) -> torch.Tensor:
    return sum(each(ids) for each in m.layers)  # type: ignore[return-value]


def columns(model: nn.Module, *names: str, gone: list[int] = GONE) -> dict[str, dict[str, torch.Tensor]]:
    return mask_indices(model, dict.fromkeys(names, gone), axis=1)


def checked(model: nn.Module, masks: dict[str, Any], ids: torch.Tensor = IDS, others: Any = OTHERS) -> Result:
    return check_equal(model, ids, masks, others)


# -- one table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "others"),
    [
        (IDS, OTHERS),
        (torch.tensor(3), [IDS]),
        (torch.tensor([3, 3], dtype=torch.int32), OTHERS),
        (IDS.reshape(1, 2, 5), [IDS]),
    ],
)
def test_masked_columns_go_and_rows_stay(ids: torch.Tensor, others: list[torch.Tensor]) -> None:
    model = Net(of_layers, layer())
    result = checked(model, columns(model, "layers.0.weight"), ids, others)
    assert result.shape("layers.0.weight") == (9, 6) and result.shape("read.weight") == (3, 6)
    embedding = result.model.layers[0]
    assert type(embedding) is nn.Embedding and embedding.embedding_dim == 6 and embedding.num_embeddings == 9


def test_columns_that_nobody_reads_go() -> None:
    model = Net(of_layers, layer())
    result = checked(model, columns(model, "read.weight"))
    assert result.shape("layers.0.weight") == (9, 6)


@pytest.mark.parametrize("options", [{"padding_idx": 2}, {"scale_grad_by_freq": True}, {"sparse": True}])
def test_options_stay(options: dict[str, Any]) -> None:
    model = Net(of_layers, layer(**options))
    result = checked(model, columns(model, "layers.0.weight"))
    assert result.shape("layers.0.weight") == (9, 6)
    assert all(getattr(result.model.layers[0], name) == value for name, value in options.items())


def test_a_renormalised_table_stays() -> None:
    model = Net(of_layers, layer(max_norm=0.5))
    result = checked(model, columns(model, "layers.0.weight"))
    assert result.shape("layers.0.weight") == (9, 10)
    assert "max_norm" in str(result.plan.report.barriers)


def test_columns_masked_in_some_rows_stay() -> None:
    model = Net(of_layers, layer())
    mask = torch.ones(9, 10)
    mask[1:, 3], mask[:, 7], mask[4, :] = 0, 0, 0
    result = checked(model, {"layers.0": {"weight": mask}})
    assert result.shape("layers.0.weight") == (9, 9)


def test_the_row_of_the_padding_needs_no_mask() -> None:
    model = Net(of_layers, layer(padding_idx=2))
    model.layers[0].weight.data[2] = 0
    mask = torch.ones(9, 10)
    mask[[0, 1, 3, 4, 5, 6, 7, 8], 3] = 0
    assert checked(model, {"layers.0": {"weight": mask}}).shape("layers.0.weight") == (9, 9)


def test_columns_that_are_equal_without_a_mask_stay() -> None:
    model = Net(of_layers, layer())
    model.layers[0].weight.data[:, 3] = 0
    assert checked(model, columns(model, "layers.0.weight", gone=[1])).shape("layers.0.weight") == (9, 9)


def test_a_table_that_is_masked_whole() -> None:
    model = Net(lambda m, ids: m.layers[0](ids) + m.table[ids], layer())
    with pytest.warns(UserWarning, match="masked whole"):
        result = checked(model, {"layers.0": {"weight": torch.zeros(9, 10)}} | columns(model, "table"))
    assert result.shape("layers.0.weight") == (9, 6) and result.shape("table") == (9, 6)


# -- functions, and layers of other libraries -------------------------------------------------------------------------


class Scaled(nn.Embedding):
    """As language models have it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 4.0


FUNCTIONS = {
    "F.embedding": lambda m, ids: F.embedding(ids, m.table, padding_idx=1),
    "by name": lambda m, ids: F.embedding(weight=m.table, input=ids),
    "torch.embedding": lambda m, ids: torch.embedding(m.table, ids),
    "a table that is computed": lambda m, ids: F.embedding(ids, m.table * m.scale),
    "an index": lambda m, ids: m.table[ids],
    "index_select": lambda m, ids: m.table.index_select(0, ids.flatten()).unflatten(0, ids.shape),
    "a part of a table": lambda m, ids: F.embedding(ids, m.table[:9]),
}


def test_tables_of_other_numbers() -> None:
    """What is no parameter, or holds complex numbers or truth values, is read as it is."""

    def body(m: Net, ids: torch.Tensor) -> torch.Tensor:
        turned = F.embedding(ids * 0, m.turns).abs()
        return m.layers[0](ids) * torch.where(m.flags[ids], turned, 1.0)

    model = Net(body, layer())
    model.turns = nn.Parameter(torch.randn(1, 1, dtype=torch.complex128))
    model.register_buffer("flags", torch.arange(9)[:, None] % 2 == 0)
    result = checked(model, columns(model, "layers.0.weight"))
    assert result.shape("layers.0.weight") == (9, 6)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    model = Net(FUNCTIONS[name])
    result = checked(model, columns(model, "table"))
    assert result.shape("table") == (9, 6) and result.shape("read.weight") == (3, 6)


def test_a_subclass_that_scales() -> None:
    model = Net(of_layers, Scaled(9, 10))
    result = checked(model, columns(model, "layers.0.weight"))
    assert result.shape("layers.0.weight") == (9, 6) and isinstance(result.model.layers[0], Scaled)


def test_one_hot_is_a_barrier() -> None:
    model = Net(lambda m, ids: F.one_hot(ids, 9).to(m.table.dtype) @ m.table)
    result = checked(model, columns(model, "table"))
    assert result.shape("table") == (9, 6)
    assert "one_hot" in str(result.plan.report.barriers)


# -- several tables ---------------------------------------------------------------------------------------------------


class Inputs(nn.Module):
    """Tokens, positions and types, as the input of a BERT."""

    def __init__(self, types: int = 2, norm: bool = True) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(9, 10, padding_idx=0), nn.Embedding(16, 10)
        self.kind = nn.Embedding(types, 10)
        self.norm = nn.LayerNorm(10) if norm else nn.Identity()
        self.read = nn.Linear(10, 3)
        self.register_buffer("positions", torch.arange(16)[None], persistent=False)
        randomize(self)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.token(ids) + self.position(self.positions[:, : ids.shape[1]]) + self.kind(torch.zeros_like(ids))
        return self.read(self.norm(x))


TABLES = ("token.weight", "position.weight", "kind.weight")


@pytest.mark.parametrize("norm", [False, True])
def test_columns_masked_in_all_tables_go(norm: bool) -> None:
    model = Inputs(norm=norm)
    result = checked(model, columns(model, *TABLES))
    width = 7 if norm else 6  # one zero channel carries mean / deviation for the others
    assert [result.shape(name) for name in TABLES] == [(9, width), (16, width), (2, width)]


@pytest.mark.parametrize("norm", [False, True])
def test_columns_masked_in_some_tables_stay(norm: bool) -> None:
    model = Inputs(norm=norm)
    for names in (TABLES[:1], TABLES[:2], TABLES[1:]):
        assert checked(model, columns(model, *names)).shape("token.weight") == (9, 10)


@pytest.mark.parametrize("norm", [False, True])
def test_the_only_row_of_a_table_is_a_constant(norm: bool) -> None:
    model = Inputs(types=1, norm=norm)
    result = checked(model, columns(model, *TABLES[:2]))
    width = 8 if norm else 6  # behind a norm, constants that differ need two carriers
    assert [result.shape(name) for name in TABLES] == [(9, width), (16, width), (1, width)]


def test_positions_alone_stay_unless_nobody_reads_them() -> None:
    """They are constants, but another one at every position."""
    model = Net(lambda m, ids: m.layers[0](torch.arange(ids.shape[1])), layer())
    assert checked(model, mask_indices(model, {"layers.0.weight": [0, 2]})).shape("layers.0.weight") == (9, 10)
    assert checked(model, columns(model, "read.weight")).shape("layers.0.weight") == (9, 6)


def test_one_position_stands_for_no_others() -> None:
    model = Inputs(norm=False)
    result = checked(model, columns(model, "token.weight", "kind.weight"), IDS[:, :1], [IDS])
    assert result.shape("position.weight") == (16, 10)


def test_a_table_that_is_read_twice() -> None:
    model = Net(lambda m, ids: m.layers[0](ids) * m.layers[0](ids.flip(-1)) + m.layers[1](ids), layer(), layer())
    result = checked(model, columns(model, "layers.0.weight", "layers.1.weight"))
    assert result.shape("layers.0.weight") == result.shape("layers.1.weight") == (9, 6)
    assert checked(model, columns(model, "layers.0.weight")).shape("layers.0.weight") == (9, 10)


# -- language models --------------------------------------------------------------------------------------------------


class Language(nn.Module):
    """Tokens and positions, a block, and a head that is the table of the tokens."""

    def __init__(self, tied: bool = True, bias: bool = False) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(9, 10), nn.Embedding(16, 10)
        self.n1, self.up, self.down = nn.LayerNorm(10), nn.Linear(10, 14), nn.Linear(14, 10)
        self.n2, self.head = nn.LayerNorm(10), nn.Linear(10, 9, bias=bias)
        randomize(self)
        if tied:
            self.head.weight = self.token.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.token(ids) + self.position(torch.arange(ids.shape[1], device=ids.device))
        x = x + self.down(F.gelu(self.up(self.n1(x))))
        return self.head(self.n2(x))


STREAM = {"down.weight": GONE, "down.bias": GONE, "n2.weight": GONE, "n2.bias": GONE}


def stream(model: nn.Module) -> dict[str, Any]:
    return mask_indices(model, STREAM) | columns(model, "token.weight", "position.weight")


def test_a_tied_head() -> None:
    model = Language()
    masks = stream(model)
    masks["n1"] = mask_indices(model, {"n1.weight": GONE, "n1.bias": GONE})["n1"]
    result = checked(model, masks)
    assert result.shape("token.weight") == result.shape("head.weight") == (9, 6)
    assert result.model.head.weight is result.model.token.weight
    assert result.model.head.in_features == result.model.token.embedding_dim == 6
    assert result.shape("up.weight") == (14, 6) and result.shape("position.weight") == (16, 6)


def test_what_is_behind_the_norm_of_a_tied_head() -> None:
    """Without masks on the last norm its removed channels are no zeros; the masked columns of the head read nothing."""
    model = Language()
    masks = stream(model)
    del masks["n2"]
    result = checked(model, masks)
    assert result.shape("head.weight") == (9, 7)  # one carrier, for the layer behind the first norm
    assert result.shape("up.weight") == (14, 7)


def test_a_head_of_its_own() -> None:
    model = Language(tied=False)
    assert checked(model, stream(model)).shape("head.weight") == (9, 7)


def test_the_columns_of_a_tied_head_alone() -> None:
    """The masks hold for both users, but the stream is also written by others."""
    model = Language()
    result = checked(model, columns(model, "token.weight"))
    assert result.shape("token.weight") == (9, 10)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*masked whole")
def test_random_masks(kind: str, tied: bool) -> None:
    for seed in range(3):
        model = randomize(Language(tied, bias=True), seed)
        checked(model, random_masks(model, seed, kind))
        checked(
            randomize(Inputs(seed % 2 + 1, seed > 0), seed), random_masks(Inputs(seed % 2 + 1, seed > 0), seed, kind)
        )


def test_small_models_are_ordinary() -> None:
    model = Language()
    result = checked(model, stream(model))
    for again in (copy.deepcopy(result.model), pickle.loads(pickle.dumps(result.model))):
        again.load_state_dict(result.model.state_dict())
        assert again.head.weight is again.token.weight
        assert torch.equal(again(IDS), result.model(IDS))
    small = result.model.train()
    small(IDS).sum().backward()
    assert small.token.weight.grad is not None and small.token.weight.grad.shape == (9, 7)
