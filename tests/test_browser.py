"""The one browser test: JupyterLab itself, in headless Chromium, runs notebook 10 and a reader works with its explorer.

Screenshots and the seconds that things took are kept in ``$RECNB_SCREENSHOTS``, else in pytest's folder of the test.
"""

import ast
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import nbformat
import pytest
from jupyter_client import BlockingKernelClient

from recnb import assets

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = Path(os.environ.get("RECNB_BROWSER_NOTEBOOK", ROOT / "notebooks" / "10_embedding_explorer.ipynb"))
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
NASTY = "<img src=x onerror=document.title='hacked'>"


class Server:
    """JupyterLab or Notebook 7 on a free port of this machine, with settings, kernels and a token of its own."""

    def __init__(self, folder, app="jupyterlab"):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        self.folder, self.token = folder, secrets.token_hex(16)
        self.runtime = folder / ".jupyter" / "runtime"
        settings = folder / ".jupyter" / "settings"
        news = settings / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
        news.parent.mkdir(parents=True)
        news.write_text('{"fetchNews": "false", "checkForUpdates": false}')
        options = [f"--ServerApp.port={self.url.rsplit(':', 1)[1]}", "--ServerApp.port_retries=0", "--allow-root",
                   "--no-browser", f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={folder}",
                   f"--LabApp.user_settings_dir={settings}", f"--LabApp.workspaces_dir={folder / '.jupyter'}",
                   f"--JupyterNotebookApp.user_settings_dir={settings}", "--LabApp.expose_app_in_browser=True",
                   "--JupyterNotebookApp.expose_app_in_browser=True"]  # fmt: skip
        places = {f"JUPYTER_{name}_DIR": str(folder / ".jupyter" / name.lower()) for name in ("CONFIG", "DATA")}
        environment = {**os.environ, **places, "JUPYTER_RUNTIME_DIR": str(self.runtime), "JUPYTER_PREFER_ENV_PATH": "1"}
        with (folder / "server.log").open("w") as log:
            command = [sys.executable, "-m", app, *options]
            self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)

    def get(self, path):
        request = Request(f"{self.url}/api/{path}", headers={"Authorization": f"token {self.token}"})
        with urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def answers(self):
        try:
            return "version" in self.get("")
        except OSError:
            return False

    def connected(self):
        """A page that is told to run before its kernel is connected asks which kernel it should take."""
        kernels = [session["kernel"] for session in self.get("sessions")]
        return any(kernel["connections"] and kernel["execution_state"] == "idle" for kernel in kernels)

    def ask(self, expression):
        """What an expression is in the notebook's kernel."""
        (file,) = self.runtime.glob("kernel-*.json")
        client = BlockingKernelClient(connection_file=str(file))
        client.load_connection_file()
        client.start_channels()
        try:
            wanted = {"asked": f"__import__('json').dumps({expression})"}
            reply = client.execute("", silent=True, user_expressions=wanted, reply=True, timeout=20)
            return json.loads(ast.literal_eval(reply["content"]["user_expressions"]["asked"]["data"]["text/plain"]))
        finally:
            client.stop_channels()


def wait(condition, what, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.1)


@contextmanager
def lab(folder, app="jupyterlab"):
    server = Server(folder, app)
    try:
        wait(server.answers, app)
        yield server
    finally:
        server.process.terminate()
        server.process.wait(20)


@contextmanager
def chromium():
    """A page of 1280 by 800 pixels, what it asked for outside this machine, and its errors."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(90_000)
        outside, errors = [], []
        page.on("request", lambda asked: outside.append(asked.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        yield page, outside, errors
        browser.close()


def opened(page, server, path="lab/tree"):
    """The page of the lesson, its kernel connected."""
    page.goto(f"{server.url}/{path}/lesson.ipynb?token={server.token}&reset")
    page.wait_for_function("window.jupyterapp !== undefined")
    wait(server.connected, "a kernel")


def at_smoke(folder):
    """A copy of the notebook for this test: small, and with markup in the title of its first item."""
    book = nbformat.read(NOTEBOOK, as_version=4)
    for cell in book.cells:
        cell.source = cell.source.replace('profile: str = "laptop"', 'profile: str = "smoke"')
        if cell.source.startswith("explorer = Explorer("):
            cell.source = f'items.loc[0, "title"] += " {NASTY}"\n{cell.source}'
    nbformat.write(book, folder / "lesson.ipynb")


class Reader:
    """Somebody who works with the first explorer of the page."""

    def __init__(self, page, shots):
        self.page, self.shots = page, shots
        self.explorer = page.locator(".recnb-explorer").first
        self.maps = self.explorer.locator(".jp-OutputArea-output canvas, canvas")

    def shot(self, name):
        self.page.wait_for_timeout(900)  # points glide to their places
        self.page.screenshot(path=self.shots / f"{name}.png")

    def tables(self):
        """What is selected, and the neighbours on the left and on the right."""
        return self.explorer.locator(".recnb-table").all_inner_texts()

    def find(self, words):
        self.explorer.locator("input[type=text]").first.fill(words)

    def lasso(self, reach):
        box = self.maps.first.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.explorer.get_by_title("Activate lasso selection").first.click()
        self.page.mouse.move(x - reach, y - reach)
        self.page.mouse.down()
        for dx, dy in ((reach, -reach), (reach, reach), (-reach, reach), (-reach, -reach + 5)):
            self.page.mouse.move(x + dx, y + dy, steps=6)
        self.page.mouse.up()


@pytest.fixture
def shots(tmp_path):
    folder = Path(os.environ.get("RECNB_SCREENSHOTS", tmp_path / "screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium or Chrome on the PATH: install one, as with `sudo apt-get install chromium`"
)


@needs_browser
def test_a_reader_explores_in_jupyterlab(tmp_path, shots):
    for name in ("smollm2-135m-instruct", "wordllama", "connectomes"):
        assets.fetch(name)
    at_smoke(tmp_path)
    with lab(tmp_path) as server, chromium() as (page, outside, errors):
        opened(page, server)
        page.evaluate("jupyterapp.commands.execute('application:toggle-left-area')")
        began = time.monotonic()
        page.evaluate("void jupyterapp.commands.execute('notebook:run-all-cells')")
        reader = Reader(page, shots)
        reader.maps.first.wait_for()
        seconds = {"run all to first map": time.monotonic() - began}
        wait(server.connected, "the notebook to end", 180)
        seconds["run all to the end"] = time.monotonic() - began
        works_with_the_explorer(reader, server)
        looks_at_the_others(reader)
        assert [url for url in outside if not re.match(rf"(blob:)?{server.url}/|data:", url)] == []
        assert page.title() != "hacked" and errors == []
    (shots / "seconds.json").write_text(json.dumps(seconds, indent=1))


def works_with_the_explorer(reader, server):
    reader.explorer.scroll_into_view_if_needed()
    reader.page.evaluate("document.querySelector('.recnb-explorer').scrollIntoView()")
    reader.find("star wars")
    wait(lambda: "Star Wars in SASRec" in reader.tables()[1], "the first film's neighbours")
    first = reader.tables()
    assert "Star Wars in GRU4Rec" in first[2] and first[1].count("\n") == first[2].count("\n") >= 11
    reader.shot("1-found")
    reader.find("godfather")
    wait(lambda: "The Godfather in SASRec" in reader.tables()[1], "other neighbours")
    assert reader.tables()[1].splitlines()[2:] != first[1].splitlines()[2:]

    reader.explorer.locator("select[size], .widget-select select").first.focus()
    for key in ("ArrowDown", "ArrowDown"):  # by keyboard alone
        reader.page.keyboard.press(key)
    wait(lambda: "The Godfather: Part II in SASRec" in reader.tables()[1], "the list's second film")

    reader.find("onerror")
    wait(lambda: NASTY in reader.tables()[0], "the title with markup")
    assert reader.explorer.locator("img").count() == 0

    reader.find("")
    reader.lasso(60)
    wait(lambda: re.match(r"\d+ of \d+ selected", reader.tables()[0]), "the lasso's table")
    count = int(reader.tables()[0].split()[0])
    assert count > 1 and reader.tables()[0].count("\n") == min(count, 200) + 1
    assert server.ask("len(explorer.rows)") == count
    both = "[len(set(pane.widget.selection.tolist()) ^ set(explorer.selected.tolist())) for pane in explorer.panes]"
    assert server.ask(both) == [0, 0]
    reader.shot("2-lasso")

    reader.page.evaluate("jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    wait(lambda: server.ask("int(explorer.page.dark)") == 1, "the dark theme")
    reader.shot("3-dark")
    reader.page.evaluate("jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Light'})")


def looks_at_the_others(reader):
    others = reader.page.locator(".recnb-explorer")
    for place in range(1, others.count()):
        others.nth(place).evaluate("element => element.scrollIntoView()")
        others.nth(place).locator("canvas").first.wait_for()
        reader.shot(f"4-explorer-{place + 1}")


SMALL = """
import numpy as np, pandas as pd
from recnb.explore import Explorer

items = pd.DataFrame({"title": [f"film {i}" for i in range(200)], "kind": ["a", "b"] * 100})
rng = np.random.default_rng(0)
explorer = Explorer(items, {"one": rng.normal(size=(200, 4)), "two": rng.normal(size=(200, 4))})
explorer
"""


@needs_browser
def test_notebook_7_shows_the_same(tmp_path, shots):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SMALL)])
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, tmp_path / "lesson.ipynb")
    with lab(tmp_path, "notebook") as server, chromium() as (page, outside, _):  # Notebook 7.6 logs an error of its own
        opened(page, server, "notebooks")
        page.evaluate("void jupyterapp.commands.execute('notebook:run-all-cells')")
        reader = Reader(page, shots)
        reader.maps.first.wait_for()
        reader.explorer.evaluate("element => element.scrollIntoView()")
        reader.find("film 77")
        wait(lambda: "film 77 in two" in " ".join(reader.tables()), "the film's neighbours")
        reader.find("")
        reader.lasso(60)
        wait(lambda: re.match(r"\d+ of 200 selected", reader.tables()[0]), "the lasso's table")
        assert server.ask("len(explorer.rows)") == int(reader.tables()[0].split()[0])
        reader.shot("5-notebook-7")
        assert [url for url in outside if not re.match(rf"(blob:)?{server.url}/|data:", url)] == []
