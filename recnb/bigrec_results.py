"""What the stored runs of notebook 05 came to, as tables and intervals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from recnb import metrics, runs
from recnb.bigrec_study import SHIPPED, placed
from recnb.metrics import Interval, Ranks

COLUMNS = "method case above tied name rows seed".split()
Metric = Callable[[Ranks], np.ndarray]


def stored(dataset: str) -> pd.DataFrame:
    """Ranks of every stored run: ``name`` (of the run), ``rows``, ``seed``, ``method``, ``case``, ``above``, ``tied``.

    Recommenders have the name "rivals"; those that saw all rows have ``rows`` 0. Empty when there is no run.
    """
    frames = []
    for folder, about in runs.told(SHIPPED / dataset):
        plan = about.get("plan", about)
        told = {"name": about.get("name", "rivals"), "rows": plan["rows"] or 0, "seed": plan["seed"]}
        frames.append(pd.read_parquet(folder / "ranks.parquet").assign(**told))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)


def _by_size(frame: pd.DataFrame) -> pd.Series:
    """Which rows of `stored` are of runs that are named by their number of training rows alone."""
    return frame["name"].astype(str).str.fullmatch(r"\d+ rows")


def headline(frame: pd.DataFrame) -> str | None:
    """Name of the runs with the most training rows that were made with three seeds; None when there are none.

    Args:
        frame: see `stored`.
    """
    sizes = frame[_by_size(frame)].groupby(["rows", "name"])["seed"].nunique()
    whole = sizes[sizes >= 3]
    return str(whole.index[-1][1]) if len(whole) else None


def made(dataset: str) -> pd.DataFrame:
    """How each stored run was made, with ``minutes`` of training and ``nats`` a token of validation's right names."""
    found = []
    for folder, about in runs.told(SHIPPED / dataset):
        if "plan" in about:
            plan = about["plan"]
            row = {"run": about["name"], "seed": plan["seed"], "rows": plan["rows"], "passes": plan["passes"]}
            row |= {"beams": about["beams"], "minutes": about["seconds"] / 60, "on": about.get("device", "CPU")}
            curve = pd.read_parquet(folder / "curve.parquet")
            row |= {"nats": -curve["score"].max() if len(curve) else np.nan, **about["gammas"]}
            found.append(row | {"command": about["command"]})
    return pd.DataFrame(found).sort_values(["rows", "run", "seed"], ignore_index=True)


def said(dataset: str, name: str, seed: int = 0, part: str = "test") -> list[list[str]]:
    """What a stored run said to each case of a part, its likeliest answer first.

    Raises:
        FileNotFoundError: when there is no such run.
    """
    for folder, about in runs.told(SHIPPED / dataset):
        if about.get("name") == name and about["plan"]["seed"] == seed:
            answers = pd.read_parquet(folder / "answers.parquet")
            return [list(lines) for lines in answers.loc[answers["asked"] == part, "said"]]
    raise FileNotFoundError(f"no stored run {name!r} with seed {seed} on {dataset}")


def by_seed(frame: pd.DataFrame, name: str, method: str, metric: Metric, rows: int | None = None) -> np.ndarray:
    """A metric of each case, one line a seed: (seeds, n).

    Args:
        frame: see `stored`.
        name: of the run, or "rivals".
        method: how it was ranked.
        metric: such as ``lambda ranks: ranks.ndcg(10)``.
        rows: of the rivals; 0 are those that saw all.

    Raises:
        KeyError: when nothing of that kind is stored, with what there is.
    """
    part = frame[(frame["name"] == name) & (frame["method"] == method)]
    part = part if rows is None else part[part["rows"] == rows]
    if part.empty:
        there = frame[["name", "method"]].drop_duplicates().agg(": ".join, axis=1)
        raise KeyError(f"nothing stored of {name}: {method} ({rows} rows); there are: {', '.join(there)}")
    groups = part.sort_values(["seed", "case"]).groupby("seed")
    return np.stack([metric(placed(run)) for _, run in groups])


def curve(frame: pd.DataFrame, users: np.ndarray, metric: Metric, methods: list[str]) -> pd.DataFrame:
    """A metric by training size, BIGRec and rivals: ``method``, ``rows``, ``value``, ``low``, ``high``, ``seeds``.

    Args:
        frame: see `stored`.
        users: who was asked each case (n,).
        metric: of ranks.
        methods: which to take.
    """
    found = []
    plain = frame[frame["name"].isin(["rivals", "untuned"]) | _by_size(frame)]
    for (name, rows), part in plain.groupby(["name", "rows"]):
        for method in [known for known in methods if known in set(part["method"])]:
            got: Interval = metrics.bootstrap(by_seed(part, str(name), method, metric), users)
            row = {"method": method, "rows": rows, "value": got.value, "low": got.low, "high": got.high}
            found.append(row | {"seeds": got.seeds})
    return pd.DataFrame(found).sort_values(["method", "rows"], ignore_index=True)
