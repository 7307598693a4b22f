"""Inputs of other sizes, and what calls give for them without contents."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import speedup
from speedup.node import Ref
from speedup.testing import mask_indices
from speedup.trace.shapes import Shapes
from speedup.vary import Case, at_other_sizes


def tried(takes, *inputs):
    """The shapes that were tried, and whether each was taken."""
    found = []

    def look(case: Case) -> bool:
        shapes = tuple(tuple(t.shape) for t in case.inputs[0])
        found.append((shapes[0] if len(shapes) == 1 else shapes, takes(case)))
        return found[-1][1]

    at_other_sizes((inputs, {}), look)
    return found


def test_images_need_two_runs_where_every_size_is_taken():
    assert tried(lambda case: True, torch.zeros(2, 3, 8, 8)) == [((6, 3, 4, 4), True), ((2, 3, 4, 16), True)]


def test_what_takes_only_more_samples_is_tried_with_more_samples():
    seen = tried(lambda case: not case.resized, torch.zeros(1, 3, 8, 8))
    assert seen[-1] == ((2, 3, 8, 8), True)
    assert {shape for shape, taken in seen if not taken} == {(3, 3, 4, 4), (1, 3, 4, 4), (1, 3, 8, 16), (1, 3, 16, 16)}


def test_an_image_of_as_many_entries_is_only_tried_where_smaller_ones_are_taken():
    """``view(-1, 512)`` takes it for the size that it knows."""
    flat = tried(lambda case: case.inputs[0][0][0].numel() == 3 * 8 * 8, torch.zeros(1, 3, 8, 8))
    assert ((1, 3, 4, 16), True) not in flat and flat[-1] == ((2, 3, 8, 8), True)


def test_both_sides_of_a_list_of_images_become_larger():
    seen = tried(lambda case: case.samples == 1, torch.zeros(3, 8, 8))
    assert {shape for shape, taken in seen if taken} == {(3, 4, 4), (3, 4, 16), (3, 16, 4)}


def test_features_stay_where_only_the_length_varies():
    seen = tried(lambda case: case.inputs[0][0].shape[2] == 6, torch.zeros(2, 8, 6))
    assert {shape for shape, taken in seen if taken} == {(2, 4, 6), (2, 16, 6), (4, 8, 6)}


def test_images_and_tokens_vary_each_for_themselves():
    seen = tried(lambda case: True, torch.zeros(1, 3, 8, 8), torch.zeros(1, 6))
    assert [shapes for shapes, _ in seen] == [
        ((3, 3, 4, 4), (3, 6)),
        ((1, 3, 4, 16), (1, 6)),
        ((1, 3, 8, 8), (1, 3)),
        ((1, 3, 8, 8), (1, 12)),
    ]


def test_a_mask_varies_with_its_image():
    seen = tried(lambda case: True, torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8))
    assert [shapes for shapes, _ in seen] == [((3, 3, 4, 4), (3, 4, 4)), ((1, 3, 4, 16), (1, 4, 16))]


def test_more_samples_of_a_smaller_size_give_as_many_answers():
    case = Case("", ((), {}), samples=2)
    assert case.comparable([torch.zeros(4, 5)], [torch.zeros(2, 5)])
    assert not case.comparable([torch.zeros(1, 5)], [torch.zeros(2, 5)])
    assert case.comparable([torch.zeros(())], [torch.zeros(())])


def run(shapes, module, *tensors, calls):
    def call():
        calls.append(1)
        return module(*tensors)

    refs = [Ref(k) for k in range(len(tensors))]
    own = module if isinstance(module, nn.Module) else None
    return shapes.result(type(module) if own is not None else module, own, refs, {}, tensors, call)


@pytest.mark.parametrize(
    ("first", "again", "size", "runs"),
    [
        (nn.Linear(4, 6), nn.Linear(4, 6), (2, 4), 1),
        (nn.Linear(4, 6), nn.Linear(4, 7), (2, 4), 2),
        (nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, padding=1), (2, 4, 8, 8), 2),
        (nn.AvgPool2d(2), nn.AvgPool2d(2), (2, 4, 8, 8), 1),
        (nn.Flatten(), nn.Flatten(), (2, 4, 8), 2),  # a view has to be one of its own tensor
        (nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU()), (2, 4), 2),  # children may hide something
    ],
)
def test_calls_that_are_made_alike_give_what_the_first_one_gave(first, again, size, runs):
    shapes, calls = Shapes(), []
    for module in (first, again):
        made = module.to("meta")
        given = torch.empty(size, device="meta")
        result = run(shapes, made, given, calls=calls)
        wanted = made(given)
        assert (result.shape, result.stride(), result.dtype) == (wanted.shape, wanted.stride(), wanted.dtype)
    assert len(calls) == runs


def test_layouts_in_memory_are_told_apart():
    shapes, calls = Shapes(), []
    given = torch.empty(2, 3, 4, device="meta")
    for tensor in (given, torch.empty(4, 3, 2, device="meta").permute(2, 1, 0)):
        assert run(shapes, torch.relu, tensor, calls=calls).stride() == torch.relu(tensor).stride()
    assert len(calls) == 2


def test_in_place_calls_are_run():
    shapes, calls = Shapes(), []
    for _ in range(2):
        given = torch.empty(2, 3, device="meta")
        assert run(shapes, torch.relu_, given, calls=calls) is given
    assert len(calls) == 2


def test_of_tensors_that_do_not_count_their_changes_nothing_is_known():
    shapes, calls = Shapes(), []
    with torch.inference_mode():
        given = torch.empty(2, 3, device="meta")
        for _ in range(2):
            assert run(shapes, torch.relu, given, calls=calls).shape == (2, 3)
    assert len(calls) == 2


class Scaled(nn.Module):
    """Of one entry there is no deviation, of which torch warns; the user gives sixteen."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(1, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] > 4:
            x = x * 2
        x = x / x.std(1, keepdim=True)
        result: torch.Tensor = self.b(self.a(x[..., None]).relu()).mean(1)
        return result


def test_nobody_is_warned_of_sizes_that_nobody_gave(recwarn: pytest.WarningsRecorder) -> None:
    net = Scaled().eval()
    masks = mask_indices(net, {"a.weight": (1, 3), "a.bias": (1, 3)})
    assert speedup.plan(net, torch.randn(2, 16), masks).apply(fuse=True).a.weight.shape == (6, 1)  # type: ignore[union-attr]
    assert [str(w.message) for w in recwarn] == []
