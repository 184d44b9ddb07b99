"""The explorer in a browser: seconds until points are seen, frames while they are dragged, and what a lasso takes.

    python tests/benchmarks/explorer.py

JupyterLab and headless Chromium without a graphics card, as in tests/test_browser.py. The first row is notebook 10 as
far as its first map, at ``laptop`` and with its vectors in the store (run it once before); the others are drawn points.
Writes figures/explorer.csv, which notebook 10 shows.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
import test_browser as browser  # noqa: E402

DRAWN = """
import numpy as np, pandas as pd
from recnb.explore import Explorer

rng, n = np.random.default_rng(0), {count}
kind = rng.integers(0, 6, n)
vectors = (rng.normal(size=(n, 64)) + 6 * np.eye(6, 64)[kind]).astype(np.float32)
items = pd.DataFrame({{"title": [f"film {{i}}" for i in range(n)], "genre": np.array(list("abcdef"))[kind]}})
explorer = Explorer(items, {{"a": vectors}}, colour="genre")
explorer
"""
FRAMES = """() => new Promise(done => {
  let count = 0; const start = performance.now();
  const step = now => {
    count++;
    now < start + 3000 ? requestAnimationFrame(step) : done(count / (now - start) * 1000);
  };
  requestAnimationFrame(step);
})"""
SEEN = """() => {
  const canvas = document.querySelector(".recnb-explorer canvas");
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  return pixels.some((value, place) => place % 4 == 3 && value > 0);
}"""


def lesson() -> nbformat.NotebookNode:
    """Notebook 10 as far as its first explorer."""
    book = nbformat.read(browser.NOTEBOOK, as_version=4)
    first = next(place for place, cell in enumerate(book.cells) if cell.source.startswith("explorer = Explorer("))
    book.cells = book.cells[: first + 1]
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return book


def drawn(count: int) -> nbformat.NotebookNode:
    """A notebook of one cell that shows so many points."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(DRAWN.format(count=count))])
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return book


def drag(page: Any, box: dict[str, float]) -> float:
    """Frames a second while the mouse moves the map for three seconds."""
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.evaluate(f"window.frames_drawn = ({FRAMES})(); 0")
    page.mouse.move(x, y)
    page.mouse.down()
    for place in range(10_000):
        page.mouse.move(x + 60 * np.sin(place / 5), y + 30 * np.cos(place / 5))
        if place % 10 == 0 and page.evaluate("Promise.race([window.frames_drawn, -1])") > 0:
            break
    page.mouse.up()
    return page.evaluate("window.frames_drawn")


def measure(book: nbformat.NotebookNode) -> dict[str, float]:
    """Open a notebook, run it, and work with its explorer."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lesson.ipynb"
        nbformat.write(book, path)
        with browser.lab(Path(folder)) as server, browser.chromium() as (page, _, _):
            page.set_default_timeout(180_000)
            began = time.monotonic()
            browser.opened(page, server)
            page.evaluate("jupyterapp.commands.execute('application:toggle-left-area')")
            ready = time.monotonic()
            page.evaluate("void jupyterapp.commands.execute('notebook:run-all-cells')")
            reader = browser.Reader(page, Path(folder))
            reader.maps.first.wait_for()
            browser.wait(lambda: page.evaluate(SEEN), "points", 180)
            found = {"open the page": ready - began, "first map": time.monotonic() - ready}
            browser.wait(server.connected, "the kernel", 180)
            reader.explorer.evaluate("element => element.scrollIntoView()")
            page.wait_for_timeout(1500)
            found["frames dragged"] = drag(page, reader.maps.first.bounding_box())
            reader.find("no such film")
            browser.wait(lambda: reader.tables()[0].startswith("Nothing"), "nothing", 60)
            reader.lasso(50)
            began = time.monotonic()
            browser.wait(lambda: re.match(r"\d+ of \d+ selected", reader.tables()[0]), "the lasso's table", 60)
            found["lasso"] = time.monotonic() - began
            page.evaluate("jupyterapp.commands.execute('docmanager:save')")
            browser.wait(lambda: '"image/png"' in path.read_text(), "the saved notebook", 60)
            found["saved MB"] = path.stat().st_size / 1e6
        return found


def main() -> None:
    """Measure all sizes several times and write their medians."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--points", type=int, nargs="*", default=[1_682, 100_000, 1_000_000])
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    books = {"notebook 10": lesson(), **{f"{count:,} points": drawn(count) for count in options.points}}
    busy, rows = os.getloadavg()[1], []
    for name, book in books.items():
        runs = pd.DataFrame([measure(book) for _ in range(options.repeat)])
        rows.append({"what": name, **runs.median().round(3)})
        print(rows[-1], flush=True)
    machine = f"{platform.machine()}, {os.cpu_count()} cores with {busy:.1f} other programs at work, no graphics card"
    machine += f", median of {options.repeat}"
    command = f"python tests/benchmarks/explorer.py --repeat {options.repeat}"
    told = {"machine": machine, "command": command, "date": datetime.date.today().isoformat()}
    units = {"open the page": "s to open the page", "first map": "s to first map", "lasso": "s of a lasso"}
    units["frames dragged"] = "frames a second"
    pd.DataFrame(rows).rename(columns=units).assign(**told).to_csv(ROOT / "figures" / "explorer.csv", index=False)


if __name__ == "__main__":
    main()
