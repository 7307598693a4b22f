"""``apply(fuse=True)``: norms that count what was removed become plain ones, where the layers around them can do it."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import VisionTransformer

import speedup
from speedup import Registry
from speedup.testing import mask_indices, masked_copy, randomize

DROP = (0, 3, 4, 5, 9)


class Block(nn.Module):
    """Attention over positions, then two layers; both added to the stream."""

    def __init__(self, width: int, hidden: int, layer_scale: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width, eps=1e-3)
        self.qkv, self.out = nn.Linear(width, 3 * hidden, bias=bias), nn.Linear(hidden, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.scales = nn.ParameterList([nn.Parameter(torch.rand(width)) for _ in range(2 if layer_scale else 0)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.first(x)).chunk(3, dim=-1)
        added = self.out(F.scaled_dot_product_attention(q, k, v))
        x = x + (added * self.scales[0] if len(self.scales) else added)
        added = self.down(F.gelu(self.up(self.second(x))))
        return x + (self.scales[1] * added if len(self.scales) else added)


class Net(nn.Module):
    """Patches or words, blocks, a norm, and a head that reads one position or the mean of all."""

    def __init__(
        self,
        width: int = 12,
        depth: int = 2,
        words: bool = False,
        pool: str = "first",
        table: str = "parameter",
        **fields: Any,
    ) -> None:
        super().__init__()
        self.words, self.pool = words, pool
        self.stem: nn.Module = nn.Embedding(20, width) if words else nn.Conv2d(3, width, 4, stride=4)
        positions = torch.randn(1, 16, width)
        if table == "parameter":
            self.positions = nn.Parameter(positions)
        else:
            self.register_buffer("positions", positions.index_fill(2, torch.tensor(DROP), 0))
        self.blocks = nn.Sequential(*(Block(width, 8, **fields) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def embedded(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x) if self.words else self.stem(x).flatten(2).transpose(1, 2)
        return x + self.positions[:, : x.shape[1]]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        entries, x = x.flatten(1)[:, :16], self.norm(self.blocks(self.embedded(x)))
        if self.pool == "largest":
            return self.head(x[torch.arange(len(x)), entries.argmax(1)])
        if self.pool == "pool":
            return self.head(F.adaptive_avg_pool1d(x.mT, 1).flatten(1))
        return self.head(x[:, 0] if self.pool == "first" else x.mean(1))


def ready(model: nn.Module, seed: int = 0) -> nn.Module:
    return randomize(model, seed).double().eval()


def channels(model: nn.Module, drop: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Masks of the stream: all that makes its channels, with biases, so that what goes is 0; norms stay."""
    made = {}
    for name, tensor in model.named_parameters():
        path, _, _ = name.rpartition(".")
        table = name == "positions" or isinstance(model.get_submodule(path), nn.Embedding)
        if name == "positions" or path.rpartition(".")[2] in ("stem", "out", "down"):
            axis = tensor.ndim - 1 if table else 0
            made[name] = torch.ones(tensor.shape).index_fill_(axis, torch.tensor(drop), 0)
    return made


def image(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(batch))


def plain_and_equal(model: nn.Module, masks: Any, x: torch.Tensor, *others: torch.Tensor) -> speedup.Plan:
    """All norms are plain and the answers those of the masked model."""
    plan = fused(model, masks, x, *others)
    assert norms(plan.model) == {nn.LayerNorm}, plan.explain()
    assert plan.report.fusing is not None and not plan.report.fusing.stays
    return plan


def fused(model: nn.Module, masks: Any, x: torch.Tensor, *others: torch.Tensor) -> speedup.Plan:
    wanted = masked_copy(model, masks)
    plan = speedup.plan(copy.deepcopy(model), x, masks)
    small = plan.apply(fuse=True)
    for each in (x, *others):
        a, b = wanted(each), small(each)
        assert (a - b).abs().max() <= 1e-11 * a.abs().max()
    return plan


def norms(model: nn.Module) -> set[type]:
    return {type(m) for m in model.modules() if isinstance(m, nn.LayerNorm)}


def why(plan: speedup.Plan) -> set[str]:
    assert plan.report.fusing is not None
    return {s.why for s in plan.report.fusing.stays}


# -- plain ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pool": "mean"},
        {"pool": "pool"},
        {"pool": "largest"},
        {"layer_scale": True},
        {"bias": False},
        {"table": "buffer"},
        {"depth": 1, "width": 6},
    ],
    ids=str,
)
def test_all_norms_of_a_stream_become_plain(fields: dict[str, Any]) -> None:
    model = ready(Net(**fields))
    width = model.norm.weight.shape[0]
    drop = tuple(c for c in DROP if c < width)
    plan = plain_and_equal(model, channels(model, drop), image(), image(1), image(5))
    small = plan.model
    assert small.norm.weight.shape == (width - len(drop) + 1,)  # and one that carries
    assert small.norm.eps != 1e-5
    assert plan.report.fusing is not None
    told = {f.module: f.into for f in plan.report.fusing.plain}
    assert told["blocks.0.first"] == ("blocks.0.qkv",) and told["norm"] == ("head",)
    assert "blocks.0.first (blocks.0.qkv)" in " ".join(str(plan).split())


def test_of_words() -> None:
    model = ready(Net(words=True))
    words = [torch.randint(20, (b, n), generator=torch.Generator().manual_seed(b)) for b, n in ((2, 16), (3, 7))]
    plain_and_equal(model, channels(model, DROP), *words)


def test_the_vision_transformer_of_torchvision() -> None:
    model = ready(VisionTransformer(16, 4, 2, 2, 12, 24, num_classes=5))
    masks = {}
    for name, tensor in model.named_parameters():
        axis = tensor.ndim - 1 if name in ("class_token", "encoder.pos_embedding") else 0
        if name.split(".")[-2:][0] in ("class_token", "encoder", "conv_proj", "out_proj", "3"):
            masks[name] = torch.ones(tensor.shape).index_fill_(axis, torch.tensor(DROP), 0)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    plan = plain_and_equal(model, masks, x, x[:1])
    assert [tuple(p.shape) for p in (plan.model.class_token, plan.model.heads.head.weight)] == [(1, 1, 8), (5, 8)]


@pytest.mark.parametrize("seed", range(12))
def test_constants_that_are_all_alike_are_counted(seed: int) -> None:
    """One norm between two layers: the constants need not be 0, nor the weights of the norm be positive."""
    numbers = torch.Generator().manual_seed(seed)
    width = 3 + seed
    drop = torch.randperm(width, generator=numbers)[: 1 + seed % (width - 2)].tolist()
    model = ready(nn.Sequential(nn.Linear(4, width), nn.LayerNorm(width, eps=0.1), nn.Linear(width, 3)), seed)
    with torch.no_grad():
        model[0].bias[drop] = 0.7 if seed % 2 else -3.0
    masks = mask_indices(model, {"0.weight": drop})
    x = torch.randn(2, 5, 4, dtype=torch.float64, generator=numbers)
    plan = fused(model, masks, x, 100 * x, x * 0)
    assert plan.model[0].out_features == (width if len(drop) == 1 else width - len(drop) + 1)
    assert norms(plan.model) == {nn.LayerNorm}


@pytest.mark.parametrize("constants", [None, (0.7, -1.6)], ids=["zeros", "others"])
def test_a_layer_that_reads_and_makes_the_channels(constants: tuple[float, float] | None) -> None:
    """What was removed is another constant in front of the second norm than in front of the first."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm, self.mix = nn.Linear(4, 10), nn.LayerNorm(10), nn.Linear(10, 10)
            self.last, self.head = nn.LayerNorm(10), nn.Linear(10, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.head(self.last(x + self.mix(self.norm(x))))

    model = ready(Residual())
    kinds = ("weight", "bias") if constants is None else ("weight",)
    drop = {f"{n}.{p}": (1, 2, 7) for n in ("stem", "mix") for p in kinds}
    with torch.no_grad():
        for layer, constant in zip((model.stem, model.mix), constants or (), strict=False):
            layer.bias[[1, 2, 7]] = constant
    x = torch.randn(3, 4, dtype=torch.float64)
    plain_and_equal(model, mask_indices(model, drop), x, 10 * x)


def test_the_masked_model_is_answered_in_float32_too() -> None:
    model = randomize(Net(width=24, depth=3), 0).eval()
    masks = channels(model, (*DROP, 15, 16, 20))
    wanted = masked_copy(model, masks)
    x = torch.randn(2, 3, 16, 16)
    small = speedup.plan(model, x, masks).apply(fuse=True, verify=True)
    assert norms(small) == {nn.LayerNorm}
    assert torch.allclose(wanted(x), small(x), rtol=1e-4, atol=1e-4)


def test_it_can_be_saved_pruned_further_and_planned_as_any_model(tmp_path: Path) -> None:
    model = ready(Net())
    small = plain_and_equal(model, channels(model, DROP), image()).model
    speedup.save(small, tmp_path / "small")
    loaded = speedup.load(ready(Net(), 1), tmp_path / "small")
    assert norms(loaded) == {nn.LayerNorm} and torch.equal(loaded(image()), small(image()))
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(image()), small(image()))
    again = mask_indices(small, {"blocks.0.up.weight": (0, 1), "blocks.0.up.bias": (0, 1)})
    plan = fused(small, again, image())
    assert plan.model.blocks[0].up.out_features == 6


# -- and not ----------------------------------------------------------------------------------------------------------


def test_without_fuse_norms_go_on_counting() -> None:
    model = ready(Net())
    plan = speedup.plan(model, image(), channels(model, DROP))
    assert all("Compensated" in kind.__name__ for kind in norms(plan.apply()))


def test_constants_that_differ_stay_counted() -> None:
    model = ready(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3)))
    plan = fused(model, mask_indices(model, {"0.weight": (0, 1, 2, 3)}), torch.randn(3, 4, dtype=torch.float64))
    assert norms(plan.model) != {nn.LayerNorm}
    assert why(plan) == {"no channel is left that is the constant which the others were"}


def stays(model: nn.Module, reason: str, *others: torch.Tensor) -> None:
    plan = fused(ready(model), channels(model, DROP), image(), *others)
    assert any("Compensated" in kind.__name__ for kind in norms(plan.model))
    assert any(reason in each for each in why(plan)), why(plan)


def test_what_else_reads_the_channels_holds_all() -> None:
    class Looking(Net):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(12, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.blocks(self.embedded(x))
            return self.head(self.norm(x)).sum(1) + self.other(torch.relu(x)).sum(1)

    stays(Looking(), "reads what goes into it too")


def test_what_else_reads_the_norm_holds_it() -> None:
    class Gated(Net):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Parameter(torch.rand(12))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(self.blocks(self.embedded(x)))
            return self.head(x * self.gate).mean(1)

    stays(Gated(), "reads it, which is no layer with a weight of its own")


def test_hooks_may_see_the_channels() -> None:
    model = Net()
    model.blocks[0].up.register_forward_hook(lambda *_: None)
    stays(model, "blocks.0.up has hooks")


def test_a_layer_that_this_input_does_not_call_may_read_them() -> None:
    class Choosing(Net):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(12, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            large = x.shape[0] > 3
            x = self.norm(self.blocks(self.embedded(x)))
            return (self.other if large else self.head)(x.mean(1))

    stays(Choosing(), "other is not called with this input", image(1), image(5))


def test_a_parameter_that_this_input_does_not_need_may_make_them() -> None:
    class Shifting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm, self.head = nn.Linear(4, 12), nn.LayerNorm(12), nn.Linear(12, 3)
            self.shift = nn.Parameter(torch.rand(12))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            large = x.shape[0] > 2
            x = self.stem(x)
            return self.head(self.norm(x + self.shift if large else x))

    model = ready(Shifting())
    small, large = (torch.randn(n, 4, dtype=torch.float64) for n in (2, 3))
    plan = fused(model, mask_indices(model, dict.fromkeys(("stem.weight", "stem.bias", "shift"), DROP)), small, large)
    assert why(plan) == {"shift is not read with this input"}


def test_code_may_read_them_on_another_way() -> None:
    class Rectifying(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            large = x.shape[0] > 2
            x = self.blocks(self.embedded(x))
            if large:
                x = x.relu()
            return self.head(self.norm(x)).mean(1)

    stays(Rectifying(), "at another size of the input, output 0 differs", image(3))


@pytest.mark.parametrize("path", ["3", ""])
def test_a_module_in_training_mode_may_do_something_else(path: str) -> None:
    model = ready(nn.Sequential(nn.Conv2d(3, 12, 16), nn.Flatten(), nn.LayerNorm(12), nn.Dropout(), nn.Linear(12, 3)))
    model.get_submodule(path).training = True
    plan = speedup.plan(model, image(), mask_indices(model, {"0.weight": DROP, "0.bias": DROP}))
    assert norms(plan.apply(fuse=True)) != {nn.LayerNorm}
    assert f"{path or 'the model'} is in training mode: call eval() first" in why(plan)


@pytest.mark.parametrize("early", [nn.LayerNorm(12), nn.Identity()], ids=["norm", "layer"])
def test_what_reads_the_channels_in_front_of_a_layer_scale_sees_others(early: nn.Module) -> None:
    class Early(Net):
        def __init__(self) -> None:
            super().__init__(depth=1)
            self.early, self.down = early, nn.Linear(12, 12)
            self.scale = nn.Parameter(torch.rand(12))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.embedded(x)
            x = self.blocks(x * self.scale) + self.down(self.early(x))
            return self.head(self.norm(x)).mean(1)

    stays(Early(), "reads what goes into it too")


@pytest.mark.parametrize("table", [lambda p, other: p.tanh() * other, torch.mul], ids=["function", "product"])
def test_what_is_made_of_parameters_otherwise(table: Any) -> None:
    class Table(Net):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Parameter(torch.rand(12))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x).flatten(2).transpose(1, 2) + table(self.positions, self.other)
            return self.head(self.norm(self.blocks(x))).mean(1)

    stays(Table(), "is no layer with a weight of its own")


def test_padding_that_this_size_does_not_need() -> None:
    """What pads with zeros at other sizes only: norms would see another channel there."""

    class Padding(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.embedded(x)
            x = F.pad(x, (0, 0, 0, 16 - x.shape[1]))
            return self.head(self.norm(self.blocks(x)).mean(1))

    small = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    stays(Padding(), "pad", small)


def test_a_norm_that_is_called_twice_stays() -> None:
    class Twice(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.embedded(x)
            return self.head(self.norm(x) + self.norm(self.blocks(x))).mean(1)

    stays(Twice(), "it is called 2 times")
    stays(Twice(), "norm reads what goes into it too, and stays as it is")


def test_a_rule_that_answers_something_else_is_named() -> None:
    class Wrong(speedup.Rule):
        def plain(self, node: speedup.Node, facts: speedup.NodeFacts) -> Any:
            return [nn.Identity()]

    class Doubled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + x

    model = ready(nn.Sequential(nn.Linear(3, 4), Doubled(), nn.Linear(4, 2)))
    rules = Registry.from_rules(
        *speedup.default_registry().rules, Wrong(name="doubled", modules=(Doubled,), axes="n c -> n c")
    )
    x = torch.randn(2, 3, dtype=torch.float64)
    plan = speedup.plan(model, x, mask_indices(model, {"0.weight": (0,), "0.bias": (0,)}), registry=rules)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(speedup.RuleError, match=r"rule 'doubled' at 1 .* plain returned \[Identity"):
        plan.apply(fuse=True)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
