"""The `recnb` command: run the notebooks, open them, fetch the data, show the claims, clean up."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # importing them takes seconds: only the commands that need them wait
    from nbformat import NotebookNode

    from recnb.runner import Result

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
STYLES = {"running": "cyan", "done": "green", "failed": "red", "interrupted": "yellow"}


def _stop(message: object, code: int) -> typer.Exit:
    typer.echo(f"recnb: {message}", err=True)
    return typer.Exit(code)


@contextmanager
def _plain_ends() -> Iterator[None]:
    """Turn a usage error and Ctrl-C into one line and exit codes 2 and 130."""
    try:
        from recnb.runner import UsageError

        try:
            yield
        except UsageError as error:
            raise _stop(error, 2) from None
    except KeyboardInterrupt:
        raise _stop("interrupted; the same command goes on from there", 130) from None


def _near(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class _Board:
    """What a run shows: a live table on a terminal, else one plain line an event."""

    def __init__(self, console: Console, names: list[str]) -> None:
        self.console, self.since = console, 0.0
        self.rows = {name: ("waiting", "", 0.0, 0.0) for name in names}

    def live(self) -> AbstractContextManager[object]:
        return Live(self, console=self.console) if self.console.is_terminal else nullcontext()

    def start(self, name: str) -> None:
        self.since = time.perf_counter()
        self._event(name, "running", "", 0.0, 0.0)

    def progress(self, name: str, cell: int, cells: int, peak_mb: float) -> None:
        self.rows[name] = ("running", f"{cell}/{cells}", 0.0, peak_mb)

    def end(self, result: Result) -> None:
        cell = self.rows[result.notebook][1]
        self._event(result.notebook, result.status, cell, result.seconds, result.peak_memory_mb)
        if result.status == "failed":
            self._explain(result)

    def _event(self, name: str, state: str, cell: str, seconds: float, memory: float) -> None:
        self.rows[name] = (state, cell, seconds, memory)
        if not self.console.is_terminal:
            spent = f" in {_span(seconds)}, {memory:.0f} MB" if seconds else ""
            self.console.print(Text(f"{name}: {state}{spent}"), soft_wrap=True)

    def _explain(self, result: Result) -> None:
        where = f"code cell {result.cell}" if result.cell else "before its first cell"
        error = Text(f"{result.error}: {result.value}", "bold red")
        body = Group(Syntax(result.source, "python"), error, Text(result.traceback, "dim"))
        title = f"{result.notebook} failed: {where}"
        self.console.print(Panel(body, title=title, border_style="red"))
        self.console.print(Text(f"executed copy: {_near(result.output)}"), soft_wrap=True)

    def __rich__(self) -> Table:
        table = Table("notebook", "state", "cell", "time", "memory", box=None)
        for name, (state, cell, seconds, memory) in self.rows.items():
            spent = time.perf_counter() - self.since if state == "running" else seconds
            shown = [_span(spent) if spent else "", f"{memory:.0f} MB" if memory else ""]
            table.add_row(name, Text(state, STYLES.get(state, "dim")), cell, *shown)
        return table


def _still(output: NotebookNode) -> NotebookNode:
    """The output with the text and pictures that stand for a widget, but without the widget."""
    data = output.get("data", {})
    if "application/vnd.jupyter.widget-view+json" in data:
        for kind in [kind for kind in data if not kind.startswith(("text/plain", "image/"))]:
            del data[kind]
    return output


def _private_path(output: NotebookNode, root: Path) -> str | None:
    """The first path in an output's text that means something on this machine only."""
    data = {"text": output.get("text", ""), **output.get("data", {})}
    text = "\n".join(str(data[kind]) for kind in data if not kind.startswith("image/"))
    places = {str(Path.home()), str(root), tempfile.gettempdir(), sys.prefix} - {"/"}
    found = re.search("|".join(rf"{re.escape(place)}\b[^\s\"'<]*" for place in places), text)
    return found.group() if found else None


def save_outputs(result_path: Path, notebook_path: Path) -> None:
    """Put the outputs of a finished run into the committed notebook, cleaned; its prose stays.

    Raises `recnb.runner.UsageError`, and leaves the notebook as it was, when the run is not done,
    had parameters injected, ran other code than the notebook now holds, or prints a path of this
    machine.
    """
    import nbformat

    from recnb.runner import INJECTED, UsageError, code_cells, code_hash, read

    ran, nb = read(result_path), read(notebook_path)
    name, about = notebook_path.stem, ran.metadata.get("recnb", {})
    if about.get("status") != "done":
        raise UsageError(f"{name} not saved: its run is {about.get('status', 'unknown')}, not done")
    if any(INJECTED in cell.metadata.get("tags", []) for cell in ran.cells):
        raise UsageError(f"{name} not saved: parameters were injected; run it as it stands")
    if code_hash(ran) != code_hash(nb):
        raise UsageError(f"{name} not saved: its code has changed since this run; run it again")
    for number, (cell, source) in enumerate(zip(code_cells(nb), code_cells(ran), strict=True), 1):
        cell.execution_count = source.execution_count
        cell.outputs = [o for o in map(_still, source.outputs) if o.get("data", True)]
        for output in cell.outputs:
            if place := _private_path(output, notebook_path.resolve().parents[1]):
                raise UsageError(f"{name} not saved: code cell {number} prints the path {place}")
    for part in (nb, *nb.cells):
        for noise in ("papermill", "widgets", "execution"):
            part.metadata.pop(noise, None)
        if not part.metadata.get("tags", True):
            del part.metadata["tags"]
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    nb.metadata.update(recnb=about, kernelspec=kernel, language_info=ran.metadata.language_info)
    partial = notebook_path.with_name(f".{name}.{os.getpid()}.partial.ipynb")
    nbformat.write(nb, partial)
    os.replace(partial, notebook_path)


def _run_one(path: Path, out: Path, given: dict[str, Any], force: bool, board: _Board) -> Result:
    from recnb import runner

    mark = runner.fingerprint(runner.read(path), given)
    if not force and runner.is_finished(out, mark):
        return runner.Result(path.stem, "skipped", out)
    board.start(path.stem)
    return runner.execute(path, out, given, lambda *seen: board.progress(path.stem, *seen))


def _run_all(plan: dict[Path, dict], folder: Path, force: bool, save: bool) -> list[str]:
    """Run what is planned; returns what became of each notebook, "failed" also where saving was."""
    from recnb import runner

    board, ended, started = _Board(Console(), [path.stem for path in plan]), [], time.perf_counter()
    try:
        with board.live():
            for path, given in plan.items():
                result = _run_one(path, folder / path.name, given, force, board)
                board.end(result)
                ended.append(result.status)
                if result.status == "interrupted":
                    raise KeyboardInterrupt
                if save and result.status != "failed":
                    try:
                        save_outputs(result.output, path)
                    except runner.UsageError as error:
                        typer.echo(f"recnb: {error}", err=True)
                        ended[-1] = "failed"
            if save and (folder / "figures").is_dir():
                shutil.copytree(folder / "figures", folder.parents[1] / "figures", dirs_exist_ok=True)
    finally:
        counts = ", ".join(f"{ended.count(status)} {status}" for status in dict.fromkeys(ended))
        spent = f"{counts or 'none run'} in {_span(time.perf_counter() - started)}"
        board.console.print(Text(f"{spent}; executed: {_near(folder)}"), soft_wrap=True)
    return ended


@app.command()
def run(
    notebook: Annotated[list[str] | None, typer.Argument(help="Numbers, names or paths; without any, all.")] = None,
    profile: Annotated[str, typer.Option("--profile", "-P", help="smoke, laptop or paper.")] = "laptop",
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", metavar="NAME=VALUE", help="Set it; repeatable.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run what is finished, too.")] = False,
    save: Annotated[bool, typer.Option("--save", help="Maintainers: keep outputs in notebooks/ and figures/.")] = False,
) -> None:
    """Run notebooks in reading order into runs/PROFILE; skip what is finished and unchanged."""
    with _plain_ends():
        from recnb import runner

        paths, given = runner.resolve(notebook or []), runner.parse_parameters(parameter or [])
        if (own := Path(str(given.get("dataset", "")))).is_dir() and "dataset" in given:
            given["dataset"] = str(own.resolve())  # kernels work in another folder
        plan = runner.check(paths, profile, given, named=bool(notebook))
        if save and any(plan.values()):
            raise runner.UsageError("--save keeps runs as they stand: no --profile, no -p")
        folder = runner.project_root() / "runs" / profile
        if "failed" in _run_all(plan, folder, force, save):
            raise typer.Exit(1)


@app.command()
def lab(notebook: Annotated[str | None, typer.Argument(help="Number, name or path.")] = None) -> None:
    """Open JupyterLab on the notebooks."""
    with _plain_ends():
        from recnb import runner

        opened = [path.name for path in runner.resolve([notebook])] if notebook else []
        folder = runner.project_root() / "notebooks"
    # This environment's kernel comes first.
    env = {"JUPYTER_PREFER_ENV_PATH": "1", **runner.KERNEL_ENV, **os.environ}
    with subprocess.Popen([sys.executable, "-m", "jupyter", "lab", *opened], cwd=folder, env=env) as server:
        while server.poll() is None:
            with suppress(KeyboardInterrupt):  # JupyterLab got it as well, and asks whether to stop
                server.wait()
    raise typer.Exit(server.returncode)


@app.command()
def fetch() -> None:
    """Download and verify all data once; afterwards no network is needed."""
    from recnb import assets

    try:
        assets.fetch_all(lambda *seen: typer.echo(": ".join(seen)))
    except assets.AssetError as error:
        raise _stop(error, 1) from None


@app.command()
def reproduce(
    grid: Annotated[Path | None, typer.Option("--grid", "-g", help="TOML file; without it, all notebooks.")] = None,
    profile: Annotated[str | None, typer.Option("--profile", "-P", help="In place of the grid's.")] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", help="In place of the grid's: 0,10,20.")] = None,
    datasets: Annotated[str | None, typer.Option("--datasets", help="Names or folders: ml-100k,FOLDER.")] = None,
    scheduler: Annotated[str | None, typer.Option("--scheduler", help="ADDRESS, slurm or kubernetes.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", "-w", min=1, help="How many jobs at once.")] = None,
) -> None:
    """Run a grid of notebooks, seeds and data sets on Dask into runs/reproduce; skip what is done."""
    with _plain_ends():
        from recnb import runner
        from recnb.grid import plan
        from recnb.reproduce import carry_out

        jobs = plan(grid, profile, seeds, datasets)
        name = f"{grid.stem if grid else 'all'}-{jobs[0].known['profile']}"
        if not carry_out(jobs, runner.project_root() / "runs" / "reproduce" / name, scheduler, workers):
            raise typer.Exit(1)


@app.command()
def results(write: Annotated[bool, typer.Option("--write", help="Write figures/claims.csv.")] = False) -> None:
    """Show the claims of the papers, as measured here."""
    with _plain_ends():
        from recnb import claims, runner

        ledger = runner.project_root() / "figures" / "claims.csv"
    rows = claims.table(ledger)
    if rows.empty:
        typer.echo("no claims yet: `recnb run` measures them")
        return
    table = Table("paper", "claim", "measured", "95 % interval", "seeds", "verdict", "from")
    for row in rows.itertuples():
        measured = [f"{row.statistic} {row.value:g}", f"{row.low:g} to {row.high:g}", row.seeds]
        cells = [row.paper, row.claim, *measured, row.verdict, f"{row.notebook} ({row.profile})"]
        table.add_row(*(Text(str(cell)) for cell in cells))  # Text: a title may look like markup
    Console().print(table)
    if write:
        claims.write(ledger)
        typer.echo(f"written: {_near(ledger)}")


@app.command()
def clean(
    store: Annotated[bool, typer.Option("--store", help="Trained weights, too.")] = False,
    assets: Annotated[bool, typer.Option("--assets", help="Downloaded data, too.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove the executed notebooks in runs/, and more if asked."""
    with _plain_ends():
        from recnb import runner
        from recnb.store import home

        folders = [runner.project_root() / "runs"]
    folders += [home() / name for name, too in (("store", store), ("assets", assets)) if too]
    for folder in (folders := [folder for folder in folders if folder.is_dir()]):
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        typer.echo(f"{_near(folder)}: {size / 2**20:.1f} MB")
    if not folders:
        typer.echo("nothing to remove")
    elif yes or typer.confirm("Remove for good?"):
        for folder in folders:
            shutil.rmtree(folder)


if __name__ == "__main__":
    app()
