"""Masks: reading files safely, checking masks against a model, and what the checked masks look like."""

from __future__ import annotations

import itertools
import os
import pickle
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune

from speedup.errors import InputError, MaskError
from speedup.masks import compact, fully_masked, load, normalize_masks
from speedup.masks.files import read


class Net(nn.Module):
    """Modules of every relation to masks: with and without bias, inside containers, without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.conv2 = nn.Conv2d(4, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4, affine=False)
        self.features = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 6))
        self.scale = nn.Parameter(torch.ones(3))
        self.heads = nn.ParameterList([nn.Parameter(torch.ones(2))])


def refused(masks: Any, *words: str, model: nn.Module | None = None) -> str:
    """The text of the MaskError that `masks` cause, after a check that all of `words` are in it."""
    with pytest.raises(MaskError) as caught:
        normalize_masks(Net() if model is None else model, masks)
    text = str(caught.value)
    for word in words:
        assert word in text, f"{word!r} is missing in: {text}"
    return text


def random_mask(shape: Any, seed: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5


# ---------------------------------------------------------------- what is accepted


def test_nni_layout_by_qualified_name() -> None:
    model = Net()
    masks = {
        "conv1": {"weight": torch.ones(4, 3, 3, 3), "bias": torch.tensor([1.0, 0, 0, 1])},
        "conv2": {"weight": torch.zeros(4, 4, 3, 3), "bias": None},
        "features.2": OrderedDict(weight=random_mask((6, 5), 0)),
        "": {"scale": torch.tensor([0, 1, 0])},
        "heads": {"0": torch.tensor([True, False])},
        "norm": None,
        "features": {},
    }
    keep = normalize_masks(model, masks)
    assert list(keep) == ["conv1.weight", "conv1.bias", "conv2.weight", "features.2.weight", "scale", "heads.0"]
    parameters = dict(model.named_parameters())
    for name, mask in keep.items():
        assert mask.dtype == torch.bool
        assert mask.device.type == "cpu"
        assert mask.shape == parameters[name].shape
    assert keep["conv1.bias"].tolist() == [True, False, False, True]
    assert keep["scale"].tolist() == [False, True, False]
    assert not keep["conv2.weight"].any()


DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16,
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn,
]  # fmt: skip

FORMS = {
    "dense": lambda m: m,
    "transposed memory": lambda m: m.t().contiguous().t(),
    "every second": lambda m: m.repeat_interleave(2, 1)[:, ::2],
    "sparse": lambda m: m.to_sparse(),
    "numpy": lambda m: m.numpy(),
    "numpy, reversed": lambda m: m.flip(0).numpy()[::-1],
}


@given(
    st.sampled_from(DTYPES), st.sampled_from(sorted(FORMS)), st.integers(1, 5), st.integers(1, 5), st.integers(0, 99)
)
@settings(max_examples=150, deadline=None)
def test_every_form_of_a_mask_says_the_same(dtype: torch.dtype, form: str, rows: int, columns: int, seed: int) -> None:
    if form != "dense" and dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.uint16):
        dtype = torch.float32  # torch or numpy cannot make these
    wanted = random_mask((rows, columns), seed)
    keep = normalize_masks(nn.Linear(columns, rows), {"": {"weight": FORMS[form](wanted.to(dtype))}})
    assert torch.equal(keep["weight"], wanted)


def test_other_kinds_of_arrays_and_tensors() -> None:
    layer = nn.Linear(3, 2)
    bits = np.array([[1, 0, 1], [0, 0, 1]])
    read_only = bits.astype(np.float32)
    read_only.flags.writeable = False
    tensor = torch.tensor(bits)
    forms = [
        bits.astype(">f4"), read_only, np.asfortranarray(bits), bits.astype(bool), bits.astype(np.float16),
        tensor.float().requires_grad_(), nn.Parameter(tensor.float()), (tensor.float().requires_grad_() * 1),
        tensor.float().to_sparse_csr(),
    ]  # fmt: skip
    for form in forms:
        assert torch.equal(normalize_masks(layer, {"": {"weight": form}})["weight"], tensor.bool())
    row = torch.tensor([1.0, 0, 1]).expand(2, 3)
    keep = normalize_masks(layer, {"": {"weight": row}})["weight"]
    assert torch.equal(keep, row.bool())
    assert compact(keep).tolist() == [[True, False, True]]  # one row stands for both


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 0, 2, 3), (0, 2, 3, 1)])
@pytest.mark.parametrize("axes", [a for n in range(5) for a in itertools.combinations(range(4), n)])
def test_a_mask_is_as_small_as_what_it_says(axes: tuple[int, ...], order: tuple[int, ...], dtype: torch.dtype) -> None:
    layer = nn.Conv2d(4, 5, (2, 3))
    shape = (5, 4, 2, 3)
    small = [n if a in axes else 1 for a, n in enumerate(shape)]
    told = torch.zeros(small, dtype=torch.bool)
    told.view(-1)[0] = True  # differs along each of its axes
    back = [order.index(a) for a in range(4)]
    mask = told.expand(shape).permute(order).contiguous().permute(back).to(dtype)
    keep = normalize_masks(layer, {"": {"weight": mask}})["weight"]
    assert torch.equal(keep, told.expand(shape)) and keep.shape == shape
    assert list(compact(keep).shape) == small


def test_nothing_is_shared_with_or_changed_in_what_was_passed() -> None:
    mask, bias = random_mask((2, 3), 1), torch.ones(2)
    masks = {"": {"weight": mask, "bias": bias}}
    before = mask.clone()
    keep = normalize_masks(nn.Linear(3, 2), masks)
    keep["weight"].logical_not_()
    keep["bias"].zero_()
    assert torch.equal(mask, before)
    assert torch.equal(bias, torch.ones(2))
    assert list(masks) == [""]


def test_scalar_and_empty_parameters() -> None:
    module = nn.Module()
    module.gain = nn.Parameter(torch.tensor(2.0))
    module.none = nn.Parameter(torch.ones(0, 3))
    keep = normalize_masks(module, {"": {"gain": torch.tensor(0), "none": torch.ones(0, 3)}})
    assert keep["gain"].shape == ()
    assert not keep["gain"]
    assert keep["none"].shape == (0, 3)
    assert fully_masked(keep) == ["gain"]


@given(st.integers(0, 10_000), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_masks_of_tied_parameters_are_merged(seed: int, count: int) -> None:
    layers = [nn.Linear(3, 3, bias=False) for _ in range(4)]
    for layer in layers:
        layer.weight = layers[0].weight
    given_masks = [random_mask((3, 3), seed + i) for i in range(count)]
    copies = [mask.clone() for mask in given_masks]
    keep = normalize_masks(nn.Sequential(*layers), {str(i): {"weight": m} for i, m in enumerate(given_masks)})
    merged = torch.stack(given_masks).all(0)
    assert list(keep) == [f"{i}.weight" for i in range(count)]
    assert all(torch.equal(mask, merged) for mask in keep.values())
    assert all(torch.equal(a, b) for a, b in zip(given_masks, copies, strict=True))


def test_a_shared_module_takes_masks_under_each_of_its_names() -> None:
    shared = nn.Linear(2, 1, bias=False)
    masks = {"0": {"weight": torch.tensor([[1, 0]])}, "1": {"weight": torch.tensor([[0, 1]])}}
    keep = normalize_masks(nn.Sequential(shared, shared), masks)
    assert [mask.tolist() for mask in keep.values()] == [[[False, False]]] * 2
    assert list(normalize_masks(nn.Sequential(shared, shared), {"1": masks["1"]})) == ["1.weight"]


def test_fully_masked_names_weights_only() -> None:
    none, some = torch.zeros(3, dtype=torch.bool), torch.tensor([False, True])
    masks = {"b.weight": none, "a.weight": some, "b.bias": none, "r.bias_ih_l0": none, "in_proj_weight": none}
    assert fully_masked(masks) == ["b.weight", "in_proj_weight"]
    assert fully_masked({}) == []


# ---------------------------------------------------------------- what is refused, and in which words


@pytest.mark.parametrize("model", [None, {"conv1": 1}, "model.pt", nn.Linear])
def test_the_model_must_be_a_module(model: Any) -> None:
    with pytest.raises(InputError, match=r"nn\.Module"):
        normalize_masks(model, {"conv1": {"weight": torch.ones(1)}})


def test_a_class_is_not_a_model() -> None:
    with pytest.raises(InputError, match=r"class Linear.*instance"):
        normalize_masks(nn.Linear, {"": {}})  # type: ignore[arg-type]


def test_containers_without_masks() -> None:
    refused({}, "empty")
    refused({"conv1": {"weight": None, "bias": None}, "conv2": None, "norm": {}}, "no mask")
    wrong: Any
    for wrong in (None, [("conv1", {})], torch.ones(2), "masks.pt"):
        refused(wrong, "dict", type(wrong).__name__)


def test_unknown_modules() -> None:
    weight = {"weight": torch.ones(4, 3, 3, 3)}
    refused({"conv_1": weight}, "'conv_1'", "no module", "Did you mean 'conv1'")
    refused({"qqqqqqq": weight}, "'qqqqqqq'", "Modules with parameters:", "'conv2'", "'features.2'")
    refused({0: weight}, "string", "int")
    refused({"conv_1": None}, "no module")
    refused({"masks": {"conv1": weight}}, "one level deeper", "masks['masks']")
    many = nn.Sequential(*[nn.Linear(1, 1) for _ in range(30)])
    refused({"zzz": weight}, "and 22 more", model=many)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_do_not_matter(prefix: str) -> None:
    mask = random_mask((6, 5), 0)
    for masks in ({f"{prefix}features.2": {"weight": mask}}, {f"{prefix}features.2.weight": mask}):
        assert list(normalize_masks(Net(), masks)) == ["features.2.weight"]
    wrapped = nn.ModuleDict({"module": Net()})
    for masks in ({"features.2": {"weight": mask}}, {"features.2.weight": mask}):
        keep = normalize_masks(wrapped, masks)
        assert torch.equal(keep["module.features.2.weight"], mask.bool())


def test_parameters_of_a_wrapped_model_itself() -> None:
    wrapped = nn.ModuleDict({"module": Net()})
    for masks in ({"": {"scale": torch.tensor([1, 0, 1])}}, {"scale": torch.tensor([1, 0, 1])}):
        assert list(normalize_masks(wrapped, masks)) == ["module.scale"]


def test_flat_dicts() -> None:
    mask = random_mask((4, 3, 3, 3), 1)
    keep = normalize_masks(Net(), {"conv1.weight": mask, "conv1.bias": torch.ones(4), "scale": torch.tensor([1, 0, 1])})
    assert list(keep) == ["conv1.weight", "conv1.bias", "scale"]
    assert torch.equal(keep["conv1.weight"], mask.bool())
    both = normalize_masks(Net(), {"conv1.weight": mask, "conv1": {"bias": torch.ones(4)}})
    assert list(both) == ["conv1.weight", "conv1.bias"]
    refused({"conv1": mask}, "dict of masks", "write {'conv1': {'weight': mask}}")
    refused({"conv1.wieght": mask}, "'conv1.wieght'", "no parameter", "Did you mean 'conv1.weight'")
    refused({"": {"conv1.weight": mask}}, "inner module", "write {'conv1': {'weight': mask}}")
    refused({"features": {"0.weight": mask}}, "write {'features.0': {'weight': mask}}")


def test_unknown_parameters() -> None:
    refused({"conv1": {"wieght": torch.ones(4)}}, "'conv1'", "'wieght'", "Did you mean 'weight'", "'bias'")
    refused({"conv2": {"bias": torch.ones(4)}}, "Conv2d has no bias", "set it to None")
    refused({"norm": {"weight": torch.ones(4)}}, "BatchNorm2d has no weight")
    refused({"norm": {"running_mean": torch.ones(4)}}, "buffer")
    refused({"features": {"weight": torch.ones(5, 2)}}, "no parameters of its own", "'features.0', 'features.2'")
    refused({"features.1": {"weight": torch.ones(5, 2)}}, "ReLU has no parameters of its own")
    refused({"conv1": {0: torch.ones(4)}}, "string", "int")
    refused({"conv1": {"_output_0": torch.ones(1, 4, 1, 1)}}, "activation")


def test_none_is_no_mask_whatever_the_parameter() -> None:
    masks = {"features.1": {"weight": None, "bias": None}, "conv2": {"weight": torch.ones(4, 4, 3, 3), "bias": None}}
    assert list(normalize_masks(Net(), masks)) == ["conv2.weight"]


def test_parameters_that_are_computed() -> None:
    pruned, normed = nn.Linear(2, 2), parametrizations.weight_norm(nn.Linear(2, 2))
    prune.random_unstructured(pruned, "weight", 0.5)  # type: ignore[no-untyped-call]
    refused({"": {"weight": torch.ones(2, 2)}}, "prune.remove(module, 'weight')", model=pruned)
    refused({"": {"weight": torch.ones(2, 2)}}, "remove_parametrizations(module, 'weight')", model=normed)
    refused({"": {"weight": torch.ones(2, 2)}}, "lazy", "call the model once", model=nn.LazyLinear(2))


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((4, 3, 3), ["(4, 3, 3)", "(4, 3, 3, 3)", "another version"]),
        ((4, 1, 1, 1), ["would broadcast", "mask.expand(4, 3, 3, 3)"]),
        ((), ["shape ()", "would broadcast"]),
        ((3, 4, 3, 3), ["transposed"]),
        ((4,), ["one value per index of axis 0", "mask.view(-1, 1, 1, 1).expand(4, 3, 3, 3)"]),
        ((4, 27), ["mask.reshape(4, 3, 3, 3)"]),
        ((2, 3, 3, 3), ["smaller already"]),
    ],
)
def test_wrong_shapes(shape: tuple[int, ...], words: list[str]) -> None:
    refused({"conv1": {"weight": torch.ones(shape)}}, "'conv1', 'weight'", "shape", *words)


def test_a_vector_for_a_square_matrix_is_ambiguous_and_says_both() -> None:
    refused({"": {"weight": torch.ones(3)}}, "view(-1, 1)", "expand(3, 3)", "would broadcast", model=nn.Linear(3, 3))


def test_a_huge_sparse_mask_is_refused_before_it_is_made_dense() -> None:
    huge = torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (10**9, 10**9))
    refused({"features.0": {"weight": huge}}, "(5, 2)")


def test_values_other_than_0_and_1() -> None:
    mask = torch.ones(5, 2)
    mask[0, 0], mask[3, 1] = 0.25, -1.5
    refused(
        {"features.0": {"weight": mask}},
        "'features.0', 'weight'", "2 of 10", "0.25", "-1.5", "importance scores", "soft", "threshold",
    )  # fmt: skip
    refused({"features.0": {"weight": torch.full((5, 2), 255, dtype=torch.uint8)}}, "255", "mask != 0")
    refused({"features.0": {"weight": np.full((5, 2), 2)}}, "10 of 10", "from 2 to 2")
    almost = torch.ones(5, 2, dtype=torch.float64)
    almost[1, 1] = 1 - 1e-6
    refused({"features.0": {"weight": almost}}, "1 of 10")


def test_values_that_are_not_finite() -> None:
    mask = torch.ones(5, 2)
    mask[0, 0] = float("nan")
    mask[1, 0] = mask[1, 1] = float("inf")
    refused({"features.0": {"weight": mask}}, "3 of 10", "not finite", "1 NaN", "2 infinite")
    mask[2, 0] = 7
    refused({"features.0": {"weight": mask.half()}}, "3 of 10", "1 of 10", "7")


@given(st.integers(0, 10_000), st.integers(1, 6), st.sampled_from([2.0, -1.0, 0.5, float("nan"), float("-inf")]))
@settings(max_examples=60, deadline=None)
def test_every_bad_entry_is_counted(seed: int, bad: int, value: float) -> None:
    mask = random_mask((4, 3), seed).float()
    places = torch.randperm(12, generator=torch.Generator().manual_seed(seed))[:bad]
    mask.view(-1)[places] = value
    refused({"": {"weight": mask}}, f"{bad} of 12", model=nn.Linear(3, 4))


def test_things_that_are_no_masks() -> None:
    def one(mask: Any, *words: str) -> None:
        refused({"features.0": {"weight": mask}}, "'features.0', 'weight'", *words)

    one([[1, 0]] * 5, "list", "torch.tensor")
    one("all", "str")
    one(1.0, "float")
    one(torch.ones(5, 2, dtype=torch.complex64), "complex")
    one(np.ones((5, 2), dtype=np.complex128), "complex")
    one(np.full((5, 2), "x"), "dtype <U1")
    one(np.full((5, 2), None), "dtype object")
    one(torch.ones(5, 2, device="meta"), "meta")


def test_bad_values_in_a_large_mask_are_all_counted() -> None:
    mask = torch.ones(2000, 1500)  # more than is read at a time
    mask[0, 0], mask[1000, 7], mask[1999, 1499] = 0.5, 9, float("nan")
    refused({"": {"weight": mask}}, "2 of 3000000", "0.5", "to 9", "1 of 3000000", model=nn.Linear(1500, 2000))


def test_all_mistakes_are_listed_at_once() -> None:
    text = refused(
        {
            "conv_1": {"weight": torch.ones(1)},
            "conv1": {"weight": torch.ones(1, 2), "bias": torch.full((4,), 3.0)},
            "conv2": {"weight": torch.ones(4, 4, 3, 3), "bias": torch.ones(4)},
        },
        "4 mistakes", "'conv_1'", "'conv1', 'weight'", "'conv1', 'bias'", "'conv2', 'bias'",
    )  # fmt: skip
    assert len(text.splitlines()) == 5


def test_a_long_list_of_mistakes_is_cut() -> None:
    text = refused({f"layer{i}": {} for i in range(25)}, "25 mistakes", "'layer9'", "and 15 more")
    assert "layer10'" not in text
    assert len(text.splitlines()) == 12


def test_many_mistakes_in_a_large_model_do_not_take_long() -> None:
    model = nn.Sequential(*[nn.Linear(1, 1) for _ in range(2000)])
    start = time.perf_counter()
    refused({f"layer.{i}": {"weight": torch.ones(1, 1)} for i in range(2000)}, "2000 mistakes", model=model)
    assert time.perf_counter() - start < 5


def test_large_masks_are_fast() -> None:
    layer = nn.Linear(4000, 4000, bias=False)
    mask = torch.ones(4000, 4000)
    start = time.perf_counter()
    normalize_masks(layer, {"": {"weight": mask}})
    assert time.perf_counter() - start < 3  # 16 million entries; a loop over them in Python would take longer


# ---------------------------------------------------------------- files


MASKS = {"conv1": {"weight": torch.ones(4, 3, 3, 3), "bias": None}, "features.0": {"weight": torch.eye(5, 2)}}


class Malicious:
    """Unpickling this makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def not_loaded(path: Path | str, *words: str) -> str:
    with pytest.raises(MaskError) as caught:
        read(path)
    text = str(caught.value)
    assert Path(path).name in text
    assert caught.value.__cause__ is not None
    for word in words:
        assert word in text, f"{word!r} is missing in: {text}"
    return text


@pytest.mark.parametrize("as_path", [str, Path])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_torch_save_is_read(tmp_path: Path, as_path: Any, zipped: bool) -> None:
    torch.save(MASKS, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    loaded = read(as_path(tmp_path / "m.pt"))
    keep = normalize_masks(Net(), loaded)
    assert list(keep) == ["conv1.weight", "features.0.weight"]
    assert torch.equal(keep["features.0.weight"], torch.eye(5, 2).bool())


def test_map_location_is_passed_on(tmp_path: Path) -> None:
    torch.save(MASKS, tmp_path / "m.pt")
    assert read(tmp_path / "m.pt", map_location="meta")["conv1"]["weight"].is_meta
    with pytest.raises(MaskError, match="map_location"):
        read(tmp_path / "m.pt", map_location="nowhere")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("writer", ["torch", "torch, old format", "pickle"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_file_never_runs(tmp_path: Path, writer: str, protocol: int) -> None:
    marker, path = tmp_path / "marker", tmp_path / "evil.pt"
    masks = {"conv1": {"weight": torch.ones(1), "bias": Malicious(marker)}}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(masks, protocol))
    else:
        torch.save(masks, path, pickle_protocol=protocol, _use_new_zipfile_serialization=writer == "torch")
    text = not_loaded(path, "Only tensors, dicts and numbers are accepted", "run any code")
    assert not marker.exists()
    assert "weights_only" not in text
    if protocol == 2:  # the protocol that torch writes
        assert "refused" in text
        assert "mkdir" in text or writer == "pickle"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_the_malicious_file_is_really_malicious(tmp_path: Path) -> None:
    torch.save(Malicious(tmp_path / "marker"), tmp_path / "evil.pt")
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert (tmp_path / "marker").exists()


def test_the_environment_cannot_switch_the_safety_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"conv1": Malicious(tmp_path / "marker")}, tmp_path / "evil.pt")
    not_loaded(tmp_path / "evil.pt", "refused")
    assert not (tmp_path / "marker").exists()


def test_objects_in_a_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"conv1": {"weight": np.ones(3)}}, path)
    not_loaded(path, "refused", "torch.from_numpy")
    torch.save(nn.Linear(2, 2), path)
    not_loaded(path, "refused", "Linear")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    not_loaded(tmp_path / "none.pt", "no such file")
    not_loaded(tmp_path, "cannot be read")
    path = tmp_path / "m.pt"
    for content in (b"", b"hello world", b'{"conv1": 1}', b"\x80\x02}q", bytes(range(256)), b"PK\x03\x04 and so on"):
        path.write_bytes(content)
        not_loaded(path, "Only tensors")
    path.write_bytes(b"")
    not_loaded(path, "empty")
    with pytest.raises(MaskError, match=r"cannot|damaged"):
        read("null\0byte")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_truncated_files(tmp_path: Path, zipped: bool, part: float) -> None:
    path = tmp_path / "m.pt"
    torch.save({"conv1": {"weight": torch.ones(1000)}}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    not_loaded(path, "m.pt")


@pytest.mark.parametrize("content", [torch.ones(3), [MASKS], 3])
def test_a_file_must_hold_a_dict(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(MaskError, match=rf"m\.pt.*{type(content).__name__}, not a dict"):
        read(tmp_path / "m.pt")


@pytest.mark.parametrize("source", [3, [MASKS], torch.ones(2)])
def test_a_source_must_be_something_known(source: Any) -> None:
    with pytest.raises(MaskError, match=f"None, not {type(source).__name__}"):
        load(Net(), source)


@pytest.mark.parametrize("other", ["0.weight", "module.0"])
def test_two_names_of_one_parameter_are_not_settled_in_silence(other: str) -> None:
    model = nn.Sequential(nn.Linear(2, 3))
    one, two = torch.ones(3, 2), torch.ones(3, 2)
    one[0], two[1] = 0, 0

    def both(second: torch.Tensor | None) -> dict[str, Any]:
        return {"0": {"weight": one}, other: second if other == "0.weight" else {"weight": second}}

    with pytest.raises(MaskError, match="two entries of the masks mean this parameter"):
        normalize_masks(model, both(two))
    for same in (one.clone(), one.bool(), one.numpy()):
        assert normalize_masks(model, both(same))["0.weight"].tolist() == one.bool().tolist()


def test_what_is_nearly_1_is_shown_in_all_its_digits() -> None:
    with pytest.raises(MaskError, match=r"such as 0\.99999988"):
        normalize_masks(nn.Linear(2, 3), {"": {"weight": torch.full((3, 2), 1 - 1e-7)}})
