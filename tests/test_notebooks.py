"""The notebooks: as committed (static), executed at `smoke`, and run again by nbval from an empty store."""

import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from recnb import assets, runner

ROOT = Path(__file__).resolve().parents[1]
PATHS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
PROSE_ONLY = {"00_tour"}  # the map: it teaches no code and may be shorter


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def notebook(request):
    book = nbformat.read(request.param, as_version=4)
    book.path = request.param
    return book


def code(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def test_outputs_belong_to_the_code(notebook):
    made = notebook.metadata.get("recnb", {})
    assert made.get("status") == "done", "run `recnb run --save` to store outputs"
    assert made["profile"] == "laptop"
    assert made["code_hash"] == runner.code_hash(notebook), "code changed since its outputs were made"
    assert {"seed", "commit", "seconds", "peak_memory_mb", "machine", "date", "python"} <= set(made)


def test_it_was_run_in_order_without_errors(notebook):
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    for cell in code(notebook):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", cell.source


def test_laptop_budget(notebook):
    made = notebook.metadata.recnb
    assert made["seconds"] < 600 and made["peak_memory_mb"] < 6000


def test_its_shape_is_that_of_a_lesson(notebook):
    sizes = [len(cell.source.splitlines()) for cell in code(notebook)]
    assert max(sizes) <= 25 and statistics.median(sizes) <= 7
    assert sorted(sizes)[int(0.9 * len(sizes))] <= 15
    assert notebook.path.stat().st_size < 1_000_000
    words = sum(len(c.source.split()) for c in notebook.cells if c.cell_type == "markdown")
    if notebook.path.stem not in PROSE_ONLY:
        assert 40 <= len(notebook.cells) <= 90
        assert 5 <= words / sum(sizes) <= 10
    tags = [cell.metadata.get("tags", []) for cell in code(notebook)]
    assert sum("parameters" in tag for tag in tags) == 1 and "parameters" in tags[0]
    assert notebook.metadata.kernelspec.name == "python3"


def test_manners(notebook):
    for cell in code(notebook):
        assert not re.search(r"^%%time|^!|;\s*$|\bIN_CI\b", cell.source, re.M), cell.source
        if "plots." in cell.source and "_ = plots" in cell.source:
            assert cell.source.rstrip().endswith("plt.show()")
    checked = sum("NBVAL_CHECK_OUTPUT" in cell.source for cell in code(notebook))
    assert checked >= 2


def test_links_resolve(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for link in re.findall(r"\]\((?!http)([^)#]+)\)", cell.source):
                assert (notebook.path.parent / link).exists(), link


def test_every_exercise_is_a_stub_with_a_check(notebook):
    asked = re.findall(r'exercise\("(\d\d)\.(\w+)", (\w+)\)', "\n".join(c.source for c in code(notebook)))
    from recnb.lessons import find_exercise

    for number, name, _ in asked:
        assert find_exercise(f"{number}.{name}").solution.__name__ == name
    if notebook.path.stem not in PROSE_ONLY:
        assert 2 <= len(asked) <= 4


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Execute every notebook at `smoke`, without a network, from an empty store that shares only the downloads."""
    folder = tmp_path_factory.mktemp("smoke")
    shared = assets.fetch("ml-100k").parent
    for name in ("smollm2-135m-instruct", "wordllama", "connectomes", "connectomes-retest"):
        assets.fetch(name)
    nowhere = "http://127.0.0.1:9"  # whatever asks the network is refused at once
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECNB_HOME", str(fresh_home(folder / "first", shared)))
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            patch.setenv(name, nowhere)
        patch.setenv("PIP_NO_INDEX", "1")
        results = {p.stem: runner.execute(p, folder / p.name, {"profile": "smoke"}) for p in PATHS}
    return folder, shared, results


def fresh_home(home, shared):
    home.mkdir(parents=True)
    os.symlink(shared, home / "assets", target_is_directory=True)
    return home


def test_smoke_runs_whole_and_quickly(smoke):
    _, _, results = smoke
    for name, result in results.items():
        assert result.status == "done", f"{name}: {result}"
        assert result.seconds < 90, f"{name} took {result.seconds:.0f} s"
        assert result.peak_memory_mb < 4000  # 05 holds the model before and after tuning, and once in 32 bits


@pytest.mark.parametrize("store", ["same", "empty"])
@pytest.mark.parametrize("name", [path.stem for path in PATHS])
def test_nbval_finds_the_marked_outputs_again(smoke, name, store, tmp_path):
    """With the same store: cached equals fresh. With an empty one: the run is deterministic."""
    folder, shared, _ = smoke
    home = folder / "first" if store == "same" else fresh_home(tmp_path / "second", shared)
    done = nbval(folder / f"{name}.ipynb", home)
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 10


def test_nbval_would_notice_a_changed_number(smoke, tmp_path):
    folder, _, _ = smoke
    book = nbformat.read(folder / "01_data.ipynb", as_version=4)
    marked = next(c for c in code(book) if "NBVAL_CHECK_OUTPUT" in c.source and c.outputs)
    for output in marked.outputs:
        if "text" in output:
            output.text = re.sub(r"\d", "7", output.text)
        else:
            output.data = {k: re.sub(r"\d", "7", v) for k, v in output.data.items()}
    nbformat.write(book, tmp_path / "01_data.ipynb")
    assert nbval(tmp_path / "01_data.ipynb", folder / "first").returncode == 1


@pytest.mark.parametrize("name", ["02_sequential_recommender", "05_bistep_grounding", "10_embedding_explorer"])
def test_data_with_short_histories_and_no_genres_will_do(movielens, name, tmp_path):
    """The first fourteen ratings of every other person of MovieLens, and titles without their years."""
    events = movielens.events[movielens.events["user"] % 2 == 0].groupby("user").head(14)
    titles = movielens.items["title"].str.replace(r" \(\d{4}\)$", "", regex=True)
    (tmp_path / "short").mkdir()
    short = events[["user", "item", "timestamp"]].assign(title=titles[events["item"]].to_numpy())
    short.to_csv(tmp_path / "short/interactions.csv", index=False)
    given = {"profile": "smoke", "dataset": str(tmp_path / "short")}
    result = runner.execute(ROOT / f"notebooks/{name}.ipynb", tmp_path / f"{name}.ipynb", given)
    assert result.status == "done", result


def nbval(path, home):
    environment = {**os.environ, "RECNB_HOME": str(home), "PYTEST_ADDOPTS": ""}
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider"]
    command += ["--nbval-cell-timeout", "120", "-c", os.devnull, "--rootdir", str(path.parent), str(path)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
