"""The ledger: what a paper claims, what was measured here, and a verdict that one rule gives.

A claim is measured as a number whose sign decides: usually ours minus a control. Its 95 % interval gives the verdict:
*reproduced* when it lies wholly on the claimed side, *contradicted* when wholly on the other, else *inconclusive at
this scale*. Nobody types a verdict.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from recnb.metrics import Interval
from recnb.store import home, plain

PAPERS = ("LLaRA", "BIGRec", "DreamRec", "RecInterpreter", "MCRL-style", "Digital twin brain")
COLUMNS = (
    "paper claim protocol dataset statistic side value low high n seeds control control_value profile verdict notebook"
).split()
KEYS = "paper claim protocol dataset statistic side control profile".split()  # what makes two rows the same claim
VARIED = ("seed", "dataset", "profile")  # parameters that a batch varies
INCONCLUSIVE = "inconclusive at this scale"


def verdict(interval: Interval, side: str = ">", threshold: float = 0.0) -> str:
    """The one rule.

    Args:
        interval: of the measured statistic.
        side: ">" when the paper claims a value above the threshold, "<" when below.
        threshold: what the interval is held against.
    """
    if side not in (">", "<"):
        raise ValueError(f"side is {side!r}; allowed: '>' and '<'")
    above, below = interval.low > threshold, interval.high < threshold
    if above or below:
        return "reproduced" if above == (side == ">") else "contradicted"
    return INCONCLUSIVE


@dataclass(frozen=True)
class Claim:
    """One claim of one paper, as measured.

    Attributes:
        paper: one of `PAPERS`.
        claim: the statement in a few words.
        protocol: split, candidates and what is filtered.
        dataset: data it was measured on.
        statistic: what ``interval`` estimates, with its metric's name.
        interval: estimate and 95 % interval.
        control: what it was held against.
        control_value: the control's own value of the metric.
        side: ">" or "<", see `verdict`.
    """

    paper: str
    claim: str
    protocol: str
    dataset: str
    statistic: str
    interval: Interval
    control: str
    control_value: float
    side: str = ">"

    def __post_init__(self) -> None:
        """Refuse a paper that the tutorial does not treat."""
        if self.paper not in PAPERS:
            raise ValueError(f"unknown paper {self.paper!r}; allowed: {', '.join(PAPERS)}")

    def row(self, profile: str, notebook: str) -> dict[str, Any]:
        """The ledger's row."""
        got = self.interval
        values: list[Any] = [self.paper, self.claim, self.protocol, self.dataset, self.statistic, self.side]
        values += [round(x, 4) for x in (got.value, got.low, got.high)] + [got.n, got.seeds]
        values += [self.control, round(self.control_value, 4), profile, verdict(got, self.side), notebook]
        return dict(zip(COLUMNS, values, strict=True))


def _results() -> Path:
    return home() / "results"


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def record(claims: list[Claim], notebook: str, profile: str, parameters: dict[str, Any]) -> pd.DataFrame:
    """Store a run's claims, replacing those of the same notebook, profile and parameters; returns their rows."""
    rows = [claim.row(profile, notebook) for claim in claims]
    key = hashlib.sha256(json.dumps(plain(parameters), sort_keys=True).encode()).hexdigest()[:8]
    path = _results() / profile / f"{notebook}-{key}.json"
    _replace(path, json.dumps({"parameters": plain(parameters), "rows": rows}, indent=1))
    return pd.DataFrame(rows, columns=COLUMNS)


def joined(rows: pd.DataFrame, *more: str) -> pd.DataFrame:
    """Runs of one claim as one row: mean value, widest interval, and a verdict where all runs give the same one.

    Args:
        rows: with `COLUMNS`.
        more: further columns that tell claims apart.
    """
    how: dict[str, Any] = {"value": "mean", "low": "min", "high": "max", "n": "min", "seeds": "max"}
    how |= {"control_value": "mean", "verdict": lambda said: said.iloc[0] if said.nunique() == 1 else INCONCLUSIVE}
    groups = rows.groupby([*KEYS, "notebook", *more], dropna=False, sort=False)
    return groups.agg(how).join(groups.size().rename("runs")).reset_index().round(4)


def _usual(paths: list[Path]) -> dict[str, dict[str, Any]]:
    """The parameters that the notebooks of these results have by themselves; none where there are no notebooks."""
    from recnb import runner  # papermill takes a second

    stems = {path.stem.rpartition("-")[0] for path in paths}
    with suppress(runner.UsageError):
        known = [path for path in runner.notebooks() if path.stem in stems]
        return {path.stem: plain(runner.defaults(runner.read(path))) for path in known}
    return {}


def _measured() -> pd.DataFrame:
    """What runs on this machine measured, with the parameters that their notebooks have but for seed and data."""
    paths = [path for profile in ("laptop", "paper") for path in sorted((_results() / profile).glob("*.json"))]
    usual, found = _usual(paths) if paths else {}, []
    for path in paths:
        run = json.loads(path.read_text())
        own = usual.get(path.stem.rpartition("-")[0], {})
        if all(run["parameters"].get(name, value) == value for name, value in own.items() if name not in VARIED):
            found += run["rows"]
    rows = pd.DataFrame(found, columns=COLUMNS)
    return joined(rows)[COLUMNS] if found else rows


def table(ledger: Path | None = None) -> pd.DataFrame:
    """All claims known here: of the committed ledger, and of this machine's `laptop` and `paper` runs in their place.

    Runs with several seeds are `joined`; those with other parameters than their notebook's own do not count. What a
    notebook measured here replaces all that the ledger holds of it under that profile and on those data.

    Args:
        ledger: the committed CSV; read when it exists.
    """
    known = pd.read_csv(ledger) if ledger and ledger.exists() else pd.DataFrame(columns=COLUMNS)
    here, where = _measured(), ["notebook", "profile", "dataset"]
    replaced = pd.MultiIndex.from_frame(known[where]).isin(pd.MultiIndex.from_frame(here[where]))
    frames = [rows for rows in (known[~replaced], here) if len(rows)]
    merged = pd.concat(frames, ignore_index=True) if frames else known
    order = merged["paper"].map(PAPERS.index)
    return merged.assign(order=order).sort_values(["order", "notebook"], kind="stable")[COLUMNS]


def write(path: Path) -> None:
    """Write the ledger as CSV, whole or not at all."""
    _replace(path, table(path).to_csv(index=False))
