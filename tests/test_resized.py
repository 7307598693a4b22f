"""Code that goes another way at other sizes of the input: a plan holds there too."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import speedup
import speedup.build
import speedup.elsewhere
import speedup.solve
from speedup.testing import check_equal, mask_indices, randomize

GONE = [0, 1, 5]


class Net(nn.Module):
    """Two convolutions, and between them what a class below does there."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3, padding=1)
        self.c = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        y = self.between(F.relu(self.bn(self.a(x))), x)
        return self.c(F.relu(self.b(y)))


class Padded(Net):
    def between(self, y, x):
        height = y.shape[2]
        if height % 4:
            y = F.pad(y, (0, 0, 0, 4 - height % 4))
        return y


class Resampled(Net):
    def between(self, y, x):
        size = (x.shape[2] // 4 * 4, x.shape[3] // 4 * 4)
        if y.shape[-2:] != size:
            y = F.interpolate(y, size=size)
        return y


class Large(Net):
    def between(self, y, x):
        return y + 1 if x.shape[2] > 8 else y


class Small(Net):
    def between(self, y, x):
        if x.size(2) <= 8:
            y = y + 1
        return y


def doubled(y):
    return 2 * y + 1


class Helped(Net):
    def between(self, y, x):
        return self.grown(y, x.shape[2])

    def grown(self, y, height):
        if height > 8:
            return doubled(y)
        return y


class Held(Net):
    def between(self, y, x):
        self.height = len(x[0, 0])
        return self.grown(y)

    def grown(self, y):
        while self.height > 8:
            y, self.height = doubled(y), self.height // 2
        return y


class Doubling(nn.Module):
    def forward(self, y, height):
        return doubled(y) if height > 8 else y


class Inside(Net):
    """A module that is given the size, and makes no call below the limit."""

    def __init__(self) -> None:
        super().__init__()
        self.doubling = Doubling()

    def between(self, y, x):
        return self.doubling(y, x.shape[2])


class Layer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Conv2d(8, 8, 3, padding=1)

    def between(self, y, x):
        if x.shape[2] > 8:
            y = y + self.extra(y)
        return y


class Instead(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Conv2d(8, 8, 1)

    def between(self, y, x):
        return F.relu(self.extra(y)) if x.shape[2] > 8 else F.relu(self.more(y))


def checked(net, size, names=("a", "bn", "extra", "more"), seed=0):
    net = randomize(net, seed)
    gone = {f"{n}.{p}": GONE for n in names if hasattr(net, n) for p in ("weight", "bias")}
    masks = mask_indices(net, gone | {"b.weight": [2, 3], "b.bias": [2, 3]})
    generator = torch.Generator().manual_seed(size)
    dummy, *others = [
        torch.randn(2, 3, height, width, generator=generator, dtype=torch.float64)
        for height, width in [(size, size), *((h, w) for h in (4, 7, 8, 9, 12, 16, 31) for w in (8, 13))]
    ]
    return check_equal(net, dummy, masks, others)


@pytest.mark.parametrize("size", [8, 12])
@pytest.mark.parametrize("kind", [Padded, Resampled, Large, Small, Helped, Held, Inside])
def test_calls_that_other_sizes_make(kind, size):
    small = checked(kind(), size, names=("a",)).model
    assert small.c.in_channels == 4
    if kind in (Padded, Resampled):
        assert small.b.in_channels == 6  # one stays for the others, which the border makes 0
    if kind in (Large, Small):
        assert small.b.in_channels == 8  # constants are others there


@pytest.mark.parametrize("size", [8, 12])
@pytest.mark.parametrize("kind", [Layer, Instead])
def test_layers_that_other_sizes_call(kind, size):
    result = checked(kind(), size)
    small = result.model
    assert (small.a.out_channels, small.extra.in_channels, small.extra.out_channels, small.b.in_channels) == (5,) * 4
    assert result.plan.report.uncalled == []
    if kind is Instead:
        assert (small.more.in_channels, small.more.out_channels) == (5, 5)


def test_a_layer_of_another_size_that_is_not_masked_keeps_what_it_makes():
    small = checked(Instead(), 8, names=("a", "bn", "more")).model
    assert (small.a.out_channels, small.extra.in_channels, small.extra.out_channels, small.b.in_channels) == (
        5,
        5,
        8,
        8,
    )


def test_a_masked_parameter_that_another_size_alone_reads_is_told_of():
    class Shifted(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(4, 8), nn.Linear(8, 3))
            self.shift = nn.Parameter(torch.rand(8))

        def forward(self, x):
            many = x.shape[0] > 2
            x = self[0](x)
            return self[1](x + self.shift if many else x)

    model = randomize(Shifted(), seed=0)
    plan = speedup.plan(model, torch.randn(2, 4), mask_indices(model, {"shift": GONE}))
    assert "3 masked indices stay" in plan.explain("shift")


def test_what_ways_keep_alike_is_cut_once(monkeypatch):
    cut = []
    own = speedup.build.kept_of
    monkeypatch.setattr(
        "speedup.build.kept_of", lambda keeps, value, *new: cut.append(value.number) or own(keeps, value, *new)
    )
    net = randomize(Padded()).double()
    masks = mask_indices(net, {name: GONE for name in ("a.weight", "a.bias", "bn.weight", "bn.bias")})
    speedup.plan(net, torch.randn(2, 3, 8, 8).double(), masks).apply()
    assert net.a.out_channels == 5 and len(cut) == len(set(cut))


MOST = []


class Watched(Padded):
    """Counts the tensors in memory that look like the small model's second layer, while that runs."""

    def forward(self, x):
        if self.b.in_channels < 8:
            found = [t for t in gc.get_objects() if type(t) in (torch.Tensor, nn.Parameter)]
            alike = {t.untyped_storage().data_ptr() for t in found if t.shape == self.b.weight.shape}
            MOST.append(len(alike))
        return super().forward(x)


def test_what_ways_fold_alike_is_in_memory_once():
    net = randomize(Watched()).double()
    masks = mask_indices(net, {name: GONE for name in ("a.weight", "a.bias")})
    MOST.clear()
    gc.collect()
    plan = speedup.plan(net, torch.randn(2, 3, 8, 8).double(), masks)
    assert plan.apply().b.in_channels == 6
    assert set(MOST) == {1}


def test_plans_with_layers_of_other_sizes_are_saved(tmp_path):
    net = randomize(Layer()).double().eval()
    masks = mask_indices(net, {f"{n}.{p}": GONE for n in ("a", "bn", "extra") for p in ("weight", "bias")})
    x, larger = (torch.randn(1, 3, s, s, dtype=torch.float64) for s in (8, 14))
    plan = speedup.plan(copy.deepcopy(net), x, masks)
    small = plan.apply()
    speedup.save(small, tmp_path / "small")
    again = speedup.load(Layer().double(), tmp_path / "small").eval()
    assert again.extra.out_channels == 5
    for each in (x, larger):
        assert torch.equal(again(each), small(each))
    assert not torch.equal(small(larger)[..., :4, :4], small(x)[..., :4, :4])


class Tokens(nn.Module):
    """Attention that masks what comes later, if anything does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.norm = nn.Linear(5, 8), nn.Linear(8, 3), nn.LayerNorm(8)
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        y, (batch, length, _) = self.first(x), x.shape
        q, k, v = (m(y).view(batch, length, 2, 4).transpose(1, 2) for m in (self.q, self.k, self.v))
        scores = q @ k.transpose(-1, -2) / 2
        if length > 1:
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
        y = y + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, -1))
        return self.last(self.norm(y))


@pytest.mark.parametrize("length", [1, 6])
def test_one_token_alone(length):
    net = randomize(Tokens())
    gone = {"q": [0, 4], "k": [0, 4], "v": [0, 4], "first": [1, 2], "out": [1, 2], "norm": [1, 2]}
    masks = mask_indices(net, {f"{n}.{p}": i for n, i in gone.items() for p in ("weight", "bias")})
    dummy, *others = (torch.randn(2, n, 5, dtype=torch.float64) for n in (length, 1, 2, 9))
    small = check_equal(net, dummy, masks, others).model
    assert (small.q.out_features, small.out.in_features, small.out.out_features) == (6, 6, 6)


class Chosen(Net):
    """Layers of which the data choose one."""

    def __init__(self) -> None:
        super().__init__()
        self.extra, self.more = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def between(self, y, x):
        return F.relu(self.extra(y)) if bool(x.sum() > 0) else F.relu(self.more(y))


@pytest.mark.parametrize("sign", [1, -1])
def test_layers_that_other_data_call(sign):
    net = randomize(Chosen())
    masks = mask_indices(net, {f"{n}.{p}": GONE for n in ("a", "bn", "extra", "more") for p in ("weight", "bias")})
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    result = check_equal(net, sign * x, masks, [-x, x, x[:1, ..., :5]])
    small = result.model
    assert (small.a.out_channels, small.b.in_channels) == (5, 5)
    assert (small.extra.in_channels, small.extra.out_channels) == (small.more.in_channels, small.more.out_channels)
    assert result.plan.report.uncalled == []


class Late(Net):
    """The question stands behind the second convolution."""

    def forward(self, x):
        y = F.relu(self.b(F.relu(self.bn(self.a(x)))))
        if x.shape[2] > 8:
            y = y + 1
        return self.c(y)


def _never_together(monkeypatch):
    def settle(model, inputs, ways, *others):
        return alone(model, inputs, ways, *others) if len(ways) == 1 else None

    alone = speedup.solve.settle
    monkeypatch.setattr("speedup.solve.settle", settle)


def _too_many(monkeypatch):
    monkeypatch.setattr("speedup.solve.MOST", 0)


@pytest.mark.parametrize("size", [8, 12])
@pytest.mark.parametrize("prevent", [_never_together, _too_many])
def test_where_ways_cannot_be_brought_together_all_behind_the_question_stays(prevent, size, monkeypatch):
    prevent(monkeypatch)
    result = checked(Late(), size)
    assert (result.model.a.out_channels, result.model.b.out_channels) == (5, 6)
    assert "code asks for a size here" in result.plan.explain()


class Aliased(Net):
    """At another size it reads a masked parameter through a tensor in its memory."""

    def between(self, y, x):
        if x.shape[2] > 8:
            y = y + self.held[0].view(1, -1, 1, 1)
        return y


@pytest.mark.parametrize("size", [8, 12])
def test_what_another_size_reads_in_the_memory_of_a_masked_parameter_is_refused(size):
    net = Aliased().double().eval()
    net.held = [net.a.bias.detach()]
    masks = mask_indices(net, {"a.weight": GONE, "a.bias": GONE})
    with pytest.raises(speedup.InputError, match=r"is in the memory of 'a\.bias'"):
        speedup.plan(net, torch.randn(1, 3, size, size, dtype=torch.float64), masks)


class Sized(nn.Module):
    """A layer that is called where it is told that the image is large."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, 8, 1)

    def forward(self, y, sizes):
        height, width = sizes
        return self.layer(y) if height * width > 100 else y


class Told(Net):
    def __init__(self) -> None:
        super().__init__()
        self.extra = Sized()

    def between(self, y, x):
        return self.extra(y, x.shape[2:])


class Asked(Layer):
    limit = 20

    def is_large(self, x):
        return x.shape[2] > self.limit

    def between(self, y, x):
        return self.extra(y) if self.is_large(x) else y


class Tall(Layer):
    def between(self, y, x):
        return self.extra(y) if x.shape[2] > x.shape[3] else y


class Strided(Net):
    """Padded to whole windows behind a stride: one pixel more is none more there."""

    def between(self, y, x):
        y = F.max_pool2d(y, 2)
        more = -y.shape[2] % 4
        if more:
            y = F.pad(y, (0, 0, 0, more))
        return y


class Mixed(Instead):
    """One layer for odd sizes, one for tall images: of those that are both the one reads what the other makes."""

    def between(self, y, x):
        if x.shape[2] % 2:
            y = F.relu(self.extra(y))
        if x.shape[2] > 8:
            y = F.relu(self.more(y))
        return y


class Alone(Layer):
    def between(self, y, x):
        return self.extra(y) if x.shape[0] == 1 else y


def masks_in(net, names, gone):
    given = {f"{n}.{p}": gone for n in names for p in ("weight", "bias")}
    return mask_indices(net, given | {"b.weight": [2, 3], "b.bias": [2, 3]})


@pytest.mark.parametrize("kind", [Told, Asked, Tall, Strided, Mixed, Alone])
@pytest.mark.parametrize("size", [8, 12, 16])
@pytest.mark.parametrize("other", [GONE, [1, 2]])
def test_where_sizes_are_asked_for_and_which(kind, size, other):
    net = randomize(kind(), 1)
    layers = [n for n, m in net.named_modules() if n.startswith(("extra", "more")) and isinstance(m, nn.Conv2d)]
    masks = masks_in(net, ["a"] if kind is Strided else ["a", "bn"], GONE) | masks_in(net, layers, other)
    sizes = [(h, w) for h in (4, 7, 8, 9, 12, 13, 16, 23) for w in (8, 13)]
    others = [torch.randn(n, 3, h, w, dtype=torch.float64) for n in (1, 2, 3) for h, w in sizes]
    small = check_equal(net, torch.randn(2, 3, size, size, dtype=torch.float64), masks, others).model
    assert small.c.in_channels == 4


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.last = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x, z):
        x, z = self.a(x), self.b(z)
        if x.shape[1] > z.shape[1]:
            x = F.relu(self.c(x[:, : z.shape[1]]))
        elif x.shape[1] < z.shape[1]:
            z = z[:, : x.shape[1]] + 1
        return self.last(F.relu(x + z))


@pytest.mark.parametrize(("length", "other"), [(4, 4), (4, 6), (6, 4)])
def test_inputs_of_sizes_of_their_own(length, other):
    net = randomize(Pair())
    masks = mask_indices(net, {f"{n}.weight": GONE for n in "abc"})
    dummy, *others = (
        (torch.randn(2, n, 5, dtype=torch.float64), torch.randn(2, m, 5, dtype=torch.float64))
        for n, m in [(length, other), *((n, m) for n in (1, 4, 9) for m in (1, 4, 9))]
    )
    check_equal(net, dummy, masks, others)


class Windows(nn.Module):
    """Windows of 4 x 4, padded to whole ones with zeros in front of a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.c = nn.Conv2d(3, 8, 1), nn.LayerNorm(8), nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x):
        x = self.a(x).permute(0, 2, 3, 1)
        n, h, w, c = x.shape
        down, right = -h % 4, -w % 4
        if down or right:
            x = F.pad(x, (0, 0, 0, right, 0, down))
        rows, columns = (h + down) // 4, (w + right) // 4
        x = x.view(n, rows, 4, columns, 4, c).transpose(2, 3).reshape(-1, 16, c)
        x = F.relu(self.b(self.norm(x)))
        x = x.view(n, rows, columns, 4, 4, -1).transpose(2, 3).reshape(n, h + down, w + right, -1)
        return self.c(x[:, :h, :w])


@pytest.mark.parametrize("size", [4, 8, 9, 10, 12])
def test_constants_that_other_sizes_pad_in_front_of_a_norm(size):
    """What is a constant here is one within the image there, 0 outside: a carrier says where, and stays here too."""
    net = randomize(Windows())
    masks = mask_indices(net, {"a.weight": GONE, "b.weight": [2, 3]})
    sizes = [(size, size), *((h, w) for h in (3, 4, 8, 9, 12) for w in (8, 10))]
    dummy, *others = (torch.randn(2, 3, h, w, dtype=torch.float64) for h, w in sizes)
    small = check_equal(net, dummy, masks, others).model
    assert small.a.out_channels == small.b.in_features == 7


class Likelihood(nn.Module):
    """A head whose scale is a constant, raised to a power by a function of torch that Python wraps."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x, y):
        mean = self.b(F.relu(self.a(x)))
        return torch.distributions.Normal(mean, torch.full_like(mean, 2), validate_args=False).log_prob(y)


def test_a_power_in_a_function_of_torch():
    net = randomize(Likelihood())
    masks = mask_indices(net, {"a.weight": [0, 1]})
    small = check_equal(net, (torch.randn(2, 4), torch.randn(2, 3)), masks, [(torch.randn(5, 4), torch.randn(5, 3))])
    assert small.shape("a.weight") == (4, 4) and small.shape("b.weight") == (3, 4)


def test_sizes_that_the_model_was_seen_to_take_are_not_tried_again(monkeypatch):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x):
            y = self.a(x)
            return self.b(y + 1 if x.shape[1] > 12 else y)

    tried, glance = [], speedup.elsewhere.glance

    def noted(model, inputs, *more):
        tried.append(inputs[0][0].shape)
        return glance(model, inputs, *more)

    monkeypatch.setattr(speedup.elsewhere, "glance", noted)
    model = randomize(Tokens()).eval()
    speedup.plan(model, torch.randn(2, 6, 4), mask_indices(model, {"a.weight": GONE}))
    taken = [shape for shape in tried if shape[-1] == 4]
    assert (2, 12, 4) in taken and len(taken) == len(set(taken))
