"""Offline agents: targets, losses and steps by hand, learning on real users, and judges that cannot be fooled."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch

from recnb import mcrl, mcrl_study, training
from recnb import mcrl_evaluation as judge
from recnb import mcrl_results as archive
from recnb import mcrl_training as learning
from recnb.backbones import NAMES, BackboneConfig
from recnb.mcrl import Mcrl, McrlConfig
from recnb.mcrl_simulators import FAMILIES, Averages, Ensemble, auc, episodes, quality
from recnb.training import TrainConfig

SMALL = BackboneConfig(dim=32, layers=1, dropout=0.0, max_length=20)


@pytest.fixture(scope="module")
def parts(movielens):
    return learning.logs(movielens)


@pytest.fixture(scope="module")
def few(parts):
    """The first 20 items of twelve users."""
    log = parts["policy"].take(np.arange(12))
    cut = {name: [some[:20] for some in getattr(log, name)] for name in ("items", "ratings", "rewards", "times")}
    return replace(log, **cut)


def batch(log, seed=0):
    return next(iter(learning.batches(log, learning.Plan(McrlConfig(SMALL)))(0, np.random.default_rng(seed))))


def agent(log, seed=0, **terms):
    training.seed_all(seed)
    return Mcrl(log.n_items, McrlConfig(**{"backbone": SMALL} | terms))


def test_the_double_q_target_is_that_of_the_paper():
    values = torch.tensor([[1.0, 5.0, 2.0], [4.0, 0.0, 1.0]])
    other = torch.tensor([[10.0, 20.0, 30.0], [40.0, 50.0, 60.0]])
    target = mcrl.double_q_target(torch.tensor([1.0, 0.2]), torch.tensor([0.0, 1.0]), values, other, 0.5)
    assert target.tolist() == pytest.approx([1 + 0.5 * 20, 0.2])  # the last step of a history has no future


def test_the_conservative_term_is_bounded_and_only_moves_values_against_each_other():
    values = torch.randn(6, 9, requires_grad=True)
    action = torch.arange(6)
    loss = mcrl.conservative_loss(values, action, 0.5)
    loss.backward()
    assert loss > 0
    assert values.grad.sum(1).abs().max() < 1e-6
    assert (values.grad.gather(1, action[:, None]) < 0).all()  # what was logged rises
    even = mcrl.conservative_loss(torch.zeros(6, 9), action, 0.5)
    assert float(even) == pytest.approx(0.5 * np.log(9))


def test_the_reward_loss_wants_what_was_liked_above_what_was_not():
    reward, other = torch.tensor([1.0, 0.2]), torch.full((2, 4), -2.0)
    right = mcrl.reward_loss(torch.tensor([1.0, 0.2]), other, reward, 0.2)
    wrong = mcrl.reward_loss(torch.tensor([0.2, 1.0]), other, reward, 0.2)
    exposed = mcrl.reward_loss(torch.tensor([1.0, 1.0]), other, reward, 0.2)  # knows only what was chosen
    assert right < exposed < wrong
    assert float(exposed - right) == pytest.approx(0.8, abs=1e-3)


def test_the_transition_loss_wants_the_state_that_came_and_leaves_that_state_alone():
    after = torch.eye(4, requires_grad=True)
    instead = torch.zeros(4, 3, 4)
    good = mcrl.transition_loss(after.detach().clone().requires_grad_(), instead, after, 0.2)
    bad = mcrl.transition_loss(after.detach().roll(1, 0).requires_grad_(), instead, after, 0.2)
    good.backward()
    assert good < 0.1 < bad
    assert after.grad is None
    same = torch.eye(4)[:, None].repeat(1, 3, 1)  # what was not chosen leads to the same state
    assert mcrl.transition_loss(torch.eye(4), same, torch.eye(4), 0.2) > good + 1


def test_steps_hold_what_was_chosen_and_what_followed(few):
    model, given = agent(few), batch(few)
    sequence, skip = given["sequence"], given["skip"]
    real = model._real(sequence, skip)
    steps = model._steps(model.critics[0], sequence, given["reward"], given["ends"], given["known"], real)
    states = model.critics[0].backbone.states(sequence)
    row = int(real.sum(1).argmax())
    before = int(real[:row].sum())
    place = int(skip[row])
    assert int(steps.action[before]) == int(sequence[row, place + 1])
    assert float(steps.reward[before]) == pytest.approx(float(given["reward"][row, place + 1]))
    assert torch.equal(steps.state[before], states[row, place])
    assert torch.equal(steps.after[before], states[row, place + 1])
    owner = torch.arange(len(sequence))[:, None].expand_as(real)[real]
    assert not given["known"][owner[:, None], steps.other].any()  # never an item that the user has
    assert int(steps.done.sum()) == int(given["ends"].sum())


def test_every_step_of_every_user_is_dealt_once_and_ends_once(parts):
    plan = learning.Plan(McrlConfig(SMALL))
    log, dealt, ended = parts["valid"], [], 0
    for given in learning.batches(log, plan)(0, np.random.default_rng(0)):
        assert given["sequence"].shape[1] <= SMALL.max_length
        place = torch.arange(given["sequence"].shape[1] - 1)
        real = (given["sequence"][:, 1:] != log.n_items) & (place >= given["skip"][:, None])
        dealt.append(given["sequence"][:, 1:][real])
        ended += int(given["ends"].sum())
    assert len(torch.cat(dealt)) == sum(len(items) - 1 for items in log.items)
    assert ended == len(log.items)


def test_rewards_stay_with_their_items(parts):
    log = parts["valid"]
    one = log.take(np.array([3]))
    expected = dict(zip(one.items[0].tolist(), one.rewards[0], strict=True))
    for given in learning.batches(one, learning.Plan(McrlConfig(SMALL)))(0, np.random.default_rng(0)):
        for item, reward in zip(given["sequence"].flatten().tolist(), given["reward"].flatten().tolist(), strict=True):
            assert item == log.n_items or reward == pytest.approx(expected[item])
    assert set(expected.values()) == {0.2, 1.0}


@pytest.mark.parametrize("method", mcrl_study.METHODS)
def test_every_method_learns_a_batch_by_heart(few, method):
    how = mcrl_study.plan(method).model
    model = agent(few, **vars(how) | {"backbone": SMALL, "warm": 20})
    optimizer, told, given = torch.optim.AdamW(model.parameters(), 5e-3), [{}, {}], batch(few)
    model(**given, told=told[0])
    for _ in range(60):
        model(**given).backward()
        optimizer.step()
        optimizer.zero_grad()
    model(**given, told=told[1])
    expected = {"cross-entropy"} | {
        name
        for name, weight in {
            "temporal difference": how.td, "not chosen": how.unchosen, "conservative": how.conservative * how.td,
            "reward model": how.reward, "transition model": how.transition, "dummy": how.dummy,
        }.items() if weight
    }  # fmt: skip
    assert set(told[1]) == expected
    scores = learning.heads(model.critics[0], [items[:-1] for items in few.items])["scores"]
    assert np.isfinite(scores).all()
    if how.actor == "plain":
        assert told[1]["cross-entropy"] < 0.8 * told[0]["cross-entropy"]


def test_only_one_critic_learns_from_a_batch_and_the_target_gives_no_gradient(few):
    model, given = agent(few, td=1.0, unchosen=1.0), batch(few)
    learnt = set()
    for seed in range(12):
        torch.manual_seed(seed)
        model.zero_grad()
        model(**given).backward()
        moved = [any(p.grad is not None and p.grad.abs().sum() > 0 for p in c.parameters()) for c in model.critics]
        assert sum(moved) == 1
        learnt.add(moved.index(True))
    assert learnt == {0, 1}


@pytest.fixture(scope="module")
def believed(few):
    """Q of logged steps and of favourites, where every state is known by heart; by discount and conservatism."""
    log, found = replace(few, times=[np.arange(20.0)] * 12), {}
    for gamma, weight in ((0.0, 0.0), (0.5, 0.0), (0.5, 0.5)):
        config = McrlConfig(SMALL, td=1.0, gamma=gamma, conservative=weight)
        plan = learning.Plan(config, TrainConfig(300, lr=5e-3, patience=0))
        model = agent(few, **vars(config))
        training.fit(model, learning.batches(log, plan), plan.train)
        found[gamma, weight] = judge.overestimation(mcrl_study.head(model.critics[0], "values"), log, gamma)
    return found


def test_without_a_future_values_come_to_the_rewards(believed):
    table = believed[0.0, 0.0]
    assert np.corrcoef(table["taken"], table["returned"])[0, 1] > 0.98


def test_conservative_values_come_to_the_returns_and_others_overestimate(believed):
    """No return can exceed 1 / (1 - 0.5); favourites that nobody ever logged are believed to be worth more."""
    plain, careful = believed[0.5, 0.0], believed[0.5, 0.5]
    assert np.corrcoef(careful["taken"], careful["returned"])[0, 1] > 0.8
    assert abs((careful["taken"] - careful["returned"]).mean()) < 0.2
    assert plain["best"].mean() > 2 > careful["best"].mean() + 0.5


def test_an_actor_weight_counts_only_after_the_warm_start(few):
    model, given = agent(few, td=1.0, actor="advantage", warm=3), batch(few)
    main = model.critics[0]
    real = model._real(given["sequence"], given["skip"])
    steps = model._steps(main, given["sequence"], given["reward"], given["ends"], given["known"], real)
    values = main.values(steps.state)
    assert (model._actor(values, steps) == 1).all()
    model.steps_done += 3
    weight = model._actor(values, steps)
    others = torch.stack([values[0, item] for item in steps.other[0]])
    mine = values[0, steps.action[0]]
    wanted = (mine - (mine + others.sum()) / 11).clamp(0, 10)
    assert float(weight[0].detach()) == pytest.approx(float(wanted.detach()), abs=1e-5)
    assert float(weight.detach().min()) >= 0


@pytest.mark.parametrize("name", NAMES)
def test_every_backbone_carries_an_agent(few, name):
    model = Mcrl(few.n_items, McrlConfig(replace(SMALL, name=name), td=1.0, reward=0.5, transition=0.5))
    assert torch.isfinite(model(**batch(few)))
    both = learning.heads(model.critics[0], few.cases().history[:3])
    assert both["scores"].shape == both["values"].shape == (3, few.n_items)


@pytest.mark.parametrize("wrong", [{"gamma": 1.0}, {"gamma": -0.1}, {"actor": "critic"}])
def test_a_wrong_discount_or_actor_is_refused(wrong):
    with pytest.raises(ValueError, match="gamma"):
        McrlConfig(**wrong)


def test_the_four_groups_of_users_share_nobody(movielens, parts):
    users = [set(log.user.tolist()) for log in parts.values()]
    assert sum(map(len, users)) == len(set.union(*users)) == movielens.n_users
    assert [len(some) for some in users] == [566, 188, 95, 94]
    cases = parts["test"].cases()
    assert len(cases) == len(parts["test"].column(parts["test"].rewards))
    assert min(map(len, cases.history)) == learning.MIN_HISTORY
    with pytest.raises(ValueError, match="allowed: tier"):
        learning.logs(movielens, "stars")


def test_rewards_follow_their_definitions(movielens):
    found = {kind: learning.logs(movielens, kind)["test"] for kind in learning.REWARDS}
    ratings = np.concatenate(found["tier"].ratings)
    assert set(np.concatenate(found["tier"].rewards)[ratings >= 4]) == {1.0}
    assert set(np.concatenate(found["top"].rewards)[ratings == 4]) == {0.2}
    assert np.allclose(np.concatenate(found["centred"].rewards), (ratings - 3) / 2)
    user = found["debiased"]
    moved = learning.REWARDS["debiased"]([np.append(user.ratings[0], 1.0), *user.ratings[1:]])
    same = learning.REWARDS["debiased"]([np.append(user.ratings[0], 5.0), *user.ratings[1:]])
    scale = (moved[0][0] / same[0][0], moved[0][5] / same[0][5])
    assert scale[0] == pytest.approx(scale[1], rel=0.02)  # what comes later changes the scale alone


def test_shuffled_rewards_are_the_same_rewards_elsewhere(parts):
    log, dealt = parts["policy"], learning.shuffled(parts["policy"])
    assert [len(some) for some in dealt.rewards] == [len(some) for some in log.items]
    before, after = np.concatenate(log.rewards), np.concatenate(dealt.rewards)
    assert np.array_equal(np.sort(before), np.sort(after))
    assert abs(np.corrcoef(before, after)[0, 1]) < 0.02


def test_returns_are_discounted_to_the_end():
    assert judge.returns(np.array([1.0, 0.2, 1.0]), 0.5).tolist() == pytest.approx([1.35, 0.7, 1.0])


def test_a_replay_with_the_true_ratings_is_the_oracle_and_none_beats_it(parts):
    held = judge.pool(parts["test"])
    truth = np.zeros((len(held.user), parts["test"].n_items))
    np.put_along_axis(truth, held.items, held.ratings, 1)
    seen = []

    def oracle(histories):
        seen.append([len(history) for history in histories])
        return truth

    order = judge.replay(oracle, held)
    best = judge.fixed_orders(held, np.zeros(parts["test"].n_items))["oracle"]
    gained = judge.earned(held, order, 0.9)
    assert np.allclose(gained["NDCG"], 1)
    assert np.allclose(gained["return"], judge.earned(held, best, 0.9)["return"])
    assert all(len(set(row)) == 10 for row in order.tolist())  # nothing is picked twice
    assert all(np.array_equal(np.array(b), np.array(a) + 1) for a, b in pairwise(seen))  # every pick joins the history
    assert all(set(h).isdisjoint(i) for h, i in zip(held.history, held.items, strict=True))
    lot = judge.by_chance(held, 0.9)
    drawn = [
        judge.earned(
            held, np.random.default_rng(seed).permuted(np.tile(np.arange(30), (len(held.user), 1)), axis=1), 0.9
        )
        for seed in range(40)
    ]
    for column in ("return", "rating@5", "NDCG"):
        assert np.mean([one[column].mean() for one in drawn]) == pytest.approx(lot[column].mean(), rel=0.02)
        assert lot[column].mean() < gained[column].mean()
    with pytest.raises(ValueError, match="smaller pool than 5000"):
        judge.pool(parts["test"], 5000)


def snips(table):
    """Sum of w r over sum of w, with users as units."""
    sums = table.assign(worth=table["weight"] * table["reward"]).groupby("user")[["worth", "weight"]].sum()
    got = judge.ratio(*sums.to_numpy().T)
    assert got.low <= got.value <= got.high
    return got.value


def test_a_policy_judged_by_its_own_log_earns_the_mean_reward(parts):
    log = parts["test"].take(np.arange(8))
    cases, reward = log.cases(), log.column(log.rewards)
    scores = np.random.default_rng(0).normal(size=(len(cases), log.n_items))
    likely = judge.probabilities(scores, cases)
    assert np.allclose(np.exp(likely).sum(1), 1)
    expected = np.full_like(scores, 0.5)
    table = judge.one_step(likely, likely, cases, reward, expected, 10)
    assert judge.effective_size(table["weight"].to_numpy()) == pytest.approx(len(cases))
    assert snips(table) == pytest.approx(reward.mean())
    assert table["robust"].mean() == pytest.approx(reward.mean())
    keen = scores.copy()
    keen[np.arange(len(cases)), cases.target] += 3 * (reward == 1)
    better = judge.one_step(judge.probabilities(keen, cases), likely, cases, reward, expected, 100)
    assert snips(better) > reward.mean() + 0.1
    assert judge.effective_size(better["weight"].to_numpy()) < len(cases)


def test_the_temperature_makes_the_log_likeliest(parts):
    log = parts["valid"].take(np.arange(5))
    cases = log.cases()
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(len(cases), log.n_items))
    scores[np.arange(len(cases)), cases.target] += 2
    sharp = judge.temperature(scores * 2, cases)
    assert sharp == pytest.approx(2 * judge.temperature(scores, cases), rel=0.3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_simulator_foretells_ratings_of_users_it_never_saw(parts, family):
    ensemble = Ensemble(family, parts["judge"], members=2)
    told = quality(ensemble, parts["valid"])
    assert told["RMSE"] < 0.9 * told["RMSE of the mean"]
    assert told["AUC"] > 0.75
    log, offered = parts["test"], np.arange(300)
    means, _ = ensemble.predict(log.items, log.ratings)
    greedy = episodes(lambda histories: means, ensemble, log, offered)
    lazy = episodes(lambda histories: -means, ensemble, log, offered)
    assert (greedy["rating"] > lazy["rating"]).all()
    assert greedy["rating"].between(1, 5).all()


def test_averages_know_who_is_generous(parts):
    means = Averages.of(parts["judge"])
    some = np.arange(20)
    assert means.user(some, means.mean + means.item[some] + 1) == pytest.approx(20 / 25)


def test_auc_is_the_share_of_pairs_in_order():
    foretold, given = np.array([0.1, 0.4, 0.35, 0.8, 0.5]), np.array([1, 1, 4, 5, 3])
    assert auc(foretold, given) == pytest.approx(0.75)


def test_two_critics_train_longer_than_one():
    one, two = mcrl_study.plan("CE"), mcrl_study.plan("SQN")
    assert two.train.epochs == 1.5 * one.train.epochs
    assert mcrl_study.plan("CE, twice as wide").model.backbone.dim == 2 * one.model.backbone.dim
    with pytest.raises(ValueError, match="unknown method 'DQN'"):
        mcrl_study.plan("DQN")


def test_the_prudent_strength_keeps_nine_tenths_of_the_gain():
    trade = pd.DataFrame({"strength": [0, 1, 2, 3], "NDCG": [0.10, 0.095, 0.092, 0.05], "return": [1.0, 1.3, 1.2, 9.0]})
    assert mcrl_study.prudent(trade) == 1


def test_stored_people_become_intervals_and_what_is_not_stored_is_named():
    rows = [
        {"method": "CE", "backbone": "SASRec", "by": "scores", "seed": seed, "user": user, "NDCG good": 0.1 * user}
        for seed in (0, 1)
        for user in range(5)
    ]
    frame = pd.DataFrame(rows)
    frame.loc[frame["user"] == 4, "NDCG good"] = np.nan  # somebody who liked nothing
    values = archive.by_seed(frame, "NDCG good", "CE")
    assert values.shape == (2, 5)
    assert archive.interval(values).value == pytest.approx(0.15)
    assert archive.gap(values, values).high == 0
    table = archive.summary(frame, {"NDCG": "NDCG good"}, [("CE", "SASRec", "scores")])
    assert table["NDCG"].iloc[0].startswith(".150")
    with pytest.raises(KeyError, match="no NDCG good stored of SQN on SASRec by scores; there are: CE, SASRec, scores"):
        archive.by_seed(frame, "NDCG good", "SQN")
