"""What the stored runs of notebook 07 read, as tables and intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd

from recnb import interpreter_study, metrics, runs
from recnb.interpreter_study import PLANS, SHIPPED
from recnb.metrics import Interval
from recnb.study import Study


def stored(dataset: str) -> pd.DataFrame:
    """Answers of every stored run, with ``name``, ``source``, ``seed`` and ``each``; empty when there is none."""
    frames = []
    for folder, about in runs.told(SHIPPED / dataset):
        told = {"name": about["name"], "each": about["each"], "source": about["plan"]["source"]}
        frames.append(pd.read_parquet(folder / "answers.parquet").assign(**told, seed=about["plan"]["seed"]))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["name", "source", "method"])


def made(dataset: str) -> pd.DataFrame:
    """How each stored run was made: rows of the warm start and of reading, ``minutes`` on one core, ``command``."""
    rows, order = [], {name: place for place, name in enumerate(PLANS)}
    for _, about in runs.told(SHIPPED / dataset):
        plan = about["plan"]
        row = {"run": about["name"], "states of": plan["source"], "seed": plan["seed"], "warm start": plan["word_rows"]}
        row |= {"read": plan["rows"], "minutes": sum(about["seconds"].values()) / 60, "command": about["command"]}
        rows.append(row)
    return pd.DataFrame(rows).sort_values("run", key=lambda names: names.map(order), kind="stable", ignore_index=True)


def people(rows: pd.DataFrame, study: Study) -> np.ndarray:
    """Who was asked each row (n,); for the task "item" every item stands for itself."""
    case = rows["case"].to_numpy()
    if (rows["name"] == "item").all():
        return case
    return interpreter_study.asked(study, int(rows["each"].iloc[0])).cases.user[case]


def _by_seed(rows: pd.DataFrame, method: str, measure: str) -> np.ndarray:
    part = rows[rows["method"] == method].sort_values(["seed", "case"])
    if part.empty:
        raise KeyError(f"no {method!r}; there are: {', '.join(rows['method'].unique())}")
    return np.stack([run[measure].to_numpy(float) for _, run in part.groupby("seed")])


def interval(rows: pd.DataFrame, study: Study, method: str, measure: str, other: str | None = None) -> Interval:
    """A method's mean of a measure, or its paired difference to another's, over people and seeds.

    Args:
        rows: of one run and source, as in `stored`; controls without a language model have one seed.
        study: the data.
        method: "adapter" or a control.
        measure: a column, such as "exact" or "nats".
        other: what to subtract.
    """
    ours = _by_seed(rows, method, measure)
    groups = people(rows[rows["method"] == method].sort_values(["seed", "case"]), study)[: ours.shape[1]]
    if other is None:
        return metrics.bootstrap(ours, groups)
    return metrics.paired(ours, _by_seed(rows, other, measure), groups)


def residual_gap(frame: pd.DataFrame, study: Study, residual: str, recovery: str, source: str) -> Interval:
    """How much larger a share of films is named right by one run than by another, person by person.

    Both shares are means over a person's cases and over seeds: right films of all that there are to name.
    """
    shares = []
    for name in (residual, recovery):
        rows = frame[(frame["name"] == name) & (frame["source"] == source) & (frame["method"] == "adapter")]
        share = rows.assign(share=rows["exact"] / rows["size"], person=people(rows, study))
        shares.append(share.groupby("person")["share"].mean())
    both = pd.concat(shares, axis=1, join="inner").to_numpy().T
    return metrics.paired(both[0], both[1])
