"""RecInterpreter: what a slot reads, where it stands, what is trained, how answers are counted, and what ships."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from recnb import data, interpreter_results, interpreter_study, interpreter_training, llm
from recnb.interpreter import EXAMPLES, PHRASES, Adapter, Interpreter, InterpreterConfig, Phrasebook, matched
from recnb.interpreter_study import PLANS, SHIPPED
from recnb.interpreter_training import Plan, Reader, Rows, Wording, drawn, states, words
from recnb.study import Study, load

MODELS = sorted(path.parent for path in SHIPPED.glob("*/*/model.safetensors"))
RUNS = sorted(path.parent for path in SHIPPED.glob("*/*/run.json"))


@pytest.fixture(scope="module")
def study(movielens):
    return Study(movielens, data.user_windows(movielens))


@pytest.fixture(scope="module")
def lm():
    return llm.load()


@pytest.fixture(scope="module")
def book(lm, study):
    return Phrasebook(lm.tokenizer, study.dataset.items["title"].tolist())


@pytest.fixture(scope="module")
def reader(study, book):
    network = interpreter_training.network(study, "untrained SASRec").eval()
    return Reader(study.train, study.split.n_items, PLANS["residual, difference"], network, book)


def test_states_stand_at_the_end_and_the_last_is_the_models_own(study):
    encode = interpreter_training.network(study, "untrained GRU4Rec", seed=3).eval().states
    found = states(encode, [np.array([5, 6, 7]), np.arange(40)], study.split.n_items)
    assert found.shape == (2, 10, 64) and (found[0, :7] == 0).all()
    assert torch.allclose(found[0, 7:], encode(torch.tensor([[5, 6, 7]]))[0], atol=1e-5)
    assert torch.allclose(found[1], encode(torch.arange(30, 40)[None])[0], atol=1e-5)


def test_a_difference_is_that_of_the_same_history_without_one_item(study, reader):
    cases = study.train.take(np.arange(40, 46))
    removed = drawn(cases, np.random.default_rng(0))
    pair = reader.states(cases, removed)
    without = [np.delete(history[-10:], place) for history, place in zip(cases.history, removed, strict=True)]
    assert torch.allclose(pair[:, 0], reader.encoded(without))
    named = reader.answers(cases, removed)
    assert all(
        item.tolist() == [history[-10:][place]]
        for item, history, place in zip(named, cases.history, removed, strict=True)
    )


def test_a_step_is_the_state_when_its_item_had_just_been_added(study, reader):
    stepwise = replace(reader, plan=replace(reader.plan, model=InterpreterConfig("recovery", "step")))
    cases = study.train.take(np.arange(6))  # some shorter than the window
    removed = drawn(cases, np.random.default_rng(0))
    found, named = stepwise.states(cases, removed), stepwise.answers(cases, removed)
    assert found.shape == (6, 1, 1, 64) and min(len(history) for history in cases.history) < 10
    for row, (history, place) in enumerate(zip(cases.history, removed, strict=True)):
        assert torch.allclose(found[row, 0, 0], stepwise.encoded([history[-10:][: place + 1]])[0, -1], atol=1e-5)
        assert named[row].tolist() == [history[-10:][place]]


def test_pooling_is_a_weighted_sum_that_is_then_standardised():
    adapter = Adapter(3, 4, 8, InterpreterConfig(tokens=2))
    sample = torch.randn(500, 3, 4) * 5 + 2
    adapter.begin(sample, length=2.5)
    z = adapter.pooled(sample)
    assert torch.allclose(z.mean(0), torch.zeros(4), atol=1e-4) and torch.allclose(z.std(0), torch.ones(4), atol=1e-4)
    assert adapter(sample).shape == (500, 2, 8)
    assert adapter(sample).norm(dim=-1).mean().item() == pytest.approx(2.5, rel=1e-3)


def test_soft_tokens_stand_where_words_would(lm, book, reader):
    """With a word's own embedding in the slot, the loss is that of the plain text, computed by transformers."""
    model = Interpreter(lm, torch.randn(9, 2, 10, 64), InterpreterConfig("residual", "difference"))
    asks = [book.ask("echo", [item], 0) for item in (0, 1)]
    word = book._tokens([" Alien"])[0]
    model.read = lambda given: lm.embeddings[torch.tensor(word)].float().expand(2, 1, len(word), -1)
    losses, of = model.token_losses(asks, torch.zeros(2, 2, 10, 64))
    for row, question in enumerate(asks):
        prompt = question.pieces[0] + word + question.pieces[1]
        logits = lm.model(torch.tensor([prompt + question.answer])).logits[0, len(prompt) - 1 : -1].float()
        plain = F.cross_entropy(logits, torch.tensor(question.answer), reduction="none")
        assert torch.allclose(losses[of == row], plain, atol=0.15 if lm.embeddings.dtype == torch.bfloat16 else 1e-3)


def test_a_beginning_that_is_read_once_changes_no_answer_and_no_gradient(book, monkeypatch):
    given = torch.randn(3, 2, 10, 64, generator=torch.Generator().manual_seed(0))
    model = Interpreter(llm.load(dtype=torch.float32), given, InterpreterConfig("residual", "difference", tokens=3))
    asks = [book.ask("echo", [item]) for item in (0, 1, 2)]
    assert model.prefix([book.ask("residual", [1], phrase) for phrase in (0, 1)]) is None  # their words differ

    def all_of_it():
        losses, _ = model.token_losses(asks, given)
        (gradient,) = torch.autograd.grad(losses.mean(), [model.adapter.map.weight])
        return losses.detach(), gradient, model.aloud(asks, given, book.end[0], 6)

    once = all_of_it()
    assert len(model._read) == 1
    monkeypatch.setattr(model, "prefix", lambda questions: None)
    whole = all_of_it()
    assert torch.allclose(once[0], whole[0], atol=1e-3) and once[2] == whole[2]
    assert F.cosine_similarity(once[1].flatten(), whole[1].flatten(), dim=0) > 0.99


def test_only_the_adapter_learns_and_one_batch_can_be_learnt_by_heart(study, lm, reader):
    model = Interpreter(lm, reader.states(study.train.take(np.arange(64)), np.zeros(64, int)), reader.plan.model)
    batch = next(
        iter(Rows(replace(reader, plan=replace(reader.plan, rows=8, batch=4)), "read")(0, np.random.default_rng(0)))
    )
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        loss = model(**batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert all(weight.grad is None for weight in lm.model.parameters())
    assert not any(key.startswith("lm") for key in model.state_dict())


def test_the_warm_start_makes_soft_tokens_point_at_the_right_words(study, lm, reader):
    plan = replace(reader.plan, word_rows=8000)
    reader = replace(reader, plan=plan)
    model = Interpreter(lm, reader.states(study.train.take(np.arange(500)), np.zeros(500, int)), plan.model)
    wording = Wording(model, words(reader.book, lm.embeddings, plan.model.tokens))
    batches, optimizer = Rows(reader, "words"), torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for round_ in range(batches.rounds):
        for batch in batches(round_, np.random.default_rng(round_)):
            loss = wording(**batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])


def test_prompts_hold_no_title_and_tests_are_worded_otherwise(book):
    for task, (train, test) in PHRASES.items():
        assert task == "echo" or not set(train) & set(test)
        assert book.ask(task, [3], 0).pieces == book.ask(task, [50], 0).pieces
    assert not {name.lower() for name in EXAMPLES} & book.known  # the echo's examples are no films of the catalogue


def test_names_match_exactly_or_nearly_and_each_title_once():
    true = ["fargo", "the silence of the lambs", "m"]
    assert matched(["fargo", "fargo", "M".lower()], true) == [0, -1, 2]
    assert matched(["the silence of the lamb", "farg"], true) == [-1, -1]
    assert matched(["the silence of the lamb", "completely different"], true, 0.8) == [1, -1]
    frame = interpreter_study.scored([["m", "fargo"], []], [true, true], {"fargo", "m"})
    assert frame["exact"].tolist() == [2, 0] and frame["order"].iloc[0] == 0 and np.isnan(frame["order"].iloc[1])


def test_another_persons_state_is_another_persons(study):
    asked = interpreter_study.asked(study, each=2)
    assert (asked.cases.user != asked.cases.user[asked.other]).all()
    assert len(set(asked.cases.user)) == 95


def test_held_out_items_are_not_among_those_learnt(study):
    known, kept = interpreter_training.catalogue(study)
    assert not set(known.target) & set(kept.target)
    assert set(known.target) | set(kept.target) == set(np.flatnonzero(study.split.popularity()))


def test_beams_are_distinct_and_alike_for_like_prompts(lm):
    prompt = lm.tokenizer("The capital of France is", add_special_tokens=False)["input_ids"]
    row = lm.embeddings[torch.tensor(prompt)]
    end = lm.tokenizer("\n", add_special_tokens=False)["input_ids"][0]
    found = llm.beams(lm, [row, row], end, 3, limit=4)
    assert len(found) == 2 and len(found[0]) == 3 and found[0] == found[1]
    assert len(set(found[0])) == 3


@pytest.mark.parametrize(("task", "reads"), [("recovery", "difference"), ("residual", "step"), ("item", "one")])
def test_what_cannot_be_read_is_refused_with_what_can(task, reads):
    with pytest.raises(ValueError, match=f"{task} cannot read '{reads}'; allowed: "):
        InterpreterConfig(task, reads)


def test_an_unknown_source_is_refused_with_those_there_are(study):
    with pytest.raises(ValueError, match="source 'SASREC'; allowed: SASRec, .*DreamRec"):
        interpreter_training.network(study, "SASREC")


def test_a_killed_warm_start_and_a_new_one_deal_the_same_rows(reader):
    plan = Plan(word_rows=600, model=InterpreterConfig("recovery", "one"))
    one, two = (Rows(replace(reader, plan=plan), "words") for _ in range(2))
    for a, b in zip(one(0, np.random.default_rng(4)), two(0, np.random.default_rng(4)), strict=True):
        assert torch.equal(a["items"], b["items"]) and torch.equal(a["states"], b["states"])


def test_oracles_are_called_by_the_nearest_item_that_is_learnt(study):
    network = interpreter_study.shipped(study, "item", "DreamRec items")[1].network
    known, held = interpreter_training.catalogue(study)
    cases, vectors = interpreter_training.nameable(study, network, 40)
    assert not set(cases.target) & set(held.target) and set(known.target) <= set(cases.target)
    assert torch.equal(vectors[: study.split.n_items], network.table)
    for case in range(len(cases) - 40, len(cases)):
        away = (vectors[cases.history[case][0]] - network.table[known.target]).norm(dim=1)
        assert known.target[int(away.argmin())] == cases.target[case]


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: folder.name)
def test_a_run_says_what_made_it_and_keeps_no_data(folder):
    about = json.loads((folder / "run.json").read_text())
    assert {"name", "plan", "each", "seconds", "command", "torch"} <= set(about)
    frame = pd.read_parquet(folder / "answers.parquet")
    assert {"adapter", "another's state", "random state"} <= set(frame["method"])
    assert not {"user", "history", "target"} & set(frame)
    assert (frame["exact"] <= frame["size"]).all() and (frame["exact"] <= frame["fuzzy"]).all()


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_a_shipped_adapter_answers_as_stored(folder):
    about, study = json.loads((folder / "run.json").read_text()), load()
    model, reader = interpreter_study.shipped(study, about["name"], about["plan"]["source"], about["plan"]["seed"])
    whole = interpreter_study.items(study) if about["name"] == "item" else interpreter_study.asked(study, about["each"])
    some = np.arange(12)
    part = interpreter_study.Asked(whole.cases.take(some), whole.removed[some], some)
    got = interpreter_study.read(model, reader, part).query("method == 'adapter'")["said"].to_numpy()
    stored = pd.read_parquet(folder / "answers.parquet").query("method == 'adapter'")["said"].to_numpy()[some]
    assert (got == stored).sum() >= 11, list(zip(got, stored, strict=True))


def test_an_absent_adapter_is_named_with_those_there_are(study):
    with pytest.raises(FileNotFoundError, match="no trained adapter nobody-nothing.0; there are: "):
        interpreter_study.shipped(study, "nothing", "nobody")


def test_stored_runs_are_read_with_intervals():
    study, frame = load(), interpreter_results.stored("ml-100k")
    rows = frame[(frame["name"] == "residual, difference") & (frame["source"] == "SASRec")]
    got = interpreter_results.interval(rows, study, "adapter", "exact", "another's state")
    assert got.n == 95 and got.low > 0
