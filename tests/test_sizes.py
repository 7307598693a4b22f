"""Programs that do something else at another size: pad to whole windows, read more of a table, crop less."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from speedup import sizes
from speedup.testing import check_equal, mask_indices, randomize


class Windows(nn.Module):
    """Tokens padded to a window of 8, a position bias from a small network over a table, cropped again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(4, 8), nn.Linear(8, 3)
        self.inner, self.outer = nn.Linear(2, 16), nn.Linear(16, 8, bias=False)
        self.register_buffer("places", torch.linspace(-2, 2, 16).reshape(8, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.shape[1]
        x = F.pad(self.a(x), (0, 0, 0, 8 - length))
        x = (x + self.outer(F.relu(self.inner(self.places)))) * torch.sigmoid(x)
        result: torch.Tensor = self.out(x[:, :length])
        return result


def tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randn(batch, length, 4, generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("length", [1, 3, 8])
def test_a_table_of_which_a_longer_input_reads_more(length: int) -> None:
    net = randomize(Windows())
    with torch.no_grad():
        # Unit 2 never fires, 3 at some of the places, 4 at all of them; 6 is a constant and 7 is 0.
        net.inner.bias[[2, 3, 4, 6]] = torch.tensor([-100.0, 0.0, 100.0, 1.0])
    masks = mask_indices(net, {"inner.weight": [6, 7], "inner.bias": [7]})
    result = check_equal(net, tokens(2, length), masks, [tokens(3, n) for n in (1, 4, 5, 8)])
    # What is made of parameters alone goes where it is 0 at all places, also at those that nobody reads here.
    assert result.shape("inner.weight") == (14, 2)


class Placed(nn.Module):
    """A table of positions, of which as many rows are read as there are tokens."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self.one, self.two, self.part = nn.Linear(3, 6), nn.Linear(6, 2), part
        table = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
        table[:4, 1:3], table[4:, 1:3] = -table[:4, 1:3].abs(), table[4:, 1:3].abs()
        self.register_buffer("table", table)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.shape[1]
        rows = {
            "sliced": lambda: self.table[:length],
            "narrowed": lambda: self.table.narrow(0, 0, length),
            "of a view": lambda: self.table[None][:, :length],
        }
        result: torch.Tensor = self.two(F.relu(self.one(x) + rows[self.part]()))
        return result


@pytest.mark.parametrize("part", ["sliced", "narrowed", "of a view"])
@pytest.mark.parametrize("length", [1, 4])
def test_rows_of_a_table_that_are_alike_at_this_size(part: str, length: int) -> None:
    """Of one row all channels are the same at every position; of four, two are 0 behind the activation."""
    net = randomize(Placed(part))
    masks = mask_indices(net, {"one.weight": [1, 2, 5], "one.bias": [1, 2, 5]})
    result = check_equal(net, torch.randn(2, length, 3), masks, [torch.randn(2, n, 3) for n in (1, 4, 8, 12)])
    assert result.shape("one.weight") == (6, 3)


@pytest.mark.parametrize("rows", [8, 24], ids=["here", "everywhere"])
@pytest.mark.parametrize("read", [True, False])
def test_channels_that_are_combinations_at_the_places_of_this_size(rows: int, read: bool) -> None:
    """A norm counts by one what the other is, if that holds at all places; also where nobody else reads them."""

    class Normed(Placed):
        def __init__(self) -> None:
            super().__init__("sliced")
            self.norm = nn.LayerNorm(6)
            self.table = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
            self.table[:rows, 5] = (1 if read else -2) * self.table[:rows, 4]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.two(self.norm(self.one(x) + self.table[: x.shape[1]]))
            return result

    net = randomize(Normed())
    masks = mask_indices(net, {"one.weight": [2, 4, 5], "one.bias": [2, 4, 5]})
    masks |= {} if read else mask_indices(net, {"two.weight": [4, 5]}, axis=1)
    result = check_equal(net, torch.randn(2, 8, 3), masks, [torch.randn(2, n, 3) for n in (1, 4, 12, 24)])
    assert result.shape("one.weight") == (6 if rows == 8 else 5, 3)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("read", [True, False])
def test_of_few_rows_of_a_table_all_are_combinations(length: int, read: bool) -> None:
    class Normed(Placed):
        def __init__(self) -> None:
            super().__init__("sliced")
            self.norm = nn.LayerNorm(6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.two(self.norm(self.one(x) + self.table[: x.shape[1]]))
            return result

    net, gone = randomize(Normed()), [1, 2, 3, 4, 5]
    masks = mask_indices(net, {"one.weight": gone, "one.bias": gone})
    masks |= {} if read else mask_indices(net, {"two.weight": gone}, axis=1)
    result = check_equal(net, torch.randn(2, length, 3), masks, [torch.randn(2, n, 3) for n in (1, 4, 8, 12)])
    assert result.shape("one.weight") == (6, 3)


class Scaled(nn.Module):
    """Filters 1 to 3 are masked: behind the activation they are constants, of which ``body`` makes others."""

    def __init__(
        self,
        body: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        behind: Callable[[torch.Tensor], torch.Tensor] = torch.relu,
    ) -> None:
        super().__init__()
        self.a, self.out, self.body, self.behind = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1), body, behind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.behind(self.out(self.body(self.a(x).sigmoid(), x)))


def one_by_one(y: torch.Tensor) -> torch.Tensor:
    """Most calls of a detector go through boxes one by one, and read no layer."""
    maps = [m.clamp(-3, 3).exp().sqrt().add(y.shape[2]).log() for m in y.unbind(1)]
    return torch.stack([m / m.amax() for m in maps], 1)


def fade(y: torch.Tensor) -> torch.Tensor:
    return y * y.shape[-1] ** -0.5


def filled(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.add(y, torch.full((1, y.shape[1], 1, 1), 1.0 / x.shape[2], dtype=x.dtype))


SIZED = {
    "height": lambda y, x: y / y.shape[2],
    "batch": lambda y, x: y * len(x),
    "alpha": lambda y, x: torch.add(y, 1, alpha=x.size(3)),
    "in a helper": lambda y, x: fade(y),
    "filled": filled,
    "sum of positions": lambda y, x: y + y.sum((2, 3), keepdim=True),
    "softmax over positions": lambda y, x: y + y.flatten(2).softmax(2).unflatten(2, y.shape[2:]),
}
FREE = {
    "literal": lambda y, x: y / 8,
    "the same at all sizes": lambda y, x: y * (x.shape[1] / 3),
}


@pytest.mark.parametrize("behind", [torch.relu, one_by_one])
@pytest.mark.parametrize("name", [*SIZED, *FREE])
def test_a_constant_that_is_made_with_a_size_of_the_input(
    name: str, behind: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    net = randomize(Scaled({**SIZED, **FREE}[name], behind))
    images = [torch.randn(b, 3, h, w) for b, h, w in ((2, 6, 8), (1, 6, 8), (3, 6, 8), (2, 9, 7), (2, 16, 16))]
    result = check_equal(net, images[0], mask_indices(net, {"a.weight": [1, 2, 3]}), images[1:])
    assert result.shape("a.weight")[0] == (8 if name in SIZED else 5)


def test_a_constant_that_a_loop_over_the_input_makes() -> None:
    """After every step another one, and how many steps there are the input says."""

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.out = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            state = torch.zeros(len(x), 8, dtype=x.dtype)
            for step in range(x.shape[1]):
                state = torch.tanh(self.a(x[:, step]) + 0.5 * state)
            result: torch.Tensor = self.out(state)
            return result

    net = randomize(Loop())
    masks = mask_indices(net, {"a.weight": [1, 2, 3], "a.bias": [1]})
    result = check_equal(net, tokens(2, 4), masks, [tokens(3, n) for n in (1, 5, 9)])
    assert result.shape("a.weight")[0] == 7, "what is 0 is 0 after any number of steps"


def test_two_calls_of_one_line_that_the_input_runs_more_or_less_often() -> None:
    """Nobody knows then which of them is which, and what differs of one is no fact of the other's shape."""

    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.a, self.out = 2.0, nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            place = x.new_zeros(len(x), 4)
            place[0, 1:] = 1
            for _ in range(len(x)):
                x = x + (place.unsqueeze(1) - place.unsqueeze(2)).mean()
            result: torch.Tensor = self.out(self.a(x) * self.scale)
            return result

    net = randomize(Apart())
    result = check_equal(net, torch.randn(4, 4), mask_indices(net, {"a.weight": [1, 2]}), [torch.randn(1, 4)])
    assert result.shape("a.weight") == (4, 4)


class Branches(nn.Module):
    """A selective kernel: two branches, weighed by a softmax over both of what their sum says."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Conv2d(8, 4, 1)
        self.a, self.b = (nn.Conv2d(3, 8, 1) for _ in range(2))
        self.gate = nn.Conv2d(8, 16, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.stack([self.a(x), self.b(x)], 1).sigmoid()
        weights = self.gate(both.sum(1).mean((2, 3), keepdim=True)).unflatten(1, (2, 8))
        result: torch.Tensor = self.out((both * weights.softmax(1)).sum(1))
        return result


def test_there_are_as_many_branches_at_every_size() -> None:
    net = randomize(Branches())
    gone = [1, 2, 5]
    masks = mask_indices(
        net, {"a.weight": gone, "b.weight": gone, "gate.weight": [i + j for i in gone for j in (0, 8)]}
    )
    result = check_equal(net, torch.randn(2, 3, 4, 4), masks, [torch.randn(1, 3, 4, 5), torch.randn(3, 3, 6, 2)])
    assert result.shape("a.weight") == (5, 3, 1, 1) and result.shape("out.weight") == (4, 5, 1, 1)


class Prefixed(nn.Module):
    """The first tokens go another way than the rest, as where a class token takes no part in a rotary embedding."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first, self.a, self.out = first, nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        y = torch.cat([y[:, : self.first], y[:, self.first :].sigmoid()], 1)
        result: torch.Tensor = self.out(y)
        return result


@pytest.mark.parametrize(("first", "width"), [(0, 5), (2, 8), (4, 8)])
def test_a_part_that_is_empty(first: int, width: int) -> None:
    """It may be empty at every size, or at that of the dummy input only."""
    net = randomize(Prefixed(first))
    masks = mask_indices(net, {"a.weight": [1, 2, 5], "a.bias": [1, 2, 5]})
    result = check_equal(net, tokens(2, 4), masks, [tokens(3, 6), tokens(1, 2)])
    assert result.shape("a.weight") == (width, 4)


def test_a_constant_made_with_a_size_that_nothing_needs_to_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions as a detector makes them: nothing goes by them, so that no run at another size is needed."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.out(self.a(x).relu()), torch.full((2, 2), 1.0 / x.shape[2], dtype=x.dtype) + 1

    def never(*args: object, **kwargs: object) -> object:
        raise AssertionError("inferred at another size")

    monkeypatch.setattr(sizes, "_following", never)
    net = randomize(Net())
    images = [torch.randn(2, 3, s, 8) for s in (6, 9)]
    result = check_equal(net, images[0], mask_indices(net, {"a.weight": [1, 2, 3]}), images[1:])
    assert result.shape("a.weight")[0] == 5


class Several(nn.Module):
    """An image, what belongs to its pixels, and tokens; of the image and of the tokens constants depend on the size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(3, 8, 1), nn.Linear(4, 8), nn.Linear(16, 3)

    def forward(self, image: torch.Tensor, tokens: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        x = torch.log_softmax(self.a(image), 3)
        if valid is not None:
            x = x * valid[:, None]
        y = torch.log_softmax(self.b(tokens), 1)
        result: torch.Tensor = self.out(torch.cat([x.mean((2, 3)), y.mean(1)], 1))
        return result


@pytest.mark.parametrize("masked", [False, True], ids=["no mask of pixels", "mask of pixels"])
@pytest.mark.parametrize("name", ["a", "b"])
def test_several_inputs_have_sizes_of_their_own(name: str, masked: bool) -> None:
    def inputs(batch: int, side: int, length: int) -> tuple[torch.Tensor, ...]:
        valid = (torch.arange(side) < side - 1).expand(batch, side, side).double()
        image = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(side))
        return (image, tokens(batch, length), valid)[: 2 + masked]

    net = randomize(Several())
    masks = mask_indices(net, {f"{name}.weight": range(8), f"{name}.bias": range(8)})
    others = [inputs(1, 4, 5), inputs(3, 7, 5), inputs(2, 4, 9), inputs(2, 9, 3)]
    with pytest.warns(UserWarning, match="masked whole"):
        check_equal(net, inputs(2, 4, 5), masks, others)


class Nodes(nn.Module):
    """Sums over the nodes of a graph, whose number stands in the features and in a table: only both vary together."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.a, self.b, self.out, self.axis = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3), axis

    def forward(self, x: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
        x = near @ self.a(x) if near.is_floating_point() else self.a(x[near[0]]) + self.a(x[near[1]])
        return self.out(self.b(x.relu()).sum(self.axis))


@pytest.mark.parametrize("form", ["table", "tables", "edges"])
def test_sums_over_the_nodes_of_a_graph_follow_their_number(form: str) -> None:
    def given(nodes: int) -> tuple[torch.Tensor, torch.Tensor]:
        if form == "edges":
            return torch.randn(nodes, 5), torch.randint(0, nodes, (2, 2 * nodes))
        samples = (3,) if form == "tables" else ()
        return torch.randn(*samples, nodes, 5), torch.rand(*samples, nodes, nodes)

    model = randomize(Nodes(1 if form == "tables" else 0))
    masks = mask_indices(model, {"a.weight": [0, 1], "a.bias": [0, 1], "b.weight": [2, 5, 6]})
    result = check_equal(model, given(6), masks, [given(4), given(9)])
    assert result.shape("b.weight") == (8, 6)


class OfTheCall(nn.Module):
    """A number in the call, a list of tensors, the frames of a video: the next call may have others."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.a = nn.Conv2d(5, 8, 1) if what == "frames" else nn.Linear(5, 8)
        self.b, self.out = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor | list[torch.Tensor], scale: float = 1.0) -> torch.Tensor:
        if self.what == "number":
            y = self.a(x).relu() * scale
        elif self.what == "list":
            y = sum(self.a(each).relu() for each in x)
        else:
            y = self.a(x.flatten(0, 1)).relu().amax((2, 3)).unflatten(0, x.shape[:2]).sum(1)
        return self.out(self.b(y).relu())


@pytest.mark.parametrize("what", ["number", "list", "frames"])
def test_numbers_lists_and_frames_may_be_others(what: str) -> None:
    x = torch.randn(2, 5)
    inputs, others = {
        "number": ((x, 2.0), [(x, 3.0)]),
        "list": (([x, -x],), [([x],), ([x, x, -x],)]),
        "frames": ((torch.randn(2, 4, 5, 8, 8),), [(torch.randn(1, 3, 5, 8, 8),)]),
    }[what]
    model = randomize(OfTheCall(what))
    with torch.no_grad():
        model.a.bias.abs_()
    masks = mask_indices(model, {"a.weight": [0, 1, 2], "b.weight": [2, 5, 6]})
    result = check_equal(model, inputs, masks, others)
    assert result.shape("b.weight") == (5, 8)
    with torch.no_grad():
        model.a.bias[:2] = 0
    assert check_equal(model, inputs, masks, others).shape("b.weight") == (5, 6)


class Pixels(nn.Module):
    """Pixels by channels, of which a reshape makes channels by rows by columns: which are which depends on the size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.out, self.width = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1), width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, _, h, w = x.shape
        y = self.a(x).flatten(2).transpose(1, 2)
        result: torch.Tensor = self.out(y.reshape(b, self.width, h, w))
        return result


@pytest.mark.parametrize("width", [-1, 16])
def test_a_reshape_that_takes_pixels_for_channels(width: int) -> None:
    net = randomize(Pixels(width))
    masks = mask_indices(net, {"a.weight": range(4), "a.bias": range(4)})
    # With four pixels four channels are one of the new ones; with others they are not.
    check_equal(net, torch.randn(2, 3, 2, 2), masks, [torch.randn(1, 3, *size) for size in ((1, 1), (4, 4), (6, 5))])


def test_images_laid_out_as_vectors_lose_channels() -> None:
    net = randomize(nn.Sequential(nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)))
    masks = mask_indices(net, {"0.weight": [1, 4], "0.bias": [1, 4]})
    result = check_equal(net, torch.randn(2, 3, 6, 6), masks, [torch.randn(1, 3, 5, 9)])
    assert result.shape("3.weight") == (4, 24)


@pytest.mark.parametrize("threshold", [-1e9, 1e9], ids=["all", "none"])
def test_channels_pass_calls_of_which_nothing_comes_out(threshold: float) -> None:
    """What is chosen by data may be nothing on the dummy input: a flatten, a join, a table that is filled."""

    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(16 * 16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            some = y[x.flatten(1).sum(1) > threshold]
            made = torch.zeros(len(some), y.shape[1], 4, 4, dtype=y.dtype)
            made[torch.arange(len(some))] = some
            result: torch.Tensor = self.head(torch.cat([some, made.flip(2)], 1).flatten(1))
            return result

    net = randomize(Chosen())
    masks = mask_indices(net, {"conv.weight": [0, 3, 4], "conv.bias": [0, 3, 4]})
    images = [torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(n)).double() for n in (2, 3, 1)]
    small = check_equal(net, images[0], masks, [images[1] * 1e9, images[2] + 1e9]).model
    assert (small.conv.out_channels, small.head.in_features) == (5, 160)


@pytest.mark.parametrize("form", ["a call more", "a tensor for a number", "another tensor"])
def test_code_that_asks_whether_two_layers_have_as_many_channels(form: str) -> None:
    """In the small model they would, and in the large one they do not."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 1), nn.Conv2d(12, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            y = self.b(x)
            if form == "a call more":
                y = y + x if x.shape == y.shape else y
            elif form == "a tensor for a number":
                y = y + (x if x.shape == y.shape else 0)
            else:
                y = y * (x if x.shape == y.shape else y)
            result: torch.Tensor = self.out(y.relu())
            return result

    masks = {f"a.{n}": [0, 1] for n in ("weight", "bias")} | {f"b.{n}": range(6) for n in ("weight", "bias")}
    net = randomize(Block())
    result = check_equal(net, torch.randn(2, 3, 4, 4), mask_indices(net, masks), [torch.randn(1, 3, 5, 2)])
    assert 6 in (result.shape("a.weight")[0], result.shape("b.weight")[0])
