"""Trains LLaRA and its variants: the plan of a run, its micro-batches, and the store."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from recnb import data, llara, llm, prompts, training, tuned
from recnb.llara import Llara, LlaraConfig, hybrid_share
from recnb.prompts import TEMPLATES, Prompt, PromptBuilder
from recnb.store import Store
from recnb.study import Study
from recnb.training import Progress, TrainConfig

CODE = (llara, llm, prompts, tuned, training, data, sys.modules[__name__])
CANDIDATES = 20  # the paper's
FEW = 8  # candidates in the warm starts that name one
ROUND = 8  # micro-batches between two reports and checkpoints


@dataclass(frozen=True)
class Plan:
    """One training run.

    Attributes:
        backbone: whose item vectors fill the slots.
        strategy: one of `llara.STRATEGIES`.
        rows: prompts trained on; more than there are means further passes with new candidates.
        lr: peak learning rate of Adam.
        micro: prompts in a micro-batch, all text-only or all hybrid.
        accumulate: micro-batches an optimizer step.
        match_rows: prompts of the first warm start: slots alone, listwise loss alone, the first blocks alone.
        repeat_rows: prompts of the second: the history as slots, few candidates, and the item to name is one of the
            history's own. Its answer is certain, so the model learns to find a slot again and say its title.
        nearest_rows: prompts of the third: hybrid, few candidates, and the item to name is the candidate whose vector
            is nearest to the history's. Certain again, and already a recommendation.
        shuffled: deal the item vectors out to the wrong items, a control.
        seed: of weights, rows, candidates, phrasings and strategy.
        model: see `LlaraConfig`.
        lm: name of the language model.
    """

    backbone: str = "SASRec"
    strategy: str = "curriculum"
    rows: int = 512
    lr: float = 4e-4
    micro: int = 8
    accumulate: int = 2
    match_rows: int = 3200
    repeat_rows: int = 512
    nearest_rows: int = 768
    shuffled: bool = False
    seed: int = 0
    model: LlaraConfig = field(default_factory=LlaraConfig)
    lm: str = llm.DEFAULT

    @property
    def blank(self) -> bool:
        """Whether the finished model is asked without item vectors."""
        return self.strategy == "text" or self.model.kind == "text"

    def stages(self) -> list[Stage]:
        """What is trained one after the other; the warm starts do not depend on rows or strategy."""
        found = [
            Stage("match", self.match_rows, 3e-3, 64, 1),
            Stage("repeat", self.repeat_rows, 1e-3, 16, 1),
            Stage("nearest", self.nearest_rows, 1e-3, 16, 1),
            Stage("prompts", self.rows, self.lr, self.micro, self.accumulate),
        ]
        return [stage for stage in found if stage.rows]

    def up_to(self, stage: Stage) -> Plan:
        """The part of this plan that decides the weights after a stage: equal for all plans that share it."""
        if stage.name == "prompts":
            return self
        near = self.nearest_rows if stage.name == "nearest" else 0
        repeat = 0 if stage.name == "match" else self.repeat_rows
        same: dict[str, Any] = dict(strategy="direct", rows=0, lr=0.0, micro=0, accumulate=0)
        kind = replace(self.model, kind="hybrid")  # it matters to the last stage only
        return replace(self, **same, repeat_rows=repeat, nearest_rows=near, model=kind)


@dataclass(frozen=True)
class Stage:
    """A stretch of training: its name, prompts, peak learning rate, prompts a micro-batch, micro-batches a step."""

    name: str
    rows: int
    lr: float
    micro: int
    accumulate: int


def fresh(study: Study, plan: Plan) -> Llara:
    """An untrained model for a plan."""
    items = study.backbone(plan.backbone).model.item_embeddings.detach()
    rng = training.seed_all(plan.seed)
    if plan.shuffled:
        items = items[torch.from_numpy(rng.permutation(len(items)))]
    return Llara(llm.load(plan.lm), items, plan.model)


class Nearness:
    """The rule of the "nearest" warm start: how near every item's vector is to those of a history.

    Args:
        items: item vectors (n_items, d).
    """

    def __init__(self, items: Tensor) -> None:
        centred = (items - items.mean(0)).detach().cpu()
        self.unit = (centred / centred.norm(dim=1, keepdim=True)).numpy()

    def __call__(self, history: np.ndarray) -> np.ndarray:
        """Sum over the a-th latest item of cosine / sqrt(a), between centred vectors: (n_items,)."""
        return self.unit @ (self.unit[history].T @ (1 / np.sqrt(np.arange(len(history), 0, -1))))


class Rows:
    """Deals a stage's training rows into rounds of micro-batches; round and seed decide them alone.

    Args:
        study: the data.
        builder: writes the prompts.
        plan: the run.
        stage: one of its stages.
        items: the item vectors in the slots (n_items, d).
    """

    def __init__(self, study: Study, builder: PromptBuilder, plan: Plan, stage: Stage, items: Tensor) -> None:
        self.study, self.builder, self.plan, self.stage = study, builder, plan, stage
        self.nearness = Nearness(items)
        self.total = -(-stage.rows // stage.micro)
        self.rounds = -(-self.total // ROUND)
        count = len(study.train)
        rng = np.random.default_rng([plan.seed, *stage.name.encode()])
        self.order = np.concatenate([rng.permutation(count) for _ in range(-(-stage.rows // count))])[: stage.rows]

    def __call__(self, round_: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
        """Yield the micro-batches of one round: rows of like length together, candidates and phrasing drawn anew."""
        size = ROUND * self.stage.micro
        cases = self.study.train.take(self.order[round_ * size : (round_ + 1) * size])
        if self.stage.name == "repeat":
            cases = replace(cases, target=np.array([rng.choice(history) for history in cases.history]))
        count = FEW if self.stage.name in ("repeat", "nearest") else CANDIDATES
        offered = data.draw_candidates(cases, self.study.dataset.n_items, count, int(rng.integers(2**31)))
        if self.stage.name == "nearest":
            pairs = zip(cases.history, offered, strict=True)
            cases = replace(cases, target=np.array([some[np.argmax(self.nearness(h)[some])] for h, some in pairs]))
        rows = list(zip(cases.history, offered, cases.target.tolist(), strict=True))
        rows.sort(key=lambda row: sum(len(self.builder.name(int(item), "text")) for item in (*row[0], *row[1])))
        groups = [rows[at : at + self.stage.micro] for at in range(0, len(rows), self.stage.micro)]
        for step, place in enumerate(rng.permutation(len(groups)), start=round_ * ROUND):
            template = int(rng.integers(len(TEMPLATES)))
            prompts = [self._write(history, some, target, template) for history, some, target in groups[place]]
            share = hybrid_share(self.plan.strategy, step / self.total) if self.stage.name == "prompts" else 1.0
            yield {"prompts": prompts, "blank": bool(rng.random() >= share)}

    def _write(self, history: np.ndarray, offered: np.ndarray, target: int, template: int) -> Prompt:
        if self.stage.name == "match":
            return self.builder.bare(history, offered, target)
        kind = "hybrid" if self.stage.name in ("repeat", "nearest") else self.plan.model.kind
        alone = "id" if self.stage.name == "repeat" else None  # titles would give a repeated item away
        return self.builder.build(kind, history, offered, target, template, alone)


class Matching(nn.Module):
    """The warm start as a model for `training.fit`: name the next item's slot among the candidates' slots."""

    def __init__(self, model: Llara) -> None:
        super().__init__()
        self.model = model

    def forward(self, prompts: list[Prompt], blank: bool = False) -> Tensor:
        """Listwise loss of slot-only prompts, through the first blocks alone."""
        return self.model.listwise_loss(prompts, self.model.match(prompts))


def trained(
    study: Study, plan: Plan, report: Callable[[Progress], None] = lambda progress: None
) -> tuple[Llara, pd.DataFrame]:
    """The model that a plan gives, from the store or trained now; an interrupted training goes on where it stopped.

    Returns:
        the model in evaluation mode, and its curve: loss and seconds by round, with the name of the stage.
    """
    model = fresh(study, plan)
    curves = [_train(study, plan, stage, model, report).assign(stage=stage.name) for stage in plan.stages()]
    return model.eval(), pd.concat([pd.DataFrame(columns=["epoch", "loss", "seconds", "stage"]), *curves])


def _train(study: Study, plan: Plan, stage: Stage, model: Llara, report: Callable[[Progress], None]) -> pd.DataFrame:
    """Load a stage's weights into the model, or train it and store them; returns its curve."""
    store = Store()
    rows = Rows(study, study.builder(model.lm.tokenizer, plan.model.slot_first), plan, stage, model.items)
    config = {
        "plan": plan.up_to(stage), "stage": stage, "data": study.dataset.digest, "split": study.split.name,
        "n": len(study.train),
    }  # fmt: skip
    folder = store.folder("llara", config, CODE)
    # Warm-up over 5 % of the steps, then half a cosine down to lr / 100, as in the paper; clipping is ours.
    settings = TrainConfig(
        rows.rounds, stage.lr, warmup=max(1, rows.total // stage.accumulate // 20), decay=True, floor=0.01, patience=0,
        clip=1.0, accumulate=stage.accumulate, seed=plan.seed,
    )  # fmt: skip
    what = Matching(model) if stage.name == "match" else model

    def make() -> dict[str, Any]:
        done = training.fit(what, rows, settings, None, folder.with_suffix(".checkpoint"), report)
        return {"model.safetensors": model.state_dict(), "curve.parquet": done.curve}

    files = store.load_or_make("llara", config, make, CODE)
    model.load_state_dict(files["model.safetensors"])
    return files["curve.parquet"].drop(columns="score")
