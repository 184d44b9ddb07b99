"""DreamRec: generate the item that a user would want next, then look for the nearest real ones (Yang et al., 2023).

A guidance encoder reads the history into h. Diffusion, told h, generates an *oracle item*, a vector that need not be
any item's; the catalogue is ranked by its likeness to that vector. No negative item is ever drawn.

    L = mean || x_0 - f(x_t, h', t) ||^2,   x_0 = vector of the next item,   h' = Phi with probability p, else h
    guided x_0 = (1 + w) f(x_t, h, t) - w f(x_t, Phi, t)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recnb import backbones
from recnb.diffusion import DENOISERS, Affine, Chain, Schedule, ancestral, closed_form, ddim

TRAINED_SPACES = ("learned", "decorrelated")
RETRIEVALS = ("product", "distance")
FROZEN_SPACES = ("scaled", "normalised", "whitened")


@dataclass(frozen=True)
class DreamConfig:
    """What decides the model; the defaults are the published ones for YooChoose.

    Attributes:
        denoiser: one of `diffusion.DENOISERS`; all published commands use "affine".
        schedule: one of `diffusion.SCHEDULES`.
        steps: T.
        drop: p, how often a training row loses its condition.
        space: where items live. "learned": vectors start at N(0, 1) and move with the loss, as published;
            "decorrelated": the same, but at every use the items that are asked for have mean 0 and covariance I, so
            that they can neither shrink nor fall together; `FROZEN_SPACES`: given vectors that stay (`in_space`).
    """

    denoiser: str = "affine"
    schedule: str = "exp"
    steps: int = 500
    drop: float = 0.1
    space: str = "learned"


@dataclass(frozen=True)
class Sampling:
    """How an oracle item is generated.

    Attributes:
        w: guidance strength; 0 is the plain conditional model.
        few: steps of DDIM; None runs all T of DDPM, as published.
        temperature: standard deviation of the noise that DDIM starts from; below 1 oracles gather where the model
            thinks most of the probability lies.
        draws: oracles a case, whose scores are averaged.
        mean: rank by the mean of the closed form and draw nothing (affine denoiser only).
        by: "product" ranks items by their inner product with the oracle, as the published code does; "distance" by
            their nearness to it, as the paper says. Where all vectors are equally long it is the same.
    """

    w: float = 2.0
    few: int | None = None
    temperature: float = 1.0
    draws: int = 1
    mean: bool = False
    by: str = "product"

    def __post_init__(self) -> None:
        """Refuse an unknown retrieval."""
        if self.by not in RETRIEVALS:
            raise ValueError(f"unknown retrieval {self.by!r}; allowed: {', '.join(RETRIEVALS)}")


class Guidance(nn.Module):
    """The published encoder: one attention block over the last L items, read at the last one.

    Queries are normalised and the residual adds the *normalised* query; keys and values are not. Only the last
    position is read, so only its query is computed. An empty history gives one constant vector.

    Args:
        n_items: size of the catalogue; its number is the padding id.
        dim: width d.
        length: L.
        dropout: on inputs, attention weights and the feed-forward.
    """

    def __init__(self, n_items: int, dim: int = 64, length: int = 10, dropout: float = 0.1) -> None:
        super().__init__()
        self.n_items, self.pad, self.length = n_items, n_items, length
        self.items, self.positions = nn.Embedding(n_items + 1, dim), nn.Embedding(length, dim)
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.norm1, self.norm2, self.inner, self.norm3 = (nn.LayerNorm(dim) for _ in range(4))
        self.first, self.second = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    @property
    def table(self) -> Tensor:
        """Vectors of the real items (n_items, d)."""
        return self.items.weight[: self.n_items]

    def forward(self, history: Tensor) -> Tensor:
        """Item ids padded on the right (B, L) -> h (B, d)."""
        real = history != self.pad
        last = real.sum(1).clamp(min=1) - 1
        rows = torch.arange(len(history), device=history.device)
        x = self.dropout(self.items(history) + self.positions.weight[: history.shape[1]]) * real[..., None]
        asks = self.norm1(x[rows, last])
        logits = torch.einsum("bd,btd->bt", self.query(asks), self.key(x)) / x.shape[-1] ** 0.5
        weights = self.dropout(logits.masked_fill(~real, torch.finfo(x.dtype).min).softmax(-1))
        there = real[rows, last][:, None]
        z = self.norm2(torch.einsum("bt,btd->bd", weights, self.value(x)) * there + asks)
        z = self.inner(z + self.dropout(self.second(F.relu(self.first(z)))))
        return self.norm3(z * there)

    def conditions(self, history: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """h (B, d) and what came next (B,)."""
        return self(history), target


class Sequences(nn.Module):
    """A SASRec as guidance: one state after every item, so a sequence trains at all its positions at once.

    Its sequences begin with a start token (`data.started`), the last of the backbone's items; so an empty history
    has a state too. Its item table stays as it was pretrained.
    """

    def __init__(self, backbone: backbones.Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.n_items, self.pad, self.length = backbone.n_items - 1, backbone.n_items, backbone.config.max_length
        backbone.items.weight.requires_grad_(False)

    @property
    def table(self) -> Tensor:
        """The pretrained vectors of the real items (n_items, d)."""
        return self.backbone.output_embeddings[: self.n_items]

    def forward(self, history: Tensor) -> Tensor:
        """Started histories padded on the right (B, T) -> h (B, d)."""
        return self.backbone.hidden(history)

    def conditions(self, sequence: Tensor, skip: Tensor, loss: str = "") -> tuple[Tensor, Tensor]:
        """States before every counted item (M, d), and those items (M,); a batch of `recommenders`."""
        return self.backbone.steps(sequence, skip)


class DreamRec(nn.Module):
    """Guided diffusion over item vectors.

    Args:
        guidance: `Guidance` or `Sequences`.
        config: see `DreamConfig`. A frozen space is made of the guidance's table.
        often: how often training asks for each item (n_items,), for a decorrelated space.

    Raises:
        ValueError: an unknown denoiser, schedule or space, with those there are.
    """

    frozen: Tensor
    weight: Tensor

    def __init__(self, guidance: Guidance | Sequences, config: DreamConfig, often: Tensor | None = None) -> None:
        super().__init__()
        spaces = (*TRAINED_SPACES, *FROZEN_SPACES)
        for what, value, known in (("denoiser", config.denoiser, DENOISERS), ("space", config.space, spaces)):
            if value not in known:
                raise ValueError(f"unknown {what} {value!r}; allowed: {', '.join(known)}")
        self.guidance, self.config = guidance, config
        self.schedule = Schedule(config.schedule, config.steps)
        if config.space in FROZEN_SPACES:
            self.register_buffer("frozen", in_space(guidance.table.detach(), config.space))
        if config.space == "decorrelated":
            often = torch.ones(len(guidance.table)) if often is None else often.float()
            self.register_buffer("weight", often / often.sum())
        dim = guidance.table.shape[1]
        self.denoiser = DENOISERS[config.denoiser](dim)
        self.null = nn.Parameter(torch.randn(dim))

    @property
    def table(self) -> Tensor:
        """Item vectors of the space that is generated in, (n_items, d)."""
        if self.config.space in FROZEN_SPACES:
            return self.frozen
        table = self.guidance.table
        if self.config.space == "learned":
            return table
        centred = table - self.weight @ table
        covariance = (centred.T * self.weight) @ centred + 1e-5 * torch.eye(table.shape[1], device=table.device)
        return torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), centred.T, upper=False).T

    def forward(self, **batch: Any) -> Tensor:
        """The squared loss of a batch; the guidance's ``conditions`` says what a batch holds."""
        h, target = self.guidance.conditions(**batch)
        h = torch.where(torch.rand(len(h), 1, device=h.device) < self.config.drop, self.null, h)
        x0 = self.table[target]
        t = torch.randint(self.schedule.steps, target.shape, device=h.device)
        return F.mse_loss(self.denoiser(self.schedule.noised(x0, t, torch.randn_like(x0)), h, t), x0)

    def predict(self, h: Tensor, w: float, x: Tensor, t: int) -> Tensor:
        """Guided x_0 at step t: (1 + w) f(x, h, t) - w f(x, Phi, t), each (B, d)."""
        steps = torch.full((len(x),), t, device=x.device)
        found = self.denoiser(x, h, steps)
        return (1 + w) * found - w * self.denoiser(x, self.null.expand_as(h), steps) if w else found

    @torch.no_grad()
    def path(self, h: Tensor, how: Sampling, noise: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Generate step by step for conditions h (B, d): yields x and the x_0 predicted, (B, d) each."""
        x = torch.randn(h.shape, generator=noise).to(h) * how.temperature

        def predict(x: Tensor, t: int) -> Tensor:
            return self.predict(h, how.w, x, t)

        yield from ddim(predict, self.schedule, x, how.few) if how.few else ancestral(predict, self.schedule, x, noise)

    def oracle(self, h: Tensor, how: Sampling, noise: torch.Generator) -> Tensor:
        """Oracle items (B, d) for conditions h (B, d)."""
        if how.mean:
            return self.chain(how.w).sample(h)
        for x, _ in self.path(h, how, noise):
            found = x
        return found

    @torch.no_grad()
    def rank(self, h: Tensor, how: Sampling, seed: int = 0) -> Tensor:
        """Likeness of every item to each case's oracle, mean over the draws: (B, n_items); higher is more alike."""
        noise, table = torch.Generator().manual_seed(seed), self.table
        draws = 1 if how.mean or (how.few and how.temperature == 0) else how.draws
        likeness = torch.stack([self.oracle(h, how, noise) for _ in range(draws)]).mean(0) @ table.T
        # |x - e|^2 = |x|^2 - 2 x e + |e|^2, and |x|^2 is the same for all items
        return likeness - table.square().sum(1) / 2 if how.by == "distance" else likeness

    def chain(self, w: float) -> Chain:
        """The affine denoiser's whole DDPM chain in closed form.

        Raises:
            TypeError: when the denoiser is not affine.
        """
        if not isinstance(self.denoiser, Affine):
            raise TypeError(f"only an affine denoiser has a closed form; this one is {self.config.denoiser!r}")
        return closed_form(self.denoiser, self.null, self.schedule, w)


def in_space(vectors: Tensor, space: str) -> Tensor:
    """Item vectors (n, d) about a mean of 0, at the size that N(0, I) noise has.

    Args:
        vectors: as pretrained.
        space: "scaled", one factor for all, so that lengths still tell items apart; "normalised", every row of length
            sqrt(d); "whitened", also uncorrelated, variance 1 a coordinate.
    """
    centred = vectors - vectors.mean(0)
    if space == "scaled":
        return centred / centred.std()
    if space == "normalised":
        return F.normalize(centred, dim=-1) * vectors.shape[1] ** 0.5
    variance, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
    return centred @ (axes * variance.clamp(min=1e-8).rsqrt()) @ axes.T


def collapse(vectors: Tensor) -> dict[str, float]:
    """How far item vectors (n, d) have shrunk together.

    Returns:
        mean pairwise cosine (0 in a random table); effective rank, exp of the entropy of the singular values' shares
        (d when all directions are used alike); mean length (sqrt(d) at the start), and its relative spread.
    """
    unit, n = F.normalize(vectors.double(), dim=-1), len(vectors)
    values = torch.linalg.svdvals(vectors.double() - vectors.double().mean(0))
    share, lengths = values / values.sum(), vectors.norm(dim=1)
    return {
        "mean cosine": float((unit.sum(0).square().sum() - n) / (n * (n - 1))),
        "effective rank": float(torch.special.entr(share).sum().exp()),
        "length": float(lengths.mean()),
        "spread of lengths": float(lengths.std() / lengths.mean()),
    }
