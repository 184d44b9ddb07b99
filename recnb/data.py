"""Splits, histories and candidate sets: which question is asked of a recommender, and what it may know.

Item ids run from 0 to ``n_items - 1``; ``n_items`` is the padding id. A `Split` holds training sequences and the
cases of validation and test; a case is a history and the one item that really came next.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from recnb.datasets import DataError, Dataset
from recnb.store import Store


@dataclass(frozen=True)
class Cases:
    """Questions: given this history, which item came next?

    Attributes:
        user: user id of each case, shape (n,).
        history: the user's earlier items of each case, oldest first, at full length; n arrays.
        target: the item that came next, shape (n,).
    """

    user: np.ndarray
    history: list[np.ndarray]
    target: np.ndarray

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.target)

    def take(self, index: np.ndarray) -> Cases:
        """The cases at these positions."""
        return Cases(self.user[index], [self.history[i] for i in index], self.target[index])

    def padded(self, length: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
        """Last ``length`` items of each history, padded on the right.

        Returns:
            items (n, length) filled with ``pad``, and how many of each row are real (n,).
        """
        return pad_right([history[-length:] for history in self.history], length, pad)


@dataclass(frozen=True)
class Split:
    """Training sequences with validation and test cases.

    Attributes:
        name: how it was cut.
        n_items: size of the catalogue.
        train: item ids of each training user in time order.
        times: timestamp of each training item: where they are equal, the order in ``train`` means nothing.
        valid: cases to choose models by.
        test: cases to report.
    """

    name: str
    n_items: int
    train: list[np.ndarray]
    times: list[np.ndarray]
    valid: Cases
    test: Cases

    def popularity(self) -> np.ndarray:
        """Training interactions of each item, shape (n_items,)."""
        return np.bincount(np.concatenate(self.train), minlength=self.n_items)


def first_users(split: Split, count: int) -> Split:
    """The split with only its first ``count`` training users; validation and test stay whole."""
    return replace(split, train=split.train[:count], times=split.times[:count])


def pad_right(rows: list[np.ndarray], length: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of item ids as one array (n, length) padded on the right, and their true lengths (n,)."""
    items = np.full((len(rows), length), pad, dtype=np.int64)
    for row, values in zip(items, rows, strict=True):
        row[: len(values)] = values
    return items, np.array([len(row) for row in rows], dtype=np.int64)


def prefixes(sequences: list[np.ndarray], users: np.ndarray, min_history: int, window: int | None = None) -> Cases:
    """Every position of every sequence that has at least ``min_history`` earlier items, as one case each.

    Args:
        sequences: item ids in time order, one array a user.
        users: the user id of each sequence.
        min_history: how many items must come before the target.
        window: keep only this many of the latest history items; None keeps all.
    """
    user, history, target = [], [], []
    for name, sequence in zip(users, sequences, strict=True):
        for step in range(min_history, len(sequence)):
            user.append(name)
            history.append(sequence[max(0, step - window) if window else 0 : step])
            target.append(sequence[step])
    return Cases(np.array(user, dtype=np.int64), history, np.array(target, dtype=np.int64))


def _last_item(sequences: list[np.ndarray], users: np.ndarray) -> Cases:
    target = np.array([sequence[-1] for sequence in sequences], dtype=np.int64)
    return Cases(np.asarray(users), [sequence[:-1] for sequence in sequences], target)


def leave_one_out(dataset: Dataset) -> Split:
    """Test on each user's last item, validate on the one before, train on the rest.

    Raises:
        DataError: when a user has fewer than three interactions, with the user's number.
    """
    sequences = dataset.sequences()
    users = np.arange(len(sequences))
    if (short := min(sequences, key=len)) is not None and len(short) < 3:
        user = next(user for user in users if len(sequences[user]) < 3)
        raise DataError(f"leave_one_out needs 3 interactions a user; user {user} has {len(short)}: drop it")
    held = [sequence[:-1] for sequence in sequences]
    return Split(
        "leave-one-out",
        dataset.n_items,
        [sequence[:-2] for sequence in sequences],
        [times[:-2] for times in dataset.sequences("timestamp")],
        _last_item(held, users),
        _last_item(sequences, users),
    )


def user_windows(dataset: Dataset, min_rating: float = 3, parts: tuple[float, float] = (0.8, 0.9)) -> Split:
    """The split of LLaRA and RecInterpreter: users in order of their first event, cut 8:1:1.

    Ratings below ``min_rating`` are dropped; validation and test ask only for the last item of users who are
    not in training. Histories are kept whole here; the papers read the last 10 (`prefixes` with ``window=10``
    gives their training rows, ``min_history=3``). On MovieLens-100K: 82,520 interactions, 754/94/95 users.
    """
    events = dataset.events
    kept = events[~(events["rating"] < min_rating)]
    first = kept.groupby("user")["timestamp"].min().reset_index()
    order = first.sort_values(["timestamp", "user"], kind="stable")["user"].to_numpy()
    items, times = ({user: rows.to_numpy() for user, rows in kept.groupby("user")[column]}
                    for column in ("item", "timestamp"))  # fmt: skip
    cuts = [int(part * len(order)) for part in parts]
    train, valid, test = np.split(order, cuts)
    return Split(
        "user-windows",
        dataset.n_items,
        [items[user] for user in train],
        [times[user] for user in train],
        _last_item([items[user] for user in valid], valid),
        _last_item([items[user] for user in test], test),
    )


def held_out_users(dataset: Dataset, seed: int = 0, min_history: int = 5) -> Split:
    """Users cut 8:1:1 at random; every position of a held-out user after ``min_history`` items is a case.

    The precise split: about 10,000 predictions in MovieLens-100K where leave-one-out has 943.
    """
    users = np.random.default_rng(seed).permutation(dataset.n_users)
    return _by_user(dataset, "held-out-users", users, min_history)


def user_prefixes(dataset: Dataset) -> Split:
    """The split of DreamRec: sequences in order of their first event, cut 8:1:1; every position is a case.

    A held-out user's first item is a case too, with an empty history. On MovieLens-100K: 754 training users, 7,392
    validation and 9,500 test cases.
    """
    first = [stamps[0] for stamps in dataset.sequences("timestamp")]
    return _by_user(dataset, "user-prefixes", np.argsort(first, kind="stable"), 0)


def _by_user(dataset: Dataset, name: str, users: np.ndarray, min_history: int) -> Split:
    """Users cut 8:1:1 in this order; every position of a held-out user after ``min_history`` items is a case."""
    sequences, times = dataset.sequences(), dataset.sequences("timestamp")
    train, valid, test = np.split(users, [int(0.8 * len(users)), int(0.9 * len(users))])
    return Split(
        name,
        dataset.n_items,
        [sequences[user] for user in train],
        [times[user] for user in train],
        prefixes([sequences[user] for user in valid], valid, min_history),
        prefixes([sequences[user] for user in test], test, min_history),
    )


def temporal_windows(dataset: Dataset, window: int = 10, parts: tuple[float, float] = (0.8, 0.9)) -> Split:
    """The split of BIGRec: every ``window`` items and the one that follows, cut 8:1:1 by when the latter happened.

    Nothing is dropped for its rating. A training sequence is what a user did up to the last training target, so a
    held-out user may be known from training; a user's first ``window`` items are never targets. On MovieLens-100K:
    90,570 windows, 72,456 for training, 9,057 each to validate and to test.

    Raises:
        DataError: when fewer than ten windows can be cut.
    """
    sequences, times = dataset.sequences(), dataset.sequences("timestamp")
    step = np.concatenate([np.arange(window, len(sequence)) for sequence in sequences])
    if (count := len(step)) < 10:
        raise DataError(f"{dataset.name} has {count} windows of {window} interactions and a next one; 10 are needed")
    cases = prefixes(sequences, np.arange(len(sequences)), window, window)
    order = np.argsort(np.concatenate([stamps[window:] for stamps in times]), kind="stable")
    train, valid, test = np.split(order, [int(part * len(order)) for part in parts])
    ends = np.zeros(len(sequences), dtype=int)
    np.maximum.at(ends, cases.user[train], step[train] + 1)
    kept = np.flatnonzero(ends)
    known, stamps = [sequences[u][: ends[u]] for u in kept], [times[u][: ends[u]] for u in kept]
    return Split("temporal-windows", dataset.n_items, known, stamps, cases.take(valid), cases.take(test))


def started(split: Split) -> Split:
    """The split with a start token, id ``n_items``, before every sequence and history: none is empty any more."""
    token = split.n_items

    def begun(sequences: list[np.ndarray]) -> list[np.ndarray]:
        return [np.concatenate([[token], items]) for items in sequences]

    def of(cases: Cases) -> Cases:
        return Cases(cases.user, begun(cases.history), cases.target)

    times = [np.concatenate([[-np.inf], stamps]) for stamps in split.times]
    return Split(split.name + ", started", token + 1, begun(split.train), times, of(split.valid), of(split.test))


def random_events(dataset: Dataset, seed: int = 0) -> Split:
    """The faulty split of notebook 01: one random event a user is the test, so training holds the future.

    History and training are the user's remaining events, those *after* the target included.
    """
    rng = np.random.default_rng(seed)
    train, times, targets = [], [], []
    for items, stamps in zip(dataset.sequences(), dataset.sequences("timestamp"), strict=True):
        test, valid = rng.choice(len(items), 2, replace=False)
        train.append(np.delete(items, [test, valid]))
        times.append(np.delete(stamps, [test, valid]))
        targets.append((items[valid], items[test]))
    users, pairs = np.arange(len(train)), np.array(targets)
    valid_cases, test_cases = (Cases(users, train, pairs[:, column]) for column in (0, 1))
    return Split("random-events", dataset.n_items, train, times, valid_cases, test_cases)


def published(dataset: Dataset) -> Split:
    """The split that the publisher fixed (column ``part``): every case of the held-out sequences.

    Raises:
        DataError: when the dataset has no such column.
    """
    if "part" not in dataset.events:
        raise DataError(f"{dataset.name} comes without a published split; use leave_one_out or another")
    part = dataset.events.groupby("user")["part"]
    of_user, starts = (part.last().to_numpy(), part.apply(lambda rows: (rows == "history").sum()).to_numpy())
    sequences = dataset.sequences()
    cases = {}
    for name in ("valid", "test"):
        users = np.flatnonzero(of_user == name)
        pieces = [prefixes([sequences[u]], np.array([u]), int(starts[u])) for u in users]
        cases[name] = Cases(
            np.concatenate([piece.user for piece in pieces]),
            [history for piece in pieces for history in piece.history],
            np.concatenate([piece.target for piece in pieces]),
        )
    kept, stamps = np.flatnonzero(of_user == "train"), dataset.sequences("timestamp")
    train, times = [sequences[u] for u in kept], [stamps[u] for u in kept]
    return Split("published", dataset.n_items, train, times, cases["valid"], cases["test"])


def draw_candidates(cases: Cases, n_items: int, size: int = 20, seed: int = 0, window: int = 10) -> np.ndarray:
    """Draw a candidate set for each case, as LLaRA does: the target among uniform other items.

    The others are drawn without replacement from all items that are neither the target nor among the last
    ``window`` history items; the target's place is uniform. Drawn once and shared, so that every method
    answers the same questions.

    Returns:
        item ids (n, size), each row distinct.

    Raises:
        ValueError: when the catalogue is too small for ``size`` candidates.
    """
    if n_items < size + window:
        raise ValueError(f"{size} candidates need a catalogue of at least {size + window}, not {n_items}")
    rng = np.random.default_rng(seed)
    table = np.empty((len(cases), size), dtype=np.int64)
    for row, history, target in zip(table, cases.history, cases.target, strict=True):
        barred = {int(target), *history[-window:].tolist()}
        picked = rng.permutation(n_items)[: size + len(barred)]
        row[:-1] = [item for item in picked if item not in barred][: size - 1]
        row[-1] = target
        rng.shuffle(row)
    return table


def candidates(dataset: Dataset, split: Split, part: str = "test", size: int = 20, seed: int = 0) -> np.ndarray:
    """The stored candidate table of a split's part: drawn once, read from the store ever after.

    Returns:
        item ids (n, size) in the order of the part's cases.
    """
    cases = getattr(split, part)
    config = dict(data=dataset.digest, split=split.name, part=part, size=size, seed=seed, n=len(cases))
    config["targets"] = int(np.dot(cases.target, np.arange(1, len(cases) + 1)))

    def draw() -> dict[str, pd.DataFrame]:
        table = draw_candidates(cases, split.n_items, size, seed)
        return {"candidates.parquet": pd.DataFrame(table, columns=[f"c{i}" for i in range(size)])}

    return Store().load_or_make("candidates", config, draw)["candidates.parquet"].to_numpy()
