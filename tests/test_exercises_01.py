"""Notebook 01's exercises: their stubs and wrong answers, and what else must hold of them."""

import numpy as np

from recnb.exercises.nb01 import EXERCISES
from recnb.lessons import exercise


def stub_leave_one_out(sequence):
    """Return (training items, validation target, test target)."""
    ...


def stub_hit_rate(places, k):
    """Share of cases whose target stands among the first k."""
    ...


def stub_draw_candidates(history, target, n_items, rng):
    """19 different other items and the target, in random order."""
    ...


STUBS = {"leave_one_out": stub_leave_one_out, "hit_rate": stub_hit_rate, "draw_candidates": stub_draw_candidates}


def rest(history, target, n_items, bar_target=True, bar_history=True):
    barred = ([target] if bar_target else []) + (list(history) if bar_history else [])
    return np.setdiff1d(np.arange(n_items), barred)


def target_last(history, target, n_items, rng):
    return np.append(rng.choice(rest(history, target, n_items), 19, replace=False), target)


def target_twice(history, target, n_items, rng):
    negatives = rng.choice(rest(history, target, n_items, bar_target=False), 19, replace=False)
    return rng.permutation(np.append(negatives, target))


def history_among(history, target, n_items, rng):
    negatives = rng.choice(rest(history, target, n_items, bar_history=False), 19, replace=False)
    return rng.permutation(np.append(negatives, target))


def with_replacement(history, target, n_items, rng):
    return rng.permutation(np.append(rng.choice(rest(history, target, n_items), 19), target))


def no_target(history, target, n_items, rng):
    return rng.choice(rest(history, target, n_items), 20, replace=False)


def never_the_last_items(history, target, n_items, rng):
    negatives = rng.choice(rest(history, target, n_items - 4), 19, replace=False)
    return rng.permutation(np.append(negatives, target))


def first_half_only(history, target, n_items, rng):
    row = np.append(rng.choice(rest(history, target, n_items), 19, replace=False), target)
    place = rng.integers(10)
    row[[place, 19]] = row[[19, place]]
    return row


def one_seed(history, target, n_items, rng):
    return EXERCISES["draw_candidates"].solution(history, target, n_items, np.random.default_rng(0))


def sort_in_place(sequence):
    sequence.sort()
    return sequence[:-2], int(sequence[-2]), int(sequence[-1])


WRONG = [
    ("leave_one_out", lambda s: (s, int(s[-2]), int(s[-1])), "still inside the training items"),
    ("leave_one_out", lambda s: (s[:-1], int(s[-2]), int(s[-1])), "still inside the training"),
    ("leave_one_out", lambda s: (s[:-2], int(s[-1]), int(s[-2])), "swapped"),
    ("leave_one_out", lambda s: (s[:-2][::-1], int(s[-2]), int(s[-1])), "reversed order"),
    ("leave_one_out", lambda s: (s[2:], int(s[1]), int(s[0])), "latest event of all"),
    ("leave_one_out", lambda s: (s[:-3], int(s[-3]), int(s[-1])), "validation item is lost"),
    ("leave_one_out", lambda s: (s[:-3], int(s[-2]), int(s[-1])), "some were lost"),
    ("leave_one_out", lambda s: (s[:-3], int(s[-3]), int(s[-2])), "latest event of all"),
    ("leave_one_out", lambda s: (s[:-1], int(s[-1])), "three values"),
    ("leave_one_out", lambda s: (s[:-2], s[-2:-1], s[-1:]), "one item, not a list"),
    ("leave_one_out", sort_in_place, "changed the sequence"),
    ("hit_rate", lambda places, k: np.mean(places <= k), "not <= k"),
    ("hit_rate", lambda places, k: np.sum(places < k) / k, "divides by k"),
    ("hit_rate", lambda places, k: np.sum(places < k), "number of hits"),
    ("hit_rate", lambda places, k: np.mean(places < k) / k, "precision"),
    ("hit_rate", lambda places, k: np.mean(places >= k), "misses"),
    ("hit_rate", lambda places, k: places < k, "one number"),
    ("draw_candidates", target_last, "always at place 19"),
    ("draw_candidates", target_twice, "stands there 2 times"),
    ("draw_candidates", history_among, "of the history is among"),
    ("draw_candidates", with_replacement, "occurs twice"),
    ("draw_candidates", no_target, "nobody could answer"),
    ("draw_candidates", never_the_last_items, "not every item can be drawn"),
    ("draw_candidates", first_half_only, "far more often than others"),
    ("draw_candidates", lambda h, t, n, rng: np.append(h, t), "expected 20 item ids"),
]


def test_one_fixed_seed_is_no_draw():
    """A seed set inside the answer gives the same negatives each time."""
    assert EXERCISES["draw_candidates"].check(one_seed) is not None


def test_a_raising_answer_is_a_message(capsys):
    assert exercise("01.hit_rate", lambda places: 1.0) is EXERCISES["hit_rate"].solution
    assert "it raised TypeError" in capsys.readouterr().out


def test_right_answers_written_otherwise_pass():
    def by_loop(places, k):
        return sum(place < k for place in places) / len(places)

    def by_sampling(history, target, n_items, rng):
        pool = [item for item in range(n_items) if item != target and item not in history]
        row = rng.permutation(pool)[:19].tolist() + [target]
        rng.shuffle(row)
        return np.array(row)

    def by_list(sequence):
        *train, valid, test = list(sequence)
        return train, valid, test

    assert EXERCISES["hit_rate"].check(by_loop) is None
    assert EXERCISES["draw_candidates"].check(by_sampling) is None
    assert EXERCISES["leave_one_out"].check(by_list) is None
