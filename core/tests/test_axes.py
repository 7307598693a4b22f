"""The axes signature: its grammar, its errors, and named space."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import speedup
from speedup.axes import parse
from speedup.errors import SignatureError, SpeedupError
from speedup.layout import Layout, of_form
from speedup.testing import randomize

CONV = "n (g i) ~2, (g o) i ~2, (g o)? -> n (g o) ~2"


def test_sizes_and_roles_of_a_linear() -> None:
    layout = parse("* i, o i, o? -> * o").bind([(2, 3, 4), (5, 4), (5,)], [(2, 3, 5)])
    assert layout.sizes == {"*2": 2, "*1": 3, "i": 4, "o": 5}
    assert layout.contracted == {"i"}
    assert layout.mixed == frozenset()
    assert layout.names_of(1) == {"o", "i"}


def test_a_missing_optional_operand_is_absent() -> None:
    layout = parse("* i, o i, o? -> * o").bind([(2, 4), (5, 4), None], [(2, 5)])
    assert not layout.present(2) and layout.present(1)
    assert layout.names_of(2) == frozenset()


def test_a_group_is_solved_from_its_known_factors() -> None:
    layout = parse(CONV).bind([(2, 6, 9, 9), (8, 3, 3, 3), (8,)], [(2, 8, 7, 7)])
    assert (layout.sizes["g"], layout.sizes["i"], layout.sizes["o"]) == (2, 3, 4)
    assert layout.contracted == {"i"}


def test_a_size_that_no_shape_tells_is_written_down() -> None:
    layout = parse("n (g=3 c), (g c)? -> n (g c)").bind([(2, 12), (12,)], [(2, 12)])
    assert layout.sizes["g"] == 3 and layout.sizes["c"] == 4
    with pytest.raises(SignatureError, match="axis 1 of operand 0, of size 12, cannot be split into g=5 x c"):
        parse("n (g=5 c) -> n (g c)").bind([(2, 12)], [(2, 12)])
    with pytest.raises(SignatureError, match="axis 'g' has another size before"):
        parse("(g=3 c), (g=4 c) -> (g c)")


def test_mixed_axes_are_private_to_their_operand_and_may_differ_in_size() -> None:
    layout = parse(CONV).bind([(2, 6, 9, 9), (8, 3, 3, 3), (8,)], [(2, 8, 7, 7)])
    assert len(layout.mixed) == 6
    assert layout.shared(0) == {"n", "g", "i"}
    assert not (layout.names_of(0) & layout.mixed) & layout.names_of(3)


def test_star_broadcasts_from_the_right() -> None:
    layout = parse("*, ... -> *").bind([(2, 3, 4), (3, 1), (4,)], [(2, 3, 4)])
    assert layout.names_of(0) == {"*3", "*2", "*1"}
    assert layout.names_of(1) == {"*2"}
    assert layout.names_of(2) == {"*1"}


def test_an_axis_of_size_1_against_a_larger_one_does_not_vary() -> None:
    layout = parse("a b, a b -> a b").bind([(2, 1), (2, 3)], [(2, 3)])
    assert layout.names_of(0) == {"a"} and layout.names_of(1) == {"a", "b"}


def test_ellipsis_repeats_the_operand_before_it_any_number_of_times() -> None:
    for count in (1, 2, 5):
        layout = parse("*, ... -> *").bind([(4,)] * count, [(4,)])
        assert layout.n_inputs == count


def test_a_tilde_with_a_name_stands_for_one_mixed_axis() -> None:
    layout = parse("a ~x -> a ~x").bind([(2, 5)], [(2, 3)])
    assert len(layout.mixed) == 2 and sorted(layout.sizes[n] for n in layout.mixed) == [3, 5]


@pytest.mark.parametrize(
    ("text", "at", "why"),
    [
        ("a b", 3, "exactly one '->'"),
        ("a -> b -> c", 11, "exactly one '->'"),
        ("a $ -> a", 1, "no axis"),
        ("a (b (c)) -> a", 5, "do not nest"),
        ("a () -> a", 3, "empty group"),
        ("a ) -> a", 2, "without '('"),
        ("a (b c -> a", None, "'(' without ')'"),
        ("(a *) -> a", 3, "names only"),
        ("* * -> *", None, "at most one"),
        ("* ~ -> *", None, "at most one"),
        ("... -> *", 0, "repeats the operand before it"),
        ("*, a ... -> *", 5, "stands alone"),
        ("*, ..., b -> *", None, "stands last"),
        ("a -> a, ...", 8, "among the inputs only"),
    ],
)
def test_a_fault_in_the_text_is_pointed_at(text: str, at: int | None, why: str) -> None:
    with pytest.raises(SignatureError) as caught:
        parse(text)
    message, restated, pointer = str(caught.value).split("\n")
    assert why in message
    assert restated.strip() == text
    assert pointer.strip() == "^"
    if at is not None:
        assert pointer.index("^") - restated.index(text) == at


@pytest.mark.parametrize(
    ("text", "inputs", "outputs", "why"),
    [
        ("a b -> a b", [(2, 3), (2, 3)], [(2, 3)], "1 input operands, the call 2"),
        ("a, b -> a b", [(2,)], [(2, 3)], "2 input operands, the call 1"),
        ("a -> a", [(2,)], [(2,), (2,)], "1 outputs, the call 2"),
        ("a, b -> a b", [(2,), None], [(2, 3)], "operand 1 is missing"),
        ("a b -> a", [(2, 3, 4)], [(2,)], "operand 0 has 3 axes, not 2"),
        ("a b -> a b", [(2, 3)], [(2, 4)], "'b' is 3 by axis 1 of operand 0 and 4 by axis 1 of output 0"),
        ("(g a), a -> g", [(7,), (3,)], [(2,)], ""),
        ("(g a) -> (g a)", [(6,)], [(6,)], "cannot be told apart"),
        ("(g a), a, g -> a", [(7,), (3,), (2,)], [(3,)], "should be g=2 x a=3"),
    ],
)
def test_shapes_that_do_not_fit_restate_signature_and_shapes(
    text: str, inputs: list[tuple[int, ...] | None], outputs: list[tuple[int, ...]], why: str
) -> None:
    with pytest.raises(SignatureError) as caught:
        parse(text).bind(inputs, outputs)
    message = str(caught.value)
    assert repr(text) in message and str(inputs[0]) in message and str(outputs[0]) in message
    assert why in message


def test_an_axis_declared_1_binds_to_nothing_larger() -> None:
    assert parse("a 1 -> a").bind([(2, 1)], [(2,)]).names == ("a",)
    with pytest.raises(SignatureError):
        parse("a 1 -> a").bind([(2, 3)], [(2,)])


def test_a_signature_error_is_a_speedup_error_and_a_value_error() -> None:
    assert issubclass(SignatureError, SpeedupError) and issubclass(SignatureError, ValueError)


# -- named space, as properties ---------------------------------------------------------------------------------------

SIZES = {"a": 2, "b": 3, "c": 4, "d": 5}


@st.composite
def bound(draw: st.DrawFn) -> Layout:
    """A layout of up to three operands over up to four names, with groups and permutations."""
    names = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True))

    def operand(within: list[str]) -> tuple[str, tuple[int, ...]]:
        order = draw(st.permutations(within))
        text, shape, at = [], [], 0
        while at < len(order):
            width = draw(st.integers(1, len(order) - at))
            text.append(order[at] if width == 1 else f"({' '.join(order[at : at + width])})")
            shape.append(prod(SIZES[n] for n in order[at : at + width]))
            at += width
        return " ".join(text), tuple(shape)

    singles = " ".join(names), tuple(SIZES[n] for n in names)
    inputs = [singles]
    for _ in range(draw(st.integers(0, 2))):
        part = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
        inputs.append(operand(part))
    output = operand(draw(st.lists(st.sampled_from(names), min_size=1, unique=True)))
    text = ", ".join(t for t, _ in inputs) + " -> " + output[0]
    return parse(text).bind([s for _, s in inputs], [output[1]])


def shape_of(layout: Layout, k: int) -> tuple[int, ...]:
    return tuple(prod(layout.sizes[n] for n in dim) for dim in layout.operands[k] or ())


@settings(max_examples=80, deadline=None)
@given(bound(), st.integers(0, 2**31), st.data())
def test_named_space_and_back_is_the_identity(layout: Layout, seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    for k in range(len(layout.operands)):
        # A fact array: any axis may be written out or not.
        shape = tuple(s if data.draw(st.booleans()) else 1 for s in shape_of(layout, k))
        array = rng.random(shape) < 0.5
        back = layout.from_named(k, layout.to_named(k, array))
        assert back.ndim == array.ndim
        full = shape_of(layout, k)
        assert np.array_equal(np.broadcast_to(back, full), np.broadcast_to(array, full))


@settings(max_examples=60, deadline=None)
@given(bound(), st.integers(0, 2**31))
def test_entries_of_two_operands_meet_where_their_indices_agree(layout: Layout, seed: int) -> None:
    """What named space says of the first operand's entry is what plain indexing says."""
    rng = np.random.default_rng(seed)
    out = layout.n_inputs
    array = rng.random(shape_of(layout, out))
    named = np.broadcast_to(layout.to_named(out, array), [layout.sizes[n] for n in layout.names])
    index = {n: int(rng.integers(layout.sizes[n])) for n in layout.names}
    flat = []
    for dim in layout.operands[out] or ():
        position = 0
        for n in dim:
            position = position * layout.sizes[n] + index[n]
        flat.append(position)
    assert named[tuple(index[n] for n in layout.names)] == array[tuple(flat)]


@settings(max_examples=50, deadline=None)
@given(bound(), st.integers(0, 2**31))
def test_projections_are_any_and_all_over_what_the_operand_lacks(layout: Layout, seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole = rng.random([layout.sizes[n] for n in layout.names]) < 0.5
    for k in range(len(layout.operands)):
        gone = tuple(p for p, n in enumerate(layout.names) if n not in layout.names_of(k))
        assert np.array_equal(layout.project_any(k, whole), whole.any(axis=gone, keepdims=True))
        assert np.array_equal(layout.project_all(k, whole), whole.all(axis=gone, keepdims=True))


def test_the_size_of_a_mixed_axis_may_be_given() -> None:
    layout = parse("* (~g=4 i), o (~g i) -> * o").bind([(2, 12), (5, 12)], [(2, 5)])
    assert layout.sizes["i"] == 3 and layout.contracted == {"i"} and len(layout.mixed) == 2
    with pytest.raises(SignatureError, match="should be"):
        parse("(~g=4 i) -> i").bind([(10,)], [(2,)])


SHAPES = {
    "n c *, c?, c? -> n c *": lambda g, n, i, o, h: ([(n, i, h), (i,), None], [(n, i, h)]),
    "n (g i) ~1, (g o) i ~1, (g o)? -> n (g o) ~1": lambda g, n, i, o, h: (
        [(n, g * i, h), (g * o, i, 2), (g * o,)],
        [(n, g * o, h)],
    ),
    "* i, o i, o? -> * o": lambda g, n, i, o, h: ([(n, h, i), (o, i), None], [(n, h, o)]),
    "*, ... -> *": lambda g, n, i, o, h: ([(n, h), (1, h), (h,)], [(n, h)]),
}


@given(st.sampled_from(list(SHAPES)), st.lists(st.integers(1, 3), min_size=5, max_size=5))
def test_what_layouts_of_a_form_share_is_what_each_finds_alone(text: str, sizes: list[int]) -> None:
    signature, (groups, *others) = parse(text.replace("(g i)", f"(g={sizes[0]} i)")), sizes
    larger = [size + (size > 1) for size in others]
    first, second = (signature.bind(*SHAPES[text](groups, *each)) for each in (others, larger))
    assert second.form is first.form
    shared = {name: kind for name, kind in vars(Layout).items() if isinstance(kind, of_form)}
    assert len(shared) > 5
    for name, kind in shared.items():
        assert getattr(second, name) == kind.func(second), name


def test_a_size_that_becomes_1_makes_another_form() -> None:
    signature = parse("n c *, c -> n c *")
    wide, one = (signature.bind([(2, c, 4), (c,)], [(2, c, 4)]) for c in (3, 1))
    assert wide.form is not one.form
    assert signature.bind([(2, 5, 4), (5,)], [(2, 5, 4)]).form is wide.form


class Various(nn.Module):
    """Layers of several kinds, each in two sizes, so that their layouts are of one form."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1, bias=False) for i, o in ((3, 8), (8, 12)))
        self.norms = nn.ModuleList(map(nn.BatchNorm2d, (8, 12)))
        self.depthwise = nn.ModuleList(nn.Conv2d(c, c, 3, padding=1, groups=c) for c in (8, 12))
        self.grouped = nn.ModuleList(nn.Conv2d(c, c, 1, groups=2) for c in (8, 12))
        self.tokens = nn.ModuleList(nn.Linear(i, o) for i, o in ((12, 16), (16, 24)))
        self.lines = nn.ModuleList(map(nn.LayerNorm, (16, 24)))
        self.attend = nn.MultiheadAttention(24, 2, batch_first=True)
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv, norm, depthwise, grouped in zip(self.convs, self.norms, self.depthwise, self.grouped, strict=True):
            x = torch.relu(norm(conv(x)))
            x = torch.cat([depthwise(x), grouped(x)], 1).mul(0.5).chunk(2, 1)[0] + x
        x = x.flatten(2).transpose(1, 2)
        for linear, norm in zip(self.tokens, self.lines, strict=True):
            x = norm(torch.sigmoid(linear(x)))
        return self.head((x + self.attend(x, x, x)[0]).mean(1))


def test_what_is_found_once_for_a_form_is_what_each_layout_would_find(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is asked of layouts while a model is planned."""
    once, shared = Layout.once, set[str]()

    def compared(layout: Layout, kind: str, key: Any, find: Callable[[], Any]) -> Any:
        known = (kind, key) in layout._found
        found = once(layout, kind, key, find)
        if known:
            assert _told(find()) == _told(found), kind
            shared.add(kind)
        return found

    monkeypatch.setattr(Layout, "once", compared)
    model = randomize(Various()).eval()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and n != "head"}
    masks = {n: {"weight": torch.ones_like(m.weight)} for n, m in layers.items()}
    for mask in masks.values():
        mask["weight"][::2] = 0
    before = sum(p.numel() for p in model.parameters())
    small = speedup.ModelSpeedup(model, torch.randn(2, 3, 4, 4), masks).speedup_model()
    assert sum(p.numel() for p in small.parameters()) < 0.75 * before
    assert shared >= {"ties", "rigid", "parts", "box", "with", "derived", "terms", "beside", "bias axes"}


def _told(found: Any) -> Any:
    """What something found says, to be compared."""
    if isinstance(found, np.ndarray):
        return found.shape, found.tolist()
    if isinstance(found, list | tuple):
        return [_told(each) for each in found]
    if isinstance(found, dict):
        return {key: _told(value) for key, value in found.items()}
    own = getattr(found, "__dict__", None)
    return found if own is None or isinstance(found, Layout | type) else (type(found), _told(own))
