"""Figures in one style: colours that colour-blind readers can tell apart, words on the axes, PNG only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recnb.metrics import Interval

COLOURS = sns.color_palette("colorblind").as_hex()
DAY = 86_400


def style() -> None:
    """One look for all notebooks."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", font_scale=0.85)
    plt.rcParams.update({"figure.dpi": 90, "savefig.dpi": 90, "figure.constrained_layout.use": True})
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "grid.alpha": 0.4})


def axes(width: float = 7, height: float = 3, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, always as a list."""
    figure, found = plt.subplots(1, columns, figsize=(width, height), squeeze=False)
    return figure, list(found[0])


def activity(events: pd.DataFrame) -> Figure:
    """Interactions per week, and every user as a line from first to last event."""
    figure, (left, right) = axes(9, 3, 2)
    day = (events["timestamp"] - events["timestamp"].min()) / DAY
    left.hist(day, bins=list(np.arange(0, day.max() + 7, 7)), color=COLOURS[0])
    left.set(xlabel="days since the first rating", ylabel="ratings a week", title="Activity over time")
    span = day.groupby(events["user"]).agg(["min", "max"]).sort_values("min")
    right.hlines(np.arange(len(span)), span["min"], span["max"], color=COLOURS[0], lw=0.7)
    right.plot(span["min"], np.arange(len(span)), ".", color=COLOURS[1], ms=2)
    right.set(xlabel="days since the first rating", ylabel="users by arrival", title="How long users stay")
    return figure


def long_tail(counts: np.ndarray) -> Figure:
    """Item popularity by rank, and the share of interactions that the most popular items take."""
    figure, (left, right) = axes(9, 3, 2)
    ordered = np.sort(counts)[::-1]
    left.plot(np.arange(1, len(ordered) + 1), ordered, color=COLOURS[0])
    left.set(xscale="log", yscale="symlog", xlabel="item, by popularity", ylabel="interactions")
    left.set_ylim(bottom=0)
    left.set_title("A few items are everywhere")
    share = np.cumsum(ordered) / ordered.sum()
    right.plot(np.arange(1, len(ordered) + 1) / len(ordered), share, color=COLOURS[0])
    half = int(np.searchsorted(share, 0.5)) + 1
    right.plot(half / len(ordered), share[half - 1], "o", color=COLOURS[1])
    right.annotate(f"{half} items: half of it all", (half / len(ordered), 0.5), (0.3, 0.4))
    right.set(xlabel="share of the catalogue", ylabel="share of interactions", title="The long tail")
    return figure


def sittings(dataset_events: pd.DataFrame, user: int) -> Figure:
    """One user's ratings by clock time: events of one second stand above each other."""
    rows = dataset_events[dataset_events["user"] == user]
    minute = (rows["timestamp"] - rows["timestamp"].min()) / 60
    height = rows.groupby("timestamp").cumcount()
    figure, (ax,) = axes(8, 2.4)
    points = ax.scatter(minute, height, c=rows["rating"], cmap="cividis", s=18)
    figure.colorbar(points, label="rating")
    ax.set(xlabel="minutes since this user's first rating", ylabel="same second", title=f"User {user}")
    return figure


def forest(rows: Mapping[str, Interval], xlabel: str, reference: float | None = None) -> Figure:
    """Estimates with their 95 % intervals, one a line, the first on top."""
    figure, (ax,) = axes(7, 0.8 + 0.3 * len(rows))
    for place, got in enumerate(rows.values()):
        colour = COLOURS[place % len(COLOURS)]
        ax.plot([got.low, got.high], [place, place], color=colour, lw=2)
        ax.plot(got.value, place, "o", color=colour)
    if reference is not None:
        ax.axvline(reference, color="0.4", ls="--", lw=1)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.locator_params(axis="x", nbins=6)
    ax.set_xlabel(xlabel)
    return figure


def curves(runs: Mapping[str, Sequence[pd.DataFrame]]) -> Figure:
    """Training loss and validation score by epoch; one line a seed, one colour a model."""
    figure, (left, right) = axes(9, 3.2, 2)
    for colour, (name, seeds) in zip(COLOURS, runs.items(), strict=False):
        for index, curve in enumerate(seeds):
            label = name if index == 0 else None
            left.plot(curve["epoch"], curve["loss"], color=colour, label=label, alpha=0.8)
            scored = curve.dropna(subset=["score"])
            right.plot(scored["epoch"], scored["score"], color=colour, label=label, alpha=0.8)
    left.set(xlabel="epoch", ylabel="training loss")
    right.set(xlabel="epoch", ylabel="validation NDCG@10")
    right.legend(fontsize=8)
    return figure


def matrices(values: Mapping[str, np.ndarray]) -> Figure:
    """Small matrices side by side, each number written in its cell."""
    figure, places = axes(3.1 * len(values), 2.8, len(values))
    for ax, (name, matrix) in zip(places, values.items(), strict=True):
        names = range(1, len(matrix) + 1)
        sns.heatmap(matrix, ax=ax, annot=True, fmt=".2g", cmap="viridis", cbar=False, square=True,
                    xticklabels=names, yticklabels=names)  # fmt: skip
        ax.set_title(name)
    return figure


def lines(values: Mapping[str, Sequence[float]], xlabel: str, ylabel: str, start: int = 1) -> Figure:
    """One line a name over whole numbers from ``start``."""
    figure, (ax,) = axes(6, 2.8)
    for colour, (name, ys) in zip(COLOURS, values.items(), strict=False):
        ax.plot(range(start, start + len(ys)), ys, ".-", color=colour, label=name)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.legend(fontsize=8)
    return figure


def attention(weights: np.ndarray, titles: Sequence[str], caption: str = "") -> Figure:
    """An attention map (T, T): each row is a position that looks back, each column what it looks at."""
    figure, (ax,) = axes(6.5, 5.2)
    labels = [plain_text(title)[:24] for title in titles]
    sns.heatmap(weights, ax=ax, cmap="viridis", vmin=0, xticklabels=labels, yticklabels=labels,
                cbar_kws={"label": "attention"}, square=True)  # fmt: skip
    ax.tick_params(labelsize=7)
    ax.set_title(caption)
    return figure


def item_map(
    xy: np.ndarray, groups: Sequence[str], size: np.ndarray, labels: Mapping[int, str], caption: str = ""
) -> Figure:
    """Items as points in the plane, coloured by group, sized by popularity, some of them named."""
    figure, (ax,) = axes(8, 5.5)
    names = pd.Series(groups)
    for colour, name in zip(COLOURS, names.value_counts().index[: len(COLOURS)], strict=False):
        mine = (names == name).to_numpy()
        ax.scatter(
            xy[mine, 0], xy[mine, 1], s=4 + 40 * size[mine] / size.max(), color=colour, alpha=0.55, lw=0, label=name
        )
    for item, title in labels.items():
        ax.annotate(plain_text(title)[:28], xy[item], fontsize=7, xytext=(3, 3), textcoords="offset points")
    ax.legend(markerscale=1.5, fontsize=8, loc="best")
    ax.set(xticks=[], yticks=[], title=caption)
    return figure


def bars(values: Mapping[str, float], ylabel: str, caption: str = "") -> Figure:
    """A bar for each name, its value on top."""
    figure, (ax,) = axes(6, 2.8)
    drawn = ax.bar(list(values), list(values.values()), color=COLOURS[: len(values)])
    ax.bar_label(drawn, fmt="%.3f", fontsize=8)
    ax.set(ylabel=ylabel, title=caption)
    return figure


def plain_text(text: str) -> str:
    """A title as plain text: dollar signs escaped, which matplotlib would read as mathematics."""
    return text.replace("$", r"\$")
