"""Notebook 09's exercises: their stubs and wrong answers, and right ones written otherwise."""

import numpy as np
import torch
from scipy import stats

from recnb.exercises.nb09 import EXERCISES


def stub_score(ours, measured):
    """Pearson r of two FC matrices (N, N) over the pairs above the diagonal."""
    ...


def stub_mean_of_others(fc):
    """For each of S people the mean FC of all others: (S, N, N) to (S, N, N)."""
    ...


def stub_turned(z, a, omega, dt):
    """One step without noise or neighbours: the pull of a by Euler, the rotation exactly; z complex."""
    ...


STUBS = {"score": stub_score, "mean_of_others": stub_mean_of_others, "turned": stub_turned}


def pearson(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]


def pairs(matrix):
    return matrix[torch.triu(torch.ones(matrix.shape), 1).bool()]


WRONG = [
    ("score", pearson, "diagonal is in"),
    ("score", lambda a, b: pearson(a.triu(1), b.triu(1)), "zeros agree too"),
    ("score", lambda a, b: torch.nn.functional.cosine_similarity(pairs(a), pairs(b), dim=0), "take the means away"),
    ("score", lambda a, b: (pairs(a) - pairs(b)).square().mean().sqrt(), "an error"),
    ("score", lambda a, b: torch.tensor(1.0), "expected"),
    ("mean_of_others", lambda fc: fc.mean(0).expand_as(fc), "that is the leak"),
    ("mean_of_others", lambda fc: fc.sum(0) - fc, "divided by their number"),
    ("mean_of_others", lambda fc: (fc.sum(0) - fc) / len(fc), "number of all people"),
    ("mean_of_others", lambda fc: fc, "own FC"),
    ("mean_of_others", lambda fc: fc.mean(0), "shape (4, 2, 2)"),
    ("turned", lambda z, a, w, dt: z + dt * (a + 1j * w) * z, "Euler's step"),
    ("turned", lambda z, a, w, dt: np.exp(-1j * w * dt) * z * (1 + a * dt), "wrong way"),
    ("turned", lambda z, a, w, dt: np.exp(1j * w * dt) * z, "only turns"),
    ("turned", lambda z, a, w, dt: np.exp(2j * np.pi * w * dt) * z * (1 + a * dt), "no further 2 pi"),
    ("turned", lambda z, a, w, dt: np.exp(w * dt) * z * (1 + a * dt), "imaginary unit"),
    ("turned", lambda z, a, w, dt: np.exp((a + 1j * w) * dt) * z, "exact in a as well"),
    ("turned", lambda z, a, w, dt: abs(z), "complex numbers"),
]


def test_right_answers_written_otherwise_pass():
    def by_scipy(ours, measured):
        return stats.pearsonr(pairs(ours).numpy(), pairs(measured).numpy()).statistic

    def by_sums(fc):
        return (fc.sum(0) - fc) / (len(fc) - 1)

    def by_parts(z, a, omega, dt):
        x, y = z.real * (1 + a * dt), z.imag * (1 + a * dt)
        c, s = np.cos(omega * dt), np.sin(omega * dt)
        return (c * x - s * y) + 1j * (s * x + c * y)

    for name, answer in {"score": by_scipy, "mean_of_others": by_sums, "turned": by_parts}.items():
        assert EXERCISES[name].check(answer) is None, name
