"""Random networks under random masks: the small model answers as the masked one does, and is never larger.

`tests/graphs.py` writes the networks. A case that fails prints its number; to look at it:

    from tests.graphs import random_case
    print(random_case(NUMBER).script())
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import speedup
from tests.graphs import Case, build, check_case, count, random_case, run

FEW = range(0, 240)
MANY = range(100_000, 100_800)
BLOCK = 20


pytestmark = pytest.mark.filterwarnings("ignore:.*masked whole:UserWarning")


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """The networks are tiny: more threads only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def check_block(first: int) -> list[float]:
    kept = []
    for seed in range(first, first + BLOCK):
        case = random_case(seed)
        try:
            result = check_case(case)
        except (AssertionError, speedup.SpeedupError) as error:
            pytest.fail(f"case {seed}: {type(error).__name__}: {error}\n{case.source}")
        kept.append(result.parameters[1] / result.parameters[0])
    return kept


@pytest.mark.parametrize("first", FEW[::BLOCK])
def test_small_is_equal_to_masked_and_never_larger(first: int) -> None:
    kept = check_block(first)
    assert min(kept) < 0.6, "what can go must go: in any twenty networks some shrink a lot"
    assert sum(kept) / len(kept) < 0.95


@pytest.mark.slow
@pytest.mark.parametrize("first", MANY[::BLOCK])
def test_small_is_equal_to_masked_and_never_larger_in_many_cases(first: int) -> None:
    check_block(first)


@pytest.mark.parametrize("seed", range(500, 530))
def test_two_runs_give_identical_plans_and_weights(seed: int) -> None:
    case = random_case(seed)
    plans, states = [], []
    for number in range(2):
        torch.manual_seed(number)  # the global random state plays no part
        model = case.model()
        plan = speedup.plan(model, case.inputs, case.masks)
        plans.append(plan.to_dict())
        states.append(plan.apply().state_dict())
    assert plans[0] == plans[1]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())


@pytest.mark.parametrize("seed", range(600, 630))
def test_planning_leaves_model_input_and_random_state_alone(seed: int) -> None:
    case = random_case(seed)
    model = case.model()
    state, inputs = copy.deepcopy(model.state_dict()), [t.clone() for t in case.inputs]
    flags = [m.training for m in model.modules()]
    random = torch.get_rng_state()
    speedup.plan(model, case.inputs, case.masks)
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in model.modules()] == flags
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(inputs, case.inputs, strict=True))


@pytest.mark.parametrize("seed", range(700, 730))
def test_a_small_model_can_be_copied_and_its_state_loaded(seed: int) -> None:
    case = random_case(seed)
    small = speedup.ModelSpeedup(case.model(), case.inputs, case.masks).speedup_model()
    other = copy.deepcopy(small)
    with torch.no_grad():
        for p in other.parameters():
            p.fill_(0.5)
    other.load_state_dict(small.state_dict())
    for a, b in zip(run(small, case.inputs), run(other, case.inputs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("seed", range(800, 820))
def test_masks_of_ones_change_nothing(seed: int) -> None:
    case = random_case(seed)
    ones: Any = {n: {k: torch.ones_like(m) for k, m in e.items() if m is not None} for n, e in case.masks.items()}
    case = Case(case.seed, case.source, case.inputs, ones, case.others)
    model = case.model()
    before = count(model), [t.clone() for t in run(model, case.inputs)]
    small = speedup.ModelSpeedup(model, case.inputs, ones).speedup_model()
    assert count(small) <= before[0]
    for a, b in zip(before[1], run(small, case.inputs), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("seed", range(900, 920))
def test_masking_more_never_keeps_more_filters_of_a_chain(seed: int) -> None:
    """In a network without ties between channels, a larger mask gives a model that is no larger."""
    source = (
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3)\n"
        "        self.n, self.f = nn.BatchNorm2d(6), nn.Linear(6, 4)\n"
        "    def forward(self, x):\n        return self.f(F.relu(self.n(self.b(F.relu(self.a(x))))).mean((2, 3)))\n"
    )
    g = torch.Generator().manual_seed(seed)
    keep = {"a": torch.rand(8, generator=g) > 0.4, "b": torch.rand(6, generator=g) > 0.4}
    sizes = []
    for more in (False, True):
        model: Any = build(source, seed)
        masks: Any = {}
        for name, line in keep.items():
            if more:
                line = line & (torch.rand(len(line), generator=g) > 0.3)
            layer = getattr(model, name)
            masks[name] = {"weight": line.reshape(-1, 1, 1, 1).expand_as(layer.weight).double(), "bias": line.double()}
        x = torch.randn(2, 3, 8, 8, generator=g, dtype=torch.float64)
        sizes.append(count(speedup.ModelSpeedup(model, x, masks).speedup_model()))
    assert sizes[1] <= sizes[0]
