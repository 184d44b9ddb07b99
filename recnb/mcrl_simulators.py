"""Two families of simulated raters, fitted on users that no agent was trained on, and episodes with them.

A simulator is a guess. Both families start from what a film and a user get on average; one adds the ratings of like
films, the other a few latent factors. Each comes as an ensemble over resampled users, whose spread says how much of a
guess it is. A result counts only where both agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from recnb.mcrl_evaluation import Score
from recnb.mcrl_training import GOOD, Log

Arrays = Sequence[np.ndarray]
SHRINK = 5.0  # ratings that stand in for a film or a user of whom little is known


class Rater(Protocol):
    """Predicts what users would give every item."""

    def predict(self, histories: Arrays, ratings: Arrays) -> np.ndarray:
        """Expected ratings (n, n_items) of users who gave these ratings to these items."""
        ...


@dataclass(frozen=True)
class Averages:
    """mu + b_i + b_u, with few ratings drawn towards none: what is left is a residual.

    Attributes:
        mean: mu.
        item: b_i (n_items,).
    """

    mean: float
    item: np.ndarray

    @classmethod
    def of(cls, log: Log, column: str = "ratings") -> Averages:
        """From the ratings of a log, or from its "rewards"."""
        items, given = np.concatenate(log.items), np.concatenate(getattr(log, column))
        mean = float(given.mean())
        sums, counts = np.bincount(items, given - mean, log.n_items), np.bincount(items, minlength=log.n_items)
        return cls(mean, sums / (counts + SHRINK))

    def user(self, items: np.ndarray, ratings: np.ndarray) -> float:
        """b_u of one history."""
        return float((ratings - self.mean - self.item[items]).sum() / (len(items) + SHRINK))

    def residuals(self, histories: Arrays, ratings: Arrays) -> tuple[np.ndarray, np.ndarray]:
        """What the averages do not explain (n, n_items), 0 where nothing was rated, and b_u (n, 1)."""
        left = np.zeros((len(histories), len(self.item)))
        users = np.array([self.user(h, r) for h, r in zip(histories, ratings, strict=True)]).reshape(-1, 1)
        for row, b, items, given in zip(left, users, histories, ratings, strict=True):
            row[items] = given - self.mean - self.item[items] - b
        return left, users


class Neighbours:
    """Averages, plus the residuals of like films weighted by their likeness.

    Likeness is the cosine of two films' residuals over users, times n / (n + ``shrink``) for n common users.
    """

    def __init__(self, log: Log, shrink: float = 10, ridge: float = 1) -> None:
        self.averages, self.ridge = Averages.of(log), ridge
        left, _ = self.averages.residuals(log.items, log.ratings)
        there = (left != 0).astype(float)
        common, size = there.T @ there, np.sqrt(np.square(left).sum(0)) + 1e-9
        self.like = left.T @ left / size[:, None] / size * common / (common + shrink)
        np.fill_diagonal(self.like, 0)

    def predict(self, histories: Arrays, ratings: Arrays) -> np.ndarray:
        """mu + b_u + b_i + sum_j s_ij e_uj / (sum_j |s_ij| + ridge)."""
        left, users = self.averages.residuals(histories, ratings)
        near = left @ self.like / ((left != 0) @ np.abs(self.like) + self.ridge)
        return self.averages.mean + users + self.averages.item + near


class Factors:
    """Averages, plus latent factors of the residuals by alternating ridge regressions; new users are folded in."""

    def __init__(self, log: Log, width: int = 16, ridge: float = 6, rounds: int = 8, seed: int = 0) -> None:
        self.averages, self.ridge = Averages.of(log), ridge
        left, _ = self.averages.residuals(log.items, log.ratings)
        there = left != 0
        self.items = np.random.default_rng(seed).normal(0, 0.1, (log.n_items, width))
        for _ in range(rounds):
            users = self._solve(self.items, left, there)
            self.items = self._solve(users, left.T, there.T)

    def _solve(self, known: np.ndarray, left: np.ndarray, there: np.ndarray) -> np.ndarray:
        """Ridge regression of every row's residuals on known factors."""
        gram = np.einsum("ni,ia,ib->nab", there.astype(float), known, known, optimize=True)
        gram += self.ridge * np.eye(known.shape[1])
        return np.linalg.solve(gram, (left @ known)[..., None])[..., 0]

    def predict(self, histories: Arrays, ratings: Arrays) -> np.ndarray:
        """mu + b_u + b_i + p_u q_i."""
        left, users = self.averages.residuals(histories, ratings)
        return self.averages.mean + users + self.averages.item + self._solve(self.items, left, left != 0) @ self.items.T


FAMILIES = {"neighbours": Neighbours, "factors": Factors}


class Ensemble:
    """A family fitted to several resamples of a log's users."""

    def __init__(self, family: str, log: Log, members: int = 5, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        draws = [rng.integers(0, len(log.items), len(log.items)) for _ in range(members)]
        self.members: list[Rater] = [FAMILIES[family](log.take(draw)) for draw in draws]

    def predict(self, histories: Arrays, ratings: Arrays) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation over members, (n, n_items) each; means within 1 to 5."""
        each = np.stack([member.predict(histories, ratings) for member in self.members]).clip(1, 5)
        return each.mean(0), each.std(0)


def quality(ensemble: Ensemble, log: Log) -> dict[str, float]:
    """How well the second halves of users' ratings are foretold from the first: RMSE, slope, AUC, beside averages.

    The slope is that of what was given on what was foretold: 1 when calibrated. AUC: liked above disliked, see `auc`.
    """
    half = [len(items) // 2 for items in log.items]
    known = [[column[:cut] for column, cut in zip(each, half, strict=True)] for each in (log.items, log.ratings)]
    table, _ = ensemble.predict(*known)
    foretold = np.concatenate([row[items[cut:]] for row, items, cut in zip(table, log.items, half, strict=True)])
    given = np.concatenate([ratings[cut:] for ratings, cut in zip(log.ratings, half, strict=True)])
    slope = float(np.cov(foretold, given)[0, 1] / foretold.var(ddof=1))
    rmse = float(np.sqrt(np.square(foretold - given).mean()))
    return {"RMSE": rmse, "RMSE of the mean": float(given.std()), "slope": slope, "AUC": auc(foretold, given)}


def auc(foretold: np.ndarray, given: np.ndarray) -> float:
    """The chance that a liked item is foretold above a disliked one; ratings of 3 are left out."""
    kept = (given >= GOOD) | (given <= 2)
    liked, places = given[kept] >= GOOD, rankdata(foretold[kept])
    ones, zeros = liked.sum(), (~liked).sum()
    return float((places[liked].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def episodes(score: Score, ensemble: Ensemble, log: Log, offered: np.ndarray, steps: int = 20) -> pd.DataFrame:
    """Let an agent serve each user of a log for some steps, without repeats; the ensemble answers.

    Args:
        score: the agent.
        ensemble: answers with a rating, which the agent's next state does not see; only the item joins the history.
        log: users with all they did before.
        offered: item ids that may be given.
        steps: an episode's length.

    Returns:
        ``user``, ``rating`` (mean over the steps), ``spread`` (mean standard deviation over members).
    """
    histories, rows = list(log.items), np.arange(len(log.items))
    means, spreads = ensemble.predict(log.items, log.ratings)  # what a user likes does not change on the way
    barred = np.ones(means.shape, dtype=bool)
    barred[:, offered] = False
    for row, items in zip(barred, histories, strict=True):
        row[items] = True
    got = []
    for _ in range(steps):
        picked = np.where(barred, -np.inf, score(histories)).argmax(1)
        barred[rows, picked] = True
        got.append((means[rows, picked], spreads[rows, picked]))
        histories = [np.append(history, item) for history, item in zip(histories, picked, strict=True)]
    rating, spread = np.mean(got, axis=0)
    return pd.DataFrame({"user": log.user, "rating": rating, "spread": spread})
