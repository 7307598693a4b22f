"""The axes signature: its grammar, its errors, and named space."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speedup.axes import parse
from speedup.errors import SignatureError, SpeedupError
from speedup.layout import Layout, of_form
from speedup.pattern import Pattern, pattern_of

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


FORMS = ("n c *, c?, c? -> n c *", "n (g i) ~1, (g o) i ~1, (g o)? -> n (g o) ~1", "* i, o i, o? -> * o", "*, ... -> *")


@given(st.sampled_from(FORMS), st.lists(st.integers(1, 3), min_size=8, max_size=8), st.integers(0, 1))
def test_what_layouts_of_a_form_share_is_what_each_finds_alone(text: str, sizes: list[int], larger: int) -> None:
    n, g, i, o, h, k, c, w = sizes
    signature = parse(text.replace("(g i)", f"(g={g} i)"))

    def bound(by: int) -> Layout:
        more = [s + by * (s > 1) for s in (n, i, o, h, c, w)]
        n_, i_, o_, h_, c_, w_ = more
        shapes: dict[str, tuple[list[Any], list[Any]]] = {
            FORMS[0]: ([(n_, c_, h_), (c_,), None], [(n_, c_, h_)]),
            FORMS[1]: ([(n_, g * i_, h_), (g * o_, i_, k), (g * o_,)], [(n_, g * o_, h_)]),
            FORMS[2]: ([(n_, h_, i_), (o_, i_), None], [(n_, h_, o_)]),
            FORMS[3]: ([(n_, h_), (1, h_), (h_,)], [(n_, h_)]),
        }
        return signature.bind(*shapes[text])

    first, second = bound(0), bound(larger)
    assert second.form is first.form
    ones = {name: size == 1 for name, size in second.sizes.items()}
    assert {name: size == 1 for name, size in second.form.sizes.items()} == ones
    shared = {name: kind for name, kind in vars(Layout).items() if isinstance(kind, of_form)}
    assert len(shared) > 5
    for name, kind in shared.items():
        assert getattr(second, name) == kind.func(second), name
    rigid = tuple(tuple(False for _ in dims or ()) for dims in second.operands)
    held, own = pattern_of(second, rigid, ()), Pattern(second, rigid, ())
    assert {**vars(held), "pairs": [vars(p) for p in held.pairs]} == {
        **vars(own),
        "pairs": [vars(p) for p in own.pairs],
    }


def test_a_size_that_becomes_1_makes_another_form() -> None:
    signature = parse("n c *, c -> n c *")
    wide, one = (signature.bind([(2, c, 4), (c,)], [(2, c, 4)]) for c in (3, 1))
    assert wide.form is not one.form
    assert signature.bind([(2, 5, 4), (5,)], [(2, 5, 4)]).form is wide.form
