"""What ships trained must answer as its stored run says, and be described in full."""

import json

import numpy as np
import pandas as pd
import pytest

from recnb import llara_results, llara_study, metrics

RUNS = sorted(path.parent for path in llara_study.SHIPPED.glob("*/*/run.json"))
MODELS = [folder for folder in RUNS if (folder / "model.safetensors").exists()]


@pytest.fixture(scope="module")
def study():
    return llara_study.load_study()


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: folder.name)
def test_a_run_says_what_made_it_and_covers_every_test_user(study, folder):
    about = json.loads((folder / "run.json").read_text())
    assert {"name", "plan", "seconds", "command", "threads", "torch"} <= set(about)
    answers = pd.read_parquet(folder / "answers.parquet")
    asked = answers[answers["asked"] == "test"]
    cases, table = llara_study.questions(study, "test")
    assert not {"user", "target"} & set(answers)  # the data themselves may not be handed on
    assert (asked["place"] == (table == cases.target[:, None]).argmax(1)).all()
    names = [study.dataset.titles(row) for row in table]
    if about["plan"]["model"]["kind"] != "index":
        assert [metrics.chosen(a, n) for a, n in zip(asked["answer"], names, strict=True)] == asked["exact"].tolist()


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_a_shipped_model_answers_as_stored(study, folder):
    name, _, seed = folder.name.rpartition(".")
    model, plan = llara_study.shipped(study, name, int(seed))
    cases, table = llara_study.questions(study, "test")
    some = np.arange(12)
    got = llara_study.ask(study, model, plan, cases.take(some), table[some], likelihood=False)
    stored = pd.read_parquet(folder / "answers.parquet").query("asked == 'test'").iloc[some]
    same = (got["answer"].to_numpy() == stored["answer"].to_numpy()).sum()
    assert same >= len(some) - 1, got.assign(stored=stored["answer"].to_numpy())[["answer", "stored"]]


def test_an_absent_model_is_named_with_those_there_are(study):
    with pytest.raises(FileNotFoundError, match="no trained model nonsense.0; there are: .*long.0"):
        llara_study.shipped(study, "nonsense")


def test_stored_outcomes_are_read_as_one_table(study):
    frame = llara_results.outcomes(study)
    assert {"curriculum", "text-only"} <= set(frame["name"])
    assert set(frame["asked"]) <= {"test", "prefixes", "wide", *(f"draw {draw}" for draw in range(1, 21))}
