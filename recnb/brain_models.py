"""Whole-brain models: a linear network solved exactly, coupled Hopf oscillators, a mean field with haemodynamics.

Every model has regions coupled by SC times a global coupling G (1/s). S connectomes and R runs (couplings, noise draws)
are simulated as one tensor.

- Linear: dx = A x dt + noise of power q, A = diag(a) + G (C - diag(strengths)). The covariance P solves the Lyapunov
  equation A P + P A + diag(q) = 0. It is the Hopf network below the bifurcation, without its cubic term.
- Hopf (Stuart-Landau): dz_i = [(a_i + i w_i - |z_i|^2) z_i + G sum_j C_ij (z_j - z_i)] dt + beta dW_i; BOLD is Re z.
- Mean field: the reduced Wong-Wang model, excitatory only (Deco et al., J Neurosci 2013, 33:11239), read out by the
  Balloon-Windkessel model of blood flow (Friston et al., NeuroImage 2003, 19:1273).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

STEPS = ("rotation", "euler")
A, FREQUENCY, BETA = -0.02, 0.05, 0.02  # 1/s: slightly damped; Hz: within resting BOLD's band; noise, 1/sqrt(s)


class Lyapunov(torch.autograd.Function):
    """Solve A P + P A + Q = 0 for symmetric, stable A and symmetric Q, (..., N, N) each, by eigenvectors of A.

    Backward: with S the solution of A S + S A + dL/dP = 0, dL/dQ = S and dL/dA = S P + P S.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, q: Tensor) -> Tensor:
        """P; raises ValueError when an eigenvalue of A is not negative: the network then has no stationary state."""
        values, vectors = torch.linalg.eigh(a)
        if (top := float(values.max())) >= 0:
            raise ValueError(f"A has the eigenvalue {top:.3g}: it must be below 0; make a more negative")
        rates = -(values[..., :, None] + values[..., None, :])
        p = vectors @ ((vectors.mT @ q @ vectors) / rates) @ vectors.mT
        ctx.save_for_backward(vectors, rates, p)
        return p

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """(dL/dA, dL/dQ)."""
        vectors, rates, p = ctx.saved_tensors
        grad = (grads[0] + grads[0].mT) / 2
        s = vectors @ ((vectors.mT @ grad @ vectors) / rates) @ vectors.mT
        return s @ p + p @ s, s


def network(sc: Tensor, g: Tensor | float, a: Tensor | float = A) -> Tensor:
    """A = diag(a) + G (C - diag(strengths)) of shape (..., N, N) for SC (..., N, N), G (...) and a (..., N), in 1/s."""
    g = torch.as_tensor(g, dtype=sc.dtype)[..., None]
    inner = torch.as_tensor(a, dtype=sc.dtype) - g * sc.sum(-1)
    return g[..., None] * sc + torch.diag_embed(inner)


def covariance(
    sc: Tensor, g: Tensor | float, a: Tensor | float = A, q: Tensor | float = 1.0, inputs: Tensor | None = None
) -> Tensor:
    """Stationary covariance of the linear network, (..., N, N), in units of q / a; differentiable in everything.

    Args:
        sc: symmetric (..., N, N).
        g: global coupling (...), 1/s.
        a: each region's own decay, negative, 1/s: a number or (..., N).
        q: noise power of each region: a number or (..., N).
        inputs: amplitudes (..., R, N) of R further noise sources that several regions share.
    """
    matrix = network(sc, g, a)
    noise = torch.diag_embed(torch.as_tensor(q, dtype=sc.dtype).expand(matrix.shape[:-1]))
    return Lyapunov.apply(matrix, noise if inputs is None else noise + inputs.mT @ inputs)


def correlation(p: Tensor, gsr: bool = False) -> Tensor:
    """FC of a covariance (..., N, N), after taking out the regions' mean (of z-scored signals) when ``gsr`` is set."""
    p = p / (spread := p.diagonal(dim1=-2, dim2=-1).sqrt())[..., None] / spread[..., None, :]
    if not gsr:
        return p
    with_mean = p.sum(-1, keepdim=True)
    return correlation(p - with_mean @ with_mean.mT / with_mean.sum(-2, keepdim=True))


def hopf_covariance(
    sc: Tensor, g: float, frequency: Tensor | float = FREQUENCY, a: Tensor | float = A, beta: float = BETA
) -> Tensor:
    """Covariance of Re z in the linear Hopf network (..., N, N), each region with a frequency of its own (..., N), Hz.

    With one frequency for all it is `covariance` with q = beta^2, since the rotation then commutes with the coupling.
    """
    turning = torch.as_tensor(frequency, dtype=sc.dtype).expand(sc.shape[:-1])
    values, vectors = torch.linalg.eig(network(sc, g, a) + 2j * math.pi * torch.diag_embed(turning))
    back = torch.linalg.inv(vectors)
    p = back @ back.mH * (2 * beta**2) / -(values[..., :, None] + values.conj()[..., None, :])
    return (vectors @ p @ vectors.mH).real / 2


class _Oscillators:
    """The state of coupled Hopf oscillators, x in z[:, 0] and y in z[:, 1], and one step of time in place."""

    def __init__(
        self, sc: Tensor, g: Tensor, a: Tensor | float, frequency: Tensor | float, dt: float, step: str
    ) -> None:
        people, regions, runs = sc.shape[0], sc.shape[-1], len(g)
        self.dt, self.euler = dt, step == "euler"
        self.g = g.float()[:, None]
        self.pull = (sc * dt).float().mT.contiguous()
        keep = 1 + dt * (torch.as_tensor(a).float() - self.g * sc.sum(-1)[:, None].float())
        self.keep = keep.expand(people, runs, regions).contiguous()
        self.z = torch.zeros(people, 2, runs, regions)
        self.rows = self.z.view(people, 2 * runs, regions)
        self.inflow, self.old, self.noise = (torch.empty_like(self.z) for _ in range(3))
        self.pulled, self.gain = self.inflow.view_as(self.rows), torch.empty_like(self.keep)
        own = torch.is_tensor(frequency)
        turn = 2 * math.pi * torch.as_tensor(frequency).float()
        self.frame = 0.0 if own or self.euler else float(turn)  # one rotation for all can wait until z is seen
        angle = turn[:, None] * dt if own else turn * dt
        self.cos, self.sin = (torch.tensor(1.0), angle) if self.euler else (angle.cos(), angle.sin())

    def step(self, beta: Tensor, cubic: bool, draws: torch.Generator) -> None:
        """Advance by dt under noise of amplitude beta."""
        x, y = self.z[:, 0], self.z[:, 1]
        torch.bmm(self.rows, self.pull, out=self.pulled)
        if self.euler:
            self.old.copy_(self.z)
        if cubic:
            torch.addcmul(self.keep, x, x, value=-self.dt, out=self.gain).addcmul_(y, y, value=-self.dt)
        self.z.mul_((self.gain if cubic else self.keep)[:, None]).addcmul_(self.inflow, self.g)
        if not self.frame:
            if not self.euler:
                self.old.copy_(self.z)
            x.mul_(self.cos).addcmul_(self.old[:, 1], self.sin, value=-1)
            y.mul_(self.cos).addcmul_(self.old[:, 0], self.sin)
        self.z.addcmul_(self.noise.normal_(0, math.sqrt(self.dt), generator=draws), beta)

    def seen(self, time: float) -> Tensor:
        """Re z (S, R, N) at a time in seconds, out of the turning frame."""
        return math.cos(self.frame * time) * self.z[:, 0] - math.sin(self.frame * time) * self.z[:, 1]


@torch.no_grad()
def hopf(
    sc: Tensor,
    g: Tensor,
    a: Tensor | float = A,
    *,
    beta: Tensor | float = BETA,
    frequency: Tensor | float = FREQUENCY,
    volumes: int = 1200,
    tr: float = 0.72,
    substeps: int = 10,
    burn: int = 500,
    seed: int = 0,
    step: str = "rotation",
    cubic: bool = True,
) -> Tensor:
    """Simulate the Hopf network from rest; every run has noise of its own, so a repeated coupling is another seed.

    The step ``rotation`` turns z by w dt exactly and takes the slow rest with Euler and Maruyama; with one frequency
    for all it works in the turning frame. The plain ``euler`` step lets |z| grow by sqrt(1 + (w dt)^2) each step,
    which acts as a + w^2 dt / 2: at 0.05 Hz and 0.072 s that is +0.0036 / s, much beside a = -0.02.

    Args:
        sc: (S, N, N).
        g: coupling of each run (R,), 1/s.
        a: bifurcation parameter, 1/s; negative: damped. A number or anything that broadcasts to (S, R, N).
        beta: noise, per square root of a second; a number or (N,).
        frequency: Hz; a number, or (S, N) for regions of their own.
        volumes: T.
        tr: seconds between volumes.
        substeps: steps within a tr.
        burn: volumes left out first; the slowest mode needs some 1 / |a| seconds, 70 volumes, to settle.
        seed: of all noise.
        step: one of `STEPS`.
        cubic: keep -|z|^2 z; without it the network is linear and `covariance` exact.

    Returns:
        Re z at each volume, (S, R, N, T) float32.

    Raises:
        ValueError: on an unknown step, or when a run diverged.
    """
    if step not in STEPS:
        raise ValueError(f"unknown step {step!r}; allowed: {', '.join(STEPS)}")
    dt, draws, amplitude = tr / substeps, torch.Generator().manual_seed(seed), torch.as_tensor(beta).float()
    state = _Oscillators(sc, g, a, frequency, dt, step)
    bold = torch.empty(volumes, *state.keep.shape)
    for volume in range(burn + volumes):
        for _ in range(substeps):
            state.step(amplitude, cubic, draws)
        if volume >= burn:
            bold[volume - burn] = state.seen((volume + 1) * tr)
    if not torch.isfinite(bold).all():
        raise ValueError(f"a run diverged: take more than {substeps} substeps or couplings below {float(g.max()):.3g}")
    return bold.movedim(0, -1)


class Balloon:
    """Blood flow after neural activity, stepped in place: BOLD change (about 0.01) of regions of any shape.

    Friston et al. 2003: s' = u - k s - c (f - 1), f' = s, tau v' = f - v^(1/alpha),
    tau q' = f E(f) / rho - q v^(1/alpha - 1) with E(f) = 1 - (1 - rho)^(1/f).
    """

    K, C, TAU, ALPHA, RHO, V0 = 0.65, 0.41, 0.98, 0.32, 0.34, 0.02  # 1/s, 1/s, s, and three without unit

    def __init__(self, shape: torch.Size) -> None:
        self.s, (self.f, self.v, self.q) = torch.zeros(shape), (torch.ones(shape) for _ in range(3))

    def step(self, u: Tensor, dt: float) -> None:
        """Advance by dt seconds (Euler) under neural activity u."""
        out = self.v.pow(1 / self.ALPHA)
        burnt = self.f * (1 - (math.log(1 - self.RHO) / self.f).exp_()) / self.RHO
        self.q.add_(burnt.sub_(self.q * out / self.v), alpha=dt / self.TAU)
        self.v.add_(self.f - out, alpha=dt / self.TAU)
        rise = u - self.K * self.s - self.C * (self.f - 1)
        self.f.add_(self.s, alpha=dt)
        self.s.add_(rise, alpha=dt)

    def seen(self) -> Tensor:
        """V0 (7 rho (1 - q) + 2 (1 - q / v) + (2 rho - 0.2)(1 - v)), as a share of the resting signal."""
        return self.V0 * (7 * self.RHO * (1 - self.q) + 2 * (1 - self.q / self.v) + (2 * self.RHO - 0.2) * (1 - self.v))


@torch.no_grad()
def mean_field(
    sc: Tensor,
    g: Tensor,
    *,
    sigma: float = 0.01,
    volumes: int = 500,
    tr: float = 0.72,
    dt: float = 0.005,
    slower: int = 4,
    finest: float | None = None,
    burn: int = 60,
    seed: int = 0,
) -> Tensor:
    """Simulate the reduced Wong-Wang model with haemodynamics.

    s_i' = -s_i / 0.1 + (1 - s_i) 0.641 H(x_i) + sigma xi, x_i = 0.9 J s_i + G J sum_j C_ij s_j + 0.3 nA, J = 0.2609 nA,
    H(x) = (270 x - 108) / (1 - exp(-0.154 (270 x - 108))) spikes / s; s is the share of open NMDA channels.

    Args:
        sc: (S, N, N).
        g: coupling of each run (R,), without unit.
        sigma: noise per square root of a second; 0.001 per square root of a millisecond would be 0.0316.
        volumes: T.
        tr: seconds between volumes.
        dt: the neural step in seconds (Euler and Maruyama).
        slower: neural steps in one step of blood flow.
        finest: draw the noise for steps of this size and add it up: runs with several ``dt`` and one seed then
            follow the same path, so that what differs is the error of the step. None: ``dt``.
        burn: volumes left out first.
        seed: of all noise.

    Returns:
        BOLD change at each volume, (S, R, N, T) float32.

    Raises:
        ValueError: when steps do not divide each other.
    """
    draws, parts, substeps = torch.Generator().manual_seed(seed), round(dt / (finest or dt)), round(tr / dt)
    if abs(substeps * dt - tr) > 1e-9 or substeps % slower or abs(parts * (finest or dt) - dt) > 1e-9 or parts < 1:
        raise ValueError(
            f"dt {dt} must divide tr {tr} into a multiple of {slower} steps; finest {finest} must divide dt"
        )
    shape = torch.Size((sc.shape[0], len(g), sc.shape[-1]))
    gate, noise, share = torch.full(shape, 0.1), torch.empty(shape), 0.2609 * g.float()[:, None]
    pull, inflow, heard, blood = sc.float().mT.contiguous(), torch.empty(shape), torch.zeros(shape), Balloon(shape)
    bold = torch.empty(volumes, *shape)
    for volume in range(burn + volumes):
        for step in range(substeps):
            torch.bmm(gate, pull, out=inflow)
            drive = inflow.mul_(share).add_(gate, alpha=0.9 * 0.2609).add_(0.3).mul_(270).sub_(108)
            rate = drive / (1 - (-0.154 * drive).exp_())
            rise = rate.mul_(0.641).mul_(1 - gate).sub_(gate, alpha=10)
            gate.add_(rise, alpha=dt)
            for _ in range(parts):
                gate.add_(noise.normal_(0, sigma * math.sqrt(dt / parts), generator=draws))
            gate.clamp_(0, 1)
            heard.add_(gate, alpha=1 / slower)
            if (step + 1) % slower == 0:
                blood.step(heard, slower * dt)  # the mean, since the gates change within a step of blood
                heard.zero_()
        if volume >= burn:
            bold[volume - burn] = blood.seen()
    return bold.movedim(0, -1)
