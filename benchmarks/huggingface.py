"""Small random models of `transformers`, one per architecture; nothing is downloaded.

A name is a model type, ``bert``, ``llama``; ``bert+mask`` passes an ``attention_mask`` too, ``whisper.encoder`` is a
part of the model. Each has the head that it is used with: of a language model, a classifier, a detector.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from huggingface_configs import CONFIGS, GENERATE
from huggingface_others import INPUTS, OTHERS
from torch import nn

# The heads to look for, the first that there is for an architecture. Without one the hidden states come out, whole.
_HEADS = (
    "Seq2SeqLM", "ObjectDetection", "ImageClassification", "VideoClassification", "SequenceClassification", "CTC",
    "SpeechSeq2Seq", "AudioClassification", "DepthEstimation", "SemanticSegmentation", "UniversalSegmentation",
    "InstanceSegmentation", "TimeSeriesPrediction", "ImageToImage",
)  # fmt: skip
_ANSWERS = (
    "logits", "pred_boxes", "predicted_depth", "class_queries_logits", "masks_queries_logits", "reconstruction",
    "prediction_outputs", "action_preds",
)  # fmt: skip
_BARE = ("clip", "siglip", "deit")  # without a head


class Answers(nn.Module):
    """A model of which only the answers are read, and not the hidden states that it returns beside them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.main_input_name, self.config = model.main_input_name, model.config

    def forward(self, **given: Any) -> list[torch.Tensor]:
        found = self.model(**given)
        return [found[name] for name in _ANSWERS if name in found]


def _model(kind: str, config: Any, bare: bool) -> Any:
    import transformers

    heads = () if bare else ("CausalLM",) if kind in GENERATE else _HEADS
    for head in heads:
        auto = getattr(transformers, f"AutoModelFor{head}")
        if type(config) in auto._model_mapping:
            return Answers(auto.from_config(config))
    return transformers.AutoModel.from_config(config)


def make(name: str) -> tuple[nn.Module, Any, list[Any]]:
    """A model with random weights, a dummy input and one of another batch size and length."""
    import transformers

    kind, _, masked = name.partition("+")
    kind, _, part = kind.partition(".")
    small = dict({**CONFIGS, **OTHERS}[kind])
    if kind == "detr":
        small["backbone_config"] = transformers.ResNetConfig(**CONFIGS["resnet"], out_features=["stage4"])
    config = transformers.AutoConfig.for_model(kind, **small)
    if hasattr(config, "use_cache"):
        config.use_cache = False
    if any("expert" in name for name in vars(config)):  # the other ways know no float64
        config._experts_implementation = "eager"
    model = _model(kind, config, bare=bool(part) or kind in _BARE)
    first, again = _inputs(model, 2, 9, 0), _inputs(model, 3, 12, 1)
    if not _runs(model, again):  # it takes one size of images only
        again = _inputs(model, 3, 12, 0)
    inputs = [first, again]
    if masked:
        inputs.append(_inputs(model, 1, 7, 0))
        for given, hidden in zip(inputs, (True, True, False), strict=True):
            _pad(given, hidden)
    if part:
        model = model.get_submodule(part)
        inputs = [{k: v for k, v in given.items() if not k.startswith("decoder")} for given in inputs]
    return model, inputs[0], inputs[1:]


def _runs(model: nn.Module, given: dict[str, Any]) -> bool:
    try:
        with torch.no_grad():
            copy.deepcopy(model).eval()(**given)
    except Exception:
        return False
    return True


def _inputs(model: Any, batch: int, length: int, more: int) -> dict[str, Any]:
    kind, name, config = model.config.model_type, model.main_input_name, model.config
    given: dict[str, Any] = {}
    if kind in INPUTS:
        return INPUTS[kind](batch, more)
    if kind in ("clip", "siglip"):
        given["pixel_values"] = torch.randn(batch, 3, 32, 32)
        name = "input_ids"
    if kind in ("encodec", "dac"):
        return {"input_values": torch.randn(batch, 1, 64 + 32 * more)}
    if kind == "audio-spectrogram-transformer":
        return {"input_values": torch.randn(batch, 48, 16)}
    if name == "pixel_values":
        size = _size(config)
        images = (3, size + 32 * more, size + 64 * more)
        frames = getattr(config, "num_frames", None)
        given[name] = torch.randn(batch, *images) if frames is None else torch.randn(batch, frames, *images)
        if kind == "vit_mae":
            given["noise"] = torch.arange(16.0).expand(batch, 16)
    elif name == "input_values":
        given[name] = torch.randn(batch, 400 + 100 * more)
    elif name == "input_features":
        shape = (16, 40) if kind == "whisper" else (40 + 8 * more, 16)
        given[name] = torch.randn(batch, *shape)
    elif name == "inputs":  # of Perceiver: bytes
        given[name] = torch.randint(1, 99, (batch, length))
    else:
        given[name] = torch.randint(1, 99, (batch, length))
    if kind in ("clip", "siglip"):
        given[name][:, -1] = 99
    if getattr(config, "is_encoder_decoder", False):
        given["decoder_input_ids"] = torch.randint(1, 99, (batch, length // 2))
    return given


def _size(config: Any) -> int:
    size = getattr(config, "image_size", 32) or 32
    return min(size if isinstance(size, int) else size[0], 64)


def _pad(given: dict[str, Any], hidden: bool) -> None:
    """A mask that hides the end of the first sequence, or nothing."""
    key = "input_ids" if "input_ids" in given else "input_values"
    mask = torch.ones_like(given[key], dtype=torch.long)
    if hidden:
        mask[0, -mask.shape[1] // 4 :] = 0
    given["attention_mask"] = mask
