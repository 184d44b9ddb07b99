"""Figures about prompts and language models: tokens, slots, angles and lengths of vectors, losses and gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from recnb.plots import COLOURS, axes, plain_text
from recnb.prompts import Prompt

ROLES = {"words": "#e4e4e4", "history slot": COLOURS[0], "candidate slot": COLOURS[1], "answer cue": COLOURS[2]}


def roles(prompt: Prompt) -> list[str]:
    """What each token of a prompt is for: "words", "history slot", "candidate slot" or "answer cue"."""
    found = ["words"] * len(prompt.ids)
    for place, slot in enumerate(prompt.slots):
        found[slot] = "history slot" if place < prompt.n_history else "candidate slot"
    if len(prompt.slots):
        cue, title = int(prompt.slots[-1]) + 1, prompt.answers[-1][:-1] if prompt.answers else []
        if prompt.ids[cue : cue + len(title)].tolist() == title:  # its slot stands before the last title
            cue += len(title)
        found[cue:] = ["answer cue"] * (len(found) - cue)
    return found


def shown(token: str) -> str:
    """A token without the blank before it; blanks and line ends alone made visible."""
    return token.strip() or token.replace("\n", "↵").replace(" ", "␣")


def _key(figure: Figure) -> None:
    """The four roles with their colours, under the figure."""
    patches = [Patch(facecolor=colour, label=name) for name, colour in ROLES.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=4, fontsize=8, frameon=False)


def token_page(words: Sequence[str], roles: Sequence[str], caption: str = "", width: int = 104) -> Figure:
    """A prompt as a page of text, one box a token, coloured by what the token is for.

    Args:
        words: the tokens as text; a slot is drawn as a bare box.
        roles: of each token, a name in `ROLES`.
        caption: title of the figure.
        width: letters in a line.
    """
    spots, line, column = [], 0, 0.0
    texts = ["" if "slot" in role else shown(word) for word, role in zip(words, roles, strict=True)]
    for text in texts:
        size = max(len(text), 1) + 0.8
        if column + size > width:
            line, column = line + 1, 0.0
        spots.append((line, column, size))
        column += size + 0.2
    figure, (ax,) = axes(9.5, 0.8 + 0.27 * (line + 1))
    for text, role, (row, left, size) in zip(texts, roles, spots, strict=True):
        ax.add_patch(Rectangle((left, row - 0.42), size, 0.84, color=ROLES[role], lw=0))
        ink = "white" if role == "answer cue" else "black"
        ax.text(left + size / 2, row, plain_text(text), ha="center", va="center", family="monospace", fontsize=7,
                color=ink)  # fmt: skip
    ax.set(xlim=(0, width), ylim=(line + 0.6, -0.6), title=caption)
    ax.axis("off")
    _key(figure)
    return figure


def prompt_strips(prompts: Mapping[str, Prompt]) -> Figure:
    """Prompts as strips over token positions, one a line: how long each is, and where its slots stand."""
    names, longest = list(ROLES), max(len(prompt.ids) for prompt in prompts.values())
    figure, (ax,) = axes(9, 0.9 + 0.42 * len(prompts))
    for row, prompt in enumerate(prompts.values()):
        strip = np.array([[names.index(role) for role in roles(prompt)]])
        ax.imshow(strip, cmap=ListedColormap(list(ROLES.values())), vmin=-0.5, vmax=3.5, aspect="auto",
                  interpolation="nearest", extent=(0, strip.size, row + 0.36, row - 0.36))  # fmt: skip
        ax.text(strip.size + 2, row, f"{strip.size}", va="center", fontsize=8)
    ax.set(xlim=(0, longest * 1.06), ylim=(len(prompts) - 0.5, -0.5), xlabel="position, in tokens")
    ax.set_yticks(range(len(prompts)), list(prompts))
    ax.grid(False)
    _key(figure)
    return figure


def angles(before: np.ndarray, after: Mapping[str, np.ndarray]) -> Figure:
    """Cosines of the same pairs before and after a map, one panel a map; on the diagonal nothing has changed."""
    figure, places = axes(3.6 * len(after), 3.3, len(after))
    for ax, colour, (name, cosines) in zip(places, COLOURS, after.items(), strict=False):
        ax.plot([-1, 1], [-1, 1], color="0.5", lw=1, ls="--")
        ax.plot(before, cosines, ".", color=colour, ms=2, alpha=0.4)
        ax.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), title=name)
        ax.set(xlabel="cosine in the recommender", ylabel="cosine after the projector")
    return figure


def spreads(groups: Mapping[str, np.ndarray], xlabel: str) -> Figure:
    """How several groups of numbers are spread: histograms on a common scale, the tallest bar of each at 1."""
    figure, (ax,) = axes(7, 2.8)
    every = np.concatenate(list(groups.values()))
    edges = np.linspace(every.min(), every.max(), 80)
    for colour, (name, values) in zip(COLOURS, groups.items(), strict=False):
        count = np.histogram(values, edges)[0]
        ax.stairs(count / max(count.max(), 1), edges, fill=True, alpha=0.5, color=colour, label=name)
    ax.set(xlabel=xlabel, ylabel="how many (most: 1)", ylim=(0, 1.05))
    ax.legend(fontsize=8)
    return figure


def token_bars(words: Sequence[str], values: Mapping[str, Sequence[float]], ylabel: str) -> Figure:
    """Groups of bars, one group a token of a text, one colour a name."""
    figure, (ax,) = axes(max(4.5, 1 + 0.8 * len(words)), 2.8)
    width = 0.8 / len(values)
    for row, (colour, (name, heights)) in enumerate(zip(COLOURS, values.items(), strict=False)):
        ax.bar(np.arange(len(words)) + (row - (len(values) - 1) / 2) * width, heights, width, color=colour, label=name)
    ax.set_xticks(range(len(words)), [plain_text(shown(word)) for word in words])
    ax.set_ylabel(ylabel)
    ax.legend(fontsize=8)
    return figure


def paired_bars(frame: pd.DataFrame, xlabel: str) -> Figure:
    """A small table as horizontal bars: a group for each row name, a bar for each column; zero is written out."""
    figure, (ax,) = axes(7, 0.9 + 0.26 * frame.size)
    width = 0.8 / frame.shape[1]
    for row, (colour, name) in enumerate(zip(COLOURS, frame.columns, strict=False)):
        places = np.arange(len(frame)) + (row - (frame.shape[1] - 1) / 2) * width
        drawn = ax.barh(places, frame[name], width * 0.9, color=colour, label=str(name))
        ax.bar_label(drawn, [f" {value:.3g}" for value in frame[name]], fontsize=8)
    ax.set_yticks(range(len(frame)), [str(name) for name in frame.index])
    ax.set(xlabel=xlabel, ylim=(len(frame) - 0.5, -0.5))
    ax.margins(x=0.12)
    ax.legend(fontsize=8)
    return figure


def choice_bars(groups: Mapping[str, tuple[Sequence[str], np.ndarray, int]]) -> Figure:
    """A bar for each candidate, one panel a name; each has titles, shares, and which one is right."""
    longest = max(len(titles) for titles, _, _ in groups.values())
    figure, places = axes(4.7 * len(groups), 1 + 0.19 * longest, len(groups))
    for ax, (name, (titles, share, right)) in zip(places, groups.items(), strict=True):
        ax.barh(range(len(titles)), share, color=[COLOURS[2 if row == right else 0] for row in range(len(titles))])
        ax.set_yticks(range(len(titles)), [plain_text(title)[:26] for title in titles], fontsize=7.5)
        ax.set(ylim=(len(titles) - 0.4, -0.6), title=name, xlabel="share of the slot scores; green: the right one")
    return figure
