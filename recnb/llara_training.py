"""Trains LLaRA and its variants: the plan of a run, its micro-batches, the store, and what ships trained."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from recnb import data, llara, llm, prompts, recommenders, training
from recnb.data import Cases, Dataset, Split
from recnb.llara import Llara, LlaraConfig, hybrid_share
from recnb.prompts import TEMPLATES, Prompt, PromptBuilder
from recnb.store import Store
from recnb.training import Progress, TrainConfig

CODE = (llara, llm, prompts, training, data, sys.modules[__name__])
WINDOW, MIN_HISTORY, CANDIDATES = 10, 3, 20  # the paper's
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
        warm_rows: slot-only prompts of the warm start before; 0 leaves it out.
        warm_lr: its peak learning rate.
        warm_micro: its prompts an optimizer step.
        shuffled: deal the item vectors out to the wrong items, a control.
        seed: of weights, rows, candidates, phrasings and strategy.
        model: see `LlaraConfig`.
        lm: name of the language model.
    """

    backbone: str = "SASRec"
    strategy: str = "curriculum"
    rows: int = 512
    lr: float = 1e-3
    micro: int = 8
    accumulate: int = 2
    warm_rows: int = 3200
    warm_lr: float = 2e-3
    warm_micro: int = 64
    shuffled: bool = False
    seed: int = 0
    model: LlaraConfig = field(default_factory=LlaraConfig)
    lm: str = llm.DEFAULT

    @property
    def blank(self) -> bool:
        """Whether the finished model is asked without item vectors."""
        return self.strategy == "text" or self.model.kind == "text"

    def warm(self) -> Plan:
        """The warm start alone, the same for all strategies that build on it."""
        return replace(self, strategy="direct", rows=0, lr=0.0, micro=0, accumulate=0)


def backbone_recipe(name: str, seed: int = 0) -> recommenders.Recipe:
    """The recommender that LLaRA freezes: one sampled negative, width 64, at most the last 10 items."""
    recipe = recommenders.recipe(name, "bce", seed)
    return replace(recipe, model=replace(recipe.model, max_length=WINDOW))


@dataclass(frozen=True)
class Study:
    """The data of all runs on one dataset: split, training rows, and the backbones.

    Attributes:
        dataset: as loaded.
        split: `data.user_windows` or a published split.
    """

    dataset: Dataset
    split: Split

    @cached_property
    def train(self) -> Cases:
        """The paper's training rows: every prefix of a training user with at least 3 items; 66,127 in ML-100K."""
        return data.prefixes(self.split.train, np.arange(len(self.split.train)), MIN_HISTORY, WINDOW)

    def prefixes(self, part: str = "test", each: int | None = None, seed: int = 0) -> Cases:
        """All prefixes of the held-out users, at most ``each`` a user, drawn with ``seed``."""
        cases: Cases = getattr(self.split, part)
        whole = [np.append(history, target) for history, target in zip(cases.history, cases.target, strict=True)]
        every = data.prefixes(whole, cases.user, MIN_HISTORY, WINDOW)
        if each is None:
            return every
        order = np.random.default_rng(seed).permutation(len(every))
        rank = pd.Series(every.user[order]).groupby(every.user[order]).cumcount().to_numpy()
        return every.take(np.sort(order[rank < each]))

    def backbone(self, name: str, report: Callable[[Progress], None] = lambda progress: None) -> recommenders.Trained:
        """The frozen recommender, from the store or trained now."""
        return recommenders.trained(self.dataset, self.split, backbone_recipe(name), report)

    def builder(self, tokenizer: Any) -> PromptBuilder:
        """Prompts over this catalogue."""
        return PromptBuilder(tokenizer, self.dataset.items["title"].tolist(), self.dataset.name)


def fresh(study: Study, plan: Plan) -> Llara:
    """An untrained model for a plan."""
    items = study.backbone(plan.backbone).model.item_embeddings.detach()
    rng = training.seed_all(plan.seed)
    if plan.shuffled:
        items = items[torch.from_numpy(rng.permutation(len(items)))]
    return Llara(llm.load(plan.lm), items, plan.model)


class Rows:
    """Deals a plan's training rows into rounds of micro-batches; round and seed decide them alone.

    Args:
        study: the data.
        builder: writes the prompts.
        plan: the run.
        warm: deal slot-only prompts of the warm start instead.
    """

    def __init__(self, study: Study, builder: PromptBuilder, plan: Plan, warm: bool = False) -> None:
        self.study, self.builder, self.plan, self.warm = study, builder, plan, warm
        self.micro, rows = (plan.warm_micro, plan.warm_rows) if warm else (plan.micro, plan.rows)
        self.total = -(-rows // self.micro)
        self.rounds = -(-self.total // ROUND)
        count = len(study.train)
        rng = np.random.default_rng([plan.seed, warm])
        passes = -(-rows // count)
        self.order = np.concatenate([rng.permutation(count) for _ in range(passes)])[:rows]

    def __call__(self, round_: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
        """Yield the micro-batches of one round: rows of like length together, candidates and phrasing drawn anew."""
        size = ROUND * self.micro
        cases = self.study.train.take(self.order[round_ * size : (round_ + 1) * size])
        offered = data.draw_candidates(cases, self.study.dataset.n_items, CANDIDATES, int(rng.integers(2**31)))
        step = round_ * ROUND
        if self.warm:
            every = [self.builder.bare(*row) for row in zip(cases.history, offered, cases.target, strict=True)]
            yield from ({"prompts": every[at : at + self.micro]} for at in range(0, len(every), self.micro))
            return
        length = [
            sum(len(self.builder.name(i, "text")) for i in (*h, *c))
            for h, c in zip(cases.history, offered, strict=True)
        ]
        groups = [np.argsort(length)[at : at + self.micro] for at in range(0, len(cases), self.micro)]
        for place in rng.permutation(len(groups)):
            template = int(rng.integers(len(TEMPLATES)))
            blank = bool(rng.random() >= hybrid_share(self.plan.strategy, step / self.total))
            step += 1
            yield {"prompts": [self._prompt(cases, offered, row, template) for row in groups[place]], "blank": blank}

    def _prompt(self, cases: Cases, offered: np.ndarray, row: int, template: int) -> Prompt:
        kind = self.plan.model.kind
        return self.builder.build(kind, cases.history[row], offered[row], int(cases.target[row]), template)


class Matching(nn.Module):
    """The warm start as a model for `training.fit`: name the next item's slot among the candidates' slots."""

    def __init__(self, model: Llara) -> None:
        super().__init__()
        self.model = model

    def forward(self, prompts: list[Prompt]) -> Tensor:
        """Listwise loss of slot-only prompts, through the first blocks alone."""
        place = torch.tensor([prompt.place for prompt in prompts], device=self.model.items.device)
        return nn.functional.cross_entropy(self.model.match(prompts), place)


def _settings(rounds: int, steps: int, lr: float, accumulate: int, seed: int) -> TrainConfig:
    """Warm-up over 5 % of the steps, then half a cosine down to lr / 100, as in the paper."""
    return TrainConfig(
        rounds, lr, warmup=max(1, steps // 20), decay=True, floor=0.01, patience=0, clip=1.0, accumulate=accumulate,
        seed=seed,
    )  # fmt: skip


def trained(
    study: Study, plan: Plan, report: Callable[[Progress], None] = lambda progress: None
) -> tuple[Llara, pd.DataFrame]:
    """The model that a plan gives, from the store or trained now; an interrupted training goes on where it stopped.

    Returns:
        the model in evaluation mode, and its curve: rounds, losses and seconds, warm start first.
    """
    model = fresh(study, plan)
    curves = []
    if plan.warm_rows:
        curves.append(_stage(study, plan.warm(), model, Matching(model), True, report).assign(stage="warm start"))
    if plan.rows:
        curves.append(_stage(study, plan, model, model, False, report).assign(stage="prompts"))
    return model.eval(), pd.concat(curves, ignore_index=True) if curves else pd.DataFrame()


def _stage(
    study: Study, plan: Plan, model: Llara, what: nn.Module, warm: bool, report: Callable[[Progress], None]
) -> pd.DataFrame:
    """Load a stage's weights into the model, or train it and store them; returns its curve."""
    store, rows = Store(), Rows(study, study.builder(model.lm.tokenizer), plan, warm)
    config = {"plan": plan, "data": study.dataset.digest, "split": study.split.name, "n": len(study.train)}
    folder = store.folder("llara", config, CODE)
    lr, accumulate = (plan.warm_lr, 1) if warm else (plan.lr, plan.accumulate)
    settings = _settings(rows.rounds, rows.total // accumulate, lr, accumulate, plan.seed)

    def make() -> dict[str, Any]:
        done = training.fit(what, rows, settings, None, folder.with_suffix(".checkpoint"), report)
        return {"model.safetensors": model.state_dict(), "curve.parquet": done.curve}

    files = store.load_or_make("llara", config, make, CODE)
    model.load_state_dict(files["model.safetensors"])
    return files["curve.parquet"]
