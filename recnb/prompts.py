"""LLaRA's prompts as token ids with slots: text-only, ID-only, numerical index, and hybrid.

A slot is a position whose input embedding is not a word's but is filled in later: with the projected vector of an
item (a *behaviour token*), or in a text-only prompt with one fixed placeholder vector. A prompt here is the list of
token ids, the positions of its slots, and the item that each slot stands for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Items = Sequence[int] | np.ndarray
KINDS = ("text", "id", "index", "hybrid")


@dataclass(frozen=True)
class Words:
    """How a domain speaks: what an item is, what people did with it, and what they do next."""

    item: str = "movie"
    did: str = "watched"
    do: str = "watch"


DOMAINS = {"lastfm-llara": Words("artist", "listened to", "listen to")}

# The paper's three phrasings in structure (history, task, candidates, cue), in our words; 20 are called 20.
TEMPLATES = (
    "A user has {did} these {item}s:{history}. Pick the next {item} to {do} from these {n}:{candidates}. "
    "Answer with one title only. The next {item} is",
    "The {item} history of this user is:{history}. Recommend the next {item} to {do} from this set of {n} "
    "titles:{candidates}. Reply with exactly one of them. Recommendation:",
    "Earlier this user {did}{history}. Which of the following {n} {item}s comes next?{candidates}. "
    "Choose a single title from the list. Answer:",
)


@dataclass(frozen=True)
class Prompt:
    """One question as tokens.

    Attributes:
        ids: token ids (T,); at a slot any id, it is never looked up.
        slots: positions of the slots (S,), in order.
        items: item id that each slot stands for (S,).
        n_history: how many of the slots belong to the history; the rest are the candidates, in order.
        candidates: item ids offered.
        answers: token ids of each candidate's answer, its end mark included.
        place: which candidate is the right one; -1 when not known.
    """

    ids: np.ndarray
    slots: np.ndarray
    items: np.ndarray
    n_history: int
    candidates: np.ndarray
    answers: list[list[int]] = field(repr=False)
    place: int = -1


class PromptBuilder:
    """Writes prompts for one tokenizer and one catalogue; every title is tokenized once.

    Args:
        tokenizer: of the language model.
        titles: title of every item, in id order.
        dataset: its name, which decides the `Words`.
        slot_first: write an item's slot before its title; False is the paper's order, the slot after it.
    """

    def __init__(
        self, tokenizer: Any, titles: Sequence[str], dataset: str = "ml-100k", slot_first: bool = True
    ) -> None:
        self.tokenizer, self.titles, self.slot_first = tokenizer, list(titles), slot_first
        self.words = DOMAINS.get(dataset, Words())
        self._title = self._tokens([" " + " ".join(title.split()) for title in titles])
        self._index = self._tokens([f" {item}" for item in range(len(titles))])
        self._comma, self.end = self._tokens([",", "\n"])
        self._templates: dict[tuple[int, int], list[list[int]]] = {}

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]

    def name(self, item: int, kind: str) -> list[int]:
        """Tokens that stand for an item in a prompt's text; none in an ID-only prompt."""
        return {"id": [], "index": self._index[item]}.get(kind, self._title[item])

    def answer(self, item: int, kind: str) -> list[int]:
        """Tokens that a right answer consists of: title (or number) and end of line."""
        return (self._index if kind == "index" else self._title)[item] + self.end

    def spoken(self, item: int, kind: str) -> str:
        """What a right answer reads as."""
        return str(item) if kind == "index" else " ".join(self.titles[item].split())

    def _pieces(self, template: int, n: int) -> list[list[int]]:
        """The template's three stretches of words: before the history, up to the candidates, and the rest."""
        if (template, n) not in self._templates:
            spec, words = TEMPLATES[template], self.words
            filled = spec.format(item=words.item, did=words.did, do=words.do, n=n, history="|", candidates="|")
            self._templates[template, n] = self._tokens(filled.split("|"))
        return self._templates[template, n]

    def build(
        self,
        kind: str,
        history: Items,
        candidates: Items,
        target: int | None = None,
        template: int = 0,
        history_kind: str | None = None,
    ) -> Prompt:
        """Write one prompt.

        Args:
            kind: "text" (titles, each with a placeholder slot), "id" (slots alone), "index" (item numbers, no
                slots) or "hybrid" (titles, each with its item's slot).
            history: item ids, oldest first.
            candidates: item ids in the order in which they are offered.
            target: the right one among the candidates, when it is known.
            template: which phrasing, an index into `TEMPLATES`.
            history_kind: how the history is written, when not as the candidates are.

        Raises:
            ValueError: unknown kind or template, or a target that is not a candidate.
        """
        if kind not in KINDS or not 0 <= template < len(TEMPLATES):
            raise ValueError(f"kind {kind!r}, template {template}; allowed: {', '.join(KINDS)}; 0 to 2")
        offered = np.asarray(candidates, dtype=np.int64)
        if target is not None and target not in offered:
            raise ValueError(f"target {target} is not among the candidates {offered.tolist()}")
        ids, slots = [], []
        before, middle, after = self._pieces(template, len(offered))
        for lead, group, how in ((before, history, history_kind or kind), (middle, offered, kind)):
            ids += lead
            for place, item in enumerate(group):
                ids += self._comma if place else []
                name = self.name(int(item), how)
                if how != "index":
                    slots.append(len(ids) + (0 if self.slot_first else len(name)))
                    name = self.end + name if self.slot_first else name + self.end  # any id: it is never looked up
                ids += name
        items = np.concatenate([np.asarray(history, dtype=np.int64), offered])
        return Prompt(
            np.asarray(ids + after, dtype=np.int64),
            np.asarray(slots, dtype=np.int64),
            items if slots else items[:0],
            len(history) if slots else 0,
            offered,
            [self.answer(int(item), kind) for item in offered],
            -1 if target is None else int(np.flatnonzero(offered == target)[0]),
        )

    def bare(self, history: Items, candidates: Items, target: int) -> Prompt:
        """A prompt of slots alone, history and candidates parted by a line end: 31 tokens where a hybrid has 215."""
        offered, length = np.asarray(candidates, dtype=np.int64), len(history) + 1 + len(candidates)
        items = np.concatenate([np.asarray(history, dtype=np.int64), offered])
        slots = np.delete(np.arange(length), len(history))
        place = int(np.flatnonzero(offered == target)[0])
        return Prompt(np.full(length, self.end[0]), slots, items, len(history), offered, [], place)

    def pieces(self, prompt: Prompt) -> list[str]:
        """The prompt token by token as text; ``[slot]`` at slots. For pictures."""
        words = [self.tokenizer.decode([int(token)]) for token in prompt.ids]
        for slot in prompt.slots:
            words[slot] = "[slot]"
        return words
