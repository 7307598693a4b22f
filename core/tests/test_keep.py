"""Keep sets: exactly what can go goes, for small graphs whose optimum is known; and the reason for what stays."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import speedup
from speedup import NodeKeep, Registry, Rule, default_registry, tie
from speedup.arrays import nothing
from speedup.graph import Graph
from speedup.keep import KeepSets, Stage
from speedup.known import Facts
from speedup.node import Node
from speedup.pattern import Pattern
from speedup.removed import removed
from speedup.sets import Product
from speedup.testing import Result, check_equal, mask_indices, randomize


class Net(nn.Module):
    """Children by keyword, and a forward that is a function of the model and its input."""

    def __init__(self, forward: Callable[[Any, torch.Tensor], Any], **children: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: torch.Tensor) -> Any:
        return self.run(self, x)


def rows(**dropped: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Whole filters with their biases."""
    return {f"{n.replace('__', '.')}.{p}": r for n, r in dropped.items() for p in ("weight", "bias")}


def check(model: nn.Module, dropped: dict[str, tuple[int, ...]], size: tuple[int, ...], **options: Any) -> Result:
    randomize(model)
    others = [torch.randn(3, *size[1:])]
    if len(size) == 4:
        others.append(torch.randn(1, size[1], size[2] + 3, size[3] + 2))
    return check_equal(model, torch.randn(*size), mask_indices(model, dropped, **options), others)


def conv(i: int, o: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, 3, padding=1, **options)


IMAGE = (2, 3, 8, 8)


# -- a table of optima ------------------------------------------------------------------------------------------------


def test_a_chain_loses_every_masked_filter_and_the_columns_that_read_them() -> None:
    model = Net(lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))), a=conv(3, 8), b=conv(8, 6), c=conv(6, 4))
    result = check(model, rows(a=(0, 3, 7), b=(2, 5)), IMAGE)
    assert result.shape("a.weight") == (5, 3, 3, 3)
    assert result.shape("b.weight") == (4, 5, 3, 3)
    assert result.shape("c.weight") == (4, 4, 3, 3)


def test_masked_outputs_of_the_last_layer_stay() -> None:
    model = Net(lambda m, x: m.b(m.a(x)), a=conv(3, 8), b=conv(8, 6))
    assert check(model, rows(b=(0, 1)), IMAGE).shape("b.weight") == (6, 8, 3, 3)


def test_unread_columns_take_their_producers_filters_along() -> None:
    model = Net(lambda m, x: m.b(F.relu(m.a(x))), a=conv(3, 8), b=conv(8, 6))
    result = check(model, {"b.weight": (1, 2)}, IMAGE, axis=1)
    assert result.shape("a.weight") == (6, 3, 3, 3) and result.shape("b.weight") == (6, 6, 3, 3)


def test_a_layer_whose_output_nobody_reads_keeps_one_index() -> None:
    model = Net(lambda m, x: m.b(x) + 0 * m.a(x).sum() * 0, a=conv(3, 8), b=conv(3, 6))
    with pytest.warns(UserWarning, match=r"a\.weight is masked whole"):
        result = check(model, rows(a=tuple(range(8))), IMAGE)
    assert result.shape("a.weight") == (1, 3, 3, 3)


@pytest.mark.parametrize(
    ("one", "two", "kept"), [((0, 1), (0, 1), 6), ((0, 1), (1, 2), 7), ((0, 1), (2, 3), 8), ((), (0, 1), 8)]
)
def test_an_add_keeps_what_either_branch_keeps(one: tuple[int, ...], two: tuple[int, ...], kept: int) -> None:
    model = Net(lambda m, x: m.c(m.a(x) + m.b(x)), a=conv(3, 8), b=conv(3, 8), c=conv(8, 2))
    result = check(model, rows(a=one, b=two), IMAGE)
    assert result.shape("a.weight")[0] == result.shape("b.weight")[0] == result.shape("c.weight")[1] == kept


def test_a_product_loses_what_either_factor_loses() -> None:
    model = Net(lambda m, x: m.c(m.a(x) * m.b(x)), a=conv(3, 8), b=conv(3, 8), c=conv(8, 2))
    result = check(model, rows(a=(0, 1), b=(2, 3)), IMAGE)
    assert result.shape("a.weight")[0] == result.shape("b.weight")[0] == result.shape("c.weight")[1] == 4


def test_a_residual_chain_keeps_the_union_over_all_its_blocks() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.stem(x)
        for block in (m.one, m.two):
            y = F.relu(y + block(y))
        result: torch.Tensor = m.out(y)
        return result

    blocks = {n: nn.Sequential(conv(8, 5), nn.BatchNorm2d(5), nn.ReLU(), conv(5, 8)) for n in ("one", "two")}
    model = Net(forward, stem=conv(3, 8), out=conv(8, 2), **blocks)
    dropped = rows(stem=(0, 1, 2), one__0=(4,), one__3=(0, 1, 2), two__3=(0, 1, 7))
    result = check(model, dropped, IMAGE)
    assert result.shape("stem.weight")[0] == 6, "0 and 1 go"
    assert result.shape("one.3.weight")[:2] == (6, 5) or result.shape("one.3.weight")[:2] == (6, 4)
    assert result.shape("two.3.weight")[0] == 6 and result.shape("out.weight")[1] == 6


def test_cat_loses_each_parts_own() -> None:
    model = Net(lambda m, x: m.c(torch.cat([m.a(x), x, m.b(x)], 1)), a=conv(3, 8), b=conv(3, 4), c=conv(15, 2))
    result = check(model, rows(a=(0, 5), b=(1,)), IMAGE)
    assert result.shape("c.weight") == (2, 12, 3, 3) and result.shape("b.weight")[0] == 3


def test_cat_of_a_tensor_with_itself_loses_both_copies() -> None:
    model = Net(lambda m, x: m.c((lambda y: torch.cat([y, y], 1))(m.a(x))), a=conv(3, 8), c=conv(16, 2))
    result = check(model, rows(a=(0, 5)), IMAGE)
    assert result.shape("a.weight")[0] == 6 and result.shape("c.weight")[1] == 12


def test_a_cat_of_which_one_copy_is_read_keeps_all_that_is_read() -> None:
    model = Net(lambda m, x: m.c((lambda y: torch.cat([y, y], 1))(m.a(x))), a=conv(3, 8), c=conv(16, 2))
    result = check(model, {"c.weight": (0, 8, 9)}, IMAGE, axis=1)
    assert result.shape("a.weight")[0] == 7, "0 is read by neither copy, 1 by the first"


def test_a_chunk_keeps_halves_of_equal_size() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        left, right = m.a(x).chunk(2, 1)
        result: torch.Tensor = m.c(left) + m.d(right)
        return result

    model = Net(forward, a=conv(3, 8), c=conv(4, 2), d=conv(4, 2))
    result = check(model, rows(a=(0, 1, 5)), IMAGE)
    assert result.shape("a.weight")[0] == 6, "2 kept on the left, 3 on the right: 3 and 3"
    result = check(model, rows(a=(0, 1, 5, 7)), IMAGE)
    assert result.shape("a.weight")[0] == 4, "different positions in the two halves"


def test_groups_keep_equal_counts_at_positions_of_their_own() -> None:
    model = Net(lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))), a=conv(3, 8), b=conv(8, 6, groups=2), c=conv(6, 2))
    result = check(model, rows(a=(0, 6)), IMAGE)
    assert result.shape("a.weight")[0] == 6 and result.shape("b.weight") == (6, 3, 3, 3)
    result = check(model, rows(b=(0, 5)), IMAGE)
    assert result.shape("b.weight")[0] == 4 and result.shape("c.weight")[1] == 4


def test_a_group_that_is_masked_whole_goes_whole() -> None:
    model = Net(lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))), a=conv(3, 8), b=conv(8, 8, groups=4), c=conv(8, 2))
    result = check(model, rows(b=(2, 3)), IMAGE)
    assert result.shape("b.weight") == (6, 2, 3, 3) and result.shape("a.weight")[0] == 6
    assert result.model.b.groups == 3  # type: ignore[union-attr]


def test_a_depthwise_conv_follows_its_producer_and_its_own_masks() -> None:
    model = Net(lambda m, x: m.c(m.d(m.a(x))), a=conv(3, 8), d=conv(8, 8, groups=8), c=conv(8, 2))
    result = check(model, rows(a=(0, 1), d=(1, 2)), IMAGE)
    # Behind d, 1 and 2 are 0, and 0 is the constant of d's bias, which zero padding makes a carrier of itself.
    assert result.shape("d.weight") == (6, 1, 3, 3) and result.model.d.groups == 6  # type: ignore[union-attr]
    assert result.shape("a.weight")[0] == 6


def test_flattened_maps_lose_every_position_of_a_channel() -> None:
    model = Net(
        lambda m, x: m.fc(torch.flatten(F.adaptive_avg_pool2d(m.a(x), 2), 1)), a=conv(3, 8), fc=nn.Linear(32, 5)
    )
    result = check(model, rows(a=(0, 3)), IMAGE)
    assert result.shape("a.weight")[0] == 6 and result.shape("fc.weight") == (5, 24)


def test_half_read_channels_of_a_flattened_map_stay() -> None:
    model = Net(
        lambda m, x: m.fc(torch.flatten(F.adaptive_avg_pool2d(m.a(x), 2), 1)), a=conv(3, 8), fc=nn.Linear(32, 5)
    )
    result = check(model, {"fc.weight": (0, 1, 2, 3, 4, 5)}, IMAGE, axis=1)
    assert result.shape("a.weight")[0] == 7, "channel 0 is read nowhere, channel 1 at two of four positions"


def test_constants_go_into_the_bias_and_one_carrier_serves_zero_padding() -> None:
    def net(padding: int) -> Net:
        return Net(
            lambda m, x: m.b(F.relu(m.n(m.a(x)))),
            a=conv(3, 8),
            n=nn.BatchNorm2d(8),
            b=nn.Conv2d(8, 4, 3, padding=padding),
        )

    padded, plain = net(1), net(0)
    for model in (padded, plain):
        randomize(model)
        with torch.no_grad():
            model.n.bias.copy_(torch.linspace(3, 4, 8))  # type: ignore[operator, union-attr]
            model.n.running_mean.zero_()  # type: ignore[operator, union-attr]
            model.n.weight.abs_()  # type: ignore[operator, union-attr]
    masks = rows(a=(0, 2, 5))
    sizes = []
    for model in (plain, padded):
        given = [torch.randn(n, 3, s, s) for n, s in ((2, 8), (3, 8), (1, 11))]
        sizes.append(check_equal(model, given[0], mask_indices(model, masks), given[1:]).shape("b.weight")[1])
    assert sizes == [5, 6]


def test_what_is_kept_does_not_depend_on_the_batch_or_the_image() -> None:
    model = randomize(Net(lambda m, x: m.b(F.relu(m.a(x))), a=conv(3, 8), b=conv(8, 4)))
    masks = mask_indices(model, rows(a=(1, 2)))
    plans = [speedup.plan(model, torch.randn(*s), masks).to_dict()["tensors"] for s in ((1, 3, 5, 5), (4, 3, 9, 7))]
    assert plans[0] == plans[1]


# -- the reasons ------------------------------------------------------------------------------------------------------


def test_an_index_kept_for_the_other_branch_names_that_branch() -> None:
    model = randomize(Net(lambda m, x: m.c(m.a(x) + m.b(x)), a=conv(3, 8), b=conv(3, 8), c=conv(8, 2)))
    plan = speedup.plan(model, torch.randn(*IMAGE), mask_indices(model, rows(a=(0, 1), b=(1, 2))))
    (line,) = [x for x in plan.explain("a").splitlines() if x.startswith("a.weight")]
    assert "[0]" in line and "; mask b alike" in line and "test_keep.py:" in line
    (line,) = [x for x in plan.explain("b").splitlines() if x.startswith("b.weight")]
    assert "[2]" in line and "; mask a alike" in line


def test_masked_outputs_are_explained_by_the_models_output() -> None:
    model = randomize(Net(lambda m, x: m.a(x), a=conv(3, 8)))
    plan = speedup.plan(model, torch.randn(*IMAGE), mask_indices(model, rows(a=(0, 5))))
    assert "[0, 5]" in plan.explain("a") and "output of the model" in plan.explain("a")


def test_a_literal_size_locks_what_it_holds_and_says_where() -> None:
    model = randomize(
        Net(
            lambda m, x: m.fc(F.adaptive_avg_pool2d(m.b(m.a(x)), 2).view(-1, 32)),
            a=conv(3, 8),
            b=conv(8, 8),
            fc=nn.Linear(32, 5),
        )
    )
    masks = mask_indices(model, rows(a=(0, 3), b=(1, 2)))
    result = check_equal(model, torch.randn(*IMAGE), masks, [torch.randn(3, 3, 10, 10)])
    assert result.shape("b.weight") == (8, 6, 3, 3), "b is held by the literal, a is not"
    text = result.plan.explain("b")
    assert "[1, 2]" in text and "test_keep.py:" in text and "32" in text


def test_an_attribute_that_holds_a_size_locks_it_too() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.a(x)
        result: torch.Tensor = m.b(y.reshape(y.shape[0], m.width, *y.shape[2:]) + 0)
        return result

    model = Net(forward, a=conv(3, 8), b=conv(8, 2))
    model.width = 8  # type: ignore[assignment]
    result = check(model, rows(a=(0, 3)), IMAGE)
    assert result.shape("a.weight")[0] == 8


def test_an_unknown_op_is_the_reason_for_what_it_holds() -> None:
    model = randomize(Net(lambda m, x: m.b(torch.special.bessel_j0(m.a(x))), a=conv(3, 8), b=conv(8, 2)))
    plan = speedup.plan(model, torch.randn(*IMAGE), mask_indices(model, rows(a=(0, 3))))
    assert "bessel_j0" in plan.explain("a") and "no rule" in plan.explain("a")


# -- the engine and rules ---------------------------------------------------------------------------------------------


def test_a_rule_can_ask_for_more_and_its_reason_is_told() -> None:
    class Greedy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 1

    class GreedyRule(Rule):
        name, modules, axes = "greedy", (Greedy,), "* -> *"

        def constrain(self, node: speedup.Node, keep: NodeKeep) -> None:
            mask = keep.sets[0].copy() if keep.sets[0].shape[-1] > 1 else None
            if mask is not None:
                mask[..., :4] = True
                keep.grow(0, mask, "the first half is wanted by the test", 0)
            super().constrain(node, keep)

    model = randomize(nn.Sequential(nn.Linear(4, 8), Greedy(), nn.Linear(8, 2)))
    rules = Registry.from_rules(*default_registry().rules, GreedyRule())
    masks = mask_indices(model, {"0.weight": (0, 1, 6), "0.bias": (0, 1, 6)})
    result = check_equal(model, torch.randn(2, 4), masks, registry=rules)
    assert result.shape("0.weight") == (7, 4), "only 6 goes"
    assert "wanted by the test" in result.plan.explain("0")


def test_the_model_shrunk_twice_is_as_small_as_shrunk_once() -> None:
    model = randomize(Net(lambda m, x: m.b(F.relu(m.a(x))), a=conv(3, 8), b=conv(8, 4)))
    once = speedup.ModelSpeedup(model, torch.randn(*IMAGE), mask_indices(model, rows(a=(1, 2)))).speedup_model()
    again: Any = speedup.ModelSpeedup(once, torch.randn(*IMAGE), mask_indices(once, rows(a=(0,)))).speedup_model()
    assert again.a.weight.shape[0] == 5 and again.b.weight.shape[1] == 5


def _in_groups(groups: int) -> Any:
    return Net(
        lambda m, x: m.c((y := F.relu(m.n(m.a(x)))) + m.b(y) * m.s(y.mean((2, 3), keepdim=True))),
        a=conv(3, 8), b=conv(8, 8, groups=groups), s=nn.Conv2d(8, 8, 1), c=conv(8, 4), n=nn.BatchNorm2d(8),
    )  # fmt: skip


_IN_GROUPS = rows(a=(0, 1, 2), b=(1, 2, 3), s=(2, 3, 4))


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_where_one_look_says_that_all_ties_hold_the_long_way_adds_nothing(
    monkeypatch: pytest.MonkeyPatch, groups: int
) -> None:
    told = []
    hold = Pattern.hold

    def tell(pattern: Pattern, sets: list[Any]) -> bool:
        told.append(hold(pattern, sets))
        return False  # the long way, whatever is said

    def step(ties: tie._Ties) -> bool:
        grown = steps(ties)
        assert not (told[-1] and grown)
        return grown

    monkeypatch.setattr(tie, "_settle_plainly", lambda *_: False)
    monkeypatch.setattr(Pattern, "hold", tell)
    steps = tie._Ties._step
    monkeypatch.setattr(tie._Ties, "_step", step)
    check(_in_groups(groups), _IN_GROUPS, IMAGE)
    assert True in told and False in told


class Meeting(nn.Module):
    """Calls of all sorts, at which sets meet."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.groups = conv(3, 8), nn.BatchNorm2d(8), nn.GroupNorm(2, 8)
        self.b, self.c = conv(8, 8, groups=8), conv(8, 8, groups=2)
        self.s, self.last = nn.Conv2d(8, 8, 1), nn.Linear(8, 4)
        self.product = nn.Linear(3, 3)
        self.row, self.table, self.more = (nn.Parameter(torch.ones(shape)) for shape in ((8,), (3, 8), (3, 8)))

    def forward(self, x: torch.Tensor) -> Any:
        y = self.groups(self.b(self.c(F.relu(self.norm(self.a(x))))))
        y = y * self.s(y.mean((2, 3), keepdim=True)) + x[:, :1]
        z = y.mean((2, 3))
        table = F.relu(self.table) + self.table * self.more
        return self.last(z * self.row + z) + self.last(z), self.product((z @ table.T) * self.last.weight[:2, :3])


@functools.cache
def _meeting() -> tuple[Graph, Facts]:
    keeps = speedup.plan(Meeting(), torch.ones(2, 3, 8, 8), mask_indices(Meeting(), rows(a=(0,)))).keeps
    return keeps.graph, keeps.facts


def _at_random(graph: Graph, facts: Facts, node: Node, seed: int) -> KeepSets:
    """Keep sets at one call: along no axis, one or two; with some seeds the same for what has the same shape."""
    random = np.random.default_rng(seed)
    keeps = KeepSets(graph, facts, drop=True)  # nothing is to be folded
    keeps.stage = Stage(seed % 2 * 2)
    for each in graph.values:
        keeps.sets[each] = nothing(each.ndim)
        keeps.events[each] = []
    for value in [v for v in node.values if v is not None]:
        random = np.random.default_rng(seed) if seed % 3 == 0 else random
        axes = random.permutation(value.ndim)[: random.integers(3)]
        shape = [s if a in axes else 1 for a, s in enumerate(value.shape)]
        keeps.grow(value, random.random(shape) < random.random(), "wanted by the test")
    return keeps


@pytest.mark.parametrize("seed", range(30))
def test_the_short_way_to_a_box_is_the_product_of_its_parts(seed: int) -> None:
    graph, facts = _meeting()
    for node in (n for n in graph.nodes if n.rule is not None and n.rule.has_signature):
        keep = NodeKeep(_at_random(graph, facts, node, seed), node)
        for k in keep.derived:
            box = tie.box_of(node, k, keep.derived, keep.sets)
            if box is not None:
                product = Product(tie.derive_parts(node, k, keep.derived, keep.sets)).lines
                assert product is not None and box.keys() == product.keys()
                assert all(np.array_equal(line, product[axis]) for axis, line in box.items())


@pytest.mark.parametrize("seed", range(30))
def test_the_short_way_to_ties_adds_what_the_long_way_adds(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    graph, facts = _meeting()

    def told(node: Node) -> Any:
        keeps = _at_random(graph, facts, node, seed)
        keep = NodeKeep(keeps, node)
        tie.constrain(Rule(), node, keep)
        return keeps.waiting, keep.changed, [
            (v.number, e.added.tolist(), e.why, e.cause, e.order, e.kind) for v in graph.values for e in keeps.events[v]
        ]  # fmt: skip

    nodes = [n for n in graph.nodes if n.rule is not None and n.rule.has_signature]
    short = [told(n) for n in nodes]
    monkeypatch.setattr(tie, "_settle_plainly", lambda *_: False)
    for node, found in zip(nodes, short, strict=True):
        assert found == told(node), node


def test_what_goes_is_found_again_when_an_output_that_reads_it_is_kept_too() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    read = torch.ones(2, 3)
    read[0, 0] = 0  # the first output reads nothing of what is constant
    masks = {"0": {"weight": torch.tensor([[0.0], [1], [1]]).expand(3, 4)}, "1": {"weight": read}}
    keeps = speedup.plan(randomize(model), torch.ones(5, 4), masks).keeps
    node = keeps.graph.nodes[-1]
    hidden, output = node.operands[0], node.outputs[0]
    assert hidden is not None
    keeps.sets[hidden] = np.array([[False, True, True]])
    keeps.sets[output] = np.array([[True, False]])
    keeps.memo.clear()
    keep = NodeKeep(keeps, node)
    assert not removed(node, keep)
    keeps.sets[output] = np.array([[True, True]])
    (gone,) = removed(node, keep)
    assert gone.mask.reshape(-1).tolist() == [True, False, False]
    keeps.sets[hidden] = np.array([[True, True, True]])
    assert not removed(node, keep)


def test_a_plan_holds_nothing_of_what_was_found_on_the_way() -> None:
    layers = nn.Conv2d(2, 6, 1), nn.GroupNorm(1, 6), nn.Conv2d(6, 3, 3, padding=1)
    model = randomize(nn.Sequential(*layers))
    keeps = speedup.plan(model, torch.randn(1, 2, 5, 5), mask_indices(model, {"0.weight": [1, 2, 4]})).keeps
    assert keeps.facts.affine and not (keeps.memo or keeps.made or keeps.tied or keeps.facts._combined)


def test_what_sets_grow_by_has_the_axes_of_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    grow, several = KeepSets.grow, []

    def watched(self: KeepSets, value: Any, mask: Any, *args: Any, **kwargs: Any) -> bool:
        several.append((value.ndim, mask.ndim))
        return grow(self, value, mask, *args, **kwargs)

    monkeypatch.setattr(KeepSets, "grow", watched)

    def forward(net: Any, x: torch.Tensor) -> Any:
        y = net.one(x)
        return net.three(torch.relu(net.two(y.mean((2, 3)))) * net.two(y.amax((2, 3))) + net.two(y.sum((2, 3))))

    children = {"one": nn.Conv2d(3, 1, 3), "two": nn.Linear(1, 4), "three": nn.Linear(4, 2)}
    model = randomize(Net(forward, **children).double().eval())
    masks = {
        "one.weight": torch.zeros(1, 3, 3, 3),
        "two.weight": torch.tensor([[1.0], [0], [1], [0]]),
        "two.bias": torch.zeros(4),
    }
    speedup.plan(model, torch.randn(2, 3, 4, 4, dtype=torch.float64), masks)
    assert several and all(a == b for a, b in several)
