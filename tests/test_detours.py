"""Layers that are called only where data have something for them: the experts of a mixture."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import speedup
from speedup.testing import check_equal, mask_indices, masked_copy, randomize

WIDTH, HIDDEN, EXPERTS, CHOSEN = 8, 12, 4, 2


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x):
        return self.down(F.gelu(self.up(x)))


class Mixture(nn.Module):
    """Each token goes to the experts with the highest scores, and is added to what they make of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.last = nn.Linear(5, WIDTH), nn.Linear(WIDTH, EXPERTS), nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(Expert() for _ in range(EXPERTS))

    def forward(self, x):
        x = self.first(x)
        tokens = x.reshape(-1, x.shape[-1])
        weights, chosen = self.gate(tokens).softmax(-1).topk(CHOSEN, -1)
        return self.last((tokens + self.mixed(tokens, weights, chosen)).reshape(x.shape))


class Skipping(Mixture):
    def mixed(self, x, weights, chosen):
        out, masks = torch.zeros_like(x), F.one_hot(chosen, EXPERTS).permute(2, 1, 0)
        for mask, expert in zip(masks, self.experts, strict=True):
            rank, token = torch.where(mask)
            if token.numel() == 0:
                continue
            out.index_add_(0, token, expert(x[token]) * weights[token, rank, None])
        return out


class Hit(Mixture):
    """As SwitchTransformers of transformers."""

    def mixed(self, x, weights, chosen):
        out, masks = torch.zeros_like(x), F.one_hot(chosen, EXPERTS).permute(2, 1, 0)
        for hit in torch.greater(masks.sum((-1, -2)), 0).nonzero():
            rank, token = torch.where(masks[hit].squeeze(0))
            made = self.experts[int(hit[0])](x[None, token].reshape(-1, x.shape[-1]))
            out.index_add_(0, token, made * weights[token, rank, None])
        return out


class Asking(Mixture):
    def mixed(self, x, weights, chosen):
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mask = chosen == number
            rows = mask.any(-1)
            if not rows.any():
                continue
            out[rows] += expert(x[rows]) * (weights * mask).sum(-1, keepdim=True)[rows]
        return out


class Counting(Mixture):
    """As DeepSeek's own code: how many tokens each expert has is a list of Python."""

    def mixed(self, x, weights, chosen):
        out, counts = torch.zeros_like(x), torch.bincount(chosen.flatten(), minlength=EXPERTS).tolist()
        for number, expert in enumerate(self.experts):
            if counts[number] == 0:
                continue
            token, rank = torch.where(chosen == number)
            out[token] += expert(x[token]) * weights[token, rank, None]
        return out


def every_second(model: nn.Module, *besides: str, biases: bool = True):
    masks: dict[str, dict[str, torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        path, _, own = name.rpartition(".")
        if path not in besides and (biases or own != "bias"):
            line = torch.arange(parameter.shape[0]) % 2 == 0
            masks.setdefault(path, {})[own] = line.reshape(-1, *(1,) * (parameter.ndim - 1)).expand_as(parameter)
    return masks


def planned(model: nn.Module, x: torch.Tensor, masks):
    """The plan, after a look at what the small model answers to other data."""
    model = model.double().eval()
    masked = masked_copy(model, masks)
    plan = speedup.plan(copy.deepcopy(model), x.double(), masks)
    small = plan.apply()
    torch.manual_seed(7)
    with torch.no_grad():
        for number in range(60):
            other = torch.randn(1 + number % 3, 1 + number % 4, 5, dtype=torch.float64)
            assert torch.allclose(small(other), masked(other), rtol=1e-9, atol=1e-9), number
    return plan


@pytest.mark.parametrize("kind", [Skipping, Hit, Asking, Counting])
@pytest.mark.parametrize("tokens", [1, 12])
def test_experts_become_smaller_whichever_the_data_choose(kind, tokens):
    model = randomize(kind(), seed=0)
    torch.manual_seed(0)
    plan = planned(model, torch.randn(1, tokens, 5), every_second(model, "gate", "last"))
    for number in range(EXPERTS):
        assert "12x8 -> 6x4" in plan.explain(f"experts.{number}.up")
        assert "8x12 -> 4x6" in plan.explain(f"experts.{number}.down")
    assert "4x8 -> 4x4" in plan.explain("gate")
    assert not plan.report.uncalled


@pytest.mark.parametrize("kind", [Skipping, Hit, Asking])
def test_tensors_that_a_module_holds_in_a_list(kind):
    """All of them have one name: that of the list."""

    class Scaled(kind):
        def __init__(self) -> None:
            super().__init__()
            self.factors = [torch.tensor([value], dtype=torch.float64) for value in (0.5, 1.5, 3.0)]

        def mixed(self, x, weights, chosen):
            for factor in self.factors:
                x = x * factor.view(1, 1)
            return super().mixed(x, weights, chosen)

    net = randomize(Scaled(), seed=0)
    torch.manual_seed(0)
    plan = planned(net, torch.randn(1, 3, 5), every_second(net, "gate", "last"))
    for number in range(EXPERTS):
        assert "8x12 -> 4x6" in plan.explain(f"experts.{number}.down")


@pytest.mark.parametrize("kind", [Skipping, Hit, Asking])
def test_channels_of_experts_that_are_not_called_are_in_groups(kind):
    model = randomize(kind(), seed=0).double().eval()
    torch.manual_seed(0)
    x = torch.randn(1, 1, 5, dtype=torch.float64)
    plan = planned(model, x, speedup.prune_masks(model, x, sparsity=0.5))
    before, after = plan.report.parameters
    assert after < 0.31 * before


def test_experts_that_leave_constants_of_their_own_keep_them():
    model = randomize(Skipping(), seed=0)
    torch.manual_seed(0)
    plan = planned(model, torch.randn(1, 12, 5), every_second(model, "gate", "last", "first", biases=False))
    assert "12x8 -> 6x8" in plan.explain("experts.0.up")  # the constants of its hidden units are its own
    assert plan.explain("experts.0.down").endswith("8x12 -> 8x6") or "stay" in plan.explain("experts.0.down")


class Layers(nn.Module):
    """Layers that are left out where nothing is large."""

    def __init__(self, step) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.step = step

    def forward(self, x):
        h = self.first(x)
        out = torch.zeros_like(h)
        count = 0
        for number, layer in enumerate(self.layers):
            if (x[..., number] > 1).nonzero().numel() == 0:
                continue
            count += 1
            h, out = self.step(layer, h, out, count)
        return self.last(h + out)


STEPS = {
    "one after another": (lambda layer, h, out, count: (layer(h), out)),
    "added": (lambda layer, h, out, count: (h, out + layer(h))),
    "the last one": (lambda layer, h, out, count: (h, layer(h))),
    "shifted": (lambda layer, h, out, count: (F.relu(h) + 0.5, out + layer(h))),
    "turned": (lambda layer, h, out, count: (h.flip(-1), out + layer(h))),
    "counted": (lambda layer, h, out, count: (h, out + layer(h) / count)),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_is_left_out_changes_no_answer(step, biases, seed):
    """The dummy input takes some of the layers, or all: other data take others."""
    model = randomize(Layers(STEPS[step]), seed=1)
    torch.manual_seed(seed)
    planned(model, torch.randn(2, 3, 5), every_second(model, "last", biases=biases))


@pytest.mark.parametrize("step", ["one after another", "added", "the last one"])
def test_layers_that_are_left_out_become_smaller(step):
    model = randomize(Layers(STEPS[step]), seed=1)
    torch.manual_seed(0)
    plan = planned(model, torch.randn(2, 3, 5), every_second(model, "last"))
    assert all("8x8 -> 4x4" in plan.explain(f"layers.{number}") for number in range(4))


class Padded(Layers):
    """One more question, of which both answers are looked at."""

    def forward(self, x):
        return super().forward(x * 2 if x.mean() > 0 else x)


@pytest.mark.parametrize("step", ["one after another", "added", "the last one", "counted"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("biases", [True, False])
def test_beside_other_ways(step, seed, biases):
    model = randomize(Padded(STEPS[step]), seed=1)
    torch.manual_seed(seed)
    planned(model, torch.randn(2, 3, 5), every_second(model, "last", biases=biases))


def test_what_is_made_with_other_data_alone_holds_what_it_reads():
    """What is found is counted, and divides what the layers give: another call for each number."""
    model = randomize(Layers(STEPS["counted"]), seed=1)
    torch.manual_seed(0)
    plan = planned(model, torch.randn(2, 3, 5), every_second(model, "last"))
    assert "with other data other calls read it" in plan.explain("layers.1")


class Joined(Mixture):
    """What the chosen experts make is joined: how many tensors are joined is for the data to say."""

    def mixed(self, x, weights, chosen):
        made, places = [], []
        for number, expert in enumerate(self.experts):
            (token,) = torch.where(chosen[:, 0] == number)
            if token.numel() == 0:
                continue
            made.append(expert(x[token]))
            places.append(token)
        return torch.cat(made)[torch.cat(places).argsort()]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("biases", [True, False])
def test_experts_that_are_joined_in_unknown_ways(seed, biases):
    model = randomize(Joined(), seed=seed + 1)
    torch.manual_seed(seed)
    planned(model, torch.randn(2, 3, 5), every_second(model, "gate", "last", biases=biases))


class Selecting(Mixture):
    """A mask chooses, and Python asks for the size of what it has chosen."""

    def mixed(self, x, weights, chosen):
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mask = chosen[:, 0] == number
            mine = x[mask]
            if mine.shape[0] == 0:
                continue
            out[mask] = expert(mine)
        return out


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("biases", [True, False])
def test_experts_whose_tokens_a_mask_chooses(seed, biases):
    model = randomize(Selecting(), seed=seed + 1)
    torch.manual_seed(seed)
    plan = planned(model, torch.randn(2, 3, 5), every_second(model, "gate", "last", biases=biases))
    assert all("12x8 -> 6x" in plan.explain(f"experts.{number}.up") for number in range(EXPERTS))


class Block(nn.Linear):
    """A layer that is left out where nothing is large; it looks by itself."""

    def __init__(self, look) -> None:
        super().__init__(WIDTH, WIDTH)
        self.look = look

    def forward(self, h, x):
        return super().forward(h) if self.look(x) else h


LOOKS = {
    "asks": lambda x: (x > 1).any(),
    "looks for places": lambda x: (x > 1).nonzero().numel(),
    "counts what a mask chooses": lambda x: x[x > 1].numel(),
    "counts what masked_select gives": lambda x: len(torch.masked_select(x, x > 1)),
}


class Blocks(nn.Module):
    def __init__(self, look) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.blocks = nn.ModuleList(Block(look) for _ in range(4))

    def forward(self, x):
        h = self.first(x)
        for number, block in enumerate(self.blocks):
            h = block(h, x[..., number])
        return self.last(h)


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("biases", [True, False])
def test_blocks_that_look_by_themselves(look, seed, biases):
    model = randomize(Blocks(LOOKS[look]), seed=seed + 1)
    torch.manual_seed(seed)
    plan = planned(model, torch.randn(2, 3, 5), every_second(model, "last", biases=biases))
    assert not biases or all("8x8 -> 4x4" in plan.explain(f"blocks.{number}") for number in range(4))


class Otherwise(nn.Module):
    """The same layers are called, on something else."""

    def __init__(self, step) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.step = step

    def forward(self, x):
        return self.last(F.relu(self.second(self.step(self.first(x), (x > 1.5).nonzero().shape[0]))))


@pytest.mark.parametrize(
    "step",
    [
        lambda h, n: h if n else h + 0.5,
        lambda h, n: h if n else h.flip(-1),
        lambda h, n: h * n,
        lambda h, n: h / (n + 1),
    ],
    ids=["added", "turned", "times", "divided"],
)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("biases", [True, False])
def test_what_is_found_makes_other_calls(step, seed, biases):
    model = randomize(Otherwise(step), seed=seed + 1)
    torch.manual_seed(seed)
    planned(model, torch.randn(1, 1, 5), every_second(model, "last", biases=biases))


def test_what_comes_in_place_of_what_comes_in_place_of_a_third():
    """Channel 0 is read by layer 3 alone, which may get it from layer 0, with those between left out."""
    model = randomize(Layers(STEPS["one after another"]), seed=0)
    with torch.no_grad():
        model.last.weight[:, :2] = 0
    masks = {"last": {"weight": torch.ones(3, WIDTH)}}
    masks["last"]["weight"][:, :2] = 0
    for number in range(4):
        mask = torch.ones(WIDTH, WIDTH)
        mask[:, 1] = 0
        if number != 3:
            mask[:, 0] = 0
        if number == 0:
            mask[0, 1] = 1
        masks[f"layers.{number}"] = {"weight": mask}
    for seed in range(3):
        torch.manual_seed(seed)
        planned(model, torch.randn(1, 2, 5), masks)


def test_python_reads_of_what_is_found_only() -> None:
    """The dummy input has nothing to find; for what is found, Python reads data behind the last layer, more often than
    a run is looked at. What does not live any more then shrinks."""

    class Post(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.mid, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = F.relu(self.conv(x)).mean((2, 3))
            found = torch.nonzero(x.flatten(1).sum(1) > 1e3).flatten()
            result: torch.Tensor = self.last(F.relu(self.mid(y[found])))
            for row in range(len(found)):
                for _ in range(60):
                    if float(result[row].abs().sum()) > 1e30:
                        result = result + 1
            return result

    net = randomize(Post())
    names = ("conv.weight", "conv.bias", "mid.weight", "mid.bias")
    masks = mask_indices(net, {name: [0, 3, 4] for name in names})
    none, some = (torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(n)).double() for n in (4, 3))
    small = check_equal(net, none, masks, [some + 1e3, torch.cat([some + 1e3, none])]).model
    assert small.mid.out_features == 5


def test_rows_taken_apart_of_which_the_dummy_input_finds_none() -> None:
    """As the masks that a Mask R-CNN puts onto the image, one after another."""

    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.last(F.relu(self.first(x)))
            rows = [row * 2 for row in y[(x[:, 0] > 100).nonzero().flatten()]]
            return torch.stack(rows) if rows else y.new_empty((0, 2))

    net = randomize(Apart())
    none = torch.randn(3, 4)
    assert len(speedup.channel_groups(net, none)) == 1
    small = check_equal(net, none, mask_indices(net, {"first.weight": [1, 4]}), [none + 200]).model
    assert small.first.out_features == 4
