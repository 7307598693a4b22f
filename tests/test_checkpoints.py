"""``plan.apply_checkpoint``: checkpoints go through a plan, and what comes out is the small model."""

import copy
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import speedup
from speedup import InputError, StorageError
from tests.big import stored, without_contents, write_shards
from tests.big.llama import Llama, Shape, build, build_on_meta, frequencies, masks_for
from tests.graphs import masked_copy, random_case, run

SHAPE = Shape()
IDS = torch.zeros(1, 7, dtype=torch.long)
OTHERS = torch.arange(22).reshape(2, 11)
INDEX = "model.safetensors.index.json"

pytestmark = pytest.mark.filterwarnings("ignore:.*masked whole:UserWarning", "ignore:Using padding='same':UserWarning")


def plan_for(shape: Shape = SHAPE, dtype: torch.dtype = torch.float64, width: bool = True) -> speedup.Plan:
    model = build_on_meta(shape, dtype)
    return speedup.plan(model, IDS, masks_for(model, shape, width=width))


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def read(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found.update(load_file(path))
    return found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "big", stored(build()), 3)


# -- the way there --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
@pytest.mark.parametrize("width", [False, True], ids=["units and heads", "width"])
def test_a_sharded_checkpoint_becomes_the_small_model(tmp_path: Path, width: bool, tied: bool) -> None:
    shape = Shape(tied=tied)
    model = build(shape)
    source = write_shards(tmp_path / "big", stored(model), 3)
    before = files(source)
    done = plan_for(shape, width=width).apply_checkpoint(source, tmp_path / "small")
    small = speedup.load(Llama(shape).double().eval(), done.folder)
    wanted = speedup.plan(copy.deepcopy(model), IDS, masks_for(model, shape, width=width)).apply()
    assert torch.equal(small(OTHERS), wanted(OTHERS))
    assert {n: t.shape for n, t in small.named_parameters()} == {n: t.shape for n, t in wanted.named_parameters()}
    assert speedup.verify(model, small, IDS, masks_for(model, shape, width=width))
    assert files(source) == before
    assert done.bytes[1] < 0.75 * done.bytes[0]
    if tied:
        assert small.lm_head.weight is small.model.embed_tokens.weight


def test_the_folder_is_a_checkpoint_as_others_read_it(source: Path, tmp_path: Path) -> None:
    (source / "tokenizer.json").write_text("{}")
    (source / "pytorch_model.bin").write_bytes(b"the big weights once more")
    done = plan_for().apply_checkpoint(source, tmp_path / "small")
    index, old = (json.loads((folder / INDEX).read_text()) for folder in (done.folder, source))
    assert index["weight_map"] == old["weight_map"]
    for file in set(index["weight_map"].values()):
        assert set(load_file(done.folder / file)) == {n for n, f in index["weight_map"].items() if f == file}
    tensors = read(done.folder)
    tensors.pop("model.frequencies", None)
    assert index["metadata"]["total_size"] == sum(t.numel() * t.itemsize for t in tensors.values())
    assert (done.folder / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert (done.folder / "tokenizer.json").is_file() and not (done.folder / "pytorch_model.bin").exists()


def test_what_it_did_says_which_sizes_changed(source: Path, tmp_path: Path) -> None:
    done = plan_for(width=False).apply_checkpoint(source, tmp_path / "small")
    assert done.changed["model.layers.1.mlp.up_proj.weight"] == ((80, 48), (53, 48))
    text = str(done)
    assert "model.layers.*.mlp.up_proj.weight" in text and "80x48 -> 53x48  (2 times)" in text
    assert len(done.written) == 4 and "config" in text


def test_a_single_file_without_index(tmp_path: Path) -> None:
    model = build()
    (tmp_path / "big").mkdir()
    save_file(stored(model), tmp_path / "big" / "model.safetensors")
    plan_for().apply_checkpoint(tmp_path / "big", tmp_path / "small")
    assert not (tmp_path / "small" / INDEX).exists()
    small = speedup.load(Llama().double().eval(), tmp_path / "small")
    assert speedup.verify(model, small, IDS, masks_for(model, SHAPE, width=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_types_stay_and_what_stays_is_the_same_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    """Also where the planned model is of another type than the checkpoint."""
    model = build(dtype=dtype)
    source = write_shards(tmp_path / "big", stored(model), 2)
    plan_for(width=False).apply_checkpoint(source, tmp_path / "small")
    tensors = read(tmp_path / "small")
    assert tensors["lm_head.weight"].dtype is dtype
    assert torch.equal(tensors["lm_head.weight"], model.lm_head.weight)
    keep = torch.arange(SHAPE.hidden) % 3 != 1
    assert torch.equal(
        tensors["model.layers.0.mlp.down_proj.weight"], model.model.layers[0].mlp.down_proj.weight[:, keep]
    )


def test_bytes_of_types_that_cannot_be_computed_with_are_cut(tmp_path: Path) -> None:
    model = build(dtype=torch.float32)
    tensors = {n: t.to(torch.float8_e4m3fn) if t.ndim > 1 else t for n, t in stored(model).items()}
    source = write_shards(tmp_path / "big", tensors, 2)
    plan_for(width=False).apply_checkpoint(source, tmp_path / "small")
    small = read(tmp_path / "small")
    keep = torch.arange(SHAPE.hidden) % 3 != 1
    wanted = tensors["model.layers.1.mlp.up_proj.weight"].view(torch.uint8)[keep]
    assert torch.equal(small["model.layers.1.mlp.up_proj.weight"].view(torch.uint8), wanted)
    assert small["model.layers.1.mlp.up_proj.weight"].dtype is torch.float8_e4m3fn


def test_a_model_without_contents_takes_the_small_weights_and_says_what_it_lacks(source: Path, tmp_path: Path) -> None:
    with torch.device("meta"):
        bare = Llama().double().eval()
    plan = speedup.plan(bare, IDS, masks_for(bare, SHAPE))
    plan.apply_checkpoint(source, tmp_path / "small")
    assert not (tmp_path / "small" / "speedup-buffers.safetensors").exists()
    with pytest.raises(StorageError, match="frequencies is in no file, and on the meta device"):
        speedup.load(bare, tmp_path / "small")
    bare.model.frequencies = frequencies(SHAPE).double()
    masks = masks_for(bare, SHAPE)
    small = speedup.load(bare, tmp_path / "small")
    assert small is bare and not any(t.is_meta for t in (*small.parameters(), *small.buffers()))
    assert speedup.verify(build(), small, IDS, masks)


_PEAK = """
import resource, sys
import torch
import speedup
from tests.big.llama import Shape, build_on_meta, masks_for
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
shape = Shape(1000, 1024, 12, 8, 8, 4096)
model = build_on_meta(shape, torch.bfloat16)
plan = speedup.plan(model, torch.zeros(1, 4, dtype=torch.long), masks_for(model, shape, width=True))
before = peak()
done = plan.apply_checkpoint(sys.argv[1], sys.argv[2])
print(peak() - before, done.bytes[0] // 2**20, done.bytes[1] // 2**20)
"""


def test_memory_does_not_grow_with_the_checkpoint(tmp_path: Path) -> None:
    """In a process of its own; megabytes."""
    model = build_on_meta(Shape(1000, 1024, 12, 8, 8, 4096), torch.bfloat16)
    tensors = {n: torch.full(p.shape, 0.5, dtype=torch.bfloat16) for n, p in model.named_parameters()}
    source = write_shards(tmp_path / "big", tensors, 2)
    del tensors
    command = [sys.executable, "-c", _PEAK, str(source), str(tmp_path / "small")]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grown, big, small = map(int, done.stdout.split())
    assert big > 380 and small < 220
    assert grown < 100, "a few of the largest tensors, of 8 megabytes each, and what copying takes"


# -- constants and new tensors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False], ids=["into a bias", "into a new bias"])
def test_constants_are_folded_from_the_checkpoint(tmp_path: Path, bias: bool) -> None:
    """Masks alone tell that sigmoid(0) is 0.5; what the reader makes of it, its weights in the checkpoint."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 8, bias=False), nn.Sigmoid(), nn.Linear(8, 4, bias=bias), nn.ReLU(), nn.Linear(4, 3)
    ).double()
    masks = {"0.weight": (torch.arange(8) % 2 == 0)[:, None].expand(8, 5)}
    source = write_shards(tmp_path / "big", stored(model), 2)
    plan = speedup.plan(without_contents(model), torch.zeros(2, 5), masks)
    assert plan.report.gained == ([] if bias else ["2.bias"])
    done = plan.apply_checkpoint(source, tmp_path / "small")
    small = speedup.load(copy.deepcopy(model), done.folder)
    assert small[0].weight.shape == (4, 5) and small[2].weight.shape == (4, 4)
    assert speedup.verify(model, small, torch.zeros(2, 5).double(), masks)
    index = json.loads((done.folder / INDEX).read_text())
    assert bias or index["weight_map"]["2.bias"] == index["weight_map"]["2.weight"]


class Scaled(nn.Module):
    """A table that is in no checkpoint, and that is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)
        self.register_buffer("table", torch.arange(8.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.b(self.a(x) * self.table)
        return out


def test_buffers_that_are_in_no_checkpoint_and_that_are_cut(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Scaled()
    line = torch.arange(8) % 2 == 0
    masks = {"a.weight": line[:, None].expand(8, 5), "a.bias": line}
    source = write_shards(tmp_path / "big", stored(model), 1)
    bare = without_contents(model)
    with pytest.raises(StorageError, match="table changes, and is neither in the checkpoint nor in the model"):
        speedup.plan(bare, torch.zeros(2, 5), masks).apply_checkpoint(source, tmp_path / "small")
    bare.table = torch.arange(8.0)
    plan = speedup.plan(bare, torch.zeros(2, 5), masks)
    done = plan.apply_checkpoint(source, tmp_path / "small")
    assert torch.equal(load_file(done.folder / "speedup-buffers.safetensors")["table"], torch.tensor([0.0, 2, 4, 6]))
    small = speedup.load(Scaled(), done.folder)
    assert speedup.verify(model, small, torch.zeros(2, 5), masks)
    applied = plan.apply()
    assert torch.equal(applied.table, small.table) and applied.a.weight.is_meta and torch.equal(bare.table, small.table)


def test_constants_do_not_go_into_a_byte(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(5, 8, bias=False), nn.Sigmoid(), nn.Linear(8, 4))
    masks = {"0.weight": (torch.arange(8) % 2 == 0)[:, None].expand(8, 5)}
    tensors = stored(model)
    tensors["2.bias"] = tensors["2.bias"].to(torch.float8_e5m2)
    source = write_shards(tmp_path / "big", tensors, 1)
    with pytest.raises(StorageError, match=r"2\.bias would take up constants, and is stored as F8_E5M2"):
        speedup.plan(without_contents(model), torch.zeros(2, 5), masks).apply_checkpoint(source, tmp_path / "small")


# Networks that normalize the differences of equal rows, rounding alone. (Planned with weights, the check sees to it.)
_OF_ROUNDING = {2384}


@pytest.mark.parametrize(
    "first", [0, pytest.param(1000, marks=pytest.mark.slow), pytest.param(2000, marks=pytest.mark.slow)]
)
def test_random_networks_are_equal_to_the_masked_ones(first: int, tmp_path: Path) -> None:
    """Planned without contents, made of a checkpoint: the same answers; nearly as small, and often just as small."""
    sizes = []
    for seed in set(range(first, first + (60 if first == 0 else 400))) - _OF_ROUNDING:
        case = random_case(seed)
        model = case.model()
        (tmp_path / f"{seed}").mkdir()
        source = write_shards(tmp_path / f"{seed}" / "big", stored(model), 2)
        try:
            plan = speedup.plan(without_contents(model), case.inputs, case.masks)
        except speedup.TraceError as error:
            assert "on the meta device" in str(error)  # its code looks at data
            continue
        plan.apply_checkpoint(source, tmp_path / f"{seed}" / "small")
        small = speedup.load(case.model(), tmp_path / f"{seed}" / "small")
        masked = masked_copy(model, case.masks)
        for given in (case.inputs, *(() if plan.report.repaired else case.others)):
            for a, b in zip(run(masked, given), run(small, given), strict=True):
                assert a.shape == b.shape, f"case {seed}"
                worst = float((a - b).abs().max()) if a.numel() else 0.0
                assert worst <= 1e-9 * (float(a.abs().max()) + 1e-3 if a.numel() else 1.0), f"case {seed}"
        whole, left = (sum(p.numel() for p in m.parameters()) for m in (model, small))
        assert left <= whole, f"case {seed}"
        sizes.append(left / whole)
    assert len(sizes) > 50 and sum(sizes) / len(sizes) < 0.85 and min(sizes) < 0.4


# -- interruptions --------------------------------------------------------------------------------------------------


def test_a_second_run_makes_nothing_again(source: Path, tmp_path: Path) -> None:
    plan = plan_for()
    first = plan.apply_checkpoint(source, tmp_path / "small")
    before = {p.name: p.stat().st_mtime_ns for p in first.folder.glob("*.safetensors")}
    again = plan_for().apply_checkpoint(source, tmp_path / "small")
    assert again.written == () and set(again.skipped) == set(first.written)
    assert {p.name: p.stat().st_mtime_ns for p in first.folder.glob("*.safetensors")} == before


@pytest.mark.parametrize("what", ["a result", "a source", "a file that is gone"])
def test_what_is_not_right_any_more_is_made_again(source: Path, tmp_path: Path, what: str) -> None:
    done = plan_for().apply_checkpoint(source, tmp_path / "small")
    first = sorted(source.glob("*.safetensors"))[0]
    result = done.folder / first.name
    if what == "a source":
        save_file({n: t + 1 for n, t in load_file(first).items()}, first, metadata={"format": "pt"})
    elif what == "a result":
        result.write_bytes(result.read_bytes()[:-1] + b"!")
    else:
        result.unlink()
    again = plan_for().apply_checkpoint(source, tmp_path / "small")
    assert again.written == (first.name,)
    fresh = plan_for().apply_checkpoint(source, tmp_path / "other")
    assert files(again.folder)[first.name] == files(fresh.folder)[first.name]


_SLOW = """
import sys, time
from pathlib import Path
from speedup.store import shards
from tests.test_checkpoints import plan_for
read = shards.Entry.read
def forever(entry):
    if list(Path(sys.argv[2]).glob("model-*.safetensors")):
        print("half", flush=True)
        time.sleep(600)
    return read(entry)
shards.Entry.read = forever
plan_for().apply_checkpoint(sys.argv[1], sys.argv[2])
"""


def test_a_run_that_was_killed_goes_on_where_it_was(source: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    command = [sys.executable, "-c", _SLOW, str(source), str(small)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        os.kill(process.pid, signal.SIGKILL)
    done = sorted(p.name for p in small.glob("model-*.safetensors"))
    assert done and list(small.glob(".*.partial")), "killed in the middle of a file, behind the first one"
    assert not (small / "speedup.json").exists()
    with pytest.raises(StorageError, match="no saved model"):
        speedup.load(Llama().double(), small)
    rest = plan_for().apply_checkpoint(source, small)
    assert set(done) <= set(rest.skipped) and rest.written
    assert not list(small.glob(".*.partial"))
    whole = plan_for().apply_checkpoint(source, tmp_path / "other")
    assert files(rest.folder).keys() == files(whole.folder).keys()
    names = [n for n in files(whole.folder) if n.endswith((".safetensors", INDEX))]
    assert all(files(rest.folder)[n] == files(whole.folder)[n] for n in names)


# -- what does not fit ------------------------------------------------------------------------------------------------


def refuse(source: Path, target: Path, says: str, plan: speedup.Plan | None = None) -> None:
    before = files(target) if target.is_dir() else None
    with pytest.raises(StorageError, match=says):
        (plan or plan_for()).apply_checkpoint(source, target)
    assert (files(target) if target.is_dir() else None) == before, "nothing is written"


def rewrite(source: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = read(source)
    change(tensors)
    for path in source.iterdir():
        path.unlink()
    source.rmdir()
    write_shards(source, tensors, 3)


def test_tensors_that_are_missing_or_of_another_shape(source: Path, tmp_path: Path) -> None:
    rewrite(source, lambda t: t.pop("model.layers.0.mlp.up_proj.weight"))
    refuse(source, tmp_path / "small", r"model.layers.0.mlp.up_proj.weight is missing")
    rewrite(source, lambda t: t.update({"model.layers.0.mlp.up_proj.weight": torch.zeros(80, 47).double()}))
    refuse(source, tmp_path / "small", r"up_proj.weight is 80x47, and 80x48 in the model")


def test_tensors_that_belong_to_what_is_cut_and_that_nobody_knows(source: Path, tmp_path: Path) -> None:
    """A scale of blocks beside a weight, for one, would no longer fit; others are copied."""
    rewrite(source, lambda t: t.update({"rest.inv_freq": torch.arange(3.0)}))
    done = plan_for().apply_checkpoint(source, tmp_path / "small")
    assert torch.equal(read(done.folder)["rest.inv_freq"], torch.arange(3.0))
    assert speedup.load(Llama().double(), done.folder)
    rewrite(source, lambda t: t.update({"model.layers.0.mlp.up_proj.weight_scale": torch.ones(1)}))
    refuse(source, tmp_path / "other", "weight_scale is no tensor of the model, and stands beside some that change")


def test_damaged_checkpoints(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "small"
    first = sorted(source.glob("*.safetensors"))[0]
    whole = first.read_bytes()
    for content, says in (
        (whole[:-4], "no whole safetensors file"),
        (b"\xff" * 20, "cut off, or no safetensors file"),
        (b"", "no whole safetensors file"),
        ((10).to_bytes(8, "little") + b"not json!!", "no whole safetensors file"),
        (whole + b"more", "its header says"),
    ):
        first.write_bytes(content)
        refuse(source, target, says)
    first.unlink()
    refuse(source, target, "cannot be read: No such file")
    first.write_bytes(whole)
    index = source / INDEX
    text = index.read_text()
    index.write_text(text.replace('"lm_head.weight"', '"lm_head.bias"'))
    refuse(source, target, "do not belong together: lm_head")
    index.write_text("{")
    refuse(source, target, "is no index of a checkpoint")
    index.write_text(text.replace(first.name, "../" + first.name))
    refuse(source, target, "a shard is a safetensors file beside it")
    index.unlink()
    refuse(source, target, "several safetensors files and no index")
    for path in source.glob("*.safetensors"):
        path.unlink()
    (source / "pytorch_model.bin").write_bytes(b"")
    refuse(source, target, "write it as safetensors first")
    refuse(tmp_path / "nowhere", target, "is no folder")


def test_folders_that_hold_something_else(source: Path, tmp_path: Path) -> None:
    refuse(source, source, "is the checkpoint itself")
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    refuse(source, other, "holds other files .notes.txt.: choose an empty folder")
    done = plan_for().apply_checkpoint(source, tmp_path / "small")
    refuse(source, done.folder, "what another plan made", plan_for(width=False))
    (done.folder / "speedup-progress.json").write_text("{")
    refuse(source, done.folder, "cannot be read")


def test_a_full_disk_is_seen_before_anything_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 1000))  # type: ignore[attr-defined]
    with pytest.raises(StorageError, match="are to be written"):
        plan_for().apply_checkpoint(source, tmp_path / "small")
    assert not list((tmp_path / "small").glob("*.safetensors"))


def test_plans_that_were_made_with_weights(source: Path, tmp_path: Path) -> None:
    model = build()
    with pytest.raises(InputError, match="plan was made with weights in memory"):
        speedup.plan(model, IDS, masks_for(model, SHAPE)).apply_checkpoint(source, tmp_path / "small")
    plan = plan_for()
    plan.apply()
    with pytest.raises(speedup.SpeedupError, match="applied already"):
        plan.apply_checkpoint(source, tmp_path / "small")


def test_the_planned_model_stays_as_it_is(source: Path, tmp_path: Path) -> None:
    plan = plan_for()
    before = [(id(m), type(m), dict(vars(m))) for m in plan.model.modules()]
    plan.apply_checkpoint(source, tmp_path / "small")
    assert [(id(m), type(m), dict(vars(m))) for m in plan.model.modules()] == before
    plan.apply()  # and the plan is still good


def test_a_result_that_was_replaced_is_not_loaded(source: Path, tmp_path: Path) -> None:
    done = plan_for().apply_checkpoint(source, tmp_path / "small")
    shard = sorted(done.folder.glob("model-*.safetensors"))[1]
    save_file(load_file(shard), shard)
    with pytest.raises(StorageError, match="is damaged, or was replaced"):
        speedup.load(Llama().double(), done.folder)
    shard.unlink()
    with pytest.raises(StorageError, match="there is no model-00002"):
        speedup.load(Llama().double(), done.folder)
