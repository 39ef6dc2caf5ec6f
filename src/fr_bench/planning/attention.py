"""Attention that has shapes alone, as the device of the run computes it: what it saves depends on the kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_IN_GENERAL = F.scaled_dot_product_attention


@contextmanager
def attention_of(device: str) -> Iterator[None]:
    """Inside, attention on ``meta`` saves what it does on ``device``.

    By itself it has no fused kernel there, and saves the weights of every pair of positions. A CPU has one where
    nothing is dropped. For GPUs, which have several, it stays what it is: more than is measured.
    """
    if device != "cpu":
        yield
        return
    # In torch's own multi-head attention, too, into which no mode of torch's would see.
    F.scaled_dot_product_attention = _on_cpu
    try:
        yield
    finally:
        F.scaled_dot_product_attention = _IN_GENERAL


def _on_cpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    learns_mask = attn_mask is not None and attn_mask.requires_grad
    fits = query.is_meta and query.dim() == 4 and query.shape[-1] == value.shape[-1]
    if dropout_p > 0 or enable_gqa or learns_mask or not fits:
        settings: dict[str, Any] = {"scale": scale, "enable_gqa": enable_gqa}
        return _IN_GENERAL(query, key, value, attn_mask, dropout_p, is_causal, **settings)
    if attn_mask is not None:  # what is added to the weights: of a mask of booleans 0 or minus infinity
        attn_mask = attn_mask.to(query.dtype)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output, _ = kernel(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)
    return output
