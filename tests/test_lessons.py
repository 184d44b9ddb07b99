import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

from recnb import claims, lessons, plots, profiles
from recnb.claims import Claim
from recnb.metrics import Interval

matplotlib.use("agg")


def run():
    return lessons.start("02_sequential_recommender", "smoke", 3, "ml-100k", knob=1)


def test_start_says_what_runs(capsys):
    started = run()
    assert started.seeds == [3, 4]
    text = capsys.readouterr().out
    assert "profile smoke · seed 3" in text and "epochs 1" in text


@pytest.mark.parametrize(
    ("notebook", "profile", "message"),
    [("01_data", "labtop", "did you mean 'laptop'"), ("01_date", "smoke", "did you mean '01_data'")],
)
def test_wrong_names_get_the_nearest(notebook, profile, message):
    with pytest.raises(ValueError, match=message):
        profiles.get(notebook, profile)


def test_every_profile_exists_for_every_notebook():
    for settings in profiles.SETTINGS.values():
        assert tuple(settings) == profiles.NAMES


def test_exercise_accepts_refuses_and_survives(capsys):
    def untouched(length):
        """Docstring only."""
        ...

    def right(length):
        return torch.tensor([[c <= r for c in range(length)] for r in range(length)])

    def wrong(length):
        return torch.ones(length, length)

    def broken(length):
        raise KeyError("oops")

    reference = lessons.find_exercise("02.causal_mask").solution
    expected = [(untouched, reference, "not attempted"), (right, right, "✓ right")]
    expected += [(wrong, reference, "its own target included"), (broken, reference, "raised KeyError: 'oops'")]
    for answer, used, message in expected:
        assert lessons.exercise("02.causal_mask", answer) is used
        assert message in capsys.readouterr().out


def softmax_with_padding(states, items, target, real):
    logits = states @ items.T
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())


def softmax_summed(states, items, target, real):
    return torch.nn.functional.cross_entropy(states[real] @ items.T, target[real], reduction="sum")


def softmax_turned(states, items, target, real):
    return -torch.nn.functional.cross_entropy(states[real] @ items.T, target[real])


@pytest.mark.parametrize(
    ("name", "answer", "message"),
    [
        ("causal_mask", lambda n: torch.ones(n, n).tril(-1), "diagonal is missing"),
        ("causal_mask", lambda n: torch.ones(n, n).triu(), "swapped"),
        ("causal_mask", lambda n: torch.ones(n, n).triu(1), "inverted"),
        ("full_softmax_loss", softmax_with_padding, "padding counts too"),
        ("full_softmax_loss", softmax_summed, "it is the sum"),
        ("full_softmax_loss", softmax_turned, "the sign is turned"),
        ("running_window_max", lambda v, w: v.cummax(0).values, "never drops"),
        (
            "running_window_max",
            lambda v, w: torch.nn.functional.pad(v, (0, w - 1)).unfold(0, w, 1).amax(1),
            "looks ahead",
        ),
        ("running_window_max", lambda v, w: v.unfold(0, w, 1).amax(1), "one value a position"),
    ],
)
def test_wrong_answers_of_notebook_02_get_their_own_message(name, answer, message):
    assert message in lessons.find_exercise(f"02.{name}").check(answer)


@pytest.mark.parametrize("name", ["causal_mask", "full_softmax_loss", "running_window_max"])
def test_solutions_of_notebook_02_pass_their_checks(name):
    task = lessons.find_exercise(f"02.{name}")
    assert task.check(task.solution) is None


@pytest.mark.parametrize(
    ("low", "high", "side", "expected"),
    [
        (0.1, 0.2, ">", "reproduced"),
        (-0.2, -0.1, ">", "contradicted"),
        (-0.2, -0.1, "<", "reproduced"),
        (0.1, 0.2, "<", "contradicted"),
        (-0.1, 0.2, ">", claims.INCONCLUSIVE),
        (0.0, 0.2, ">", claims.INCONCLUSIVE),
    ],
)
def test_the_verdict_follows_from_the_interval(low, high, side, expected):
    assert claims.verdict(Interval((low + high) / 2, low, high, 10), side) == expected


def claim(value, paper="LLaRA", side=">"):
    got = Interval(value, value - 0.1, value + 0.1, 95, 3)
    return Claim(paper, "a > b", "protocol", "ml-100k", "difference", got, "b", 0.4, side)


def test_a_rerun_replaces_its_claims_and_smoke_stays_out(tmp_path):
    claims.record([claim(0.5)], "02_x", "laptop", {"seed": 0})
    claims.record([claim(-0.5)], "02_x", "laptop", {"seed": 0})
    claims.record([claim(0.9)], "02_x", "smoke", {"seed": 0})
    ledger = tmp_path / "claims.csv"
    claims.write(ledger)
    rows = pd.read_csv(ledger)
    assert rows.columns.tolist() == claims.COLUMNS
    assert rows["verdict"].tolist() == ["contradicted"]
    assert claims.table(ledger)["value"].tolist() == [-0.5]


def test_the_ledger_keeps_the_claimed_side(tmp_path):
    claims.record([claim(0.05), claim(0.05, side="<")], "02_x", "laptop", {"seed": 0})
    claims.write(tmp_path / "claims.csv")
    rows = pd.read_csv(tmp_path / "claims.csv")
    assert rows["side"].tolist() == [">", "<"] and set(rows["verdict"]) == {claims.INCONCLUSIVE}


def test_runs_with_several_seeds_are_joined_and_other_parameters_stay_out(tmp_path):
    stem, own = "04_curriculum_training", {"dataset": "ml-100k", "backbone": "SASRec"}
    for seed, value in enumerate((0.5, 0.3, 0.05)):
        claims.record([claim(value)], stem, "laptop", own | {"seed": seed})
    claims.record([claim(-0.9)], stem, "laptop", own | {"seed": 0, "backbone": "Caser"})
    row = claims.table().iloc[0]
    assert (row["value"], row["low"], row["high"]) == (pytest.approx(0.85 / 3, abs=1e-4), -0.05, 0.6)
    assert row["verdict"] == claims.INCONCLUSIVE  # one of the three runs does not reproduce it
    old = tmp_path / "claims.csv"
    gone = claims.table().assign(claim="no longer claimed")
    pd.concat([gone, gone.assign(dataset="ml-1m")]).to_csv(old, index=False)
    pairs = sorted(claims.table(old)[["claim", "dataset"]].to_numpy().tolist())
    assert pairs == [["a > b", "ml-100k"], ["no longer claimed", "ml-1m"]]


def test_a_paper_outside_the_tutorial_is_refused():
    with pytest.raises(ValueError, match="unknown paper 'BERT4Rec'; allowed: LLaRA"):
        claim(0.1, "BERT4Rec")


def test_titles_are_text_wherever_they_are_shown(capsys):
    nasty = "<script>alert(1)</script> & $x$"
    shown = []
    lessons.display, kept = lambda data, **kw: shown.append(data), lessons.display
    try:
        lessons.table(pd.DataFrame({"title": [nasty]}), caption=nasty)
    finally:
        lessons.display = kept
    assert "<script>" not in shown[0]["text/html"]
    assert plots.plain_text("Money$ and $ense") == r"Money\$ and \$ense"


def test_figures_draw_from_the_numbers_they_are_given():
    rows = {"a": Interval(0.1, 0.05, 0.2, 10), "b": Interval(0.3, 0.2, 0.4, 10)}
    ax = plots.forest(rows, "x", 0.2).axes[0]
    drawn = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"]
    assert np.allclose(drawn, [0.1, 0.3])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
