"""Notebook 10's exercises: their stubs and wrong answers, and right ones written otherwise."""

import numpy as np
from scipy.spatial.distance import cdist

from recnb.exercises.nb10 import EXERCISES, axis, centred_cosine, kept


def stub_kept(space, flat, k):
    """Share of the k nearest in the space (n, d) that are among the k nearest on the map (n, 2), mean over points."""
    ...


def stub_centred_cosine(vectors):
    """Cosines (n, n) of all pairs of rows (n, d), about their mean."""
    ...


def stub_axis(vectors, left, right):
    """Where vectors (n, d) stand from the mean of the rows left (0) to that of the rows right (1): (n,)."""
    ...


STUBS = {"kept": stub_kept, "centred_cosine": stub_centred_cosine, "axis": stub_axis}


def nearest(vectors, k, own=False):
    gaps = cdist(vectors, vectors)
    return np.argsort(gaps, axis=1)[:, (0 if own else 1) :][:, :k]


def shares(space, flat, k, own=False):
    pairs = zip(nearest(space, k, own), nearest(flat, k, own), strict=True)
    return np.array([len(np.intersect1d(a, b)) / k for a, b in pairs])


def jaccard(space, flat, k):
    share = shares(space, flat, k) * k
    return np.mean(share / (2 * k - share))


def cosine(rows):
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def lengths_first(v):
    unit = v / np.linalg.norm(v, axis=1, keepdims=True)
    return (unit - unit.mean(0)) @ (unit - unit.mean(0)).T


def way(v, left, right):
    return v[right].mean(0) - v[left].mean(0)


WRONG = [
    ("kept", lambda s, f, k: shares(s, f, k, own=True).mean(), "its own nearest"),
    ("kept", lambda s, f, k: np.mean(nearest(s, k) == nearest(f, k)), "places are compared"),
    ("kept", lambda s, f, k: k * shares(s, f, k).mean(), "divide by k"),
    ("kept", jaccard, "Jaccard"),
    ("kept", lambda s, f, k: shares(s, f, k).sum(), "sum over points"),
    ("kept", lambda s, f, k: shares(s, f, k + 1).mean(), "expected"),
    ("centred_cosine", cosine, "the mean is still in"),
    ("centred_cosine", lambda v: cosine(v - v.mean(1, keepdims=True)), "axis 0"),
    ("centred_cosine", lengths_first, "lengths came first"),
    ("centred_cosine", lambda v: (v - v.mean(0)) @ (v - v.mean(0)).T, "inner products"),
    ("centred_cosine", lambda v: cosine(v)[0], "shape"),
    ("axis", lambda v, a, b: axis(v, b, a), "changed places"),
    ("axis", lambda v, a, b: v @ way(v, a, b) / np.sum(way(v, a, b) ** 2), "stand at 0"),
    ("axis", lambda v, a, b: (v - v[a].mean(0)) @ way(v, a, b) / np.linalg.norm(way(v, a, b)), "length once"),
    ("axis", lambda v, a, b: (v - v[a].mean(0)) @ way(v, a, b), "squared length"),
    ("axis", lambda v, a, b: axis(v, a[:1], b[:1]), "take the means"),
    ("axis", lambda v, a, b: v - v[a].mean(0), "one number a vector"),
]


def test_right_answers_written_otherwise_pass():
    def by_distances(space, flat, k):
        return float(shares(space, flat, k).mean())

    def by_correlation(vectors):
        moved = vectors - vectors.mean(0)
        scale = np.sqrt(np.einsum("nd,nd->n", moved, moved))
        return np.einsum("id,jd->ij", moved, moved) / np.outer(scale, scale)

    def by_least_squares(vectors, left, right):
        start = vectors[left].mean(0)
        step = vectors[right].mean(0) - start
        return np.array([np.linalg.lstsq(step[:, None], row - start, rcond=None)[0][0] for row in vectors])

    assert EXERCISES["kept"].check(by_distances) is None
    assert EXERCISES["centred_cosine"].check(by_correlation) is None
    assert EXERCISES["axis"].check(by_least_squares) is None


def test_the_references_by_hand():
    line = np.array([[0.0, 0], [1, 0], [3, 0], [6, 0]])
    assert kept(line, line[:, :1], 1) == 1
    assert np.allclose(np.diag(centred_cosine(np.eye(3))), 1)
    assert np.allclose(centred_cosine(np.array([[2.0, 1], [0, 1]])), [[1, -1], [-1, 1]])
    assert axis(line, np.array([0]), np.array([3])).tolist() == [0, 1 / 6, 0.5, 1]
