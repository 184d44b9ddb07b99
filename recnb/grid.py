"""A declared grid: which jobs it asks for, checked before anything starts, and the table of what they gave.

What stands at the top of its TOML file holds for every ``[[jobs]]`` entry, which may say otherwise; `FIELDS` are the
keys, ``grids/laptop.toml`` is an example. Nothing is required: an empty file asks for every notebook.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import os
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from recnb import claims, runner
from recnb.datasets import PUBLIC
from recnb.runner import UsageError
from recnb.store import plain, sha256


def _list_of(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and bool(value) and all(type(item) in kinds for item in value)


FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "notebooks": ('a list of numbers or names, such as ["02", "03"]', _list_of(str, int)),
    "parameters": ("a table, such as { backbone = [...] }", lambda value: isinstance(value, dict)),
    "seeds": ("a list of whole numbers", _list_of(int)),
    "datasets": ("a list of names or folders", _list_of(str)),
    "memory": ("a number of GB from 0", lambda value: type(value) in (int, float) and value >= 0),
    "gpu": ("a whole number from 0", lambda value: type(value) is int and value >= 0),
}
Record = dict[str, Any]
DEFAULTS: dict[str, Any] = {"seeds": [0, 10, 20], "datasets": ["ml-100k"], "parameters": {}, "memory": 0, "gpu": 0}


@dataclass(frozen=True)
class Job:
    """One notebook with one choice of parameters."""

    notebook: Path
    given: dict[str, Any]  # what is injected
    known: dict[str, Any]  # given and default values together
    code_hash: str  # of the notebook as it was planned
    fingerprint: str  # of code, given, recnb and packages
    key: str  # hash of code, values and the reader's own data: what is done under it is not repeated
    seconds: float  # what the committed run took; 0 when there is none
    resources: dict[str, float]  # what its Dask worker must offer: MEMORY in GB, GPU
    absent: str  # why its data set is not here; "" when it is

    @property
    def label(self) -> str:
        """Its name to readers: the notebook and what was chosen, but for the profile."""
        chosen = [f"{name}={value}" for name, value in self.given.items() if name != "profile"]
        return " ".join([self.notebook.stem, *chosen])


def _unknown(what: str, value: str, allowed: Iterable[str]) -> UsageError:
    near = difflib.get_close_matches(value, known := list(allowed), 1, cutoff=0.3)
    hint = f"; did you mean {near[0]}?" if near else ""
    return UsageError(f"unknown {what} {value!r}: choose from {', '.join(known)}{hint}")


def _checked(where: str, entry: Any, *also: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise UsageError(f"{where} is a table below [[jobs]], not {entry!r}")
    for name, value in entry.items():
        if name not in FIELDS:
            raise _unknown(f"key in {where}", name, [*also, *FIELDS])
        if not FIELDS[name][1](value):
            raise UsageError(f"{where}: {name} is {FIELDS[name][0]}, not {value!r}")
    return entry


def read(file: Path) -> tuple[str, list[dict[str, Any]]]:
    """Profile and checked entries of a grid file; `UsageError` names the entry, the value and what is allowed."""
    try:
        grid = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        there = ", ".join(sorted(map(str, Path("grids").glob("*.toml")))) or "none in grids/"
        raise UsageError(f"cannot read grid {file}: {error.strerror}; there are: {there}") from None
    except ValueError as error:
        raise UsageError(f"grid {file} is not TOML: {error}") from None
    profile, entries = str(grid.pop("profile", "laptop")), grid.pop("jobs", [{}])
    top = _checked(file.name, grid, "profile", "jobs")
    listed = enumerate(entries if isinstance(entries, list) else [entries], 1)
    return profile, [top | _checked(f"{file.name}, [[jobs]] {number}", entry) for number, entry in listed]


def _dataset(name: str) -> tuple[str, tuple[str, list[str]]]:
    """A data set as notebooks take it; why it is absent, and the hashes of what the reader may edit."""
    base = os.environ.get("RECNB_DATA", "")
    if name == "ml-100k":
        return name, ("", [])
    if name in ("own", *PUBLIC):
        folder = Path(base, "" if name == "own" else name)
        absent = "" if base and folder.is_dir() else "set RECNB_DATA to the folder that holds it"
    else:
        folder = Path(name).expanduser().resolve()  # kernels work in another folder
        absent = "" if folder.is_dir() else "no such folder"
        if absent and os.sep not in name:
            raise _unknown("data set or folder", name, ["ml-100k", "own", *PUBLIC])
    files = [] if absent or name in PUBLIC else sorted(folder.glob("*.csv"))
    known = name if name in ("own", *PUBLIC) else str(folder)
    return known, (f"data set {name} is absent: {absent}" if absent else "", [sha256(path) for path in files])


def _expand(profile: str, entry: dict[str, Any]) -> Iterator[Job]:
    paths = runner.resolve([str(name) for name in entry.get("notebooks", [])])
    choices = {name: value if isinstance(value, list) else [value] for name, value in entry["parameters"].items()}
    runner.check(paths, profile, {})
    for name, values in choices.items():
        if name in ("seed", "dataset") or not values:
            raise UsageError(f"parameter {name!r} takes one value or a list; seeds and datasets have keys of their own")
        for value in values:
            runner.check(paths, profile, {name: value}, named="notebooks" in entry)
    data = dict(map(_dataset, entry["datasets"]))
    choices |= {"dataset": list(data), "seed": entry["seeds"]}
    resources = {name.upper(): float(entry[name]) for name in ("memory", "gpu") if entry[name]}
    for path in paths:
        nb = runner.read(path)
        defaults, code = runner.defaults(nb), runner.code_hash(nb)
        seconds = nb.metadata.get("recnb", {}).get("seconds", 0.0)
        taken = {name: values for name, values in choices.items() if name in defaults}
        for chosen in itertools.product(*taken.values()):
            given = {"profile": profile, **dict(zip(taken, chosen, strict=True))}
            known, (absent, content) = defaults | given, data.get(given.get("dataset", ""), ("", []))
            facts = json.dumps([path.stem, code, known, content], sort_keys=True, default=str)
            key, mark = hashlib.sha256(facts.encode()).hexdigest()[:12], runner.fingerprint(nb, given)
            yield Job(path, given, known, code, mark, key, seconds, resources, absent)


def plan(
    file: Path | None = None, profile: str | None = None, seeds: str | None = None, datasets: str | None = None
) -> list[Job]:
    """The jobs of a grid in reading order, each once, with the resources of the last entry that asks for it.

    Without a file, all notebooks. The other arguments stand in place of what the file says; commas separate values.
    Raises `UsageError` when anything is unknown or of a wrong kind.
    """
    declared, entries = read(file) if file else ("laptop", [{}])
    over: dict[str, Any] = {"datasets": [name.strip() for name in datasets.split(",")]} if datasets else {}
    try:
        over |= {"seeds": [int(seed) for seed in seeds.split(",")]} if seeds else {}
    except ValueError:
        raise UsageError(f"--seeds takes whole numbers separated by commas, not {seeds!r}") from None
    jobs = {job.key: job for entry in entries for job in _expand(profile or declared, DEFAULTS | entry | over)}
    return sorted(jobs.values(), key=lambda job: job.notebook.name)


def keep(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file whole or not at all."""
    write(scratch := path.with_name(f".{os.getpid()}.{path.name}"))
    os.replace(scratch, path)


def place(job: Job, folder: Path) -> Path:
    """Where a job of a grid keeps its executed notebook, figures and record."""
    return folder / f"{job.notebook.stem}-{job.key}"


def finished(job: Job, folder: Path) -> Record | None:
    """The record of a job that is done; None when it is not."""
    with suppress(OSError, ValueError):
        record = json.loads((place(job, folder) / "done.json").read_text("utf-8"))
        return record if (place(job, folder) / job.notebook.name).exists() else None
    return None


def _row(job: Job, record: Record) -> Record:
    """What a job was, what it took and what went wrong, flat."""
    values = dict(plain(job.known))
    row = {"notebook": job.notebook.stem, "status": record["status"]}
    row |= {name: values.pop(name, None) for name in ("profile", "dataset", "seed")}
    row |= {f"param_{name}": str(value) if isinstance(value, list) else value for name, value in values.items()}
    names = "seconds peak_memory_mb commit code_hash fingerprint date python cell error traceback".split()
    row |= {name: record.get(name) for name in names} | record.get("packages", {}) | record.get("machine", {})
    return row | {"key": job.key}


def gather(jobs: Sequence[Job], records: Mapping[str, Record], folder: Path) -> None:
    """Write ``table.parquet`` and ``table.csv``, one row a claim of a job, and the ledger ``claims.csv``.

    A job without claims has one row; what was skipped says why.
    """
    rows = []
    for job in jobs:
        record = records.get(job.key, {"status": "skipped" if job.absent else "not done", "error": job.absent or None})
        for claim in record.get("claims") or [dict.fromkeys(claims.COLUMNS)]:
            told = {name: claim[name] for name in claims.COLUMNS if name not in ("profile", "notebook", "dataset")}
            rows.append(_row(job, record) | told | {"measured_on": claim["dataset"]})
    frame = pd.DataFrame(rows).astype(dict.fromkeys(["seed", "cell", "n", "seeds"], "Int64"))
    for name in frame.select_dtypes("object"):
        if frame[name].dropna().map(type).nunique() > 1:  # parquet takes one kind of value in a column
            frame[name] = frame[name].map(str, na_action="ignore")
    keep(folder / "table.parquet", frame.to_parquet)
    for name, table in (("table.csv", frame), ("claims.csv", ledger(frame))):
        keep(folder / name, lambda path, table=table: table.to_csv(path, index=False))  # type: ignore[misc]


def ledger(table: pd.DataFrame) -> pd.DataFrame:
    """The claims over all seeds, see `claims.joined`; ``runs`` says how many."""
    varied = [name for name in map(str, table) if name.startswith("param_")]
    told = table.dropna(subset=["claim"]).rename(columns={"dataset": "given", "measured_on": "dataset"})
    return claims.joined(told, "given", *varied)[[*claims.COLUMNS, "runs", *varied]]
