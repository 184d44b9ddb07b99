"""Reads the stored runs of notebook 04, case by case, and brings a model trained just now into the same form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from recnb import llara_study, metrics, runs
from recnb.data import Cases
from recnb.llara import Llara
from recnb.llara_study import ask, folder_of, plans, questions, shipped, written
from recnb.llara_training import Nearness, Plan
from recnb.metrics import Interval
from recnb.study import WINDOW, Study


def _told(study: Study) -> list[tuple[Path, dict[str, Any]]]:
    """Folder and ``run.json`` of every finished run on this dataset, in the order of `llara_study.plans`."""
    found = runs.told(llara_study.SHIPPED / study.dataset.name)
    order = {name: place for place, name in enumerate(plans())}
    return sorted(found, key=lambda run: (order.get(run[1]["name"], 99), run[1]["plan"]["rows"], run[0].name))


def made(study: Study) -> pd.DataFrame:
    """How each run was made: strategy, prompts by stage (the last one's are ``rows``), ``minutes``, ``command``."""
    rows = []
    for _, told in _told(study):
        plan = told["plan"]
        stages = {key.removesuffix("_rows"): plan[key] for key in plan if key.endswith("rows")}
        row = {"name": told["name"], "seed": plan["seed"], "strategy": plan["strategy"], **stages}
        rows.append({**row, "minutes": told["seconds"] / 60, "command": told["command"]})
    return pd.DataFrame(rows, columns=None if rows else ["name", "seed", "strategy", "rows", "minutes", "command"])


def curve(study: Study, name: str, seed: int = 0) -> pd.DataFrame:
    """Loss curve of a run: ``epoch``, ``loss``, ``seconds``, ``stage``; empty when there is none."""
    path = folder_of(study, name, seed) / "curve.parquet"
    return pd.read_parquet(path) if path.exists() else pd.DataFrame(columns=["epoch", "loss", "seconds", "stage"])


def outcomes(study: Study) -> pd.DataFrame:
    """What every stored run answered, case by case: ``name``, ``seed``, ``asked`` and its sizes, columns of `ask`.

    Prefixes count only where a run was asked the set that most runs were asked (``each`` a user).

    Raises:
        FileNotFoundError: no run or no model on this dataset, or no run that was asked this study's questions.
    """
    cases, table = questions(study, "test")
    place = (table == cases.target[:, None]).argmax(1)
    runs, frames, other = _told(study), [], 0
    for folder, told in runs:
        frame = pd.read_parquet(folder / "answers.parquet")
        test = frame[frame["asked"] == "test"]
        if np.array_equal(test["place"], place):
            sizes = {name: told.get(name, 0) for name in ("each", "wide")}
            frames.append(frame.assign(name=told["name"], seed=told["plan"]["seed"], **sizes))
        else:
            other += 1
    models = any((folder / "model.safetensors").exists() for folder, _ in runs)
    if not frames or not models:
        why = f"{other} stored runs answered other questions (another tie_seed?)" if other else "no stored run"
        raise FileNotFoundError(f"{why} on {study.dataset.name}: the notebook goes on with the run that it trains")
    whole = pd.concat(frames, ignore_index=True)
    most = whole.loc[whole["asked"] == "prefixes", "each"].mode()[:1]
    return whole[(whole["asked"] != "prefixes") | whole["each"].isin(most)].reset_index(drop=True)


def own(study: Study, model: Llara, plan: Plan, test: pd.DataFrame, each: int, limit: int | None) -> pd.DataFrame:
    """Outcomes of one model trained just now, called "trained here", in the form of `outcomes`.

    ``test`` is what it answered on test cases; of ``each`` prefixes a user it ranks the first ``limit`` (None: all).
    """
    cases, table = questions(study, "prefixes", each)
    more = ask(study, model, plan, cases.take(np.arange(len(cases))[:limit]), table[:limit], greedy=False)
    frame = pd.concat([test.assign(asked="test"), more.assign(asked="prefixes")], ignore_index=True)
    return frame.assign(name="trained here", seed=plan.seed, each=each)


def names(frame: pd.DataFrame, asked: str = "test") -> list[str]:
    """Runs that were asked these questions, in the order of the frame."""
    return frame.loc[frame["asked"] == asked, "name"].unique().tolist()


def _by_seed(frame: pd.DataFrame, name: str, asked: str, column: str) -> dict[int, pd.DataFrame]:
    part = frame[(frame["name"] == name) & (frame["asked"] == asked)]
    if part.empty or part[column].isna().all():
        raise KeyError(f"no {column!r} of {name!r} on {asked!r}; there are: {', '.join(names(frame, asked))}")
    return {int(str(seed)): rows for seed, rows in part.groupby("seed")}


def hits(frame: pd.DataFrame, name: str, asked: str = "test", column: str = "exact") -> np.ndarray:
    """Whether a run's choice is the target, (seeds, n); column is "exact", "published" or "likely"."""
    by_seed = _by_seed(frame, name, asked, column).values()
    return np.stack([(rows[column] == rows["place"]).to_numpy(float) for rows in by_seed])


def valid(frame: pd.DataFrame, name: str, asked: str = "test", column: str = "exact") -> np.ndarray:
    """Whether a run's answer names a candidate, (seeds, n), by the rule "exact" or "published"."""
    return np.stack([(rows[column] >= 0).to_numpy(float) for rows in _by_seed(frame, name, asked, column).values()])


def both(frame: pd.DataFrame, one: str, other: str, asked: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Hits of two runs on the same cases, (seeds, n), for `metrics.paired`: common seeds, else means over seeds."""
    seeds = set.intersection(*(set(_by_seed(frame, name, asked, column)) for name in (one, other)))
    if not seeds:
        return hits(frame, one, asked, column).mean(0), hits(frame, other, asked, column).mean(0)
    shared = frame[frame["seed"].isin(seeds)]
    return hits(shared, one, asked, column), hits(shared, other, asked, column)


def share(values: np.ndarray, groups: np.ndarray | None = None) -> Interval:
    """Interval of a share of cases: Wilson for one run of single cases, else bootstrap over users and seeds."""
    values = np.atleast_2d(values)
    if groups is None and len(values) == 1 and np.isin(values, (0, 1)).all():
        return metrics.wilson(float(values.sum()), values.size)
    return metrics.bootstrap(values, groups)


def load(study: Study, wanted: Sequence[str], besides: str = "") -> dict[str, tuple[Llara, Plan]]:
    """The first wanted model that was stored, or any other one, under its name; empty when there is none."""
    there = [told for folder, told in _told(study) if (folder / "model.safetensors").exists()]
    seeds = {told["name"]: told["plan"]["seed"] for told in reversed(there) if told["name"] != besides}
    name = next((name for name in [*wanted, *seeds] if name in seeds), None)
    return {} if name is None else {name: shipped(study, name, seeds[name])}


@torch.no_grad()
def slot_choice(study: Study, model: Llara, plan: Plan, cases: Cases, table: np.ndarray, batch: int = 8) -> np.ndarray:
    """The candidate whose slot scores highest (n,), in the very prompts of `llara_study.ask`."""
    model.eval()
    _, prompts = written(study, model, plan, cases, table)
    parts = [prompts[start : start + batch] for start in range(0, len(prompts), batch)]
    return np.concatenate([model.match(part).argmax(1).cpu().numpy() for part in parts])


def nearest(items: torch.Tensor, cases: Cases) -> np.ndarray:
    """Scores (n, n_items) of the warm start's own rule, as a control."""
    nearness = Nearness(items)
    return np.stack([nearness(history[-WINDOW:]) for history in cases.history])
