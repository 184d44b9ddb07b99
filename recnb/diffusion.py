"""Gaussian diffusion of vectors: schedules, two samplers, three denoisers, and the affine chain in closed form.

Step t = 0 ... T - 1 mixes a vector with noise, x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps. A denoiser predicts x_0
from x_t, t and a condition h; a sampler starts from noise and asks it again and again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Predict = Callable[[Tensor, int], Tensor]


def _betas(name: str, steps: int) -> Tensor:
    place = torch.arange(steps + 1, dtype=torch.float64) / steps
    if name == "linear":  # as published: not stretched to T, so that few steps leave much of the signal
        return torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)
    if name == "exp":
        x = torch.linspace(1, 2 * steps + 1, steps, dtype=torch.float64)
        return 1 - torch.exp(-0.1 / steps - 0.5 * (10 - 0.1) * x / steps**2)
    if name == "cosine":
        kept = torch.cos((place + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - kept[1:] / kept[:-1]).clamp(1e-4, 0.9999)
    if name == "sqrt":
        kept = 1 - torch.sqrt(place + 1e-4)
        return (1 - kept[1:] / kept[:-1]).clamp(max=0.999)
    raise ValueError(f"unknown schedule {name!r}; allowed: {', '.join(SCHEDULES)}")


SCHEDULES = ("linear", "exp", "cosine", "sqrt")


class Schedule:
    """How much noise each step holds, and the posterior of the step before.

    Args:
        name: one of `SCHEDULES`.
        steps: T.

    Attributes:
        kept: abar_t, the share of the signal's power left at step t, (T,).
        before: abar_{t-1}, with 1 before the first step, (T,).
        to_x0, to_x: mean of q(x_{t-1} | x_t, x_0) = to_x0 x_0 + to_x x_t, (T,) each.
        spread: its standard deviation; 0 at t = 0, (T,).
    """

    def __init__(self, name: str = "cosine", steps: int = 500) -> None:
        beta = _betas(name, steps)
        self.name, self.steps = name, steps
        self.kept = (1 - beta).cumprod(0)
        self.before = torch.cat([torch.ones(1, dtype=torch.float64), self.kept[:-1]])
        self.to_x0 = beta * self.before.sqrt() / (1 - self.kept)
        self.to_x = (1 - self.before) * (1 - beta).sqrt() / (1 - self.kept)
        self.spread = (beta * (1 - self.before) / (1 - self.kept)).sqrt()

    def noised(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """q(x_t | x_0) for rows x_0 (B, d), each at its own step t (B,)."""
        kept = self.kept.to(x0.device, x0.dtype)[t][:, None]
        return kept.sqrt() * x0 + (1 - kept).sqrt() * noise

    def every(self, few: int) -> list[int]:
        """``few`` steps from the last to the first, spread evenly."""
        return torch.linspace(self.steps - 1, 0, few).round().long().tolist()


def ancestral(
    predict: Predict, schedule: Schedule, x: Tensor, noise: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """DDPM, all T steps from noise x (B, d); yields x_{t-1} and the x_0 predicted at t."""
    for t in reversed(range(schedule.steps)):
        x0 = predict(x, t)
        x = float(schedule.to_x0[t]) * x0 + float(schedule.to_x[t]) * x
        if t:
            x = x + float(schedule.spread[t]) * torch.randn(x.shape, generator=noise).to(x)
        yield x, x0


def ddim(predict: Predict, schedule: Schedule, x: Tensor, few: int) -> Iterator[tuple[Tensor, Tensor]]:
    """DDIM without noise in ``few`` steps: keep the noise that x holds and only move along; yields as `ancestral`."""
    times = schedule.every(few)
    for t, after in zip(times, [*times[1:], -1], strict=True):
        x0 = predict(x, t)
        kept = float(schedule.kept[t])
        noise = (x - kept**0.5 * x0) / (1 - kept) ** 0.5
        then = float(schedule.kept[after]) if after >= 0 else 1.0
        x = then**0.5 * x0 + (1 - then) ** 0.5 * noise
        yield x, x0


def step_features(t: Tensor, dim: int) -> Tensor:
    """Sines and cosines of step numbers t (B,): (B, dim)."""
    rate = torch.exp(-math.log(10_000) * torch.arange(dim // 2, device=t.device) / (dim // 2 - 1))
    angle = t[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], -1)


class StepEmbedding(nn.Module):
    """tau(t): sines and cosines, Linear(d, 2d), GELU, Linear(2d, d)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.widen, self.narrow = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, t: Tensor) -> Tensor:
        """(B,) -> (B, d)."""
        return self.narrow(F.gelu(self.widen(step_features(t, self.widen.in_features))))


class Affine(nn.Module):
    """The published denoiser: one Linear(3d, d) over x_t, h and tau(t), with nothing after it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.step, self.mix = StepEmbedding(dim), nn.Linear(3 * dim, dim)

    def forward(self, x: Tensor, h: Tensor, t: Tensor) -> Tensor:
        """(B, d), (B, d), (B,) -> the predicted x_0, (B, d)."""
        return self.mix(torch.cat([x, h, self.step(t)], 1))


class Perceptron(nn.Module):
    """The published code's second denoiser, not used in its commands: Linear(3d, 2d), GELU, Linear(2d, d)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.step, self.first, self.second = StepEmbedding(dim), nn.Linear(3 * dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor, h: Tensor, t: Tensor) -> Tensor:
        """As `Affine`."""
        return self.second(F.gelu(self.first(torch.cat([x, h, self.step(t)], 1))))


class Modulated(nn.Module):
    """Residual blocks whose normalisation is scaled, shifted and gated by h + tau(t) (AdaLN)."""

    def __init__(self, dim: int, blocks: int = 3, width: int = 4) -> None:
        super().__init__()
        self.step = StepEmbedding(dim)
        self.start = nn.Linear(dim, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim, elementwise_affine=False) for _ in range(blocks))
        self.tell = nn.ModuleList(nn.Linear(dim, 3 * dim) for _ in range(blocks))
        self.widen = nn.ModuleList(nn.Linear(dim, width * dim) for _ in range(blocks))
        self.narrow = nn.ModuleList(nn.Linear(width * dim, dim) for _ in range(blocks))
        self.end = nn.Linear(dim, dim)

    def forward(self, x: Tensor, h: Tensor, t: Tensor) -> Tensor:
        """As `Affine`."""
        told = F.silu(h + self.step(t))
        y = self.start(x) + h
        for norm, tell, widen, narrow in zip(self.norms, self.tell, self.widen, self.narrow, strict=True):
            scale, shift, gate = tell(told).chunk(3, -1)
            y = y + gate * narrow(F.gelu(widen(norm(y) * (1 + scale) + shift)))
        return self.end(y)


DENOISERS = {"affine": Affine, "perceptron": Perceptron, "modulated": Modulated}


@dataclass(frozen=True)
class Chain:
    """The whole reverse chain of an affine denoiser: x_0 = M h + m + N(0, Sigma).

    Attributes:
        matrix: M (d, d).
        shift: m (d,).
        covariance: Sigma (d, d).
    """

    matrix: Tensor
    shift: Tensor
    covariance: Tensor

    def sample(self, h: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """Oracle items for conditions h (B, d): drawn exactly, or the means when no noise is given."""
        mean = h.double() @ self.matrix.T + self.shift
        if noise is not None:
            root = torch.linalg.cholesky(self.covariance + 1e-12 * torch.eye(len(self.shift), dtype=torch.float64))
            mean = mean + torch.randn(mean.shape, generator=noise, dtype=mean.dtype) @ root.T
        return mean.to(h.dtype)


@torch.no_grad()
def closed_form(denoiser: Affine, null: Tensor, schedule: Schedule, w: float) -> Chain:
    """All T steps of `ancestral` with guidance w at once, for a denoiser f = A x + B h + C tau_t + b.

    Each step is affine, x <- (to_x0 A + to_x I) x + to_x0 ((1 + w) B h - w B null + C tau_t + b) + noise, and affine
    maps of Gaussians compose. Guidance scales what h does by 1 + w and moves the rest: it can make nothing sharper.
    """
    dim = len(null)
    a, b, c = denoiser.mix.weight.double().split(dim, 1)
    tau = denoiser.step(torch.arange(schedule.steps, device=null.device)).double()
    eye = torch.eye(dim, dtype=torch.float64)
    matrix, shift, covariance = torch.zeros_like(eye), torch.zeros(dim, dtype=torch.float64), eye.clone()
    for t in reversed(range(schedule.steps)):
        x0, x = schedule.to_x0[t], schedule.to_x[t]
        turn = x0 * a + x * eye
        matrix = turn @ matrix + x0 * (1 + w) * b
        shift = turn @ shift + x0 * (c @ tau[t] + denoiser.mix.bias.double() - w * (b @ null.double()))
        covariance = turn @ covariance @ turn.T + schedule.spread[t] ** 2 * eye
    return Chain(matrix, shift, covariance)
