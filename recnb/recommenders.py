"""Trains a backbone on a split, keeps it in the store, and scores cases with it."""

from __future__ import annotations

import multiprocessing
import queue
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from recnb import backbones, data, losses, metrics, training
from recnb.backbones import Backbone, BackboneConfig
from recnb.data import Cases, Dataset, Split, pad_right
from recnb.store import Store
from recnb.training import Progress, TrainConfig

# A change in what these do makes a stored backbone stale.
CODE = (backbones, losses, training, data, metrics, sys.modules[__name__])
Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a trained backbone, besides the data.

    Attributes:
        model: the architecture.
        train: the optimisation; its ``seed`` also draws the first weights.
        loss: "ce" or "bce" (`backbones.Backbone.forward`).
        tokens: positions in a batch, padding included.
        shuffle_ties: let each epoch draw a new order among events of one user and one timestamp. Their stored
            order is noise, and a model that may not learn it by heart generalises better.
    """

    model: BackboneConfig = BackboneConfig()
    train: TrainConfig = TrainConfig()
    loss: str = "ce"
    tokens: int = 1024
    shuffle_ties: bool = True


@dataclass(frozen=True)
class Trained:
    """A trained backbone with the story of its training.

    Attributes:
        model: in evaluation mode.
        curve: see `training.Fit`.
        info: best epoch, validation score, stop reason, seconds.
    """

    model: Backbone
    curve: pd.DataFrame
    info: dict[str, Any]


def _recipe(name: str, layers: int, max_length: int = 50, lr: float = 2e-3) -> Recipe:
    model = BackboneConfig(name, layers=layers, max_length=max_length)
    return Recipe(model, TrainConfig(epochs=14, lr=lr, warmup=100, decay=True, patience=0, eval_every=2))


# Chosen on the validation cases of MovieLens-100K, leave-one-out.
RECIPES = {
    "SASRec": _recipe("SASRec", layers=2, lr=3e-3),
    "GRU4Rec": _recipe("GRU4Rec", layers=1, max_length=100, lr=3e-3),
    "Caser": _recipe("Caser", layers=1),
    "NextItNet": _recipe("NextItNet", layers=2),
}


def recipe(name: str, loss: str = "ce", seed: int = 0, epochs: int | None = None) -> Recipe:
    """The project's recipe for a backbone, with a loss, a seed and a number of epochs of your own."""
    if name not in RECIPES:
        raise ValueError(f"unknown backbone {name!r}; allowed: {', '.join(RECIPES)}")
    chosen = RECIPES[name]
    train = replace(chosen.train, seed=seed, epochs=epochs or chosen.train.epochs)
    return replace(chosen, train=train, loss=loss)


def pieces(sequences: list[np.ndarray], length: int, rng: np.random.Generator) -> list[tuple[np.ndarray, int]]:
    """Cut sequences into pieces of at most ``length + 1`` items, each with how many first steps only give context.

    Every step from an item to the next is predicted in exactly one piece. Where a long sequence is cut moves from
    epoch to epoch, and its last piece reaches back over a full window: the end of a sequence is what a model is
    asked about later, so it must not train on it with a short history.
    """
    cut = []
    for sequence in sequences:
        steps, done = len(sequence) - 1, 0
        stop = int(rng.integers(1, length + 1)) if steps > length else steps
        while done < steps:
            start = max(0, stop - length)
            cut.append((sequence[start : stop + 1], done - start))
            done, stop = stop, min(steps, stop + length)
    return cut


def packed(order: np.ndarray, lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Pieces in this order as groups of at most ``tokens`` positions, padding included."""
    groups: list[list[int]] = [[]]
    for index in order:
        longest = max(lengths[place] for place in [index, *groups[-1]])
        if groups[-1] and longest * (len(groups[-1]) + 1) > tokens:
            groups.append([])
        groups[-1].append(int(index))
    return groups


def sequence_batches(split: Split, recipe: Recipe, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Batches of an epoch: pieces of like length together, about ``recipe.tokens`` positions each."""
    train = split.train
    if recipe.shuffle_ties:
        pairs = zip(train, split.times, strict=True)
        train = [items[np.lexsort((rng.random(len(items)), times))] for items, times in pairs]
    cut = pieces(train, recipe.model.max_length, rng)
    # Sorting by a noisy length keeps padding low and still mixes the neighbours of an epoch.
    order = np.argsort([len(items) * rng.uniform(0.9, 1.1) for items, _ in cut], kind="stable")
    groups = packed(order, [len(items) for items, _ in cut], recipe.tokens)
    for index in rng.permutation(len(groups)):
        rows, skip = zip(*(cut[place] for place in groups[index]), strict=True)
        items, _ = pad_right(list(rows), max(map(len, rows)), split.n_items)
        yield {"sequence": torch.from_numpy(items), "skip": torch.tensor(skip), "loss": recipe.loss}


@torch.no_grad()
def score(model: Backbone, cases: Cases, batch: int = 256) -> np.ndarray:
    """Scores of the whole catalogue for each case, (n, n_items) float32; the last ``max_length`` items are read."""
    device = next(model.parameters()).device
    model.eval()
    table = np.empty((len(cases), model.n_items), dtype=np.float32)
    order = np.argsort([len(history) for history in cases.history], kind="stable")
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        recent = [cases.history[row][-model.config.max_length :] for row in rows]
        items, _ = pad_right(recent, max(1, *map(len, recent)), model.n_items)
        table[rows] = model.scores(torch.from_numpy(items).to(device)).float().cpu().numpy()
    return table


def validation_score(split: Split) -> Callable[[torch.nn.Module], float]:
    """NDCG@10 over the full catalogue on the validation cases, seen items filtered."""
    cases = split.valid

    def evaluate(model: torch.nn.Module) -> float:
        scores = score(model, cases)  # type: ignore[arg-type]
        return float(metrics.ranks(scores, cases.target, cases.history).ndcg(10).mean())

    return evaluate


def train(
    split: Split, recipe: Recipe, checkpoint: Any = None, report: Report = lambda progress: None
) -> tuple[Backbone, training.Fit]:
    """Train a backbone from scratch, chosen by validation NDCG@10."""
    training.seed_all(recipe.train.seed)
    model = backbones.build(split.n_items, recipe.model)
    done = training.fit(
        model,
        lambda epoch, rng: sequence_batches(split, recipe, rng),
        recipe.train,
        validation_score(split),
        checkpoint,
        report,
    )
    return model, done


def _key(dataset: Dataset, split: Split, recipe: Recipe) -> dict[str, Any]:
    cases = [int(part.user.sum()) for part in (split.valid, split.test)]
    return {"data": dataset.digest, "split": split.name, "recipe": recipe, "n": len(split.train), "cases": cases}


def _folder(store: Store, dataset: Dataset, split: Split, recipe: Recipe) -> Path:
    return store.folder("backbone", _key(dataset, split, recipe), CODE)


def trained(dataset: Dataset, split: Split, recipe: Recipe, report: Report = lambda progress: None) -> Trained:
    """Return the backbone that this recipe gives on this split, from the store or trained now.

    An interrupted training goes on where it stopped.
    """
    store = Store()
    folder = _folder(store, dataset, split, recipe)

    def make() -> dict[str, Any]:
        model, done = train(split, recipe, folder.with_suffix(".checkpoint"), report)
        info = {"best_epoch": done.best_epoch, "valid": done.best, "stopped": done.stopped}
        info["seconds"] = float(done.curve["seconds"].iloc[-1])
        return {"model.safetensors": model.state_dict(), "curve.parquet": done.curve, "info.json": info}

    files = store.load_or_make("backbone", _key(dataset, split, recipe), make, CODE)
    model = backbones.build(split.n_items, recipe.model)
    model.load_state_dict(files["model.safetensors"])
    return Trained(model.eval(), files["curve.parquet"], files["info.json"])


def _train_one(dataset: Dataset, split: Split, recipe: Recipe, place: int, told: Any) -> None:
    torch.set_num_threads(1)
    trained(dataset, split, recipe, lambda progress: told.put((place, progress)))


def trained_all(
    dataset: Dataset, split: Split, recipes: Sequence[Recipe], reports: Sequence[Report], workers: int = 1
) -> list[Trained]:
    """Like `trained` for several recipes, ``workers`` of them at a time, each in a process with one thread.

    Models this small gain little from a second thread, and nearly everything from a second process.

    Args:
        dataset: as for `trained`.
        split: as for `trained`.
        recipes: what to train.
        reports: one progress callback for each recipe.
        workers: processes; 1 trains here, one after the other, which is right for a GPU.
    """
    store = Store()
    missing = [i for i, recipe in enumerate(recipes) if store.load(_folder(store, dataset, split, recipe)) is None]
    if workers > 1 and len(missing) > 1:
        spawn = multiprocessing.get_context("spawn")
        with spawn.Manager() as manager, ProcessPoolExecutor(workers, mp_context=spawn) as pool:
            told = manager.Queue()
            runs = [pool.submit(_train_one, dataset, split, recipes[i], i, told) for i in missing]
            try:
                while not all(run.done() for run in runs) or not told.empty():
                    with suppress(queue.Empty):
                        place, progress = told.get(timeout=0.2)
                        reports[place](progress)
            except KeyboardInterrupt:  # without this the pool would wait until all are trained
                for process in multiprocessing.active_children():
                    process.terminate()
                raise
            for run in runs:
                run.result()
    pairs = zip(recipes, reports, strict=True)
    return [trained(dataset, split, recipe, report) for recipe, report in pairs]


def recommend(model: Backbone, history: list[int], k: int = 10) -> list[int]:
    """The k best new items after a history of item ids, best first; items of the history are left out."""
    case = Cases(np.zeros(1, dtype=int), [np.asarray(history, dtype=np.int64)], np.zeros(1, dtype=int))
    scores = score(model, case)[0]
    scores[history] = -np.inf
    return np.argsort(-scores, kind="stable")[:k].tolist()


def neighbours(vectors: np.ndarray, item: int, k: int = 8) -> list[int]:
    """The k items whose vectors point most nearly the same way (cosine), best first."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    order = np.argsort(-(unit @ unit[item]), kind="stable")
    return [int(other) for other in order if other != item][:k]
