"""The batch grid: papermill jobs on Dask distributed, one folder, one tidy table.

Workers write into the caller's folder: they must see it, the notebooks and ``RECNB_HOME`` under the same paths. A job
is done when its ``done.json`` stands there, written last and whole: that is how an interrupted grid goes on.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from datetime import timedelta
from importlib import import_module
from logging import CRITICAL
from pathlib import Path
from traceback import format_exception
from typing import Any
from uuid import uuid4

import filelock
import psutil
from distributed import Client, Future, Nanny, Scheduler, Security, SpecCluster, as_completed, get_worker
from distributed.scheduler import KilledWorker
from distributed.utils import silence_logging_cmgr
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from recnb import runner
from recnb.grid import Job, Record, finished, gather, keep, place
from recnb.runner import UsageError
from recnb.store import home, plain

ATTEMPTS = 3  # starts after which a job whose workers die is given up


def _gpus() -> dict[str, str]:
    """Index and name of the GPUs that this process may use, as nvidia-smi lists them."""
    command = ["nvidia-smi", "--query-gpu=index,name", "--format=csv,noheader"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    found = dict(line.split(", ", 1) for line in text.splitlines())
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    return found if shown is None else {index: found[index] for index in shown.split(",") if index in found}


def _entered(job: Job) -> dict[tuple[Path, int], list[Record]]:
    """Rows that runs of this job have entered into the ledger, by file and time."""
    known, found = json.loads(json.dumps(plain(job.known), default=str)), {}
    for path in (home() / "results" / job.known["profile"]).glob(f"{job.notebook.stem}-*.json"):
        entry = json.loads(path.read_text("utf-8"))
        if entry["parameters"].items() <= known.items():
            found[path, path.stat().st_mtime_ns] = entry["rows"]
    return found


def run_job(job: Job, folder: Path, topic: str) -> Record:
    """Execute one job on a Dask worker and return its record, also of a notebook that fails.

    Another call may work in the same folder. Where the job stands is told as Dask events under ``topic``.
    """
    if not folder.is_dir():
        raise UsageError(f"this worker does not see {folder}: workers need the caller's folders")
    here, worker = place(job, folder), get_worker()

    def tell(cell: int = 0, cells: int = 0, peak_mb: float = 0.0) -> None:
        worker.log_event(topic, {"key": job.key, "cell": cell, "cells": cells, "peak_mb": peak_mb})

    here.mkdir(exist_ok=True)
    with filelock.FileLock(here / ".lock"):
        if record := finished(job, folder):
            return record
        for left in here.glob(".*.partial.ipynb"):  # of a start that was killed
            left.unlink()
        tell()
        before = _entered(job)
        result = runner.execute(job.notebook, here / job.notebook.name, job.given, tell)
        record = dict(runner.read(result.output).metadata["recnb"])
        if record["code_hash"] != job.code_hash:
            raise UsageError(f"{job.notebook.name} was edited after the grid had started: start it again")
        record["machine"] |= {"gpu": ", ".join(_gpus().values())}
        if result.status == "done":
            new = [rows for entry, rows in _entered(job).items() if entry not in before]
            record["claims"] = [row for rows in new for row in rows]
            keep(here / "done.json", lambda path: path.write_text(json.dumps(record, indent=1), "utf-8"))
            return record
    error = f"{result.error}: {result.value}"
    return record | {"error": error, "cell": result.cell, "source": result.source, "traceback": result.traceback}


def _span(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


class Board:
    """What a grid shows: a line when a job ends, and below them, on a terminal, what runs now."""

    def __init__(self, console: Console, jobs: Sequence[Job], records: dict[str, Record]) -> None:
        self.console, self.jobs, self.records = console, {job.key: job for job in jobs if not job.absent}, records
        self.running: dict[str, tuple[float, str, float]] = {}  # since when, cell, peak memory in MiB
        self.starts: Counter[str] = Counter()

    def say(self, line: str, style: str = "") -> None:
        """Print a line above what runs now."""
        self.console.print(Text(line, style), soft_wrap=True)

    def hear(self, event: tuple[float, Record]) -> None:
        """Take what a job tells; its first word, without cells, says that it has started."""
        key, cell, cells, peak_mb = (event[1][name] for name in ("key", "cell", "cells", "peak_mb"))
        if not cells:
            self.starts[key] += 1
            self.running[key] = (time.perf_counter(), "", 0.0)
        elif key in self.running:  # else it has ended
            self.running[key] = (self.running[key][0], f"{cell}/{cells}", peak_mb)

    def end(self, job: Job, record: Record) -> None:
        """Take a job's record and say what became of it."""
        self.running.pop(job.key, None)
        self.records[job.key] = record
        again = f" at start {self.starts[job.key]}" if self.starts[job.key] > 1 else ""
        spent = f" in {_span(record['seconds'])}, {record['peak_memory_mb']:.0f} MB" if "seconds" in record else ""
        self.say(f"{job.label}: {record['status']}{again}{spent} · {self.summary()}")
        if record["status"] == "failed":
            where = f"code cell {record['cell']}" if record.get("cell") else "outside its cells"
            parts = Text(record["error"], "bold red"), Text(record["traceback"], "dim")
            body = Group(Syntax(record.get("source", ""), "python"), *parts)
            self.console.print(Panel(body, title=Text(f"{job.label} failed: {where}"), border_style="red"))

    def seconds_left(self) -> float | None:
        """Seconds to the end: committed runs say how notebooks compare, ended jobs how fast this grid is."""
        known = [job.seconds for job in self.jobs.values() if job.seconds] or [1.0]
        weight = {key: job.seconds or sum(known) / len(known) for key, job in self.jobs.items()}
        done = {key: record["seconds"] for key, record in self.records.items() if record["status"] == "done"}
        if not done:
            return None
        pace, now = sum(done.values()) / sum(weight[key] for key in done), time.perf_counter()
        since = {key: row[0] for key, row in self.running.items()}
        open_jobs = weight.keys() - self.records.keys()
        left = sum(max(0.0, pace * weight[key] - (now - since.get(key, now))) for key in open_jobs)
        return left / max(1, len(since))

    def summary(self) -> str:
        """How far the grid is, in one line."""
        left = self.seconds_left()
        eta = "time left not known yet" if left is None else f"about {_span(left)} left"
        return f"{len(self.records)} of {len(self.jobs)}" + f", {eta}" * (len(self.records) < len(self.jobs))

    def __rich__(self) -> Group:
        """The jobs that run now, and how far the grid is."""
        table = Table("running", "cell", "time", "memory", box=None)
        for key, (since, cell, peak_mb) in list(self.running.items())[:20]:
            table.add_row(self.jobs[key].label, cell, _span(time.perf_counter() - since), f"{peak_mb:.0f} MB")
        return Group(table, Text(self.summary(), "cyan"))


def _local(workers: int | None) -> SpecCluster:
    """Workers on this machine, one a GPU or one, with equal shares of cores, memory and GPUs; TLS keeps others out."""
    cards = list(_gpus())
    count = workers or max(1, len(cards))
    memory, cores = psutil.virtual_memory().total / 2**30 / count, str(max(1, (os.cpu_count() or 1) // count))
    shared = {name: os.environ.get(name, cores) for name in ("RECNB_THREADS", "OMP_NUM_THREADS") if count > 1}
    common = {"host": "127.0.0.1", "protocol": "tls://", "security": (security := Security.temporary())}
    specs = {}
    for number in range(count):
        env = shared | ({"CUDA_VISIBLE_DEVICES": ",".join(cards[number::count])} if cards else {})
        offer = {"MEMORY": memory, "GPU": len(cards[number::count])}
        options = {"nthreads": 1, "memory_limit": 0, "silence_logs": CRITICAL, "env": env, "resources": offer}
        options["preload"] = ["import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"]  # Ctrl-C is the caller's
        specs[number] = {"cls": Nanny, "options": {**common, **options}}
    scheduler = {"cls": Scheduler, "options": {**common, "dashboard": False, "dashboard_address": None}}
    return SpecCluster(specs, scheduler, security=security)


def _queue(kind: str, workers: int | None) -> Any:
    """Workers from dask-jobqueue or dask-kubernetes, as the user's Dask configuration describes them."""
    names = {"slurm": ("dask_jobqueue", "SLURMCluster"), "kubernetes": ("dask_kubernetes.operator", "KubeCluster")}
    try:
        cluster = getattr(import_module(names[kind][0]), names[kind][1])()
    except ImportError:
        raise UsageError(f"--scheduler {kind} needs one more package: pip install 'recnb[{kind}]'") from None
    except Exception as error:  # whatever the cluster or its configuration objects to
        raise UsageError(f"--scheduler {kind}: {error}") from error
    cluster.scale(workers or 1)
    return cluster


def _end_kernels() -> None:
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()


@contextmanager
def connect(scheduler: str | None = None, workers: int | None = None) -> Iterator[Client]:
    """A client of this machine, of ``slurm`` or ``kubernetes``, or of a scheduler by its address.

    What was started here ends here, running notebooks included. Raises `UsageError` when nothing answers.
    """
    with ExitStack() as stack:
        for name in ("distributed", "distributed.client"):  # what matters is said in one line
            stack.enter_context(silence_logging_cmgr(CRITICAL, name))
        cluster = None
        if scheduler in (None, "slurm", "kubernetes"):
            cluster = _queue(scheduler, workers) if scheduler else _local(workers)
            stack.callback(cluster.close)
        elif workers:
            raise UsageError("--workers is for workers started here; a scheduler at an address has its own")
        try:
            client = stack.enter_context(Client(cluster or scheduler, timeout=20))
        except (OSError, ValueError) as error:
            kinds = "slurm, kubernetes, or an address such as tcp://HOST:8786"
            raise UsageError(f"no scheduler at {scheduler!r}: {error}; give {kinds}") from None
        if cluster:
            stack.callback(client.run, _end_kernels, on_error="ignore")
        yield client


def _check_offers(client: Client, jobs: Sequence[Job], board: Board, final: bool) -> None:
    """Say when no worker can take a job: an error when ``final``, else it waits for one that can."""
    offers = [worker["resources"] for worker in client.scheduler_info()["workers"].values()]
    best = {name: round(max((offer.get(name, 0) for offer in offers), default=0), 1) for name in ("MEMORY", "GPU")}
    for job in jobs:
        if not any(all(offer.get(name, 0) >= amount for name, amount in job.resources.items()) for offer in offers):
            line = (
                f"{job.label} needs {job.resources or 'a worker'}; the most that one of {len(offers)} offers is {best}"
            )
            if final:
                raise UsageError(f"{line}: use fewer --workers, or --scheduler")
            return board.say(f"{line}: it waits for another, as others may", "yellow")


def _run(client: Client, todo: Sequence[Job], folder: Path, board: Board) -> None:
    topic = f"recnb-{uuid4().hex}"
    client.subscribe_topic(topic, board.hear)

    def submit(job: Job) -> Future:
        key = f"{job.notebook.stem}-{uuid4().hex}"  # new: what another call runs or has failed is not ours
        how = {"resources": job.resources or None, "priority": -todo.index(job)}  # what is first fills the store
        return client.submit(run_job, job, folder, topic, key=key, **how)

    waiting = {submit(job): job for job in todo}
    ended = as_completed(waiting)
    for future in ended:
        job = waiting.pop(future)
        try:
            record = future.result()
        except CancelledError:
            raise UsageError("the scheduler is gone; with it back, the same command goes on from there") from None
        except Exception as error:  # whatever it is, the reader gets to see it and the rest goes on
            if isinstance(error, KilledWorker) and board.starts[job.key] < ATTEMPTS:
                waiting[again := submit(job)] = job  # Dask blames all that the dead worker was to run
                ended.add(again)
                continue
            lines = "".join(format_exception(error)).splitlines()[-12:]
            record = {"status": "failed", "error": f"{type(error).__name__}: {error}", "traceback": "\n".join(lines)}
        board.end(job, record)


def carry_out(jobs: Sequence[Job], folder: Path, scheduler: str | None = None, workers: int | None = None) -> bool:
    """Run what is not done yet, gather all results, and say what became of them; False when a job failed.

    Raises `UsageError` when no scheduler answers, or no worker of this machine can take a job.
    """
    folder.mkdir(parents=True, exist_ok=True)
    records = {job.key: record for job in jobs if (record := finished(job, folder))}
    board, todo = Board(Console(), jobs, records), [job for job in jobs if not job.absent and job.key not in records]
    for reason in dict.fromkeys(job.absent for job in jobs if job.absent):
        board.say(f"skipped: {reason}", "yellow")
    if old := sum(job.fingerprint != records[job.key]["fingerprint"] for job in jobs if job.key in records):
        board.say(f"{old} done jobs ran with other code of recnb or packages; delete their folders to repeat", "yellow")
    before = len(records)
    try:
        if todo:
            with connect(scheduler, workers) as client:
                _check_offers(client, todo, board, final=scheduler is None)
                with Live(board, console=board.console) if board.console.is_terminal else nullcontext():
                    _run(client, todo, folder, board)
    finally:
        gather(jobs, records, folder)
        counts = Counter(records.get(key, {"status": "not done"})["status"] for key in board.jobs)
        told = ", ".join(f"{count} {status}" for status, count in counts.items())
        board.say(f"{told} ({before} before this call); results: {folder}")
    return counts["failed"] == 0
