"""What the stored runs of notebook 08 came to, as tables and intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from recnb import metrics, runs
from recnb.mcrl_evaluation import ratio
from recnb.mcrl_study import CLIPS, SHIPPED
from recnb.metrics import Interval


def stored(dataset: str) -> pd.DataFrame:
    """Every stored run, one row a test user and way of ranking: ``method``, ``backbone``, ``seed``, ``by``, measures.

    See `mcrl_study.judged` for the measures. Empty when there is no run.
    """
    frames = []
    for folder, about in runs.told(SHIPPED / dataset):
        named = {name: about[name] for name in ("method", "backbone", "seed")}
        frames.append(pd.read_parquet(folder / "people.parquet").astype({"by": str}).assign(**named))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def made(dataset: str) -> pd.DataFrame:
    """How the stored runs were made, a row a method: ``runs``, ``epochs``, ``minutes`` a run on one core."""
    rows = [
        {
            "method": a["method"],
            "seeds": a["seed"],
            "epochs": a["plan"]["train"]["epochs"],
            "minutes": a["seconds"] / 60,
        }
        for _, a in runs.told(SHIPPED / dataset)
    ]
    how = {"seeds": "nunique", "epochs": "max", "minutes": "mean"}
    return pd.DataFrame(rows).groupby("method", sort=False).agg(how).reset_index() if rows else pd.DataFrame()


def by_seed(frame: pd.DataFrame, measure: str, method: str, backbone: str = "SASRec", by: str = "scores") -> np.ndarray:
    """A measure of every test user, one line a seed (seeds, users); users without it are NaN.

    Raises:
        KeyError: when nothing of that kind is stored, with what there is.
    """
    part = frame[(frame["method"] == method) & (frame["backbone"] == backbone) & (frame["by"] == by)]
    if part.empty or measure not in part or part[measure].isna().all():
        there = frame[["method", "backbone", "by"]].drop_duplicates().agg(", ".join, axis=1)
        raise KeyError(f"no {measure} stored of {method} on {backbone} by {by}; there are: {'; '.join(there)}")
    return part.pivot(index="seed", columns="user", values=measure).to_numpy()


def interval(values: np.ndarray) -> Interval:
    """Mean over seeds and users with its interval; users without a value are left out."""
    return metrics.bootstrap(values[:, ~np.isnan(values).any(0)])


def gap(ours: np.ndarray, other: np.ndarray) -> Interval:
    """Interval of the difference, user by user, see `metrics.paired`; users without a value are left out."""
    both = ~(np.isnan(ours).any(0) | np.isnan(other).any(0))
    return metrics.paired(ours[:, both], other[:, both])


def summary(frame: pd.DataFrame, measures: Mapping[str, str], rows: Iterable[tuple[str, str, str]]) -> pd.DataFrame:
    """Estimates with intervals: one row a method, backbone and way of ranking, one column a measure.

    Args:
        frame: see `stored`.
        measures: heading to measure.
        rows: method, backbone, way of ranking.
    """
    found = []
    for method, backbone, by in rows:
        cells = {k: str(interval(by_seed(frame, name, method, backbone, by))) for k, name in measures.items()}
        found.append({"agent": method, "backbone": backbone, "ranked by": by, **cells})
    return pd.DataFrame(found)


def weighed(frame: pd.DataFrame, methods: Iterable[str], backbone: str = "SASRec") -> pd.DataFrame:
    """One-step estimates of each method's mean reward: ``method``, ``clip``, ``size`` (effective), ``SNIPS``, ``DR``.

    Both come with intervals over users, seeds pooled; ``size`` is that of one seed.
    """
    rows = []
    for method in methods:
        part = frame[(frame["method"] == method) & (frame["backbone"] == backbone) & (frame["by"] == "scores")]
        for clip in CLIPS:
            names = [f"{name} {clip}" for name in ("weight", "worth", "square", "robust")]
            people = part.assign(cases=part["cases good"].fillna(0) + part["cases poor"].fillna(0))
            sums = people.groupby("user")[[*names, "cases"]].sum()
            weight, worth, square, robust, cases = sums.to_numpy().T
            seeds = part["seed"].nunique()
            size = weight.sum() ** 2 / square.sum() / seeds
            row = {"method": method, "clip": clip, "size": size}
            rows.append(row | {"SNIPS": str(ratio(worth, weight)), "DR": str(ratio(robust, cases))})
    return pd.DataFrame(rows)
