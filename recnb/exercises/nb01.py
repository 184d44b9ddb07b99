"""Exercises of notebook 01: a hit rate, one question from a sequence, and a fair candidate set."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from recnb.lessons import Exercise


def leave_one_out(sequence: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Cut one user's sequence into (training items, validation target, test target)."""
    return sequence[:-2], int(sequence[-2]), int(sequence[-1])


def check_leave_one_out(answer: Callable[[np.ndarray], tuple[np.ndarray, int, int]]) -> str | None:
    """Cut two drawn sequences and compare each of the three parts."""
    draw = np.random.default_rng(7)
    for length in (6, 3):
        sequence = draw.permutation(90)[:length] + 10
        given = sequence.copy()
        got = answer(sequence)
        if not isinstance(got, tuple) or len(got) != 3:
            return "expected three values: training items, validation target, test target"
        if not np.array_equal(sequence, given):
            return "it changed the sequence that it was given: cut a copy, or use slices"
        if np.ndim(got[1]) or np.ndim(got[2]):
            return "each target is one item, not a list of items"
        train, valid, test = np.asarray(got[0]).tolist(), int(got[1]), int(got[2])
        *before, second, last = given.tolist()
        if (train, valid, test) == (before, second, last):
            continue
        return _wrong_cut(train, (valid, test), before, second, last)
    return None


def _wrong_cut(train: list[int], targets: tuple[int, int], before: list[int], second: int, last: int) -> str:
    """Name what is wrong with a cut of ``[*before, second, last]``."""
    if targets == (last, second):
        return "the two targets are swapped: the test target is the very last item"
    if set(targets) & set(train):
        return "a target is still inside the training items: the answer stands in the book"
    if train == before[::-1] and len(before) > 1:
        return "the training items are in reversed order: oldest first"
    if targets == (second, last):
        return f"the training items are {train}, expected {before}: some were lost"
    if last not in targets:
        return f"the test target is {targets[1]}, but the latest event of all is {last}"
    if second not in targets:
        return f"the validation item is lost: it is the one just before the test target, {second}"
    return f"expected ({before}, {second}, {last}), got ({train}, {targets[0]}, {targets[1]})"


def hit_rate(places: np.ndarray, k: int) -> float:
    """Share of cases whose target stands among the first k; places count from 0."""
    return float(np.mean(np.asarray(places) < k))


def check_hit_rate(answer: Callable[[np.ndarray, int], float]) -> str | None:
    """Count hits one by one on drawn places that include the border, place k itself."""
    draw = np.random.default_rng(3)
    for count, k in ((40, 10), (25, 5)):
        places = np.concatenate([draw.integers(0, 30, count), [k, k, k - 1, 0]])
        hits = sum(1 for place in places.tolist() if place in range(k))
        got = np.asarray(answer(places, k), dtype=float)
        if got.shape != ():
            return f"expected one number, got an array of shape {got.shape}: take the mean"
        if abs(float(got) - hits / len(places)) < 1e-9:
            continue
        mistakes: dict[str, float] = {
            "places count from 0, so place k is the (k+1)-th: use < k, not <= k": float(np.mean(places <= k)),
            "it divides by k: a hit rate is a share of all cases": hits / k,
            "it is the number of hits: divide by the number of cases": hits,
            "it counts the misses": 1 - hits / len(places),
            "that is precision@k (hits / cases / k); one case has one target": (hits / len(places) / k),
        }
        for message, value in mistakes.items():
            if abs(float(got) - float(value)) < 1e-9:
                return message
        return f"for {places.tolist()} and k={k} expected {hits / len(places):.4f}, got {got:.4f}"
    return None


def draw_candidates(history: np.ndarray, target: int, n_items: int, rng: np.random.Generator) -> np.ndarray:
    """19 different items that are neither target nor history, and the target, in random order."""
    allowed = np.setdiff1d(np.arange(n_items), np.append(history, target))
    return rng.permutation(np.append(rng.choice(allowed, 19, replace=False), target))


def check_draw_candidates(answer: Callable[..., np.ndarray]) -> str | None:
    """Draw many candidate sets from a small catalogue, where every mistake soon shows."""
    rng = np.random.default_rng(11)
    history, n_items, draws = np.array([4, 17, 30, 8, 22]), 36, 1000
    count, place = np.zeros(n_items), np.zeros(20)
    for draw in range(draws):
        target = int(rng.choice(np.setdiff1d(np.arange(n_items), history)))
        row = np.asarray(answer(history.copy(), target, n_items, rng))
        if wrong := _wrong_row(row, history, target, n_items):
            return f"{wrong} (draw {draw + 1})"
        count[row] += 1
        place[row.tolist().index(target)] += 1
    if place.max() == draws:
        return f"the target is always at place {place.argmax()}: shuffle, or its place tells"
    if place.min() < 0.3 * draws / 20 or place.max() > 2 * draws / 20:
        return "some places hold the target far more often than others: shuffle all 20 together"
    free = np.setdiff1d(np.arange(n_items), history)
    if count[free].min() < 0.7 * count[free].mean():
        item = free[count[free].argmin()]
        came = int(count[item])
        return f"not every item can be drawn: item {item} came {came} times in {draws} draws"
    return None


def _wrong_row(row: np.ndarray, history: np.ndarray, target: int, n_items: int) -> str | None:
    """What is wrong with one candidate set, or None."""
    if row.shape != (20,):
        return f"expected 20 item ids, got shape {row.shape}"
    if row.min() < 0 or row.max() >= n_items:
        return f"item ids run from 0 to {n_items - 1}; got {row.min()} to {row.max()}"
    times = int((row == target).sum())
    if times == 0:
        return "the target is not among the candidates: nobody could answer"
    if times > 1:
        return f"the target stands there {times} times: bar it from the negatives"
    if repeated := np.intersect1d(row, history).tolist():
        return f"item {repeated[0]} of the history is among the candidates: it was seen already"
    if len(np.unique(row)) < 20:
        return "an item occurs twice: draw without replacement"
    return None


EXERCISES = {
    "leave_one_out": Exercise(leave_one_out, check_leave_one_out, "each target is hidden from what comes before it"),
    "hit_rate": Exercise(hit_rate, check_hit_rate, "this is HR@K, the most quoted number of the field"),
    "draw_candidates": Exercise(
        draw_candidates, check_draw_candidates, "20 different items, one answer, no hint in its place"
    ),
}
