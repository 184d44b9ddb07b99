"""Ranks after BIGRec's grounding: its points, the choice of gamma, and what stands beside it on the same cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from recnb import bigrec, floors, llm, metrics, recommenders
from recnb.bigrec import Catalogue, Grounding, Reading, reweighted
from recnb.bigrec_training import drawn, recent
from recnb.data import Cases, Split
from recnb.metrics import Ranks
from recnb.recommenders import Recipe, Report, Trained
from recnb.store import Store
from recnb.study import WINDOW, Study

KS = (1, 3, 5, 10, 20, 50)
POPULAR = np.arange(100.0)  # the published grids of gamma
COLLABORATIVE = np.concatenate([np.arange(100) / 100, np.arange(1.0, 100)])
CHOICE = "NDCG@10"  # one gamma a list is chosen by this, on validation


@cache
def _untuned(lm: str) -> llm.LanguageModel:
    return llm.load(lm, torch.float32)


def groundings(names: Sequence[str], readings: Sequence[Reading], lm: str = llm.DEFAULT) -> list[Grounding]:
    """Names as states of the untuned language model (`bigrec.states_of_words`), made in one pass and kept in the store.

    In 32 bits: nothing then depends on which texts share a batch.
    """

    def make() -> dict[str, dict[str, Tensor]]:
        found = bigrec.states_of_words(_untuned(lm), names, readings)
        return {"points.safetensors": {str(place): points for place, points in enumerate(found)}}

    def encode(reading: Reading, texts: Sequence[str]) -> Tensor:
        return bigrec.states_of_words(_untuned(lm), texts, [reading])[0]

    config = {"names": list(names), "lm": lm, "readings": readings}
    points = Store().load_or_make("points", config, make, (bigrec, llm))["points.safetensors"]
    return [Grounding(names, partial(encode, one), points[str(place)]) for place, one in enumerate(readings)]


def grounding(names: Sequence[str], block: int | None = None, lm: str = llm.DEFAULT) -> Grounding:
    """The published grounding, or that after an earlier block of the language model."""
    return groundings(names, [(block, "last")], lm)[0]


def sweep(distances: np.ndarray, weight: np.ndarray, target: np.ndarray, gammas: np.ndarray) -> pd.DataFrame:
    """Mean HR@K and NDCG@K at every strength: one row a gamma, a column a metric.

    Args:
        distances: (n, names).
        weight: (names,) or (n, names), see `bigrec.reweighted`.
        target: the right names (n,).
        gammas: strengths.
    """
    rows = []
    for gamma in gammas:
        placed = metrics.ranks(-reweighted(distances, weight, float(gamma)), target)
        means = {f"HR@{k}": float(placed.hit_rate(k).mean()) for k in KS}
        rows.append(means | {f"NDCG@{k}": float(placed.ndcg(k).mean()) for k in KS})
    return pd.DataFrame(rows, index=pd.Index(gammas, name="gamma"))


def few(study: Study, rows: int | None, seed: int) -> Split:
    """The split with only the training rows that a run of so many rows sees, each a sequence of its own; None: all."""
    if rows is None:
        return study.split
    some = drawn(study.train, rows, seed)
    whole = [np.append(h, t) for h, t in zip(some.history, some.target, strict=True)]
    times, valid = [np.arange(float(len(w))) for w in whole], drawn(study.split.valid, 1000, 0)
    return replace(study.split, name=f"few {rows} {seed}", train=whole, times=times, valid=valid)


def backbone_recipe(name: str, rows: int | None, seed: int) -> Recipe:
    """The project's recipe on ten items; with few rows more passes, stopped by a thousand validation cases."""
    recipe = recommenders.recipe(name, seed=seed)
    recipe = replace(recipe, model=replace(recipe.model, max_length=WINDOW))
    if rows is None:
        return recipe
    return replace(recipe, train=replace(recipe.train, epochs=100, patience=8, decay=False, warmup=0, eval_every=2))


def backbone(study: Study, name: str, rows: int | None, seed: int, report: Report = lambda _: None) -> Trained:
    """A recommender that has seen the same rows, from the store or trained now."""
    return recommenders.trained(study.dataset, few(study, rows, seed), backbone_recipe(name, rows, seed), report)


def rival(study: Study, name: str, cases: Cases, rows: int | None = None, seed: int = 0) -> np.ndarray:
    """Scores of names (n, names) by a backbone or a floor (`floors.FLOORS`) that has seen the same rows."""
    catalogue, cases = Catalogue(study.dataset), recent(cases)
    if name in floors.FLOORS:
        return catalogue.best(floors.FLOORS[name](few(study, rows, seed), cases))
    return catalogue.best(recommenders.score(backbone(study, name, rows, seed).model, cases))


def several(near: Sequence[np.ndarray]) -> np.ndarray:
    """Beyond the paper: ground every beam. A name's distance (n, names) is that to the nearest beam.

    Distances are scaled to [0, 1] a beam and a case; what the first beam means comes before what the second means.
    """
    return np.min([bigrec.to_unit(distances) + place / 1000 for place, distances in enumerate(near)], axis=0)


def as_columns(placed: Ranks, name: str) -> pd.DataFrame:
    """Ranks as two columns of a table."""
    return pd.DataFrame({"method": name, "case": np.arange(len(placed.above)), **vars(placed)})


def ranked(
    study: Study,
    said: Mapping[str, Sequence[Sequence[str]]],
    cases: Mapping[str, Cases],
    ground: Grounding,
    scores: Mapping[str, np.ndarray],
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Ranks of the test targets by every way to ground what was said, and the gammas that validation chose.

    Args:
        study: the data.
        said: answers to the cases of "valid" and "test", for each its beams; all but one method read the first.
        cases: those cases.
        ground: the published grounding.
        scores: a recommender's scores of names for the same two sets, the collaborative weight.
    """
    catalogue = Catalogue(study.dataset)
    target = {part: catalogue.of_item[some.target] for part, some in cases.items()}
    first = {part: [lines[0] for lines in said[part]] for part in cases}
    near = {part: ground.distances(first[part]) for part in cases}
    counts = catalogue.counts(study.split.popularity())
    found = {
        "grounded": near["test"],
        "exact match": bigrec.exact(first["test"], catalogue.names),
        "edit distance": bigrec.edits(first["test"], catalogue.names),
        "all beams": several([ground.distances(beam) for beam in zip(*said["test"], strict=True)]),
    }
    gammas = {}
    weights = {"popularity": ({part: counts for part in cases}, POPULAR), "collaborative": (scores, COLLABORATIVE)}
    for name, (weight, grid) in weights.items():
        gammas[name] = float(grid[sweep(near["valid"], weight["valid"], target["valid"], grid)[CHOICE].argmax()])
        found[name] = reweighted(near["test"], weight["test"], gammas[name])
    frames = [as_columns(metrics.ranks(-distances, target["test"]), name) for name, distances in found.items()]
    return pd.concat(frames, ignore_index=True), gammas
