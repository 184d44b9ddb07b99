"""Ranking metrics with honest ties, intervals over users and seeds, and paired tests.

A tie is broken by expectation: when e other items score exactly as the target does, the target is equally
likely at any of the e + 1 places, and each metric is the mean over those places. A recommender that gives all
items one score thus gets what a random order gets, not 0 and not 1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

MODES = ("filtered", "kept")


@dataclass(frozen=True)
class Ranks:
    """Where the targets stand.

    Attributes:
        above: how many candidates score above the target, shape (n,).
        tied: how many others score exactly as the target does, shape (n,).
    """

    above: np.ndarray
    tied: np.ndarray

    def _mean_gain(self, gain: np.ndarray) -> np.ndarray:
        """Mean of ``gain[place]`` over the places that the target may take; gain 0 beyond its end."""
        total = np.concatenate([[0.0], np.cumsum(gain)])
        first = np.minimum(self.above, len(gain))
        last = np.minimum(self.above + self.tied + 1, len(gain))
        return (total[last] - total[first]) / (self.tied + 1)

    def hit_rate(self, k: int) -> np.ndarray:
        """HR@k of each case: 1 when the target is among the first k (a share of it under ties)."""
        return self._mean_gain(np.ones(k))

    def ndcg(self, k: int) -> np.ndarray:
        """NDCG@k with one relevant item: 1 / log2(place + 1), places from 1."""
        return self._mean_gain(1 / np.log2(np.arange(2, k + 2)))

    def mrr(self, k: int | None = None) -> np.ndarray:
        """Reciprocal place, places from 1; 0 beyond k when k is given."""
        reach = k or int((self.above + self.tied).max(initial=0)) + 1
        return self._mean_gain(1 / np.arange(1, reach + 1))


def ranks(scores: np.ndarray, target: np.ndarray, seen: Sequence[np.ndarray] | None = None) -> Ranks:
    """Rank each case's target over the whole catalogue.

    Args:
        scores: (n, n_items), higher is better; not changed.
        target: item id of each case (n,).
        seen: item ids of each case that do not compete (the user's history); None lets all compete. The
            target itself always competes.

    Raises:
        ValueError: when a score is NaN: the rank would silently be the best.
    """
    scores = np.asarray(scores)
    if np.isnan(scores).any():
        row = int(np.flatnonzero(np.isnan(scores).any(1))[0])
        raise ValueError(f"scores of case {row} hold NaN; a model that diverged cannot be ranked")
    rows = np.arange(len(target))
    own = scores[rows, target][:, None]
    above, tied = (scores > own).sum(1), (scores == own).sum(1) - 1
    for case, items in enumerate(seen if seen is not None else ()):
        barred = np.unique(items)
        barred = scores[case, barred[barred != target[case]]]
        above[case] -= (barred > own[case]).sum()
        tied[case] -= (barred == own[case]).sum()
    return Ranks(above, tied)


def candidate_ranks(scores: np.ndarray, target: np.ndarray, table: np.ndarray) -> Ranks:
    """Rank each target among its candidates only, for HitRatio@1 of 20.

    Args:
        scores: (n, n_items) over the catalogue.
        target: (n,) item ids.
        table: (n, size) candidate ids, each row holding its target once.
    """
    own = scores[np.arange(len(target)), target][:, None]
    picked = np.take_along_axis(scores, table, axis=1)
    return Ranks((picked > own).sum(1), (picked == own).sum(1) - 1)


def evaluate(
    scores: np.ndarray, target: np.ndarray, history: Sequence[np.ndarray], ks: Sequence[int] = (10, 20)
) -> dict[str, np.ndarray]:
    """Per-case HR@K, NDCG@K and MRR, with seen items ``filtered`` and ``kept``.

    Returns:
        name such as ``"NDCG@10 filtered"`` -> values (n,).
    """
    table = {}
    for mode, seen in zip(MODES, (history, None), strict=True):
        placed = ranks(scores, target, seen)
        for k in ks:
            table[f"HR@{k} {mode}"] = placed.hit_rate(k)
            table[f"NDCG@{k} {mode}"] = placed.ndcg(k)
        table[f"MRR {mode}"] = placed.mrr()
    return table


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval.

    Attributes:
        value: the mean.
        low: lower end.
        high: upper end.
        n: units resampled (users or cases).
        seeds: training seeds behind it.
    """

    value: float
    low: float
    high: float
    n: int
    seeds: int = 1

    def __str__(self) -> str:
        """Such as ``.114 [.101, .128]``."""
        value, low, high = (re.sub(r"^(-?)0\.", r"\1.", f"{x:.3f}") for x in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"


def bootstrap(values: np.ndarray, groups: np.ndarray | None = None, draws: int = 2000) -> Interval:
    """95 % bootstrap interval of a mean over users and, when there are several, training seeds.

    Seeds and users are resampled independently of each other (a crossed bootstrap), since every seed answers for
    the same users.

    Args:
        values: (n,) or (seeds, n), one value a case.
        groups: user id of each case when a user has several; whole users are then resampled. None: each case is
            its own user.
        draws: bootstrap samples.

    Raises:
        ValueError: when there are no values.
    """
    values = np.atleast_2d(np.asarray(values, dtype=float))
    if values.size == 0:
        raise ValueError("no values to bootstrap")
    n_seeds, n = values.shape
    users = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    size = np.bincount(users).astype(float)
    total = np.stack([np.bincount(users, row) for row in values])
    rng = np.random.default_rng(0)
    means = np.empty(draws)
    for i in range(draws):
        weight = np.bincount(rng.integers(0, len(size), len(size)), minlength=len(size))
        seeds = rng.integers(0, n_seeds, n_seeds)
        means[i] = (total[seeds].mean(0) @ weight) / (size @ weight)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high), len(size), n_seeds)


def paired(ours: np.ndarray, other: np.ndarray, groups: np.ndarray | None = None) -> Interval:
    """Interval of the difference ours - other on the same cases; shapes (n,) or (seeds, n) each.

    A method with one run is compared with every seed of the other; two methods with several seeds are paired
    seed by seed, and where one has more, its first ones count.

    Raises:
        ValueError: when the cases differ in number.
    """
    ours, other = np.atleast_2d(ours), np.atleast_2d(other)
    if ours.shape[1] != other.shape[1]:
        raise ValueError(f"paired needs the same cases: {ours.shape[1]} against {other.shape[1]}")
    if len(ours) > 1 and len(other) > 1:
        ours, other = ours[: len(other)], other[: len(ours)]
    return bootstrap(ours - other, groups)


def sign_flip_test(ours: np.ndarray, other: np.ndarray, draws: int = 9999) -> float:
    """Two-sided p-value that ours and other differ in mean, by flipping the sign of paired differences.

    Args:
        ours: (n,) one value a user.
        other: (n,) for the same users.
        draws: random sign patterns.
    """
    difference = np.asarray(ours, dtype=float) - np.asarray(other, dtype=float)
    if not np.any(difference):
        return 1.0
    rng = np.random.default_rng(0)
    means = [
        (rng.choice([-1.0, 1.0], (len(block), len(difference))) @ difference) / len(difference)
        for block in np.array_split(np.arange(draws), max(1, draws // 1000))
    ]
    beyond = np.abs(np.concatenate(means)) >= abs(difference.mean()) - 1e-12
    return float((beyond.sum() + 1) / (draws + 1))


def wilson(hits: float, n: int) -> Interval:
    """Wilson 95 % interval of a share, for counts such as 43 of 95.

    Args:
        hits: number of successes; rounded to a whole number.
        n: number of trials.
    """
    share = stats.binomtest(round(hits), n).proportion_ci(method="wilson")
    return Interval(hits / n, float(share.low), float(share.high), n)


def chosen(answer: str, offered: Sequence[str], exact: bool = True) -> int:
    """Which candidate a generated answer names; -1 when it names none.

    Args:
        answer: the generated line.
        offered: the candidates' titles.
        exact: the answer must be a title, letter case aside. False is LLaRA's published rule: exactly one title must
            occur *within* the answer, so a right answer is lost when another title is part of it ("M", "Ran").
    """
    said, titles = answer.strip().lower(), [title.strip().lower() for title in offered]
    if exact:
        return titles.index(said) if said in titles else -1
    found = [place for place, title in enumerate(titles) if title in said]
    return found[0] if len(found) == 1 else -1
