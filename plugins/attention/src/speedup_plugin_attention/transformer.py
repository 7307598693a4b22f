"""nn.TransformerEncoderLayer and nn.TransformerEncoder without their fast paths.

In eval mode, without gradients, a layer hands its weights to one fused function, and a stack of them packs what is not
padded into a nested tensor. Neither can be seen into, nor knows of heads of other sizes or of norms that count channels
which went. So a small layer takes its parts one by one, and a small stack gives what packing gives: 0 at padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from speedup import Call, Expanded, Expansion

if TYPE_CHECKING:
    Layer = nn.TransformerEncoderLayer
    Stack = nn.TransformerEncoder
    DecoderStack = nn.TransformerDecoder
    Both = nn.Transformer
else:
    Layer = Stack = DecoderStack = Both = object

Tensor = torch.Tensor


class LayerForward(Expanded, Layer):
    """A layer, part by part."""

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        if src.is_nested:
            return self._unpacked(src)
        x = src
        if self.norm_first:
            x = x + self._sa_block(self.norm1(x), src_mask, src_key_padding_mask, is_causal=is_causal)
            x = x + self._ff_block(self.norm2(x))
        else:
            x = self.norm1(x + self._sa_block(x, src_mask, src_key_padding_mask, is_causal=is_causal))
            x = self.norm2(x + self._ff_block(x))
        return x.contiguous()  # as the fused function gives it, whatever comes in: code behind it may take views

    def _unpacked(self, src: Tensor) -> Tensor:
        """For a stack that packs, of a class of the user's."""
        lengths = src._nested_tensor_size()[:, :1].to(src.device)
        padded = src.to_padded_tensor(0.0)
        padding = torch.arange(padded.shape[1], device=src.device) >= lengths
        out = self.forward(padded, src_key_padding_mask=padding)
        return torch._nested_tensor_from_mask(out, ~padding, mask_check=False)


class StackForward(Expanded, Stack):
    """The layers in turn, and then 0 where the original packs and unpacks."""

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        padding, gone = src_key_padding_mask, None
        if padding is not None and mask is None and _packs(self, src):
            gone = padding if padding.dtype == torch.bool else padding != 0
            lengths = (~gone).sum(1, keepdim=True)
            if self.mask_check:
                # Only what is padded at the end is packed.
                gone = gone & (gone == (torch.arange(gone.shape[1], device=gone.device) >= lengths)).all()
            padding = padding.masked_fill(gone, True if padding.dtype == torch.bool else float("-inf"))
        out = src
        for layer in self.layers:
            # Whether a mask is causal need not be found out: it is applied in either case.
            out = layer(out, src_mask=mask, is_causal=bool(is_causal), src_key_padding_mask=padding)
        if gone is not None:
            out = out.masked_fill(gone[..., None], 0.0)
        return out if self.norm is None else self.norm(out)


class DecoderForward(Expanded, DecoderStack):
    """The layers in turn, without a look into the mask whether it is causal."""

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        out = tgt
        for layer in self.layers:
            out = layer(
                out,
                memory,
                tgt_mask=tgt_mask,
                memory_mask=memory_mask,
                tgt_key_padding_mask=tgt_key_padding_mask,
                memory_key_padding_mask=memory_key_padding_mask,
                tgt_is_causal=bool(tgt_is_causal),
                memory_is_causal=memory_is_causal,
            )
        return out if self.norm is None else self.norm(out)


class BothForward(Expanded, Both):
    """Encoder and decoder, whatever is left of the width."""

    def forward(
        self,
        src: Tensor,
        tgt: Tensor,
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        src_is_causal: bool | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        if src.dim() == 3 and src.size(1 - int(self.batch_first)) != tgt.size(1 - int(self.batch_first)):
            raise RuntimeError("the batch number of src and tgt must be equal")
        memory = self.encoder(src, mask=src_mask, src_key_padding_mask=src_key_padding_mask, is_causal=src_is_causal)
        out: Tensor = self.decoder(
            tgt,
            memory,
            tgt_mask=tgt_mask,
            memory_mask=memory_mask,
            tgt_key_padding_mask=tgt_key_padding_mask,
            memory_key_padding_mask=memory_key_padding_mask,
            tgt_is_causal=tgt_is_causal,
            memory_is_causal=memory_is_causal,
        )
        return out


def _packs(stack: nn.TransformerEncoder, src: Tensor) -> bool:
    """Whether the original would make a nested tensor, as far as the contents of the mask do not forbid it."""
    first = stack.layers[0]
    graded = torch.is_grad_enabled() and (src.requires_grad or any(p.requires_grad for p in first.parameters()))
    eager = not torch.is_autocast_enabled() and not (stack.mask_check and torch.compiler.is_compiling())
    wanted = torch.backends.mha.get_fastpath_enabled() and getattr(stack, "use_nested_tensor", False)
    return bool(wanted and eager and not graded and not first.training and src.dim() == 3 and not src.is_nested)


def _only_hidden(calls: Sequence[Call], layer: str) -> bool:
    """Whether nothing went of a layer but hidden units between its two linear layers, which its fast path can take."""
    attention, norms = f"{layer}.self_attn".lstrip("."), {f"{layer}.{n}".lstrip(".") for n in ("norm1", "norm2")}
    return all(c.whole for c in calls if c.node.scope == attention or c.node.path in norms)


class EncoderLayer(Expansion):
    name = "transformer_encoder_layer"
    forwards = {nn.TransformerEncoderLayer: LayerForward}  # noqa: RUF012

    def settle(self, module: nn.Module, path: str, calls: Sequence[Call]) -> bool:
        return not _only_hidden(calls, path)


class Encoder(Expansion):
    name = "transformer_encoder"
    forwards = {nn.TransformerEncoder: StackForward}  # noqa: RUF012

    def settle(self, module: nn.Module, path: str, calls: Sequence[Call]) -> bool:
        assert isinstance(module, nn.TransformerEncoder)
        return not all(_only_hidden(calls, f"{path}.layers.{i}".lstrip(".")) for i in range(len(module.layers)))


class Decoder(Expansion):
    name = "transformer_decoder"
    forwards = {nn.TransformerDecoder: DecoderForward}  # noqa: RUF012

    def settle(self, module: nn.Module, path: str, calls: Sequence[Call]) -> bool:
        return False  # its own forward runs as well


class Transformer(Expansion):
    name = "transformer"
    forwards = {nn.Transformer: BothForward}  # noqa: RUF012

    def settle(self, module: nn.Module, path: str, calls: Sequence[Call]) -> bool:
        # The last one of its parts: a subclass may do more itself.
        last = next(c.shapes[-1] for c in reversed(calls) if c.node.scope != path or c.node.module is not None)
        assert last is not None
        module.__dict__["d_model"] = last[-1]
        return True  # the original compares the widths with d_model
