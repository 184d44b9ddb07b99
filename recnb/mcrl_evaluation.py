"""How an offline agent is judged without asking anybody: hits by reward, replay, weighting, and Q against returns.

No evaluator here learns from the agents' training users, and none needs a simulator (`mcrl_simulators` has those).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from recnb import metrics
from recnb.data import Cases
from recnb.mcrl_training import Log

Score = Callable[[list[np.ndarray]], np.ndarray]  # histories to scores of all items (n, n_items)


def returns(rewards: np.ndarray, gamma: float) -> np.ndarray:
    """G_t = r_t + gamma G_{t+1}, of every step to the end (T,)."""
    total, found = 0.0, np.empty(len(rewards))
    for step in range(len(rewards) - 1, -1, -1):
        found[step] = total = rewards[step] + gamma * total
    return found


def overestimation(value: Score, log: Log, gamma: float, block: int = 1000) -> pd.DataFrame:
    """What Q says of the logged step and of its own favourite, beside the return that followed the logged step.

    Args:
        value: histories to Q of all items (n, n_items).
        log: whose cases are asked.
        gamma: discount.
        block: cases at once.

    Returns:
        one row a case: ``user``, ``taken`` Q(s, a), ``best`` max_a Q(s, a), over what the user has not had where items
        come once, and ``returned``, G.
    """
    cases, found = log.cases(), []
    for start in range(0, len(cases), block):
        some = cases.take(np.arange(start, min(start + block, len(cases))))
        values = np.array(value(some.history))
        taken = values[np.arange(len(some)), some.target]
        for row, history in zip(values, some.history if log.stars else (), strict=log.stars):
            row[history] = -np.inf
        found.append(pd.DataFrame({"user": some.user, "taken": taken, "best": values.max(1)}))
    followed = log.column([returns(rewards, gamma) for rewards in log.rewards])
    return pd.concat(found, ignore_index=True).assign(returned=followed)


@dataclass(frozen=True)
class Pool:
    """Users with what they rated last, hidden: only these items may be picked, and their true ratings are known.

    Attributes:
        user: ids (n,).
        history: what came before (n arrays).
        items: the pool of each user (n, m).
        ratings: their true ratings (n, m).
        rewards: what they are worth (n, m).
    """

    user: np.ndarray
    history: list[np.ndarray]
    items: np.ndarray
    ratings: np.ndarray
    rewards: np.ndarray


def pool(log: Log, size: int = 30, least: int = 10) -> Pool:
    """The last ``size`` items of every user with at least ``least`` before them.

    Raises:
        ValueError: when there is no such user.
    """
    kept = [row for row, items in enumerate(log.items) if len(items) >= size + least]
    if not kept:
        raise ValueError(f"no user has {size + least} items; ask for a smaller pool than {size}")
    hidden = [np.stack([column[row][-size:] for row in kept]) for column in (log.items, log.ratings, log.rewards)]
    return Pool(log.user[kept], [log.items[row][:-size] for row in kept], *hidden)


def replay(score: Score, held: Pool, picks: int = 10) -> np.ndarray:
    """Which pool items an agent picks, one after the other; each pick joins the history: places (n, picks)."""
    histories, order = list(held.history), np.empty((len(held.user), picks), dtype=int)
    left = np.ones(held.items.shape, dtype=bool)
    rows = np.arange(len(held.user))
    for step in range(picks):
        offered = np.take_along_axis(score(histories), held.items, 1)
        order[:, step] = np.where(left, offered, -np.inf).argmax(1)
        left[rows, order[:, step]] = False
        taken = held.items[rows, order[:, step]]
        histories = [np.append(history, item) for history, item in zip(histories, taken, strict=True)]
    return order


def fixed_orders(held: Pool, item_means: np.ndarray) -> dict[str, np.ndarray]:
    """Orders that need no agent: as logged, by the items' mean rating, and the best there is. Places (n, m) each."""
    return {
        "as logged": np.tile(np.arange(held.items.shape[1]), (len(held.user), 1)),
        "mean rating": np.argsort(-item_means[held.items], axis=1, kind="stable"),
        "oracle": np.argsort(-held.ratings, axis=1, kind="stable"),
    }


def earned(held: Pool, order: np.ndarray, gamma: float, picks: int = 10) -> pd.DataFrame:
    """What an order came to: ``return@picks``, ``rating@5`` (mean of the first five picks), ``NDCG`` on ratings."""
    rewards, ratings = (np.take_along_axis(column, order, 1) for column in (held.rewards, held.ratings))
    discount = gamma ** np.arange(picks)
    gain, best = 2.0 ** ratings[:, :picks] - 1, 2.0 ** -np.sort(-held.ratings, axis=1)[:, :picks] - 1
    weight = 1 / np.log2(np.arange(2, picks + 2))
    table = {"return": (rewards[:, :picks] * discount).sum(1), "rating@5": ratings[:, :5].mean(1)}
    return pd.DataFrame({"user": held.user, **table, "NDCG": (gain @ weight) / (best @ weight)})


def by_chance(held: Pool, gamma: float, picks: int = 10) -> pd.DataFrame:
    """`earned` of a random order, in expectation."""
    gain, best = 2.0**held.ratings - 1, 2.0 ** -np.sort(-held.ratings, axis=1)[:, :picks] - 1
    weight = 1 / np.log2(np.arange(2, picks + 2))
    worth = held.rewards.mean(1) * (gamma ** np.arange(picks)).sum()
    ndcg = gain.mean(1) * weight.sum() / (best @ weight)
    return pd.DataFrame({"user": held.user, "return": worth, "rating@5": held.ratings.mean(1), "NDCG": ndcg})


def by_reward(score: Score, log: Log, k: int = 10, block: int = 1000) -> pd.DataFrame:
    """Hits and gains of every case: ``user``, ``good``, ``reward``, ``HR``, ``NDCG``.

    Seen items are filtered where nobody gets an item twice; where actions repeat, they compete.
    """
    cases, found = log.cases(), []
    for start in range(0, len(cases), block):
        some = cases.take(np.arange(start, min(start + block, len(cases))))
        placed = metrics.ranks(score(some.history), some.target, some.history if log.stars else None)
        found.append(pd.DataFrame({"user": some.user, "HR": placed.hit_rate(k), "NDCG": placed.ndcg(k)}))
    return pd.concat(found, ignore_index=True).assign(good=log.good(), reward=log.column(log.rewards))


def probabilities(scores: np.ndarray, cases: Cases, temperature: float = 1.0) -> np.ndarray:
    """softmax(scores / T) over what a user has not had yet, as logarithms (n, n_items); -inf for the rest."""
    logits = scores.astype(np.float32) / np.float32(temperature)
    for row, history, target in zip(logits, cases.history, cases.target, strict=True):
        row[history[history != target]] = -np.inf
    return torch.from_numpy(logits).log_softmax(1).numpy()


def temperature(scores: np.ndarray, cases: Cases, grid: Sequence[float] = tuple(np.geomspace(0.3, 3, 21))) -> float:
    """The temperature under which the targets are likeliest: what makes scores a calibrated policy."""
    rows = np.arange(len(cases))
    likely = [probabilities(scores, cases, heat)[rows, cases.target].mean() for heat in grid]
    return float(grid[int(np.argmax(likely))])


def one_step(
    policy: np.ndarray, behaviour: np.ndarray, cases: Cases, reward: np.ndarray, expected: np.ndarray, clip: float
) -> pd.DataFrame:
    """The terms of SNIPS and of the doubly robust estimate, case by case.

    w = min(pi(a | s) / b(a | s), clip); SNIPS is sum w r / sum w, the doubly robust estimate the mean of
    E_pi[r_hat(s, .)] + w (r - r_hat(s, a)).

    Args:
        policy: log pi (n, n_items).
        behaviour: log b (n, n_items).
        cases: what was logged.
        reward: of each case (n,).
        expected: r_hat (n, n_items).
        clip: largest weight.
    """
    rows = np.arange(len(cases))
    ratio = np.exp(policy[rows, cases.target] - behaviour[rows, cases.target])
    weight = np.minimum(ratio, clip)
    direct = (np.exp(policy) * expected).sum(1)
    robust = direct + weight * (reward - expected[rows, cases.target])
    return pd.DataFrame({"user": cases.user, "weight": weight, "reward": reward, "direct": direct, "robust": robust})


def effective_size(weight: np.ndarray) -> float:
    """(sum w)^2 / sum w^2: how many cases the weighted mean really rests on."""
    return float(weight.sum() ** 2 / np.square(weight).sum())


def ratio(above: np.ndarray, below: np.ndarray, draws: int = 2000) -> metrics.Interval:
    """A ratio of sums over users, with an interval over users: SNIPS of sums w r and w, DR of sums and counts."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(above), (draws, len(above)))
    low, high = np.percentile(above[drawn].sum(1) / below[drawn].sum(1), [2.5, 97.5])
    return metrics.Interval(float(above.sum() / below.sum()), float(low), float(high), len(above))
