"""Every number that scale changes: one frozen dataclass a notebook, one instance a profile.

`smoke` shows that the whole path runs (tests), `laptop` is what a student runs on two cores, `paper` is the full
protocol for a machine with a GPU. The data are always the whole real data unless a field here says otherwise.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
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


@dataclass(frozen=True)
class Adapter:
    """Notebook 03.

    Attributes:
        users: training users of the recommender (None: all).
        asked: test people whom the untuned language model is asked about.
        rows: training rows learnt by heart, one micro-batch.
        epochs: optimizer steps on that micro-batch.
    """

    users: int | None = None
    asked: int = 12
    rows: int = 4
    epochs: int = 10


@dataclass(frozen=True)
class Curriculum:
    """Notebook 04.

    Attributes:
        rows: prompts of the run that is trained live.
        match_rows: slot-only prompts of its first warm start.
        repeat_rows: prompts of its second, which name a film of the history.
        nearest_rows: prompts of its third, which name the nearest candidate.
        asked: test people whom a trained model is asked about live.
        untuned: test people whom the untuned language model is asked about.
        users: training users of the recommenders (None: all).
        draws: candidate tables drawn to see how much the draw alone moves HitRatio@1.
        limit: prefixes that the live run is asked when no stored run stands in for it.
        shipped: trained models to load, as far as there are; the first is asked live.
    """

    rows: int = 64
    match_rows: int = 768
    repeat_rows: int = 96
    nearest_rows: int = 96
    asked: int = 95
    untuned: int = 32
    users: int | None = None
    draws: int = 20
    limit: int = 60
    shipped: tuple[str, ...] = ("long", "text-only")


@dataclass(frozen=True)
class BiStep:
    """Notebook 05.

    Attributes:
        rows: training rows of the run that is trained live.
        passes: how often it sees each.
        asked: test cases that models are asked live.
        block: of the language model, after which names are read (None: the last, as published).
        layers: blocks whose states are tried as groundings.
        garbled: names with a wrong year that are to be found again.
        epochs: of the recommender whose scores bend the distances (None: its recipe's own).
        users: training users (None: all).
    """

    rows: int = 64
    passes: int = 2
    asked: int = 40
    block: int | None = None
    layers: tuple[int, ...] = (5, 15, 25)
    garbled: int = 200
    epochs: int | None = None
    users: int | None = None


@dataclass(frozen=True)
class Diffusion:
    """Notebook 06.

    Attributes:
        epochs: passes of the published recipe over all prefixes.
        sequence_epochs: passes of the recommender that lends its vectors.
        dream_epochs: passes of the strong track's denoiser.
        users: training users (None: all).
        every: the sampling curves ask every so-manieth test case.
    """

    epochs: int = 20
    sequence_epochs: int = 14
    dream_epochs: int = 6
    users: int | None = None
    every: int = 5


@dataclass(frozen=True)
class Interpretation:
    """Notebook 07.

    Attributes:
        users: training users (None: all).
        each: moments of every test person.
        passes: passes of the probes over the training rows.
        word_rows: rows of the warm start of what is trained live.
        rows: rows that it reads through the language model.
        blurred: titles said again from blurred words.
        oracles: oracles, and items of each kind, that are named.
    """

    users: int | None = None
    each: int = 1
    passes: int = 2
    word_rows: int = 100_000
    rows: int = 256
    blurred: int = 48
    oracles: int = 64


@dataclass(frozen=True)
class Offline:
    """Notebook 08.

    Attributes:
        users: training users (None: all); with a number, few users are asked, too.
        epochs: passes of the agent that is trained live.
        states: next states that the transition model has to tell apart.
    """

    users: int | None = None
    epochs: int = 6
    states: int = 500


@dataclass(frozen=True)
class Brain:
    """Notebook 09.

    Attributes:
        runs: simulated networks that are pooled.
        volumes: of each of them.
        couplings: on the grid.
        field: volumes of the mean field.
        nulls: draws of each null.
        steps: of gradient fits, to choose from.
        radii: spectral radii of a reservoir, the best of which counts.
        reservoirs: rewired networks of each kind.
    """

    runs: int = 64
    volumes: int = 600
    couplings: int = 20
    field: int = 500
    nulls: int = 20
    steps: tuple[int, ...] = (40, 80, 150)
    radii: int = 12
    reservoirs: int = 10


@dataclass(frozen=True)
class Embeddings:
    """Notebook 10.

    Attributes:
        models: recommenders whose vectors are shown.
        epochs: passes of each, and of the one that lends DreamRec its space.
        workers: models trained at once, one process each; 1 on a GPU.
        dream_epochs: of DreamRec in vectors of its own, and in lent ones.
        users: training users (None: all).
        layer: block of the language model after which titles are read (None: the last).
        mapped: spaces whose maps are measured.
        methods: of mapping.
        people: whose moments are shown (None: everybody's).
    """

    models: tuple[str, ...] = ("SASRec", "GRU4Rec", "Caser", "NextItNet")
    epochs: int = 14
    workers: int = 2
    dream_epochs: tuple[int, int] = (10, 6)
    users: int | None = None
    layer: int | None = None
    mapped: tuple[str, ...] = ("SASRec", "GRU4Rec", "DreamRec", "language model")
    methods: tuple[str, ...] = ("PCA", "t-SNE", "UMAP")
    people: int | None = None


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
    "03_adapter": {
        "smoke": Adapter(users=40, asked=2, rows=2, epochs=2),
        "laptop": Adapter(),
        "paper": Adapter(asked=95, rows=8, epochs=20),
    },
    "04_curriculum_training": {
        "smoke": Curriculum(
            rows=2,
            match_rows=8,
            repeat_rows=2,
            nearest_rows=2,
            asked=4,
            untuned=2,
            users=40,
            draws=5,
            limit=4,
            shipped=("long",),
        ),
        "laptop": Curriculum(),
        "paper": Curriculum(
            rows=330_635, match_rows=3200, repeat_rows=512, nearest_rows=768, untuned=95, draws=100, limit=1000
        ),
    },
    "05_bistep_grounding": {
        "smoke": BiStep(rows=4, passes=1, asked=3, block=2, layers=(1,), garbled=20, epochs=1, users=40),
        "laptop": BiStep(),
        "paper": BiStep(rows=1024, passes=10, asked=500, layers=(5, 10, 15, 20, 25), garbled=1664),
    },
    "06_diffusion_generation": {
        "smoke": Diffusion(epochs=1, sequence_epochs=1, dream_epochs=1, users=40, every=100),
        "laptop": Diffusion(),
        "paper": Diffusion(epochs=1000, every=1),
    },
    "07_latent_space_interpretation": {
        "smoke": Interpretation(users=40, each=1, passes=1, word_rows=1000, rows=8, blurred=2, oracles=3),
        "laptop": Interpretation(),
        "paper": Interpretation(each=20, passes=4, word_rows=1_000_000, rows=66_127),
    },
    "08_offline_rl": {
        "smoke": Offline(users=40, epochs=1, states=50),
        "laptop": Offline(),
        "paper": Offline(epochs=28, states=5000),
    },
    "09_digital_twin_brain": {
        "smoke": Brain(runs=4, volumes=100, couplings=6, field=120, nulls=2, steps=(2, 4), radii=2, reservoirs=2),
        "laptop": Brain(),
        "paper": Brain(runs=256, volumes=1200, couplings=40, nulls=100, steps=(40, 80, 150, 300), reservoirs=50),
    },
    "10_embedding_explorer": {
        "smoke": Embeddings(
            ("SASRec", "GRU4Rec"), 1, 1, (1, 1), users=40, layer=1, mapped=("SASRec",), methods=("PCA",), people=40
        ),
        "laptop": Embeddings(),
        "paper": Embeddings(workers=1),
    },
}


def known(what: str, value: str, allowed: Sequence[str]) -> None:
    """Raise ValueError, with the nearest match, when a value is not among the allowed ones."""
    if value not in allowed:
        near = difflib.get_close_matches(value, allowed, 1, cutoff=0.3)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown {what} {value!r}; allowed: {', '.join(allowed)}{hint}")


def get(notebook: str, profile: str) -> Any:
    """Settings of a notebook under a profile.

    Raises:
        ValueError: when either name is unknown, with the nearest match.
    """
    known("profile", profile, NAMES)
    known("notebook", notebook, tuple(SETTINGS))
    return SETTINGS[notebook][profile]
