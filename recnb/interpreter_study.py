"""The runs behind notebook 07: what every adapter reads out of a state, case by case, beside the controls.

    python -m recnb.interpreter_study --only "residual, difference" --seeds 0 1 2

Adapters, curves and answers are written into the package's folder ``trained``; never the data.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from recnb import runs, training
from recnb.data import Cases
from recnb.interpreter import SEPARATOR, Interpreter, InterpreterConfig, Question, matched
from recnb.interpreter_training import Plan, Reader, Rows, catalogue, drawn, fresh, network, trained
from recnb.store import plain
from recnb.study import WINDOW, Study, load
from recnb.training import Progress, TrainConfig

SHIPPED = Path(__file__).parent / "trained" / "interpreter"
FUZZY = 0.8  # least likeness of a name and a title that counts as the same film, spelt a little differently
_WIDE: dict[str, Any] = dict(tokens=6, hidden=1024)
_WARM = Plan(word_rows=1_000_000, rows=3072, lr=2e-4)


def _plan(task: str, reads: str = "state", base: Plan = _WARM, **model: Any) -> Plan:
    return replace(base, model=InterpreterConfig(task, reads, **model))


PLANS = {
    "recovery": _plan("recovery", base=Plan(rows=1024)),
    "recovery, cut at 32": _plan("recovery", base=Plan(rows=1024, limit=32)),
    "recovery, one at a time": _plan("recovery", "one", **_WIDE),
    "recovery, step by step": _plan("recovery", "step", **_WIDE),
    "residual": _plan("residual", base=Plan(rows=2048)),
    "residual, difference, linear": _plan("residual", "difference", tokens=6),
    "residual, difference": _plan("residual", "difference", **_WIDE),
    "item": _plan("item", **_WIDE),
}


@dataclass(frozen=True)
class Asked:
    """Questions of one task to the test people, the same for every run.

    Attributes:
        cases: histories.
        removed: the place that a residual question is about (n,).
        other: another person's case for each case (n,), the control.
    """

    cases: Cases
    removed: np.ndarray
    other: np.ndarray


def asked(study: Study, each: int = 2, part: str = "test") -> Asked:
    """``each`` moments of every test person, with an item to remove and another person's moment."""
    cases = study.prefixes(part, each)
    rng = np.random.default_rng(7)
    removed, order = drawn(cases, rng), rng.permutation(np.unique(cases.user))
    after = dict(zip(order, np.roll(order, 1), strict=True))
    other = [rng.choice(np.flatnonzero(cases.user == after[user])) for user in cases.user]
    return Asked(cases, removed, np.array(other))


def items(study: Study, count: int = 120) -> Asked:
    """Items of the catalogue to be named: ``count`` that adapters learn by, then as many that were held out."""
    known, kept = catalogue(study)
    some = np.concatenate([part.target[:count] for part in (known, kept)])
    cases = Cases(some, [np.array([item]) for item in some], some)
    return Asked(cases, np.zeros(len(some), dtype=int), np.roll(np.arange(len(some)), 1))


def scored(named: list[list[str]], true: list[list[str]], known: set[str]) -> pd.DataFrame:
    """Counts a case: ``size`` of the truth, names ``named``, ``existing`` titles, ``exact`` and ``fuzzy`` matches.

    ``order`` is the share of pairs of exact matches that stand in the right order; NaN with fewer than two.
    """
    rows = []
    for names, titles in zip(named, true, strict=True):
        places = [place for place in matched(names, titles) if place >= 0]
        pairs = [a < b for i, a in enumerate(places) for b in places[i + 1 :]]
        rows.append(
            {
                "size": len(titles),
                "named": len(names),
                "existing": sum(name in known for name in names),
                "exact": len(places),
                "fuzzy": sum(place >= 0 for place in matched(names, titles, FUZZY)),
                "order": float(np.mean(pairs)) if pairs else float("nan"),
            }
        )
    return pd.DataFrame(rows)


def said(model: Interpreter, reader: Reader, written: list[Question], states: Tensor) -> list[str]:
    """What the model says, one line a case; a history that is asked for one item at a time gets its ten likeliest."""
    end, task = reader.book.end[0], reader.plan.model
    if task.reads == "one":
        return [f"{SEPARATOR} ".join(names) for names in model.likeliest(written, states, end, WINDOW)]
    return model.aloud(written, states, end, 110 if task.phrasing == "recovery" else 24)


def read(model: Interpreter, reader: Reader, questions: Asked) -> pd.DataFrame:
    """Answers and counts (`scored`) for the true states, another person's, and random ones: column ``method``.

    ``nats`` is what the right answer costs the model, -log P, with the states of that row.
    """
    states = reader.states(questions.cases, questions.removed)
    drawn_states = torch.randn(states.shape, generator=torch.Generator().manual_seed(0))
    spread = states.flatten(0, 1)
    given = {
        "adapter": states,
        "another's state": states[torch.from_numpy(questions.other)],
        "random state": spread.mean(0) + spread.std(0) * drawn_states,
    }
    answers = reader.answers(questions.cases, questions.removed)
    asks = [items[-1:] for items in answers] if reader.plan.model.reads == "one" else answers
    written = reader.questions(asks, np.arange(len(answers)), test=True)
    true, frames = [reader.book.spoken(items) for items in answers], []
    for name, seen in given.items():
        lines = said(model, reader, written, seen)
        frame = scored([reader.book.named(line) for line in lines], true, reader.book.known)
        frames.append(frame.assign(method=name, said=lines, nats=model.nats(written, seen).numpy()))
    return pd.concat([frame.assign(case=np.arange(len(frame))) for frame in frames], ignore_index=True)


class Probe(nn.Module):
    """The control that says what can be read at all: pooled states, then one linear layer to item ids.

    Args:
        states: a sample (n, L, d).
        n_items: size of the catalogue.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, states: Tensor, n_items: int) -> None:
        super().__init__()
        places, dim = states.shape[1:]
        self.pool, self.map = nn.Parameter(torch.full((places,), 1 / places)), nn.Linear(dim, n_items)
        self.register_buffer("mean", states.mean((0, 1)))
        self.register_buffer("scale", states.std((0, 1)).clamp(min=1e-6))  # Caser has units that never fire

    def rank(self, states: Tensor) -> Tensor:
        """Score of every item (B, n_items) from states (B, L, d)."""
        return self.map(torch.einsum("btd,t->bd", (states - self.mean) / self.scale, self.pool))

    def forward(self, states: Tensor, items: Tensor) -> Tensor:
        """Cross-entropy against one item of each answer (B,)."""
        return F.cross_entropy(self.rank(states), items)


def probe(reader: Reader, passes: int = 4) -> Probe:
    """A trained probe for a reader's task and source; a pooled history shows one of its items at a time."""
    rows = Rows(replace(reader, plan=replace(reader.plan, word_rows=passes * len(reader.cases))), "words")
    batches = rows(0, training.seed_all(reader.plan.seed, 1))
    model = Probe(next(iter(batches))["states"], reader.n_items)
    training.fit(model, rows, TrainConfig(rows.rounds, 5e-3, decay=True, patience=0, seed=reader.plan.seed))
    return model.eval()


@torch.no_grad()
def controls(reader: Reader, questions: Asked, passes: int = 4) -> dict[str, list[np.ndarray]]:
    """Item ids that each control names, a case: "popular", "neighbour" (the nearest training state), "probe".

    As many are named as the answer has.
    """
    answers = reader.answers(questions.cases, questions.removed)
    train = reader.cases
    removed = drawn(train, np.random.default_rng(1))
    seen = reader.shown(reader.states(questions.cases, questions.removed))
    library, there = (F.normalize(some.mean(1), dim=1) for some in (reader.shown(reader.states(train, removed)), seen))
    known = reader.answers(train, removed)
    near = torch.cat([(part @ library.T).argmax(1) for part in there.split(256)]).numpy()
    counts = np.bincount(train.target, minlength=reader.n_items)
    often = np.argsort(-counts, kind="stable")
    with torch.enable_grad():
        linear = probe(reader, passes)
    best = linear.rank(seen).argsort(1, descending=True).numpy()
    sizes = [len(items) for items in answers]
    return {
        "popular": [often[:size] for size in sizes],
        "neighbour": [known[row] for row in near],
        "probe": [row[:size] for row, size in zip(best, sizes, strict=True)],
    }


def folder_of(study: Study, name: str, source: str, seed: int) -> Path:
    """Where a run's adapter, answers and curve are kept."""
    label = f"{source} {name}".replace(",", "").replace(" ", "-")
    return SHIPPED / study.dataset.name / f"{label}.{seed}"


def run(name: str, source: str, seed: int, each: int, dataset: str, keep: bool, threads: int) -> None:
    """Train one plan, let it read the test people's states, and write what came out."""
    torch.set_num_threads(threads)
    study = load(dataset)
    plan = replace(PLANS[name], source=source, seed=seed)
    questions = items(study) if plan.model.task == "item" else asked(study, each)

    def report(now: Progress) -> None:
        print(f"{source} {name} {seed}: {now.epoch}/{now.epochs} {now.loss:.3f} {now.seconds:.0f} s", flush=True)

    model, reader, curve = trained(study, plan, report)
    folder = folder_of(study, name, source, seed)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value.to(torch.bfloat16) for key, value in model.state_dict().items()}
    model.load_state_dict({key: value.float() for key, value in weights.items()})  # what ships is what is asked
    frame = read(model, reader, questions)
    if seed == 0:
        true = [reader.book.spoken(items) for items in reader.answers(questions.cases, questions.removed)]
        for method, chosen in controls(reader, questions).items():
            names = [reader.book.spoken(some) for some in chosen]
            counts = scored(names, true, reader.book.known).assign(method=method, case=np.arange(len(true)))
            frame = pd.concat([frame, counts], ignore_index=True)
    frame.to_parquet(folder / "answers.parquet")
    curve.to_parquet(folder / "curve.parquet")
    if keep:  # with the recommender: trained anew, it would have other states
        whole = {f"network.{key}": value.contiguous() for key, value in reader.network.state_dict().items()}
        save_file(weights | whole, folder / "model.safetensors")
    seconds = curve.groupby("stage")["seconds"].max().to_dict()
    about = {"name": name, "plan": plain(plan), "each": each, "seconds": seconds}
    runs.describe(folder, "interpreter_study", threads, about)
    print(frame.groupby("method")[["exact", "fuzzy", "size", "nats"]].mean().round(3), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what was asked for, several at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(PLANS), choices=list(PLANS), metavar="NAME")
    parser.add_argument("--source", nargs="*", default=["SASRec"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--each", type=int, default=2, help="moments of each test person")
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="keep the adapter's weights, to ship them")
    given = parser.parse_args(arguments)
    rest = (given.each, given.dataset, given.keep)
    jobs = [(name, source, seed, *rest) for seed in given.seeds for source in given.source for name in given.only]
    runs.side_by_side(run, jobs, given.workers)


def shipped(study: Study, name: str, source: str = "SASRec", seed: int = 0) -> tuple[Interpreter, Reader]:
    """A trained adapter that came with the package, with what writes its questions.

    Raises:
        FileNotFoundError: when there is none of that name, with the names there are.
    """
    about, weights = runs.kept(folder_of(study, name, source, seed), "trained adapter")
    told = about["plan"]
    plan = Plan(**{**told, "model": InterpreterConfig(**told["model"])})
    read = network(study, plan.source, blank=True)
    read.load_state_dict({key[8:]: value for key, value in weights.items() if key.startswith("network.")})
    model, reader = fresh(study, plan, read=read)
    model.load_state_dict({key: value.float() for key, value in weights.items() if key.startswith("adapter.")})
    return model.eval(), reader


if __name__ == "__main__":
    main()
