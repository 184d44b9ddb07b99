"""Every number that scale changes: one frozen dataclass a notebook, one instance a profile.

`smoke` shows that the whole path runs (tests), `laptop` is what a student runs on two cores, `paper` is the full
protocol for a machine with a GPU. The data are always the whole real data unless a field here says otherwise.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

NAMES = ("smoke", "laptop", "paper")


@dataclass(frozen=True)
class Tour:
    """Notebook 00.

    Attributes:
        neighbours: films listed next to a chosen one.
    """

    neighbours: int = 5


@dataclass(frozen=True)
class Data:
    """Notebook 01.

    Attributes:
        tie_seeds: orders of tied events that the floors are measured under.
        draws: candidate tables drawn to see how much the draw alone moves HitRatio@1.
    """

    tie_seeds: tuple[int, ...] = (0, 1, 2)
    draws: int = 20


@dataclass(frozen=True)
class Sequential:
    """Notebook 02.

    Attributes:
        seeds: training seeds.
        epochs: passes over the training sequences; the learning rate is planned over them.
        workers: models trained at once, one process each; 1 on a GPU.
        users: training users (None: all).
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 14
    workers: int = 2
    users: int | None = None


SETTINGS: dict[str, dict[str, Any]] = {
    "00_tour": {"smoke": Tour(), "laptop": Tour(), "paper": Tour()},
    "01_data": {
        "smoke": Data(tie_seeds=(0, 1), draws=3),
        "laptop": Data(),
        "paper": Data(tie_seeds=(0, 1, 2, 3, 4), draws=100),
    },
    "02_sequential_recommender": {
        "smoke": Sequential(seeds=(0, 1), epochs=1, workers=1, users=60),
        "laptop": Sequential(),
        "paper": Sequential(seeds=(0, 1, 2, 3, 4), epochs=20, workers=1),
    },
}


def get(notebook: str, profile: str) -> Any:
    """Settings of a notebook under a profile.

    Raises:
        ValueError: when either name is unknown, with the nearest match.
    """
    for name, known in (("profile", NAMES), ("notebook", tuple(SETTINGS))):
        value = profile if name == "profile" else notebook
        if value not in known:
            near = difflib.get_close_matches(value, known, 1, cutoff=0.3)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown {name} {value!r}; allowed: {', '.join(known)}{hint}")
    return SETTINGS[notebook][profile]
