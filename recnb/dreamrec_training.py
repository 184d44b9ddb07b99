"""Trains DreamRec in its two tracks, keeps it in the store, and ranks the catalogue with it.

*faithful* is the published recipe: one row a prefix, empty histories too, item vectors learnt from N(0, 1).
*strong* generates in the frozen item space of a SASRec that was trained to classify, is guided by that SASRec's own
states, and trains on all positions of a sequence at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recnb import backbones, data, diffusion, dreamrec, metrics, recommenders, training
from recnb.data import Cases, Dataset, Split
from recnb.dreamrec import DreamConfig, DreamRec, Guidance, Sampling, Sequences
from recnb.recommenders import Recipe, Report
from recnb.store import Store
from recnb.training import TrainConfig

CODE = (diffusion, dreamrec, backbones, data, metrics, training, recommenders, sys.modules[__name__])
WINDOW = 10


@dataclass(frozen=True)
class Plan:
    """One training run.

    Attributes:
        model: see `DreamConfig`.
        train: the optimisation.
        batch: rows a step (faithful).
        encoder: recipe of the SASRec that guides and lends its item vectors; None is the published encoder.
        how: the sampling that epochs are chosen with, on validation cases.
        classify: train the published encoder alone, by softmax over the catalogue: the control without diffusion.
    """

    model: DreamConfig = DreamConfig()
    train: TrainConfig = TrainConfig(epochs=20, lr=1e-3, patience=0, eval_every=5)
    batch: int = 256
    encoder: Recipe | None = None
    how: Sampling = Sampling(mean=True)
    classify: bool = False


STRONG = Plan(
    DreamConfig("modulated", "cosine", 1000, space="scaled"),
    TrainConfig(epochs=12, lr=1e-3, warmup=100, decay=True, patience=0, eval_every=2),
    encoder=recommenders.recipe("SASRec"),
    how=Sampling(w=0, few=10, temperature=0),
)


class Encoder(nn.Module):
    """The published encoder that scores items itself, h E^T, by the softmax of its parameters' own catalogue."""

    def __init__(self, guidance: Guidance) -> None:
        super().__init__()
        self.guidance = guidance
        nn.init.normal_(guidance.items.weight, std=0.02)  # scores must start small for a softmax

    def forward(self, history: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of what came next, for padded histories (B, L)."""
        return F.cross_entropy(self.guidance(history) @ self.guidance.table.T, target)

    def rank(self, h: Tensor, how: Sampling, seed: int = 0) -> Tensor:
        """Score of every item for states h, (B, n_items)."""
        return h @ self.guidance.table.T


Model = DreamRec | Encoder


def view(split: Split, plan: Plan) -> Split:
    """The split as a plan's model reads it: with start tokens in the strong track."""
    return data.started(split) if plan.encoder else split


def fresh(dataset: Dataset, split: Split, plan: Plan, report: Report = lambda _: None) -> Model:
    """An untrained model for a plan; the strong track's SASRec comes from the store or is trained now."""
    if plan.encoder:
        backbone = recommenders.trained(dataset, view(split, plan), plan.encoder, report).model
        training.seed_all(plan.train.seed)
        return DreamRec(Sequences(backbone), plan.model)
    training.seed_all(plan.train.seed)
    guidance = Guidance(split.n_items)
    if plan.classify:
        return Encoder(guidance)
    nn.init.normal_(guidance.items.weight)  # N(0, 1), as published
    return DreamRec(guidance, plan.model, torch.from_numpy(split.popularity()))


def batches(split: Split, plan: Plan) -> training.Batches:
    """An epoch's batches: every prefix as a row, in a new order; or whole sequences for the strong track."""
    if plan.encoder:
        recipe, whole = plan.encoder, view(split, plan)
        return lambda epoch, rng: recommenders.sequence_batches(whole, recipe, rng)
    cases = data.prefixes(split.train, np.arange(len(split.train)), 0, WINDOW)
    history, target = torch.from_numpy(cases.padded(WINDOW, split.n_items)[0]), torch.from_numpy(cases.target)

    def rows(epoch: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
        for part in torch.from_numpy(rng.permutation(len(target))).split(plan.batch):
            yield {"history": history[part], "target": target[part]}

    return rows


@torch.no_grad()
def states(model: Model, cases: Cases, batch: int = 1024) -> Tensor:
    """h of each case, (n, d); the last items that the guidance can hold are read."""
    guidance, found = model.guidance, []
    for start in range(0, len(cases), batch):
        part = cases.take(np.arange(start, min(start + batch, len(cases))))
        found.append(guidance(torch.from_numpy(part.padded(guidance.length, guidance.pad)[0])))
    return torch.cat(found)


@torch.no_grad()
def score(model: Model, cases: Cases, how: Sampling, seed: int = 0, batch: int = 2048) -> np.ndarray:
    """Likeness of every item to each case's oracle, (n, n_items), in evaluation mode."""
    model.eval()
    parts = states(model, cases).split(batch)
    return torch.cat([model.rank(h, how, seed + place) for place, h in enumerate(parts)]).numpy()


@torch.no_grad()
def score_as_published(model: DreamRec, cases: Cases, how: Sampling) -> tuple[np.ndarray, Cases]:
    """Scores (m, n_items + 1) as the published code takes them, and the m cases that it asks.

    Dropout stays on, the padding id competes, and what is left over from batches of 100 is not asked.
    """
    asked = cases.take(np.arange(len(cases) // 100 * 100))
    model.train()
    h, noise = states(model, asked), torch.Generator().manual_seed(0)
    model.eval()
    every = model.guidance.items.weight if isinstance(model.guidance, Guidance) else model.table
    return (model.oracle(h, how, noise) @ every.T).numpy(), asked


def validation(split: Split, plan: Plan) -> Callable[[nn.Module], float]:
    """NDCG@20 over the full catalogue on validation cases, nothing filtered, as in the paper."""
    cases = view(split, plan).valid

    def evaluate(model: nn.Module) -> float:
        return float(metrics.ranks(score(model, cases, plan.how), cases.target).ndcg(20).mean())  # type: ignore[arg-type]

    return evaluate


@dataclass(frozen=True)
class Trained:
    """A trained model with the story of its training.

    Attributes:
        model: the weights of its best validation epoch.
        curve: see `training.Fit`.
        info: best epoch, its NDCG@20 on validation, seconds.
    """

    model: Model
    curve: pd.DataFrame
    info: dict[str, Any]


def trained(dataset: Dataset, split: Split, plan: Plan, report: Report = lambda _: None) -> Trained:
    """What a plan gives on this split, from the store or trained now; an interrupted training goes on."""
    store = Store()
    cases = [int(part.user.sum()) for part in (split.valid, split.test)]
    key = {"data": dataset.digest, "split": split.name, "plan": plan, "n": len(split.train), "cases": cases}
    folder = store.folder("dreamrec", key, CODE)
    model = fresh(dataset, split, plan, report)

    def make() -> dict[str, Any]:
        done = training.fit(
            model, batches(split, plan), plan.train, validation(split, plan), folder.with_suffix(".checkpoint"), report
        )
        info = {"best_epoch": done.best_epoch, "valid": done.best, "seconds": float(done.curve["seconds"].iloc[-1])}
        return {"model.safetensors": model.state_dict(), "curve.parquet": done.curve, "info.json": info}

    files = store.load_or_make("dreamrec", key, make, CODE)
    model.load_state_dict(files["model.safetensors"])
    return Trained(model.eval(), files["curve.parquet"], files["info.json"])


def seeded(plan: Plan, seed: int) -> Plan:
    """The plan with another seed of everything random, its SASRec's too."""
    encoder = plan.encoder and replace(plan.encoder, train=replace(plan.encoder.train, seed=seed))
    return replace(plan, train=replace(plan.train, seed=seed), encoder=encoder)


def tuned(model: DreamRec, split: Split, plan: Plan, choices: list[Sampling]) -> pd.DataFrame:
    """NDCG@20 and HR@20 on validation cases of every way of sampling, best first: ``how``, ``NDCG@20``, ``HR@20``."""
    cases, rows = view(split, plan).valid, []
    for how in choices:
        ranks = metrics.ranks(score(model, cases, how), cases.target)
        rows.append({"how": how, "NDCG@20": ranks.ndcg(20).mean(), "HR@20": ranks.hit_rate(20).mean()})
    return pd.DataFrame(rows).sort_values("NDCG@20", ascending=False, ignore_index=True)
