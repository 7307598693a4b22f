"""``module:callable`` and ``--input`` become a model and its arguments, or one clear message."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from speedup.cli.target import load_model, parse_input
from speedup.errors import InputError


def test_a_model_is_made_or_taken_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_models_of_a_test.py").write_text(
        "from torch import nn\nmade = nn.Linear(2, 3)\ndef make():\n    return nn.ReLU()\ndef wrong():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert isinstance(load_model("my_models_of_a_test:make"), nn.ReLU)
    assert load_model("my_models_of_a_test:made") is load_model("my_models_of_a_test:made")
    with pytest.raises(InputError, match="gives a int, not"):
        load_model("my_models_of_a_test:wrong")


@pytest.mark.parametrize(
    ("target", "message"),
    [("net", "names no model"), ("no_such_module:f", "cannot be imported"), ("torch.nn:Nothing", "has no 'Nothing'")],
)
def test_what_names_no_model(target: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(target)


def test_inputs() -> None:
    image, ids = parse_input("1x3x4x5, 2x7:int64")
    assert image.shape == (1, 3, 4, 5) and image.dtype == torch.float32
    assert ids.dtype == torch.int64 and not ids.any()
    assert torch.equal(image, parse_input("1x3x4x5")[0])


@pytest.mark.parametrize("text", ["", "1x", "3,axb", "1x3:floats", "1x3:nn"])
def test_what_is_no_input(text: str) -> None:
    with pytest.raises(InputError):
        parse_input(text)
