"""The data and frozen recommenders that the papers on language models share: training rows of up to 10 items."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from recnb import data, datasets, recommenders
from recnb.data import Cases, Dataset, Split
from recnb.prompts import PromptBuilder
from recnb.recommenders import Report

WINDOW, MIN_HISTORY = 10, 3  # the papers'


def load(dataset: str = "ml-100k", tie_seed: int | None = 0) -> Study:
    """The papers' split of a dataset: by user on ratings, or the publisher's own where there is one."""
    log = datasets.load(dataset, tie_seed)
    return Study(log, data.published(log) if "part" in log.events else data.user_windows(log))


def backbone_recipe(name: str, seed: int = 0) -> recommenders.Recipe:
    """The recommender that LLaRA freezes: one sampled negative, width 64, at most the last 10 items."""
    recipe = recommenders.recipe(name, "bce", seed)
    return replace(recipe, model=replace(recipe.model, max_length=WINDOW))


@dataclass(frozen=True)
class Study:
    """The data of all runs on one dataset: split, training rows, and the backbones.

    Attributes:
        dataset: as loaded.
        split: `data.user_windows` or a published split.
    """

    dataset: Dataset
    split: Split

    @cached_property
    def train(self) -> Cases:
        """The papers' training rows, with at most the last ten items.

        LLaRA and RecInterpreter: every prefix of a training user with at least 3 items; 66,127 in MovieLens-100K.
        BIGRec: windows of ten items; 72,456.
        """
        least = WINDOW if self.split.name == "temporal-windows" else MIN_HISTORY
        return data.prefixes(self.split.train, np.arange(len(self.split.train)), least, WINDOW)

    def prefixes(self, part: str = "test", each: int | None = None, seed: int = 0) -> Cases:
        """All prefixes of the held-out users, at most ``each`` a user, drawn with ``seed``."""
        cases: Cases = getattr(self.split, part)
        whole = [np.append(history, target) for history, target in zip(cases.history, cases.target, strict=True)]
        every = data.prefixes(whole, cases.user, MIN_HISTORY, WINDOW)
        if each is None:
            return every
        order = np.random.default_rng(seed).permutation(len(every))
        rank = pd.Series(every.user[order]).groupby(every.user[order]).cumcount().to_numpy()
        return every.take(np.sort(order[rank < each]))

    def backbone(self, name: str, report: Report = lambda _: None) -> recommenders.Trained:
        """The frozen recommender, from the store or trained now."""
        return recommenders.trained(self.dataset, self.split, backbone_recipe(name), report)

    def builder(self, tokenizer: Any, slot_first: bool = True) -> PromptBuilder:
        """Prompts over this catalogue."""
        return PromptBuilder(tokenizer, self.dataset.items["title"].tolist(), self.dataset.name, slot_first)


def first_users(study: Study, count: int | None) -> Study:
    """The study with only its first ``count`` training users; None keeps all."""
    return study if count is None else Study(study.dataset, data.first_users(study.split, count))
