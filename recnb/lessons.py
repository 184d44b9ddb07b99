"""Lesson manners: starting a notebook, showing code, progress that leaves one line, results and exercises."""

from __future__ import annotations

import dis
import html
import inspect
import os
import platform
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from IPython.display import HTML, DisplayHandle, Markdown, display

from recnb import __version__, claims, plots, profiles, runs
from recnb.metrics import Interval
from recnb.training import Progress


@dataclass
class Run:
    """What a notebook's cells share.

    Attributes:
        notebook: such as "01_data".
        profile: "smoke", "laptop" or "paper".
        seed: first seed of everything random.
        dataset: name or folder, as given.
        settings: the profile's numbers for this notebook (`recnb.profiles`).
        parameters: all values of the parameters cell, for the ledger.
    """

    notebook: str
    profile: str
    seed: int
    dataset: str
    settings: Any
    parameters: dict[str, Any]

    @property
    def seeds(self) -> list[int]:
        """Training seeds of this run: the profile's, shifted by ``seed``."""
        return [self.seed + offset for offset in self.settings.seeds]

    def progress(self, label: str) -> ProgressLine:
        """A progress line for `recnb.training.fit`; silent under `smoke`."""
        return ProgressLine(label, quiet=self.profile == "smoke")

    def figure(self, figure: Any, name: str) -> None:
        """Keep a figure as PNG in the run's folder (``$RECNB_RUNS/figures``); nothing when not run by recnb."""
        if folder := os.environ.get("RECNB_RUNS"):
            path = Path(folder) / "figures" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=110, bbox_inches="tight")

    def claims(self, rows: list[claims.Claim]) -> pd.DataFrame:
        """Enter claims into the ledger of this machine and return them as a table to show."""
        frame = claims.record(rows, self.notebook, self.profile, self.parameters)
        return frame[["claim", "statistic", "value", "low", "high", "n", "seeds", "verdict"]]


def start(notebook: str, profile: str, seed: int = 0, dataset: str = "ml-100k", **parameters: Any) -> Run:
    """Begin a notebook: seeds, threads, plot style; prints what runs here in a few lines.

    Raises:
        ValueError: when the profile or notebook is unknown.
    """
    settings = profiles.get(notebook, profile)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(int(os.environ.get("RECNB_THREADS", min(cores, 8))))
    for seeded in (random.seed, np.random.seed, torch.manual_seed):  # noqa: NPY002
        seeded(seed)
    plots.style()
    print(f"recnb {__version__} · Python {platform.python_version()} · torch {version('torch')}")
    print(f"{runs.device()}, {torch.get_num_threads()} threads · profile {profile} · seed {seed}")
    numbers = ", ".join(f"{name} {value}" for name, value in asdict(settings).items())
    print(f"this profile: {numbers}")
    every = {"seed": seed, "dataset": dataset, **parameters}
    return Run(notebook, profile, seed, dataset, settings, every)


class ProgressLine:
    """A bar with an ETA while training runs, one line when it is done.

    Call it with a `Progress`; it updates one display in place, so that the notebook keeps its last state only.
    """

    def __init__(self, label: str, quiet: bool = False) -> None:
        self.label, self.quiet = label, quiet
        self.handle: DisplayHandle | None = None
        self.shown = 0.0

    def __call__(self, now: Progress) -> None:
        """Show where training stands."""
        if self.quiet or (time.monotonic() - self.shown < 0.5 and now.epoch < now.epochs):
            return
        self.shown = time.monotonic()
        text = f"{self.label} · epoch {now.epoch} of at most {now.epochs} · {now.seconds:.0f} s"
        text += f" · loss {now.loss:.3f}"
        text += f" · validation {now.score:.4f} (best {now.best:.4f})" if np.isfinite(now.best) else ""
        text += f" · at most {now.eta:.0f} s more" if now.epoch < now.epochs else ""
        bar = f"<progress max={now.epochs} value={now.epoch}></progress> {html.escape(text)}"
        data = {"text/html": bar, "text/plain": text}
        if self.handle is None:
            self.handle = display(data, raw=True, display_id=True)
        elif self.handle:
            self.handle.update(data, raw=True)


def show(thing: Any, *methods: str) -> None:
    """Print the very source that runs: of a function or class, or of some methods of a class only."""
    things = [getattr(thing, name) for name in methods] or [thing]
    source = "\n".join(inspect.getsource(getattr(part, "fget", None) or part) for part in things)
    display(Markdown(f"```python\n{inspect.cleandoc(source)}\n```"))


def table(frame: pd.DataFrame, caption: str = "", digits: int = 3) -> None:
    """Show a small table; numbers rounded, text escaped, no index."""
    style = frame.style.hide(axis="index").format(precision=digits, escape="html", na_rep="–")
    style = style.set_caption(html.escape(caption)).set_uuid("t")
    text = frame.round(digits).to_string(index=False)
    display({"text/html": style.to_html(), "text/plain": text}, raw=True)


def results(rows: list[tuple[str, Interval, str, str]], metric: str, run: Run) -> None:
    """Show results beside published ones, in the same columns in every notebook.

    Args:
        rows: method, our estimate, the published figure with its source, and how the protocols differ.
        metric: with its split, candidates and filter.
        run: states profile and dataset.
    """
    columns = ["method", "ours", "95 % interval", "cases", "seeds", "published", "protocol differs in"]
    body = [
        [name, f"{got.value:.3f}", f"{got.low:.3f} – {got.high:.3f}", got.n, got.seeds, paper, differs]
        for name, got, paper, differs in rows
    ]
    table(pd.DataFrame(body, columns=columns), f"{metric} · {run.dataset} · profile {run.profile}")


@dataclass(frozen=True)
class Exercise:
    """A task for the reader.

    Attributes:
        solution: the reference; shown folded, and used where the reader's own is missing or wrong.
        check: takes the reader's function, returns what is wrong with it, or None.
        praise: what a right answer has shown.
    """

    solution: Callable[..., Any]
    check: Callable[[Callable[..., Any]], str | None]
    praise: str


def find_exercise(name: str) -> Exercise:
    """The exercise called ``"01.hit_rate"``: entry ``hit_rate`` of `recnb.exercises.nb01`."""
    number, _, key = name.partition(".")
    return import_module(f"recnb.exercises.nb{number}").EXERCISES[key]


def attempted(function: Callable[..., Any]) -> bool:
    """Whether a function does anything besides its docstring, ``...``, ``pass`` and ``return None``."""
    idle = {"RESUME", "NOP", "LOAD_CONST", "RETURN_VALUE", "RETURN_CONST", "POP_TOP"}
    for step in dis.get_instructions(function):
        if step.opname not in idle or (step.opname == "LOAD_CONST" and step.argval not in (None, ...)):
            return True
    return False


def exercise(name: str, answer: Callable[..., Any]) -> Callable[..., Any]:
    """Check an answer and return what the notebook goes on with.

    An answer that is right is returned; one that is wrong, raises, or was not attempted is replaced by the reference,
    and the output says so. It never raises: a notebook with open exercises runs whole.
    """
    task = find_exercise(name)
    used = task.solution
    if not attempted(answer):
        message = "○ not attempted yet: the notebook goes on with the reference solution"
    else:
        try:
            wrong = task.check(answer)
        except Exception as error:  # whatever a reader's code may raise becomes a message
            wrong = f"it raised {type(error).__name__}: {error}"
        if wrong is None:
            message, used = f"✓ right: {task.praise}", answer
        else:
            message = f"✗ not yet: {wrong}. The notebook goes on with the reference solution"
    print(message)
    source = html.escape(inspect.getsource(task.solution))
    display(HTML(f"<details><summary>Solution (try first)</summary><pre>{source}</pre></details>"))
    return used


def ledger() -> Path:
    """The committed ledger of claims, ``figures/claims.csv`` of the project."""
    return Path(__file__).resolve().parents[1] / "figures" / "claims.csv"


def fail_gently(action: Callable[[], Any]) -> None:
    """Run something that should fail and print its error in one line, for lessons about errors."""
    try:
        action()
    except Exception as error:
        print(f"{type(error).__name__}: {str(error).replace(str(Path.home()), '~')}")
    else:
        print("no error")
