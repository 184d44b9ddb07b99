"""The runs behind notebook 06: every method on one split, measured person by person, and kept with the package.

    python -m recnb.dreamrec_study --dataset ml-100k --seeds 0 1 2 --ties 0

Only sums a person are kept, never the data: any interval over people and seeds can be computed from them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from recnb import data, datasets, dreamrec_training, floors, metrics, recommenders, runs, training
from recnb.data import Cases, Dataset, Split
from recnb.dreamrec import DreamConfig, DreamRec, Sampling, collapse
from recnb.dreamrec_training import STRONG, Plan, score, score_as_published, seeded, trained, tuned, view
from recnb.metrics import Interval
from recnb.store import plain

SHIPPED = Path(__file__).parent / "trained" / "dreamrec"
CUTS = (10, 20, 50)
MEASURES = tuple(f"{name}@{cut}" for name in ("HR", "NDCG") for cut in CUTS)
BACKBONES = ("SASRec", "GRU4Rec", "Caser")
HEATS = ((0.0, 1), (0.25, 1), (0.5, 8))  # temperature and draws
CHOICES = [Sampling(w, 10, heat, draws) for w in (0.0, 0.5, 1.0) for heat, draws in HEATS]


@dataclass(frozen=True)
class Recipe:
    """What is fitted to a data set.

    Attributes:
        faithful: the published plan with the published hyper-parameters of the data set, or YooChoose's.
        dropout, lr, epochs: what the recipes of the recommenders have here; None keeps their own learning rate.
    """

    faithful: Plan
    dropout: float = 0.2
    lr: float | None = None
    epochs: int = 14

    def recommender(self, name: str, seed: int) -> recommenders.Recipe:
        """A recommender's recipe on this data."""
        base = recommenders.recipe(name, seed=seed, epochs=self.epochs)
        train = replace(base.train, lr=self.lr or base.train.lr)
        return replace(base, model=replace(base.model, dropout=self.dropout), train=train)


_ZHIHU = Plan(DreamConfig(schedule="linear"), training.TrainConfig(30, lr=1e-2, patience=0, eval_every=5))
RECIPES = {
    "ml-100k": Recipe(Plan()),
    "zhihu-dreamrec": Recipe(replace(_ZHIHU, how=Sampling(4.0, mean=True)), lr=1e-3, epochs=8),
}


def load_split(dataset: str, tie_seed: int | None = 0) -> tuple[Dataset, Split]:
    """A data set and its split in DreamRec's protocol: the publisher's own, or sequences in order of arrival."""
    log = datasets.load(dataset, tie_seed)
    return log, data.published(log) if "part" in log.events else data.user_prefixes(log)


def groups(split: Split) -> np.ndarray:
    """How well training knows each item (n_items,): "never", "rare" (up to the lower half's count) or "common"."""
    often = split.popularity()
    middle = np.median(often[often > 0])
    return np.where(often == 0, "never", np.where(often <= middle, "rare", "common"))


def measured(scores: np.ndarray, cases: Cases, kinds: np.ndarray) -> pd.DataFrame:
    """Sums of each measure a person and kind of target: ``person``, ``kind``, ``cases``, `MEASURES`, also filtered.

    Args:
        scores: (n, n_items); the padding id may follow as a last column.
        cases: n questions.
        kinds: of each item (`groups`).
    """
    rows: dict[str, Any] = {"person": np.unique(cases.user, return_inverse=True)[1], "kind": kinds[cases.target]}
    rows["cases"] = np.ones(len(cases), dtype=int)
    for tail, seen in (("", None), (" filtered", cases.history)):
        ranks = metrics.ranks(scores, cases.target, seen)
        rows |= {f"HR@{cut}{tail}": ranks.hit_rate(cut) for cut in CUTS}
        rows |= {f"NDCG@{cut}{tail}": ranks.ndcg(cut) for cut in CUTS}
    return pd.DataFrame(rows).groupby(["person", "kind"], as_index=False).sum()


def diversity(scores: np.ndarray, split: Split, k: int = 20) -> dict[str, float]:
    """Of the first k of each case: share of the catalogue that occurs, and share that training never saw."""
    top = np.argpartition(-scores[:, : split.n_items], k, axis=1)[:, :k]
    return {
        "coverage": len(np.unique(top)) / split.n_items,
        "never trained": float((split.popularity()[top] == 0).mean()),
    }


@dataclass
class Sitting:
    """Everything that one seed on one split trains, asked on the test cases.

    Attributes:
        log, split, seed: what it is about.
        everything: the slow controls too: other spaces, and sampling with all steps.
        notes: what is not a measure of a case: collapse, choices, epochs, seconds.
    """

    log: Dataset
    split: Split
    seed: int
    everything: bool = True

    def __post_init__(self) -> None:
        """Look up the recipe of the data set."""
        self.recipe = RECIPES.get(self.log.name, RECIPES["ml-100k"])
        self.notes: dict[str, Any] = {}
        strong = replace(STRONG, encoder=self.recipe.recommender("SASRec", 0))
        faithful = self.recipe.faithful
        near = replace(faithful.how, by="distance")
        self.plans = {
            "faithful": faithful,
            "encoder by softmax": replace(faithful, classify=True),
            "by distance": replace(faithful, how=near),
            "decorrelated": replace(
                faithful,
                model=replace(faithful.model, space="decorrelated"),
                train=replace(faithful.train, lr=max(faithful.train.lr, 5e-3)),  # vectors of unit size move slowly
                how=near,
            ),
            "strong": strong,
            "strong, affine": replace(strong, model=replace(strong.model, denoiser="affine")),
            "strong, normalised": replace(strong, model=replace(strong.model, space="normalised")),
            "strong, whitened": replace(strong, model=replace(strong.model, space="whitened")),
        }

    def get(self, name: str, **train: Any) -> tuple[Any, Plan]:
        """A trained model of `plans`, with its plan."""
        plan = seeded(self.plans[name], self.seed)
        plan = replace(plan, train=replace(plan.train, **train))
        one = trained(self.log, self.split, plan)
        label = " ".join([name, *(f"{key} {value}" for key, value in train.items())])
        self.notes[label] = {**one.info, "plan": plain(plan)}
        if isinstance(one.model, DreamRec):
            self.notes[label] |= collapse(one.model.table.detach())
        return one.model, plan

    def methods(self) -> Iterator[tuple[str, np.ndarray, Cases]]:
        """Name, scores and cases of every method."""
        test, real = self.split.test, self.split.n_items
        whole = data.started(self.split)
        for name in BACKBONES:
            one = recommenders.trained(self.log, whole, self.recipe.recommender(name, self.seed)).model
            yield name, recommenders.score(one, whole.test)[:, :real], test
        yield from self.faithful(test)
        yield from self.strong(test)

    def strong(self, test: Cases) -> Iterator[tuple[str, np.ndarray, Cases]]:
        """The strong track, its sampling chosen on validation cases, and what it is without each of its parts."""
        spaces = ("strong, normalised", "strong, whitened") if self.everything else ()
        for name in ("strong", "strong, affine", *spaces):
            model, plan = self.get(name)
            found = tuned(model, self.split, plan, CHOICES)
            best: Sampling = found["how"][0]
            self.notes[name] |= {"choices": [{**vars(row.pop("how")), **row} for row in found.to_dict("records")]}
            asked = view(self.split, plan).test
            yield name, score(model, asked, best), test
            if name == "strong":
                others = {
                    "strong, w = 0": replace(best, w=0.0),
                    "strong, w = 1": replace(best, w=1.0),
                    "strong, one step": replace(best, few=1, draws=1),
                    "strong, one draw at full noise": replace(best, temperature=1.0, draws=1),
                }
                others |= {"strong, all steps": Sampling(best.w)} if self.everything else {}
                for label, how in others.items():
                    yield label, score(model, asked, how), test

    def faithful(self, test: Cases) -> Iterator[tuple[str, np.ndarray, Cases]]:
        """The published recipe: as its code evaluates, evaluated properly, and its controls."""
        epochs = self.recipe.faithful.train.epochs
        w = self.recipe.faithful.how.w
        last, _ = self.get("faithful", eval_every=epochs)
        yield "as published", *score_as_published(last, test, Sampling(w))
        yield "as published, evaluation mended", score(last, test, Sampling(w)), test
        model, _ = self.get("faithful")
        yield "faithful", score(model, test, Sampling(w)), test
        yield "faithful, closed form", score(model, test, Sampling(w, mean=True)), test
        yield "faithful, w = 0", score(model, test, Sampling(0.0)), test
        h = dreamrec_training.states(model, test)
        yield "faithful, its encoder alone", (h @ model.table.T).detach().numpy(), test
        yield "encoder by softmax", score(self.get("encoder by softmax")[0], test, Sampling()), test
        for name in ("by distance", "decorrelated"):
            model, plan = self.get(name)
            yield name, score(model, test, plan.how), test


def folder_of(dataset: str, tie_seed: int, seed: int) -> Path:
    """Where a run's measures and notes are kept."""
    return SHIPPED / dataset / f"ties-{tie_seed}.seed-{seed}"


def run(dataset: str, tie_seed: int, seed: int, threads: int) -> None:
    """Train and ask everything for one order of ties and one seed, and write what came out."""
    torch.set_num_threads(threads)
    log, split = load_split(dataset, tie_seed)
    sitting, kinds = Sitting(log, split, seed, everything=tie_seed == 0), groups(split)
    frames, began = [], time.monotonic()
    for name, scores, cases in sitting.methods():
        frames.append(measured(scores, cases, kinds).assign(method=name))
        sitting.notes.setdefault(name, {}).update(diversity(scores, split))
        said = frames[-1].sum(numeric_only=True) / frames[-1]["cases"].sum()
        seconds = time.monotonic() - began
        print(f"ties {tie_seed} seed {seed} {name}: HR@20 {said['HR@20']:.4f}, {seconds:.0f} s", flush=True)
    folder = folder_of(log.name, tie_seed, seed)
    folder.mkdir(parents=True, exist_ok=True)
    pd.concat(frames, ignore_index=True).to_parquet(folder / "measures.parquet")
    about = {"tie_seed": tie_seed, "seed": seed, "notes": sitting.notes}
    runs.describe(folder, "dreamrec_study", threads, about)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every pair of tie seed and training seed, several at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--ties", nargs="*", type=int, default=[0])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args(arguments)
    jobs = [(given.dataset, ties, seed) for ties in given.ties for seed in given.seeds]
    runs.side_by_side(run, jobs, given.workers)


def stored(dataset: str) -> pd.DataFrame:
    """Measures of every stored run: `measured` with ``method``, ``tie_seed`` and ``seed``; empty when there is none."""
    frames = []
    for folder in sorted((SHIPPED / dataset).glob("ties-*")):
        about = json.loads((folder / "run.json").read_text())
        frame = pd.read_parquet(folder / "measures.parquet")
        frames.append(frame.assign(tie_seed=about["tie_seed"], seed=about["seed"]))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def notes(dataset: str, tie_seed: int = 0, seed: int = 0) -> dict[str, Any]:
    """What a stored run wrote down by method: epochs, collapse, and ``choices`` of sampling on validation cases."""
    path = folder_of(dataset, tie_seed, seed) / "run.json"
    return json.loads(path.read_text())["notes"] if path.exists() else {}


def percent(got: Interval) -> Interval:
    """The same interval in per cent."""
    return replace(got, value=100 * got.value, low=100 * got.low, high=100 * got.high)


def counted(split: Split) -> pd.DataFrame:
    """Measures of the counters on a split's test cases, as in `stored`."""
    kinds = groups(split)
    found = {name: measured(floor(split, split.test), split.test, kinds) for name, floor in floors.FLOORS.items()}
    return pd.concat([frame.assign(method=name) for name, frame in found.items()], ignore_index=True)


def interval(frame: pd.DataFrame, method: str, measure: str, other: str | None = None) -> Interval:
    """A method's measure, or its paired difference to another's, with its interval over people and seeds.

    People are resampled whole, each with the number of cases that he or she has.
    """

    def by_run(name: str) -> np.ndarray:
        part = frame[frame["method"] == name]
        runs = part.groupby(["tie_seed", "seed"]) if "seed" in part else [((0, 0), part)]
        return np.stack([rows.groupby("person")[[measure, "cases"]].sum().to_numpy().T for _, rows in runs])

    ours = by_run(method)
    size = ours[0, 1].astype(int)
    values, people = np.repeat(ours[:, 0] / size, size, axis=1), np.repeat(np.arange(len(size)), size)
    if other is None:
        return metrics.bootstrap(values, people)
    return metrics.paired(values, np.repeat(by_run(other)[:, 0] / size, size, axis=1), people)


if __name__ == "__main__":
    main()
