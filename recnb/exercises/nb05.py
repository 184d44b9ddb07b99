"""Exercises of notebook 05: grounding words to names, bending distances by a weight, and choosing its strength."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from recnb.lessons import Exercise


def grounded(said: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Places of all names, nearest to what was said first; said has shape (H,), names (n, H)."""
    return np.argsort(np.linalg.norm(names - said, axis=1))


def check_grounded(answer: Callable[..., np.ndarray]) -> str | None:
    """Drawn points, one of them long, so that length and angle disagree."""
    rng = np.random.default_rng(5)
    said, names = rng.normal(size=4), rng.normal(size=(7, 4))
    names[3] = 6 * said + rng.normal(size=4)
    expected, got = grounded(said, names), np.asarray(answer(said, names))
    mistakes = {
        "the farthest name came first: sort upwards": expected[::-1],
        "that is the order of inner products, which long vectors win": np.argsort(-names @ said),
        "that is the order of angles: the paper takes distances": np.argsort(
            -(names @ said) / np.linalg.norm(names, axis=1)
        ),
        "those are the places that the names take: return the names in order": np.argsort(expected),
    }
    if got.shape != expected.shape:
        return f"expected all {len(names)} places, got shape {got.shape}: every name must be ranked"
    if (got == expected).all():
        return None
    for message, wrong in mistakes.items():
        if (got == wrong).all():
            return message
    return f"expected {expected.tolist()}, got {got.tolist()}"


def bent(distance: np.ndarray, weight: np.ndarray, gamma: float) -> np.ndarray:
    """One case's distances, scaled to [0, 1] and divided by (1 + weight) to the power gamma; all shapes (n,)."""
    scaled = (distance - distance.min()) / (distance.max() - distance.min())
    return scaled * (1 + weight) ** -gamma


def check_bent(answer: Callable[..., np.ndarray]) -> str | None:
    """Known distances and weights."""
    distance, weight = np.array([4.0, 9.0, 5.0, 6.5]), np.array([0.0, 1.0, 0.25, 0.6])
    kept = distance.copy()
    scaled = (distance - 4) / 5
    for gamma in (2.0, 0.0, 0.5):
        got, expected = np.asarray(answer(distance, weight, gamma), dtype=float), bent(kept, weight, gamma)
        if (distance != kept).any():
            return "the distances that were handed in have changed: work on a copy"
        mistakes = {
            "the power must be negative: a popular name comes nearer": scaled * (1 + weight) ** gamma,
            "the distances are not scaled: the nearest must have 0": distance * (1 + weight) ** -gamma,
            "divide by the range, max - min": (distance - 4) / 9 * (1 + weight) ** -gamma,
            "a name of weight 0 must keep its distance: 1 + weight": scaled * np.where(weight > 0, weight, 1) ** -gamma,
        }
        if got.shape == expected.shape and np.allclose(got, expected):
            continue
        for message, wrong in mistakes.items():
            if got.shape == wrong.shape and np.allclose(got, wrong):
                return message
        return f"gamma {gamma:g}: expected {expected.round(3).tolist()}, got {got.round(3).tolist()}"
    return None


def chosen(valid: pd.Series, test: pd.Series) -> tuple[float, float]:
    """The strength that validation prefers, and what it is worth on the test; both series are indexed by gamma."""
    best = int(valid.argmax())
    return float(valid.index[best]), float(test.iloc[best])


def check_chosen(answer: Callable[..., tuple[float, float]]) -> str | None:
    """Two curves whose best strengths differ."""
    gammas = pd.Index([0.0, 0.5, 2.0, 8.0])
    valid, test = pd.Series([0.1, 0.3, 0.2, 0.1], gammas), pd.Series([0.2, 0.25, 0.4, 0.1], gammas)
    got = answer(valid, test)
    if not isinstance(got, tuple) or len(got) != 2:
        return "return two things: the strength, and the test's value there"
    if np.allclose(got, (0.5, 0.25)):
        return None
    if np.allclose(got, (2.0, 0.4)):
        return "that strength was chosen on the test: nobody could have known it"
    if np.allclose(got, (0.5, 0.3)):
        return "the second number is validation's: it was chosen to be high, so it is no measurement"
    if np.allclose(got, (1, 0.25)) or np.allclose(got, (1, 0.3)):
        return "return the strength itself, not its place in the list"
    return f"expected (0.5, 0.25), got {tuple(got)}"


EXERCISES = {
    "grounded": Exercise(grounded, check_grounded, "whatever was said, every real name has a place"),
    "bent": Exercise(bent, check_bent, "the nearest name has distance 0, and no weight can move it"),
    "chosen": Exercise(chosen, check_chosen, "chosen on one set, measured on another"),
}
