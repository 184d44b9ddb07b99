"""Runs the numbered notebooks with papermill, and writes into each copy what it was made with.

Everything is checked first: papermill itself ignores a misspelt parameter. A finished run is known by its fingerprint.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
import logging
import os
import platform
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from traceback import format_exception
from typing import IO, Any

import nbformat
import papermill
import psutil
from nbformat import NotebookNode
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines

import recnb
from recnb.profiles import NAMES

# glibc then keeps large buffers from step to step: a fifth of the training time. And OpenMP's threads wait less long
# before they sleep: beside another busy program two of them were many times slower than one. Elsewhere: nothing.
KERNEL_ENV = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296", "GOMP_SPINCOUNT": "10000"}
INJECTED = "injected-parameters"
VERSIONS = {name: version(name) for name in ("torch", "transformers", "numpy", "pandas")}


class UsageError(ValueError):
    """The command cannot be carried out as given; the message is one line that says why."""


@dataclass(frozen=True)
class Result:
    """What became of one notebook; the last five fields describe a failure."""

    notebook: str  # its name without .ipynb
    status: str  # "done", "skipped", "failed" or "interrupted"
    output: Path  # the executed copy; an interrupted run leaves none
    seconds: float = 0.0
    peak_memory_mb: float = 0.0  # kernel and its children, MiB
    cell: int | None = None  # In [cell] in the executed copy; None: no cell had started
    source: str = ""
    error: str = ""
    value: str = ""
    traceback: str = ""  # last lines, without colours


def project_root() -> Path:
    """Folder of ``notebooks/``: the current one, else this package's; `UsageError` if neither."""
    for root in (Path.cwd(), Path(recnb.__file__).resolve().parents[1]):
        if any((root / "notebooks").glob("[0-9][0-9]_*.ipynb")):
            return root
    raise UsageError(f"no notebooks/NN_name.ipynb in {Path.cwd()}: go to the tutorial's folder")


def notebooks() -> list[Path]:
    """The numbered notebooks in reading order."""
    return sorted((project_root() / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def _unknown(kind: str, value: str, allowed: Sequence[str]) -> UsageError:
    near = difflib.get_close_matches(value, allowed, n=1, cutoff=0.3)
    hint = f"; did you mean {near[0]}?" if near else ""
    return UsageError(f"unknown {kind} {value!r}: choose from {', '.join(allowed)}{hint}")


def resolve(names: Sequence[str] = ()) -> list[Path]:
    """Turn "02", "2", a name or a path into notebooks in reading order; no names mean all.

    Raises `UsageError` when a name fits no notebook.
    """
    known, chosen = notebooks(), set()
    for name in names:
        stem = Path(name).name.removesuffix(".ipynb")
        fitting = {path for path in known if stem.zfill(2) in (path.stem, path.stem[:2])}
        if not fitting:
            raise _unknown("notebook", name, [path.stem for path in known])
        chosen |= fitting
    return sorted(chosen) if names else known


def read(path: Path) -> NotebookNode:
    """Read a notebook; raises `UsageError` when the file is absent or no notebook."""
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        raise UsageError(f"cannot read {path.name}: {str(error).splitlines()[0]}") from error


def parse_parameters(items: Iterable[str]) -> dict[str, Any]:
    """Values of ``name=value`` items (else `UsageError`): JSON, True/FALSE/none..., or text."""
    words = {"true": True, "false": False, "none": None}
    found: dict[str, Any] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not (name and equals):
            raise UsageError(f"write a parameter as name=value, not {item!r}")
        found[name] = words.get(text.lower(), text)
        with suppress(ValueError):
            found[name] = json.loads(text)
    return found


def defaults(nb: NotebookNode) -> dict[str, Any]:
    """Names and defaults in the cell tagged ``parameters``; None also for what is no literal.

    Read from the syntax tree: papermill's inspection omits lines with "=" in their comment. Raises
    `UsageError` when the cell does not parse.
    """
    cells = [cell for cell in nb.cells if "parameters" in cell.metadata.get("tags", [])]
    try:
        lines = ast.parse(cells[0].source).body if cells else []
    except SyntaxError as error:
        raise UsageError(f"the parameters cell is not Python: {error}") from error
    found: dict[str, Any] = {}
    for node in lines:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            found[ast.unparse(target)] = None
            with suppress(ValueError, TypeError):
                found[ast.unparse(target)] = ast.literal_eval(node.value)
    return found


def _check_type(name: str, value: Any, default: Any) -> None:
    wanted = type(default)
    fitting = {float: (float, int), tuple: (tuple, list)}.get(wanted, (wanted,))
    if default is not None and type(value) not in fitting:  # isinstance would take True for 1
        raise UsageError(f"parameter {name!r} takes {wanted.__name__} (default {default!r}), not {value!r}")


def check(
    paths: Sequence[Path], profile: str, parameters: Mapping[str, Any], named: bool = True
) -> dict[Path, dict[str, Any]]:
    """Plan what to inject into each notebook; nothing where it can run as it stands.

    ``named`` says that the reader chose these notebooks: then each must take every parameter, else
    one is enough. Raises `UsageError` for an unknown profile or parameter, or for a value of
    another type than the default's.
    """
    if profile not in NAMES:
        raise _unknown("profile", profile, NAMES)
    if "profile" in parameters:
        raise UsageError("choose the profile with --profile, not as a parameter")
    takes = {path: defaults(read(path)) for path in paths}
    plan: dict[Path, dict[str, Any]] = {path: {} for path in paths}
    for name, value in {"profile": profile, **parameters}.items():
        for path, known in takes.items():
            if name in known:
                _check_type(name, value, known[name])
                if name != "profile" or value != known[name]:
                    plan[path][name] = value
            elif named:
                raise _unknown(f"parameter of {path.stem}", name, list(known))
        if not any(name in known for known in takes.values()):
            raise _unknown("parameter", name, sorted(set().union(*takes.values())))
    return plan


def code_cells(nb: NotebookNode) -> list[NotebookNode]:
    """The notebook's own code cells: all but the one that papermill injects."""
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    return [cell for cell in code if INJECTED not in cell.metadata.get("tags", [])]


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def code_hash(nb: NotebookNode) -> str:
    """First 16 hex digits of the sha256 over the sources of the notebook's own code cells."""
    return _digest([cell.source.rstrip() for cell in code_cells(nb)])


def fingerprint(nb: NotebookNode, parameters: Mapping[str, Any]) -> str:
    """Hash of what decides a run: notebook code, parameters, recnb's sources, package versions."""
    sources = [path.read_text("utf-8") for path in sorted(Path(recnb.__file__).parent.rglob("*.py"))]
    return _digest([code_hash(nb), sources, dict(parameters), VERSIONS])


def is_finished(out: Path, mark: str) -> bool:
    """Whether an executed copy is there, ran to its end, and carries this fingerprint."""
    with suppress(UsageError):
        about = read(out).metadata.get("recnb", {})
        return about.get("status") == "done" and about.get("fingerprint") == mark
    return False


def _commit(path: Path, nb: NotebookNode) -> str | None:
    def git(*words: str) -> str:
        command = ["git", "-C", str(path.parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", "../recnb")
        committed = nbformat.reads(git("show", f"HEAD:./{path.name}"), as_version=4)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None  # no git, or no commit holds this notebook
    return commit + "+dirty" * bool(changed or code_hash(committed) != code_hash(nb))


class _Watch(threading.Thread):
    """Sees a run from outside: counts its cells, samples the memory of the kernel's processes."""

    def __init__(self, cells: int, on_progress: Callable[[int, int, float], None]) -> None:
        super().__init__(daemon=True)
        self.cell, self.cells, self.peak_mb = 0, cells, 0.0
        self.on_progress, self.ended = on_progress, threading.Event()
        self.client: Any = None

    def next_cell(self, **_: Any) -> None:
        self.cell += 1
        self.on_progress(self.cell, self.cells, self.peak_mb)

    def run(self) -> None:
        while not self.ended.wait(0.2):
            now_mb = 0.0
            with suppress(psutil.Error, AttributeError):  # not there yet, or already gone
                kernel = psutil.Process(self.client.km.provisioner.pid)
                tree = [kernel, *kernel.children(recursive=True)]
                now_mb = sum(process.memory_info().rss for process in tree) / 2**20
            if now_mb > self.peak_mb:
                self.peak_mb = now_mb
                self.on_progress(self.cell, self.cells, now_mb)


class _Engine(NBClientEngine):
    """Papermill's engine, watched, and with a say in how its kernel starts."""

    @classmethod
    def execute_managed_notebook(
        cls, nb_man: Any, kernel_name: str, *, watch: _Watch, kernel: dict[str, Any], **_: Any
    ) -> None:
        watch.client = PapermillNotebookClient(
            nb_man,
            kernel_name=kernel_name,
            startup_timeout=120,
            iopub_timeout=60,  # nbclient's own 4 s are too few on a busy machine
            on_cell_execute=watch.next_cell,
            log=logging.getLogger("papermill"),
        )
        watch.client.execute(**kernel)


papermill_engines.register("_recnb", _Engine)
logging.getLogger("papermill").setLevel(logging.CRITICAL)  # the result carries every error


def _papermill(path: Path, out: Path, parameters: dict[str, Any], **seen: Any) -> Exception | None:
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # this environment's kernel comes first
    seen |= {"engine_name": "_recnb", "kernel_name": "python3", "language": "python"}
    try:
        papermill.execute_notebook(str(path), str(out), parameters, progress_bar=False, **seen)
    except Exception as error:  # whatever it is, the reader gets to see it
        return error
    return None


def _failure(nb: NotebookNode, error: Exception | None, cell: int, log: IO) -> dict[str, Any]:
    cells = [cell for cell in nb.cells if cell.cell_type == "code" and cell.source.strip()]
    raised = [(number, o) for number, c in enumerate(cells, 1) for o in c.outputs if "ename" in o]
    if raised:
        cell, seen = raised[0]
        name, value, text = seen.ename, seen.evalue, "\n".join(seen.traceback)
    elif error:  # no cell raised: the kernel died, and may have said why, or it never started
        log.seek(0)
        said = re.sub(r"\[IPKernelApp\] WARNING.*\n", "", log.read().decode(errors="replace"))
        name, value, text = type(error).__name__, str(error), said or "".join(format_exception(error))
    else:
        return {}
    lines = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text).rstrip().splitlines()
    where = {"cell": cell, "source": cells[cell - 1].source} if cell else {}
    return {"error": name, "value": value, "traceback": "\n".join(lines[-12:]), **where}


def _facts(path: Path, nb: NotebookNode, parameters: dict[str, Any]) -> dict[str, Any]:
    known, memory_gb = {**defaults(nb), **parameters}, round(psutil.virtual_memory().total / 2**30, 1)
    return {
        "profile": known.get("profile"),
        "parameters": parameters,
        "seed": known.get("seed"),
        "commit": _commit(path, nb),
        "python": platform.python_version(),
        "packages": VERSIONS,
        "code_hash": code_hash(nb),
        "fingerprint": fingerprint(nb, parameters),
        "machine": {"cores": os.cpu_count(), "arch": platform.machine(), "memory_gb": memory_gb},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def execute(
    path: Path,
    out: Path,
    parameters: Mapping[str, Any] | None = None,
    on_progress: Callable[[int, int, float], None] = lambda cell, cells, peak_mb: None,
) -> Result:
    """Run one notebook in a fresh kernel and write the executed copy, whole or not at all.

    The copy's ``metadata.recnb`` says what it was made with; a failing notebook leaves one too. The
    kernel works in the notebook's folder and finds that of ``out`` as ``RECNB_RUNS``. Ctrl-C ends
    it and gives an "interrupted" result; an older copy then still stands. ``on_progress`` gets the
    code cell's number, how many there are, and the peak memory in MiB, at each new cell and, from
    another thread, at each new peak. Raises `UsageError` when ``path`` is no notebook.
    """
    path, out, given, nb = path.resolve(), out.resolve(), dict(parameters or {}), read(path)
    facts = _facts(path, nb, given)  # before the run: what is edited during it counts as changed
    watch = _Watch(sum(bool(c.source.strip()) for c in code_cells(nb)) + bool(given), on_progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.stem}.{os.getpid()}.partial.ipynb")
    started = time.perf_counter()
    watch.start()
    try:
        with tempfile.TemporaryFile() as log:
            env = {**KERNEL_ENV, **os.environ, "RECNB_RUNS": str(out.parent)}
            kernel = {"cwd": str(path.parent), "env": env, "stdout": log, "stderr": log}
            error = _papermill(path, partial, given, watch=watch, kernel=kernel)
            nb = read(partial) if partial.exists() else nb
            nb.metadata.pop("widgets", None)  # megabytes; but Output widgets fail when none is kept
            failure = _failure(nb, error, watch.cell, log)
        spent = round(time.perf_counter() - started, 1), round(watch.peak_mb, 1)
        facts |= dict(zip(("seconds", "peak_memory_mb"), spent, strict=True))
        nb.metadata["recnb"] = {**facts, "status": "failed" if failure else "done"}
        nbformat.write(nb, partial)
        os.replace(partial, out)
    except KeyboardInterrupt:
        return Result(path.stem, "interrupted", out, time.perf_counter() - started, watch.peak_mb)
    finally:
        watch.ended.set()
        watch.join()  # nothing is reported after the end
        partial.unlink(missing_ok=True)
    return Result(path.stem, nb.metadata["recnb"]["status"], out, *spent, **failure)
