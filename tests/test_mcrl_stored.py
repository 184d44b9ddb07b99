"""The agents of notebook 08 that came with the package: all there, described, and as good as stored."""

import numpy as np
import pandas as pd
import pytest

from recnb import mcrl_evaluation, mcrl_study, runs
from recnb import mcrl_results as archive
from recnb.backbones import NAMES

RUNS = dict(runs.told(mcrl_study.SHIPPED / "ml-100k"))
MODELS = [folder for folder in RUNS if (folder / "model.safetensors").exists()]
NAMED = ("CE", "SQN", "SAC", "MCRL-style")  # the agents that the paper's claims name


@pytest.fixture(scope="module")
def study():
    return mcrl_study.load()


@pytest.mark.parametrize("backbone", NAMES)
@pytest.mark.parametrize("method", NAMED)
def test_every_named_agent_has_three_seeds_on_every_backbone(study, method, backbone):
    frame = archive.stored("ml-100k")
    found = archive.by_seed(frame, "reward", method, backbone)
    assert found.shape == (3, len(study.parts["test"].items))
    earned = [sum(rewards[5:]) for rewards in study.parts["test"].rewards]
    np.testing.assert_allclose(found[0], earned, rtol=1e-6)  # of the same people, in the same order


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: folder.name)
def test_a_run_says_what_made_it_and_hands_on_no_data(folder):
    about = RUNS[folder]
    assert {"method", "backbone", "seed", "plan", "command", "threads", "torch", "best_epoch", "seconds"} <= set(about)
    again = mcrl_study.plan(about["method"], about["backbone"], about["seed"])
    assert about["plan"] == mcrl_study.plain(again)
    people = pd.read_parquet(folder / "people.parquet")
    assert not {"item", "rating", "timestamp"} & set(people)
    assert not people.duplicated(["user", "by"]).any()


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_a_shipped_critic_ranks_as_stored(study, folder):
    about = RUNS[folder]
    critic = mcrl_study.shipped(study, about["method"], about["backbone"], about["seed"])
    test = study.parts["test"].take(np.arange(20))
    hits = mcrl_evaluation.by_reward(mcrl_study.head(critic, "scores"), test)
    got = hits[hits["good"]].groupby("user")["NDCG"].mean()
    stored = pd.read_parquet(folder / "people.parquet").query("by == 'scores'").set_index("user")["NDCG good"]
    np.testing.assert_allclose(got, stored.loc[got.index], atol=0.02)
    assert abs(got.mean() - stored.loc[got.index].mean()) < 0.002


def test_an_absent_critic_is_named_with_those_there_are(study):
    with pytest.raises(FileNotFoundError, match=r"no critic CE.SASRec.99; there are: CE.SASRec.0"):
        mcrl_study.shipped(study, "CE", seed=99)
