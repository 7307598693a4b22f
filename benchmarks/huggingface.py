"""Small random models of `transformers`, one per architecture; nothing is downloaded.

A name is a model type, ``bert``, ``llama``; ``bert+mask`` passes an ``attention_mask`` too, ``whisper.encoder`` is a
part of the model. Each has the head that it is used with: of a language model, a classifier, a detector.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_BERT = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 100,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
_LLAMA = {**_BERT, "num_key_value_heads": 2, "head_dim": 16}
_BART = {
    "vocab_size": 100, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "max_position_embeddings": 64,
}  # fmt: skip
_VIT = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
_AUDIO = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 100,
    "conv_dim": (32, 32, 32), "conv_kernel": (10, 3, 2), "conv_stride": (5, 2, 2), "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
_TOWER = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "projection_dim": 32,
}  # fmt: skip
_STAGES = {"depths": [1, 1, 2, 1], "image_size": 32}

CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _BERT,
    "roberta": {**_BERT, "pad_token_id": 1},
    "distilbert": {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96, "vocab_size": 100,
                   "max_position_embeddings": 64},
    "electra": {**_BERT, "embedding_size": 32},
    "albert": {**_BERT, "embedding_size": 32, "num_hidden_layers": 3},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100, "n_positions": 64, "bos_token_id": 1,
             "eos_token_id": 1},
    "opt": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 96, "vocab_size": 100,
            "max_position_embeddings": 64, "word_embed_proj_dim": 64},
    "gpt_neox": _BERT,
    "deberta-v2": {**_BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    "mpnet": _BERT,
    "xlnet": {"vocab_size": 100, "d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 96},
    "bloom": {"vocab_size": 100, "hidden_size": 64, "n_layer": 2, "n_head": 4},
    "falcon": {"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "mixtral": {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3": _LLAMA,
    "gemma2": _LLAMA,
    "phi3": _LLAMA,
    "llama": _LLAMA,
    "mistral": {**_LLAMA, "sliding_window": 6},
    "qwen2": _LLAMA,
    "gemma": {**_LLAMA, "head_dim": 16},
    "phi": {**_LLAMA, "partial_rotary_factor": 0.5},
    "t5": {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
           "vocab_size": 100},
    "bart": _BART,
    "vit": _VIT,
    "deit": _VIT,
    "swin": {"image_size": 32, "patch_size": 2, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4],
             "window_size": 4},
    "segformer": {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 32, 64], "num_attention_heads": [1, 2, 2, 4]},
    "clip": {"text_config": {**_TOWER, "vocab_size": 100, "max_position_embeddings": 32, "eos_token_id": 99},
             "vision_config": {**_TOWER, "image_size": 32, "patch_size": 8}, "projection_dim": 32},
    "whisper": {**_BART, "num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 32,
                "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
    "wav2vec2": {**_AUDIO, "mask_time_prob": 0.0},
    "hubert": _AUDIO,
    "encodec": {"num_filters": 8, "hidden_size": 32, "codebook_dim": 32, "codebook_size": 16, "num_lstm_layers": 1,
                "upsampling_ratios": [2, 2]},
    "mamba2": {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 100, "state_size": 8, "num_heads": 4,
               "head_dim": 16, "expand": 2, "n_groups": 1, "chunk_size": 8},
    "convnextv2": {"depths": [1, 1, 2, 1], "hidden_sizes": [16, 32, 48, 64]},
    "siglip": {"text_config": {**_TOWER, "vocab_size": 100, "max_position_embeddings": 32},
               "vision_config": {**_TOWER, "image_size": 32, "patch_size": 8}},
    "beit": _VIT,
    "mobilevit": {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 16, 24, 32, 32, 32, 64], "image_size": 32},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 100, "state_size": 8},
    "convnext": {"depths": [1, 1, 2, 1], "hidden_sizes": [16, 32, 48, 64]},
    "resnet": {"depths": [1, 1, 2, 1], "hidden_sizes": [32, 64, 96, 128], "embedding_size": 32},
    "dinov2": _VIT,
    "detr": {**{k: v for k, v in _BART.items() if k != "vocab_size"}, "use_timm_backbone": False,
             "use_pretrained_backbone": False, "backbone": None, "num_queries": 10, "num_labels": 5},
}  # fmt: skip


# The heads to look for, the first that there is for an architecture. Without one the hidden states come out, whole.
_HEADS = ("Seq2SeqLM", "ObjectDetection", "ImageClassification", "SequenceClassification", "CTC", "SpeechSeq2Seq")
_GENERATE = {
    "gpt2", "opt", "gpt_neox", "bloom", "falcon", "mixtral", "qwen3", "gemma2", "phi3", "llama", "mistral", "qwen2",
    "gemma", "phi", "mamba", "mamba2",
}  # fmt: skip


class Answers(nn.Module):
    """A model of which only the answers are read, and not the hidden states that it returns beside them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.main_input_name, self.config = model.main_input_name, model.config

    def forward(self, **given: Any) -> list[torch.Tensor]:
        found = self.model(**given)
        return [found[name] for name in ("logits", "pred_boxes") if name in found]


def _model(kind: str, config: Any, bare: bool) -> Any:
    import transformers

    heads = () if bare else ("CausalLM",) if kind in _GENERATE else _HEADS
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
    small = dict(CONFIGS[kind])
    if kind == "detr":
        small["backbone_config"] = transformers.ResNetConfig(**CONFIGS["resnet"], out_features=["stage4"])
    config = transformers.AutoConfig.for_model(kind, **small)
    if hasattr(config, "use_cache"):
        config.use_cache = False
    if kind == "mixtral":  # the other ways know no float64
        config._experts_implementation = "eager"
    model = _model(kind, config, bare=bool(part) or kind in ("clip", "siglip", "deit"))
    inputs = [_inputs(kind, model, *sizes) for sizes in ((2, 9, 0), (3, 12, 1))]
    if masked:
        inputs.append(_inputs(kind, model, 1, 7, 0))
        for given, hidden in zip(inputs, (True, True, False), strict=True):
            _pad(given, hidden)
    if part:
        model = model.get_submodule(part)
        inputs = [{k: v for k, v in given.items() if not k.startswith("decoder")} for given in inputs]
    return model, inputs[0], inputs[1:]


def _inputs(kind: str, model: Any, batch: int, length: int, more: int) -> dict[str, Any]:
    if kind == "whisper":
        return {
            "input_features": torch.randn(batch, 16, 40),
            "decoder_input_ids": torch.randint(1, 100, (batch, length // 2)),
        }
    if kind == "encodec":
        return {"input_values": torch.randn(batch, 1, 64 + 32 * more)}
    if kind in ("wav2vec2", "hubert"):
        return {"input_values": torch.randn(batch, 400 + 100 * more)}
    fixed = kind in ("vit", "deit", "clip", "dinov2", "siglip", "beit")
    images = torch.randn(batch, 3, 32 if fixed else 32 + 32 * more, 32 if fixed else 32 + 64 * more)
    if model.main_input_name == "pixel_values" and kind not in ("clip", "siglip"):
        return {"pixel_values": images}
    tokens = {"input_ids": torch.randint(1, 99, (batch, length))}
    if kind in ("clip", "siglip"):
        tokens["input_ids"][:, -1] = 99
        return {**tokens, "pixel_values": images}
    if model.config.is_encoder_decoder:
        tokens["decoder_input_ids"] = torch.randint(1, 99, (batch, length // 2))
    return tokens


def _pad(given: dict[str, Any], hidden: bool) -> None:
    """A mask that hides the end of the first sequence, or nothing."""
    key = "input_ids" if "input_ids" in given else "input_values"
    mask = torch.ones_like(given[key], dtype=torch.long)
    if hidden:
        mask[0, -mask.shape[1] // 4 :] = 0
    given["attention_mask"] = mask
