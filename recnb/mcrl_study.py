"""The runs behind notebook 08: every agent on every backbone, judged person by person, and kept with the package.

    python -m recnb.mcrl_study --backbones SASRec --seeds 0 1 2

Only means and sums a person are kept, never the data: any interval over people and seeds can be computed from them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from recnb import backbones, datasets, mcrl_evaluation, metrics, recommenders, runs
from recnb.backbones import BackboneConfig
from recnb.data import Dataset
from recnb.mcrl import Critic, McrlConfig
from recnb.mcrl_evaluation import Score
from recnb.mcrl_simulators import FAMILIES, Averages, Ensemble, episodes
from recnb.mcrl_training import MIN_HISTORY, Log, Plan, asked, heads, logs, trained
from recnb.store import plain
from recnb.training import Progress

SHIPPED = Path(__file__).parent / "trained" / "mcrl"
CLIPS = (1, 10, 100)
STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # of values or mean ratings beside scores, in standard deviations
OFFERED = 20  # ratings that a film needs to be offered by a simulated episode
SHORTLIST = 100
KEPT = 0.9  # of NDCG@10, when values or mean ratings are mixed in

_MCRL: dict[str, Any] = {"td": 1.0, "conservative": 0.1, "reward": 0.5, "transition": 0.5}
_WARM = 500  # steps, a third of a run
BASELINES: dict[str, dict[str, Any]] = {
    "CE": {},
    "SQN": {"td": 1.0},
    "SAC": {"td": 1.0, "actor": "value", "warm": _WARM},
    "SNQN": {"td": 1.0, "unchosen": 1.0},
    "SA2C": {"td": 1.0, "unchosen": 1.0, "actor": "advantage", "warm": _WARM},
    "MCRL-style": _MCRL,
}
ABLATIONS: dict[str, dict[str, Any]] = {
    "MCRL-style, no conservative term": {**_MCRL, "conservative": 0.0},
    "MCRL-style, no reward model": {**_MCRL, "reward": 0.0},
    "MCRL-style, no transition model": {**_MCRL, "transition": 0.0},
    "MCRL-style, gamma 0": {**_MCRL, "gamma": 0.0},
    "MCRL-style, no values": {**_MCRL, "td": 0.0},
    "MCRL-style, rewards shuffled": _MCRL,
    "SQN, gamma 0": {"td": 1.0, "gamma": 0.0},
    "SQN, rewards shuffled": {"td": 1.0},
    "CE, weighted by reward": {"actor": "reward"},
    "CE, dummy head": {"dummy": 1.0},
    "CE, twice as wide": {},
}
METHODS = BASELINES | ABLATIONS


def plan(method: str, backbone: str = "SASRec", seed: int = 0, epochs: int | None = None) -> Plan:
    """How a method is trained on a backbone.

    A critic learns from every other batch: methods with two critics get half as many epochs again as those with one.
    The last weights count: chosen among epochs by a thousand validation cases, they were early ones, by luck.

    Raises:
        ValueError: an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; allowed: {', '.join(METHODS)}")
    recipe, terms = recommenders.recipe(backbone, seed=seed), METHODS[method]
    width = recipe.model.dim * (2 if method.endswith("wide") else 1)
    model = McrlConfig(backbone=replace(recipe.model, max_length=50, dim=width), **terms)
    rounds = epochs or recipe.train.epochs * (3 if model.td else 2) // 2
    train = replace(recipe.train, epochs=rounds, eval_every=rounds)
    return Plan(model, train, deal=method.endswith("shuffled"))


@dataclass(frozen=True)
class Study:
    """Data and judges of all runs on one data set.

    Attributes:
        dataset: as loaded.
        parts: see `mcrl_training.logs`.
    """

    dataset: Dataset
    parts: dict[str, Log]

    @cached_property
    def averages(self) -> Averages:
        """What films get on average from the training users."""
        return Averages.of(self.parts["policy"])

    @cached_property
    def judges(self) -> dict[str, Ensemble]:
        """The simulators, fitted on users that no agent saw."""
        return {name: Ensemble(name, self.parts["judge"]) for name in FAMILIES}

    @cached_property
    def offered(self) -> np.ndarray:
        """Items with enough ratings for a simulator to know them."""
        logged = [self.parts[part].items for part in ("policy", "judge")]
        return np.flatnonzero(np.bincount(np.concatenate(sum(logged, [])), minlength=self.dataset.n_items) >= OFFERED)

    def expected(self, log: Log) -> np.ndarray:
        """What every item is worth on average to the users of a log, case by case (n, n_items); from the judges' users.

        A user's own generosity is taken from the history of the case.
        """
        means = Averages.of(self.parts["judge"], "rewards")
        pairs = zip(log.items, log.rewards, strict=True)
        users = [means.user(i[:t], r[:t]) for i, r in pairs for t in range(MIN_HISTORY, len(i))]
        return means.mean + np.array(users)[:, None] + means.item

    @cached_property
    def behaviour(self) -> np.ndarray:
        """The policy that wrote the log, as far as it can be guessed: a SASRec of the judges' users, as `policy`."""
        guessed = trained(self.dataset, self.parts | {"policy": self.parts["judge"]}, plan("CE"))
        return self.policy(head(guessed.critic, "scores"))

    def policy(self, score: Score) -> np.ndarray:
        """log pi(a | s) of the test cases (n, n_items), calibrated on validation users."""
        valid, cases = self.parts["valid"].cases(), self.parts["test"].cases()
        heat = mcrl_evaluation.temperature(score(valid.history), valid)
        return mcrl_evaluation.probabilities(score(cases.history), cases, heat)


def load(dataset: str = "ml-100k", reward: str | None = None, tie_seed: int | None = 0) -> Study:
    """The four groups of users of a data set; see `mcrl_training.logs` for the rewards."""
    log = datasets.load(dataset, tie_seed)
    return Study(log, logs(log, reward))


def standard(scores: np.ndarray) -> np.ndarray:
    """Each row with mean 0 and standard deviation 1."""
    return (scores - scores.mean(1, keepdims=True)) / scores.std(1, keepdims=True).clip(1e-9)


def mixed(critic: Critic, strength: float) -> Score:
    """Scores with values beside them."""

    def score(histories: list[np.ndarray]) -> np.ndarray:
        both = heads(critic, histories)
        return standard(both["scores"]) + strength * standard(both["values"])

    return score


def reranked(critic: Critic, means: np.ndarray, strength: float) -> Score:
    """The first hundred by score, with the films' mean ratings beside their scores: a control without learning."""

    def score(histories: list[np.ndarray]) -> np.ndarray:
        scores = standard(heads(critic, histories)["scores"])
        last = -np.sort(-scores, axis=1)[:, SHORTLIST - 1 : SHORTLIST]
        return np.where(scores >= last, scores + strength * means / means.std(), scores - 1e3)

    return score


def head(critic: Critic, name: str) -> Score:
    """One head of a critic, "scores" or "values"."""
    return lambda histories: heads(critic, histories)[name]


def traded(study: Study, make: Callable[[float], Score]) -> pd.DataFrame:
    """What validation users' next films and pools say at every strength: ``strength``, ``NDCG``, ``return``."""
    log, rows = study.parts["valid"], []
    held, cases = mcrl_evaluation.pool(log), asked(log)
    for strength in (0.0, *STRENGTHS):
        score = make(strength)
        gains = metrics.ranks(score(cases.history), cases.target, cases.history).ndcg(10).mean()
        earned = mcrl_evaluation.earned(held, mcrl_evaluation.replay(score, held), 0.9)
        rows.append({"strength": strength, "NDCG": gains, "return": earned["return"].mean()})
    return pd.DataFrame(rows)


def prudent(trade: pd.DataFrame) -> float:
    """The strength of the highest return that keeps nine tenths of the NDCG at strength 0."""
    kept = trade[trade["NDCG"] >= KEPT * trade["NDCG"].iloc[0]]
    return float(kept.loc[kept["return"].idxmax(), "strength"])


def rankings(study: Study, critic: Critic) -> tuple[dict[str, Score], dict[str, float]]:
    """Every way to rank with a critic, and the strengths that validation users chose, on stars (`prudent`)."""
    strengths: dict[str, float] = {}
    ways = {"scores": head(critic, "scores")}
    makers: dict[str, Callable[[float], Score]] = {"mean ratings": lambda s: reranked(critic, study.averages.item, s)}
    if critic.config.td:
        ways["values"] = head(critic, "values")
        makers = {"both": lambda s: mixed(critic, s)}
    if study.parts["valid"].stars:
        strengths = {name: prudent(traded(study, make)) for name, make in makers.items()}
        ways |= {name: makers[name](strengths[name]) for name in makers}
    return ways, strengths


def judged(study: Study, critic: Critic) -> tuple[pd.DataFrame, dict[str, float]]:
    """Everything that is measured of an agent: one row a test user and way of ranking, and the strengths chosen."""
    ways, strengths = rankings(study, critic)
    frames = []
    for name, score in ways.items():
        table = ladder(study, score, weighted=name == "scores")
        if name == "values":
            table = table.join(believed(study, critic))
        frames.append(table.reset_index(names="user").assign(by=name))
    return pd.concat(frames, ignore_index=True), strengths


def ladder(study: Study, score: Score, weighted: bool) -> pd.DataFrame:
    """Hits by reward and, on stars, replay, simulated episodes and one-step estimates: one row a test user.

    Args:
        study: the data and its judges.
        score: histories to scores of all items.
        weighted: whether the scores are a policy's, for the one-step estimates.
    """
    log = study.parts["test"]
    hits = mcrl_evaluation.by_reward(score, log)
    hits["gained"] = hits["HR"] * hits["reward"]
    table = hits.groupby("user")[["gained", "reward"]].sum()
    for kind, rows in hits.groupby("good"):
        means = rows.groupby("user").agg(HR=("HR", "mean"), NDCG=("NDCG", "mean"), cases=("HR", "size"))
        table = table.join(means.add_suffix(" good" if kind else " poor"))
    if not log.stars:
        return table
    held = mcrl_evaluation.pool(log)
    order = mcrl_evaluation.replay(score, held)
    for gamma in (0.5, 0.9):
        earned = mcrl_evaluation.earned(held, order, gamma).set_index("user")
        table[f"return {gamma}"] = earned["return"]
    table[["rating@5", "NDCG of ratings"]] = earned[["rating@5", "NDCG"]]
    for family, ensemble in study.judges.items():
        played = episodes(score, ensemble, log, study.offered).set_index("user")
        table[[f"{family} rating", f"{family} spread"]] = played[["rating", "spread"]]
    return table.join(estimates(study, score)) if weighted else table


def estimates(study: Study, score: Score) -> pd.DataFrame:
    """The sums a user that SNIPS, the doubly robust estimate and the effective sample size need, by clip."""
    log = study.parts["test"]
    cases, reward, expected = log.cases(), log.column(log.rewards), study.expected(log)
    policy, sums = study.policy(score), []
    for clip in CLIPS:
        found = mcrl_evaluation.one_step(policy, study.behaviour, cases, reward, expected, clip)
        found = found.assign(worth=found["weight"] * found["reward"], square=found["weight"] ** 2)
        kept = found.groupby("user")[["weight", "worth", "square", "direct", "robust"]].sum()
        sums.append(kept.add_suffix(f" {clip}"))
    return pd.concat(sums, axis=1)


def believed(study: Study, critic: Critic) -> pd.DataFrame:
    """What Q says of logged steps and of its favourites, beside the returns that followed: means a test user."""
    found = mcrl_evaluation.overestimation(head(critic, "values"), study.parts["test"], critic.config.gamma)
    return found.groupby("user").mean()


def folder_of(study: Study, method: str, backbone: str, seed: int) -> Path:
    """Where a run is kept."""
    return SHIPPED / study.dataset.name / f"{method.replace(',', '').replace(' ', '-')}.{backbone}.{seed}"


def run(
    methods: Sequence[str], backbone: str, seed: int, dataset: str, reward: str | None, keep: bool, threads: int
) -> None:
    """Run methods one after another: their judges are made once."""
    torch.set_num_threads(threads)
    study = load(dataset, reward)
    for method in methods:
        run_one(study, method, backbone, seed, reward, keep, threads)


def run_one(study: Study, method: str, backbone: str, seed: int, reward: str | None, keep: bool, threads: int) -> None:
    """Train one agent, judge it, and write what came out."""
    how = plan(method, backbone, seed)

    def report(now: Progress) -> None:
        print(f"{method} {backbone} {seed}: {now.epoch}/{now.epochs} {now.loss:.3f} {now.score:.4f}", flush=True)

    agent = trained(study.dataset, study.parts, how, report)
    table, strengths = judged(study, agent.critic)
    folder = folder_of(study, method, backbone, seed)
    folder.mkdir(parents=True, exist_ok=True)
    table.astype({"by": "category"}).to_parquet(folder / "people.parquet")
    agent.curve.to_parquet(folder / "curve.parquet")
    if keep:
        save_file(agent.critic.state_dict(), folder / "model.safetensors")
    about = {"method": method, "backbone": backbone, "seed": seed, "reward": reward, "plan": plain(how)}
    runs.describe(folder, "mcrl_study", threads, about | {"strengths": strengths} | agent.info)
    print(method, backbone, seed, table.groupby("by").mean(numeric_only=True).round(4).to_dict("index"), flush=True)


def shipped(study: Study, method: str, backbone: str = "SASRec", seed: int = 0) -> Critic:
    """A critic that came with the package.

    Raises:
        FileNotFoundError: when there is none of that name, with the names there are.
    """
    about, weights = runs.kept(folder_of(study, method, backbone, seed), "critic")
    told = about["plan"]
    model = told["model"]
    critic = Critic(study.dataset.n_items, McrlConfig(**{**model, "backbone": BackboneConfig(**model["backbone"])}))
    critic.load_state_dict(weights)
    return critic.eval()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what was asked for, several at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(BASELINES), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--backbones", nargs="*", default=["SASRec"], choices=backbones.NAMES)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--reward", help="tier, top, centred, debiased or logged")
    parser.add_argument("--keep", action="store_true", help="keep the weights, to ship them")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args(arguments)
    rest = (given.dataset, given.reward, given.keep)
    jobs = [(given.only, b, seed, *rest) for seed in given.seeds for b in given.backbones]
    runs.side_by_side(run, jobs, given.workers)


if __name__ == "__main__":
    main()
