"""What the studies behind the notebooks share: runs side by side, and the file that says what made each."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


def side_by_side(run: Callable[..., None], jobs: Iterable[tuple[Any, ...]], workers: int) -> None:
    """Call ``run(*job, threads)`` for every job, ``workers`` at a time, each in a new process with its share of cores.

    Raises:
        Exception: what the first failed run raised.
    """
    threads = max(1, (os.cpu_count() or 1) // workers)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for job in [pool.submit(run, *job, threads) for job in jobs]:
            job.result()


def device() -> str:
    """What models run on here: the GPU's name, or CPU."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def describe(folder: Path, study: str, threads: int, about: dict[str, Any]) -> None:
    """Write ``run.json``: what a run tells about itself, versions, threads, device, and the command that repeats it."""
    told = {"python": platform.python_version(), "torch": torch.__version__, "threads": threads}
    told["device"] = device()
    told["command"] = f"python -m recnb.{study} {shlex.join(sys.argv[1:])}"
    (folder / "run.json").write_text(json.dumps(about | told, indent=1))


def told(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Folder and ``run.json`` of every stored run under a folder, by name."""
    return [(path.parent, json.loads(path.read_text())) for path in sorted(folder.glob("*/run.json"))]


def kept(folder: Path, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a run that ships with its weights tells (its ``run.json``), and the weights.

    Args:
        folder: of the run.
        what: it is called so in the error.

    Raises:
        FileNotFoundError: when there are none in that folder, with the runs beside it that have some.
    """
    if not (folder / "run.json").exists() or not (folder / "model.safetensors").exists():
        there = [path.name for path, _ in told(folder.parent) if (path / "model.safetensors").exists()]
        raise FileNotFoundError(f"no {what} {folder.name}; there are: {', '.join(there) or 'none'}")
    return json.loads((folder / "run.json").read_text()), load_file(folder / "model.safetensors")
