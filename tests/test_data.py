import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recnb import data, datasets, floors, metrics
from recnb.datasets import DataError

HEADER = "user,item,rating,timestamp,title\n"


def tidy(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "interactions.csv").write_text(text)
    return str(folder)


def test_movielens_is_whole(movielens):
    assert (movielens.n_users, movielens.n_items, len(movielens.events)) == (943, 1682, 100_000)
    assert movielens.titles([0, 11]) == ["Toy Story", "The Usual Suspects"]


def test_user_windows_are_the_published_ones():
    split = data.user_windows(datasets.load("ml-100k", tie_seed=None))
    assert [len(split.train), len(split.valid), len(split.test)] == [754, 94, 95]
    assert sum(map(len, split.train)) == 68_389
    rows = data.prefixes(split.train, np.arange(754), min_history=3, window=10)
    assert len(rows) == 66_127
    seen = np.unique(np.concatenate(split.train))
    assert split.n_items - len(seen) == 157
    assert (~np.isin(split.test.target, seen)).sum() == 2
    assert sorted(min(10, len(h)) for h in split.valid.history)[:3] == [9, 9, 10]


def test_leave_one_out_keeps_the_future_out(movielens, loo):
    for user in (0, 400, 942):
        sequence = movielens.sequences()[user]
        assert loo.test.target[user] == sequence[-1]
        assert loo.valid.target[user] == sequence[-2]
        assert np.array_equal(loo.test.history[user], sequence[:-1])
        assert np.array_equal(loo.train[user], sequence[:-2])


def test_held_out_users_share_nobody(movielens):
    split = data.held_out_users(movielens, seed=1)
    assert not set(split.valid.user) & set(split.test.user)
    assert len(split.train) == 754
    assert min(map(len, split.test.history)) == 5


def test_ties_are_ordered_by_the_seed_and_only_ties(movielens):
    again, other = datasets.load("ml-100k"), datasets.load("ml-100k", tie_seed=1)
    assert again.digest == movielens.digest != other.digest
    assert np.array_equal(again.events["timestamp"], other.events["timestamp"])
    tied = movielens.events.duplicated(["user", "timestamp"], keep=False)
    assert tied.mean() == pytest.approx(0.758, abs=0.001)


@pytest.mark.parametrize(
    ("floor", "published"), [("Popularity", 0.038), ("Markov-1", 0.074), ("Window-Markov", 0.114), ("ItemKNN", 0.084)]
)
def test_floors_lie_where_an_independent_count_found_them(floor, published):
    got = []
    for seed in range(3):
        split = data.leave_one_out(datasets.load("ml-100k", tie_seed=seed))
        placed = metrics.ranks(floors.FLOORS[floor](split, split.test), split.test.target, split.test.history)
        got.append(placed.ndcg(10).mean())
    assert np.mean(got) == pytest.approx(published, abs=0.01)


def test_window_markov_equals_its_formula_in_plain_loops(loo):
    cases = loo.test.take(np.array([3, 500]))
    got = floors.window_markov(loo, cases)
    counts = loo.popularity()
    follows = np.zeros((loo.n_items, loo.n_items))
    for sequence in loo.train:
        for i, source in enumerate(sequence):
            for step, after in enumerate(sequence[i + 1 : i + 11], start=1):
                follows[source, after] += 1 / step
    for row, history in enumerate(cases.history):
        expected = np.zeros(loo.n_items)
        for age, item in enumerate(history[::-1][:10], start=1):
            expected += follows[item] / age / (counts[item] + 10)
        assert np.allclose(got[row], expected, rtol=1e-4)


@settings(max_examples=50, deadline=None)
@given(st.integers(31, 200), st.integers(0, 2**31), st.integers(0, 30))
def test_candidates_hold_the_target_once_and_nothing_recent(n_items, seed, length):
    rng = np.random.default_rng(seed)
    history = rng.integers(0, n_items, length)
    target = int(rng.integers(n_items))
    cases = data.Cases(np.zeros(1, int), [history], np.array([target]))
    row = data.draw_candidates(cases, n_items, seed=seed)[0]
    assert len(set(row)) == 20 and (row == target).sum() == 1
    assert not (set(row) - {target}) & set(history[-10:])


def test_the_targets_place_among_candidates_is_uniform(movielens):
    split = data.held_out_users(movielens)
    table = data.draw_candidates(split.test, split.n_items)
    places = (table == split.test.target[:, None]).sum(0)
    assert abs(places / len(table) - 0.05).max() < 0.01


def test_candidates_are_drawn_once(movielens, loo):
    first = data.candidates(movielens, loo)
    assert np.array_equal(first, data.candidates(movielens, loo))
    assert not np.array_equal(first, data.candidates(movielens, loo, seed=1))
    with pytest.raises(ValueError, match="catalogue of at least 30"):
        data.draw_candidates(loo.test, 25)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.integers(0, 12))
def test_prefixes_never_show_the_target(sequence, least):
    sequence = np.array(sequence)
    rows = data.prefixes([sequence], np.array([7]), least, window=5)
    assert len(rows) == max(0, len(sequence) - least)
    for step, (history, target) in enumerate(zip(rows.history, rows.target, strict=True), least):
        assert target == sequence[step]
        assert np.array_equal(history, sequence[max(0, step - 5) : step])


def test_own_folder_is_read_in_the_tidy_format(tmp_path, monkeypatch):
    rows = "ann,b1,4,20,The Sea\nann,b2,5,10,Night & Day\nbob,b1,1,5,The Sea\n"
    name = tidy(tmp_path / "mine", HEADER + rows)
    own = datasets.load(name)
    assert own.known == set() and datasets.load().known == {"year", "genres", "clock"}
    assert own.titles(own.sequences()[0]) == ["Night & Day", "The Sea"]
    monkeypatch.setenv("RECNB_DATA", name)
    assert datasets.load("own").digest == own.digest
    monkeypatch.delenv("RECNB_DATA")
    with pytest.raises(DataError, match="RECNB_DATA names, and it names none"):
        datasets.load("own")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user,item\na,b\n", "line 1: no column 'timestamp'"),
        (HEADER + "a,b,3,yesterday,T\n", "line 2: timestamp is 'yesterday', expected a number"),
        (HEADER + "a,b,3,1,T\na,c,3,inf,T\n", "line 3: timestamp is 'inf', expected a finite"),
        (HEADER + "a,b,3,1,T\na,,3,2,T\n", "line 3: item is empty"),
        (HEADER + 'a,b,3,1,"two\nlines"\na,c,3\n', "line 4: 3 fields, the header has 5"),
        (HEADER, "no rows below the header"),
    ],
)
def test_a_bad_line_is_named(tmp_path, text, message):
    with pytest.raises(DataError, match="interactions.csv") as error:
        datasets.load(tidy(tmp_path / "mine", text))
    assert message in str(error.value)


def test_an_unknown_dataset_gets_the_nearest_name():
    with pytest.raises(DataError, match="did you mean 'ml-100k'"):
        datasets.load("ml100k")


def test_a_user_with_two_events_is_named(tmp_path):
    own = datasets.load(tidy(tmp_path / "mine", HEADER + "a,b,3,1,T\na,c,3,2,U\n"))
    with pytest.raises(DataError, match="user 0 has 2"):
        data.leave_one_out(own)


@pytest.mark.parametrize(
    ("name", "users", "items", "test"), [("lastfm-llara", 1220, 4606, 122), ("zhihu-dreamrec", 11714, 4838, 7911)]
)
def test_public_sets_at_hand_have_their_published_size(public_data, name, users, items, test):
    own = datasets.load(name)
    assert (own.n_users, own.n_items) == (users, items)
    assert len(data.published(own).test) == test


def test_retailrocket_has_two_rewards(public_data):
    own = datasets.load("retailrocket-dros")
    assert sorted(own.events["rating"].unique()) == [0.2, 1.0]


def test_retailrocket_is_read_as_published(tmp_path, monkeypatch):
    """No purchases; visitors, then items, with more than two events; a cart is worth 1; milliseconds become seconds."""
    folder = tmp_path / "retailrocket"
    folder.mkdir()
    lines = ["timestamp,visitorid,event,itemid,transactionid", "9000,7,transaction,1,55", "1,8,view,1,"]
    lines += [f"{1000 * t},7,{'addtocart' if t == 3 else 'view'},1," for t in (3, 1, 2)]
    lines += ["4000,7,view,2,"]
    (folder / "events.csv").write_text("\n".join(lines))
    monkeypatch.setenv("RECNB_DATA", str(tmp_path))
    events = datasets.load("retailrocket").events
    assert events[["timestamp", "rating"]].to_numpy().tolist() == [[1, 0.2], [2, 0.2], [3, 1.0]]
    (folder / "events.csv").write_text("timestamp,visitorid\n")
    with pytest.raises(DataError, match="line 1: no column 'event'"):
        datasets.load("retailrocket")


def test_rc15_is_read_as_published(tmp_path, monkeypatch):
    """Sessions of more than two clicks, with their purchases at 1, in order of time."""
    folder = tmp_path / "rc15"
    folder.mkdir()
    clicks = [f"5,2014-04-07T10:5{m}:09.277Z,{item},0" for m, item in ((1, 11), (3, 12), (5, 11))]
    (folder / "yoochoose-clicks.dat").write_text("\n".join([*clicks, "6,2014-04-07T10:51:09.277Z,11,0"]))
    monkeypatch.setenv("RECNB_DATA", str(tmp_path))
    with pytest.raises(DataError, match="yoochoose-buys.dat: no such file"):
        datasets.load("rc15")
    buys = ["5,2014-04-07T10:54:00.000Z,12,12462,1", "6,2014-04-07T10:59:00.000Z,11,12462,1"]
    (folder / "yoochoose-buys.dat").write_text("\n".join(buys))
    own = datasets.load("rc15")
    assert own.items["raw"].tolist() == [11, 12]
    assert own.events[["item", "rating"]].to_numpy().tolist() == [[0, 0.2], [1, 0.2], [1, 1.0], [0, 0.2]]
    assert own.events["timestamp"].iloc[1] - own.events["timestamp"].iloc[0] == pytest.approx(120)


@pytest.fixture
def public_data(monkeypatch):
    from pathlib import Path

    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "lastfm-llara").is_dir():
        pytest.skip("the public data sets are not part of the project; none found beside the checkout")
    monkeypatch.setenv("RECNB_DATA", str(folder))
