"""BIGRec: its split, prompts, loss, grounding, reweighting, the choice of gamma, and what ships."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from recnb import bigrec, bigrec_ranking, bigrec_results, bigrec_study, data, llm, metrics
from recnb.bigrec import BigRec, BigRecConfig, Catalogue, Grounding, Instructions, filed, reweighted, spoken
from recnb.bigrec_study import SHIPPED
from recnb.bigrec_training import Plan, Rows, answer_nats, drawn, recent
from recnb.datasets import DataError, tidy_title
from recnb.study import Study

RUNS = sorted(path.parent for path in SHIPPED.glob("*/*/run.json"))
READINGS = [(25, "last"), (None, "mean"), (5, "last"), (None, "last")]
MODELS = [folder for folder in RUNS if (folder / "model.safetensors").exists()]


@pytest.fixture(scope="module")
def study(movielens):
    return Study(movielens, data.temporal_windows(movielens))


@pytest.fixture(scope="module")
def catalogue(movielens):
    return Catalogue(movielens)


@pytest.fixture(scope="module")
def lm():
    return llm.load()


@pytest.fixture(scope="module")
def write(lm, catalogue):
    return Instructions(lm.tokenizer, catalogue)


def test_data_without_windows_are_refused(movielens):
    short = replace(movielens, events=movielens.events.groupby("user").head(10))
    with pytest.raises(DataError, match="ml-100k has 0 windows of 10 interactions and a next one; 10 are needed"):
        data.temporal_windows(short)


def test_windows_are_cut_by_the_time_of_their_target(study):
    split, train = study.split, study.train
    assert (len(train), len(split.valid), len(split.test)) == (72_456, 9_057, 9_057)
    assert all(len(history) == 10 for history in split.test.history)
    events = study.dataset.events
    when = events.set_index(["user", "item"])["timestamp"]
    latest = {user: stamps.max() for user, stamps in enumerate(study.dataset.sequences("timestamp"))}
    moments = [when.loc[list(zip(c.user, c.target, strict=True))].to_numpy() for c in (split.valid, split.test)]
    assert moments[0].max() <= moments[1].min() and (np.diff(moments[1]) >= 0).all()
    assert max(stamps[-1] for stamps in split.times) <= moments[0].min() <= max(latest.values())
    some = split.test.take(np.arange(0, 9057, 301))
    for user, history, target in zip(some.user, some.history, some.target, strict=True):
        whole = study.dataset.sequences()[user].tolist()
        place = whole.index(target)
        assert history.tolist() == whole[place - 10 : place]


def test_a_name_is_filed_with_its_article_behind_and_borne_once(catalogue, movielens):
    assert filed("The Big Sleep") == "Big Sleep, The" and tidy_title(filed("A Chef in Love")) == "A Chef in Love"
    assert filed("Die Hard") == "Die Hard" and filed("Il Postino (x)") == "Postino, Il (x)"
    assert len(catalogue.names) == len(set(catalogue.names)) == 1664 and len(catalogue.of_item) == 1682
    scores = np.random.default_rng(0).normal(size=(3, 1682))
    best = catalogue.best(scores)
    for name in np.flatnonzero(np.bincount(catalogue.of_item) > 1):
        assert np.array_equal(best[:, name], scores[:, catalogue.of_item == name].max(1))
    assert catalogue.counts(np.ones(1682)).sum() == 1682


def test_a_row_is_question_answer_and_end_and_learns_what_it_should(write, study):
    case = study.train.take(np.array([7]))
    history, target = case.history[0], int(case.target[0])
    for whole in (True, False):
        row = write.row(history, target, whole)
        learnt = write.tokenizer.decode(row.ids[row.start :])
        answer = f'"{write.catalogue.names[write.catalogue.of_item[target]]}"'
        assert learnt.endswith(answer + write.tokenizer.decode([write.end]))
        assert learnt.startswith(write.quoted(history) if whole else answer)
        assert write.tokenizer.decode(row.ids[: row.start]) == (write.head if whole else write.question(history))


def test_no_candidates_and_no_target_stand_in_a_prompt(write, study):
    cases = drawn(study.split.test, 200, 3)
    for history, target in zip(cases.history, cases.target, strict=True):
        names = {write.catalogue.of_item[item] for item in history}
        prompt = write.question(history)
        assert prompt.count('"') == 20 and target not in history
        if write.catalogue.of_item[target] not in names:
            assert f'"{write.catalogue.names[write.catalogue.of_item[target]]}"' not in prompt


def test_names_fit_into_an_answer(write):
    lengths = [len(write.ids(f'"{name}"')) + 1 for name in write.catalogue.names]
    assert np.mean(np.array(lengths) <= bigrec.LIMIT) > 0.97


def test_loss_is_that_of_transformers_on_the_answers_tokens(write, study):
    model = BigRec(llm.load(dtype=torch.float32)).eval()
    cases = drawn(study.train, 2, 0)
    rows = write.batches(cases, 2, whole=False)[0]
    plain = []
    for row in rows:
        logits = model.lm.model(torch.tensor([row.ids])).logits[0, row.start - 1 : -1]
        plain.append(F.cross_entropy(logits, torch.tensor(row.ids[row.start :]), reduction="none"))
    assert float(model(rows)) == pytest.approx(float(torch.cat(plain).mean()), abs=1e-4)
    assert answer_nats(model, write, cases) == pytest.approx(float(torch.cat(plain).mean()), abs=1e-4)


def test_a_few_rows_are_learnt_by_heart_and_then_said(study):
    """Overfits one batch: the greedy answers become the right ones, and the grounding finds them."""
    plan = Plan(rows=4, passes=1)
    model, write = bigrec_study.fresh(study, plan)
    cases = drawn(study.train, 4, 0)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(14):
        for rows in write.batches(cases, 4, whole=False):
            model(rows).backward()
            optimizer.step()
            optimizer.zero_grad()
    answers = [lines[0] for lines in bigrec_study.say(model, write, cases, beams=1)]
    names = [write.catalogue.names[row] for row in write.catalogue.of_item[cases.target]]
    assert answers == names
    assert bigrec.exact(answers, write.catalogue.names).argmin(1).tolist() == [*write.catalogue.of_item[cases.target]]


def test_rounds_hold_every_row_as_often_as_asked(study, write):
    rows = Rows(study.train, write, Plan(rows=150, passes=2))
    rng = np.random.default_rng(0)
    seen = [tuple(row.ids) for r in range(rows.rounds) for batch in rows(r, rng) for row in batch["rows"]]
    assert rows.rounds == 3 and len(seen) == 300
    assert all(count % 2 == 0 for count in pd.Series(seen).value_counts())


def test_larger_draws_begin_with_the_smaller_ones(study):
    every = study.train
    assert np.array_equal(drawn(every, 256, 1).target[:16], drawn(every, 16, 1).target)
    assert not np.array_equal(drawn(every, 16, 1).target, drawn(every, 16, 2).target)


@pytest.mark.parametrize(
    ("line", "name"),
    [('"Big Sleep, The (1946)"', "Big Sleep, The (1946)"), ("Alien", "Alien"), ('"A", "B"', "A"), ("", ""), ('"', "")],
)
def test_what_is_said_is_what_stands_in_the_first_quotes(line, name):
    assert spoken(line) == name


@pytest.fixture(scope="module")
def ground(lm, catalogue):
    whole = llm.load(dtype=torch.float32)
    return Grounding(catalogue.names[:60], lambda texts: bigrec.states_of_words(whole, texts)[0])


def test_a_true_name_is_grounded_to_itself_and_a_wrong_year_to_its_film(ground):
    assert ground.distances(ground.names).argmin(1).tolist() == list(range(60))
    assert np.diag(ground.distances(ground.names)).max() == 0
    toy = ground.names.index("Toy Story (1995)")
    assert ground.distances(["Toy Story (1991)"])[0].argmin() == toy
    assert np.isfinite(ground.distances(["", "%$#"])).all()


def test_states_do_not_depend_on_what_shares_a_batch(ground):
    alone = torch.cat([ground.encode([name]) for name in ground.names[:5]])
    assert torch.allclose(alone, ground.points[:5], atol=2e-3)
    whole = llm.load(dtype=torch.float32)
    ids = torch.tensor([whole.tokenizer(ground.names[3])["input_ids"]])
    with torch.no_grad():
        published = whole.model(ids, output_hidden_states=True).hidden_states
    assert torch.allclose(alone[3], published[-1][0, -1], atol=2e-3)
    (inner,) = bigrec.states_of_words(whole, [ground.names[3]], [(12, "mean")])
    assert torch.allclose(inner[0], published[12][0].mean(0), atol=2e-3)
    true = [published[25][0, -1], published[-1][0].mean(0), published[5][0, -1], published[-1][0, -1]]
    for got, expected in zip(bigrec.states_of_words(whole, [ground.names[3]], READINGS), true, strict=True):
        assert torch.allclose(got[0], expected, atol=2e-3)
    with pytest.raises(ValueError, match="pooling 'max'; allowed: 'last', 'mean'"):
        bigrec.states_of_words(whole, ["a"], [(None, "max")])
    for block in (0, 31):
        with pytest.raises(ValueError, match=f"layer is {block}"):
            bigrec.states_of_words(whole, ["a"], [(block, "last")])


def test_groundings_of_one_pass_are_those_of_a_pass_each(catalogue):
    names, said = catalogue.names[:40], ["Toy Story (1991)", "a sad film"]
    for reading, got in zip(READINGS, bigrec_ranking.groundings(names, READINGS), strict=True):
        (alone,) = bigrec_ranking.groundings(names, [reading])
        assert np.allclose(got.distances(said), alone.distances(said), atol=2e-3)
        assert got.distances(names).argmin(1).tolist() == list(range(40))


def test_other_groundings(catalogue):
    near = Grounding(catalogue.names, bigrec.sentence_vectors())
    assert near.distances(["Toy Story (1995)"])[0].argmin() == catalogue.names.index("Toy Story (1995)")
    assert torch.allclose(near.points.norm(dim=1), torch.ones(1664))
    matched = bigrec.exact(["toy story (1995)", "no such film"], catalogue.names)
    assert matched.sum(1).tolist() == [1663, 1664] and matched[0, catalogue.names.index("Toy Story (1995)")] == 0
    placed = metrics.ranks(-matched, np.array([5, 5]))
    assert placed.hit_rate(10)[1] == pytest.approx(10 / 1664)  # no name: by chance
    assert bigrec.edits(["Toy Stori (1995)"], catalogue.names)[0].argmin() == matched[0].argmin()


finite = st.floats(0, 50, allow_nan=False, width=32)


@settings(max_examples=60, deadline=None)
@given(st.lists(finite, min_size=6, max_size=6), st.lists(finite, min_size=6, max_size=6), st.floats(0, 99))
def test_no_gamma_moves_the_first_place(distance, weight, gamma):
    distances, weights = np.array([distance]), np.array(weight)
    before, after = distances[0] == distances.min(), reweighted(distances, weights, gamma)[0]
    assert (after[before] == 0).all() and (after >= 0).all()
    for target in range(6):  # HR@1 and NDCG@1 of every possible target
        one = np.array([target])
        old, new = metrics.ranks(-distances, one), metrics.ranks(-after[None], one)
        if np.ptp(distances) > 1e-3:
            assert (old.above > 0) == (new.above > 0)
    if np.ptp(distances) > 1e-3:
        assert np.allclose(reweighted(distances, weights, 0)[0], bigrec.to_unit(distances)[0])


def test_reweighting_follows_the_formula_and_refuses_what_does_not_fit():
    distances, weight = np.array([[4.0, 9.0, 5.0]]), np.array([2.0, 6.0, 3.0])
    expected = np.array([0, 1 * 2**-1.5, 0.2 * 1.25**-1.5])
    assert np.allclose(reweighted(distances, weight, 1.5)[0], expected)
    for wrong in (dict(gamma=-1.0, weight=weight), dict(gamma=1.0, weight=weight[:2])):
        with pytest.raises(ValueError, match="gamma >= 0"):
            reweighted(distances, **wrong)


def test_the_sweep_holds_every_metric_and_gamma_0_changes_nothing():
    rng = np.random.default_rng(1)
    distances, weight, target = rng.random((40, 30)), rng.random((40, 30)), rng.integers(0, 30, 40)
    table = bigrec_ranking.sweep(distances, weight, target, np.array([0.0, 3.0, 90.0]))
    plain = metrics.ranks(-distances, target)
    assert table.loc[0, "NDCG@10"] == pytest.approx(plain.ndcg(10).mean())
    assert table["HR@1"].nunique() == 1 and table["NDCG@1"].nunique() == 1
    assert table["HR@20"].nunique() > 1


def test_several_beams_put_each_beams_nearest_name_first():
    near = [np.array([[0.0, 5, 9, 9]]), np.array([[9.0, 5, 0, 8]])]
    assert np.argsort(bigrec_ranking.several(near)[0])[:2].tolist() == [0, 2]


def test_rivals_see_the_same_rows_and_only_those(study):
    few, rows = bigrec_ranking.few(study, 16, 0), drawn(study.train, 16, 0)
    assert [sequence[-1] for sequence in few.train] == rows.target.tolist()
    assert all(np.array_equal(s[:-1], h) for s, h in zip(few.train, rows.history, strict=True))
    cases = bigrec_study.asked(study, "test", 5)
    counted = bigrec_ranking.rival(study, "Popularity", cases, 16, 0)
    assert counted.shape == (5, 1664) and counted[0].sum() <= 16 * 11


def test_the_published_form_is_a_setting():
    model = BigRec(llm.load(), BigRecConfig(targets=("q_proj", "v_proj")))
    assert sum(value.numel() for value in model.parameters()) == 460_800
    assert {name.split("/")[-4] for name in model.lora} == {"q_proj", "v_proj"}


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_a_run_says_what_made_it_and_its_ranks_follow_from_its_answers(study, folder):
    about = json.loads((folder / "run.json").read_text())
    assert {"command", "threads", "torch"} <= set(about)
    ranks = pd.read_parquet(folder / "ranks.parquet")
    assert not {"user", "target", "history"} & set(ranks)  # the data themselves may not be handed on
    if "plan" in about and folder.parent.name == "ml-100k":
        answers = bigrec_results.said("ml-100k", about["name"], about["plan"]["seed"])
        names, cases = Catalogue(study.dataset), bigrec_study.asked(study, "test")
        again = metrics.ranks(-bigrec.exact([a[0] for a in answers], names.names), names.of_item[cases.target])
        assert np.array_equal(again.above, ranks.loc[ranks["method"] == "exact match", "above"])


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_a_shipped_model_is_the_one_whose_run_is_stored(study, folder):
    """Likely answers lie close together, so that rounding on another machine may swap some; what they cost does not."""
    about, curve = json.loads((folder / "run.json").read_text()), pd.read_parquet(folder / "curve.parquet")
    model, write = bigrec_study.shipped(study, about["name"], about["plan"]["seed"])
    watched = drawn(recent(study.split.valid), about["plan"]["watched"], 0)
    assert answer_nats(model, write, watched) == pytest.approx(-curve["score"].max(), rel=0.03)
    got = bigrec_study.say(model, write, bigrec_study.asked(study, "test", 8), about["beams"])
    stored = bigrec_results.said("ml-100k", about["name"], about["plan"]["seed"])[:8]
    assert sum(a[0] == b[0] for a, b in zip(got, stored, strict=True)) >= 4, (got, stored)


def test_an_absent_model_and_an_absent_run_are_named(study):
    with pytest.raises(FileNotFoundError, match="no tuned model nonsense.0; there are: "):
        bigrec_study.shipped(study, "nonsense")
    with pytest.raises(FileNotFoundError, match="no stored run 'nonsense' with seed 0 on ml-100k"):
        bigrec_results.said("ml-100k", "nonsense")
    frame = bigrec_results.stored("ml-100k")
    with pytest.raises(KeyError, match="nothing stored of nonsense: grounded"):
        bigrec_results.by_seed(frame, "nonsense", "grounded", lambda ranks: ranks.ndcg(10))


@pytest.mark.parametrize(
    ("dataset", "name"), [("ml-100k", "16384 rows"), ("lastfm-llara", "1024 rows"), ("my-shop", None)]
)
def test_the_headline_is_the_largest_size_with_three_seeds(dataset, name):
    assert bigrec_results.headline(bigrec_results.stored(dataset)) == name


@pytest.mark.parametrize(
    ("dataset", "rows"), [*(("ml-100k", rows) for rows in bigrec_study.PASSES if rows <= 16384), ("lastfm-llara", 1024)]
)
def test_stored_runs_have_three_seeds_and_rivals_that_saw_the_same_rows(dataset, rows):
    frame = bigrec_results.stored(dataset)
    assert set(frame.loc[frame["name"] == f"{rows} rows", "seed"]) == {0, 1, 2}
    for saw in (rows, 0):  # 0: all rows
        rivals = frame[(frame["name"] == "rivals") & (frame["rows"] == saw)]
        assert set(rivals["method"]) == set(bigrec_study.RIVALS)
        assert (rivals.groupby("method")["seed"].nunique() == 3).all()
