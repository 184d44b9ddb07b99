"""Exercises of notebook 10: what a map keeps, cosines about the mean, and an axis of one's own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.spatial.distance import cdist

from recnb.lessons import Exercise


def _gaps(vectors: np.ndarray) -> np.ndarray:
    """Distances of every pair (n, n), infinite to oneself."""
    gaps = cdist(vectors, vectors)
    np.fill_diagonal(gaps, np.inf)
    return gaps


def kept(space: np.ndarray, flat: np.ndarray, k: int) -> float:
    """Share of the k nearest in the space (n, d) that are among the k nearest on the map (n, 2), mean over points."""
    near, seen = (np.argsort(_gaps(some), axis=1)[:, :k] for some in (space, flat))
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(near, seen, strict=True)]))


def check_kept(answer: Callable[..., float]) -> str | None:
    """A drawn space and its first two coordinates, on which every slip gives another number."""
    space = np.random.default_rng(10).normal(size=(30, 4))
    flat, k = space[:, :2], 5
    got, expected = float(answer(space, flat, k)), kept(space, flat, k)
    if np.isclose(got, expected):
        return None
    gaps = [_gaps(some) for some in (space, flat)]
    near, seen = (np.argsort(some, axis=1)[:, :k] for some in gaps)
    own = [np.argsort(np.where(np.isinf(some), 0, some), axis=1)[:, :k] for some in gaps]
    mistakes = {
        "every point is its own nearest here: leave it out": np.mean(
            [len(set(a) & set(b)) / k for a, b in zip(*own, strict=True)]
        ),
        "places are compared: a neighbour may be third here and fifth there": np.mean(near == seen),
        "this is a count: divide by k": expected * k,
        "this is the union's share (Jaccard): divide by k": np.mean(
            [len(set(a) & set(b)) / len(set(a) | set(b)) for a, b in zip(near, seen, strict=True)]
        ),
        "this is a sum over points: take the mean": expected * len(space),
    }
    for message, wrong in mistakes.items():
        if np.isclose(got, wrong):
            return message
    return f"expected {expected:.3f}, got {got:.3f}"


def centred_cosine(vectors: np.ndarray) -> np.ndarray:
    """Cosines (n, n) of all pairs of rows (n, d), about their mean."""
    moved = vectors - vectors.mean(axis=0)
    moved = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    return moved @ moved.T


def check_centred_cosine(answer: Callable[..., np.ndarray]) -> str | None:
    """Vectors far from the origin, so that centring decides."""
    vectors = np.random.default_rng(11).normal(size=(6, 3)) + [4.0, 0.0, 1.0]
    got, expected = np.asarray(answer(vectors.copy())), centred_cosine(vectors)
    if got.shape != expected.shape:
        return f"expected the shape {expected.shape}, got {got.shape}"
    if np.allclose(got, expected):
        return None

    def cosine(rows: np.ndarray) -> np.ndarray:
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return rows @ rows.T

    lengths = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    moved = vectors - vectors.mean(axis=0)
    mistakes = {
        "the mean is still in: all vectors point away from the origin together": cosine(vectors),
        "each vector's own mean was taken out: take the mean over vectors, axis 0": cosine(
            vectors - vectors.mean(axis=1, keepdims=True)
        ),
        "lengths came first: take the mean out, then divide": (lengths - lengths.mean(0))
        @ (lengths - lengths.mean(0)).T,
        "these are inner products: divide by the lengths": moved @ moved.T,
    }
    for message, wrong in mistakes.items():
        if np.allclose(got, wrong):
            return message
    return f"first row: expected {expected[0].round(3).tolist()}, got {got[0].round(3).tolist()}"


def axis(vectors: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Where vectors (n, d) stand from the mean of the rows ``left`` (0) to that of the rows ``right`` (1): (n,)."""
    start, way = vectors[left].mean(0), vectors[right].mean(0) - vectors[left].mean(0)
    return (vectors - start) @ way / (way @ way)


def check_axis(answer: Callable[..., np.ndarray]) -> str | None:
    """Drawn vectors with two groups; the groups' means must land on 0 and 1."""
    vectors = np.random.default_rng(12).normal(size=(12, 5)) + 2
    left, right = np.array([0, 1, 2]), np.array([7, 8])
    got, expected = np.asarray(answer(vectors, left, right)), axis(vectors, left, right)
    if got.shape != expected.shape:
        return f"expected one number a vector, {expected.shape}, got {got.shape}"
    if np.allclose(got, expected):
        return None
    start, way = vectors[left].mean(0), vectors[right].mean(0) - vectors[left].mean(0)
    one = vectors[right[0]] - vectors[left[0]]
    mistakes = {
        "left and right have changed places": 1 - expected,
        "the mean of `left` should stand at 0: take it out first": vectors @ way / (way @ way),
        "divided by the length once: the mean of `right` should stand at 1": (vectors - start)
        @ way
        / (way @ way) ** 0.5,
        "not divided by the squared length": (vectors - start) @ way,
        "only the first of each group is used: take the means": (vectors - vectors[left[0]]) @ one / (one @ one),
    }
    for message, wrong in mistakes.items():
        if np.allclose(got, wrong):
            return message
    return f"the means stand at {got[left].mean():.2f} and {got[right].mean():.2f}, not at 0 and 1"


EXERCISES = {
    "kept": Exercise(kept, check_kept, "now a map can be asked how far it is to be believed"),
    "centred_cosine": Exercise(centred_cosine, check_centred_cosine, "what all vectors share tells none of them apart"),
    "axis": Exercise(axis, check_axis, "two groups of films are a ruler"),
}
