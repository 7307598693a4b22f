"""The small model is an ordinary module: it trains, copies, moves, compiles, exports and quantizes as the original."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torchvision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import speedup
from speedup import testing
from tests.graphs import filter_masks, randomize
from tests.test_zoo import SMALL, every_second

SLOW = pytest.mark.slow
VISION = torchvision.models
BLOCK = VISION.resnet.BasicBlock

# Small forms of architectures, and, as slow tests, the architectures themselves. Between them: grouped and depthwise
# convolutions, squeeze and excitation, attention that runs in parts, compensated norms, rewritten methods.
BUILDS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet": (lambda: VISION.ResNet(BLOCK, [1, 1, 1, 1], num_classes=4), 32),
    "vit": (SMALL["vit"][0], 32),
    "swin": (SMALL["swin"][0], 32),
    "resnet50": (lambda: VISION.resnet50(num_classes=10), 64),
    "mobilenet_v3_large": (lambda: VISION.mobilenet_v3_large(num_classes=10), 64),
    "vit_b_16": (lambda: VISION.vit_b_16(num_classes=10, image_size=64), 64),
    "swin_t": (lambda: VISION.swin_t(num_classes=10), 64),
}
FAST = ["resnet", "vit", "swin"]
ALL = [n if n in FAST else pytest.param(n, marks=SLOW) for n in BUILDS]


class Case(NamedTuple):
    masked: nn.Module
    small: nn.Module
    x: torch.Tensor

    def close(self, got: torch.Tensor, tolerance: float = 1e-4, x: torch.Tensor | None = None) -> None:
        """Equal to what the masked model gives, relative to its largest entry; and that varies with the input."""
        with torch.no_grad():
            wanted = self.masked(self.x if x is None else x)
        assert got.shape == wanted.shape
        assert (wanted - wanted.mean(0)).abs().max() > 10 * tolerance * wanted.abs().max()
        assert (got - wanted).abs().max() <= tolerance * wanted.abs().max()


@cache
def made(name: str) -> Case:
    build, size = BUILDS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build().eval()
        x = torch.randn(2, 3, size, size)
    if name.startswith(("vit", "swin")):
        masks = every_second(randomize(model))
    else:
        masks = filter_masks(testing.randomize(model), p=0.3, seed=1)
    masked = testing.masked_copy(model, masks)
    plan = speedup.plan(model, x, masks)
    small = plan.apply()
    assert plan.report.parameters[1] < 0.9 * plan.report.parameters[0]
    return Case(masked, small, x)


def small_of(name: str) -> tuple[Case, nn.Module]:
    """The case, and a copy of the small model to do things to."""
    case = made(name)
    return case, copy.deepcopy(case.small)


def test_the_cases_are_of_all_kinds() -> None:
    classes = {type(m) for name in ("vit", "swin") for m in made(name).small.modules()}
    assert {"CompensatedLayerNorm", "ShiftedWindowAttention", "MultiheadAttention"} <= {c.__name__ for c in classes}
    assert any(hasattr(c, "_speedup_edits") for c in classes)


@pytest.mark.parametrize("name", ALL)
def test_it_trains(name: str) -> None:
    case, small = small_of(name)
    small.train()
    optimizer = torch.optim.SGD(small.parameters(), 1e-3)
    before = [p.detach().clone() for p in small.parameters()]
    small(case.x).square().sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in small.parameters())
    optimizer.step()
    assert sum(not torch.equal(a, b) for a, b in zip(before, small.parameters(), strict=True)) > 0.9 * len(before)


@pytest.mark.parametrize("name", ALL)
def test_it_is_copied_pickled_and_moved(name: str) -> None:
    case, small = small_of(name)
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    with torch.no_grad():
        wanted = case.small(case.x)
        for other in (small, pickle.loads(pickle.dumps(small)), torch.load(file, weights_only=False)):
            torch.testing.assert_close(other(case.x), wanted)
        case.close(copy.deepcopy(small).double()(case.x.double()).float())
        assert copy.deepcopy(small).bfloat16()(case.x.bfloat16()).dtype == torch.bfloat16
        assert copy.deepcopy(small).to("meta")(case.x.to("meta")).shape == wanted.shape
        if torch.cuda.is_available():
            case.close(copy.deepcopy(small).cuda()(case.x.cuda()).cpu(), 1e-3)
    fresh = copy.deepcopy(small)
    fresh.load_state_dict(small.state_dict(), strict=True)


@pytest.mark.parametrize("name", ALL)
def test_it_compiles(name: str) -> None:
    case, small = small_of(name)
    torch._dynamo.reset()
    compiled = torch.compile(small, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        case.close(compiled(case.x))
    torch._dynamo.reset()


@SLOW
@pytest.mark.parametrize("name", FAST)
def test_it_compiles_to_machine_code(name: str) -> None:
    case, small = small_of(name)
    torch._dynamo.reset()
    with torch.no_grad():
        case.close(torch.compile(small)(case.x))
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ALL)
def test_it_is_exported_for_any_batch_size(name: str) -> None:
    case, small = small_of(name)
    with torch.no_grad():
        program = torch.export.export(small, (case.x,), dynamic_shapes=({0: torch.export.Dim("n", min=1, max=64)},))
        more = torch.cat([case.x, case.x.flip(0), case.x[:1]])
        case.close(program.module()(more), x=more)


@pytest.mark.parametrize("name", ["vit", *(pytest.param(n, marks=SLOW) for n in BUILDS if n != "vit")])
def test_onnx_runtime_gives_the_answers_of_the_masked_model(name: str, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="ONNX is an extra: pip install 'model-speedup[onnx]'")
    import onnxruntime  # type: ignore[import-untyped,unused-ignore]

    case, small = small_of(name)
    path = tmp_path / "small.onnx"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        exported: Any = torch.onnx.export(small, (case.x,), dynamo=True, verbose=False)
    exported.save(path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: case.x.numpy()})
    case.close(torch.from_numpy(got))


@pytest.mark.parametrize("name", ["resnet", "vit", *(pytest.param(n, marks=SLOW) for n in BUILDS if len(n) > 6)])
def test_it_is_quantized(name: str) -> None:
    """Linear layers to 8 bits, as far as the original can be quantized in this way."""
    if name == "swin_t":
        pytest.skip("torchvision's Swin hands the weights of its Linear layers to a function")
    case, small = small_of(name)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        done = torch.ao.quantization.quantize_dynamic(small, {nn.Linear}, dtype=torch.qint8)
        assert any(type(m).__module__.startswith("torch.ao.nn.quantized.dynamic") for m in done.modules())
        wanted = case.masked(case.x)
        assert (done(case.x) - wanted).abs().max() <= 0.1 * wanted.abs().max()


class Counting(TorchDispatchMode):
    """A mode of the model's own, which is to see all ops that run under it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        return func(*args, **(kwargs or {}))


def test_a_dispatch_mode_in_the_forward_sees_its_ops() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> Any:
            with Counting() as mode:
                y = self.a(x).relu()
            assert mode.seen >= 2
            return self.b(y)

    model = testing.randomize(Net(), 0).double().eval()
    masks = testing.mask_indices(model, {"a.weight": [0, 1], "a.bias": [0, 1]})
    small = speedup.ModelSpeedup(model, torch.randn(2, 4).double(), masks, verify=True).speedup_model()
    assert small.a.weight.shape == (4, 4) and small.b.weight.shape == (3, 4)
