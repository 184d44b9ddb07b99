"""The runner and the command line on tiny notebooks that run in real kernels."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from typer.testing import CliRunner

from recnb import assets, claims, cli, runner

HEAD = 'profile: str = "laptop"\nseed: int = 0  # any int; seed=1 is fine\nrate: float = 0.5'
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def write(path, *sources, head=HEAD):
    """A notebook with a parameters cell and these code cells."""
    cells = [new_markdown_cell("# Title"), new_code_cell(head, metadata={"tags": ["parameters"]})]
    cells += [new_code_cell(source) for source in sources]
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": KERNEL}), path)
    return path


def call(*words):
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def about(path):
    return nbformat.read(path, 4).metadata.recnb


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder of our own with an empty ``notebooks/``; the current folder of the test."""
    root = tmp_path / "project"
    (root / "notebooks").mkdir(parents=True)
    monkeypatch.chdir(root)
    return root


def git(*words):
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", *who, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_runs_skips_notices_changes_and_repeats(project):
    for name in ("00_one", "01_two"):
        write(project / f"notebooks/{name}.ipynb", f"open('../ran', 'a').write('{name} ')", "1 + 1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "all")
    ran, copy = project / "ran", project / "runs/laptop/01_two.ipynb"

    first = call("run")
    assert first.exit_code == 0, first.output
    assert "01_two: done in" in first.output
    assert "2 done in" in first.output and "executed: runs/laptop" in first.output
    made = about(copy)
    assert (made.status, made.profile, made.seed, made.parameters) == ("done", "laptop", 0, {})
    assert made.commit == git("rev-parse", "HEAD")
    assert made.peak_memory_mb > 20 and 0 < made.seconds < 60
    assert {"torch", "transformers", "numpy", "pandas"} <= set(made.packages) and made.python
    assert made.machine.cores and made.machine.arch and made.machine.memory_gb
    nb = nbformat.read(copy, 4)
    assert made.code_hash == runner.code_hash(nb) and len(made.code_hash) == 16
    assert [cell.execution_count for cell in runner.code_cells(nb)] == [1, 2, 3]
    assert len(nb.cells) == 4  # nothing injected

    assert "2 skipped" in call("run").output
    assert ran.read_text() == "00_one 01_two "

    write(project / "notebooks/01_two.ipynb", "open('../ran', 'a').write('changed ')")
    assert "1 skipped, 1 done" in call("run").output
    assert ran.read_text() == "00_one 01_two changed "
    assert about(copy).commit.endswith("+dirty")

    assert "00_one: done" in call("run", "0", "--force").output
    assert ran.read_text() == "00_one 01_two changed 00_one "
    assert sorted(os.listdir(copy.parent)) == ["00_one.ipynb", "01_two.ipynb"]


def test_failures_are_shown_and_the_rest_is_run(project):
    write(project / "notebooks/00_bad.ipynb", "x = 7", "raise KeyError('[red]lost')", "print(1)")
    dying = "import os, signal\nos.write(2, b'a last word')\nos.kill(os.getpid(), signal.SIGKILL)"
    write(project / "notebooks/01_dead.ipynb", dying)
    write(project / "notebooks/02_quits.ipynb", "raise SystemExit", "print(1)")
    widget = "import ipywidgets\n_ = ipywidgets.interact(lambda x: print('x is', x), x=3)"
    write(project / "notebooks/03_good.ipynb", widget)
    done = call("run")
    assert done.exit_code == 1
    assert "00_bad failed: code cell 3" in done.output
    assert "raise KeyError" in done.output and "KeyError: '[red]lost'" in done.output
    assert "executed copy: runs/laptop/00_bad.ipynb" in done.output
    assert "01_dead failed: code cell 2" in done.output and "a last word" in done.output
    assert "02_quits failed: code cell 2" in done.output
    assert "03_good: done" in done.output and "3 failed, 1 done" in done.output
    assert "\x1b" not in done.output and "WARNING" not in done.output
    assert about(project / "runs/laptop/00_bad.ipynb").status == "failed"
    good = nbformat.read(project / "runs/laptop/03_good.ipynb", 4)
    assert good.metadata.recnb.status == "done" and "widgets" not in good.metadata


def test_a_folder_of_your_own_is_found_from_where_you_stand(project):
    head = 'profile: str = "laptop"\ndataset: str = "ml-100k"'
    write(project / "notebooks/00_one.ipynb", "open('../seen', 'w').write(dataset)", head=head)
    (project / "mine").mkdir()
    done = call("run", "-p", "dataset=mine")
    assert done.exit_code == 0, done.output
    assert (project / "seen").read_text() == str(project / "mine")


def test_parameters_reach_the_kernel(project, monkeypatch):
    show = "import json, os\nseen = [profile, seed, rate, os.environ['RECNB_RUNS'], os.getcwd()]"
    save = "json.dump(seen, open(f'../seen-{seed}', 'w'))"
    write(project / "notebooks/00_one.ipynb", show, save)
    write(project / "notebooks/01_two.ipynb", show, save, head='profile = "laptop"\nseed, rate = 9, 9')
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal: the live table
    done = call("run", "-P", "smoke", "-p", "seed=3", "-p", "rate=1")
    assert done.exit_code == 0, done.output
    assert "4/4" in done.output and "00_one" in done.output
    folder = str(project / "runs/smoke")
    seen = ["smoke", 3, 1, folder, str(project / "notebooks")]
    assert json.loads((project / "seen-3").read_text()) == seen
    assert json.loads((project / "seen-9").read_text()) == ["smoke", 9, 9, *seen[3:]]
    made = about(project / "runs/smoke/00_one.ipynb")
    assert made.parameters == {"profile": "smoke", "seed": 3, "rate": 1} and made.seed == 3
    assert about(project / "runs/smoke/01_two.ipynb").parameters == {"profile": "smoke"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sequental"], "unknown notebook 'sequental': choose from 01_data, 02_sequential"),
        (["sequental"], "did you mean 02_sequential?"),
        (["7"], "unknown notebook '7'"),
        (["-P", "labtop"], "choose from smoke, laptop, paper; did you mean laptop?"),
        (["-p", "sede=3"], "unknown parameter 'sede': choose from"),
        (["-p", "sede=3"], "did you mean seed?"),
        (["2", "-p", "users=3"], "unknown parameter of 02_sequential 'users'"),
        (["-p", "seed=three"], "parameter 'seed' takes int (default 0), not 'three'"),
        (["-p", "seed=true"], "parameter 'seed' takes int (default 0), not True"),
        (["-p", "rate=none"], "parameter 'rate' takes float (default 0.5), not None"),
        (["-p", "profile=smoke"], "with --profile"),
        (["-p", "seed"], "name=value, not 'seed'"),
        (["--save", "-P", "smoke"], "--save"),
    ],
)
def test_usage_errors_are_one_line_and_run_nothing(project, words, said):
    write(project / "notebooks/01_data.ipynb", "open('../ran', 'w')", head=HEAD + "\nusers = None")
    write(project / "notebooks/02_sequential.ipynb", "open('../ran', 'w')")
    done = call("run", *words)
    assert done.exit_code == 2, done.output
    assert said in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (project / "runs").exists() and not (project / "ran").exists()


def test_a_broken_notebook_and_a_missing_folder_are_usage_errors(project, monkeypatch):
    (project / "notebooks/01_data.ipynb").write_text("{")
    assert "recnb: cannot read 01_data.ipynb" in call("run").stderr
    write(project / "notebooks/01_data.ipynb", head="seed = = 3")
    assert "recnb: the parameters cell is not Python" in call("run").stderr
    monkeypatch.chdir(project / "notebooks")
    monkeypatch.setattr(runner.recnb, "__file__", str(project / "notebooks/recnb/__init__.py"))
    assert "no notebooks/NN_name.ipynb" in call("run").stderr


def test_names_and_values(project):
    paths = [write(project / f"notebooks/0{n}_{name}.ipynb") for n, name in enumerate("abc")]
    (project / "notebooks/notes.ipynb").write_text("{}")
    assert runner.notebooks() == runner.resolve() == paths
    assert runner.resolve(["2", "00", "02_c.ipynb"]) == [paths[0], paths[2]]
    assert runner.resolve(["notebooks/01_b.ipynb"]) == [paths[1]]
    items = ["a=3", "b=0.5", "c=TRUE", "d=none", "e=x=y", "f=[1, 2]", 'g="3"', "h="]
    values = [3, 0.5, True, None, "x=y", [1, 2], "3", ""]
    assert runner.parse_parameters(items) == dict(zip("abcdefgh", values, strict=True))


def test_the_code_hash_is_about_code_only(project):
    path = write(project / "notebooks/00_a.ipynb", "x = 1")
    nb = nbformat.read(path, 4)
    before = runner.code_hash(nb), runner.fingerprint(nb, {})
    nb.cells[0].source = "# Other words"
    nb.cells[2].source += "\n"
    nb.cells.insert(2, new_code_cell("seed = 3", metadata={"tags": ["injected-parameters"]}))
    assert (runner.code_hash(nb), runner.fingerprint(nb, {})) == before
    assert runner.fingerprint(nb, {"seed": 3}) != before[1]
    nb.cells[-1].source = "x = 2"
    assert runner.code_hash(nb) != before[0]


def start(*words):
    command = [sys.executable, "-m", "recnb.cli", *words]
    path = str(Path(cli.__file__).parents[1])
    return subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_leaves_nothing_half_done_and_the_rerun_goes_on(project):
    write(project / "notebooks/00_quick.ipynb", "print(1)")
    first_time = "import os, time\nif not os.path.exists('../here'):\n    "
    slow = first_time + "open('../here', 'w')\n    time.sleep(99)"
    write(project / "notebooks/01_slow.ipynb", slow)
    run, deadline = start("run"), time.monotonic() + 60
    while not (project / "here").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    kernels = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=30)
    assert run.returncode == 130, out + err
    assert "1 done, 1 interrupted" in out and "goes on from there" in err
    assert len(err.splitlines()) == 1
    assert kernels and not psutil.wait_procs(kernels, timeout=5)[1]
    assert os.listdir(project / "runs/laptop") == ["00_quick.ipynb"]
    done = call("run")
    assert done.exit_code == 0 and "1 skipped, 1 done" in done.output


def executed(path, **changes):
    """Give a notebook the outputs, noise and metadata of a finished run."""
    nb = nbformat.read(path, 4)
    for number, cell in enumerate(runner.code_cells(nb), 1):
        cell.execution_count = number
        cell.metadata |= {"papermill": {"duration": 1}, "execution": {"x": 1}}
        cell.metadata.setdefault("tags", [])
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}}
    still = {"text/plain": "Slider()", "image/png": "AAAA"}
    nb.cells[2].outputs = [
        new_output("stream", text="four\n"),
        new_output("display_data", data=widget | still | {"text/html": "<b>"}),
        new_output("display_data", data=widget),
    ]
    nb.metadata |= {"papermill": {}, "widgets": {}, "language_info": {"name": "python"}}
    nb.metadata["recnb"] = {"status": "done", "seed": 0} | changes
    return nb


def test_saving_keeps_what_readers_need_and_nothing_else(project):
    path, copy = write(project / "notebooks/00_a.ipynb", "x = 1"), project / "copy.ipynb"
    nbformat.write(executed(path), copy)
    prose = nbformat.read(path, 4)
    prose.cells[0].source = "# Mended after the run"
    nbformat.write(prose, path)
    cli.save_outputs(copy, path)
    nb = nbformat.read(path, 4)
    assert set(nb.metadata) == {"kernelspec", "language_info", "recnb"}
    assert nb.metadata.kernelspec.name == "python3" and nb.metadata.recnb.status == "done"
    assert nb.cells[0].source == "# Mended after the run"
    assert [cell.metadata for cell in nb.cells] == [{}, {"tags": ["parameters"]}, {}]
    assert [cell.execution_count for cell in nb.cells[1:]] == [1, 2]
    text, picture = nb.cells[2].outputs
    assert text.text == "four\n" and set(picture.data) == {"text/plain", "image/png"}
    assert os.listdir(project / "notebooks") == ["00_a.ipynb"]


@pytest.mark.parametrize("fault", ["failed", "injected", "changed", "home", "project", "tmp"])
def test_saving_refuses(project, fault):
    path, copy = write(project / "notebooks/00_a.ipynb", "x = 1"), project / "copy.ipynb"
    nb = executed(path, **({"status": "failed"} if fault == "failed" else {}))
    place = {"home": Path.home(), "project": project, "tmp": "/tmp"}.get(fault)
    if fault == "injected":
        nb.cells.insert(2, new_code_cell("seed = 3", metadata={"tags": ["injected-parameters"]}))
    elif fault == "changed":
        nb.cells[2].source = "x = 2"
    elif place:
        nb.cells[2].outputs += [new_output("display_data", data={"text/html": f"<i>{place}/x</i>"})]
    nbformat.write(nb, copy)
    before = path.read_bytes()
    with pytest.raises(runner.UsageError, match="00_a not saved") as error:
        cli.save_outputs(copy, path)
    assert not place or f"code cell 2 prints the path {place}" in str(error.value)
    assert path.read_bytes() == before


def test_run_with_save_writes_back(project):
    path = write(project / "notebooks/00_a.ipynb", "print('told')")
    private = write(project / "notebooks/01_b.ipynb", "import os\nprint(os.getcwd())")
    done = call("run", "--save")
    assert done.exit_code == 1 and "01_b not saved: code cell 2 prints the path" in done.stderr
    nb = nbformat.read(path, 4)
    assert nb.cells[2].outputs[0].text == "told\n" and about(path).code_hash == runner.code_hash(nb)
    assert "recnb" not in nbformat.read(private, 4).metadata


def test_help_needs_no_heavy_imports():
    heavy = "{'torch', 'papermill', 'pandas', 'nbformat'} & set(sys.modules)"
    code = f"import sys, recnb.cli; sys.exit(str({heavy}) if {heavy} else 0)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(cli.__file__).parents[1])
    assert all(word in call("--help").output for word in ("run", "lab", "fetch", "results", "clean"))


def test_fetch_reports_each_asset_and_explains_a_failure(monkeypatch):
    monkeypatch.setattr(assets, "fetch_all", lambda report: report("ml-100k", "ready", "2 MB"))
    assert call("fetch").output == "ml-100k: ready: 2 MB\n"

    def offline(report):
        raise assets.AssetError("could not download ml-100k")

    monkeypatch.setattr(assets, "fetch_all", offline)
    done = call("fetch")
    assert (done.exit_code, done.stderr) == (1, "recnb: could not download ml-100k\n")


def test_results_show_the_ledger_and_write_it(project, monkeypatch):
    write(project / "notebooks/00_a.ipynb")
    assert "recnb run" in call("results").output
    row = dict.fromkeys(claims.COLUMNS, "x") | {"paper": "LLaRA", "verdict": "reproduced"}
    row |= {"value": 0.25, "low": 0.1, "high": 0.4, "claim": "[b]ours is better"}
    (project / "figures").mkdir()
    (project / "figures/claims.csv").write_text(
        ",".join(row) + "\n" + ",".join(str(value) for value in row.values()) + "\n"
    )
    monkeypatch.setenv("COLUMNS", "200")
    done = call("results", "--write")
    assert done.exit_code == 0, done.output
    for word in ("LLaRA", "[b]ours is better", "x 0.25", "0.1 to 0.4", "reproduced"):
        assert word in done.output
    assert "written: figures/claims.csv" in done.output


def test_clean_asks_and_removes_what_is_named(project, tmp_path, monkeypatch):
    monkeypatch.setenv("RECNB_HOME", str(tmp_path / "kept"))
    write(project / "notebooks/00_a.ipynb")
    folders = [project / "runs", tmp_path / "kept/store", tmp_path / "kept/assets"]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"x" * 2**20)
    asked = CliRunner().invoke(cli.app, ["clean"], input="n\n")
    assert "runs: 1.0 MB" in asked.output and all(folder.exists() for folder in folders)
    assert call("clean", "--yes").exit_code == 0
    assert [folder.exists() for folder in folders] == [False, True, True]
    assert call("clean", "--store", "--assets", "--yes").exit_code == 0
    assert not any(folder.exists() for folder in folders)
    assert "nothing to remove" in call("clean").output


def test_lab_opens_the_notebook_in_its_folder(project, monkeypatch):
    write(project / "notebooks/02_c.ipynb")
    stub = [sys.executable, "-c", "import os, sys; open('opened', 'w').write(sys.argv[-1])"]
    real = subprocess.Popen
    monkeypatch.setattr(cli.subprocess, "Popen", lambda words, **how: real([*stub, *words], **how))
    assert call("lab", "2").exit_code == 0
    assert (project / "notebooks/opened").read_text() == "02_c.ipynb"
    assert call("lab", "3").exit_code == 2
