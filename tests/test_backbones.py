import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from recnb import backbones, data, recommenders
from recnb.backbones import NAMES, BackboneConfig
from recnb.recommenders import Recipe
from recnb.training import TrainConfig, seed_all


def model(name, **changes):
    torch.manual_seed(0)
    return backbones.build(50, BackboneConfig(name, **changes)).eval()


@pytest.fixture(params=NAMES)
def backbone(request):
    return model(request.param)


def test_interface(backbone):
    history = torch.randint(50, (3, 12))
    assert backbone.item_embeddings.shape == (50, 64)
    assert backbone.states(history).shape == (3, 12, 64)
    assert backbone.hidden(history).shape == (3, 64)
    assert backbone.scores(history).shape == (3, 50)


def test_no_state_sees_the_future(backbone):
    history = torch.randint(50, (2, 20))
    changed = history.clone()
    changed[:, 11:] = (changed[:, 11:] + 7) % 50
    before, after = backbone.states(history), backbone.states(changed)
    assert torch.allclose(before[:, :11], after[:, :11], atol=1e-5)
    assert not torch.allclose(before[:, 11], after[:, 11], atol=1e-3)


def test_padding_and_batch_mates_change_nothing(backbone):
    history = torch.randint(50, (1, 9))
    padded = torch.full((3, 17), 50)
    padded[0, :9] = history
    padded[1:] = torch.randint(50, (2, 17))
    assert torch.allclose(backbone.scores(history), backbone.scores(padded)[:1], atol=1e-5)


def test_an_empty_history_is_answered(backbone):
    assert torch.isfinite(backbone.scores(torch.full((2, 1), 50))).all()


@pytest.mark.parametrize("tied", [True, False])
def test_loss_is_the_cross_entropy_of_each_prefix_alone(backbone, tied):
    backbone = model(backbone.config.name, tied=tied, bias=True)
    sequences = [np.arange(3, 10), np.array([7, 7, 1])]
    items, _ = data.pad_right(sequences, 7, 50)
    each = []
    for sequence in sequences:
        for step in range(1, len(sequence)):
            scores = backbone.scores(torch.tensor(sequence[None, :step]))
            each.append(F.cross_entropy(scores, torch.tensor(sequence[step : step + 1])))
    packed = backbone(torch.from_numpy(items))
    assert packed.item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-4)


def test_sampled_loss_never_draws_the_target():
    tiny = backbones.build(2, BackboneConfig("GRU4Rec", dropout=0)).eval()
    sequence = torch.tensor([[0, 1, 1, 0, 1, 0, 0, 1]])
    scores = tiny.score(tiny.states(sequence[:, :-1]))[0]
    rows, target = torch.arange(7), sequence[0, 1:]
    expected = F.softplus(-scores[rows, target]) + F.softplus(scores[rows, 1 - target])
    assert tiny(sequence, loss="bce").item() == pytest.approx(expected.mean().item(), rel=1e-5)


def test_packed_caser_equals_caser_window_by_window():
    caser = model("Caser", window=6)
    history = torch.randint(50, (1, 15))
    packed = caser.states(history)[0]
    for step in range(15):
        window = torch.full((6,), 50)
        recent = history[0, max(0, step - 5) : step + 1]
        window[-len(recent) :] = recent
        image = caser.embed(window)  # (L, d), the paper's picture of one window
        parts = [F.relu(F.conv1d(image.T[None], filters.weight, filters.bias)).amax(-1)[0] for filters in caser.across]
        sums = torch.einsum("ld,vl->dv", image, caser.down.weight[:, 0]) + caser.down.bias
        alone = F.relu(caser.merge(torch.cat([*parts, sums.flatten()])))
        assert torch.allclose(packed[step], alone, atol=1e-5)


def test_attention_maps_are_those_that_the_model_uses():
    sasrec = model("SASRec", layers=1, heads=2)
    history = torch.randint(50, (2, 8))
    maps = sasrec.attention(history)
    assert maps.shape == (1, 2, 2, 8, 8)
    assert torch.allclose(maps.sum(-1), torch.ones(1, 2, 2, 8))
    block = sasrec.blocks[0]
    x = sasrec.embed(history) + sasrec.positions(torch.arange(8))
    mixed = maps[0] @ block.project(block.norm1(x))[2]
    x = x + block.merge(mixed.transpose(1, 2).flatten(2))
    x = x + block.narrow(F.gelu(block.widen(block.norm2(x))))
    assert torch.allclose(sasrec.norm(x), sasrec.states(history), atol=1e-5)


def test_wrong_names_and_lengths_are_refused():
    with pytest.raises(ValueError, match="SASrec.*allowed: SASRec, GRU4Rec"):
        model("SASrec")
    with pytest.raises(ValueError, match="history of 51; max_length is 50"):
        model("SASRec").states(torch.zeros(1, 51, dtype=torch.long))
    with pytest.raises(ValueError, match="loss is 'mse'; allowed: ce, bce"):
        model("SASRec")(torch.zeros(1, 5, dtype=torch.long), loss="mse")


@pytest.mark.parametrize("name", NAMES)
def test_fifty_users_can_be_memorised(loo, name):
    """A model that cannot overfit 50 users has a bug; all of a user's steps, but the first, are asked."""
    sequences = [np.unique(sequence, return_index=True) for sequence in loo.train[:50]]
    sequences = [row[np.sort(first)][:12] for row, (_, first) in zip(loo.train, sequences, strict=False)]
    items, _ = data.pad_right(sequences, 12, loo.n_items)
    batch = torch.from_numpy(items)
    network = backbones.build(loo.n_items, BackboneConfig(name, layers=1, dropout=0.0))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        network(batch).backward()
        optimizer.step()
    network.eval()
    known = torch.tensor([len(row) for row in sequences])
    whole = known == 12
    guess = network.scores(batch[whole, :-1]).argmax(-1)
    assert (guess == batch[whole, -1]).float().mean() > 0.95


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(2, 12), st.integers(0, 99))
def test_pieces_predict_every_step_once_and_end_on_a_full_window(count, length, seed):
    cut = recommenders.pieces([np.arange(count)], length, np.random.default_rng(seed))
    assert max((len(items) for items, _ in cut), default=0) <= length + 1
    assert [int(item) for items, skip in cut for item in items[skip + 1 :]] == list(range(1, count))
    assert all(len(cut[-1][0]) == min(count, length + 1) for _ in cut[-1:])


def test_skipped_steps_do_not_count():
    network = model("GRU4Rec")
    sequence = torch.randint(50, (2, 9))
    counted = network(sequence, skip=torch.tensor([5, 0]))
    states = network.states(sequence[:, :-1])
    logits = torch.cat([network.score(states[0, 5:]), network.score(states[1])])
    target = torch.cat([sequence[0, 6:], sequence[1, 1:]])
    assert counted.item() == pytest.approx(F.cross_entropy(logits, target).item(), rel=1e-5)


def test_shuffled_ties_move_only_what_happened_at_once(loo):
    rng = np.random.default_rng(0)
    recipe = Recipe(BackboneConfig("GRU4Rec", max_length=1000), tokens=1)
    batches = [b["sequence"][0].numpy() for b in recommenders.sequence_batches(loo, recipe, rng)]
    by_content = {tuple(sorted(row)): row for row in batches}
    moved = 0
    for items, times in zip(loo.train, loo.times, strict=True):
        row = by_content[tuple(sorted(items))]
        stamp = dict(zip(items.tolist(), times.tolist(), strict=True))
        assert (np.diff([stamp[item] for item in row.tolist()]) >= 0).all()
        moved += not np.array_equal(row, items)
    assert moved > 900


def test_batches_depend_on_the_generator_alone(loo):
    recipe = Recipe(tokens=1024)
    first = list(recommenders.sequence_batches(loo, recipe, np.random.default_rng(3)))
    again = list(recommenders.sequence_batches(loo, recipe, np.random.default_rng(3)))
    assert all(torch.equal(a["sequence"], b["sequence"]) for a, b in zip(first, again, strict=True))
    real = sum(int((b["sequence"] != loo.n_items).sum()) for b in first)
    assert real / sum(b["sequence"].numel() for b in first) > 0.9


def test_training_is_stored_and_repeats_exactly(movielens, loo):
    loo = data.first_users(loo, 60)
    recipe = Recipe(BackboneConfig("Caser"), TrainConfig(epochs=1, lr=3e-3), tokens=4096)
    told = []
    first = recommenders.trained(movielens, loo, recipe, told.append)
    again = recommenders.trained(movielens, loo, recipe, told.append)
    fresh, _ = recommenders.train(loo, recipe)
    assert len(told) == 1, "the second call must come from the store"
    scores = [recommenders.score(m, loo.test) for m in (first.model, again.model, fresh)]
    assert np.array_equal(scores[0], scores[1]) and np.array_equal(scores[0], scores[2])


def test_two_processes_train_what_one_trains(movielens, loo):
    loo = data.first_users(loo, 60)
    recipes = [Recipe(BackboneConfig("Caser"), TrainConfig(epochs=1, seed=seed)) for seed in (0, 1)]
    told = [[], []]
    made = recommenders.trained_all(movielens, loo, recipes, [told[0].append, told[1].append], workers=2)
    torch.set_num_threads(1)
    alone = [recommenders.train(loo, recipe)[0] for recipe in recipes]
    for one, other in zip(made, alone, strict=True):
        assert np.array_equal(recommenders.score(one.model, loo.test), recommenders.score(other, loo.test))
    assert [len(line) for line in told] == [1, 1]


def test_two_numbers_seed_everything():
    assert seed_all(1, 2).integers(1000) == seed_all(1, 2).integers(1000)
    first = torch.rand(1)
    seed_all(1, 3)
    assert torch.rand(1) != first
