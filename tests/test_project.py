"""The project's own promises: one list of dependencies, clean code, small files, README in step with the notebooks."""

import csv
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()


def test_conda_installs_the_same_project():
    text = (ROOT / "environment.yml").read_text()
    entries = re.findall(r"^ +- (.+)$", text, re.M)
    assert entries == ["conda-forge", f"python{PROJECT['requires-python']}", "pip", "pip:", "-e .[test]"]


def test_the_readme_prints_the_commands_that_ci_runs():
    command = "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest"
    assert command in README
    assert command in (ROOT / ".ci" / "run").read_text()
    assert "python3 -m venv .venv && .venv/bin/pip install -e . && .venv/bin/recnb run" in README
    assert "conda env create -f environment.yml" in README


def test_the_readme_names_every_notebook_and_every_picture_exists():
    for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
        assert f"notebooks/{path.name}" in README
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links and all((ROOT / link).exists() for link in links)


@pytest.mark.parametrize(
    "command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]], ids=" ".join
)
def test_code_and_notebooks_are_clean(command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_files_stay_small():
    lines = {path: len(path.read_text().splitlines()) for path in (ROOT / "recnb").rglob("*.py")}
    assert max(lines.values()) <= 350, max(lines, key=lines.get)
    assert sum(lines.values()) <= 13_000  # eleven notebooks; ten stand, and the explorer has two modules


def test_no_machine_paths_or_hosts_are_committed():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    for name in tracked:
        if name.endswith((".py", ".md", ".toml", ".yml", ".ipynb", ".csv")):
            text = (ROOT / name).read_text()
            assert not re.search(r"/(home|root|work|opt)/\w|/tmp/\w", text), name


def notebook_rows():
    """The README's table of notebooks, from what the stored runs measured."""
    about = {
        "00_tour": ("What is this, and what has come out so far?", "all six"),
        "01_data": ("What is asked of a recommender, and what leaks?", "LLaRA's and DreamRec's protocols"),
        "02_sequential_recommender": (
            "Which film next, and does a network know it better than a counter?",
            "SASRec, GRU4Rec, Caser, NextItNet",
        ),
        "03_adapter": ("How can a language model read what a recommender knows of a film?", "LLaRA"),
        "04_curriculum_training": ("Does a language model that reads behaviour recommend better?", "LLaRA"),
        "05_bistep_grounding": ("Can what a language model says rank a whole catalogue?", "BIGRec"),
        "06_diffusion_generation": ("Can one recommend by inventing the next film?", "DreamRec"),
        "07_latent_space_interpretation": ("Can a language model read what a recommender thinks?", "RecInterpreter"),
        "08_offline_rl": ("Do rewards, and a look ahead, make better lists?", "MCRL"),
        "09_digital_twin_brain": ("Does a brain model need its wiring, and is it anybody's?", "Digital Twin Brain"),
        "10_embedding_explorer": ("What did the models learn, and how far can a map be believed?", "all of the above"),
    }
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        made = json.loads(path.read_text())["metadata"]["recnb"]
        question, paper = about[path.stem]
        link = f"[{path.stem}](notebooks/{path.name})"
        yield f"| {link} | {question} | {paper} | {made['seconds']:.0f} s | {made['peak_memory_mb']:.0f} MB |"


def benchmark_rows():
    """The README's table of benchmarks, from figures/benchmarks.csv."""
    with (ROOT / "figures" / "benchmarks.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            yield f"| {row['task']} | {row['ours']} | {row['peer']} | {row['unit']} | {row['ratio']} |"


@pytest.mark.parametrize("rows", [notebook_rows, benchmark_rows])
def test_the_readme_repeats_what_was_measured(rows):
    for row in rows():
        assert row in README, f"the README lacks this row:\n{row}"
