"""SASRec, GRU4Rec, Caser and NextItNet behind one interface, each run once over a whole sequence.

Every model maps a right-padded history (B, T) to one state a position (B, T, d) that depends on that position and
earlier ones only. So one pass over a user's sequence trains on all its next items at once, where the usual code
expands every prefix into a row of its own; and padding on the right can never reach a real position.

    states(history)  (B, T, d)   one state after every item
    hidden(history)  (B, d)      the state after the last real item
    scores(history)  (B, n_items)
    item_embeddings  (n_items, d)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recnb.losses import LOSSES

NAMES = ("SASRec", "GRU4Rec", "Caser", "NextItNet")


@dataclass(frozen=True)
class BackboneConfig:
    """Shape of a backbone; the defaults are this project's, found on validation users.

    Attributes:
        name: one of `NAMES`.
        dim: width d of item embeddings and states (64 in all papers here).
        layers: attention blocks, GRU layers or pairs of dilated blocks; Caser has none to stack.
        heads: attention heads (SASRec).
        dropout: share of units dropped in training.
        max_length: longest history that SASRec's position table holds; others have no limit of their own.
        window: how many latest items Caser sees.
        tied: score with the item embeddings themselves, else with a separate output table.
        bias: add a learned constant to each item's score, so that popularity need not be learnt as a direction.
    """

    name: str = "SASRec"
    dim: int = 64
    layers: int = 2
    heads: int = 1
    dropout: float = 0.2
    max_length: int = 50
    window: int = 10
    tied: bool = True
    bias: bool = False


class Backbone(nn.Module):
    """Base of the four: item table, scoring and training loss. A subclass defines `encode`."""

    def __init__(self, n_items: int, config: BackboneConfig) -> None:
        super().__init__()
        self.n_items, self.config = n_items, config
        self.items = nn.Embedding(n_items + 1, config.dim, padding_idx=n_items)
        self.output = None if config.tied else nn.Embedding(n_items, config.dim)
        self.bias = nn.Parameter(torch.zeros(n_items)) if config.bias else None
        self.dropout = nn.Dropout(config.dropout)

    def _init_tables(self, std: float = 0.02) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            self.items.weight[self.n_items].zero_()

    @property
    def item_embeddings(self) -> Tensor:
        """Input embedding of every real item, (n_items, d)."""
        return self.items.weight[: self.n_items]

    @property
    def output_embeddings(self) -> Tensor:
        """The table that states are scored with, (n_items, d); the input table when tied."""
        return self.item_embeddings if self.output is None else self.output.weight

    def embed(self, history: Tensor) -> Tensor:
        """sqrt(d) E[item]: the table is small so that scores start small; inputs are brought back to unit size."""
        return self.items(history) * self.config.dim**0.5

    def encode(self, history: Tensor) -> Tensor:
        """Map item ids (B, T) to causal states (B, T, d)."""
        raise NotImplementedError

    def states(self, history: Tensor) -> Tensor:
        """One state after every item of right-padded ids (B, T): (B, T, d); garbage at padding."""
        return self.encode(history)

    def hidden(self, history: Tensor) -> Tensor:
        """State after the last real item, (B, d). An empty history is read as one padding item."""
        last = (history != self.n_items).sum(1).clamp(min=1) - 1
        return self.states(history)[torch.arange(len(history), device=history.device), last]

    def score(self, states: Tensor) -> Tensor:
        """Score of every item for each state (..., d): (..., n_items)."""
        return F.linear(states, self.output_embeddings, self.bias)

    def scores(self, history: Tensor) -> Tensor:
        """Score of every item as the next one, (B, n_items)."""
        return self.score(self.hidden(history))

    def forward(self, sequence: Tensor, loss: str = "ce", skip: Tensor | None = None) -> Tensor:
        """Mean next-item loss over all positions of right-padded sequences (B, T + 1).

        Args:
            sequence: item ids; position t predicts position t + 1.
            loss: "ce", softmax over the whole catalogue; or "bce", one sampled negative (`recnb.losses`).
            skip: (B,) how many first steps of each sequence are context only and not counted.
        """
        if loss not in LOSSES:
            raise ValueError(f"loss is {loss!r}; allowed: {', '.join(LOSSES)}")
        states, target = self.steps(sequence, skip)
        return LOSSES[loss](states, self.output_embeddings, self.bias, target)

    def steps(self, sequence: Tensor, skip: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The state before every counted item (M, d), and those items (M,), of sequences as for `forward`."""
        target = sequence[:, 1:]
        real = target != self.n_items
        if skip is not None:
            real &= torch.arange(target.shape[1], device=target.device) >= skip[:, None]
        return self.states(sequence[:, :-1])[real], target[real]


class SASRec(Backbone):
    """Self-attention over the history (Kang and McAuley, 2018), in the standard pre-norm form."""

    def __init__(self, n_items: int, config: BackboneConfig) -> None:
        super().__init__(n_items, config)
        self.positions = nn.Embedding(config.max_length, config.dim)
        self.blocks: Any = nn.ModuleList(AttentionBlock(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim)
        self._init_tables()

    def encode(self, history: Tensor) -> Tensor:
        """x = sqrt(d) E[item] + P[position], then blocks of causal attention and feed-forward."""
        if history.shape[1] > self.config.max_length:
            raise ValueError(f"history of {history.shape[1]}; max_length is {self.config.max_length}: cut it")
        place = torch.arange(history.shape[1], device=history.device)
        x = self.dropout(self.embed(history) + self.positions(place))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    @torch.no_grad()
    def attention(self, history: Tensor) -> Tensor:
        """Attention weights (layers, B, heads, T, T): row = the position that looks, column = looked at."""
        place = torch.arange(history.shape[1], device=history.device)
        x = self.embed(history) + self.positions(place)
        maps = []
        for block in self.blocks:
            query, key, _ = block.project(block.norm1(x))
            logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
            future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
            maps.append(logits.masked_fill(future, float("-inf")).softmax(-1))
            x = block(x)
        return torch.stack(maps)


class AttentionBlock(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)); d -> 4d -> d with GELU."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads, self.drop = config.heads, config.dropout
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.merge = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.widen, self.narrow = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.dropout = nn.Dropout(config.dropout)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, each (B, heads, T, d / heads)."""
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        return tuple(part.transpose(1, 2) for part in parts.unbind(-3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, d) -> (B, T, d), causal."""
        drop = self.drop if self.training else 0.0
        query, key, value = self.project(self.norm1(x))
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=drop, is_causal=True)
        x = x + self.dropout(self.merge(mixed.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.narrow(F.gelu(self.widen(self.norm2(x)))))


class GRU4Rec(Backbone):
    """A gated recurrent unit reads the history (Hidasi et al., 2016)."""

    def __init__(self, n_items: int, config: BackboneConfig) -> None:
        super().__init__(n_items, config)
        self.gru = nn.GRU(config.dim, 2 * config.dim, config.layers, batch_first=True)
        self.narrow = nn.Linear(2 * config.dim, config.dim)
        self._init_tables()

    def encode(self, history: Tensor) -> Tensor:
        """h_t = GRU(h_{t-1}, E[item_t]), brought back from width 2d to d."""
        states, _ = self.gru(self.dropout(self.embed(history)))
        return self.narrow(self.dropout(states))


class Caser(Backbone):
    """Convolutions over the last items seen as an image (Tang and Wang, 2018), without a user embedding.

    At every position the window of the L latest items is an L x d image. Horizontal filters of height 2, 3, 4 slide
    down it and keep their strongest answer; vertical filters take weighted sums over the L rows. Sliding once over
    the whole sequence and taking a running maximum gives every window's answer at the cost of one.
    """

    heights = (2, 3, 4)

    def __init__(self, n_items: int, config: BackboneConfig, horizontal: int = 16, vertical: int = 4) -> None:
        super().__init__(n_items, config)
        dim, window = config.dim, config.window
        self.across = nn.ModuleList(nn.Conv1d(dim, horizontal, height) for height in self.heights)
        self.down = nn.Conv1d(1, vertical, window)
        self.merge = nn.Linear(len(self.heights) * horizontal + vertical * dim, dim)
        self._init_tables()

    def encode(self, history: Tensor) -> Tensor:
        """Concatenate max-pooled horizontal and all vertical answers, then Linear and ReLU."""
        window = self.config.window
        image = F.pad(self.embed(history).transpose(1, 2), (window - 1, 0))  # (B, d, L - 1 + T)
        strongest = [
            F.max_pool1d(F.relu(filters(image)), window - height + 1, stride=1)
            for height, filters in zip(self.heights, self.across, strict=True)
        ]
        sums = self.down(image.flatten(0, 1)[:, None])  # every column alone: (B d, vertical, T)
        sums = sums.unflatten(0, image.shape[:2]).flatten(1, 2)
        features = torch.cat([*strongest, sums], dim=1).transpose(1, 2)
        return F.relu(self.merge(self.dropout(features)))


class NextItNet(Backbone):
    """Causal convolutions whose reach doubles from block to block (Yuan et al., 2019)."""

    def __init__(self, n_items: int, config: BackboneConfig) -> None:
        super().__init__(n_items, config)
        self.blocks = nn.ModuleList(
            DilatedBlock(config.dim, dilation) for _ in range(config.layers) for dilation in (1, 4)
        )
        self._init_tables()

    def encode(self, history: Tensor) -> Tensor:
        """Residual blocks of two causal convolutions each, dilations r and 2r."""
        x = self.dropout(self.embed(history))
        for block in self.blocks:
            x = block(x)
        return self.dropout(x)


class DilatedBlock(nn.Module):
    """x + ReLU(norm(conv_2r(ReLU(norm(conv_r(x)))))), kernels of 3, causal."""

    def __init__(self, dim: int, dilation: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.first = nn.Conv1d(dim, dim, 3, dilation=dilation)
        self.second = nn.Conv1d(dim, dim, 3, dilation=2 * dilation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, d) -> (B, T, d)."""
        y = F.relu(self.norm1(causal(self.first, x)))
        return x + F.relu(self.norm2(causal(self.second, y)))


def causal(convolution: nn.Conv1d, x: Tensor) -> Tensor:
    """Apply a 1-d convolution to (B, T, d) so that output t sees inputs up to t only."""
    reach = (convolution.kernel_size[0] - 1) * convolution.dilation[0]
    return convolution(F.pad(x.transpose(1, 2), (reach, 0))).transpose(1, 2)


def build(n_items: int, config: BackboneConfig) -> Backbone:
    """Make an untrained backbone.

    Raises:
        ValueError: when ``config.name`` is not one of `NAMES`.
    """
    kinds: dict[str, type[Backbone]] = dict(zip(NAMES, (SASRec, GRU4Rec, Caser, NextItNet), strict=True))
    if config.name not in kinds:
        raise ValueError(f"unknown backbone {config.name!r}; allowed: {', '.join(NAMES)}")
    return kinds[config.name](n_items, config)
