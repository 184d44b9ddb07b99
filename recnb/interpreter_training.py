"""Trains RecInterpreter's adapters: whose states are read, the plan of a run, its batches, and the store."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recnb import backbones, data, dreamrec_training, interpreter, llm, training
from recnb.data import Cases
from recnb.dreamrec import DreamRec, Sequences
from recnb.interpreter import Interpreter, InterpreterConfig, Phrasebook, Question
from recnb.recommenders import Report
from recnb.store import Store
from recnb.study import WINDOW, Study, backbone_recipe
from recnb.training import TrainConfig

CODE = (interpreter, llm, training, data, sys.modules[__name__])
ROUND = 8  # batches between two reports and checkpoints
DREAMS = ("DreamRec", "DreamRec items")
SAMPLE = 4096  # training rows behind the adapter's start
ORACLES = 20_000  # of training people, whom an adapter for items learns from
Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Plan:
    """One training run.

    Attributes:
        source: whose states are read: a backbone, "untrained" and a backbone, "DreamRec" (its guidance), or, for the
            task "item", "DreamRec items" (vectors of the space in which it generates, see `nameable`).
        rows: training rows that the language model reads; the paper has all 66,127, up to a hundred times.
        lr: peak learning rate; the paper's is .001.
        batch: rows a step, as in the paper.
        word_rows: rows of a warm start without the language model (`Wording`). The paper has none (0).
        limit: answer tokens that training keeps; the published code's is 32, so that no list is ever learnt whole.
            0 keeps all.
        seed: of weights, rows, phrasings and removed items.
        model: see `InterpreterConfig`.
        lm: name of the language model.
    """

    source: str = "SASRec"
    rows: int = 2048
    lr: float = 1e-3
    batch: int = 16
    word_rows: int = 0
    limit: int = 0
    seed: int = 0
    model: InterpreterConfig = field(default_factory=InterpreterConfig)
    lm: str = llm.DEFAULT


def network(
    study: Study, source: str, seed: int = 0, report: Report = lambda _: None, blank: bool = False
) -> nn.Module:
    """The frozen recommender: a backbone, or for "DreamRec" and "DreamRec items" the strong track's whole model.

    Args:
        study: the data.
        source: see `Plan`.
        seed: of DreamRec, and of a network that is not trained.
        report: told how training goes, when the store has none yet.
        blank: only its architecture, for weights that are to be loaded.

    Raises:
        ValueError: unknown source, with what there is.
    """
    n_items, strong = study.split.n_items, dreamrec_training.seeded(dreamrec_training.STRONG, seed)
    assert strong.encoder is not None
    if source in DREAMS:
        if not blank:
            return dreamrec_training.trained(study.dataset, study.split, strong, report).model
        return DreamRec(Sequences(backbones.build(n_items + 1, strong.encoder.model)), strong.model)
    untrained, name = source.startswith("untrained "), source.removeprefix("untrained ")
    if name not in backbones.NAMES:
        raise ValueError(f"source {source!r}; allowed: {', '.join((*backbones.NAMES, *DREAMS))}, 'untrained NAME'")
    if not untrained and not blank:
        return study.backbone(name, report).model
    training.seed_all(seed)
    return backbones.build(n_items, backbone_recipe(name).model)


def encode(network: nn.Module, ids: Tensor) -> Tensor:
    """One state after every item of right-padded ids (B, T): (B, T, d)."""
    if isinstance(network, backbones.Backbone):
        return network.states(ids)
    assert isinstance(network, DreamRec) and isinstance(network.guidance, Sequences)
    guidance = network.guidance
    ids = torch.where(ids == guidance.n_items, guidance.pad, ids)
    return guidance.backbone.states(torch.cat([torch.full_like(ids[:, :1], guidance.n_items), ids], 1))[:, 1:]


@torch.no_grad()
def states(encode: Encode, histories: Sequence[np.ndarray], n_items: int, batch: int = 2048) -> Tensor:
    """What a function of right-padded ids gives after each of the last `WINDOW` items: (n, L, d), latest last.

    Where no item is, there are zeros.
    """
    found = []
    for start in range(0, len(histories), batch):
        rows = [history[-WINDOW:] for history in histories[start : start + batch]]
        ids, lengths = data.pad_right(rows, WINDOW, n_items)
        place = torch.from_numpy(lengths)[:, None] - WINDOW + torch.arange(WINDOW)
        encoded = encode(torch.from_numpy(ids))[torch.arange(len(rows))[:, None], place.clamp(min=0)]
        found.append(encoded * (place >= 0)[..., None])
    return torch.cat(found)


@dataclass(frozen=True)
class Reader:
    """Turns histories into questions about states.

    Attributes:
        cases: training rows.
        n_items: size of the catalogue.
        plan: the run.
        network: see `network`.
        book: writes the questions.
        vectors: for the task "item" what the one id of a case's history stands for (m, d); its target is the name.
    """

    cases: Cases
    n_items: int
    plan: Plan
    network: nn.Module
    book: Phrasebook
    vectors: Tensor | None = None

    def encoded(self, histories: Sequence[np.ndarray]) -> Tensor:
        """The states after each of the last `WINDOW` items, see `states`: (n, L, d)."""
        return states(lambda ids: encode(self.network, ids), histories, self.n_items)

    def states(self, cases: Cases, removed: np.ndarray) -> Tensor:
        """(n, 1, L, d), for items and steps L = 1; residual: (n, 2, L, d), without the item at ``removed`` and with."""
        if self.vectors is not None:
            return self.vectors[np.concatenate(cases.history)][:, None, None]
        full = self.encoded(cases.history)
        if self.plan.model.reads == "step":
            missing = [max(WINDOW - len(history), 0) for history in cases.history]
            return full[torch.arange(len(full)), torch.from_numpy(missing + removed)][:, None, None]
        if self.plan.model.task != "residual":
            return full[:, None]
        pairs = zip(cases.history, removed, strict=True)
        less = [np.delete(history[-WINDOW:], place) for history, place in pairs]
        return torch.stack([self.encoded(less), full], 1)

    def shown(self, states: Tensor) -> Tensor:
        """What a warm start and a control read of questions' states (n, 1 or 2, L, d): the one, or their difference."""
        return states[:, 1] - states[:, 0] if self.plan.model.task == "residual" else states[:, 0]

    def answers(self, cases: Cases, removed: np.ndarray) -> list[np.ndarray]:
        """Item ids of each right answer: the history, or the item at place ``removed``."""
        if self.plan.model.task == "item":
            return [np.array([item]) for item in cases.target]
        if self.plan.model.task == "recovery" and self.plan.model.reads != "step":
            return [history[-WINDOW:] for history in cases.history]
        return [history[-WINDOW:][[place]] for history, place in zip(cases.history, removed, strict=True)]

    def questions(self, answers: list[np.ndarray], phrases: np.ndarray, test: bool = False) -> list[Question]:
        """The questions to these answers."""
        task = self.plan.model.phrasing
        return [self.book.ask(task, items, int(p), test) for items, p in zip(answers, phrases, strict=True)]


def catalogue(study: Study, held_out: float = 0.1) -> tuple[Cases, Cases]:
    """Every item that training has seen as a history of its own: those to learn names by, and others held out."""
    seen = np.random.default_rng(0).permutation(np.flatnonzero(study.split.popularity()))
    parts = np.split(seen, [int((1 - held_out) * len(seen))])
    known, kept = (Cases(items, [np.array([item]) for item in items], items) for items in parts)
    return known, kept


def oracles(network: nn.Module, cases: Cases) -> Tensor:
    """What DreamRec generates for these histories in ten steps without noise, (n, d); see notebook 06."""
    assert isinstance(network, DreamRec) and isinstance(network.guidance, Sequences)
    begun = [np.append(network.guidance.n_items, history) for history in cases.history]
    h = dreamrec_training.states(network, Cases(cases.user, begun, cases.target))
    return network.oracle(h, dreamrec_training.STRONG.how, torch.Generator().manual_seed(0))


def nameable(study: Study, network: nn.Module, count: int) -> tuple[Cases, Tensor]:
    """What names are learnt by: items, and as many oracles of training people, called like the nearest of these items.

    Returns:
        cases whose one id points into the vectors, and whose target is the name; the vectors (m, d), all items first.
    """
    items, table = catalogue(study)[0].target, network.table.detach()  # type: ignore[union-attr, operator]
    dreams = oracles(network, study.train.take(np.random.default_rng(1).permutation(len(study.train))[:count]))
    nearest = torch.cat([torch.cdist(part, table[items]).argmin(1) for part in dreams.split(1024)]).numpy()
    often = np.resize(items, max(len(items), count))
    ids, names = np.append(often, len(table) + np.arange(len(dreams))), np.append(often, items[nearest])
    return Cases(ids, list(ids[:, None]), names), torch.cat([table, dreams])


def drawn(cases: Cases, rng: np.random.Generator) -> np.ndarray:
    """A place to remove from each history's last items (n,), uniform."""
    return np.array([rng.integers(min(len(history), WINDOW)) for history in cases.history])


class Wording(nn.Module):
    """The warm start as a model for `training.fit`: soft tokens come to point where a title's words point.

    The language model takes no part. Compared are soft tokens and words about their mean, by cosine: they should be
    alike, and of all titles the right one should be the most alike. Lengths should be those of words.

    Args:
        model: whose adapter is trained.
        words: of every item (n_items, S, H).
        sharpness: factor of the cosines, in the softmax over the catalogue and in the sum.
    """

    words: Tensor

    def __init__(self, model: Interpreter, words: Tensor, sharpness: float = 30.0) -> None:
        super().__init__()
        self.model, self.sharpness = model, sharpness
        self.register_buffer("words", words, persistent=False)

    def forward(self, states: Tensor, items: Tensor) -> Tensor:
        """Loss of what slots read (M, places, d) against their items (M,)."""
        middle, fast = self.words.mean(0), llm.precision(states.device.type)
        with torch.autocast(states.device.type, fast, enabled=fast == torch.bfloat16):
            soft, known = ((x - middle).flatten(1) for x in (self.model.adapter(states), self.words))
            lengths, usual = (x.norm(dim=1, keepdim=True) for x in (soft, known))
            cosine = ((soft / lengths) @ (known / usual).T).float()
        alike = cosine.gather(1, items[:, None]).mean()
        missed = F.cross_entropy(self.sharpness * cosine, items)
        return missed + self.sharpness * (1 - alike) + (lengths / usual.mean() - 1).square().mean()


def words(book: Phrasebook, table: Tensor, tokens: int) -> Tensor:
    """What soft tokens of every item would ideally be, (n_items, S, H): its title in S parts, each part's mean.

    Line ends fill up what a short title leaves empty.
    """
    rows = []
    for title in book.title:
        parts = np.array_split(np.array(title), tokens) if len(title) > tokens else [[token] for token in title]
        parts = [*parts, *[book.end] * (tokens - len(parts))]
        rows.append(torch.stack([table[torch.as_tensor(np.asarray(part))].float().mean(0) for part in parts]))
    return torch.stack(rows)


class Rows:
    """Deals training rows into rounds of batches; round and seed decide them alone.

    Args:
        reader: makes questions of them.
        stage: "words" (the warm start) or "read".
    """

    def __init__(self, reader: Reader, stage: str) -> None:
        self.reader, self.stage = reader, stage
        plan, cases = reader.plan, reader.cases
        count, self.batch = (plan.rows, plan.batch) if stage == "read" else (plan.word_rows, 256)
        rng = np.random.default_rng([plan.seed, *stage.encode()])
        passes = -(-count // len(cases))
        self.order = np.concatenate([rng.permutation(len(cases)) for _ in range(max(passes, 1))])[:count]
        self.rounds = -(-count // (ROUND * self.batch))

    def __call__(self, round_: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
        """Yield the batches of one round, answers of like length together."""
        size, plan = ROUND * self.batch, self.reader.plan
        cases = self.reader.cases.take(self.order[round_ * size : (round_ + 1) * size])
        removed, phrases = drawn(cases, rng), rng.integers(60, size=len(cases))
        states, answers = self.reader.states(cases, removed), self.reader.answers(cases, removed)
        if self.stage == "words":
            yield from self._words(states, answers, rng)
            return
        if plan.model.reads == "one":
            answers = [rng.choice(answer, 1) for answer in answers]
        asked = self.reader.questions(answers, phrases)
        if plan.limit:
            asked = [replace(question, answer=question.answer[: plan.limit]) for question in asked]
        order = sorted(range(len(asked)), key=lambda row: len(asked[row].answer))
        groups = [order[at : at + self.batch] for at in range(0, len(order), self.batch)]
        for place in rng.permutation(len(groups)):
            some = groups[place]
            yield {"questions": [asked[row] for row in some], "states": states[some]}

    def _words(self, states: Tensor, answers: list[np.ndarray], rng: np.random.Generator) -> Iterator[dict[str, Any]]:
        """Slots with an item each: a pooled history gets one of its items, drawn anew."""
        items = np.array([rng.choice(answer) for answer in answers])
        seen = self.reader.shown(states)
        for part in torch.from_numpy(rng.permutation(len(items))).split(self.batch):
            yield {"states": seen[part], "items": torch.from_numpy(items)[part]}


@cache
def frozen(name: str) -> llm.LanguageModel:
    """The language model, loaded once for all adapters: none of them changes it."""
    return llm.load(name)


def fresh(
    study: Study, plan: Plan, report: Report = lambda _: None, read: nn.Module | None = None
) -> tuple[Interpreter, Reader]:
    """An untrained adapter for a plan, and what writes its questions; ``read`` stands in for the plan's `network`."""
    lm = frozen(plan.lm)
    book = Phrasebook(lm.tokenizer, study.dataset.items["title"].tolist(), study.dataset.name)
    cases, vectors, teachers = study.train, None, 1 if read else ORACLES  # what is loaded learns no more
    read = (read or network(study, plan.source, plan.seed, report)).eval()
    if plan.model.task == "item":
        cases, vectors = nameable(study, read, teachers)
    reader = Reader(cases, study.split.n_items, plan, read, book, vectors)
    rng = training.seed_all(plan.seed)
    some = cases.take(rng.permutation(len(cases))[:SAMPLE])
    return Interpreter(lm, reader.states(some, drawn(some, rng)), plan.model), reader


def trained(study: Study, plan: Plan, report: Report = lambda _: None) -> tuple[Interpreter, Reader, pd.DataFrame]:
    """The model that a plan gives, from the store or trained now; an interrupted training goes on where it stopped.

    Returns:
        the model in evaluation mode, what writes its questions, and its curve: loss and seconds by round and stage.
    """
    model, reader = fresh(study, plan, report)
    store, curves = Store(), []
    for stage, rows in (("words", plan.word_rows), ("read", plan.rows)):
        if not rows:
            continue
        warm = stage == "words"
        same = replace(plan, rows=0, lr=0.0, limit=0, batch=0) if warm else plan
        config = dict(plan=same, stage=stage, data=study.dataset.digest, split=study.split.name, n=len(study.train))
        folder = store.folder("interpreter", config, CODE)
        batches = Rows(reader, stage)
        settings = TrainConfig(
            batches.rounds, 1e-2 if warm else plan.lr, warmup=10, decay=True, floor=0.05, patience=0,
            clip=0.0 if warm else 1.0, weight_decay=1e-6, seed=plan.seed,
        )  # fmt: skip
        what = Wording(model, words(reader.book, model.lm.embeddings, plan.model.tokens)) if warm else model

        def make() -> dict[str, Any]:
            done = training.fit(what, batches, settings, None, folder.with_suffix(".checkpoint"), report)  # noqa: B023
            return {"model.safetensors": model.state_dict(), "curve.parquet": done.curve}

        files = store.load_or_make("interpreter", config, make, CODE)
        model.load_state_dict(files["model.safetensors"])
        curves.append(files["curve.parquet"].drop(columns="score").assign(stage=stage))
    return model.eval(), reader, pd.concat(curves) if curves else pd.DataFrame()
