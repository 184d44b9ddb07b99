"""figures/benchmarks.csv: a benchmark puts its new rows in the place of its earlier ones."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

PATH = Path(__file__).resolve().parents[2] / "figures" / "benchmarks.csv"
COLUMNS = ["task", "ours", "peer", "peer_version", "unit", "ratio", "machine", "command", "date"]


def write(rows: Sequence[Sequence[object]], begins: str, threads: int, command: str, path: Path = PATH) -> None:
    """Print rows and put them where rows of that beginning stood.

    Args:
        rows: task, ours, peer, peer's version, unit, ratio (above 1: ours is better).
        begins: how the tasks of this benchmark begin.
        threads: that were used.
        command: after ``python tests/benchmarks/``.
        path: of the table.
    """
    machine = f"{platform.machine()}, {threads} thread(s) of {os.cpu_count()} cores"
    tail = [machine, f"python tests/benchmarks/{command}", datetime.date.today().isoformat()]
    new = pd.DataFrame([[*map(str, row), *tail] for row in rows], columns=COLUMNS)
    for row in new.to_numpy():
        print(*row, sep=" · ", flush=True)
    old = pd.read_csv(path, dtype=str) if path.exists() else pd.DataFrame(columns=COLUMNS)
    pd.concat([old[~old["task"].str.startswith(begins)], new]).to_csv(path, index=False)
