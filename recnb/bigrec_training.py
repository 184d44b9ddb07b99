"""Trains BIGRec's language model: the plan of a run, its batches, and the store."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from recnb import bigrec, data, llm, training, tuned
from recnb.bigrec import BigRec, BigRecConfig, Catalogue, Instructions
from recnb.data import Cases
from recnb.recommenders import Report
from recnb.store import Store
from recnb.study import WINDOW, Study
from recnb.training import TrainConfig

CODE = (bigrec, llm, tuned, training, data, sys.modules[__name__])
ROUND = 128  # rows between two reports and checkpoints
LOOKS = 4  # evaluations of a run; the best weights are kept


@dataclass(frozen=True)
class Plan:
    """One training run.

    Attributes:
        rows: training rows, see `drawn`.
        passes: how often each is seen.
        lr: peak learning rate; the paper's is 1e-4, for a model fifty times larger.
        batch: rows a step; the paper's 128 would leave the smaller runs one step a pass.
        micro: rows at once.
        watched: validation rows whose answers' loss chooses the weights.
        seed: of weights, rows and their order.
        model: see `BigRecConfig`.
        lm: name of the language model.
    """

    rows: int = 1024
    passes: int = 2
    lr: float = 6e-3
    batch: int = 4
    micro: int = 4
    watched: int = 64
    seed: int = 0
    model: BigRecConfig = field(default_factory=BigRecConfig)
    lm: str = llm.DEFAULT


def recent(cases: Cases) -> Cases:
    """Cases with the last ten items of their histories: what a prompt lists is all that anybody reads."""
    return replace(cases, history=[history[-WINDOW:] for history in cases.history])


def drawn(cases: Cases, count: int, seed: int) -> Cases:
    """``count`` cases drawn with ``seed``; a larger draw begins with the smaller ones."""
    return cases.take(np.random.default_rng(seed).permutation(len(cases))[:count])


class Rows:
    """Deals the training rows into rounds of micro-batches; round and seed decide them alone.

    Args:
        train: all training rows.
        write: writes the prompts.
        plan: the run.
    """

    def __init__(self, train: Cases, write: Instructions, plan: Plan) -> None:
        self.write, self.plan = write, plan
        self.cases = drawn(train, plan.rows, plan.seed)
        rng = np.random.default_rng([plan.seed, len(self.cases)])
        self.order = np.concatenate([rng.permutation(len(self.cases)) for _ in range(plan.passes)])
        self.rounds = -(-len(self.order) // ROUND)

    def __call__(self, round_: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
        """Yield the micro-batches of one round, rows of like length together."""
        some = self.cases.take(self.order[round_ * ROUND : (round_ + 1) * ROUND])
        groups = self.write.batches(some, self.plan.micro, self.plan.model.whole)
        yield from ({"rows": groups[place]} for place in rng.permutation(len(groups)))


@torch.no_grad()
def answer_nats(model: BigRec, write: Instructions, cases: Cases) -> float:
    """What a token of the right answers costs the model on average, in nats."""
    groups = write.batches(cases, 16, whole=False)
    sizes = [sum(len(row.ids) - row.start for row in group) for group in groups]
    return float(np.average([float(model(group)) for group in groups], weights=sizes))


def fresh(study: Study, plan: Plan) -> tuple[BigRec, Instructions]:
    """An untuned model for a plan, and what writes its prompts."""
    training.seed_all(plan.seed)
    model = BigRec(llm.load(plan.lm), plan.model)
    return model.eval(), Instructions(model.lm.tokenizer, Catalogue(study.dataset), study.dataset.name)


def trained(study: Study, plan: Plan, report: Report = lambda _: None) -> tuple[BigRec, Instructions, pd.DataFrame]:
    """The model that a plan gives, from the store or trained now; an interrupted training goes on where it stopped.

    Returns:
        the model in evaluation mode, what writes its prompts, and its curve: see `training.Fit`; the score is what a
        token of the watched answers costs, negative.
    """
    model, write = fresh(study, plan)
    store, split = Store(), study.split
    config = {"plan": plan, "data": study.dataset.digest, "split": split.name, "n": len(split.train)}
    folder = store.folder("bigrec", config, CODE)
    watched, rows = drawn(recent(split.valid), plan.watched, 0), Rows(study.train, write, plan)
    # Linear decay in the paper, half a cosine here; clipping is ours.
    settings = TrainConfig(
        rows.rounds, plan.lr, warmup=max(1, len(rows.order) // plan.batch // 20), decay=True, floor=0.05, patience=0,
        clip=1.0, eval_every=max(1, rows.rounds // LOOKS), accumulate=plan.batch // plan.micro, seed=plan.seed,
    )  # fmt: skip

    def score(_: nn.Module) -> float:
        return -answer_nats(model, write, watched)

    def make() -> dict[str, Any]:
        done = training.fit(model, rows, settings, score, folder.with_suffix(".checkpoint"), report)
        return {"model.safetensors": model.state_dict(), "curve.parquet": done.curve}

    files = store.load_or_make("bigrec", config, make, CODE)
    model.load_state_dict(files["model.safetensors"])
    return model.eval(), write, files["curve.parquet"]
