"""The batch grid on tiny notebooks: what it refuses, survives, repeats and gathers; and one real notebook."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from typer.testing import CliRunner

from recnb import claims, cli, grid, reproduce

ROOT = Path(__file__).resolve().parents[1]
HEAD = 'profile: str = "laptop"\ndataset: str = "ml-100k"\nseed: int = 0'
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends signals")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder of our own with an empty ``notebooks/``; the current folder of the test."""
    root = tmp_path / "project"
    (root / "notebooks").mkdir(parents=True)
    monkeypatch.chdir(root)
    return root


def write(name, *sources, head=HEAD):
    """A notebook with a parameters cell and these code cells."""
    cells = [new_markdown_cell("# Title"), new_code_cell(head, metadata={"tags": ["parameters"]})]
    cells += [new_code_cell(source) for source in sources]
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": KERNEL}), f"notebooks/{name}.ipynb")


def declare(text):
    Path("grid.toml").write_text(text)
    return Path("grid.toml")


def call(*words):
    return CliRunner().invoke(cli.app, ["reproduce", *map(str, words)])


def start(*words):
    """The same command as a process with a process group of its own, as a shell would start it."""
    command = [sys.executable, "-m", "recnb.cli", "reproduce", *map(str, words)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def until(condition, seconds=180):  # a busy machine starts a worker in half a minute
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def table(name="grid-laptop"):
    return pd.read_parquet(f"runs/reproduce/{name}/table.parquet")


def executable(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seeds = [0", "grid.toml is not TOML: Unclosed array (at end of document)"),
        ("sedes = [0]", "unknown key in grid.toml 'sedes': choose from profile, jobs, notebooks"),
        ("sedes = [0]", "did you mean seeds?"),
        ("[[jobs]]\n[[jobs]]\nmemry = 3", "unknown key in grid.toml, [[jobs]] 2 'memry'"),
        ("seeds = 3", "grid.toml: seeds is a list of whole numbers, not 3"),
        ("seeds = [true]", "seeds is a list of whole numbers, not [True]"),
        ("datasets = []", "datasets is a list of names or folders, not []"),
        ("memory = '8 GB'", "memory is a number of GB from 0, not '8 GB'"),
        ("gpu = -1", "gpu is a whole number from 0, not -1"),
        ("jobs = 3", "[[jobs]] 1 is a table below [[jobs]], not 3"),
        ("profile = 'papr'", "unknown profile 'papr': choose from smoke, laptop, paper; did you mean paper?"),
        ("[[jobs]]\nnotebooks = ['02_towr']", "unknown notebook '02_towr': choose from 00_tour; did you mean 00_tour?"),
        ("parameters = { colour = 1 }", "unknown parameter 'colour': choose from"),
        ("parameters = { width = [1, 'wide'] }", "parameter 'width' takes int (default 3), not 'wide'"),
        ("parameters = { width = [] }", "parameter 'width' takes one value or a list"),
        ("parameters = { seed = 3 }", "seeds and datasets have keys of their own"),
        ("datasets = ['ml-1n']", "unknown data set or folder 'ml-1n': choose from ml-100k, own, ml-1m"),
    ],
)
def test_a_wrong_grid_is_one_line_and_runs_nothing(project, text, said):
    write("00_tour", "open('../ran', 'w')", head=HEAD + "\nwidth: int = 3")
    done = call("--grid", declare(text))
    assert done.exit_code == 2, done.output
    assert said in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (project / "runs").exists() and not (project / "ran").exists()


def test_wrong_options_are_one_line(project):
    write("00_tour")
    (project / "grids").mkdir()
    (project / "grids/paper.toml").touch()
    assert "cannot read grid papr.toml" in (said := call("-g", "papr.toml").stderr) and "grids/paper.toml" in said
    assert "--seeds takes whole numbers separated by commas, not '1,two'" in call("--seeds", "1,two").stderr
    assert "no scheduler at 'slrum': missing port" in call("--scheduler", "slrum").stderr
    assert "--workers is for workers started here" in call("--scheduler", "tcp://127.0.0.1:9", "-w", 2).stderr


@pytest.mark.parametrize("kind", ["slurm", "kubernetes"])
def test_a_missing_extra_and_a_missing_configuration_are_named(project, monkeypatch, kind):
    def refuse():
        raise ValueError("you must specify the cores")

    write("00_tour")
    modules = {"dask_jobqueue": "SLURMCluster", "dask_kubernetes.operator": "KubeCluster"}
    with monkeypatch.context() as patch:
        patch.setattr(reproduce, "import_module", lambda name: SimpleNamespace(**{modules[name]: refuse}))
        assert call("--scheduler", kind).stderr == f"recnb: --scheduler {kind}: you must specify the cores\n"
    for name in modules:
        monkeypatch.setitem(sys.modules, name, None)
    assert f"pip install 'recnb[{kind}]'" in call("--scheduler", kind).stderr


def test_the_jobs_of_a_grid(project):
    write("00_a", head=HEAD + "\nwidth: int = 3")
    write("01_b", head='profile: str = "laptop"')
    write("02_c")
    text = "seeds = [4, 5]\ngpu = 1\n[[jobs]]\n[[jobs]]\nnotebooks = [0]\nparameters = { width = [3, 7] }\nmemory = 8\n"
    jobs = grid.plan(declare(text))
    assert [job.label for job in jobs] == [
        "00_a width=3 dataset=ml-100k seed=4",  # declared twice: once, with the later resources
        "00_a width=3 dataset=ml-100k seed=5",
        "00_a width=7 dataset=ml-100k seed=4",
        "00_a width=7 dataset=ml-100k seed=5",
        "01_b",
        "02_c dataset=ml-100k seed=4",
        "02_c dataset=ml-100k seed=5",
    ]
    assert [job.resources for job in jobs] == 4 * [{"MEMORY": 8.0, "GPU": 1.0}] + 3 * [{"GPU": 1.0}]
    assert jobs[0].known == {"profile": "laptop", "dataset": "ml-100k", "seed": 4, "width": 3}
    assert len({job.key for job in jobs}) == 7 and not any(job.absent for job in jobs)
    assert len(grid.plan()) == 3 + 1 + 3
    told = [(job.known["profile"], job.known.get("seed")) for job in grid.plan(Path("grid.toml"), "smoke", "9")]
    assert told == [("smoke", 9), ("smoke", 9), ("smoke", None), ("smoke", 9)]


def test_a_key_is_about_code_values_and_data(project):
    write("00_a", "x = 1")
    before = grid.plan(seeds="0")[0].key
    nb = nbformat.read("notebooks/00_a.ipynb", 4)
    nb.cells[0].source = "# Other words"
    nbformat.write(nb, "notebooks/00_a.ipynb")
    assert grid.plan(seeds="0")[0].key == before
    assert len({before, grid.plan(seeds="1")[0].key, grid.plan(profile="smoke", seeds="0")[0].key}) == 3
    write("00_a", "x = 2")
    assert grid.plan(seeds="0")[0].key != before
    (project / "mine").mkdir()
    mine = project / "mine/interactions.csv"
    mine.write_text("user,item,timestamp\na,b,1\n")
    job = grid.plan(seeds="0", datasets="mine")[0]
    assert job.given["dataset"] == str(project / "mine")
    assert grid.plan(seeds="0", datasets="mine")[0].key == job.key
    mine.write_text("user,item,timestamp\na,c,1\n")
    assert grid.plan(seeds="0", datasets="mine")[0].key != job.key


def test_a_worker_that_sees_another_folder_or_notebook_says_so(project, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "get_worker", lambda: SimpleNamespace(log_event=lambda topic, msg: None))
    write("00_a", "x = 1")
    (job,) = grid.plan(seeds="0")
    with pytest.raises(grid.UsageError, match="does not see .*/elsewhere"):
        reproduce.run_job(job, tmp_path / "elsewhere", "")
    write("00_a", "x = 2")
    with pytest.raises(grid.UsageError, match="00_a.ipynb was edited after the grid had started"):
        reproduce.run_job(job, tmp_path, "")
    assert grid.finished(job, tmp_path) is None


def test_the_table_holds_values_of_any_kind(project, tmp_path):
    write("00_a", head=HEAD + "\nwidth: int = 3\nnames: tuple = ('a', 'b')")
    write("01_b", head='profile: str = "laptop"\nwidth: str = "wide"')
    grid.gather(grid.plan(), {}, tmp_path)
    frame = pd.read_parquet(tmp_path / "table.parquet")
    assert frame["param_width"].tolist() == ["3", "3", "3", "wide"] and frame["seed"].tolist()[:3] == [0, 10, 20]
    assert frame["param_names"][0] == "['a', 'b']" and pd.isna(frame["seed"][3])
    assert pd.read_csv(tmp_path / "claims.csv").empty


SHARED = [
    "import os, time\nfrom recnb import claims, store\nfrom recnb.metrics import Interval",
    # both jobs are here before either goes on
    "open(f'../here-{seed}', 'w').write(os.environ['CUDA_VISIBLE_DEVICES'])\n"
    "while not all(os.path.exists(f'../here-{n}') for n in (0, 1)):\n    time.sleep(0.05)",
    "def make():\n    open('../made', 'a').write('x')\n    time.sleep(0.5)\n    return {'a.json': [1]}",
    "got = store.Store().load_or_make('thing', 1, make)\nassert got == {'a.json': [1]}",
    "low = 0.1 - 0.2 * seed\nclaim = claims.Claim('LLaRA', 'a > b', 'all', dataset, 'HR@1', Interval("
    "0.2, low, 0.5, 9, 3), 'b', 0.3)\n_ = claims.record([claim], '00_shared', profile, {'seed': seed})",
]


def test_a_grid_goes_past_a_failure_gathers_one_table_and_repeats_nothing(project, tmp_path, monkeypatch):
    executable(tmp_path / "bin/nvidia-smi", "echo '0, Card A'\necho '1, Card B'")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    write("00_shared", *SHARED)
    write("01_bad", "x = 1", "raise KeyError('[red]lost')")
    earlier = Path(os.environ["RECNB_HOME"], "results/laptop/00_shared-0.json")  # by code that entered other claims
    earlier.parent.mkdir(parents=True)
    earlier.write_text(json.dumps({"parameters": {}, "rows": [dict.fromkeys(claims.COLUMNS, "old")]}))
    text = "[[jobs]]\nnotebooks = [0]\nseeds = [0, 1]\ngpu = 1\n[[jobs]]\nnotebooks = [1]\nseeds = [7]\n"
    done = call("-g", declare("datasets = ['ml-100k', 'ml-1m']\n" + text))
    assert done.exit_code == 1, done.output
    for said in (
        "skipped: data set ml-1m is absent: set RECNB_DATA",
        "00_shared dataset=ml-100k seed=1: done in 0:00:0",
        "01_bad dataset=ml-100k seed=7 failed: code cell 4",
        "raise KeyError",
        "KeyError: '[red]lost'",
        "2 done, 1 failed (0 before this call)",
    ):
        assert said in done.output, done.output
    assert {(project / f"here-{n}").read_text() for n in (0, 1)} == {"0", "1"}  # a card each
    assert (project / "made").read_text() == "x"  # one made it, the other waited for it

    rows = table().set_index(["notebook", "dataset", "seed"])
    assert rows["status"].to_dict() == {
        ("00_shared", "ml-100k", 0): "done",
        ("00_shared", "ml-100k", 1): "done",
        ("00_shared", "ml-1m", 0): "skipped",
        ("00_shared", "ml-1m", 1): "skipped",
        ("01_bad", "ml-100k", 7): "failed",
        ("01_bad", "ml-1m", 7): "skipped",
    }
    good, bad = rows.loc[("00_shared", "ml-100k", 1)], rows.loc[("01_bad", "ml-100k", 7)]
    assert (bad["cell"], bad["error"]) == (4, "KeyError: '[red]lost'") and "----> 1 raise" in bad["traceback"]
    made = "seconds peak_memory_mb code_hash fingerprint date python torch pandas cores arch memory_gb key".split()
    assert good[made].notna().all() and good["gpu"].startswith("Card")
    assert (good["claim"], good["low"], good["verdict"]) == ("a > b", -0.1, "inconclusive at this scale")
    assert rows.loc[("00_shared", "ml-100k", 0), "verdict"] == "reproduced"
    assert len(pd.read_csv("runs/reproduce/grid-laptop/table.csv")) == 6
    ledger = pd.read_csv("runs/reproduce/grid-laptop/claims.csv").iloc[0]
    assert (ledger["low"], ledger["high"], ledger["runs"], ledger["notebook"]) == (-0.1, 0.5, 2, "00_shared")
    assert ledger["verdict"] == "inconclusive at this scale"
    kept = project / f"runs/reproduce/grid-laptop/00_shared-{good['key']}"
    assert json.loads((kept / "done.json").read_text())["seed"] == 1
    assert nbformat.read(kept / "00_shared.ipynb", 4).metadata.recnb.status == "done"

    write("01_bad", "x = 1")
    (project / "made").unlink()
    done = call("-g", "grid.toml")
    assert done.exit_code == 0 and "3 done (2 before this call)" in done.output, done.output
    monkeypatch.setattr(reproduce, "connect", None)  # nothing is started any more
    done = call("-g", "grid.toml")
    assert done.exit_code == 0 and "3 done (3 before this call)" in done.output, done.output
    assert not (project / "made").exists() and (table()["status"] == "done").sum() == 3
    monkeypatch.setattr(grid.runner, "VERSIONS", {"torch": "0"})
    assert "3 done jobs ran with other code of recnb or packages" in call("-g", "grid.toml").output


def test_a_killed_worker_costs_only_its_own_job_some_starts(project):
    note = "import os, time\nnumber = open('../{}', 'a').write(f'{os.getppid()} {os.getpid()}\\n')"
    write("00_killer", note.replace("{}", "killer"), "os.kill(os.getppid(), 9)\ntime.sleep(60)")
    once = "if len(open('../once').readlines()) == 1:\n    time.sleep(60)"
    write("01_once", note.replace("{}", "once"), once)
    seen = []

    def kill():
        until(lambda: Path("once").exists() and Path("once").read_text().endswith("\n"))
        seen.extend(psutil.Process(int(pid)) for pid in Path("once").read_text().split())
        seen[0].kill()

    thread = threading.Thread(target=kill)
    thread.start()
    done = call("-g", declare("seeds = [0]"))
    thread.join()
    assert done.exit_code == 1, done.output
    assert "01_once dataset=ml-100k seed=0: done at start 2" in done.output, done.output
    assert "00_killer dataset=ml-100k seed=0 failed: outside its cells" in done.output
    assert "KilledWorker" in done.output
    assert len(Path("once").read_text().splitlines()) == 2
    assert 3 <= len(Path("killer").read_text().splitlines()) <= 4  # the other's death may count against it
    assert not psutil.wait_procs(seen, timeout=10)[1]  # the kernel ends with its worker
    assert table().set_index("notebook")["status"].to_dict() == {"00_killer": "failed", "01_once": "done"}
    assert not list(Path("runs").rglob("01_once*/.*.partial.ipynb"))


def test_ctrl_c_leaves_nothing_running_and_the_same_command_goes_on(project):
    write("00_quick", "open('../ran', 'a').write('quick ')")
    slow = "import os, subprocess, time\nif not os.path.exists('../here'):\n    subprocess.Popen(['sleep', '60'])\n"
    slow += "    open('../here', 'w')\n    time.sleep(60)"
    write("01_slow", slow, "open('../ran', 'a').write('slow ')")
    write("02_last", "open('../ran', 'a').write('last ')")
    run = start("-g", declare("seeds = [0]"))
    until(lambda: Path("here").exists() or run.poll() is not None)
    below = psutil.Process(run.pid).children(recursive=True)
    os.killpg(run.pid, signal.SIGINT)  # what Ctrl-C does: the workers get it, too
    out, err = run.communicate(timeout=30)
    assert run.returncode == 130, out + err
    assert "1 done, 2 not done (0 before this call)" in out
    assert "goes on from there" in err and len(err.splitlines()) == 1
    assert len(below) > 3 and not psutil.wait_procs(below, timeout=10)[1]
    assert table().set_index("notebook")["status"].to_dict() == {
        "00_quick": "done",
        "01_slow": "not done",
        "02_last": "not done",
    }
    done = call("-g", "grid.toml")
    assert done.exit_code == 0 and "3 done (1 before this call)" in done.output, done.output
    assert Path("ran").read_text() == "quick slow last "


@pytest.fixture
def dask(tmp_path):
    """A scheduler and a worker for two jobs at once, each a process of its own; the scheduler and its address."""
    file, python = tmp_path / "scheduler.json", [sys.executable, "-m"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    quiet = {"env": env, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    where = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(file)]
    scheduler = subprocess.Popen([*python, "distributed.cli.dask_scheduler", "--port", "0", *where], **quiet)
    offer = ["--nthreads", "2", "--resources", "GPU=2 MEMORY=4", "--death-timeout", "60"]
    worker = subprocess.Popen([*python, "distributed.cli.dask_worker", *offer, *where], **quiet)
    try:
        until(lambda: file.exists() and file.read_text().endswith("}"))
        yield scheduler, json.loads(file.read_text())["address"]
    finally:
        for process in (worker, scheduler):
            process.terminate()
            process.wait(timeout=20)


def test_a_scheduler_and_a_worker_of_your_own(project, dask):
    scheduler, address = dask
    wait = "while not os.path.exists('../go'):\n    time.sleep(0.1)"
    write("00_gpu", "import os, time\nopen('../ran', 'a').write('x')", wait)
    write("01_big", "1 + 1")
    text = "seeds = [0]\ngpu = 1\n[[jobs]]\nnotebooks = [0]\n"
    first = start("-g", declare(text), "--scheduler", address)
    until(lambda: Path("ran").exists() or first.poll() is not None)
    assert first.poll() is None, first.communicate()
    first.send_signal(signal.SIGINT)  # our queue ends; what the worker runs goes on, and is found
    out, err = first.communicate(timeout=30)
    assert first.returncode == 130, out + err
    threading.Timer(2, Path("go").touch).start()
    done = call("-g", "grid.toml", "--scheduler", address)
    assert done.exit_code == 0 and "1 done (0 before this call)" in done.output, done.output
    assert Path("ran").read_text() == "x"

    last = start("-g", declare(text + "[[jobs]]\nnotebooks = [1]\nmemory = 9"), "--scheduler", address)
    said = last.stdout.readline()
    assert "01_big dataset=ml-100k seed=0 needs {'MEMORY': 9.0, 'GPU': 1.0}; the most that one of 1 offers" in said
    assert "is {'MEMORY': 4.0, 'GPU': 2.0}: it waits for another" in said
    scheduler.kill()
    out, err = last.communicate(timeout=60)
    assert last.returncode == 2 and "1 done, 1 not done (1 before this call)" in out, out + err
    assert err == "recnb: the scheduler is gone; with it back, the same command goes on from there\n"


@pytest.fixture
def hosts():
    """Two hosts as far as the network goes: namespaces of their own with a cable between them."""
    names = [f"recnb{os.getpid()}{letter}" for letter in "ab"]
    made = [["netns", "add", name] for name in names]
    made.append(["link", "add", "v0", "netns", names[0], "type", "veth", "peer", "name", "v0", "netns", names[1]])
    for number, name in enumerate(names, 1):
        made += [["-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "v0"]]
        made += [["-n", name, "link", "set", link, "up"] for link in ("lo", "v0")]
    try:
        for words in made:
            done = subprocess.run(["ip", *words], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"no network namespaces here: {done.stderr.strip()}; they need root and iproute2")
        yield [["ip", "netns", "exec", name] for name in names]
    except FileNotFoundError:
        pytest.skip("no network namespaces here: install iproute2")
    finally:
        for name in names if shutil.which("ip") else ():
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def test_the_worker_is_another_host(project, hosts, tmp_path):
    here, there = hosts
    python, file = [sys.executable, "-m"], tmp_path / "scheduler.json"
    quiet = {"env": {**os.environ, "PYTHONPATH": str(ROOT)}, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    where = ["--host", "10.77.0.1", "--port", "8786", "--no-dashboard", "--scheduler-file", str(file)]
    scheduler = subprocess.Popen([*here, *python, "distributed.cli.dask_scheduler", *where], **quiet)
    offer = ["tcp://10.77.0.1:8786", "--host", "10.77.0.2", "--nthreads", "1", "--death-timeout", "60"]
    worker = subprocess.Popen([*there, *python, "distributed.cli.dask_worker", *offer], **quiet)
    asks = "import socket\nasked = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nasked.connect(('10.77.0.1', 9))"
    write("00_where", asks, "open('../ran', 'w').write(asked.getsockname()[0])")
    declare("seeds = [0]")
    command = [*here, *python, "recnb.cli", "reproduce", "-g", "grid.toml", "--scheduler", "tcp://10.77.0.1:8786"]
    try:
        until(file.exists)
        done = subprocess.run(command, env=quiet["env"], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and "1 done" in done.stdout, done.stdout + done.stderr
        assert Path("ran").read_text() == "10.77.0.2"
    finally:
        for process in (worker, scheduler):
            process.terminate()
            process.wait(timeout=20)


SBATCH = 'cp "$1" job.sh\nsetsid sh job.sh >job.log 2>&1 &\necho "Submitted batch job $!"'
CONFIG = """
jobqueue:
  slurm: {cores: 1, job-cpu: 4, memory: 2GB, interface: lo, worker-extra-args: ["--resources", "MEMORY=2"]}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="names the loopback device")
def test_slurm_by_dask_jobqueue_with_a_stand_in_for_sbatch(project, tmp_path, monkeypatch):
    executable(tmp_path / "bin/sbatch", SBATCH)
    executable(tmp_path / "bin/scancel", "echo $1 >cancelled\nkill -- -$1")
    (tmp_path / "dask.yaml").write_text(CONFIG)
    for name, value in {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "DASK_CONFIG": tmp_path / "dask.yaml"}.items():
        monkeypatch.setenv(name, str(value))
    write("00_a", "import os\nopen('../seen', 'w').write(str(os.getpgid(0)))")
    run = start("-g", declare("seeds = [0]\nmemory = 2"), "--scheduler", "slurm")
    out, err = run.communicate(timeout=90)
    assert run.returncode == 0 and "1 done" in out, out + err
    assert "#SBATCH --cpus-per-task=4" in Path("job.sh").read_text()
    assert Path("seen").exists() and Path("cancelled").read_text().strip().isdigit()


def test_a_job_that_no_worker_here_can_take_is_an_error(project):
    write("00_a", "open('../ran', 'w')")
    done = call("-g", declare("memory = 1e6"))
    assert done.exit_code == 2 and "needs {'MEMORY': 1000000.0}; the most that one of 1" in done.stderr, done.output
    assert "use fewer --workers, or --scheduler" in done.stderr and not (project / "ran").exists()


def test_a_real_notebook_under_smoke(project):
    shutil.copy(ROOT / "notebooks/00_tour.ipynb", project / "notebooks")
    done = call("--profile", "smoke", "--seeds", "3", "--datasets", "ml-100k")
    assert done.exit_code == 0, done.output
    (row,) = table("all-smoke").to_dict("records")
    assert (row["notebook"], row["status"], row["seed"], row["profile"]) == ("00_tour", "done", 3, "smoke")
    assert row["param_film"] == "Star Wars" and row["peak_memory_mb"] > 200 and row["seconds"] > 1


def test_the_time_that_is_left(project, monkeypatch):
    for number in range(3):
        write(f"0{number}_a")
        nb = nbformat.read(f"notebooks/0{number}_a.ipynb", 4)
        nb.metadata["recnb"] = {"seconds": 10.0 * (number + 1)}
        nbformat.write(nb, f"notebooks/0{number}_a.ipynb")
    jobs = grid.plan(seeds="0")
    board = reproduce.Board(None, jobs, {})
    assert board.seconds_left() is None
    board.records[jobs[0].key] = {"status": "done", "seconds": 20.0}  # half as fast as the committed run
    assert board.seconds_left() == 40 + 60
    assert board.summary() == "1 of 3, about 0:01:40 left"
    monkeypatch.setattr(reproduce.time, "perf_counter", lambda: 100.0)
    for job, since in ((jobs[1], 90.0), (jobs[2], 95.0)):
        board.running[job.key] = (since, "1/3", 0.0)
    assert board.seconds_left() == (30 + 55) / 2


GRIDS = {"laptop": (45, 0, "laptop"), "paper": (89, 42, "paper"), "second": (11, 11, "laptop")}


@pytest.mark.parametrize("path", sorted((ROOT / "grids").glob("*.toml")), ids=lambda path: path.stem)
def test_the_grids_of_the_project_fit_its_notebooks(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    jobs = grid.plan(path)
    (profile,) = {job.known["profile"] for job in jobs}
    absent = sum(bool(job.absent) for job in jobs)  # here are no data but MovieLens-100K
    assert (len(jobs), absent, profile) == GRIDS[path.stem]
