"""A mixture of experts: the loop over the experts that are hit is data, what each of them keeps is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import speedup
from speedup import CheckError, Kept, Node, Rule
from speedup.testing import KINDS, check_equal, random_masks, randomize
from speedup_plugin_linear import experts as rule
from speedup_plugin_linear.experts import are_experts


class Experts(nn.Module):
    """As in transformers: a loop over the experts that some token has chosen."""

    def __init__(self, experts: int = 3, hidden: int = 8, inner: int = 6, act: nn.Module | None = None) -> None:
        super().__init__()
        self.num_experts, self.hidden_dim, self.intermediate_dim = experts, hidden, inner
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * inner, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, inner))
        self.act_fn = nn.SiLU() if act is None else act
        for parameter in (self.gate_up_proj, self.down_proj):
            nn.init.normal_(parameter)

    def forward(self, hidden_states: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(hidden_states)
        for expert in index.unique().tolist():
            token, place = torch.where(index == expert)
            gate, up = nn.functional.linear(hidden_states[token], self.gate_up_proj[expert]).chunk(2, -1)
            each = nn.functional.linear(self.act_fn(gate) * up, self.down_proj[expert])
            out.index_add_(0, token, each * weights[token, place, None])
        return out


class Interleaved(Experts):
    """Gate and up are every second row: something else."""

    def forward(self, hidden_states: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(2 * self.intermediate_dim).view(-1, 2).T.flatten()
        plain = Experts(self.num_experts, self.hidden_dim, self.intermediate_dim).to(self.gate_up_proj)
        plain.gate_up_proj.data, plain.down_proj.data = self.gate_up_proj[:, rows].data, self.down_proj.data
        result: torch.Tensor = plain(hidden_states, index, weights)
        return result


class Mixture(nn.Module):
    """Tokens go to two of three experts."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.a, self.router, self.experts, self.out = nn.Linear(5, 8, False), nn.Linear(8, 3), experts, nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        flat = y.reshape(-1, y.shape[-1])
        weights, index = self.router(flat).softmax(-1).topk(2, -1)
        y = self.experts(flat, index, weights / weights.sum(-1, keepdim=True)).view(*y.shape)
        result: torch.Tensor = self.out(y.tanh())
        return result


def mixture(experts: nn.Module) -> Any:
    return randomize(Mixture(experts)).double().eval()


def tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randn(batch, length, 5, dtype=torch.float64)


def test_what_is_recognised() -> None:
    assert are_experts(Experts()) and are_experts(Experts(4, 6, 3, nn.GELU()))
    assert not are_experts(Interleaved()) and not are_experts(Experts(act=nn.PReLU()))


@pytest.mark.parametrize(("part", "width"), [("gate", 4), ("up", 4), ("down", 4), ("uneven", 5), ("one expert", 6)])
def test_inner_units_go(part: str, width: int) -> None:
    """Each expert loses other units, and all lose as many as the one that can spare the fewest."""
    model = mixture(Experts())
    gate_up, down = (torch.ones_like(p) for p in (model.experts.gate_up_proj, model.experts.down_proj))
    for expert, gone in enumerate(([0, 3], [1, 2], [4, 5])):
        if part == "one expert" and expert:
            continue
        gone = gone[:1] if part == "uneven" and expert else gone
        if part == "down":
            down[expert][:, gone] = 0
        else:
            gate_up[expert][[i + 6 * (part == "up") for i in gone]] = 0
    masks = {"experts": {"gate_up_proj": gate_up, "down_proj": down}}
    result = check_equal(model, tokens(2, 4), masks, [tokens(1, 9), tokens(3, 1)])
    assert result.shape("experts.gate_up_proj") == (3, 2 * width, 8)
    assert result.shape("experts.down_proj") == (3, 8, width)
    assert result.model.experts.intermediate_dim == width


@pytest.mark.parametrize("part", ["gate_up_proj", "down_proj"])
def test_an_expert_of_zeros_keeps_its_number(part: str) -> None:
    """Which expert a token is given to is data, and counts them."""
    model = mixture(Experts())
    mask = torch.ones_like(getattr(model.experts, part))
    mask[0] = 0
    result = check_equal(model, tokens(2, 4), {"experts": {part: mask}}, [tokens(1, 9)])
    assert result.shape("experts.down_proj")[0] == 3


def test_the_stream_becomes_narrower() -> None:
    """What nobody writes is 0, comes in as 0 and goes out as 0."""
    model = mixture(Experts())
    rows, down = torch.ones_like(model.a.weight), torch.ones_like(model.experts.down_proj)
    rows[[1, 4]], down[:, [1, 4]] = 0, 0
    masks = {"a": {"weight": rows}, "experts": {"down_proj": down}}
    result = check_equal(model, tokens(2, 4), masks, [tokens(1, 9)])
    assert result.shape("experts.down_proj") == (3, 6, 6) and result.shape("a.weight") == (6, 5)
    assert result.shape("out.weight") == (4, 6) and result.model.experts.hidden_dim == 6


def test_an_activation_that_makes_something_of_zero() -> None:
    """A gate of 0 lets the other half through then; only units that nobody reads, or whose other half is 0, go."""
    model = mixture(Experts(act=nn.Sigmoid()))
    gate_up = torch.ones_like(model.experts.gate_up_proj)
    gate_up[:, [0, 3]] = 0
    result = check_equal(model, tokens(2, 4), {"experts": {"gate_up_proj": gate_up}})
    assert result.shape("experts.down_proj") == (3, 8, 6)


def test_a_wrong_replacement_is_nothing_that_rounding_tips(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes in and out is whole; what is wrong is a weight."""

    def reversed_experts(self: Rule, node: Node, keep: Kept) -> Any:
        module = original(self, node, keep)
        module.down_proj = nn.Parameter(module.down_proj.flip(0))
        return module

    original = rule.Experts.replace
    monkeypatch.setattr(rule.Experts, "replace", reversed_experts)
    model = mixture(Experts())
    mask = torch.ones_like(model.experts.down_proj)
    mask[:, :, [0, 3]] = 0
    with pytest.raises(CheckError, match="first at experts"):
        speedup.plan(model, tokens(2, 4), {"experts": {"down_proj": mask}})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("experts", [Experts, Interleaved])
def test_all_kinds_of_masks_stay_equal(experts: Any, kind: str) -> None:
    for seed in range(4):
        model = mixture(experts())
        check_equal(model, tokens(2, 4), random_masks(model, seed, kind), [tokens(1, 7)])
