"""What is read often is read once, its keys and values kept: the beginning of many prompts, a prompt of many beams."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


def _keyword(body: Any) -> str:
    """What a decoder calls its cache; the name changed between versions."""
    return "cache" if "cache" in inspect.signature(body.forward).parameters else "past_key_values"


class Prefix:
    """Keys and values of the first tokens of many prompts.

    Args:
        body: a decoder that takes input embeddings, frozen.
        embeds: what every prompt begins with, (T, H).
    """

    @torch.no_grad()
    def __init__(self, body: Any, embeds: Tensor) -> None:
        self.keyword = _keyword(body)
        read: Any = DynamicCache()
        body(inputs_embeds=embeds[None], use_cache=True, **{self.keyword: read})
        self.length = len(embeds)
        self.layers: list[tuple[Tensor, Tensor]] = [(layer.keys, layer.values) for layer in read.layers]

    def kept(self, rows: int) -> dict[str, Any]:
        """Arguments that hand the beginning to a model, for a batch of so many rows."""
        pairs = [(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)) for keys, values in self.layers]
        return {self.keyword: DynamicCache(pairs), "use_cache": True}


@torch.no_grad()
def read_once(body: Any, embeds: Tensor, mask: Tensor, beams: int) -> dict[str, Any]:
    """Arguments that hand left-padded prompts (B, T, H) to a beam search, read once and not once a beam.

    All tokens but the last are read here; the search reads that one itself. A single beam needs nothing.
    """
    if beams == 1:
        return {}
    keyword = _keyword(body)
    read: Any = DynamicCache()
    place = (mask.cumsum(1) - 1).clamp(min=0)
    told = {"attention_mask": mask[:, :-1], "position_ids": place[:, :-1], "use_cache": True, keyword: read}
    body(inputs_embeds=embeds[:, :-1], **told)
    read.batch_repeat_interleave(beams)
    return {keyword: read, "use_cache": True}
