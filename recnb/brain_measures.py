"""Measures of brain signals and networks: dynamics of FC with a surrogate, null connectomes, memory of a reservoir.

A measure means little without what chance, or a simpler property, would give: FC dynamics has a surrogate with the same
static FC, a connectome has nulls that keep its strengths, its distances, or both.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from recnb.brain import functional, upper


def fcd(signals: Tensor, width: int = 83, hop: int = 10) -> Tensor:
    """FC dynamics: correlation of the FC of every two windows, (..., N, T) -> (..., W, W).

    Args:
        signals: what `recnb.brain.preprocess` or a model gives.
        width: volumes in a window; 83 of 0.72 s are a minute.
        hop: volumes from one window to the next.

    Raises:
        ValueError: when the scan holds fewer than two windows.
    """
    if signals.shape[-1] < width + hop:
        raise ValueError(f"{signals.shape[-1]} volumes hold no two windows of {width}, {hop} apart; take smaller ones")
    scans = signals.reshape(-1, *signals.shape[-2:])  # one at a time: the windows of many would fill the memory
    each = [functional(upper(functional(scan.unfold(-1, width, hop).movedim(1, 0)))) for scan in scans]
    return torch.stack(each).reshape(*signals.shape[:-2], *each[0].shape)


def ks_distance(ours: Tensor, measured: Tensor) -> float:
    """Kolmogorov-Smirnov distance (0 to 1) of the entries above the diagonals of two FCD matrices, or sets of them."""
    return float(stats.ks_2samp(upper(ours).flatten().numpy(), upper(measured).flatten().numpy()).statistic)


def phase_surrogate(signals: Tensor, generator: torch.Generator) -> Tensor:
    """Signals (..., N, T) with random phases, the same shift for all regions at each frequency.

    Every spectrum and cross-spectrum stays, so the static FC does exactly; what order in time made FC change is gone
    (Prichard and Theiler, Phys Rev Lett 1994, 73:951).
    """
    spectrum = torch.fft.rfft(signals)
    turns = torch.rand(*signals.shape[:-2], 1, spectrum.shape[-1], generator=generator, dtype=signals.dtype)
    turns[..., 0] = 0
    if signals.shape[-1] % 2 == 0:
        turns[..., -1] = 0  # the mean and the highest frequency have no phase
    return torch.fft.irfft(spectrum * torch.exp(2j * torch.pi * turns), signals.shape[-1])


def peak_frequency(signals: Tensor, tr: float, width: float = 0.01) -> Tensor:
    """Frequency of most power of each signal (..., N, T), its spectrum smoothed over ``width`` Hz: (..., N) in Hz."""
    power = torch.fft.rfft(signals - signals.mean(-1, keepdim=True)).abs().square()
    half = max(1, round(width * tr * signals.shape[-1] / 2))
    smooth = torch.nn.functional.avg_pool1d(power.flatten(0, -2)[:, None], 2 * half + 1, 1, half)
    return smooth[:, 0].argmax(-1).reshape(power.shape[:-1]) / (tr * signals.shape[-1])


def with_strengths(weights: Tensor, strengths: Tensor, rounds: int = 200) -> Tensor:
    """Scale symmetric weights to d_i w_ij d_j with the given row sums (Sinkhorn's algorithm, symmetric form).

    Args:
        weights: (..., N, N), no negative ones; each region needs a connection.
        strengths: (..., N).
        rounds: of the iteration.

    Raises:
        ValueError: when the row sums are still wrong by a thousandth.
    """
    d = (strengths / weights.sum(-1).clamp_min(1e-300)).sqrt()
    for _ in range(rounds):
        d = (d * strengths / (weights @ d[..., None])[..., 0].clamp_min(1e-300)).sqrt()
    scaled = d[..., :, None] * weights * d[..., None, :]
    wrong = float((scaled.sum(-1) / strengths - 1).abs().max())
    if not wrong <= 1e-3:  # NaN where a region has no connection
        raise ValueError(f"no scaling gives these strengths: still wrong by {wrong:.1%} after {rounds} rounds")
    return scaled


def shuffled(sc: Tensor, generator: torch.Generator, bins: Tensor | None = None) -> Tensor:
    """Weights (..., N, N) moved to other pairs of regions; only within bins of pairs when given (..., pairs)."""
    values = upper(sc)
    place = torch.rand(values.shape, generator=generator, dtype=torch.float64)
    groups = torch.zeros_like(place) if bins is None else bins.to(place)
    source = torch.argsort(groups, dim=-1, stable=True)
    drawn = torch.argsort(groups + place, dim=-1)
    moved = torch.empty_like(values).scatter_(-1, source, values.gather(-1, drawn))
    out = torch.zeros_like(sc)
    rows, columns = torch.triu_indices(sc.shape[-1], sc.shape[-1], 1)
    out[..., rows, columns] = moved
    return out + out.mT


def pair_bins(distance: Tensor, bins: int = 20) -> Tensor:
    """For each pair of regions the bin of its distance (..., N, N): equally many pairs a bin, (..., pairs)."""
    place = torch.argsort(torch.argsort(upper(distance), dim=-1), dim=-1)
    return place * bins // place.shape[-1]


NULLS = ("shuffled", "strength", "distance", "distance and strength", "strengths only")


def null(kind: str, sc: Tensor, distance: Tensor, generator: torch.Generator, bins: int = 20) -> Tensor:
    """One random connectome for each of (..., N, N) that keeps what ``kind`` says.

    Args:
        kind: one of `NULLS`; "distance" moves weights only between pairs about equally far apart; "strength" scales
            afterwards so that every region keeps its strength; "strengths only" is s_i s_j and not random at all.
        sc: symmetric, with mean strength 1.
        distance: of the same shape or (N, N), of centres or fibre lengths, in any unit.
        generator: decides the draw.
        bins: of distance.

    Raises:
        ValueError: on an unknown kind.
    """
    if kind not in NULLS:
        raise ValueError(f"unknown null {kind!r}; allowed: {', '.join(NULLS)}")
    strengths = sc.sum(-1)
    if kind == "strengths only":
        flat = 1 - torch.eye(sc.shape[-1], dtype=sc.dtype)
        return with_strengths(flat.expand_as(sc), strengths)
    near = pair_bins(distance.expand_as(sc), bins) if kind.startswith("distance") else None
    moved = shuffled(sc, generator, near)
    return with_strengths(moved, strengths) if kind.endswith("strength") else moved


def sparsified(sc: Tensor, density: float = 0.1) -> Tensor:
    """The strongest share ``density`` of the connections of (N, N), others 0."""
    values = upper(sc)
    least = values.topk(max(1, round(density * len(values)))).values[-1]
    return torch.where(sc >= least, sc, 0.0)


def rewired(sc: Tensor, rng: np.random.Generator, swaps: int = 10) -> Tensor:
    """A sparse network (N, N) with every region's number of connections kept (Maslov and Sneppen, Science 2002).

    Two connections i-j, k-l become i-l, k-j when neither is there yet, ``swaps`` tries a connection; weights go along.

    Raises:
        ValueError: above a density of one half, where hardly a swap is free and the null is nearly the network itself.
    """
    there = sc.numpy() > 0
    if (density := float(there[np.triu_indices(len(sc), 1)].mean())) > 0.5:
        raise ValueError(f"density {density:.2f} is too high to rewire; take `sparsified`, or a null of strengths")
    edges = np.argwhere(np.triu(there))
    weights = sc.numpy()[edges[:, 0], edges[:, 1]]
    for first, second in rng.integers(0, len(edges), (swaps * len(edges), 2)):
        (i, j), (k, m) = edges[first], edges[second][:: rng.choice((1, -1))]
        if len({i, j, k, m}) == 4 and not there[i, m] and not there[k, j]:
            there[[i, j, k, m], [j, i, m, k]] = False
            there[[i, m, k, j], [m, i, j, k]] = True
            edges[first], edges[second] = (i, m), (k, j)
    out = torch.zeros_like(sc)
    out[edges[:, 0], edges[:, 1]] = out[edges[:, 1], edges[:, 0]] = torch.from_numpy(weights)
    return out


def wire_length(sc: Tensor, distance: Tensor) -> Tensor:
    """Mean distance that a unit of weight spans (...,), in the unit of the distance (N, N)."""
    return (upper(sc) * upper(distance)).sum(-1) / upper(sc).sum(-1)


@torch.no_grad()
def memory_capacity(
    networks: Tensor,
    radius: Tensor,
    inputs: Tensor,
    outputs: Tensor,
    *,
    steps: int = 2000,
    lags: int = 30,
    ridge: float = 1e-6,
    seed: int = 0,
) -> Tensor:
    """Linear memory of networks as echo-state reservoirs (Jaeger 2001): sum over lags of r^2 on data not fitted.

    x <- tanh(W x + w u) with u uniform in [-1, 1]; from x of the output regions a ridge regression recalls each past u.

    Args:
        networks: (B, N, N); each is scaled to every radius.
        radius: spectral radii (R,).
        inputs: regions that receive u, with weights of +1 or -1.
        outputs: regions that are read.
        steps: of time, half to fit and half to test.
        lags: longest delay.
        ridge: penalty of the regression.
        seed: of the input and its weights, the same for all networks.

    Returns:
        (B, R); at most ``lags``.
    """
    draws = torch.Generator().manual_seed(seed)
    u = torch.rand(steps + lags, generator=draws, dtype=torch.float64) * 2 - 1
    entry = torch.zeros(networks.shape[-1], dtype=torch.float64)
    entry[inputs] = (torch.rand(len(inputs), generator=draws) < 0.5).double() * 2 - 1
    pull = (networks / torch.linalg.eigvals(networks).abs().amax(-1)[:, None, None]).mT.contiguous()
    x = torch.zeros(len(networks), len(radius), networks.shape[-1], dtype=torch.float64)
    seen = torch.empty(steps, *x.shape[:2], len(outputs) + 1, dtype=torch.float64)
    seen[..., -1] = 1
    for time in range(steps + lags):
        x = torch.tanh((x @ pull).mul_(radius[:, None]).addcmul_(u[time], entry))
        if time >= lags:
            seen[time - lags, ..., :-1] = x[..., outputs]
    past = torch.stack([u[lags - lag : steps + lags - lag] for lag in range(1, lags + 1)], 1)
    fit, test = seen.movedim(0, -2).split(steps // 2, dim=-2)
    gram = fit.mT @ fit + ridge * torch.eye(fit.shape[-1], dtype=fit.dtype)
    recalled = test @ torch.linalg.solve(gram, fit.mT @ past[: steps // 2])
    wanted = past[steps // 2 :] - past[steps // 2 :].mean(0)
    recalled = recalled - recalled.mean(-2, keepdim=True)
    power = (recalled.square().sum(-2) * wanted.square().sum(0)).clamp_min(1e-12)
    return ((recalled * wanted).sum(-2).square() / power).sum(-1)
