"""Reads interactions: MovieLens-100K by default, a folder of the reader's own, or other public sets by name.

One tidy format for your own data: a file ``interactions.csv`` with the columns ``user``, ``item``,
``timestamp`` (seconds, any number) and, if you have them, ``rating`` (or ``reward``) and ``title``. Titles may
stand in ``items.csv`` instead (columns ``item``, ``title``; also ``year`` and ``genres``, separated by spaces).
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from recnb import assets

CLOCK = 1e8  # seconds: 1973. Whoever numbers events from 0 stays below
ARTICLE = re.compile(r"^(.+?), (The|A|An|Les|La|Le|Il|El|Das|Der|Die)( \(.*\))?$")


class DataError(ValueError):
    """Data that cannot be used as they are; names the file, the line and the reason."""


@dataclass(frozen=True)
class Dataset:
    """Interactions in order, with what is known of the items.

    Attributes:
        name: as given to `load`.
        events: one row an interaction, sorted by user and time: ``user`` (0..U-1), ``item`` (0..I-1),
            ``rating`` (NaN where there is none), ``timestamp`` in seconds, and ``part`` ("train", "valid",
            "test", or "history" for what a held-out user did before) where the publisher fixed a split.
        items: one row an item, in id order: ``raw`` (the publisher's id), ``title``, ``year``, ``genres``.
    """

    name: str
    events: pd.DataFrame
    items: pd.DataFrame

    @property
    def n_users(self) -> int:
        """Number of users."""
        return int(self.events["user"].nunique())

    @property
    def n_items(self) -> int:
        """Number of items; the id ``n_items`` itself is the padding id everywhere."""
        return len(self.items)

    @cached_property
    def known(self) -> set[str]:
        """What these data can tell: "year" and "genres" of some item, "clock" when times are more than row numbers."""
        told = {column for column in ("year", "genres") if (self.items[column] != "").any()}
        return told | {"clock"} if self.events["timestamp"].max() > CLOCK else told

    @cached_property
    def digest(self) -> str:
        """Hash of the events in their order: two datasets with one digest give the same results."""
        frame = self.events[["user", "item", "rating", "timestamp"]].fillna(-1.0)
        return hashlib.sha256(frame.to_numpy(dtype=np.float64).tobytes()).hexdigest()[:16]

    def sequences(self, column: str = "item") -> list[np.ndarray]:
        """A column of the events (item ids, or another) of each user in time order, indexed by user."""
        cuts = np.flatnonzero(np.diff(self.events["user"].to_numpy())) + 1
        return np.split(self.events[column].to_numpy(), cuts)

    def titles(self, items: np.ndarray | list[int]) -> list[str]:
        """Titles of item ids."""
        return self.items["title"].to_numpy()[np.asarray(items, dtype=int)].tolist()


def tidy_title(title: str) -> str:
    """Put a trailing article in front: ``"Usual Suspects, The"`` becomes ``"The Usual Suspects"``."""
    found = ARTICLE.match(title.strip())
    return f"{found[2]} {found[1]}{found[3] or ''}" if found else title.strip()


def load(name: str = "ml-100k", tie_seed: int | None = 0) -> Dataset:
    """Load a dataset by name or folder.

    Args:
        name: "ml-100k" (fetched); the path of a folder in the tidy format of this module's docstring; "own" for
            such a folder named by ``$RECNB_DATA``; or one of the `PUBLIC` names (files in ``$RECNB_DATA/name``).
        tie_seed: events of one user with equal timestamps are ordered by a random key drawn from this seed;
            None keeps the file's order. In MovieLens-100K three of four events are tied: the rule matters.

    Raises:
        DataError: an unknown name, a missing file, or a bad line, which it names.
    """
    own = os.environ.get("RECNB_DATA", "")
    if name == "ml-100k":
        raw, items = _read_ml100k(assets.fetch("ml-100k"))
    elif name in PUBLIC:
        folder = Path(own or ".") / name
        if not folder.is_dir():
            raise DataError(f"{name}: no folder {name} in RECNB_DATA={own!r}; put the publisher's files there")
        raw, items = PUBLIC[name](folder)
    elif name == "own" and not own:
        raise DataError("dataset 'own' is the folder that RECNB_DATA names, and it names none: set it")
    elif name == "own" or Path(name).is_dir():
        raw, items = _read_tidy(Path(own if name == "own" else name))
    else:
        known = ["ml-100k", "own", *PUBLIC]
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(f"no dataset or folder {name!r}; known: {', '.join(known)}{hint}")
    return _assemble(name, raw, items, tie_seed)


def _assemble(name: str, raw: pd.DataFrame, items: pd.DataFrame, tie_seed: int | None) -> Dataset:
    """Give users and items dense ids, order each user's events, and fill in what is not known."""
    items = items.drop_duplicates("item")
    unlisted = sorted(set(raw["item"]) - set(items["item"]), key=str)
    items = pd.concat([items, pd.DataFrame({"item": unlisted})], ignore_index=True)
    for column, default in (("title", ""), ("year", ""), ("genres", "")):
        items[column] = items[column].fillna(default) if column in items else default
    items["title"] = items["title"].where(items["title"] != "", "item " + items["item"].astype(str))
    codes = pd.Series(np.arange(len(items)), index=items["item"])
    count = len(raw)
    key = np.arange(count) if tie_seed is None else np.random.default_rng(tie_seed).permutation(count)
    events = pd.DataFrame(
        {
            "user": pd.factorize(raw["user"], sort=True)[0],
            "item": codes.loc[raw["item"]].to_numpy(),
            "rating": raw["rating"].to_numpy(dtype=float) if "rating" in raw else np.nan,
            "timestamp": raw["timestamp"].to_numpy(dtype=float),
        }
    )
    if "part" in raw:
        events["part"] = raw["part"].to_numpy()
    order = np.lexsort((key, events["timestamp"], events["user"]))
    events = events.iloc[order].reset_index(drop=True)
    items = items.rename(columns={"item": "raw"})[["raw", "title", "year", "genres"]]
    return Dataset(name, events, items)


def _read_ml100k(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    raw = pd.read_csv(folder / "ml-100k.inter", sep="\t")
    raw.columns = ["user", "item", "rating", "timestamp"]
    lines = (folder / "ml-100k.item").read_text(encoding="utf-8").splitlines()[1:]
    items = pd.DataFrame([line.split("\t") for line in lines], columns=["item", "title", "year", "genres"])
    items["item"] = items["item"].astype(int)
    # One row keeps the year inside the title, and the publisher's unknown film is misspelt in this copy.
    items["title"] = items["title"].str.replace(r" \(\d{4}\)$", "", regex=True).replace("unkonwn", "unknown")
    items["year"] = items["year"].where(items["year"].str.fullmatch(r"\d{4}"), "")
    items["title"] = items["title"].map(tidy_title)
    return raw, items


def _read_tidy(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    raw = _checked_csv(folder / "interactions.csv", ("user", "item", "timestamp"))
    if "reward" in raw and "rating" not in raw:
        raw = raw.rename(columns={"reward": "rating"})
    if (folder / "items.csv").exists():
        return raw, _checked_csv(folder / "items.csv", ("item", "title"))
    columns = [column for column in ("item", "title", "year", "genres") if column in raw]
    return raw, raw[columns].drop_duplicates("item")


def _checked_csv(path: Path, required: tuple[str, ...]) -> pd.DataFrame:
    """Read a CSV row by row; numbers must be finite, required fields filled, rows of full length."""
    if not path.exists():
        raise DataError(f"{path}: no such file; the tidy format is described in recnb.datasets")
    numeric = {"timestamp", "rating", "reward"}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if missing := [column for column in required if column not in header]:
            raise DataError(f"{path}, line 1: no column {missing[0]!r}; found {', '.join(header) or 'nothing'}")
        rows: list[list[str | float]] = []
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if len(row) != len(header):
                raise DataError(f"{where}: {len(row)} fields, the header has {len(header)}")
            rows.append([_field(where, name, text, name in numeric, name in required)
                         for name, text in zip(header, row, strict=True)])  # fmt: skip
    if not rows:
        raise DataError(f"{path}: no rows below the header")
    return pd.DataFrame(rows, columns=header)


def _field(where: str, name: str, text: str, numeric: bool, required: bool) -> str | float:
    if required and not text.strip():
        raise DataError(f"{where}: {name} is empty")
    if not numeric:
        return text
    try:
        number = float(text) if text.strip() else float("nan")
    except ValueError:
        raise DataError(f"{where}: {name} is {text!r}, expected a number") from None
    if np.isinf(number) or (required and np.isnan(number)):
        raise DataError(f"{where}: {name} is {text!r}, expected a finite number")
    return number


def _read_ml1m(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """MovieLens-1M as GroupLens packs it: ratings.dat and movies.dat, fields separated by ``::``."""
    lines = (folder / "ratings.dat").read_text(encoding="latin-1").splitlines()
    raw = pd.DataFrame([line.split("::") for line in lines], columns=["user", "item", "rating", "timestamp"])
    lines = (folder / "movies.dat").read_text(encoding="latin-1").splitlines()
    items = pd.DataFrame([line.split("::") for line in lines], columns=["item", "title", "genres"])
    return raw.astype({"user": int, "rating": float, "timestamp": float}), _year_from_title(items)


def _read_ml_small(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """MovieLens latest-small as GroupLens packs it: ratings.csv and movies.csv."""
    raw = pd.read_csv(folder / "ratings.csv").rename(columns={"userId": "user", "movieId": "item"})
    items = pd.read_csv(folder / "movies.csv").rename(columns={"movieId": "item"})
    return raw, _year_from_title(items)


def _year_from_title(items: pd.DataFrame) -> pd.DataFrame:
    parts = items["title"].str.extract(r"^(.*?)(?: \((\d{4})\))?$")
    genres = items["genres"].str.replace("|", " ")
    return items.assign(title=parts[0].map(tidy_title), year=parts[1].fillna(""), genres=genres)


def _read_retailrocket(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """RetailRocket events; rewards as the SQN benchmark has them: a cart 1, a view 0.2, purchases dropped."""
    parts = [pd.read_parquet(folder / f"{part}.parquet") for part in ("val", "test")]
    events = pd.concat(parts).drop(columns="user")  # the benchmark calls a session a user
    events = events.rename(columns={"session": "user", "time": "timestamp"})
    events = events[events["event"] != "transaction"]
    events["rating"] = np.where(events["event"] == "addtocart", 1.0, 0.2)
    return events, pd.DataFrame({"item": np.unique(events["item"])})


def _read_retailrocket_events(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """RetailRocket as published, prepared as the SQN benchmark has it: without purchases, rare visitors and items."""
    events = _publisher_csv(folder / "events.csv", ["timestamp", "visitorid", "event", "itemid", "transactionid"])
    events = events[events["transactionid"].isna()].rename(columns={"visitorid": "user", "itemid": "item"})
    for column in ("user", "item"):  # one pass, visitors first
        events = events[events.groupby(column)[column].transform("size") > 2]
    rating = np.where(events["event"] == "addtocart", 1.0, 0.2)
    events = events.assign(rating=rating, timestamp=events["timestamp"] / 1000)  # from milliseconds
    return events, pd.DataFrame({"item": np.unique(events["item"])})


def _read_rc15(folder: Path, sessions: int = 200_000) -> tuple[pd.DataFrame, pd.DataFrame]:
    """RecSys Challenge 2015 as published, prepared as the SQN benchmark has it: a click 0.2, a purchase 1.

    Of the sessions with more than two clicks, ``sessions`` are drawn, here with seed 0.
    """
    names = ["user", "timestamp", "item"]
    clicks = _publisher_csv(folder / "yoochoose-clicks.dat", names, header=None).assign(rating=0.2)
    buys = _publisher_csv(folder / "yoochoose-buys.dat", names, header=None).assign(rating=1.0)
    long = clicks.groupby("user").size().loc[lambda count: count > 2].index.to_numpy()
    kept = np.random.default_rng(0).permutation(long)[:sessions]
    events = pd.concat([clicks, buys])
    events = events[events["user"].isin(kept)]
    since = pd.to_datetime(events["timestamp"], utc=True) - pd.Timestamp(0, tz="UTC")
    events = events.assign(timestamp=since.dt.total_seconds())
    return events, pd.DataFrame({"item": np.unique(events["item"])})


def _publisher_csv(path: Path, names: list[str], header: int | None = 0) -> pd.DataFrame:
    """The first columns of a publisher's file, under our names where it has none."""
    if not path.exists():
        raise DataError(f"{path}: no such file; put the publisher's file there, unpacked")
    if header is None:
        return pd.read_csv(path, header=None, usecols=range(len(names)), names=names)
    table = pd.read_csv(path)
    if missing := [name for name in names if name not in table]:
        raise DataError(f"{path}, line 1: no column {missing[0]!r}; found {', '.join(map(str, table.columns))}")
    return table


def _read_prefix_rows(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows (history of up to 10, next item) of train, val and test, joined again into sequences.

    A row goes on with the sequence before it when its history is that row's history plus its next item.
    """
    pad = PADDING_ID[folder.name]
    rows: list[tuple[int, int, int, str]] = []
    user = -1
    for part, name in (("train", "train"), ("val", "valid"), ("test", "test")):
        expected: list[int] | None = None
        frame = pd.read_parquet(folder / f"{part}.parquet")
        for seq, target in zip(frame["seq"], frame["next"], strict=True):
            history = [int(item) for item in seq if item != pad]
            if expected is None or not history or history != expected[-len(history) :]:
                user += 1
                known = name if part == "train" else "history"
                rows += [(user, item, step, known) for step, item in enumerate(history)]
            rows.append((user, int(target), len(rows), name))
            expected = [*history, int(target)][-10:]
    raw = pd.DataFrame(rows, columns=["user", "item", "timestamp", "part"])
    titles = folder / "items.parquet"
    if titles.exists():
        return raw, pd.read_parquet(titles).rename(columns={"id": "item"})
    return raw, pd.DataFrame({"item": np.arange(pad)})


PADDING_ID = {"lastfm-llara": 4606, "zhihu-dreamrec": 4838}  # also the number of items
PUBLIC: dict[str, Callable[[Path], tuple[pd.DataFrame, pd.DataFrame]]] = {
    "ml-1m": _read_ml1m,
    "ml-latest-small": _read_ml_small,
    "lastfm-llara": _read_prefix_rows,
    "zhihu-dreamrec": _read_prefix_rows,
    "retailrocket": _read_retailrocket_events,
    "retailrocket-dros": _read_retailrocket,
    "rc15": _read_rc15,
}
