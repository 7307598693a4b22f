"""Small configs of `transformers` architectures that take inputs of their own: several tensors, boxes, spectrograms,
time series. Each comes with what makes its inputs, given the batch size and how much more than at first (0 or 1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from huggingface_configs import BART, BERT, CONFIGS, TOWER, VIT

Inputs = Callable[[int, int], dict[str, Any]]

_TEXT = {
    **TOWER, "vocab_size": 100, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 99, "pad_token_id": 0,
    "type_vocab_size": 2, "encoder_hidden_size": 64, "project_dim": 32,
}  # fmt: skip
_IMAGE = {**TOWER, "image_size": 32, "patch_size": 8}
_BOTH = {"text_config": _TEXT, "vision_config": _IMAGE, "projection_dim": 32}
_SWIN = {
    "model_type": "swin", "image_size": 64, "patch_size": 2, "embed_dim": 16, "depths": [1, 1, 1, 1],
    "num_heads": [2, 2, 2, 2], "window_size": 4, "out_features": ["stage1", "stage2", "stage3", "stage4"],
}  # fmt: skip
_RESNET = {"model_type": "resnet", **CONFIGS["resnet"], "out_features": ["stage4"]}
_QUERIES = {
    "d_model": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_layers": 1, "decoder_layers": 2,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_queries": 10, "num_labels": 5, "use_timm_backbone": False,
    "use_pretrained_backbone": False, "backbone": None, "backbone_config": _RESNET,
}  # fmt: skip
_LEVELS = {**_RESNET, "out_features": ["stage2", "stage3", "stage4"]}
_REAL_TIME = {
    **_QUERIES, "encoder_hidden_dim": 32, "encoder_in_channels": [64, 96, 128], "feat_strides": [8, 16, 32],
    "decoder_in_channels": [32, 32, 32], "num_denoising": 0, "hidden_expansion": 0.5,
    "backbone_config": {**_LEVELS, "model_type": "rt_detr_resnet"},
}  # fmt: skip
_HGNET = {
    "stem_channels": [3, 16, 16], "stage_in_channels": [16, 32, 48, 64], "stage_mid_channels": [16, 16, 24, 32],
    "stage_out_channels": [32, 48, 64, 96], "stage_num_blocks": [1, 1, 2, 1], "hidden_sizes": [32, 48, 64, 96],
    "embedding_size": 16, "depths": [1, 1, 2, 1],
}  # fmt: skip
_MASKS = {
    "backbone_config": _SWIN, "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32,
    "encoder_feedforward_dim": 48, "dim_feedforward": 48, "encoder_layers": 1, "decoder_layers": 2,
    "num_attention_heads": 4, "num_queries": 6, "num_labels": 5,
}  # fmt: skip
_SERIES = {
    "prediction_length": 6, "context_length": 12, "input_size": 1, "lags_sequence": [1, 2], "num_time_features": 2,
    **{k: v for k, v in _QUERIES.items() if k.startswith(("d_model", "encoder", "decoder"))},
}  # fmt: skip
_PATCHES = {"num_input_channels": 3, "context_length": 32, "patch_length": 8, "patch_stride": 8, "prediction_length": 8}

OTHERS: dict[str, dict[str, Any]] = {
    "luke": {**BERT, "entity_vocab_size": 10, "entity_emb_size": 32},
    "markuplm": {**BERT, "max_depth": 5, "xpath_unit_hidden_size": 8, "max_xpath_tag_unit_embeddings": 20,
                 "max_xpath_subs_unit_embeddings": 20, "tag_pad_id": 19, "subs_pad_id": 19},
    "layoutlmv3": {**BERT, "coordinate_size": 11, "shape_size": 10, "max_2d_position_embeddings": 64,
                   "visual_embed": False},
    "tapas": {**BERT, "type_vocab_sizes": [3, 16, 16, 2, 16, 10, 10]},
    "bros": BERT,
    "nystromformer": {**BERT, "num_landmarks": 3, "segment_means_seq_len": 12, "conv_kernel_size": 5},
    "lxmert": {**BERT, "l_layers": 1, "x_layers": 1, "r_layers": 1, "visual_feat_dim": 16},
    "visual_bert": {**BERT, "visual_embedding_dim": 16},
    "conditional_detr": _QUERIES,
    "table-transformer": _QUERIES,
    "deformable_detr": {**_QUERIES, "num_feature_levels": 3, "encoder_n_points": 2, "decoder_n_points": 2,
                        "backbone_config": _LEVELS},
    "rt_detr": _REAL_TIME,
    "rt_detr_v2": _REAL_TIME,
    "d_fine": {**_REAL_TIME, "encoder_in_channels": [48, 64, 96], "max_num_bins": 8,
               "backbone_config": {"model_type": "hgnet_v2", **_HGNET, "out_features": ["stage2", "stage3", "stage4"]}},
    "mask2former": _MASKS,
    "maskformer": {"fpn_feature_size": 32, "mask_feature_size": 32, "num_labels": 5, "backbone_config": _SWIN,
                   "decoder_config": {"model_type": "detr", **_QUERIES}},
    "upernet": {"backbone_config": _SWIN, "hidden_size": 32, "auxiliary_channels": 16, "auxiliary_in_channels": 64,
                "num_labels": 5, "pool_scales": [1, 2]},
    "hgnet_v2": _HGNET,
    "swin2sr": {"image_size": 16, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4,
                "upscale": 2},
    "mgp-str": {**VIT, "image_size": [32, 64], "max_token_length": 6, "num_character_labels": 10, "num_bpe_labels": 12,
                "num_wordpiece_labels": 12},
    "blip": {**_BOTH, "image_text_hidden_size": 32},
    "clipseg": {**_BOTH, "reduce_dim": 16, "extract_layers": [0, 1], "decoder_intermediate_size": 32},
    "chinese_clip": _BOTH,
    "owlvit": _BOTH,
    "git": {**BERT, "vision_config": _IMAGE},
    "blip_2_qformer": {**BERT, "encoder_hidden_size": 64, "use_qformer_text_input": False},
    "moonshine": {"vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "encoder_num_hidden_layers": 2,
                  "decoder_num_hidden_layers": 2, "encoder_num_attention_heads": 4, "decoder_num_attention_heads": 4,
                  "max_position_embeddings": 64},
    "parakeet_ctc": {"vocab_size": 30, "pad_token_id": 0, "encoder_config": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "num_mel_bins": 16, "subsampling_conv_channels": 16, "subsampling_factor": 4, "conv_kernel_size": 5}},
    "patchtst": {**_PATCHES, "d_model": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "ffn_dim": 48},
    "patchtsmixer": {**_PATCHES, "d_model": 16, "num_layers": 2, "mode": "mix_channel", "self_attn": True},
    "time_series_transformer": _SERIES,
    "informer": _SERIES,
    "decision_transformer": {"state_dim": 5, "act_dim": 3, "hidden_size": 64, "n_layer": 2, "n_head": 4,
                             "max_ep_len": 50},
    "trocr": {**BART, "cross_attention_hidden_size": 64},
}  # fmt: skip


def _ids(batch: int, length: int) -> torch.Tensor:
    ids = torch.randint(2, 99, (batch, length))
    ids[:, -1] = 99
    return ids


def _text(beside: Callable[[int, int], dict[str, Any]]) -> Inputs:
    """Tokens, and what stands beside them, given the batch size and their number."""
    return lambda batch, more: {"input_ids": _ids(batch, 9 + 3 * more), **beside(batch, 9 + 3 * more)}


def _images(height: int, width: int | None = None) -> Inputs:
    return lambda batch, more: {"pixel_values": torch.randn(batch, 3, height, width or height)}


def _pair(batch: int, more: int) -> dict[str, Any]:
    return {"input_ids": _ids(batch, 9), "pixel_values": torch.randn(batch, 3, 32, 32)}


def _series(batch: int, more: int) -> dict[str, Any]:
    past, future = {"past_time_features": torch.randn(batch, 14, 2)}, {"future_time_features": torch.randn(batch, 6, 2)}
    past |= {"past_values": torch.randn(batch, 14), "past_observed_mask": torch.ones(batch, 14)}
    return {**past, **future, "future_values": torch.randn(batch, 6)}


def _steps(batch: int, more: int) -> dict[str, Any]:
    n = 4 + more
    sizes = {"states": 5, "actions": 3, "rewards": 1, "returns_to_go": 1}
    given: dict[str, Any] = {name: torch.randn(batch, n, size) for name, size in sizes.items()}
    return {**given, "timesteps": torch.arange(n).expand(batch, -1), "attention_mask": torch.ones(batch, n)}


INPUTS: dict[str, Inputs] = {
    "luke": _text(lambda b, n: {"entity_ids": _ids(b, 3) % 9, "entity_position_ids": torch.randint(0, 8, (b, 3, 2))}),
    "markuplm": _text(lambda b, n: {f"xpath_{k}_seq": torch.randint(0, 19, (b, n, 5)) for k in ("tags", "subs")}),
    "layoutlmv3": _text(lambda b, n: {"bbox": torch.randint(0, 30, (b, n, 2)).repeat(1, 1, 2)}),
    "tapas": _text(lambda b, n: {"token_type_ids": torch.randint(0, 2, (b, n, 7))}),
    "bros": _text(lambda b, n: {"bbox": torch.rand(b, n, 8)}),
    "nystromformer": lambda batch, more: {"input_ids": _ids(batch, 12)},
    "lxmert": _text(lambda b, n: {"visual_feats": torch.randn(b, 5, 16), "visual_pos": torch.rand(b, 5, 4)}),
    "visual_bert": _text(lambda b, n: {"visual_embeds": torch.randn(b, 5, 16)}),
    **dict.fromkeys(("blip", "clipseg", "chinese_clip", "owlvit", "git"), _pair),
    **dict.fromkeys(("conditional_detr", "table-transformer", "deformable_detr", "rt_detr", "rt_detr_v2"), _images(64)),
    **dict.fromkeys(("d_fine", "mask2former", "maskformer", "upernet", "hgnet_v2"), _images(64)),
    "swin2sr": _images(16),
    "mgp-str": _images(32, 64),
    "blip_2_qformer": lambda batch, more: {
        "query_embeds": torch.randn(batch, 4, 64), "encoder_hidden_states": torch.randn(batch, 7 + more, 64)
    },
    "moonshine": lambda batch, more: {
        "input_values": torch.randn(batch, 2000 + 500 * more), "decoder_input_ids": _ids(batch, 4)
    },
    "parakeet_ctc": lambda batch, more: {"input_features": torch.randn(batch, 32 + 8 * more, 16)},
    **dict.fromkeys(("patchtst", "patchtsmixer"), lambda b, more: {"past_values": torch.randn(b, 32, 3)}),
    **dict.fromkeys(("time_series_transformer", "informer"), _series),
    "decision_transformer": _steps,
}  # fmt: skip
