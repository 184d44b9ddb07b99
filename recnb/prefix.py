"""A beginning that prompts share is read once: its keys and values are kept, as a frozen model never changes them."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


class Prefix:
    """Keys and values of the first tokens of many prompts.

    Args:
        body: a decoder that takes input embeddings, frozen.
        embeds: what every prompt begins with, (T, H).
    """

    @torch.no_grad()
    def __init__(self, body: Any, embeds: Tensor) -> None:
        named = inspect.signature(body.forward).parameters
        self.keyword = "cache" if "cache" in named else "past_key_values"  # its name changed between versions
        read: Any = DynamicCache()
        body(inputs_embeds=embeds[None], use_cache=True, **{self.keyword: read})
        self.length = len(embeds)
        self.layers: list[tuple[Tensor, Tensor]] = [(layer.keys, layer.values) for layer in read.layers]

    def kept(self, rows: int) -> dict[str, Any]:
        """Arguments that hand the beginning to a model, for a batch of so many rows."""
        pairs = [(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)) for keys, values in self.layers]
        return {self.keyword: DynamicCache(pairs), "use_cache": True}
