"""What counting alone achieves: the floors that stand beside every model.

Each floor scores all items for each history, by counts over the training sequences; there is nothing to train.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from recnb.data import Cases, Split


def popularity(split: Split, cases: Cases) -> np.ndarray:
    """Score of an item: how often it occurs in training. Returns (n, n_items)."""
    return np.tile(split.popularity().astype(np.float32), (len(cases), 1))


def _steps(sequences: list[np.ndarray], n_items: int, reach: int, decay: bool) -> sparse.csr_matrix:
    """Counts (n_items, n_items) of item j coming d <= reach steps after item i, weighted 1/d with decay."""
    total = sparse.csr_matrix((n_items, n_items), dtype=np.float64)
    for step in range(1, reach + 1):
        source = np.concatenate([sequence[:-step] for sequence in sequences])
        after = np.concatenate([sequence[step:] for sequence in sequences])
        weight = np.full(len(source), 1 / step if decay else 1.0)
        total = total + sparse.coo_matrix((weight, (source, after)), shape=total.shape)
    return total.tocsr()


def _last_items(cases: Cases, n_items: int, window: int, decay: bool) -> sparse.csr_matrix:
    """Weights (n, n_items) of the last ``window`` history items: 1, or 1/a for the a-th latest."""
    rows, columns, weights = [], [], []
    for row, history in enumerate(cases.history):
        recent = history[-window:][::-1] if window else history
        rows.append(np.full(len(recent), row))
        columns.append(recent)
        weights.append(1 / np.arange(1, len(recent) + 1) if decay else np.ones(len(recent)))
    index = (np.concatenate(rows), np.concatenate(columns))
    return sparse.csr_matrix((np.concatenate(weights), index), shape=(len(cases), n_items))


def markov(split: Split, cases: Cases) -> np.ndarray:
    """Markov-1: how often each item directly followed the latest item. Returns (n, n_items)."""
    counts = _steps(split.train, split.n_items, 1, decay=False)
    return (_last_items(cases, split.n_items, 1, decay=False) @ counts).toarray().astype(np.float32)


def window_markov(split: Split, cases: Cases, window: int = 10, smoothing: float = 10) -> np.ndarray:
    """Window-Markov: what came up to ``window`` steps after each of the last ``window`` items.

    score(j) = sum over the a-th latest item i of (1/a) * C(i, j) / (popularity(i) + smoothing), where C counts j
    coming d <= window steps after i with weight 1/d. Returns (n, n_items).
    """
    counts = _steps(split.train, split.n_items, window, decay=True)
    recent = _last_items(cases, split.n_items, window, decay=True)
    recent = recent.multiply(1 / (split.popularity() + smoothing)[None, :]).tocsr()
    return (recent @ counts).toarray().astype(np.float32)


def item_knn(split: Split, cases: Cases, window: int = 10) -> np.ndarray:
    """ItemKNN: cosine similarity of the items' user sets, summed over the last ``window`` items.

    Returns:
        scores (n, n_items); ``window=0`` uses the whole history.
    """
    rows = np.repeat(np.arange(len(split.train)), [len(sequence) for sequence in split.train])
    columns = np.concatenate(split.train)
    users = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), (len(split.train), split.n_items))
    users.data[:] = 1
    norm = np.sqrt(np.maximum(users.power(2).sum(0).A1, 1))
    cosine = sparse.csr_matrix(users.T @ users)
    cosine.setdiag(0)
    cosine = cosine.multiply(1 / norm[:, None]).multiply(1 / norm[None, :]).tocsr()
    return (_last_items(cases, split.n_items, window, decay=False) @ cosine).toarray().astype(np.float32)


FLOORS = {"Popularity": popularity, "Markov-1": markov, "Window-Markov": window_markov, "ItemKNN": item_knn}
