"""Notebook 05's exercises: their stubs and wrong answers, and right ones written otherwise."""

import numpy as np

from recnb.exercises.nb05 import EXERCISES


def stub_grounded(said, names):
    """Places of all names, nearest to what was said first."""
    ...


def stub_bent(distance, weight, gamma):
    """Distances scaled to [0, 1], divided by (1 + weight) to the power gamma."""
    ...


def stub_chosen(valid, test):
    """The strength that validation prefers, and what it is worth on the test."""
    ...


STUBS = {"grounded": stub_grounded, "bent": stub_bent, "chosen": stub_chosen}


def scaled(distance):
    return (distance - distance.min()) / np.ptp(distance)


def in_place(distance, weight, gamma):
    distance -= distance.min()
    return distance / distance.max() * (1 + weight) ** -gamma


WRONG = [
    ("grounded", lambda said, names: np.argsort(-np.linalg.norm(names - said, axis=1)), "sort upwards"),
    ("grounded", lambda said, names: np.argsort(-names @ said), "inner products"),
    ("grounded", lambda said, names: np.argsort(-(names @ said) / np.linalg.norm(names, axis=1)), "angles"),
    ("grounded", lambda said, names: np.argmin(np.linalg.norm(names - said, axis=1)), "every name must be ranked"),
    ("grounded", lambda said, names: np.argsort(np.argsort(np.linalg.norm(names - said, axis=1))), "names in order"),
    ("bent", lambda d, w, g: scaled(d) * (1 + w) ** g, "power must be negative"),
    ("bent", lambda d, w, g: d * (1 + w) ** -g, "not scaled"),
    ("bent", lambda d, w, g: (d - d.min()) / d.max() * (1 + w) ** -g, "divide by the range"),
    ("bent", in_place, "work on a copy"),
    ("chosen", lambda valid, test: (float(test.idxmax()), float(test.max())), "nobody could have known"),
    ("chosen", lambda valid, test: (float(valid.idxmax()), float(valid.max())), "no measurement"),
    ("chosen", lambda valid, test: (valid.argmax(), test.iloc[valid.argmax()]), "not its place"),
    ("chosen", lambda valid, test: valid.idxmax(), "return two things"),
]


def test_right_answers_written_otherwise_pass():
    def by_squares(said, names):
        return np.array(sorted(range(len(names)), key=lambda row: ((names[row] - said) ** 2).sum()))

    def by_logarithms(distance, weight, gamma):
        return scaled(distance) / np.exp(gamma * np.log1p(weight))

    def by_loop(valid, test):
        best = max(valid.index, key=lambda gamma: valid[gamma])
        return best, test[best]

    assert EXERCISES["grounded"].check(by_squares) is None
    assert EXERCISES["bent"].check(by_logarithms) is None
    assert EXERCISES["chosen"].check(by_loop) is None
