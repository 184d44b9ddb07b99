"""Rewards, transitions and training for notebook 08."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from recnb import backbones, data, mcrl, metrics, recommenders, training
from recnb.data import Cases, Dataset, pad_right
from recnb.mcrl import Critic, Mcrl, McrlConfig
from recnb.recommenders import Report, packed, pieces
from recnb.store import Store
from recnb.training import TrainConfig

CODE = (mcrl, backbones, training, data, recommenders, sys.modules[__name__])
MIN_HISTORY = 5
GOOD = 4  # a rating from which a film counts as liked


def _debiased(ratings: list[np.ndarray], shrink: float = 5) -> list[np.ndarray]:
    """Each rating minus what the user gave before, on average; the first are measured against everybody's mean."""
    mean = float(np.concatenate(ratings).mean())
    gaps = []
    for given in ratings:
        before = np.concatenate([[0.0], np.cumsum(given - mean)[:-1]])
        gaps.append(given - mean - before / (np.arange(len(given)) + shrink))
    spread = np.concatenate(gaps).std()
    return [gap / spread for gap in gaps]


REWARDS: dict[str, Callable[[list[np.ndarray]], list[np.ndarray]]] = {
    "tier": lambda ratings: [np.where(given >= GOOD, 1.0, 0.2) for given in ratings],
    "top": lambda ratings: [np.where(given >= 5, 1.0, 0.2) for given in ratings],
    "centred": lambda ratings: [(given - 3) / 2 for given in ratings],
    "debiased": _debiased,
    "logged": lambda ratings: [given.astype(float) for given in ratings],
}


@dataclass(frozen=True)
class Log:
    """Histories of some users with what they were worth.

    Attributes:
        n_items: size of the catalogue.
        user: user ids (n,).
        items: item ids of each user, oldest first.
        ratings: as logged, aligned with ``items``.
        rewards: what the agent is told, aligned.
        times: in seconds, aligned.
        stars: whether the ratings are stars, one an item at most; else they are rewards of actions that repeat.
    """

    n_items: int
    user: np.ndarray
    items: list[np.ndarray]
    ratings: list[np.ndarray]
    rewards: list[np.ndarray]
    times: list[np.ndarray]
    stars: bool = True

    def take(self, index: np.ndarray) -> Log:
        """The users at these positions."""
        names = ("items", "ratings", "rewards", "times")
        columns: dict[str, Any] = {name: [getattr(self, name)[i] for i in index] for name in names}
        return replace(self, user=self.user[index], **columns)

    def cases(self, least: int = MIN_HISTORY) -> Cases:
        """Every step with at least ``least`` items before it, as a next-item case."""
        return data.prefixes(self.items, self.user, least)

    def good(self) -> np.ndarray:
        """Which targets of `cases` were liked, or carted where there are no stars (n,)."""
        return self.column(self.ratings) >= (GOOD if self.stars else 1)

    def column(self, values: list[np.ndarray], least: int = MIN_HISTORY) -> np.ndarray:
        """Values aligned with ``items`` as values of the targets of `cases` (n,)."""
        return np.concatenate([some[least:] for some in values])


def logs(
    dataset: Dataset, reward: str | None = None, seed: int = 0, shares: tuple[float, ...] = (0.6, 0.2, 0.1)
) -> dict[str, Log]:
    """Users at random: "policy" trains the agents, "judge" all that judges them; "valid" chooses, "test" reports.

    Args:
        dataset: with ratings, or with rewards in their place.
        reward: one of `REWARDS`; None takes "tier" on stars and what was logged elsewhere.
        seed: of the draw.
        shares: of all but "test".

    Raises:
        ValueError: an unknown reward, or events without ratings.
    """
    stars = bool((dataset.events["rating"] >= 1).mean() > 0.5)
    reward = reward or ("tier" if stars else "logged")
    if reward not in REWARDS:
        raise ValueError(f"reward {reward!r}; allowed: {', '.join(REWARDS)}")
    if dataset.events["rating"].isna().any():
        raise ValueError(f"{dataset.name} has events without a rating; offline learning needs what they were worth")
    items, ratings, times = (dataset.sequences(column) for column in ("item", "rating", "timestamp"))
    whole = Log(dataset.n_items, np.arange(len(items)), items, ratings, REWARDS[reward](ratings), times, stars)
    order = np.random.default_rng(seed).permutation(len(items))
    cuts = np.round(np.cumsum(shares) * len(order)).astype(int)
    parts = zip(("policy", "judge", "valid", "test"), np.split(order, cuts), strict=True)
    return {name: whole.take(np.sort(some)) for name, some in parts}


def shuffled(log: Log, seed: int = 0) -> Log:
    """The log with its rewards dealt anew among all its events: the control that knows nothing of reward."""
    rewards = np.random.default_rng(seed).permutation(np.concatenate(log.rewards))
    return replace(log, rewards=np.split(rewards, np.cumsum([len(some) for some in log.items])[:-1]))


@dataclass(frozen=True)
class Plan:
    """One training run.

    Attributes:
        model: which terms there are.
        train: the optimisation.
        tokens: positions in a batch, padding included.
        deal: deal the rewards anew, see `shuffled`.
    """

    model: McrlConfig = field(default_factory=McrlConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tokens: int = 1024
    deal: bool = False


def batches(log: Log, plan: Plan) -> Callable[[int, np.random.Generator], Iterator[dict[str, Any]]]:
    """Batches of an epoch for `training.fit`; events of one timestamp come in a new order every time."""
    log = shuffled(log) if plan.deal else log
    length = plan.model.backbone.max_length - 1  # with the item after it a piece is as long as a backbone reads

    def epoch(_: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
        cut = []
        for user, (items, rewards, times) in enumerate(zip(log.items, log.rewards, log.times, strict=True)):
            order = np.lexsort((rng.random(len(items)), times))
            for piece, skip in pieces([order], length, rng):
                ends = bool(piece[-1] == order[-1])
                cut.append((items[piece], rewards[piece], ends, skip, user))
        rank = np.argsort([len(piece[0]) * rng.uniform(0.9, 1.1) for piece in cut], kind="stable")
        groups = packed(rank, [len(piece[0]) for piece in cut], plan.tokens)
        for index in rng.permutation(len(groups)):
            yield collated([cut[place] for place in groups[index]], log)

    return epoch


def collated(group: list[tuple], log: Log) -> dict[str, Any]:
    """Pieces as what `Mcrl.forward` takes."""
    items, rewards, ends, skip, user = zip(*group, strict=True)
    sequence, _ = pad_right(list(items), max(map(len, items)), log.n_items)
    worth, known = np.zeros(sequence.shape, dtype=np.float32), np.zeros((len(group), log.n_items), dtype=bool)
    for row, values, had, one in zip(worth, rewards, known, user, strict=True):
        row[: len(values)] = values
        had[log.items[one]] = True
    arrays = {"sequence": sequence, "reward": worth, "ends": np.array(ends), "skip": np.array(skip), "known": known}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@torch.no_grad()
def states(critic: Critic, histories: list[np.ndarray], batch: int = 256) -> Tensor:
    """State after each history (n, d), on the CPU; the last ``max_length`` items are read."""
    backbone = critic.eval().backbone
    device, found = critic.values.weight.device, torch.empty(len(histories), backbone.config.dim)
    order = np.argsort([len(history) for history in histories], kind="stable")
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        recent = [histories[row][-backbone.config.max_length :] for row in rows]
        items, _ = pad_right(recent, max(1, *map(len, recent)), backbone.n_items)
        found[rows] = backbone.hidden(torch.from_numpy(items).to(device)).cpu()
    return found


@torch.no_grad()
def heads(critic: Critic, histories: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Both heads for each history: "scores" and "values" of all items, (n, n_items) each."""
    found = states(critic, histories).to(critic.values.weight.device)
    return {"scores": critic.backbone.score(found).cpu().numpy(), "values": critic.values(found).cpu().numpy()}


@dataclass(frozen=True)
class Trained:
    """A trained agent with the story of its training; see `recommenders.Trained`."""

    model: Mcrl
    curve: pd.DataFrame
    info: dict[str, Any]

    @property
    def critic(self) -> Critic:
        """The first critic, the one that is used."""
        return self.model.critics[0]


def asked(log: Log, count: int = 1000) -> Cases:
    """Cases of a log, drawn once."""
    cases = log.cases()
    return cases.take(np.random.default_rng(0).permutation(len(cases))[:count])


def validation(log: Log) -> Callable[[Any], float]:
    """NDCG@10 of the scores on `asked` cases; where a user rates an item once, seen items are filtered."""
    cases = asked(log)

    def evaluate(model: Any) -> float:
        scores = heads(model.critics[0], cases.history)["scores"]
        return float(metrics.ranks(scores, cases.target, cases.history if log.stars else None).ndcg(10).mean())

    return evaluate


def trained(dataset: Dataset, parts: dict[str, Log], plan: Plan, report: Report = lambda _: None) -> Trained:
    """The agent that a plan gives, from the store or trained now; an interrupted training goes on."""
    log, store = parts["policy"], Store()
    key = {"data": dataset.digest, "users": log.user.tolist(), "plan": plan}
    key |= {"reward": float(np.concatenate(log.rewards) @ np.arange(sum(map(len, log.items))))}
    folder = store.folder("mcrl", key, CODE)
    training.seed_all(plan.train.seed)
    model = Mcrl(log.n_items, plan.model)

    def make() -> dict[str, Any]:
        done = training.fit(
            model, batches(log, plan), plan.train, validation(parts["valid"]), folder.with_suffix(".checkpoint"), report
        )
        info = {"best_epoch": done.best_epoch, "valid": done.best, "seconds": float(done.curve["seconds"].iloc[-1])}
        return {"model.safetensors": model.state_dict(), "curve.parquet": done.curve, "info.json": info}

    files = store.load_or_make("mcrl", key, make, CODE)
    model.load_state_dict(files["model.safetensors"])
    return Trained(model.eval(), files["curve.parquet"], files["info.json"])
