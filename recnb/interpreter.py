"""RecInterpreter: a language model reads the hidden state of a recommender aloud (Yang et al., 2023).

Recommender and language model stay frozen. Between them stands an adapter, and it alone is trained:

    z = sum_t c_t s_t              the states s_1 .. s_L after the last L items, pooled with learned weights c
    v = A z + b                    soft tokens in the language model's input space, put where a word would stand

*Recovery* asks for the items behind one state. *Residual* shows the states of a history before and after one more
item and asks for that item. From the paper: pooling, one linear layer, one soft token a state, both prompts. Beyond
it, each a switch: several soft tokens, a hidden layer, and what a slot reads (`READS`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recnb import llm
from recnb.llm import LanguageModel
from recnb.prefix import Prefix
from recnb.prompts import DOMAINS, Words

READS = {"recovery": ("state", "one", "step"), "residual": ("state", "difference"), "item": ("state",)}  # by task
SEPARATOR = ";"  # titles may hold commas

# An echo shows by examples, which are no films of the catalogue, that what stands first is to be said again. Line ends
# fill them up as they fill up soft tokens (`interpreter_training.words`); chosen on validation people. It is no wording
# of a question that a test could vary: soft tokens are trained to be heard in it.
EXAMPLES = ("Avatar", "The Hurt Locker", "Inception", "Up", "Slumdog Millionaire")
ECHO = ("".join(f"Title: {name}\n\n\n\nThe title again: {name}\n" for name in EXAMPLES) + "Title:|\nThe title again:",)

# Phrasings for training, then others for the test; "|" is where slots go in.
PHRASES = {
    "recovery": (
        (
            "A person has {did} a series of {item}s. The whole list as one vector: |. Describe this history in detail. "
            "This person has {did}:",
            "The {item}s that someone {did} are summed up here: |. Name them one after the other. They are:",
            "History of one person: |. Tell me about this history. The {item}s in it are:",
        ),
        (
            "Someone's {item} history was written down as |. Which {item}s has this person {did}? The {item}s are:",
            "One vector stands for the {item}s of a person: |. Which ones were {did}? This person has {did}:",
        ),
    ),
    "residual": (
        (
            "List 1 of {item}s: |. List 2 of {item}s: |. One {item} is in list 2 but not in list 1. It is:",
            "Before: |. After: |. The {item} that was added to the list is:",
        ),
        ("The first list is |, the second list is |. The {item} in the second that the first lacks is:",),
    ),
    "echo": (ECHO, ECHO),
}


@dataclass(frozen=True)
class InterpreterConfig:
    """What decides the model; the defaults are the paper's.

    Attributes:
        task: one of `READS`.
        reads: what a slot reads. "state": a pooled state, as in the paper. "difference" (residual): the pooled
            difference of both states. "one" (recovery): a pooled state, of which one item is to be named; the most
            likely names make up the list. "step" (recovery): the state after one item, not pooled; that item is to be
            named.
        tokens: soft tokens a slot.
        hidden: width of a hidden layer of the adapter; 0 is one linear layer.
    """

    task: str = "recovery"
    reads: str = "state"
    tokens: int = 1
    hidden: int = 0

    def __post_init__(self) -> None:
        """Refuse an unknown task, or one that cannot be read so."""
        if self.task not in READS:
            raise ValueError(f"unknown task {self.task!r}; allowed: {', '.join(READS)}")
        if self.reads not in READS[self.task]:
            raise ValueError(f"{self.task} cannot read {self.reads!r}; allowed: {', '.join(READS[self.task])}")

    @property
    def phrasing(self) -> str:
        """A key of `PHRASES`: where a slot stands for one item, it is to be said again."""
        return self.task if self.reads == "state" and self.task != "item" else "echo"


@dataclass(frozen=True)
class Question:
    """One prompt with its answer, as tokens.

    Attributes:
        pieces: token ids before, between and after the states.
        answer: token ids of the right answer, its end mark included.
    """

    pieces: list[list[int]]
    answer: list[int]


class Phrasebook:
    """Writes questions for one tokenizer and one catalogue; every title is tokenized once.

    Args:
        tokenizer: of the language model.
        titles: title of every item, in id order.
        dataset: its name, which decides how the prompts call an item.
    """

    def __init__(self, tokenizer: Any, titles: Sequence[str], dataset: str = "ml-100k") -> None:
        self.tokenizer, self.words = tokenizer, DOMAINS.get(dataset, Words())
        self.titles = [" ".join(title.split()) for title in titles]
        self.known = {title.lower() for title in self.titles}
        self.title = self._tokens([" " + title for title in self.titles])
        self.separator, self.end = self._tokens([SEPARATOR, "\n"])

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]

    def ask(self, phrasing: str, items: Sequence[int] | np.ndarray, phrase: int = 0, test: bool = False) -> Question:
        """The question whose answer is these items' titles, in this order.

        Args:
            phrasing: a key of `PHRASES`.
            items: item ids.
            phrase: which phrasing, counted on past the last.
            test: use the phrasings that training has not seen.
        """
        known = PHRASES[phrasing][test]
        text = known[phrase % len(known)].format(item=self.words.item, did=self.words.did)
        answer: list[int] = []
        for place, item in enumerate(items):
            answer += (self.separator if place else []) + self.title[int(item)]
        return Question(self._tokens(text.split("|")), answer + self.end)

    def named(self, said: str) -> list[str]:
        """The names in an answer, lower case, in order and each once."""
        parts = [part.strip().lower() for part in said.split(SEPARATOR)]
        return list(dict.fromkeys(part for part in parts if part))

    def spoken(self, items: Sequence[int] | np.ndarray) -> list[str]:
        """Titles as an answer would have them, lower case, each once."""
        return list(dict.fromkeys(self.titles[int(item)].lower() for item in items))


def likeness(one: str, other: str) -> float:
    """Share of letters that two names have in common, in order, from 0 to 1 (Ratcliff and Obershelp)."""
    return SequenceMatcher(None, one, other, autojunk=False).ratio()


def matched(named: Sequence[str], true: Sequence[str], threshold: float = 1.0) -> list[int]:
    """For each name the place of the true title that it matches best, -1 for none; a title is matched once.

    Args:
        named: names as `Phrasebook.named` gives them.
        true: titles as `Phrasebook.spoken` gives them.
        threshold: least `likeness`; 1 is exact matching.
    """
    free, found = set(range(len(true))), []
    for name in named:
        scores = {place: likeness(name, true[place]) if threshold < 1 else float(name == true[place]) for place in free}
        best = max(scores, key=lambda place: scores[place], default=-1)
        found.append(best if best >= 0 and scores[best] >= threshold else -1)
        free.discard(found[-1])
    return found


class Adapter(nn.Module):
    """Pools a sequence's states and maps them into the language model's input space.

    Args:
        places: L, how many last states are pooled.
        dim: d, the width of a state.
        width: H, the width of a token embedding.
        config: see `InterpreterConfig`.
    """

    mean: Tensor
    scale: Tensor
    gain: Tensor

    def __init__(self, places: int, dim: int, width: int, config: InterpreterConfig) -> None:
        super().__init__()
        self.tokens, self.width = config.tokens, width
        self.pool = nn.Parameter(torch.full((places,), 1 / places))
        out = config.tokens * width
        last = nn.Linear(config.hidden or dim, out)
        self.map = nn.Sequential(nn.Linear(dim, config.hidden), nn.GELU(), last) if config.hidden else last
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.register_buffer("gain", torch.ones(()))  # not in the weights, which must stay small to be learnt quickly

    def pooled(self, states: Tensor) -> Tensor:
        """z = sum_t c_t s_t, standardised: (..., L, d) -> (..., d)."""
        return (torch.einsum("...td,t->...d", states, self.pool) - self.mean) / self.scale

    @torch.no_grad()
    def begin(self, states: Tensor, length: float) -> None:
        """Standardise by a sample of states (n, L, d), and let soft tokens begin as long as words are."""
        self.mean.zero_()
        self.scale.fill_(1.0)
        z = self.pooled(states)
        self.mean.copy_(z.mean(0))
        self.scale.copy_(z.std(0).clamp(min=1e-6))
        self.gain.fill_(1.0)
        self.gain.copy_(length / self(states).norm(dim=-1).mean())

    def forward(self, states: Tensor) -> Tensor:
        """(..., L, d) -> soft tokens (..., S, H)."""
        return self.gain * self.map(self.pooled(states)).unflatten(-1, (self.tokens, self.width))


class Interpreter(nn.Module):
    """A frozen language model with a trained adapter before it.

    The language model's weights are no part of this module's state.

    Args:
        lm: as loaded, frozen.
        states: a sample of questions' states (B, n, L, d), for the shapes and the adapter's start.
        config: see `InterpreterConfig`.
    """

    def __init__(self, lm: LanguageModel, states: Tensor, config: InterpreterConfig = InterpreterConfig()) -> None:
        super().__init__()
        self.lm, self.config = lm, config  # a LanguageModel is no Module
        table, seen = lm.embeddings, self.inputs(states).flatten(0, 1)
        places, dim = seen.shape[1:]
        self.adapter = Adapter(places, dim, table.shape[1], config)
        self.adapter.begin(seen, float(table.float().norm(dim=1).mean()))
        self.to(table.device)
        self._read: dict[tuple[int, ...], Prefix] = {}

    def prefix(self, questions: Sequence[Question]) -> Prefix | None:
        """What stands before the first slot, read once, when all questions have the same words; else None."""
        first = questions[0].pieces
        if any(question.pieces != first for question in questions):
            return None
        start = tuple(first[0])
        if start not in self._read:
            self._read[start] = Prefix(self.lm.body, self.lm.embeddings[torch.tensor(start)])
        return self._read[start]

    def inputs(self, states: Tensor) -> Tensor:
        """What every slot reads, (B, m, L, d), of questions about n states (B, n, L, d); m is n, or 1."""
        return states[:, 1:] - states[:, :1] if self.config.reads == "difference" else states

    def read(self, states: Tensor) -> Tensor:
        """Soft tokens of every slot, (B, m, S, H), of questions about states (B, n, L, d)."""
        return self.adapter(self.inputs(states))

    def rows(self, questions: Sequence[Question], soft: Tensor, tails: Sequence[Sequence[int]] = ()) -> list[Tensor]:
        """Input embeddings (T_i, H) of questions with their soft tokens (B, m, S, H) in place.

        Args:
            questions: one a row.
            soft: what `read` gave.
            tails: token ids that follow each question.
        """
        table, found = self.lm.embeddings, []
        for question, slots, tail in zip(questions, soft.to(table.dtype), tails or [()] * len(questions), strict=True):
            pieces = [*question.pieces[:-1], [*question.pieces[-1], *tail]]
            words = [table[torch.tensor(piece, dtype=torch.long, device=table.device)] for piece in pieces]
            filling = [*slots, words[0][:0]]
            found.append(torch.cat([part for pair in zip(words, filling, strict=True) for part in pair]))
        return found

    def token_losses(self, questions: Sequence[Question], states: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of every answer token (M,), and the question that it belongs to (M,)."""
        answers, prefix = [question.answer for question in questions], self.prefix(questions)
        prompts = self.rows(questions, self.read(states), [answer[:-1] for answer in answers])
        embeds, lengths = llm.pad([row[prefix.length :] for row in prompts] if prefix else prompts)
        read = prefix.kept(len(prompts)) if prefix else {"use_cache": False}
        hidden = self.lm.body(inputs_embeds=embeds, **read).last_hidden_state
        owner = [row for row, answer in enumerate(answers) for _ in answer]
        where = [
            row * embeds.shape[1] + int(lengths[row]) - len(answer) + step
            for row, answer in enumerate(answers)
            for step in range(len(answer))
        ]
        tokens = [token for answer in answers for token in answer]
        place, said, of = (torch.tensor(values, device=embeds.device) for values in (where, tokens, owner))
        return F.cross_entropy(self.lm.logits(hidden.flatten(0, 1)[place]), said, reduction="none"), of

    def forward(self, questions: Sequence[Question], states: Tensor) -> Tensor:
        """Mean cross-entropy over the answers' tokens."""
        return self.token_losses(questions, states)[0].mean()

    @torch.no_grad()
    def nats(self, questions: Sequence[Question], states: Tensor, batch: int = 32) -> Tensor:
        """-log P(answer | states) of each question (n,), in nats."""
        found = torch.zeros(len(questions))
        for start in range(0, len(questions), batch):
            losses, of = self.token_losses(questions[start : start + batch], states[start : start + batch])
            found.index_add_(0, of.cpu() + start, losses.float().cpu())
        return found

    @torch.no_grad()
    def aloud(self, questions: Sequence[Question], states: Tensor, end: int, limit: int = 160) -> list[str]:
        """Greedy answers to questions about states (B, n, L, d), one line each."""
        return self.spoken(questions, self.read(states), end, limit)

    def spoken(self, questions: Sequence[Question], soft: Tensor, end: int, limit: int) -> list[str]:
        """Greedy answers to questions with soft tokens (B, m, S, H) in their slots."""
        return llm.generate(self.lm, self.rows(questions, soft), end, limit, 64, self.prefix(questions))

    @torch.no_grad()
    def likeliest(self, questions: Sequence[Question], states: Tensor, end: int, count: int = 10) -> list[list[str]]:
        """The ``count`` likeliest short answers to each question, by beam search, best first."""
        rows = self.rows(questions, self.read(states))
        return llm.beams(self.lm, rows, end, count, prefix=self.prefix(questions))
