"""Diffusion against its formulas, DreamRec's parts against their definitions, and both on real films."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from recnb import backbones, data, dreamrec, dreamrec_study, dreamrec_training, metrics
from recnb.diffusion import DENOISERS, SCHEDULES, Affine, Schedule, ancestral, closed_form, ddim
from recnb.dreamrec import DreamConfig, DreamRec, Guidance, Sampling, Sequences, collapse, in_space
from recnb.dreamrec_training import STRONG, Plan
from recnb.training import TrainConfig, seed_all


@pytest.fixture(scope="module")
def films(movielens):
    """DreamRec's split with few training people: what is tested here does not need them all."""
    return data.first_users(data.user_prefixes(movielens), 40)


@pytest.mark.parametrize(
    ("name", "steps", "left"),
    [("linear", 50, 0.603), ("linear", 100, 0.364), ("linear", 200, 0.132), ("linear", 500, 0.0064),
     ("linear", 1000, 4e-5), ("exp", 500, 0.0064), ("exp", 2000, 0.0064), ("cosine", 500, 0.0)],
)  # fmt: skip
def test_how_much_signal_is_left_at_the_last_step(name, steps, left):
    assert float(Schedule(name, steps).kept[-1]) == pytest.approx(left, rel=0.05, abs=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_posterior_keeps_the_mean_of_a_noised_item(name):
    schedule = Schedule(name, 100)
    assert ((0 < schedule.kept) & (schedule.kept < 1)).all() and schedule.spread[0] == 0
    assert torch.allclose(schedule.to_x0 + schedule.to_x * schedule.kept.sqrt(), schedule.before.sqrt())


def test_unknown_names_are_listed():
    with pytest.raises(ValueError, match="unknown schedule 'exq'; allowed: linear, exp, cosine, sqrt"):
        Schedule("exq")
    with pytest.raises(ValueError, match="unknown space 'ball'; allowed: learned, decorrelated"):
        DreamRec(Guidance(9), DreamConfig(space="ball"))


@pytest.mark.parametrize("few", [1, 5, 100])
def test_ddim_with_a_perfect_denoiser_arrives(few):
    goal = torch.randn(5, 8)
    *_, (x, _) = ddim(lambda x, t: goal, Schedule("cosine", 100), torch.randn(5, 8), few)
    assert torch.allclose(x, goal, atol=1e-5)


def test_closed_form_is_the_whole_chain():
    """Mean and covariance of 60,000 chains, against M h + m and Sigma."""
    torch.manual_seed(0)
    dim, n, w = 4, 60_000, 1.5
    schedule, denoiser, null, h = Schedule("exp", 40), Affine(dim), torch.randn(dim), torch.randn(dim)

    def predict(x, t):
        steps = torch.full((n,), t)
        return (1 + w) * denoiser(x, h.expand(n, dim), steps) - w * denoiser(x, null.expand(n, dim), steps)

    with torch.no_grad():
        *_, (x, _) = ancestral(predict, schedule, torch.randn(n, dim), torch.Generator().manual_seed(1))
    chain = closed_form(denoiser, null, schedule, w)
    assert torch.allclose(x.mean(0), chain.sample(h[None])[0], atol=0.03)
    assert torch.allclose(torch.cov(x.T).double(), chain.covariance, atol=0.03)
    drawn = chain.sample(h.expand(n, dim), torch.Generator().manual_seed(2))
    assert torch.allclose(torch.cov(drawn.T).double(), chain.covariance, atol=0.03)


def test_only_an_affine_denoiser_has_a_closed_form():
    with pytest.raises(TypeError, match="'modulated'"):
        DreamRec(Guidance(9), DreamConfig("modulated")).chain(1.0)


@pytest.mark.parametrize("name", DENOISERS)
def test_denoisers_use_all_they_are_told(name):
    torch.manual_seed(0)
    denoiser = DENOISERS[name](16)
    x, h, t = torch.randn(3, 16), torch.randn(3, 16), torch.tensor([1, 5, 9])
    base = denoiser(x, h, t)
    for changed in ((x + 1, h, t), (x, h + 1, t), (x, h, t + 50)):
        assert (denoiser(*changed) - base).abs().max() > 1e-3


def test_guidance_ignores_padding_neighbours_and_the_rest_of_the_batch():
    torch.manual_seed(0)
    encoder = Guidance(20).eval()
    rows = torch.tensor([[3, 5, 20, 20], [1, 2, 3, 4], [20, 20, 20, 20]])
    together = encoder(rows)
    assert torch.allclose(together[:1], encoder(rows[:1, :2]), atol=1e-6)
    assert torch.allclose(together[1:2], encoder(rows[1:2]), atol=1e-6)
    assert not torch.allclose(together[1], encoder(torch.tensor([[2, 1, 3, 4]]))[0], atol=1e-3)  # order counts
    assert torch.allclose(together[2], encoder(torch.full((1, 9), 20))[0], atol=1e-6)


def test_guidance_strength_zero_is_the_conditional_model_and_the_null_is_used_otherwise():
    torch.manual_seed(0)
    model = DreamRec(Guidance(20), DreamConfig())
    h, x = torch.randn(4, 64), torch.randn(4, 64)
    plain = model.denoiser(x, h, torch.full((4,), 7))
    assert torch.equal(model.predict(h, 0.0, x, 7), plain)
    away = plain - model.denoiser(x, model.null.expand(4, 64), torch.full((4,), 7))
    assert torch.allclose(model.predict(h, 2.0, x, 7), plain + 2 * away, atol=1e-5)


@pytest.mark.parametrize(("drop", "used"), [(0.0, False), (1.0, True)])
def test_the_null_condition_is_trained_only_where_a_condition_was_dropped(drop, used):
    torch.manual_seed(0)
    model = DreamRec(Guidance(20), DreamConfig(drop=drop))
    model(history=torch.tensor([[1, 2, 20]]), target=torch.tensor([3])).backward()
    assert bool(model.null.grad.abs().sum() > 0) is used
    assert bool(model.guidance.query.weight.grad.abs().sum() > 0) is not used


def test_spaces():
    torch.manual_seed(0)
    vectors = torch.randn(500, 8) @ torch.randn(8, 8) + 3
    scaled, normalised, whitened = (in_space(vectors, space) for space in dreamrec.FROZEN_SPACES)
    assert float(scaled.std()) == pytest.approx(1, abs=0.01)
    assert torch.allclose(normalised.norm(dim=1), torch.full((500,), 8**0.5))
    assert torch.allclose(torch.cov(whitened.T, correction=0), torch.eye(8), atol=1e-3)
    often = torch.randint(0, 9, (500,))
    model = DreamRec(Guidance(500), DreamConfig(space="decorrelated"), often)
    model.guidance.items.weight.data.mul_(0.1).add_(5)
    asked = model.table[torch.repeat_interleave(torch.arange(500), often)]  # as training asks for them
    assert torch.allclose(asked.mean(0), torch.zeros(64), atol=1e-3)
    assert torch.allclose(torch.cov(asked.T, correction=0), torch.eye(64), atol=0.02)  # what shrank is stretched again


def test_distance_ranks_the_nearest_first():
    torch.manual_seed(0)
    model = DreamRec(Guidance(300), DreamConfig(steps=5))
    h = torch.randn(7, 64)
    oracle = model.oracle(h, Sampling(2.0), torch.Generator().manual_seed(0))
    near = model.rank(h, Sampling(2.0, by="distance")).argsort(1, descending=True)
    assert torch.equal(near, torch.cdist(oracle, model.table).argsort(1))
    with pytest.raises(ValueError, match="unknown retrieval 'angle'; allowed: product, distance"):
        Sampling(by="angle")


def test_collapse_is_seen():
    torch.manual_seed(0)
    random = collapse(torch.randn(1000, 16))
    together = collapse(torch.ones(1000, 16) + 0.1 * torch.randn(1000, 1) * torch.randn(16))
    assert abs(random["mean cosine"]) < 0.01 and random["effective rank"] > 15
    assert together["mean cosine"] > 0.9 and together["effective rank"] < 1.1


def test_started_gives_every_history_a_beginning(films):
    begun = data.started(films)
    assert begun.n_items == films.n_items + 1
    assert min(map(len, films.test.history)) == 0 and min(map(len, begun.test.history)) == 1
    assert all(history[0] == films.n_items for history in begun.test.history)
    assert np.array_equal(begun.test.target, films.test.target)


def test_user_prefixes_is_dreamrecs_protocol(movielens):
    split = data.user_prefixes(movielens)
    assert (len(split.train), len(split.valid), len(split.test)) == (754, 7392, 9500)
    first = [sequence[0] for sequence in movielens.sequences("timestamp")]
    held = np.unique(split.test.user)
    assert min(first[user] for user in held) >= max(times[0] for times in split.times)  # later than all of training


def packed(films):
    """The strong track's model over an untrained SASRec, with one batch of it."""
    plan = replace(STRONG, encoder=replace(STRONG.encoder, tokens=512))
    begun = data.started(films)
    seed_all(0)
    backbone = backbones.build(begun.n_items, plan.encoder.model)
    batch = next(iter(dreamrec_training.batches(films, plan)(0, np.random.default_rng(0))))
    return DreamRec(Sequences(backbone), plan.model), batch


def test_packed_training_asks_every_item_once_and_leaves_the_item_table_alone(films):
    model, batch = packed(films)
    h, target = model.guidance.eval().conditions(**batch)
    first = batch["sequence"][0]
    steps = int((first != films.n_items + 1).sum()) - 1
    alone = model.guidance(first[None, :steps])  # all but the last item: its state tells of the last
    skipped = int(batch["skip"][0])
    assert torch.allclose(h[steps - 1 - skipped], alone[0], atol=1e-5) and target[steps - 1 - skipped] == first[steps]
    assert int(target.max()) < films.n_items  # the start token is never what comes next
    model(**batch).backward()
    assert model.guidance.backbone.items.weight.grad is None
    assert model.guidance.backbone.blocks[0].qkv.weight.grad.abs().sum() > 0


def test_a_nonlinear_denoiser_learns_fifty_people_by_heart(films):
    """One held item a person: the guided oracle is nearest to the very item that came next."""
    seed_all(0)
    cases = data.prefixes(films.train, np.arange(len(films.train)), 12, 10)
    cases = cases.take(np.arange(0, len(cases), max(1, len(cases) // 50))[:50])
    history = torch.from_numpy(cases.padded(10, films.n_items)[0])
    model = DreamRec(Guidance(films.n_items, dropout=0.0), DreamConfig("modulated", "cosine", 100, space="normalised"))
    model.guidance.items.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 2e-3)
    for _ in range(250):
        optimizer.zero_grad()
        model(history=history.repeat(4, 1), target=torch.from_numpy(cases.target).repeat(4)).backward()
        optimizer.step()
    scores = dreamrec_training.score(model, cases, Sampling(w=0.0, few=10))
    assert metrics.ranks(scores, cases.target).hit_rate(1).mean() > 0.95


def test_training_is_stored_and_found_again(movielens, films, own_store):
    plan = Plan(train=TrainConfig(epochs=2, lr=1e-2, patience=0, eval_every=1))
    one = dreamrec_training.trained(movielens, films, plan)
    seen = []
    again = dreamrec_training.trained(movielens, films, plan, seen.append)
    assert not seen and list(one.curve["epoch"]) == [1, 2]
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), again.model.parameters(), strict=True))
    few = films.test.take(np.arange(250))
    same = dreamrec_training.score(one.model, few, Sampling(2.0, 5))
    assert np.array_equal(same, dreamrec_training.score(again.model, few, Sampling(2.0, 5)))


def test_the_published_evaluation_has_its_three_faults(films):
    seed_all(0)
    model = DreamRec(Guidance(films.n_items), DreamConfig(steps=5))
    scores, asked = dreamrec_training.score_as_published(model, films.test.take(np.arange(250)), Sampling(2.0))
    assert scores.shape == (200, films.n_items + 1) and len(asked) == 200  # the padding competes, a tail is lost
    again, _ = dreamrec_training.score_as_published(model, films.test.take(np.arange(250)), Sampling(2.0))
    assert not np.array_equal(scores, again) and not model.training  # dropout was on, and is off again


def test_sums_a_person_give_the_intervals_of_the_cases(films):
    rng = np.random.default_rng(0)
    scores = rng.random((len(films.test), films.n_items), dtype=np.float32)
    frame = dreamrec_study.measured(scores, films.test, dreamrec_study.groups(films)).assign(method="random")
    got = dreamrec_study.interval(frame, "random", "HR@20")
    hits = metrics.ranks(scores, films.test.target).hit_rate(20)
    expected = metrics.bootstrap(hits, films.test.user)
    assert (got.value, got.low, got.high) == pytest.approx((expected.value, expected.low, expected.high))
    assert frame["cases"].sum() == len(films.test) and set(frame["kind"]) <= {"never", "rare", "common"}


@pytest.mark.parametrize(
    "folder", sorted(dreamrec_study.SHIPPED.glob("*/*")), ids=lambda path: f"{path.parent.name} {path.name}"
)
def test_a_stored_run_covers_its_cases_and_says_what_made_it(folder):
    frame = dreamrec_study.stored(folder.parent.name)
    told = dreamrec_study.notes(folder.parent.name)
    counted = frame.groupby(["method", "tie_seed", "seed"])["cases"].sum()
    assert counted.nunique() <= 2  # the published evaluation drops what is left over from batches of 100
    assert counted.max() - counted.min() < 100
    assert {"SASRec", "as published", "strong"} <= set(frame["method"]) and "choices" in told["strong"]
    shares = frame[[*dreamrec_study.MEASURES]].div(frame["cases"], axis=0)
    assert ((shares >= 0) & (shares <= 1)).all(axis=None)


def test_the_stored_closed_form_scores_as_the_stored_chain():
    """On real films, trained weights: folding the chain loses nothing that the seeds' interval could show."""
    gap = dreamrec_study.interval(dreamrec_study.stored("ml-100k"), "faithful", "NDCG@20", "faithful, closed form")
    assert gap.low <= 0 <= gap.high and abs(gap.value) < 0.001
