"""Criteria on small networks whose right order can be worked out by hand, and what ``prune_masks`` makes of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import speedup
from speedup import Criterion, Group, InputError, Scene
from speedup.testing import randomize

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
NAMES = ("l1", "l2", "fpgm", "slim", "magnitude", "random", "apoz", "mean_activation", "taylor")


def net() -> nn.Sequential:
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip
    return randomize(made.double().eval(), 1)


def loss(model: nn.Module, batch: Any) -> torch.Tensor:
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def gone(masks: dict[str, torch.Tensor], name: str) -> list[int]:
    mask = masks[name]
    return (~mask.reshape(len(mask), -1).any(1)).nonzero().flatten().tolist()


def smallest(scores: torch.Tensor, count: int) -> list[int]:
    return sorted(scores.argsort()[:count].tolist())


def masked(model: nn.Module, masks: dict[str, torch.Tensor]) -> nn.Module:
    made = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in masks.items():
            made.get_parameter(name).mul_(mask)
    return made


def made(name: str, model: nn.Module, **more: Any) -> dict[str, torch.Tensor]:
    if name in ("apoz", "mean_activation"):
        more["batches"] = [X, X[:2]]
    if name == "taylor":
        more |= {"batches": [(X, torch.tensor([0, 1, 2, 3]))], "loss": loss}
    return speedup.prune_masks(model, X, name, **more)


@pytest.mark.parametrize("name", NAMES)
def test_every_criterion_makes_masks_that_can_be_removed(name: str) -> None:
    model = net()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    masks = made(name, model)
    for n, t in model.state_dict().items():
        assert torch.equal(t, before[n])
    assert all(p.grad is None for p in model.parameters())
    reference = masked(model, masks)
    small = speedup.plan(model, X, masks).apply(verify=True)
    assert [p.shape[0] for p in small.parameters()] == [4, 4, 4, 4, 3, 3, 3, 3, 5, 5]
    torch.testing.assert_close(small(X[:3]), reference(X[:3]), rtol=1e-10, atol=1e-10)


def test_all_names_are_known() -> None:
    assert set(NAMES) <= set(speedup.default_registry().criteria)
    with pytest.raises(InputError, match="did you mean 'l1'"):
        speedup.prune_masks(net(), X, "l11")
    assert made("Mean-Activation".lower().replace("-", "_"), net())


# ---------------------------------------------------------------- the scores, by hand


def test_norms() -> None:
    model = net()
    weight, scale, shift, reader = (
        model.get_parameter(n).detach() for n in ("0.weight", "1.weight", "1.bias", "3.weight")
    )
    parts = [
        weight.flatten(1),
        model[0].bias.detach()[:, None],
        scale[:, None],
        shift[:, None],
        reader.transpose(0, 1).flatten(1),
    ]
    everything = torch.cat(parts, 1)
    assert gone(made("l1", model), "0.weight") == smallest(everything.abs().sum(1), 4)
    assert gone(made("l2", model), "0.weight") == smallest(everything.norm(dim=1), 4)


def test_geometric_median() -> None:
    model = net()
    points = model.get_parameter("0.weight").detach().flatten(1)
    distances = torch.stack([(points - p).norm(dim=1).sum() for p in points])
    assert gone(made("fpgm", model), "0.weight") == smallest(distances, 4)


def test_slim_compares_scales_of_all_layers() -> None:
    model = net()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([9.0, -8, 7, 6, 0.1, -0.2, 5, 4]))
        model[4].weight.copy_(torch.tensor([0.01, -0.02, 0.03, 3, -0.04, 2]))
    masks = made("slim", model, sparsity=6 / 14, scope="global")
    assert gone(masks, "0.weight") == [4, 5]
    assert gone(masks, "3.weight") == [0, 1, 2, 4]


def test_apoz_and_mean_activation() -> None:
    model = net()
    with torch.no_grad():
        out = model[:3](X)
        zeros = (out == 0).double().mean((0, 2, 3))
        first = out[:2].abs().mean((0, 2, 3))
        mean = (out.abs().mean((0, 2, 3)) + first) / 2
        both = (zeros + (out[:2] == 0).double().mean((0, 2, 3))) / 2
    assert gone(made("apoz", model), "0.weight") == smallest(-both, 4)
    assert gone(made("mean_activation", model), "0.weight") == smallest(mean, 4)


def test_taylor() -> None:
    model = net()
    value = loss(copied := copy.deepcopy(model), (X, torch.tensor([0, 1, 2, 3])))
    value.backward()
    total = torch.zeros(8, dtype=torch.float64)
    for n in ("0.weight", "0.bias", "1.weight", "1.bias"):
        p = copied.get_parameter(n)
        total += (p * p.grad).reshape(8, -1).sum(1).detach()  # type: ignore[operator]
    assert gone(made("taylor", model), "0.weight") == smallest(total**2, 4)


def test_random_follows_the_seed() -> None:
    one, two, other = (gone(made("random", net(), seed=s), "0.weight") for s in (0, 0, 5))
    assert one == two != other


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = (nn.Linear(12, 12) for _ in range(4))
        self.up, self.down = nn.Linear(12, 20), nn.Linear(20, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        q, k, v = (each(x).view(b, n, 3, 4).transpose(1, 2) for each in (self.q, self.k, self.v))
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, 12))
        return x + self.down(F.gelu(self.up(x)))


def test_heads_go_whole_and_the_width_stays() -> None:
    model = randomize(Block().double().eval(), 0)
    with torch.no_grad():
        for layer in (model.q, model.k, model.v):
            layer.weight[4:8] *= 0.01
        model.proj.weight[:, 4:8] *= 0.01
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    masks = speedup.prune_masks(model, x, "magnitude", sparsity=0.5)
    assert all(gone(masks, f"{n}.weight") == [4, 5, 6, 7] for n in "qkv")
    evenly = gone(speedup.prune_masks(model, x, "l1", sparsity=0.5), "q.weight")
    assert [len([i for i in evenly if i // 4 == h]) for h in range(3)] == [2, 2, 2]
    reference = masked(model, masks)
    small = speedup.plan(model, x, masks).apply()
    assert small.q.weight.shape == (8, 12) and small.up.weight.shape == (10, 12)
    torch.testing.assert_close(small(x), reference(x), rtol=1e-10, atol=1e-10)


def test_a_share_by_name_counts_for_heads_that_go_together() -> None:
    model = randomize(Block().double().eval(), 0)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    heads = {}
    for overrides in ({}, {"v": 0.7}, {"q": 0.7}, {"*": 0.7}, {"q": 0.7, "v": 0.4}, {"v": 0.0}):
        masks = speedup.prune_masks(model, x, "magnitude", overrides=overrides)
        heads[str(overrides)] = {len(gone(masks, f"{n}.weight")) // 4 if f"{n}.weight" in masks else 0 for n in "qkv"}
    assert list(heads.values()) == [{1}, {2}, {2}, {2}, {1}, {0}]


# ---------------------------------------------------------------- how much goes


def left(masks: dict[str, torch.Tensor], *names: str) -> list[int]:
    return [int(masks[n].flatten(1).any(1).sum()) if n in masks else -1 for n in names]


def test_sparsity_overrides_and_rounding() -> None:
    names = ("0.weight", "3.weight")
    assert left(made("l1", net(), sparsity=0.25), *names) == [6, 5]
    assert left(made("l1", net(), sparsity=0.25, overrides={"3*": 0.5}), *names) == [6, 3]
    assert left(made("l1", net(), sparsity=0.5, ignore=["0"]), *names) == [-1, 3]
    assert left(made("l1", net(), sparsity=0.5, overrides={"*": 0.25, "1.weight": 0.0}), *names) == [-1, 5]
    assert left(made("l1", net(), sparsity=0.4, round_to=4), *names) == [-1, 4]  # none of 8 is better than 3
    assert left(made("l1", net(), sparsity=0.99), *names) == [1, 1]
    assert made("l1", net(), sparsity=0.0) == {}


def test_a_global_choice_leaves_what_was_fixed() -> None:
    masks = made("random", net(), sparsity=0.5, scope="global", overrides={"0.weight": 0.25})
    assert left(masks, "0.weight")[0] == 6
    everywhere = made("random", net(), sparsity=0.5, scope="global")
    assert sum(left(everywhere, "0.weight", "3.weight")) == 7


@pytest.mark.parametrize("what", ["parameters", "macs"])
def test_targets_are_met_with_the_least_sparsity(what: str) -> None:
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).double().eval()
    x = torch.randn(2, 16, dtype=torch.float64)
    masks = speedup.prune_masks(model, x, "l1", target={what: 0.4})
    plan = speedup.plan(model, x, masks)
    before, after = getattr(plan.report, what)
    assert 0.37 < after / before <= 0.4


def test_a_target_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is replaced by one that counts parameters."""

    def seconds(model: nn.Module, dummy_input: Any, runs: int = 9) -> float:
        return float(sum(p.numel() for p in model.parameters()))

    monkeypatch.setattr("speedup.pruning.target.seconds", seconds)
    model = net()
    masks = speedup.prune_masks(model, X, "l1", target={"latency": 0.5})
    before = seconds(model, X)
    assert seconds(speedup.plan(model, X, masks).apply(), X) <= before / 2


def test_time_is_really_measured() -> None:
    from speedup.pruning.target import seconds

    assert seconds(net(), X, runs=3) > 0


def test_a_carried_mask_counts() -> None:
    from torch.nn.utils import prune

    model = net()
    prune.custom_from_mask(model[0], "weight", torch.ones(8, 3, 3, 3).double().index_fill(0, torch.tensor([6]), 0))  # type: ignore[no-untyped-call]
    prune.custom_from_mask(model[1], "weight", torch.ones(8).double().index_fill(0, torch.tensor([6]), 0))  # type: ignore[no-untyped-call]
    masks = speedup.prune_masks(model, X, "slim", sparsity=0.13)
    assert gone(masks, "1.weight") == [6]
    assert hasattr(model[0], "weight_orig")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sparsity": 1.0}, r"sparsity=1\.0: it lies in \[0, 1\)"),
        ({"scope": "all"}, "'layer' or 'global'"),
        ({"round_to": 0}, "from 1 on"),
        ({"target": {"size": 0.5}}, "parameters, macs, latency"),
        ({"target": {"macs": 1.5}}, "between 0 and 1"),
        ({"target": {"parameters": 0.001}}, r"cannot be met: with all that can go gone, .*% of the parameters is left"),
        ({"overrides": {"5": 0.5}}, "'5' matches no layer"),
        ({"overrides": {"0": 1.5}}, "lies in"),
        ({"criterion": "apoz"}, "criterion 'apoz' looks at data: pass batches="),
        ({"criterion": "apoz", "batches": []}, "looks at data: pass batches="),
        ({"criterion": "taylor"}, "criterion 'taylor' looks at gradients: pass loss="),
        ({"criterion": "taylor", "loss": loss}, "criterion 'taylor' looks at data: pass batches="),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        speedup.prune_masks(net(), X, **{"criterion": "l1", **arguments})


def test_what_a_criterion_needs_is_asked_for_before_the_model_runs() -> None:
    model = net()
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    for name in ("apoz", "mean_activation", "taylor"):
        with pytest.raises(InputError, match="pass "):
            speedup.prune_masks(model, X, name)


@pytest.mark.parametrize(("what", "words"), [("batches", "pass batches="), ("gradients", "pass loss=")])
def test_what_a_criterion_uses_and_does_not_declare(what: str, words: str) -> None:
    class Silent(Criterion):
        name = "silent"

        def score(self, group: Group, scene: Scene) -> torch.Tensor:
            return torch.tensor(getattr(scene, what))

    with pytest.raises(InputError, match=words):
        speedup.prune_masks(net(), X, Silent())


class Wrong(Criterion):
    name = "wrong"

    def __init__(self, scores: torch.Tensor) -> None:
        self.scores = scores

    def score(self, group: Group, scene: Scene) -> torch.Tensor:
        return self.scores


def test_wrong_scores() -> None:
    with pytest.raises(InputError, match=r"'wrong' gave scores of shape \(3,\) for 0\.weight, which has 8 channels"):
        speedup.prune_masks(net(), X, Wrong(torch.ones(3)))
    with pytest.raises(InputError, match="not finite"):
        speedup.prune_masks(net(), X, Wrong(torch.full((8,), float("nan"))))


def test_a_criterion_of_ones_own() -> None:
    class Last(Criterion):
        name = "last"

        def score(self, group: Group, scene: Scene) -> torch.Tensor:
            return -torch.arange(group.size, dtype=torch.float64)

    assert gone(speedup.prune_masks(net(), X, Last()), "0.weight") == [4, 5, 6, 7]
