"""Exercises of notebook 09: scoring a model brain, the mean of the others, and a step that turns exactly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from recnb.lessons import Exercise


def score(ours: Tensor, measured: Tensor) -> Tensor:
    """Pearson r of two FC matrices (N, N) over the pairs above the diagonal."""
    rows, columns = torch.triu_indices(len(ours), len(ours), 1)
    return torch.corrcoef(torch.stack([ours[rows, columns], measured[rows, columns]]))[0, 1]


def check_score(answer: Callable[..., Tensor]) -> str | None:
    """Two drawn correlation matrices on which every slip gives another number."""
    draw = torch.Generator().manual_seed(9)
    common = torch.randn(40, generator=draw)
    first, second = (torch.corrcoef(torch.randn(6, 40, generator=draw) + 0.5 * common) for _ in range(2))
    got, expected = float(answer(first, second)), float(score(first, second))
    if np.isclose(got, expected, atol=1e-5):
        return None
    off = ~torch.eye(6, dtype=torch.bool)
    above = torch.triu(torch.ones(6, 6), 1).bool()
    whole = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
    zeroed = torch.corrcoef(torch.stack([first.triu(1).flatten(), second.triu(1).flatten()]))[0, 1]
    mistakes = {
        "the diagonal is in: every region agrees with itself, in any model": float(whole),
        "the lower half is not left out but set to 0: those zeros agree too": float(zeroed),
        "this is not a correlation: take the means away": float(
            torch.nn.functional.cosine_similarity(first[above], second[above], dim=0)
        ),
        "an error, not a correlation": float((first[off] - second[off]).square().mean().sqrt()),
    }
    for message, wrong in mistakes.items():
        if np.isclose(got, wrong, atol=1e-5):
            return message
    return f"expected {expected:.4f}, got {got:.4f}"


def mean_of_others(fc: Tensor) -> Tensor:
    """For each of S people the mean FC of all others: (S, N, N) to (S, N, N)."""
    return torch.stack([torch.cat([fc[:i], fc[i + 1 :]]).mean(0) for i in range(len(fc))])


def check_mean_of_others(answer: Callable[..., Tensor]) -> str | None:
    """Matrices that are told apart by one number each."""
    fc = torch.tensor([1.0, 2.0, 6.0, 11.0])[:, None, None].expand(4, 2, 2).clone()
    got, expected = answer(fc), mean_of_others(fc)
    if not isinstance(got, Tensor) or got.shape != expected.shape:
        return f"expected a tensor of shape (4, 2, 2), got {getattr(got, 'shape', type(got).__name__)}"
    if torch.allclose(got, expected):
        return None
    mistakes = {
        "the person is in the mean: that is the leak": fc.mean(0).expand_as(fc),
        "the sum of the others still has to be divided by their number": fc.sum(0) - fc,
        "divided by the number of all people, not of the others": (fc.sum(0) - fc) / 4,
        "this is everybody's own FC": fc,
    }
    for message, wrong in mistakes.items():
        if torch.allclose(got, wrong):
            return message
    return f"for values 1, 2, 6, 11 expected {expected[:, 0, 0].tolist()}, got {got[:, 0, 0].tolist()}"


def turned(z: np.ndarray, a: float, omega: float, dt: float) -> np.ndarray:
    """One step without noise or neighbours: the pull of a by Euler, the rotation exactly; z complex."""
    return np.exp(1j * omega * dt) * (z + dt * a * z)


def check_turned(answer: Callable[..., np.ndarray]) -> str | None:
    """One step of a drawn oscillator, and that a pure rotation keeps its size."""
    z, a, omega, dt = np.array([1.0 + 0.5j, -0.3 + 2.0j]), -0.4, 3.0, 0.1
    got, expected = np.asarray(answer(z.copy(), a, omega, dt)), turned(z, a, omega, dt)
    if got.shape != z.shape or not np.iscomplexobj(got):
        return f"expected {len(z)} complex numbers, got {got.dtype} of shape {got.shape}"
    if np.allclose(got, expected):
        return None
    mistakes = {
        "this is Euler's step: multiply by exp(i omega dt) in place of adding i omega z dt": z
        + dt * (a + 1j * omega) * z,
        "it turns the wrong way": np.exp(-1j * omega * dt) * (z + dt * a * z),
        "a is forgotten: it only turns": np.exp(1j * omega * dt) * z,
        "omega is in radians a second already: no further 2 pi": np.exp(2j * np.pi * omega * dt) * (z + dt * a * z),
        "the imaginary unit is missing: it grows in place of turning": np.exp(omega * dt) * (z + dt * a * z),
    }
    for message, wrong in mistakes.items():
        if np.allclose(got, wrong):
            return message
    if np.allclose(got, np.exp((a + 1j * omega) * dt) * z):
        return "exact in a as well: right for one region alone; use Euler for a, since neighbours will be added to it"
    return f"expected {expected.round(3).tolist()}, got {got.round(3).tolist()}"


EXERCISES = {
    "score": Exercise(score, check_score, "only pairs count, and each pair once"),
    "mean_of_others": Exercise(mean_of_others, check_mean_of_others, "what is compared with somebody has not seen him"),
    "turned": Exercise(turned, check_turned, "a rotation turns, and no more"),
}
